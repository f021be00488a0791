"""Held-out figures depend neither on the micro-batch nor on the number of processes,
and are what they are called.
"""

import json
import math
import os
import random
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from llmlab.config import (
    DPOConfig,
    DualHeadConfig,
    GRPOConfig,
    RewardConfig,
    SFTConfig,
    apply_changes,
    load_config,
    save_config,
)
from llmlab.data.packed_text import pretrain_data
from llmlab.data.tokenizer import load_tokenizer
from llmlab.errors import LabError
from llmlab.models.load import load_model
from llmlab.runs.folder import RunFolder
from llmlab.training.engine.run import run
from llmlab.training.held_out import HeldOutBatches, HeldOutFigures, deviations, squares
from tests.conftest import write_rows
from tests.waiting import PATIENCE

HELD_OUT = 11  # no multiple of any batch size, nor of the number of processes


def answer(rng):
    """Answers of 1 to 20 words: what is averaged over tokens differs much from what is averaged over rows."""
    return " ".join(
        rng.choice(["whale", "sea", "ship", "the", "white"]) for _ in range(rng.choice([1, 2, 20]))
    )


@pytest.fixture
def configs(base_run, base_config, tmp_path):
    """Every kind of run on a few uneven rows, its update of 8 rows cut into micro-batches of `size`."""
    rng = random.Random(3)
    prompts = [f"{number}: what is there?" for number in range(40)]
    texts = [{"text": f"{answer(rng)} {answer(rng)}"} for _ in range(300)]
    talks = [{"prompt": prompt, "completion": answer(rng)} for prompt in prompts]
    pairs = [{"prompt": prompt, "chosen": answer(rng), "rejected": answer(rng)} for prompt in prompts]
    texts, talks, pairs = (
        write_rows(tmp_path / f"{n}.jsonl", r)
        for n, r in (("texts", texts), ("talks", talks), ("pairs", pairs))
    )
    asked = write_rows(tmp_path / "asked.jsonl", [{"prompt": prompt} for prompt in prompts])
    shared = dict(
        max_steps=2,
        learning_rate=1e-3,
        warmup_steps=0,
        eval_fraction=0.3,
        eval_rows=HELD_OUT,
        eval_every=2,
        report_to=[],
        log_every=1,
        sample_tokens=0,
        save_best_only=False,
    )

    def make(kind, size, folder):
        cut = dict(batch_size=size, gradient_accumulation_steps=8 // size, output_dir=str(folder), **shared)
        answers = dict(policy_checkpoint=str(base_run.folder), max_length=64)
        mini = {**cut, "batch_size": 8, "mini_batch_size": size}
        mini.pop("gradient_accumulation_steps")
        if kind == "pretrain":
            return base_config(
                folder,
                **cut,
                datasets=[texts],
                packing="best_fit",
                init_from=str(base_run.model),
                save_every=2,
            )
        if kind == "sft":
            return SFTConfig(**cut, **answers, datasets=[talks], packing=False)
        if kind == "dpo":
            return DPOConfig(**mini, **answers, datasets=[pairs], max_prompt_length=40, reference="live")
        if kind == "reward":
            return RewardConfig(**cut, **answers, datasets=[pairs], max_prompt_length=40, center_rewards=0.1)
        if kind == "dual_head":
            return DualHeadConfig(
                **cut,
                backbone=str(base_run.folder),
                max_length=64,
                datasets=[pairs],
                epochs=10,
                gating_dropout=0.0,
                rm_dropout=0.0,
            )
        return GRPOConfig(
            **mini,
            policy_checkpoint=str(base_run.folder),
            datasets=[asked],
            max_prompt_length=40,
            reward_model="length | 1 | 6",
            max_new_tokens=8,
            group_size=4,
            top_k=50,
        )

    return make


KINDS = ["pretrain", "sft", "dpo", "reward", "dual_head", "grpo"]


def figures(folder):
    """Returns the held-out figures before training and after it."""
    lines = [line for line in RunFolder(folder).metrics() if any(name.startswith("eval_") for name in line)]
    assert [line["step"] for line in lines] == [0, 2]
    left_out = ("runtime", "per_second", "num_tokens")
    return [
        {
            name: value
            for name, value in line.items()
            if name.startswith("eval_") and not name.endswith(left_out)
        }
        for line in lines
    ]


@pytest.mark.slow
def test_they_depend_on_neither_micro_batch_nor_processes(configs, tmp_path):
    """One process with micro-batches of one row, and two processes with micro-batches of four:
    the same updates.
    """
    found = {kind: figures(run(configs(kind, 1, tmp_path / f"{kind}-one")).folder) for kind in KINDS}
    paths = []
    for kind in KINDS:
        config = configs(kind, 4, tmp_path / f"{kind}-two")
        halved = (
            "batch_size" if "mini_batch_size" in type(config).model_fields else "gradient_accumulation_steps"
        )
        config = apply_changes(config, {halved: getattr(config, halved) // 2})
        paths.append(str(save_config(config, tmp_path / f"{kind}.json")))
    script = """
import sys
from llmlab.config import load_config
from llmlab.training.engine.run import run
from llmlab.training.engine.distributed import destroy_process_group
for path in sys.argv[1:]:
    run(load_config(path))
destroy_process_group()
"""
    (tmp_path / "all.py").write_text(script)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            str(tmp_path / "all.py"),
            *paths,
        ],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in KINDS:
        for wanted, values in zip(found[kind], figures(tmp_path / f"{kind}-two"), strict=True):
            assert wanted.keys() == values.keys(), kind
            for name, value in wanted.items():
                assert values[name] == pytest.approx(value, rel=2e-4, abs=2e-5), (kind, name)
        assert list(RunFolder(tmp_path / f"{kind}-two").record["validation_rows"].values()) == [HELD_OUT]


@pytest.mark.slow
def test_the_loss_is_the_mean_over_all_tokens_of_the_rows(configs, base_run, tmp_path):
    """Summed up token by token, one row at a time, outside of the trainer."""
    config = configs("pretrain", 8, tmp_path / "run")
    loss = figures(run(config).folder)[0]["eval_loss"]
    model, _ = load_model(str(base_run.folder))
    rows = next(
        iter(pretrain_data(config, load_tokenizer(config.model.tokenizer_name), 64).eval.values())
    ).select(range(HELD_OUT))
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            for ids in (
                torch.tensor(row["input_ids"]).long().split([int(size) for size in row["seq_lengths"]])
            ):  # documents
                logits = model.eval()(input_ids=ids[None]).logits[0, :-1]
                total += F.cross_entropy(logits, ids[1:], reduction="sum").item()
                count += len(ids) - 1
    assert loss == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize(
    "rows, size, processes", [(11, 4, 1), (11, 4, 2), (11, 3, 4), (1, 8, 3), (8, 2, 2), (5, 1, 8)]
)
def test_every_row_counts_once_and_all_processes_do_as_many_passes(rows, size, processes):
    parts = [HeldOutBatches(rows, size, process, processes) for process in range(processes)]
    counted = [0.0] * rows
    for part in parts:
        for batch, share in zip(part, part.shares, strict=True):
            assert 0 < len(batch) <= size
            for row in batch:
                counted[row] += share
    assert counted == pytest.approx([1.0] * rows)
    assert len({tuple(map(len, part)) for part in parts}) == 1


def test_deviations_are_those_of_all_rows():
    values = torch.tensor([1.0, 5.0, 2.0, 2.0, 9.0, 4.0, 4.0])
    found = HeldOutFigures([1.0] * 3)
    for part in values.split([3, 3, 1]):
        batch = {
            "rewards/length/mean": part.mean().item(),
            "rewards/length/std": part.std().item(),
            "reward_std": 0.0,
            "reward": 2.0,
            "completions/min_length": part.min().item(),
            "completions/max_length": part.max().item(),
        }
        found.add(squares(batch, len(part)), {"": len(part)})
    figures = deviations(found.totals(lambda sums: sums))
    assert (
        figures["rewards/length/std"] == pytest.approx(values.std(correction=0).item())
        and figures["reward_std"] == 0
    )
    assert (figures["completions/min_length"], figures["completions/max_length"]) == (1.0, 9.0)
    assert not math.isnan(figures["rewards/length/mean"]) and figures["rewards/length/mean"] == pytest.approx(
        values.mean().item()
    )


def test_batches_of_older_configs_are_counted_in_rows(configs, tmp_path):
    config = configs("dpo", 4, tmp_path / "run")
    data = config.to_json_dict()
    del data["eval_rows"]
    (tmp_path / "old.json").write_text(json.dumps({**data, "eval_steps": 5}))
    assert load_config(tmp_path / "old.json").eval_rows == 20
    (tmp_path / "both.json").write_text(json.dumps({**data, "eval_steps": 5, "eval_rows": 7}))
    with pytest.raises(LabError, match=r"`eval_steps` .in batches. and `eval_rows` set the same thing"):
        load_config(tmp_path / "both.json")
    assert apply_changes(config, {"eval_steps": "3"}).eval_rows == 12
    (tmp_path / "bad.json").write_text(json.dumps({**data, "eval_steps": "many"}))
    with pytest.raises(LabError, match="`eval_rows` 'many'"):
        load_config(tmp_path / "bad.json")
