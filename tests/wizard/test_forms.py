"""Forms, driven by keys as a person would."""

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from llmlab.config import KINDS, SFTConfig, preset
from llmlab.wizard.forms import fill_in

ENTER, CLEAR, DOWN = "\r", "\x15", "\x1b[B"


def answer(config, keys):
    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        keyboard.send_text(keys)
        made = fill_in(config, console)
    return made, console.export_text()


@pytest.mark.parametrize("config", [preset("tiny"), *(cls() for cls in KINDS.values())], ids=lambda c: c.kind)
def test_enter_keeps_everything(config):
    made, shown = answer(config, ENTER * 60)
    assert made == config
    assert "review" in shown and "Advanced" not in shown


def test_a_typed_value_arrives_and_is_marked():
    made, shown = answer(preset("tiny"), ENTER * 2 + CLEAR + "192" + ENTER * 60)
    assert made.d_model == 192 and "changed" in shown


def test_a_combination_that_cannot_be_is_asked_again():
    keys = ENTER * 2 + CLEAR + "130" + ENTER * 12  # 130 over 4 heads; the form comes to its end
    made, shown = answer(preset("tiny"), keys + CLEAR + "136" + ENTER * 40)
    assert "use 128 or 136" in shown and made.d_model == 136


def test_fields_that_do_not_apply_are_not_asked():
    _, shown = answer(preset("llama-7b"), ENTER * 60)
    assert "Attention type" in shown and "Key/value heads" not in shown
    _, shown = answer(SFTConfig(), ENTER * 60)
    assert "LoRA rank" not in shown


def test_the_warm_up_offered_follows_the_steps():
    names = [name for name, info in SFTConfig.options().items() if name not in ("kind", "schema_version") and not info.advanced]
    keys = ENTER * (1 + names.index("max_steps")) + CLEAR + "30" + ENTER * 60
    made, _ = answer(SFTConfig(), keys)
    assert (made.max_steps, made.warmup_steps) == (30, 3)


def test_ctrl_c_leaves():
    made, _ = answer(preset("tiny"), ENTER + "\x03")
    assert made is None
