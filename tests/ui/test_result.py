"""What a run leaves to look at: on the screen, in its log and in its record."""

import io
import json
import re

import pytest
from rich.console import Console
from typer.testing import CliRunner

from llmlab.cli import app
from llmlab.runs.details import find_run, run_details
from llmlab.runs.folder import LOG, RunFolder
from llmlab.runs.summary import POINTS
from llmlab.training.engine.run import run
from llmlab.ui.reporters import Several, run_reporter
from llmlab.ui.result import WIDTH, result_lines
from tests.runs.made import HOSTILE, make_run


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [True, False])
def test_a_finished_run_stays_on_the_screen(base_config, tmp_path, terminal):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=80, height=24, color_system=None)
    result = run(base_config(tmp_path / "run", max_steps=10), reporter=Several(run_reporter(console)))
    record = RunFolder(result.folder).record
    metrics, summary = record["metrics"], record["summary"]
    before, after = (f"{metrics[name]:.4g}" for name in ("before_eval_loss", "eval_loss"))
    for text in (screen.getvalue(), (result.folder / LOG).read_text()):
        end = (
            text[text.rindex("── ") :]
            if not terminal
            else text[[*re.finditer(r"·\s+done\s", text)][-1].start() :]
        )
        assert f"{before} → {after}" in " ".join(end.split()) and "held-out bits per byte" in end
        assert "⠒⠒ loss   x held-out loss" in end and "sample before" in end and "sample after" in end
        whole = "".join(end.split())  # a terminal breaks long names
        assert "10 updates · " in end and "predicted)" in end and f"llmlabrunsshow{result.folder}" in whole
    lines = RunFolder(result.folder).metrics()
    held_out = [[line["step"], line["eval_loss"]] for line in lines if "eval_loss" in line]
    assert summary["curves"]["eval_loss"] == held_out and held_out[0][0] == 0
    samples = RunFolder(result.folder).samples()
    assert summary["samples"] == {"before": samples[0], "after": samples[-1]} and samples[0]["step"] == 0
    assert summary["tokens"] == lines[-1]["num_input_tokens_seen"] and record["seconds"] > 0


@pytest.mark.slow
def test_time_and_memory_are_those_of_all_parts_of_a_run(base_config, tmp_path):
    first = run(base_config(tmp_path / "run", max_steps=4))
    once = RunFolder(first.folder).record
    run(base_config(tmp_path / "run", max_steps=6))
    again = RunFolder(first.folder).record
    assert again["step"] == 6 and again["seconds"] > once["seconds"]
    assert again["summary"]["memory"]["measured"] >= once["summary"]["memory"]["measured"]
    assert again["summary"]["curves"]["eval_loss"][: len(once["summary"]["curves"]["eval_loss"])]


def test_no_line_is_wider_than_a_terminal_and_hostile_text_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "checkpoints" / "a", sample=HOSTILE * 40)
    details = run_details(find_run("a"))
    lines = [str(line) for line in result_lines(details)]
    assert max(map(len, lines[:14])) <= WIDTH and "Ahab" not in lines
    shown = CliRunner().invoke(app, ["runs", "show", "a"])
    assert shown.exit_code == 0 and "\x1b" not in shown.output and "<script>" in shown.output
    for wanted in ("held-out loss", "policy_checkpoint", "lineage", "100 trained (10.00%)", "1m05s"):
        assert wanted in shown.output


def test_a_run_without_anything_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "run.json").write_text('{"summary": {"memory": [1]}, "config": {"kind": "new"}}')
    for command in (["show"], ["show", "--json"], ["report"]):
        shown = CliRunner().invoke(app, ["runs", *command[:1], "empty", *command[1:]])
        assert shown.exit_code == 0, shown.output
    data = json.loads(CliRunner().invoke(app, ["runs", "show", "empty", "--json"]).output)
    assert data["figures"] == {} and data["memory"] == {"measured": None, "predicted": None, "place": ""}


def test_json_is_what_was_logged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "checkpoints" / "a", loss=0.5, seed=7)
    data = json.loads(CliRunner().invoke(app, ["runs", "show", "a", "--json"]).output)
    assert data["figures"]["eval_loss"] == {"before": 2.0, "after": 0.5} and data["tokens"] == 640
    assert data["curves"]["loss"][0] == [1, 3.0] and len(data["curves"]["loss"]) <= POINTS
    assert {"policy_checkpoint", "seed", "max_steps"} <= {change["option"] for change in data["changes"]}
    assert [one["name"] for one in data["lineage"]] == ["checkpoints/base", "checkpoints/a"]
