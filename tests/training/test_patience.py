"""A run whose held-out figure gets no better ends early, says why, and does so wherever it is stopped."""

import pytest
import torch

from llmlab.planning.speed import pace_of
from llmlab.runs.folder import RunFolder
from llmlab.training.callbacks.patience import Patience
from llmlab.training.engine.run import run
from tests.conftest import write_rows
from tests.training.stages import ending, stop_after

pytestmark = pytest.mark.slow  # trains


@pytest.fixture
def config(base_config, tmp_path):
    """Rows that say one thing are trained on, and ones that say another held out: the loss soon rises."""
    trained = write_rows(tmp_path / "trained.jsonl", [{"text": "the whale is white " * 8}] * 60)
    held_out = write_rows(tmp_path / "held.jsonl", [{"text": "a ship sails in the morning, " * 5}] * 8)

    def make(folder, **changes):
        values = dict(
            datasets=[trained],
            eval_datasets=[held_out],
            eval_fraction=0.0,
            max_steps=60,
            eval_every=4,
            save_every=8,
            log_every=4,
            patience=3,
            save_best_only=False,
            learning_rate=3e-3,
            warmup_steps=0,
            scheduler="none",
        )
        return base_config(folder, **{**values, **changes})

    return make


def test_it_ends_early_and_says_why(config, tmp_path):
    said = []
    result = run(config(tmp_path / "run"), reporter=told_to(said))
    folder = RunFolder(result.folder)
    record, losses = folder.record, [line["eval_loss"] for line in folder.metrics() if "eval_loss" in line]
    early = record["ended_early"]
    assert record["status"] == "done" and early["step"] == record["step"] < 60 and result.stopped_by == 0
    assert early["patience"] == 3 and early["best"] == min(losses[1:])
    assert all(loss >= early["best"] for loss in losses[-3:])
    assert any("ended early at step" in line for line in said) and (result.folder / "best").is_dir()
    assert folder.checkpoints()[0].step == early["step"], "a checkpoint of the last step"
    never = run(config(tmp_path / "never", patience=1000, max_steps=8))
    assert "ended_early" not in RunFolder(never.folder).record


def told_to(lines):
    from llmlab.training.engine.reporter import Silent

    class Listening(Silent):
        def note(self, text):
            lines.append(text)

    return Listening()


def test_stopped_again_and_again_it_ends_alike(config, tmp_path, monkeypatch):
    whole = run(config(tmp_path / "whole"))
    stops = 0
    for forwards in (11, 9, 7, 13, 5, 8, 12, 10, 6, 1000):
        stop_after(monkeypatch, forwards)
        result = run(config(tmp_path / "stopped"))
        if not result.stopped_by:
            break
        stops += 1
    (weights, lines, _), (wanted, wanted_lines, _) = ending(result.folder), ending(whole.folder)
    assert stops >= 2 and lines == wanted_lines
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    records = [RunFolder(one.folder).record["ended_early"] for one in (result, whole)]
    assert records[0] == records[1]


def test_killed_behind_its_last_validation_it_does_no_further_update(config, tmp_path):
    first = run(config(tmp_path / "run"))
    folder = RunFolder(first.folder)
    early = folder.record["ended_early"]
    folder.update(status="running", result=None, ended_early=None)
    again = run(config(tmp_path / "run"))
    assert again.folder == first.folder and folder.record["ended_early"] == early
    assert folder.metrics()[-1]["step"] == early["step"]


def test_patience_can_be_asked_for_in_the_middle_of_a_run(config, tmp_path):
    run(config(tmp_path / "run", patience=None, max_steps=8))
    result = run(config(tmp_path / "run", patience=2, max_steps=60))
    assert RunFolder(result.folder).record["ended_early"]["patience"] == 2


def test_a_reward_is_better_when_it_is_higher():
    watched = Patience("eval_reward", 2)
    control = type("Control", (), {"should_save": False, "should_training_stop": False})()
    state = type("State", (), {"global_step": 5})()
    for value in (1.0, 0.5, 2.0, 1.5):
        watched.on_evaluate(None, state, control, {"eval_reward": value})
        watched.on_evaluate(None, state, control, {"eval_other_loss": 0.0})
    assert watched.best == 2.0 and watched.waited == 1 and not control.should_training_stop
    watched.on_evaluate(None, state, control, {"eval_reward": 2.0})
    assert watched.ended.best == 2.0 and control.should_training_stop and control.should_save


def test_a_run_leaves_its_speed_for_later_plans(base_config, tmp_path, monkeypatch):
    monkeypatch.setenv("LLMLAB_CACHE", str(tmp_path / "cache"))
    config = base_config(tmp_path / "run", max_steps=6)
    assert pace_of(config).basis == "flops"
    run(config)
    pace = pace_of(config)
    assert pace.basis == "measured" and pace.update > 0 and pace.start > 0
    assert pace.validation is None or pace.validation > 0
    rows = config.batch_size * config.gradient_accumulation_steps
    assert pace.tokens == rows * config.model.max_seq_len
