"""Known shapes: each preset is the difference from the defaults of `ModelConfig`."""

from __future__ import annotations

import difflib
from typing import Any

from llmlab.config.model import ModelConfig
from llmlab.errors import LabError

MODEL_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(
        tokenizer_name="checkpoints/tokenizer",
        vocab_size=2048,
        d_model=128,
        n_layers=4,
        n_heads=4,
        n_kv_heads=2,
        d_ff=344,
        max_seq_len=256,
    ),
    "small": dict(
        tokenizer_name="checkpoints/tokenizer",
        vocab_size=8192,
        d_model=384,
        n_layers=8,
        n_heads=6,
        n_kv_heads=2,
        d_ff=1024,
        max_seq_len=512,
    ),
    "gpt2-124m": dict(
        tokenizer_name="openai-community/gpt2",
        vocab_size=50257,
        d_model=768,
        n_layers=12,
        n_heads=12,
        attention_type="mha",
        d_ff=3072,
        activation="gelu",
        norm_type="layernorm",
        positional_encoding="sinusoidal",
        norm_eps=1e-5,
        attention_bias=True,
        max_seq_len=1024,
    ),
    "qwen2.5-0.5b": dict(rope_theta=1000000.0, attention_bias=True, max_seq_len=32768),
    "llama-3.2-1b": dict(
        tokenizer_name="meta-llama/Llama-3.2-1B",
        vocab_size=128256,
        d_model=2048,
        n_layers=16,
        n_heads=32,
        n_kv_heads=8,
        d_ff=8192,
        rope_theta=500000.0,
        norm_eps=1e-5,
        max_seq_len=8192,
    ),
    "qwen3-1.7b": dict(
        tokenizer_name="Qwen/Qwen3-1.7B",
        vocab_size=151936,
        d_model=2048,
        n_layers=28,
        n_heads=16,
        n_kv_heads=8,
        d_ff=6144,
        rope_theta=1000000.0,
        max_seq_len=32768,
    ),
    "llama-7b": dict(
        tokenizer_name="huggyllama/llama-7b",
        vocab_size=32000,
        d_model=4096,
        n_layers=32,
        n_heads=32,
        attention_type="mha",
        d_ff=11008,
        tie_word_embeddings=False,
        max_seq_len=2048,
    ),
}

# Starting points for a model of about this size; 7b fits one 12 GB card by QLoRA. Learning rates and batches
# are those of published recipes of that size: SmolLM2 (100m), OLMo 2 and Tulu 3 (1b), QLoRA's and TRL's 7B
# recipes.
_CARD = dict(adapter="qlora", gradient_checkpointing=True)
METHOD_PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "sft": {
        "100m": dict(learning_rate=3e-4, max_steps=2000, batch_size=8, gradient_accumulation_steps=8),
        "1b": dict(learning_rate=2e-5, max_steps=3000, batch_size=4, gradient_accumulation_steps=16),
        "7b": dict(**_CARD, learning_rate=2e-4, max_steps=1500, batch_size=1, gradient_accumulation_steps=16),
    },
    "reward": {
        "100m": dict(learning_rate=5e-5, max_steps=1000, batch_size=16, gradient_accumulation_steps=4),
        "1b": dict(learning_rate=1e-5, max_steps=1500, batch_size=8, gradient_accumulation_steps=8),
        "7b": dict(**_CARD, learning_rate=1e-4, max_steps=1500, batch_size=1, gradient_accumulation_steps=64),
    },
    "dpo": {
        "100m": dict(learning_rate=5e-6, max_steps=1000, batch_size=64, mini_batch_size=16),
        "1b": dict(learning_rate=1e-6, max_steps=1500, batch_size=128, mini_batch_size=4),
        "7b": dict(**_CARD, learning_rate=5e-6, max_steps=1000, batch_size=64, mini_batch_size=1),
    },
    "grpo": {
        "100m": dict(
            learning_rate=1e-5, max_steps=500, batch_size=128, mini_batch_size=32, group_size=8, beta=0.0
        ),
        "1b": dict(
            learning_rate=1e-6, max_steps=500, batch_size=128, mini_batch_size=8, group_size=8, beta=0.0
        ),
        "7b": dict(
            **_CARD,
            learning_rate=1e-5,
            max_steps=300,
            batch_size=64,
            mini_batch_size=2,
            group_size=8,
            beta=0.0,
        ),
    },
    "ppo": {
        "100m": dict(learning_rate=1e-5, max_steps=2000, batch_size=128, mini_batch_size=32),
        "1b": dict(learning_rate=1e-6, max_steps=4000, batch_size=128, mini_batch_size=16),
        "7b": dict(**_CARD, learning_rate=1e-5, max_steps=4000, batch_size=64, mini_batch_size=8),
    },
    "dual_head": {
        "100m": dict(learning_rate=3e-4, batch_size=16, gradient_accumulation_steps=4, epochs=3),
        "1b": dict(learning_rate=1e-4, batch_size=8, gradient_accumulation_steps=8, epochs=2),
        "7b": dict(
            learning_rate=5e-5, batch_size=1, gradient_accumulation_steps=64, epochs=1, load_in="4bit"
        ),
    },
}


def preset(name: str) -> ModelConfig:
    """Returns the config of a preset.

    Raises:
        LabError: when there is no preset of that name.
    """
    if name not in MODEL_PRESETS:
        near = difflib.get_close_matches(name, MODEL_PRESETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the presets are {', '.join(MODEL_PRESETS)}"
        raise LabError(f"there is no preset {name!r}", remedy=hint)
    return ModelConfig(**MODEL_PRESETS[name])


def method_preset(kind: str, size: str) -> dict[str, Any]:
    """Returns the options of a method for models of about a size ("100m", "1b", "7b").

    Raises:
        LabError: when there is none.
    """
    sizes = METHOD_PRESETS.get(kind)
    if sizes is None:
        raise LabError(
            f"there are no presets for {kind!r}",
            remedy=f"there are some for {', '.join(METHOD_PRESETS)}, model",
        )
    if size not in sizes:
        raise LabError(
            f"no preset of {kind} is called {size!r}", remedy=f"the presets are {', '.join(sizes)}"
        )
    return dict(sizes[size])
