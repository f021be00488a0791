"""The menu's screens of many runs and configs, and the commands that manage runs, as a person gives them."""

import json

import pytest
from typer.testing import CliRunner

from llmlab.cli import app, command_line
from llmlab.config import SFTConfig, save_config
from llmlab.errors import LabError
from llmlab.ui import saved
from tests.runs.made import make_run
from tests.ui.test_menu import CTRL_C, DOWN, ENTER, ESCAPE, desk

assert desk  # a fixture

SPACE = " "


@pytest.fixture
def many(desk):
    folder, press, started = desk
    for number in range(12):
        make_run(folder / "checkpoints" / f"r{number:02d}", seed=number, loss=1 + number / 10)
    return folder, press, started


def test_of_many_the_newest_are_at_hand_and_others_by_name(many):
    folder, press, started = many
    for number in range(14):
        save_config(SFTConfig(seed=number), folder / "model_configs" / f"c{number}.json")
    _, shown = press(saved.saved, CTRL_C)
    assert "r11" in shown and "r02" in shown and "checkpoints/r01" not in shown
    assert "and 2 more: `llmlab runs list --all`" in shown and "and 2 older configs" in shown
    another = DOWN * (saved.MOST + saved.RECENT)
    press(saved.saved, another + DOWN + ENTER + "r00" + ENTER + DOWN + ENTER + ESCAPE)
    assert started == [("runs", "show", "checkpoints/r00")]


def test_runs_are_compared_from_the_menu(many):
    _, press, started = many
    keys = DOWN * (saved.RECENT + 1) + ENTER  # behind the runs and "another run"
    press(saved.saved, keys + SPACE + DOWN * 2 + SPACE + ENTER + "y" + ENTER)
    runs = ("checkpoints/r11", "checkpoints/r09")
    assert started == [("runs", "compare", *runs), ("runs", "compare", *runs, "--html", "comparison.html")]
    _, shown = press(saved.saved, keys + SPACE + ENTER)
    assert "a comparison needs two runs" in shown


def test_a_run_is_changed_from_the_menu(many):
    _, press, started = many
    # no model: verify, look, page, again, tag, rename, delete
    for place, typed in ((3, "seed=1; learning_rate=1e-4"), (4, "good -bad"), (5, "\x15new")):
        clear = "\x15" if place == 3 else ""
        press(saved.saved, ENTER + DOWN * place + ENTER + clear + typed + ENTER + ESCAPE)
    press(saved.saved, ENTER + DOWN * 6 + ENTER)
    name = "checkpoints/r11"
    assert started == [
        ("runs", "again", name, "--set", "seed=1", "--set", "learning_rate=1e-4"),
        ("runs", "tag", name, "good"),
        ("runs", "untag", name, "bad"),
        ("runs", "rename", name, "new"),
        ("runs", "delete", name),
    ]


def said(*arguments, stdin=""):
    result = CliRunner().invoke(app, ["runs", *arguments], input=stdin)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_the_list_is_that_of_a_tag_and_a_kind(many):
    assert said("tag", "r03", "good", "new") == "checkpoints/r03: good, new\n"
    assert said("untag", "r03", "new") == "checkpoints/r03: good\n"
    rows = json.loads(said("list", "--tag", "good", "--json"))
    assert [row["path"] for row in rows] == ["checkpoints/r03"] and rows[0]["figures"] == {"eval_loss": 1.3}
    assert "#good" in said("list", "--tag", "good") and "no such runs" in said("list", "--kind", "dpo")
    assert said() == said("list") and len(json.loads(said("list", "--json"))) == 12


def test_a_run_is_renamed_and_deleted_by_command(many):
    folder, *_ = many
    save_config(SFTConfig(policy_checkpoint="checkpoints/r00/best"), folder / "model_configs" / "c.json")
    make_run(folder / "checkpoints" / "child", parent="checkpoints/r00/best", seed=20)
    renamed = said("rename", "r00", "first")
    assert (
        "checkpoints/first" in renamed and "checkpoints/child: its record names checkpoints/first" in renamed
    )
    assert "warning: model_configs/c.json names checkpoints/r00" in renamed
    with pytest.raises(LabError, match="add --yes"):
        said("delete", "r01")
    assert "their lineage will end there: checkpoints/child" in said("delete", "first", "--yes")
    assert not (folder / "checkpoints" / "first").exists() and (folder / "checkpoints" / "r01").exists()


def test_a_run_is_repeated_by_the_command_that_is_printed(many, monkeypatch):
    assert said("again", "r00", "--set", "seed=7", "--print") == (
        "llmlab run checkpoints/r00 --set seed=7 --set output_dir=checkpoints/r00-2\n"
    )
    with pytest.raises(LabError, match="there is no such run"):
        command_line(["runs", "again", "r99"])
    with pytest.raises(LabError, match="No such command"):
        command_line(["runs", "frobnicate"])


def test_a_comparison_is_shown_and_written(many):
    folder, *_ = many
    make_run(folder / "checkpoints" / "other", seed=30, learning_rate=0.5)
    shown = said("compare", "r00", "r01", "other")
    assert "learning_rate" in shown and "± " in shown and "Student" in shown and "0, 1" in shown
    data = json.loads(said("compare", "r00", "r01", "other", "--json"))
    assert [len(group["runs"]) for group in data["groups"]] == [2, 1] and list(data["options"]) == [
        "learning_rate"
    ]
    assert said("compare", "r00", "other", "--html", "page.html") == "page.html\n"
    assert (folder / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert said("report", "r00") == "checkpoints/r00/report.html\n"
