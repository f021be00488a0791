"""The runs of `identity.py`: 30 of all kinds, together with what options, models and data they differ in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        kind: of its config.
        options: of its config, beside those that all runs share.
        start: the run or made model that it starts from; "" where it starts from nothing.
        reads: other runs whose results it reads.
        stop_at: the step at which SIGTERM stops it; it is then resumed. 0 where it is not stopped.
        first_steps: `max_steps` of a first, shorter run that is then asked to go on. 0 where there is none.
        back_to: the step whose checkpoint is resumed once more after the run is done. 0 where none is.
    """

    kind: str
    options: dict[str, Any]
    start: str = ""
    reads: tuple[str, ...] = ()
    stop_at: int = 0
    first_steps: int = 0
    back_to: int = 0


SHARED: dict[str, Any] = dict(
    max_steps=10,
    learning_rate=1e-3,
    warmup_steps=2,
    log_every=1,
    eval_every=4,
    save_every=4,
    eval_fraction=0.15,
    eval_rows=16,
    save_best_only=False,
    sample_tokens=8,
    report_to=[],
)
NOVEL: dict[str, Any] = {"name": "llmlab:moby-dick", "max_rows": 30}
SPAM: dict[str, Any] = {"name": "llmlab:spam-mails", "max_rows": 120}
STREAM: dict[str, Any] = {"name": "text.jsonl", "streaming": True}
SMALL: dict[str, Any] = dict(batch_size=4, gradient_accumulation_steps=1)
ROWS: dict[str, Any] = dict(**SMALL, max_length=96)
PAIRS: dict[str, Any] = dict(datasets=["pairs.jsonl"], max_length=96, max_prompt_length=48)
DPO: dict[str, Any] = dict(**PAIRS, batch_size=8, mini_batch_size=4)
ANSWERS: dict[str, Any] = dict(
    datasets=["prompts.jsonl"],
    batch_size=16,
    mini_batch_size=8,
    max_new_tokens=12,
    max_prompt_length=48,
    max_steps=6,
    eval_every=3,
    save_every=2,
)
LORA: dict[str, Any] = dict(adapter="lora", lora_r=4, lora_alpha=8)
QLORA: dict[str, Any] = dict(adapter="qlora", lora_r=4, lora_alpha=8)


def shape(**changes: Any) -> dict[str, Any]:
    """Returns a model config of the lab's own transformer."""
    values = dict(
        kind="model",
        tokenizer_name="tokenizer",
        vocab_size=512,
        d_model=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        d_ff=128,
        max_seq_len=128,
    )
    return {**values, **changes}


