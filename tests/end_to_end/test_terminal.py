"""From the menu alone, in a real terminal: a model, base training, SFT, DPO, a chat;
with wrong answers and second thoughts.
"""

import json
import os
import re
import signal

import pytest

from llmlab.config import apply_changes, load_config
from llmlab.runs.folder import RunFolder
from llmlab.training.engine import run as engine
from tests.end_to_end.terminal import CLEAR, CTRL_C, CTRL_D, DOWN, ENTER, ESCAPE, Terminal
from tests.waiting import until


@pytest.fixture
def desk(tmp_path):
    """A folder with data in it, and terminals that open there."""

    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    write("talk.jsonl", [{"prompt": f"Who is {i}?", "completion": "Ahab"} for i in range(80)])
    write(
        "pairs.jsonl", [{"prompt": f"Who is {i}?", "chosen": "Ahab", "rejected": "Stubb"} for i in range(80)]
    )
    opened = []

    def open_terminal(*arguments, columns=80, rows=24):
        environment = {**os.environ, "LLMLAB_CACHE": str(tmp_path / "cache")}
        opened.append(
            Terminal(*arguments, folder=tmp_path, columns=columns, rows=rows, environment=environment)
        )
        return opened[-1]

    yield tmp_path, open_terminal
    for terminal in opened:
        terminal.close()


SHORT = {
    "max_steps": "6",
    "warmup_steps": "0",
    "batch_size": "4",
    "gradient_accumulation_steps": "1",
    "mini_batch_size": "4",
}


@pytest.mark.slow
def test_from_nothing_to_a_chat(desk, monkeypatch):
    folder, open_terminal = desk
    term = open_terminal()
    shown = term.see("0\\) Quit")
    assert "nothing is saved yet" in shown and "cores" in shown
    term.send("1", ENTER)
    term.see("which shape")
    term.send(ENTER)
    term.see("tokenizer_name")

    # a wrong answer at each kind of field, and second thoughts at three places
    assert "988k parameters" in term.send(ENTER)
    assert "`vocab_size` 0 must be at least 1" in term.send(CLEAR, "0")
    term.send(CLEAR, "512", ENTER)
    assert "d_model" in term.question()
    term.send(ESCAPE)
    assert term.question() == "vocab_size"
    term.send(ENTER)
    assert "`d_model` 'x' (str) is not a whole number" in term.send(CLEAR, "x", ENTER)
    assert "Published shapes" in term.send(CLEAR, "128", CLEAR, "128", ESCAPE, ENTER, "?")
    term.resize(120, 40)
    term.send(ENTER)
    while term.question() != "attention_type":
        term.send(ENTER)
    term.send("x", ESCAPE)  # a letter is no choice
    assert term.question() == "n_heads"
    term.fill({"max_seq_len": "64"})
    assert re.search(r"max_seq_len\s+│ 64\s+│ changed", term.text())
    term.send(ESCAPE)
    assert "advanced" in term.text()
    term.fill({})
    term.resize(80, 24)
    term.send(ENTER)
    term.see("Save as")
    term.send(ENTER)
    term.see("Enter: the menu")
    made = load_config(folder / "model_configs" / "tiny.json")
    assert (made.vocab_size, made.d_model, made.max_seq_len) == (512, 128, 64)

    # base training: Ctrl+C in the form keeps a draft, Ctrl+C in the run seals
    term.send("2", ENTER)
    term.see("Train which model")
    term.send(ENTER)
    term.see("Which model")
    term.send(ENTER)
    term.see("Train one of 512 tokens")
    term.send(ENTER)
    term.see(r"\? name")
    term.send("first", ENTER)
    assert "Leave the form" in term.send(CTRL_C)
    term.send(ENTER)
    term.see("Enter: the menu")
    term.send("2", ENTER)
    term.see("Train which model")
    term.send(ENTER)
    term.see("Which model")
    term.send(ENTER)
    term.see("There is a draft of this form")
    term.send(ENTER)
    term.see(r"\? name first")
    term.fill(
        {
            **SHORT,
            "datasets": "llmlab:moby-dick",
            "max_steps": "100000",
            "save_every": "5",
            "eval_every": "1000",
        }
    )
    term.send(ENTER)
    term.see("Save as")
    term.send(ENTER)
    term.see("Run it now")
    term.send(ENTER)
    term.see(r"step [1-9]\d* of 100,000")
    term.send(CTRL_C)
    term.see("Enter: the menu")
    run = RunFolder(folder / "checkpoints" / "first")
    assert run.record["status"] == "stopped" and run.checkpoints()[0].fault() == ""
    term.send("s", ENTER)
    term.see("Which one")
    term.send(ENTER)
    term.see("What do you want to do")
    term.choose("edit")
    term.see(r"\? name first")
    term.fill({"max_steps": str(run.record["step"] + 4), "warmup_steps": "0"})
    term.send(ENTER)
    term.see("Save as")
    term.send(ENTER)
    term.see("Replace it")
    term.send(ENTER)
    term.see("Enter: the menu")
    term.send("s", ENTER)
    term.see("Which one")
    term.send(ENTER)
    term.see("What do you want to do")
    term.send(DOWN, ENTER)
    shown = term.see("is made. What now")
    assert "Supervised fine-tuning (SFT) with it" in shown

    # the chain: SFT with the new checkpoint, then DPO with that, then a chat
    for method, data, name in (
        ("Supervised", "talk.jsonl", "second"),
        ("Direct preference", "pairs.jsonl", "third"),
    ):
        term.choose(method)
        term.see("about which size")
        term.send(ENTER)
        term.see(r"\? name")
        lengths = {"max_length": "48", "max_prompt_length": "40"}
        term.fill({**SHORT, **lengths, "name": name, "datasets": data})
        term.send(ENTER)
        term.see("Save as")
        term.send(ENTER)
        term.see("Run it now")
        term.send(ENTER)
        term.see(f"checkpoints/{name} is made. What now")
    term.send(ENTER)
    term.see("you")
    term.send("/set max_new_tokens 5", ENTER)
    term.send("Who is 3?", ENTER)
    term.see("model")
    term.send(CTRL_D)
    term.see("Enter: the menu")
    term.send("0", ENTER)
    assert RunFolder(folder / "checkpoints" / "third").record["status"] == "done"

    # the saved config without the menu: the same losses
    monkeypatch.chdir(folder)
    config = load_config(folder / "model_configs" / "sft.json")
    again = engine.run(apply_changes(config, {"output_dir": "again"}))
    losses = [
        [
            (line["step"], line[key])
            for line in place.metrics()
            for key in ("loss", "eval_loss")
            if key in line
        ]
        for place in (RunFolder(folder / "checkpoints" / "second"), RunFolder(again.folder))
    ]
    assert losses[0] == losses[1] and losses[0]


def test_a_signal_in_the_menu_ends_it_quietly(desk):
    _, open_terminal = desk
    term = open_terminal(columns=120, rows=40)
    term.see("0\\) Quit")
    term.send(CTRL_C)
    term.read(1.0)
    assert "Traceback" not in term.text()
    term.child.kill(signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_terminal_that_is_closed_in_a_form_keeps_the_draft(desk, number):
    folder, open_terminal = desk
    term = open_terminal("new", "model")
    term.see(r"\? tokenizer_name")
    term.send(CLEAR, "byte", ENTER)
    term.see(r"\? vocab_size")
    term.child.kill(number)
    until(lambda: not term.child.isalive(), term.text)
    assert (
        json.loads((folder / "model_configs" / "drafts" / "model.json").read_text())["tokenizer_name"]
        == "byte"
    )
