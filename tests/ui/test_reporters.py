"""What a run says reaches whoever is to hear it: lines, `run.log`, several at once."""

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

from llmlab.config import KINDS
from llmlab.runs.folder import LOG
from llmlab.training.engine.job import Prepare, RunResult
from llmlab.training.engine.reporter import Progress, Reporter, TrainingStart
from llmlab.training.engine.run import run
from llmlab.training.registry import STAGES
from llmlab.ui.reporters import RunLog, Several
from tests.conftest import Told


def without_clock(lines):
    """Speed and time left are each reporter's own reading of the clock."""
    return [re.sub(r"(  [\d,]+ tokens/s)?  left \S+$", "", line) for line in lines]


@pytest.mark.slow
def test_the_log_of_a_run_is_what_was_said_across_a_stop_and_a_resume(base_config, tmp_path, told):
    """Also what came before its folder was known: that the first one belongs to another run."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    config = base_config(tmp_path / "run", max_steps=10)
    first = run(config, reporter=Several(told, RunLog()))
    log = first.folder / LOG
    *lines, end = log.read_text().splitlines()
    assert first.folder.name == "run-2" and "this one goes to" in lines[0]
    assert without_clock(lines) == without_clock(told.text.splitlines())
    assert end.startswith(f"{first.model}  loss ")
    assert [line.split()[1] for line in lines if line.startswith("step ")] == ["0/10", "1/10", "5/10"] + [
        "10/10"
    ] * 2
    again = Told()
    run(base_config(first.folder, max_steps=12), reporter=Several(again, RunLog()))
    later = log.read_text().splitlines()[len(lines) + 1 : -1]
    assert without_clock(later) == without_clock(again.text.splitlines())
    assert f"resuming from {first.folder / 'checkpoint-10'}" in again.text


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path):
    log = RunLog()
    log.opened(tmp_path / "gone")
    log.warning("a full disk")
    (tmp_path / "gone").mkdir()
    log.note("\x1b[2Jroom again")
    assert (tmp_path / "gone" / LOG).read_text() == "\u241b[2Jroom again\n"


def test_what_comes_after_a_result_is_of_another_run(tmp_path):
    log = RunLog()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        log.note(f"first {name}")
        log.opened(tmp_path / name)
        log.result(RunResult(tmp_path / name, None, {}, 2, 1.0))
        text = (tmp_path / name / LOG).read_text()
        assert text.startswith(f"first {name}\n") and f"to resume: `llmlab run {tmp_path / name}`" in text


def test_several_hear_the_same(tmp_path):
    one, other = Told(), Told()
    both: Reporter = Several(one, other)
    both.begin(TrainingStart("sft", tmp_path), Progress(0, 4))
    both.figures(Progress(2, 4), {"loss": 1.5, "learning_rate": 1e-3})
    both.sample(2, "Who?", "Ahab")
    with both.counting("reference", "pairs", 3) as count:
        count(3)
    assert one.lines[0].startswith("step 2/4  loss 1.5  learning rate 0.001  left ")
    assert (
        without_clock(one.lines) == without_clock(other.lines)
        and one.lines[1] == "sample  Who? → Ahab"
        and not both.is_live
    )


@pytest.mark.parametrize("kind", STAGES)
def test_every_method_prepares_what_the_engine_asks_for(kind):
    """The engine calls them by one protocol; each takes the config of its own kind."""
    wanted = list(inspect.signature(Prepare.__call__).parameters.values())[1:]
    method = import_module(STAGES[kind].module)
    found = inspect.signature(method.prepare)
    assert list(found.parameters) == [parameter.name for parameter in wanted]
    assert [one.annotation for one in found.parameters.values()][1:] == [one.annotation for one in wanted][1:]
    config, *_ = (one.annotation for one in found.parameters.values())
    assert getattr(method, config) is KINDS[kind] and found.return_annotation == "Job"
    assert Path(method.__file__).stem == kind
