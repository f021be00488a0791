"""The guided start, driven by keys: from what there is to a config that fits."""

import io
import shutil
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from llmlab.config import DPOConfig, PretrainConfig, load_config
from llmlab.planning.guide import FEW_UPDATES
from llmlab.ui import commands, guide

SAMPLES = Path(__file__).parents[2] / "docs" / "samples"

ENTER, DOWN, CLEAR = "\r", "\x1b[B", "\x15"


@pytest.fixture
def press(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLMLAB_CONFIG", str(tmp_path / "settings"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    started = []
    monkeypatch.setattr(commands, "llmlab", lambda *arguments: started.append(arguments))

    def act(keys):
        console = Console(record=True, width=120, file=io.StringIO())
        with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
            keyboard.send_text(keys)
            guide.guided(console)
        return " ".join(console.export_text().split()), started

    return act


def test_an_empty_folder_is_offered_the_quickstart_first(press):
    assert press(ENTER)[1] == [("quickstart",)]


def test_pairs_a_7b_and_12_gb_become_qlora_dpo(press, tmp_path):
    shutil.copy(SAMPLES / "preference.jsonl", tmp_path)
    keys = DOWN * 3 + ENTER + "preference.jsonl" + ENTER  # what there is, and where
    keys += ENTER + "Qwen/Qwen2.5-7B-Instruct" + ENTER + DOWN * 2 + ENTER * 2  # another model; one of 12 GB
    shown, _ = press(keys + ENTER * 2)  # as it is, under the name that is offered
    made = load_config(tmp_path / "model_configs" / "guided-dpo.json")
    assert isinstance(made, DPOConfig) and (made.adapter, made.epochs) == ("qlora", 1)
    assert made.policy_checkpoint == "Qwen/Qwen2.5-7B-Instruct" and "on the machine that it is for" in shown


def test_a_text_becomes_a_model_of_its_own(press, tmp_path, monkeypatch):
    monkeypatch.setattr(guide, "offer_tokenizer", lambda *_: True)
    keys = DOWN + ENTER + ENTER + ENTER + ENTER + ENTER  # text, Moby Dick, my own, here, the proposed shape
    shown, started = press(keys + ENTER + ENTER + ENTER + ENTER)  # its file, as it is, its file, run it
    made = load_config(tmp_path / "model_configs" / "guided-pretrain.json")
    assert isinstance(made, PretrainConfig) and made.epochs == pytest.approx(4, rel=0.05)
    assert started[-1] == ("run", "model_configs/guided-pretrain.json") and "4 passes" in shown
    rows = 1_100 * made.epochs / (made.batch_size * made.gradient_accumulation_steps)
    assert rows >= FEW_UPDATES


def test_data_that_cannot_be_read_is_asked_for_again(press):
    shown, _ = press(DOWN * 3 + ENTER + "nowhere.jsonl" + ENTER + "\x03")
    assert "nowhere.jsonl" in shown
