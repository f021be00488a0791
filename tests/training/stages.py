"""A short run of every stage, and what of a run two runs must have in common."""

from safetensors.torch import load_file

from llmlab.config import DPOConfig, DualHeadConfig, GRPOConfig, PPOConfig, RewardConfig, SFTConfig
from llmlab.runs.folder import RunFolder
from llmlab.training.callbacks import stop as callbacks
from tests.conftest import write_rows

TIMES = ("runtime", "per_second", "step_time", "preparation_time")  # of the clock

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


def stage_config(stage, policy, folder):
    cls, values = STAGES[stage]
    rows = {
        SFTConfig: [{"prompt": f"Who is {i}?", "completion": "Ahab"} for i in range(90)],
        RewardConfig: [{"prompt": f"Who is {i}?", "chosen": "Ahab", "rejected": "Stubb"} for i in range(90)],
    }
    rows[DPOConfig] = rows[DualHeadConfig] = rows[RewardConfig]
    rows = rows.get(cls, [{"prompt": f"Who is {i}?", "answer": "Ahab"} for i in range(90)])
    data = folder.parent / f"{cls.KIND}.jsonl"
    if not data.exists():
        write_rows(data, rows)
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
