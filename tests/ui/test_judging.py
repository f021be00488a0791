"""The menu's path: chat and judge, train on that, compare blind; it points at what comes next."""

import io
import json

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from llmlab.data.collection import Collection, Mark
from llmlab.ui import commands, evaluate, judging

ENTER, DOWN, UP, ESCAPE = "\r", "\x1b[B", "\x1b[A", "\x1b[Z"


@pytest.fixture
def press(tmp_path, monkeypatch):
    """Presses keys on the path; returns what was started and what was shown."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judging, "pick_model", lambda question, *_: "one" if "The one" in question else "m")
    started = []
    monkeypatch.setattr(commands, "llmlab", lambda *arguments: started.append(arguments))
    monkeypatch.setattr(
        "llmlab.ui.train.train", lambda kind, console, **offered: started.append((kind, offered))
    )

    def press(keys):
        started.clear()
        console = Console(record=True, width=120, file=io.StringIO())
        with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
            keyboard.send_text(keys)
            judging.chat_and_judge(console)
        return [*started], console.export_text()

    return press


def collect(count, **changes):
    prompt = [{"role": "user", "content": "Add 3 and 4."}]
    Collection().add(
        *(Mark("better", prompt, f"7{n}", "The answer.", "a", "b", **changes) for n in range(count))
    )


def test_it_points_at_what_comes_next(press, tmp_path):
    assert press(ENTER)[0] == [("chat", "m")]
    assert press(DOWN + ENTER)[0] == [("chat", "one", "--against", "m", "--blind")]
    collect(5, when="2026-01-01T12:00:00+00:00")
    assert press(ENTER)[0] == [("chat", "m")], "too few to train on"
    collect(15, when="2026-01-01T12:00:00+00:00")
    ((kind, offered),) = press(ENTER)[0]
    assert kind == "dpo" and offered["datasets"] == ["llmlab:preferences"] and offered["epochs"] == 10
    run = tmp_path / "checkpoints" / "new"
    (run / "final").mkdir(parents=True)
    config = {"kind": "dpo", "datasets": [{"name": "llmlab:preferences"}]}
    record = {"status": "done", "result": "final", "config": config, "parent": "old"}
    (run / "run.json").write_text(json.dumps({**record, "started": "2026-01-02T12:00:00+00:00"}))
    assert press(ENTER)[0] == [("chat", "checkpoints/new", "--against", "old", "--blind")]
    collect(1, when="2026-01-03T12:00:00+00:00")
    assert press(ENTER)[0][0][0] == "dpo", "there is more to learn from"


def test_marks_are_looked_at_changed_deleted_and_exported(press):
    collect(2)
    look = DOWN * 2 + ENTER
    _, shown = press(look + DOWN + ENTER + ENTER + ENTER + ESCAPE)  # the newest: the other one is better
    assert "2 marks" in shown and Collection().marks()[1].chosen == "The answer."
    press(look + DOWN + ENTER + DOWN + ENTER + ESCAPE)
    assert [mark.chosen for mark in Collection().marks()] == ["70"]
    started, _ = press(look + ENTER + ENTER + ENTER + ESCAPE)
    assert started == [("preferences", "export", "--as", "pairs", "-o", "preferences/pairs.jsonl")]


def test_answers_of_an_evaluation_are_judged_from_the_menu(press, tmp_path, monkeypatch):
    for name, models in (("one", 1), ("two", 2)):
        (tmp_path / "evaluations" / name).mkdir(parents=True)
        record = {"status": "done", "started": name, "models": [{"role": "model", "name": "m"}] * models}
        (tmp_path / "evaluations" / name / "evaluation.json").write_text(json.dumps(record))
    monkeypatch.setattr(judging, "chat_and_judge", evaluate.evaluate_models)
    judge = DOWN * 2 + ENTER
    assert press(judge + ENTER + DOWN + ENTER)[0] == [("assess", "two", "--pairs")]
    assert press(judge + DOWN + ENTER)[0] == [("assess", "one")]
