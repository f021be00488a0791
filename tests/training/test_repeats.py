"""The same seed gives the same run, to the bit, for every kind; what should not matter does not."""

import random

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from llmlab.config import PretrainConfig, SourceConfig
from llmlab.training.engine.run import run
from tests.training.stages import SHARED, STAGES, ending, stage_config, stop_after

pytestmark = pytest.mark.slow  # trains

KINDS = ["pretrain", "pretrain-stream", *STAGES]
SHORT = dict(max_steps=5, eval_every=3, log_every=2, save_every=4, warmup_steps=1)


def config(kind, short_policy, shape, folder, **changes):
    changes = {**SHORT, **changes}
    if kind.startswith("pretrain"):
        streamed = kind.endswith("stream")
        source = SourceConfig(
            name="llmlab:moby-dick", max_rows=8, **({"streaming": True} if streamed else {})
        )
        given = dict(
            model=shape,
            datasets=[source],
            batch_size=2,
            gradient_accumulation_steps=2,
            output_dir=str(folder),
        )
        return PretrainConfig(
            **{**SHARED, **given, **({"eval_fraction": 0.0} if streamed else {}), **changes}
        )
    made = stage_config(kind, short_policy, folder)
    return type(made).model_validate({**made.to_json_dict(), **changes})


def of_anything_else(seed):
    """Another state of all random generators, as another program before the run would have left it."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def held_out(lines):
    found = [
        {name: value for name, value in line.items() if name == "step" or name.startswith("eval_")}
        for line in lines
    ]
    return [line for line in found if len(line) > 1]


@pytest.fixture(autouse=True)
def updates():
    """Every weight that learns has a gradient in every update:
    processes need not look for weights that have none.
    """
    seen = []

    def look(optimizer, *_):
        parts = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        seen.append(sum(p.grad is None for p in parts))

    hook = register_optimizer_step_pre_hook(look)
    yield
    hook.remove()
    assert seen and not any(seen)


# loader processes, reports, how often is logged, saved and sampled; data and reference are there already the
# second time
VARIED = dict(dataloader_workers=2, report_to=["tensorboard"], log_every=1, save_every=2, sample_tokens=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_run_and_what_should_not_matter_does_not(
    kind, short_policy, shape, tmp_path
):
    streamed = kind.endswith("stream")  # whose order depends on the loader processes
    varied = {**VARIED, **({"dataloader_workers": 0} if streamed else {})}
    ends = []
    for number, changes in enumerate([{}, {}, varied]):
        of_anything_else(number)
        ends.append(ending(run(config(kind, short_policy, shape, tmp_path / str(number), **changes)).folder))
    (weights, lines, samples), (again, lines_again, samples_again), (other, other_lines, _) = ends
    assert len(lines) >= 2 and lines == lines_again and samples == samples_again
    assert held_out(lines) == held_out(other_lines) and bool(held_out(lines)) != streamed
    assert weights.keys() == again.keys() == other.keys()
    assert all(
        torch.equal(weights[name], again[name]) and torch.equal(weights[name], other[name])
        for name in weights
    )
    assert list((tmp_path / "2" / "tensorboard").rglob("*tfevents*")), "the report was written"


@pytest.mark.parametrize("kind", ["pretrain", "sft-lora", "grpo"])
def test_another_seed_gives_another_run(kind, short_policy, shape, tmp_path):
    weights, other = (
        ending(run(config(kind, short_policy, shape, tmp_path / str(seed), seed=seed)).folder)[0]
        for seed in (42, 43)
    )
    assert all(not torch.equal(weights[name], other[name]) for name in weights if "norm" not in name)


def test_a_stream_resumed_with_other_workers_says_what_that_means(
    short_policy, shape, tmp_path, monkeypatch, told
):
    first = config("pretrain-stream", short_policy, shape, tmp_path / "run")
    stop_after(monkeypatch, 8)
    assert run(first).stopped_by
    stop_after(monkeypatch, 1000)
    run(first.model_copy(update={"dataloader_workers": 2}), reporter=told)
    assert "`dataloader_workers` 0 -> 2: the stream continues in another order" in told.text