RUNS: dict[str, Run] = {
    "pretrain": Run(
        "pretrain", dict(SMALL, model=shape(), datasets=[NOVEL], gradient_accumulation_steps=2, max_steps=40)
    ),
    "pretrain-mixture": Run(
        "pretrain",
        dict(
            SMALL,
            model=shape(
                tokenizer_name="byte",
                vocab_size=260,
                norm_type="layernorm",
                activation="gelu",
                attention_type="mha",
                positional_encoding="alibi",
            ),
            datasets=[{**NOVEL, "weight": 0.3}, {"name": "text.jsonl", "weight": 0.7}],
            mixture_stop="all_exhausted",
            packing="best_fit",
            optimizer="muon",
            scheduler="linear",
        ),
    ),
    "pretrain-stream": Run(
        "pretrain",
        dict(
            SMALL,
            model=shape(dropout=0.1, sliding_window=32, positional_encoding="yarn"),
            datasets=[STREAM],
            eval_fraction=0.0,
            eval_datasets=[NOVEL],
            optimizer="sophia",
            scheduler="polynomial",
            gradient_accumulation_steps=3,
            max_steps=12,
        ),
    ),
    "pretrain-checkpointing": Run(
        "pretrain",
        dict(
            SMALL,
            model=shape(
                attention_type="mqa",
                positional_encoding="sinusoidal",
                activation="relu",
                tie_word_embeddings=False,
                attention_bias=True,
            ),
            datasets=["text.jsonl"],
            optimizer="lion",
            learning_rate=3e-4,
            scheduler="none",
            gradient_checkpointing=True,
            attention_backend="eager",
        ),
    ),
    "pretrain-stream-stopped": Run(
        "pretrain",
        dict(
            SMALL,
            model=shape(),
            datasets=[{**STREAM, "weight": 0.6}, {**NOVEL, "streaming": True, "weight": 0.4}],
            optimizer="adafactor",
            gradient_accumulation_steps=2,
            max_steps=24,
            eval_every=8,
            save_every=8,
        ),
        stop_at=5,
    ),
    "pretrain-longer": Run(
        "pretrain",
        dict(SMALL, model=shape(), datasets=["text.jsonl"], optimizer="muon", max_steps=12, seed=7),
        start="pretrain",
        first_steps=6,
    ),
    "sft": Run(
        "sft",
        dict(
            ROWS, datasets=["questions.jsonl"], max_steps=60, learning_rate=3e-3, eval_every=20, save_every=20
        ),
        start="pretrain",
    ),
    "sft-all-tokens": Run(
        "sft",
        dict(
            ROWS,
            datasets=["talks.jsonl"],
            packing=False,
            loss_on="all",
            chat_template="chatml",
            on_overflow="drop",
            optimizer="muon",
            scheduler="linear",
        ),
        start="pretrain",
    ),
    "sft-llama-assistant": Run(
        "sft",
        dict(
            ROWS,
            datasets=["talks.jsonl"],
            gradient_checkpointing=True,
            optimizer="adafactor",
            gradient_accumulation_steps=2,
        ),
        start="llama",
    ),
    "sft-llama-lora": Run(
        "sft",
        dict(
            ROWS,
            **LORA,
            datasets=[{"name": "questions.jsonl", "weight": 2}, {"name": "talks.jsonl"}],
            lora_targets="attention",
            scheduler="none",
            lora_dropout=0.1,
        ),
        start="llama",
    ),
    "sft-llama-qlora": Run(
        "sft", dict(ROWS, **QLORA, datasets=["questions.jsonl"], gradient_accumulation_steps=2), start="llama"
    ),
    "sft-mixtral": Run(
        "sft", dict(ROWS, datasets=["questions.jsonl"], packing=False, optimizer="lion"), start="mixtral"
    ),
    "sft-mixtral-lora-stopped": Run(
        "sft",
        dict(
            ROWS,
            **LORA,
            datasets=["talks.jsonl"],
            max_steps=20,
            eval_every=7,
            save_every=7,
            lora_dropout=0.1,
        ),
        start="mixtral",
        stop_at=4,
    ),
    "sft-spam": Run(
        "sft",
        dict(
            **LORA,
            datasets=[SPAM],
            lora_targets="ffn",
            eval_datasets=[{**SPAM, "split": "test"}],
            eval_fraction=0.0,
            precision="bf16",
            max_length=512,
            batch_size=2,
            gradient_accumulation_steps=2,
        ),
        start="llama",
    ),
    "reward": Run("reward", dict(SMALL, **PAIRS, max_steps=30, eval_every=10, save_every=10), start="sft"),
    "reward-llama-lora": Run(
        "reward",
        dict(
            SMALL,
            **PAIRS,
            **LORA,
            center_rewards=0.0,
            optimizer="muon",
            gradient_accumulation_steps=2,
        ),
        start="llama",
        back_to=4,
    ),
    "dpo": Run("dpo", dict(DPO), start="sft"),
    "dpo-live": Run(
        "dpo",
        dict(DPO, reference="live", padding_free=False, loss_type="robust", label_smoothing=0.1),
        start="sft",
    ),
    "dpo-llama-ipo": Run(
        "dpo",
        dict(
            DPO,
            loss_type="ipo",
            group_by_length=True,
            optimizer="sophia",
            scheduler="linear",
            gradient_checkpointing=True,
        ),
        start="llama",
    ),
    "dpo-llama-lora-live": Run(
        "dpo",
        dict(
            DPO,
            **LORA,
            reference="live",
            loss_type="apo_zero",
            datasets=["pairs.jsonl", "others.jsonl"],
            optimizer="lion",
        ),
        start="llama",
    ),
    "dpo-llama-qlora": Run(
        "dpo", dict(DPO, **QLORA, loss_type="exo_pair", padding_free=False), start="llama"
    ),
    "dpo-norm-stopped": Run(
        "dpo",
        dict(
            DPO,
            loss_type="sigmoid_norm",
            beta=5.0,
            reference_checkpoint="pretrain/final",
            max_steps=20,
            eval_every=7,
            save_every=7,
        ),
        start="sft",
        reads=("pretrain",),
        stop_at=4,
    ),
    "grpo": Run(
        "grpo",
        dict(
            ANSWERS,
            reward_model=["exact_match", "length | 0.5 | 3"],
            group_size=4,
            beta=0.0,
            iterations=1,
        ),
        start="sft",
    ),
    "grpo-llama-kl": Run(
        "grpo",
        dict(
            ANSWERS,
            reward_model=["length | 1 | 3"],
            group_size=8,
            beta=0.05,
            iterations=3,
            top_k=50,
            top_p=0.9,
            grpo_temperature=0.8,
            scheduler="none",
        ),
        start="llama",
        back_to=4,
    ),
    "grpo-lora-stopped": Run(
        "grpo",
        dict(
            ANSWERS,
            **LORA,
            reward_model=["reward/final", "repetition | 0.2"],
            group_size=4,
            beta=0.02,
            iterations=2,
            max_steps=12,
        ),
        start="sft",
        reads=("reward",),
        stop_at=3,
    ),
    "ppo": Run(
        "ppo",
        dict(ANSWERS, reward_model="exact_match", ppo_epochs=2, kl_coef=0.05, missing_end_penalty=0.2),
        start="sft",
    ),
    "ppo-llama-lora": Run(
        "ppo",
        dict(
            ANSWERS,
            **LORA,
            reward_model="length | 1 | 3",
            critic=False,
            kl_coef=0.0,
            ppo_epochs=1,
            optimizer="lion",
        ),
        start="llama",
    ),
    "ppo-stopped": Run(
        "ppo",
        dict(
            ANSWERS,
            reward_model="reward/final",
            ppo_epochs=2,
            gamma=0.98,
            gae_lambda=0.9,
            max_steps=12,
            temperature=0.9,
        ),
        start="sft",
        reads=("reward",),
        stop_at=3,
    ),
    "dual-head": Run("dual_head", dict(SMALL, **PAIRS, epochs=1), start="sft"),
    "dual-head-llama-4bit": Run(
        "dual_head",
        dict(
            SMALL,
            **PAIRS,
            objective="mixed",
            sft_ratio=0.3,
            load_in="4bit",
            share_prompts=False,
            optimizer="muon",
        ),
        start="llama",
        first_steps=5,
    ),
}
