"""The panel of a run: what it shows, and how often it is built."""

import io
from types import SimpleNamespace

from rich.console import Console

from llmlab.training import dashboard
from llmlab.training.dashboard import Dashboard, loss_curve, thinned


def state(step):
    return SimpleNamespace(global_step=step, max_steps=1000, num_input_tokens_seen=10 * step)


def test_a_thousand_quick_steps_are_drawn_a_few_times(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(dashboard.time, "monotonic", lambda: clock[0])
    panel = Dashboard("run", Console(file=io.StringIO(), force_terminal=True, width=80))
    built = []
    monkeypatch.setattr(panel, "_panel", lambda state: built.append(state.global_step) or "")
    panel.on_train_begin(None, state(0), None)
    for step in range(1, 1001):
        clock[0] += 0.001  # a second in all
        panel.on_step_end(None, state(step), None)
    panel.say("saved")
    panel.close()
    assert 4 <= len(built) <= 6 and built[-1] == 1000


def test_the_curve_is_as_long_as_the_screen_is_wide():
    points = [(step, float(step)) for step in range(20_000)]
    few = thinned(points, 160)
    assert len(few) == 160 and few[-1][0] == 19_999 and thinned(points[:160], 160) == points[:160]
    assert all(abs(value - step) <= 20_000 / 160 for step, value in few)
    assert (
        abs(sum(value for _, value in few) / 160 - 19_999 / 2) < 1e-6
    )  # equal parts: their mean is that of all
    assert len(loss_curve(points, points[::100], 74, 10).splitlines()) == 10


def test_a_reward_is_shown_where_there_is_no_held_out_loss():
    console = Console(file=io.StringIO(), width=120)
    panel = Dashboard("run", console)
    panel.on_log(None, state(10), None, {"eval_loss": 0.0, "eval_reward": 0.5})
    panel.on_log(None, state(20), None, {"eval_loss": 2.0})
    first, second = console.file.getvalue().splitlines()
    assert "held-out reward 0.5" in first and "held-out loss" not in first and "held-out loss 2" in second
