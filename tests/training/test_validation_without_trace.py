"""What is measured before training and while it goes on, and the samples, change nothing of it."""

import pytest

from llmlab.config import apply_changes
from llmlab.runs.details import find_run, run_details
from llmlab.training.engine.run import run
from tests.conftest import write_rows
from tests.training.stages import ending, stage_config

# with dropout, with answers that are drawn, with a model of two heads
STAGES = ("sft-lora", "grpo", "dual-head")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_ends_in_the_same_weights_with_held_out_rows_and_without(stage, base_run, tmp_path):
    rows = [
        {
            "prompt": f"Where is {n}?",
            "completion": "at sea",
            "chosen": "at sea",
            "rejected": "x",
            "answer": "9",
        }
        for n in range(9)
    ]
    kept = {"sft-lora": ("completion",), "grpo": ("answer",), "ppo": ("answer",)}.get(
        stage, ("chosen", "rejected")
    )
    held_out = write_rows(
        tmp_path / "held_out.jsonl", [{name: row[name] for name in ("prompt", *kept)} for row in rows]
    )
    weights = []
    for name, changes in (("with", {"eval_datasets": [held_out]}), ("without", {"sample_tokens": 0})):
        config = stage_config(stage, str(base_run.model), tmp_path / name)
        weights.append(ending(run(apply_changes(config, {"eval_fraction": 0.0, **changes})).folder)[0])
    details = run_details(find_run(str(tmp_path / "with")))
    before, after = next(iter(details.figures.values()))
    assert before is not None and len(details.curves[next(iter(details.figures))]) > 2
    assert set(details.samples) == {"before", "after"} and after == after
    assert not run_details(find_run(str(tmp_path / "without"))).figures
    assert weights[0].keys() == weights[1].keys()
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
