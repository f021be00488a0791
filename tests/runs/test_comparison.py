"""Runs beside each other: groups, what differs, intervals against closed forms."""

import json
import math

import pytest

from llmlab.config import SFTConfig
from llmlab.errors import LabError
from llmlab.runs.comparison import compare
from llmlab.runs.curves import curves, mean_curve, thinned
from llmlab.runs.details import find_run, run_details
from tests.runs.made import make_run

T_2 = 4.302652729749464  # Student's t, 2 degrees of freedom, 97.5 %


@pytest.fixture
def compared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def make(*runs):
        folders = [make_run(tmp_path / f"r{number}", **run) for number, run in enumerate(runs)]
        return compare([run_details(find_run(str(folder))) for folder in folders])

    return make


def seeds(losses, first=1, **options):
    return [dict(seed=first + number, loss=loss, **options) for number, loss in enumerate(losses)]


def test_runs_that_differ_in_the_seed_are_one_group(compared):
    comparison = compared(*seeds([1.0, 2.0, 3.0]), *seeds([1.5, 1.5, 1.6], learning_rate=0.5))
    one, other = comparison.groups
    assert one.seeds == other.seeds == (1, 2, 3) and comparison.options == {
        "learning_rate": (SFTConfig().learning_rate, 0.5)
    }
    figure = one.figures["eval_loss"]
    half = T_2 * 1.0 / math.sqrt(3)
    assert (figure.mean, figure.how, figure.count, figure.before) == (2.0, "seeds", 3, 2.0)
    assert figure.low == pytest.approx(2 - half) and figure.high == pytest.approx(2 + half)
    assert one.name == "r0 (3 seeds)" and not comparison.other_rows and not comparison.unfinished


def test_a_difference_is_welchs(compared):
    """Against the formula of Welch 1947."""
    a, b = [1.0, 2.0, 3.0], [5.0, 5.5, 5.2, 5.1]
    comparison = compared(*seeds(a), *seeds(b, learning_rate=0.5))
    difference = comparison.groups[1].differences["eval_loss"]
    var = [sum((x - sum(v) / len(v)) ** 2 for x in v) / (len(v) - 1) / len(v) for v in (a, b)]
    freedom = sum(var) ** 2 / (var[0] ** 2 / 2 + var[1] ** 2 / 3)
    assert difference.mean == pytest.approx(3.2) and 2 < freedom < 2.2
    half = (difference.high - difference.low) / 2
    assert 4.0 < half / math.sqrt(sum(var)) < T_2 and difference.low == pytest.approx(3.2 - half)
    assert comparison.groups[0].differences == {}


def test_one_run_has_the_interval_of_its_rows_where_they_are_counted(compared):
    """Wilson 1927, by its formula: 160 of 200 pairs right."""
    figures = {"eval_rewards/accuracies": 0.8}
    comparison = compared(dict(seed=1, figures=figures), dict(seed=1, learning_rate=0.5))
    figure, z, n = comparison.groups[0].figures["eval_rewards/accuracies"], 1.959963984540054, 200
    middle = (0.8 + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(0.8 * 0.2 / n + z * z / (4 * n * n))
    assert figure.how == "share of rows" and figure.count == 200
    assert (figure.low, figure.high) == pytest.approx((middle - half, middle + half))
    loss = comparison.groups[0].figures["eval_loss"]
    assert loss.how == "none" and loss.low is None  # nothing but a mean was kept
    assert comparison.groups[1].differences["eval_loss"].low is None


def test_a_reward_of_0_or_1_is_a_share_and_another_one_a_mean(compared):
    worth = {"eval_reward": 0.25, "eval_reward_std": math.sqrt(0.25 * 0.75)}
    wide = {"eval_reward": 0.25, "eval_reward_std": 2.0}
    comparison = compared(dict(figures=worth), dict(figures=wide, learning_rate=0.5))
    share, mean = (group.figures["eval_reward"] for group in comparison.groups)
    assert share.how == "share of rows" and 0.19 < share.low < 0.25 < share.high < 0.32
    assert mean.how == "rows" and mean.high == pytest.approx(0.25 + 1.9719565 * 2 / math.sqrt(200))


def test_a_seed_counts_once(compared):
    figure = compared(*seeds([1.0, 2.0]), dict(seed=1, loss=1.0)).groups[0].figures["eval_loss"]
    assert figure.values == (1.0, 2.0) and figure.count == 2


def test_other_held_out_rows_are_said(compared):
    comparison = compared(dict(), dict(eval_rows=50), dict(weight_decay=0.5))
    assert comparison.other_rows
    plain, _, decayed = (group.runs[0] for group in comparison.groups)
    assert not compare([plain, decayed]).other_rows


def test_losses_of_two_methods_have_no_difference(compared, tmp_path):
    compared(dict(), dict(seed=2, figures={"eval_entropy": 1.0}))
    record = json.loads((tmp_path / "r1" / "run.json").read_text())
    record["config"] = {"kind": "dpo", "policy_checkpoint": "x"}
    (tmp_path / "r1" / "run.json").write_text(json.dumps(record))
    comparison = compare([run_details(find_run(str(tmp_path / name))) for name in ("r0", "r1")])
    assert comparison.other_methods and comparison.groups[1].differences == {}
    assert comparison.options["kind"] == ("sft", "dpo")


def test_what_cannot_be_compared_is_refused(compared, tmp_path):
    with pytest.raises(LabError, match="needs two runs"):
        compared(dict())
    run = run_details(find_run(str(tmp_path / "r0")))
    with pytest.raises(LabError, match="named twice"):
        compare([run, run])


def test_a_run_that_is_not_finished_is_named(compared, tmp_path):
    assert compared(dict(), dict(status="stopped", seed=2)).unfinished == (str(tmp_path / "r1"),)


def test_curves_are_what_was_logged():
    lines = [
        {"step": 0, "eval_loss": 3.0, "eval_runtime": 1.0, "epoch": 0},
        {"step": 1, "loss": 2.0, "odd": "text", "flag": True, "bad": float("nan")},
        {"step": 1, "loss": 2.5},  # logged again, after a resume
        {"step": 2, "loss": 1.0, "train_runtime": 5.0},
    ]
    assert curves(lines) == {"eval_loss": [(0, 3.0)], "loss": [(1, 2.5), (2, 1.0)]}
    assert mean_curve([[(1, 1.0), (2, 3.0)], [(1, 2.0), (3, 9.0)]]) == [(1, 1.5, 1.0, 2.0)]
    assert thinned([(n, float(n)) for n in range(10)], 5)[0] == (1, 0.5)
