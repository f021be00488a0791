"""Forms, driven by keys as a person would."""

import io
import json
import re

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from llmlab.config import KINDS, SFTConfig, SourceConfig, preset, save_config
from llmlab.config.rewards import RewardSource
from llmlab.config.slurm import SlurmConfig
from llmlab.errors import LabError
from llmlab.ui import drafts, prompts
from llmlab.ui.explanations import explanation
from llmlab.ui.fields import ask_option, parse_typed
from llmlab.ui.form_state import ADVANCED, FIXED, FormState
from llmlab.ui.forms import Form, fill_in
from llmlab.ui.lines import within
from llmlab.ui.prompts import Answer, Navigation, text

ENTER, CLEAR, DOWN, BACK, ESCAPE, CTRL_C, CTRL_D = "\r", "\x15", "\x1b[B", "\x1b[Z", "\x1b", "\x03", "\x04"


@pytest.fixture(autouse=True)
def own_drafts(tmp_path, monkeypatch):
    monkeypatch.setattr(drafts, "DRAFTS", tmp_path / "drafts")


def answer(config, keys):
    console = Console(record=True, width=100, file=io.StringIO())
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        keyboard.send_text(keys)
        made = fill_in(config, console)
    return made, console.export_text()


@pytest.mark.slow
@pytest.mark.parametrize("config", [preset("tiny"), *(cls() for cls in KINDS.values())], ids=lambda c: c.kind)
def test_enter_keeps_everything(config):
    made, shown = answer(config, ENTER * 60)
    assert made == config
    assert "review" in shown and "Advanced" not in shown


def test_steps_that_follow_from_epochs_are_not_asked_for():
    made, shown = answer(SFTConfig(epochs=2, warmup_ratio=0.1), ENTER * 60)
    assert "Epochs Passes" in shown and "Steps Optimizer" not in shown and "Warm-up Steps" not in shown
    assert made.to_json_dict() == SFTConfig(epochs=2, warmup_ratio=0.1).to_json_dict()


def test_what_a_cluster_wants_to_know_is_asked_in_a_form():
    made, shown = answer(SlurmConfig(), "gpu" + ENTER * 2 + CLEAR + "2:00:00" + ENTER * 60)
    assert made == SlurmConfig(partition="gpu", time="2:00:00") and "review" in shown


def test_a_typed_value_arrives_and_is_marked():
    made, shown = answer(preset("tiny"), ENTER * 2 + CLEAR + "192" + ENTER * 60)
    assert made.d_model == 192 and "changed" in shown


def test_a_combination_that_cannot_be_is_asked_again():
    keys = ENTER * 2 + CLEAR + "130" + ENTER * 12  # 130 over 4 heads; the form comes to its end
    made, shown = answer(preset("tiny"), keys + CLEAR + "136" + ENTER * 40)
    assert "use 128 or 136" in shown and made.d_model == 136


@pytest.mark.slow
def test_fields_that_do_not_apply_are_not_asked():
    _, shown = answer(preset("llama-7b"), ENTER * 60)
    assert "Attention type" in shown and "Key/value heads" not in shown
    _, shown = answer(SFTConfig(), ENTER * 60)
    assert "LoRA rank" not in shown


def test_the_warm_up_offered_follows_the_steps():
    names = [
        name
        for name, info in SFTConfig.options().items()
        if name not in ("kind", "schema_version") and not info.advanced
    ]
    keys = ENTER * (1 + names.index("max_steps")) + CLEAR + "30" + ENTER * 60
    made, _ = answer(SFTConfig(), keys)
    assert (made.max_steps, made.warmup_steps) == (30, 3)


def test_ctrl_c_leaves():
    made, _ = answer(preset("tiny"), ENTER + CTRL_C)
    assert made is None and not drafts.kept(type(preset("tiny")))


@pytest.mark.slow
def test_back_keeps_the_answers():
    keys = ENTER * 2 + CLEAR + "192" + ENTER + BACK + BACK + CLEAR + "4096" + ENTER * 60
    made, _ = answer(preset("tiny"), keys)
    assert (made.vocab_size, made.d_model) == (4096, 192)
    made, _ = answer(preset("tiny"), BACK * 3 + ENTER * 60)  # there is nothing before the first question
    assert made == preset("tiny")


