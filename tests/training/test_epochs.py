"""A run in epochs reads every row as often as it says, whatever the method."""

from collections import Counter

import pytest
from datasets import Dataset

from llmlab.config import DPOConfig, GRPOConfig, PPOConfig, SFTConfig, apply_changes
from llmlab.runs.folder import RunFolder
from llmlab.training.engine.run import run
from tests.conftest import write_rows

pytestmark = pytest.mark.slow  # trains

ROLLOUT = dict(reward_model="length", max_new_tokens=2, batch_size=4, mini_batch_size=2, eval_fraction=0.0)
KINDS = {
    "sft": (SFTConfig, dict(batch_size=2, gradient_accumulation_steps=2, packing=False), 3),
    "dpo": (DPOConfig, dict(batch_size=4, mini_batch_size=2, max_prompt_length=24), 3),
    # 2 prompts a batch of answers: 5 batches, each for 2 updates
    "grpo": (GRPOConfig, dict(**ROLLOUT, group_size=2, iterations=2, beta=0.0), 10),
    # 4 prompts a batch of answers: 3 batches, each for 2 x 2 updates
    "ppo": (PPOConfig, dict(**ROLLOUT, ppo_epochs=2, kl_coef=0.0), 12),
}


@pytest.fixture
def config(short_policy, tmp_path):
    def make(kind, **changes):
        cls, values, _ = KINDS[kind]
        row = {
            "sft": {"completion": "Ahab"},
            "dpo": {"chosen": "Ahab", "rejected": "Stubb"},
        }.get(kind, {"answer": "Ahab"})
        rows = [{"prompt": f"Who is {i}?", **row} for i in range(9)]
        data = write_rows(tmp_path / f"{kind}.jsonl", rows)
        shared = dict(datasets=[data], eval_fraction=0.0, report_to=[], output_dir=str(tmp_path / kind))
        cut = {} if kind in ("grpo", "ppo") else {"max_length": 48}
        own = {"cache_dir": str(tmp_path / "cache")} if kind == "dpo" else {}
        return cls(policy_checkpoint=short_policy, **{**shared, **cut, **own, **values, **changes})

    return make


@pytest.fixture
def rows_read(monkeypatch):
    """Counts how often the loader of a run takes each row."""
    seen, fetch = Counter(), Dataset.__getitems__

    def counted(self, indices):
        seen.update(indices)
        return fetch(self, indices)

    monkeypatch.setattr(Dataset, "__getitems__", counted)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_takes_every_row_once(config, rows_read, kind):
    result = run(config(kind, epochs=1, warmup_ratio=0.25))
    record = RunFolder(result.folder).record
    *_, steps = KINDS[kind]
    assert record["planned_steps"] == steps == RunFolder(result.folder).metrics()[-1]["step"]
    assert set(rows_read) == set(range(9)), "every row is read"
    if kind in ("sft", "dpo"):
        assert set(rows_read.values()) == {1}
    assert record["config"]["epochs"] == 1 and "max_steps" not in record["config"]


def test_a_finished_run_goes_on_with_more_epochs(config, rows_read):
    once = config("sft", epochs=1, scheduler="none", log_every=1, save_every=1)
    run(once)
    again = run(apply_changes(once, {"epochs": 2}))
    assert [line["step"] for line in RunFolder(again.folder).metrics() if "loss" in line] == [*range(1, 7)]
    assert set(rows_read.values()) == {2} and len(rows_read) == 9
