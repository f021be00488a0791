"""`--json`: one line of JSON on stdout, whatever else is said goes to stderr."""

import json
import shutil

import pytest
import typer
from typer.testing import CliRunner

from llmlab.cli import app
from llmlab.cli.options import print_json
from llmlab.config import save_config
from llmlab.runs.tags import tag
from tests.cli.test_examples import GROUP, commands

# what talks, goes on until it is stopped, or prints a document that is no result
WITHOUT = {"chat", "serve", "schema", "completion"}


def test_every_command_that_prints_a_result_has_it():
    lacking = {
        name for name, command in commands(GROUP) if not any("--json" in one.opts for one in command.params)
    }
    assert lacking == WITHOUT


def test_what_json_does_not_have_is_left_out(capsys):
    print_json({"a": float("nan"), "b": {"x"}, "c": (1, float("inf")), "d": typer, "e": "\u202e"})
    line = capsys.readouterr().out
    assert line.isascii()
    read = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert read == {"a": None, "b": ["x"], "c": [1, None], "d": str(typer), "e": "\u202e"}


@pytest.fixture
def place(tmp_path, base_run, base_config, monkeypatch):
    """A folder with a copy of a run and with its config."""
    shutil.copytree(base_run.folder, tmp_path / "checkpoints" / "base")
    save_config(base_config(tmp_path / "run"), tmp_path / "base.json")
    (tmp_path / "own.jsonl").write_text('{"prompt": "Add 3 and 4.", "completion": "7"}\n' * 3)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Call me"}\n')
    (tmp_path / "own.txt").write_text("Call me Ishmael. Some years ago.\n\n" * 20)
    monkeypatch.chdir(tmp_path)
    tag(tmp_path / "checkpoints" / "base", "old")
    return tmp_path


LINES = {
    "methods": lambda got: {one["kind"] for one in got} >= {"sft", "dpo"},
    "recipes": lambda got: all(one["source"] for one in got.values()),
    "new sft --yes -o sft.yaml": lambda got: got == {"path": "sft.yaml", "kind": "sft"},
    "check base.json": lambda got: got["plan"]["kind"] == "pretrain" and got["sources"],
    "run base.json --dry-run": lambda got: got["plan"]["schedule"]["max_steps"] and got["unchecked"] == [],
    "data catalog finance": lambda got: all("id" in one for one in got),
    "data inspect own.jsonl": lambda got: got,
    "runs list": lambda got: [one["path"] for one in got] == ["checkpoints/base"],
    "runs show base": lambda got: got,
    "runs verify base": lambda got: all(one["verified"] for one in got.values()),
    "runs tag base keep": lambda got: got["tags"] == ["old", "keep"],
    "runs untag base old": lambda got: got["tags"] == [],
    "runs report base": lambda got: got["path"].endswith("report.html"),
    "runs again base --print": lambda got: got["command"][:2] == ["llmlab", "run"],
    "runs rename base other": lambda got: got["path"].endswith("other"),
    "runs delete base --yes": lambda got: got["bytes_freed"] > 0,
    "info base": lambda got: got["manifest"] == "verified",
    "card base": lambda got: "# base" in got["card"],
    "cache list": lambda got: got == [],
    "cache verify": lambda got: got["intact"] is True,
    "tokenizer own.txt --vocab-size 280 -o tok": lambda got: got["path"] == "tok" and got["tokens"] > 256,
    "generate base -p Call --set max_new_tokens=3": lambda got: isinstance(got["completion"], str),
    "generate base -i prompts.jsonl -o a.jsonl --set max_new_tokens=3": lambda got: got["rows"] == 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("line", LINES)
def test_stdout_is_one_line(place, line):
    result = CliRunner().invoke(app, [*line.split(), "--json"])
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stdout.count("\n") == 1
    assert LINES[line](json.loads(result.stdout)), result.stdout