@pytest.mark.slow
def test_what_was_answered_is_kept_as_a_draft():
    typed = ENTER * 2 + CLEAR + "192" + ENTER
    made, shown = answer(preset("tiny"), typed + CTRL_C + ENTER)
    assert made is None and "draft saved as" in shown
    made, _ = answer(preset("tiny"), ENTER + ENTER * 60)  # the draft is offered, Enter takes it
    assert made.d_model == 192 and not drafts.kept(type(made))
    made, _ = answer(preset("tiny"), typed + CTRL_C + CTRL_C)  # even in a hurry nothing is lost
    assert made is None and drafts.kept(type(preset("tiny")))["d_model"] == 192
    made, _ = answer(preset("tiny"), "n" + ENTER * 60)
    assert made == preset("tiny")


def test_a_damaged_draft_harms_nothing():
    folder = drafts.DRAFTS
    folder.mkdir()
    for content in ("{", "[1]", '{"d_model": "x", "attention_type": 3, "no_such": 1, "n_layers": 3}'):
        (folder / "model.json").write_text(content)
        found = drafts.kept(type(preset("tiny")))
        assert found == ({"n_layers": 3} if "n_layers" in content else {})


@pytest.mark.slow
def test_a_question_mark_in_a_list_loses_no_line():
    made, shown = answer(SFTConfig(), ENTER + CLEAR + "b.jsonl" + ENTER + "?" + "c.jsonl" + ENTER * 60)
    assert [source.line() for source in made.datasets] == ["b.jsonl", "c.jsonl"] and "Default" in shown


def test_a_plan_that_cannot_be_made_loses_no_answer(tmp_path):
    made, shown = answer(KINDS["pretrain"](model=str(tmp_path / "gone.json")), ENTER * 60)
    assert made is not None and "there is no such config" in " ".join(shown.split())


def test_base_training_takes_the_file_of_a_model_config(tmp_path):
    """It names an architecture: it is not looked for among the checkpoints that other methods start from."""
    path = save_config(preset("tiny"), tmp_path / "tiny.json")
    made, shown = answer(KINDS["pretrain"](model=str(path)), ENTER * 60 + CTRL_C * 2)
    assert made is not None and made.model == str(path), shown
    assert "not a checkpoint" not in shown


@pytest.mark.slow
def test_lists_are_asked_line_by_line(tmp_path):
    data = tmp_path / "rows.jsonl"
    keys = (
        ENTER
        + CLEAR
        + str(data)
        + ENTER
        + "b.jsonl | | 2"
        + ENTER
        + BACK
        + CLEAR
        + "c.jsonl"
        + ENTER
        + ENTER * 60
    )
    made, _ = answer(SFTConfig(), keys)
    assert [source.line() for source in made.datasets] == [str(data), "c.jsonl"]


