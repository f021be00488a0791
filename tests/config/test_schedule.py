"""Epochs in place of steps, and warm-up as a share of them."""

import json

import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler

from llmlab.config import DPOConfig, DualHeadConfig, GRPOConfig, PPOConfig, PretrainConfig, SFTConfig
from llmlab.config.base import validate
from llmlab.config.loader import apply_changes, parse_config
from llmlab.errors import LabError
from llmlab.planning.plan import make_plan
from llmlab.screen import LabConsole
from llmlab.ui.plan import plan_table

ROWS = dict(datasets=["llmlab:moby-dick"])


@pytest.mark.parametrize("rows", [1, 5, 16, 17, 95, 340])
@pytest.mark.parametrize("batch, accumulation, processes", [(1, 1, 1), (3, 2, 1), (4, 4, 1), (2, 3, 3)])
def test_the_steps_of_epochs_are_those_of_transformers(rows, batch, accumulation, processes):
    """Every pass ends with an update on what is left, as the loader of each process gives it."""
    loader = BatchSamplerShard(BatchSampler(range(rows), batch, False), processes, 0)
    a_pass = -(-len(loader) // accumulation)
    config = SFTConfig(epochs=3, batch_size=batch, gradient_accumulation_steps=accumulation)
    assert config.at_length(rows, processes)["max_steps"] == 3 * a_pass
    # an update of another shape, of as many rows
    pairs = DPOConfig(epochs=3, batch_size=batch * accumulation, mini_batch_size=batch)
    assert pairs.at_length(rows, processes)["max_steps"] == 3 * a_pass


@pytest.mark.parametrize("rows, processes, grpo, ppo", [(8, 1, 6, 12), (9, 1, 9, 12), (17, 2, 9, 12)])
def test_prompts_are_counted_not_answers(rows, processes, grpo, ppo):
    sizes = dict(batch_size=16, mini_batch_size=4, epochs=1)
    config = GRPOConfig(**sizes, group_size=4, iterations=3)  # 4 prompts a process and batch
    assert config.at_length(rows, processes)["max_steps"] == grpo
    config = PPOConfig(**sizes, ppo_epochs=3)  # 16 prompts, in 4 mini-batches
    assert config.at_length(rows, processes)["max_steps"] == ppo


def test_what_is_set_bounds_what_follows():
    sizes = dict(batch_size=4, gradient_accumulation_steps=1)
    assert SFTConfig(epochs=0.5, **sizes).at_length(17, 1) == {"max_steps": 3, "warmup_steps": 0}
    assert SFTConfig(epochs=1.5, **sizes).at_length(17, 1) == {"max_steps": 8, "warmup_steps": 0}
    assert SFTConfig(epochs=9, max_steps=7, **sizes).at_length(400, 1)["max_steps"] == 7
    assert SFTConfig(epochs=30, **sizes).at_length(400, 1)["warmup_steps"] == 100  # its default
    assert "warmup_steps" not in SFTConfig(epochs=1, warmup_steps=5, **sizes).at_length(400, 1)
    assert SFTConfig(max_steps=7).at_length(400, 1) == {}
    assert DualHeadConfig().at_length(340, 1)["max_steps"] == 3 * 6  # its default counts in epochs


@pytest.mark.parametrize("steps, ratio, warmup", [(100, 0.07, 7), (30, 0.1, 3), (1172, 0.1, 118), (5, 0, 0)])
def test_a_ratio_of_the_steps(steps, ratio, warmup):
    config = SFTConfig(max_steps=steps, warmup_ratio=ratio)
    assert config.warmup_steps == warmup
    assert parse_config(config.to_json_dict()) == config
    in_epochs = apply_changes(SFTConfig(epochs=1, warmup_ratio=ratio), {"max_steps": steps})
    assert in_epochs.warmup_steps == warmup


@pytest.mark.parametrize(
    "cls, values, message",
    [
        (SFTConfig, dict(warmup_steps=100, warmup_ratio=0.1), "set the same thing"),
        (SFTConfig, dict(warmup_ratio=1.0), "less than 1"),
        (SFTConfig, dict(epochs=0), "greater than 0"),
        (SFTConfig, dict(epochs=1, datasets=[{"name": "a.jsonl", "streaming": True}]), "a.jsonl is streamed"),
        (PretrainConfig, dict(epochs=1), "set `max_steps`, or `streaming` to false"),
    ],
)
def test_what_does_not_go_together(cls, values, message):
    with pytest.raises(LabError, match=message):
        validate(cls, {"kind": cls.KIND, **values})


def test_a_longer_warmup_than_the_rows_give_steps_is_refused():
    config = SFTConfig(epochs=1, warmup_steps=50, batch_size=1, gradient_accumulation_steps=1)
    with pytest.raises(LabError, match="`warmup_steps` 50 is above `max_steps` 20"):
        apply_changes(config, config.at_length(20, 1))


def test_a_saved_config_keeps_what_was_asked():
    config = SFTConfig(epochs=2, warmup_ratio=0.1)
    data = json.loads(json.dumps(config.to_json_dict()))
    assert data["epochs"] == 2 and not {"max_steps", "warmup_steps"} & data.keys()
    assert parse_config(data).to_json_dict() == data
    capped = apply_changes(SFTConfig(epochs=2, max_steps=9), {"learning_rate": 1e-5})
    assert capped.max_steps == 9
    in_steps = apply_changes(config, {"epochs": None, "warmup_ratio": None})
    assert (in_steps.max_steps, in_steps.warmup_steps) == (5000, 100)


@pytest.mark.parametrize(
    "values, line",
    [
        (
            dict(epochs=1, warmup_ratio=0.1),
            "those of 1 epoch (known when the rows are counted), 10 %",
        ),
        (dict(epochs=2, max_steps=9), "those of 2 epochs, at most 9, at most a tenth of them warm-up"),
        (dict(max_steps=50, warmup_steps=4), "50, 4 of them warm-up"),
    ],
)
def test_a_plan_says_where_the_steps_come_from(values, line):
    console = LabConsole(width=200, record=True, quiet=False)
    with console.capture() as shown:
        console.print(plan_table(make_plan(SFTConfig(**values))))
    assert line in shown.get()
