"""Known shapes: each preset is the difference from the defaults of `ModelConfig`."""

from __future__ import annotations

import difflib
from typing import Any

from llmlab.config.model import ModelConfig
from llmlab.errors import LabError

MODEL_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": dict(
        tokenizer_name="checkpoints/tokenizer", vocab_size=2048, d_model=128, n_layers=4, n_heads=4, n_kv_heads=2,
        d_ff=344, max_seq_len=256,
    ),
    "small": dict(
        tokenizer_name="checkpoints/tokenizer", vocab_size=8192, d_model=384, n_layers=8, n_heads=6, n_kv_heads=2,
        d_ff=1024, max_seq_len=512,
    ),
    "gpt2-124m": dict(
        tokenizer_name="openai-community/gpt2", vocab_size=50257, d_model=768, n_layers=12, n_heads=12,
        attention_type="mha", d_ff=3072, activation="gelu", norm_type="layernorm", positional_encoding="sinusoidal",
        norm_eps=1e-5, attention_bias=True, max_seq_len=1024,
    ),
    "qwen2.5-0.5b": dict(rope_theta=1000000.0, attention_bias=True, max_seq_len=32768),
    "llama-3.2-1b": dict(
        tokenizer_name="meta-llama/Llama-3.2-1B", vocab_size=128256, d_model=2048, n_layers=16, n_heads=32,
        n_kv_heads=8, d_ff=8192, rope_theta=500000.0, norm_eps=1e-5, max_seq_len=8192,
    ),
    "qwen3-1.7b": dict(
        tokenizer_name="Qwen/Qwen3-1.7B", vocab_size=151936, d_model=2048, n_layers=28, n_heads=16, n_kv_heads=8,
        d_ff=6144, rope_theta=1000000.0, max_seq_len=32768,
    ),
    "llama-7b": dict(
        tokenizer_name="huggyllama/llama-7b", vocab_size=32000, d_model=4096, n_layers=32, n_heads=32,
        attention_type="mha", d_ff=11008, tie_word_embeddings=False, max_seq_len=2048,
    ),
}  # fmt: skip


def preset(name: str) -> ModelConfig:
    """Returns the config of a preset.

    Raises:
        LabError: when there is no preset of that name.
    """
    if name not in MODEL_PRESETS:
        near = difflib.get_close_matches(name, MODEL_PRESETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(MODEL_PRESETS)}"
        raise LabError(f"no preset is called {name!r}", remedy=hint)
    return ModelConfig(**MODEL_PRESETS[name])