def typed(value):
    """A value as a person would type it."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize(
    "cls", [*KINDS.values(), SourceConfig, RewardSource], ids=lambda cls: getattr(cls, "KIND", cls.__name__)
)
def test_what_an_explanation_says_is_so(cls):
    """The default it names and every choice are taken, its bounds hold on both sides,
    anything else is refused by name.
    """
    console = Console(record=True, width=200, file=io.StringIO())
    bounds = 0
    for name in (name for name in cls.options() if name not in FIXED):
        info, field = cls.options()[name], cls.model_fields[name]
        console.print(explanation(cls, name))
        shown = " ".join(console.export_text().replace("│", " ").split())
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if default is not None and not (
            isinstance(default, list) and default and hasattr(default[0], "line")
        ):
            assert parse_typed(cls, name, typed(default)) == default, name
        for choice, advice in info.choices.items():
            assert parse_typed(cls, name, choice) == choice and f"{choice} {advice}" in shown
        annotation = str(field.annotation)
        if (info.choices or "int" in annotation or "float" in annotation) and "list" not in annotation:
            with pytest.raises(LabError, match=f"`{name}`"):
                parse_typed(cls, name, "a whale")
        step = 1 if "int" in annotation else 1e-6
        for words, inside, outside in (
            ("at least", 0, -step),
            ("at most", 0, step),
            ("above", step, 0),
            ("below", -step, 0),
        ):
            for said in re.findall(rf"(?:Must be|and) {words} ([-+\d.,e]*\d)", shown):
                bound = float(said) if step != 1 else int(said.replace(",", ""))
                assert parse_typed(cls, name, json.dumps(bound + inside)) == bound + inside, name
                with pytest.raises(LabError, match=f"`{name}`"):
                    parse_typed(cls, name, json.dumps(bound + outside))
                bounds += 1
    assert bounds or cls is RewardSource


@pytest.mark.parametrize("cls", KINDS.values(), ids=lambda cls: cls.KIND)
def test_every_option_is_reached_by_some_answers(cls):
    """Each option is a step of the walk as soon as what it depends on is answered that way."""
    for name, info in cls.options().items():
        if name in FIXED:
            continue
        values = {
            other: field.get_default(call_default_factory=True) for other, field in cls.model_fields.items()
        }
        for other, allowed in info.applies_when.items():
            values[other] = allowed[0]
            for further, more in cls.options()[other].applies_when.items():
                values[further] = more[0]
        state = FormState(cls, {**values, "epochs": None} if name == "max_steps" else values)
        state.advanced = True
        assert name in state.steps() and ADVANCED in state.steps()


def test_a_question_mark_shows_the_value_of_the_preset():
    console = Console(record=True, width=100, file=io.StringIO())
    config = preset("small")
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        keyboard.send_text("?" + ENTER)
        values = {name: getattr(config, name) for name in type(config).model_fields}
        Form(FormState(type(config), values, "small"), console).ask("n_layers", back=False)
    shown = console.export_text()
    assert f"small has {config.n_layers}; the default is 24." in shown and "Default: 24" not in shown


def test_a_question_mark_explains_and_asks_again():
    console = Console(record=True, width=100, file=io.StringIO())
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        keyboard.send_text("?" + CLEAR + "0.002" + ENTER)
        assert ask_option(SFTConfig, "learning_rate", 1e-5, console) == Answer(0.002)
    assert "Presets, after published recipes" in console.export_text()


@pytest.mark.parametrize(
    ("key", "back", "expected"),
    [
        (ESCAPE, True, Navigation.BACK),
        (BACK, True, Navigation.BACK),
        (CTRL_C, True, Navigation.LEAVE),
        (CTRL_D, True, Navigation.LEAVE),  # in an empty line
        (ENTER, True, Answer("")),
        (ESCAPE + "x" + ENTER, False, Answer("x")),  # there is nothing to go back to
    ],
)
def test_where_a_person_goes_is_what_a_question_returns(key, back, expected):
    with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
        keyboard.send_text(key)
        assert prompts.ask(text("Which one?"), back=back) == expected


def test_going_on_at_the_review_comes_back_to_it():
    """Nothing is asked again."""
    keys = ENTER * 2 + CLEAR + "192" + ENTER * 20
    made, shown = answer(preset("tiny"), keys)
    assert made is not None
    steps = len(
        FormState(type(made), {name: getattr(made, name) for name in type(made).model_fields}).steps()
    )
    keys = ENTER * 2 + CLEAR + "192" + ENTER * (steps - 2) + CTRL_C + DOWN + ENTER + ENTER
    made, shown = answer(preset("tiny"), keys)
    assert made.d_model == 192 and shown.count("review") == 2


CTRL_R, CTRL_F = "\x12", "\x06"


def test_one_key_takes_the_rest_as_it_is():
    made, shown = answer(preset("tiny"), CTRL_R + ENTER)
    assert made == preset("tiny") and "Attention type" not in shown.split("review")[0]


def test_an_option_is_found_by_its_name_from_any_question():
    made, _ = answer(SFTConfig(), CTRL_F + "adam_beta2" + ENTER + CLEAR + "0.99" + ENTER + CTRL_R + ENTER)
    assert made == SFTConfig(adam_beta2=0.99)


def test_what_was_chosen_before_is_not_asked_again():
    state = FormState(SFTConfig, SFTConfig().to_json_dict(), given=("policy_checkpoint",))
    assert "policy_checkpoint" not in state.steps()


def test_a_contradiction_is_told_only_at_the_options_that_make_it():
    form = Form(FormState(type(preset("tiny")), preset("tiny").to_json_dict()), Console(file=io.StringIO()))
    form.state.take("d_model", 130)  # over 4 heads
    assert "130" in form.below("n_heads", None)
    assert form.below("vocab_size", None) == prompts.HINT


@pytest.mark.parametrize(
    "label, width, shown",
    [
        ("short", 20, "short"),
        ("words that are cut at a border of words", 20, "words that are cut…"),
        ("one/word/that/is/much/longer", 12, "one/word/th…"),
        ("字字字字字字", 8, "字字字…"),
    ],
)
def test_a_line_is_cut_between_words(label, width, shown):
    assert within(label, width) == shown
