"""Every stage, stopped in the middle of whatever it does, again and again:
it ends as the run that was never stopped.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from llmlab.config import DPOConfig, DualHeadConfig, GRPOConfig, PPOConfig, RewardConfig, SFTConfig
from llmlab.runs.folder import RunFolder
from llmlab.runs.manifest import verify
from llmlab.training.callbacks import core as callbacks
from llmlab.training.engine.run import run

TIMES = ("runtime", "per_second", "step_time", "preparation_time")  # of the clock


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def policy(base_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    rows = [{"prompt": f"Who is {i}?", "completion": "Ahab" if i % 2 else "Stubb"} for i in range(200)]
    return str(
        run(
            SFTConfig(
                policy_checkpoint=str(base_run.folder),
                datasets=[write(folder / "rows.jsonl", rows)],
                max_steps=60,
                learning_rate=5e-3,
                batch_size=8,
                gradient_accumulation_steps=1,
                max_length=64,
                eval_every=60,
                output_dir=str(folder / "run"),
                report_to=[],
            )
        ).model
    )


# steps that are no multiples of one another: logs, validations, checkpoints and rollouts fall apart
SHARED = dict(
    max_steps=11,
    learning_rate=1e-3,
    warmup_steps=2,
    log_every=3,
    eval_every=4,
    save_every=5,
    eval_fraction=0.15,
    report_to=[],
    save_best_only=False,
    eval_rows=8,
    sample_tokens=2,
)
ROLLOUT = dict(
    reward_model="exact_match", batch_size=8, mini_batch_size=4, max_new_tokens=6, max_prompt_length=48
)
PAIR = dict(max_length=64, max_prompt_length=48)
STAGES = {
    "sft": (SFTConfig, dict(batch_size=4, gradient_accumulation_steps=2, max_length=64)),
    "sft-lora": (
        SFTConfig,
        dict(batch_size=4, gradient_accumulation_steps=2, max_length=64, adapter="lora", lora_dropout=0.1),
    ),
    "reward": (RewardConfig, dict(batch_size=4, gradient_accumulation_steps=2, **PAIR)),
    "dpo": (DPOConfig, dict(batch_size=8, mini_batch_size=4, **PAIR)),
    "dpo-live": (DPOConfig, dict(batch_size=8, mini_batch_size=4, reference="live", **PAIR)),
    "grpo": (GRPOConfig, dict(**ROLLOUT, group_size=4, beta=0.05, iterations=3)),
    "ppo": (PPOConfig, dict(**ROLLOUT, ppo_epochs=3, kl_coef=0.05)),
    "dual-head": (DualHeadConfig, dict(batch_size=4, gradient_accumulation_steps=2, epochs=9, **PAIR)),
    "ppo-lora": (PPOConfig, dict(**ROLLOUT, ppo_epochs=2, kl_coef=0.05, adapter="lora")),
}


def config(stage, policy, folder):
    cls, values = STAGES[stage]
    rows = {
        SFTConfig: [{"prompt": f"Who is {i}?", "completion": "Ahab"} for i in range(90)],
        RewardConfig: [{"prompt": f"Who is {i}?", "chosen": "Ahab", "rejected": "Stubb"} for i in range(90)],
    }
    rows[DPOConfig] = rows[DualHeadConfig] = rows[RewardConfig]
    rows = rows.get(cls, [{"prompt": f"Who is {i}?", "answer": "Ahab"} for i in range(90)])
    data = folder.parent / f"{cls.KIND}.jsonl"
    if not data.exists():
        write(data, rows)
    cache = {"cache_dir": str(folder.parent / "cache")} if stage == "dpo" else {}
    return cls(
        **{
            **SHARED,
            cls.STARTS_FROM: policy,
            "datasets": [str(data)],
            "output_dir": str(folder),
            **values,
            **cache,
        }
    )


def ending(folder):
    weights = next(
        (folder / "final" / name)
        for name in ("adapter_model.safetensors", "model.safetensors")
        if (folder / "final" / name).exists()
    )
    lines = [
        {k: v for k, v in line.items() if not any(t in k for t in TIMES)}
        for line in RunFolder(folder).metrics()
        if "train_loss" not in line
    ]
    return load_file(weights), lines, RunFolder(folder).samples()


def stop_after(monkeypatch, forwards):
    """Lets a signal arrive before the given forward pass of the model."""
    left = [forwards]

    def look(self, module, inputs):
        left[0] -= 1
        if left[0] < 0:
            self.received = 15
            raise callbacks.Stopped

    monkeypatch.setattr(callbacks.StopOnSignal, "_look", look)


@pytest.mark.parametrize("stage", STAGES)
def test_stopped_again_and_again_it_ends_alike(stage, policy, tmp_path, monkeypatch):
    whole = run(config(stage, policy, tmp_path / "whole"))
    stops = 0
    wider = 3 if stage.startswith(("grpo", "ppo")) else 1
    for forwards in (5, 9, 7, 13, 4, 11, 6, 17, 1000):
        stop_after(monkeypatch, forwards * wider)
        result = run(config(stage, policy, tmp_path / "stopped"))
        if not result.stopped_by:
            break
        stops += 1
        folder = RunFolder(tmp_path / "stopped")
        assert folder.record["status"] == "stopped"
        assert not folder.checkpoints() or verify(folder.checkpoints()[0]) == ""
    assert stops >= 2 and not (tmp_path / "stopped" / ".saving").exists()
    (weights, lines, samples), (wanted, wanted_lines, wanted_samples) = (
        ending(tmp_path / "stopped"),
        ending(whole.folder),
    )
    assert lines == wanted_lines and samples == wanted_samples and (samples or stage == "reward")
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("stage", ["grpo", "ppo"])
def test_resumed_in_a_later_epoch_it_reads_the_prompts_in_the_same_order(stage, policy, tmp_path):
    cls, values = STAGES[stage]
    data = write(
        tmp_path / "prompts.jsonl",
        [{"prompt": "Who is it" + " now" * i + "?", "answer": "Ahab"} for i in range(6)],
    )
    shared = {
        **SHARED,
        **values,
        "iterations": 1,
        "ppo_epochs": 1,
        "max_steps": 9,
        "save_every": 8,
        "eval_fraction": 0.0,
    }
    options = {name: value for name, value in shared.items() if name in cls.model_fields}
    ends = []
    for folder in (tmp_path / "whole", tmp_path / "resumed"):
        if folder.name == "resumed":
            shutil.copytree(tmp_path / "whole", folder)
            for left in ("checkpoint-9", "final"):
                shutil.rmtree(folder / left)
            RunFolder(folder).update(status="running")
        run(cls(**options, policy_checkpoint=policy, datasets=[data], output_dir=str(folder)))
        ends.append(ending(folder)[:2])
    (wanted, lines), (weights, again) = ends
    assert lines[-1]["epoch"] > 2 and again == lines
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
