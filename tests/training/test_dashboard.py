"""The panel of a run: what it shows, and how often it is built."""

import io
from pathlib import Path

from rich.console import Console
from transformers import TrainerState

from llmlab.runs.curves import thinned
from llmlab.training.callbacks.progress import ReportProgress
from llmlab.training.engine.reporter import Progress, TrainingStart
from llmlab.ui import dashboard
from llmlab.ui.curves import curve_drawing
from llmlab.ui.dashboard import Dashboard
from llmlab.ui.reporters import DashboardReporter, console_reporter


def at(step):
    return Progress(step, 1000, 10 * step)


def test_a_thousand_quick_steps_are_drawn_a_few_times(monkeypatch, tmp_path):
    clock = [0.0]
    monkeypatch.setattr(dashboard.time, "monotonic", lambda: clock[0])
    built = []
    monkeypatch.setattr(Dashboard, "panel", lambda self, at: built.append(at.step) or "")
    reporter = console_reporter(Console(file=io.StringIO(), force_terminal=True, width=80))
    assert isinstance(reporter, DashboardReporter) and reporter.is_live
    reporter.begin(TrainingStart("sft", tmp_path), at(0))
    for step in range(1, 1001):
        clock[0] += 0.001  # a second in all
        reporter.progress(at(step))
    reporter.status("saved")
    reporter.close()
    assert 4 <= len(built) <= 6 and built[-1] == 1000


def test_the_curve_is_as_long_as_the_screen_is_wide():
    points = [(step, float(step)) for step in range(20_000)]
    few = thinned(points, 160)
    assert len(few) == 160 and few[-1][0] == 19_999 and thinned(points[:160], 160) == points[:160]
    assert all(abs(value - step) <= 20_000 / 160 for step, value in few)
    assert (
        abs(sum(value for _, value in few) / 160 - 19_999 / 2) < 1e-6
    )  # equal parts: their mean is that of all
    assert len(curve_drawing(points, points[::100], 74, 10).splitlines()) == 10


def test_a_reward_is_shown_where_there_is_no_held_out_loss(told):
    state = TrainerState(global_step=10, max_steps=1000)
    callback = ReportProgress(told, TrainingStart("grpo", Path("run")))
    callback.on_log(None, state, None, {"eval_loss": 0.0, "eval_reward": 0.5})
    callback.on_log(None, state, None, {"eval_loss": 2.0})
    first, second = told.lines
    assert "held-out reward 0.5" in first and "held-out loss" not in first and "held-out loss 2" in second
