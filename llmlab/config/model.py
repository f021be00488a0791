"""`kind: "model"`: the architecture of a transformer. The defaults are the shape of Qwen2.5-0.5B."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from llmlab.config.base import KindConfig
from llmlab.config.options import LARGEST, option
from llmlab.titles import TITLES

GATED_ACTIVATIONS = ("swiglu",)
ROTARY = ["rope", "yarn"]


class ModelConfig(KindConfig):
    """The shape of a decoder-only transformer and the tokenizer it reads with."""

    KIND: ClassVar[str] = "model"
    TITLE: ClassVar[str] = TITLES["model"]
    kind: Literal["model"] = "model"

    tokenizer_name: str = option(
        "Qwen/Qwen2.5-0.5B",
        "Tokenizer",
        "A hub id, a local folder, `byte` (one token per byte), or a folder written by `llmlab tokenizer`.",
        min_length=1,
    )
    vocab_size: int = option(
        151936,
        "Vocabulary size",
        "Rows of the embedding; at least what the tokenizer needs.",
        unit="tokens",
        typical="4,000 for a toy, 32,000 to 152,000 in published models",
        ge=1,
    )
    d_model: int = option(
        896,
        "Model width",
        "Size of the hidden states; a multiple of the number of heads.",
        typical="256 to 4096",
        ge=1,
    )
    n_layers: int = option(24, "Layers", "Number of transformer blocks.", typical="4 to 32", ge=1)
    n_heads: int = option(
        14, "Attention heads", "Number of query heads.", typical="d_model / 64 or d_model / 128", ge=1
    )
    attention_type: Literal["mha", "mqa", "gqa"] = option(
        "gqa",
        "Attention type",
        "How many key and value heads the query heads share.",
        choices={
            "mha": "one key/value head for each query head: the most expressive, the largest KV cache",
            "mqa": "one key/value head for all: the smallest KV cache",
            "gqa": "groups of query heads share one: nearly as good as mha with a fraction of the cache",
        },
    )
    n_kv_heads: int = option(
        2,
        "Key/value heads",
        "Number of key and value heads; divides the number of query heads.",
        typical="n_heads / 4 to n_heads / 8",
        applies_when={"attention_type": ["gqa"]},
        ge=1,
    )
    d_ff: int = option(
        4864,
        "Feed-forward width",
        "Size of the hidden layer of the feed-forward part.",
        typical="4 x d_model; about 2.67 x d_model for gated activations",
        ge=1,
    )
    activation: Literal["relu", "gelu", "silu", "leaky_relu", "swiglu"] = option(
        "swiglu",
        "Activation",
        "The non-linearity of the feed-forward part.",
        choices={
            "relu": "the original transformer's; cheap",
            "gelu": "GPT-2's and BERT's (exact form)",
            "silu": "smooth, as in Llama but without its gate",
            "leaky_relu": "relu that keeps a slope of 0.01 below zero",
            "swiglu": "gated silu, as in Llama, Qwen and Mistral: the best per parameter",
        },
    )
    norm_type: Literal["layernorm", "rmsnorm"] = option(
        "rmsnorm",
        "Normalisation",
        "How hidden states are normalised before each part of a block.",
        choices={
            "layernorm": "mean and variance, with a bias: GPT-2's",
            "rmsnorm": "the root mean square only: Llama's and Qwen's, a little cheaper",
        },
    )
    positional_encoding: Literal["sinusoidal", "rope", "alibi", "yarn"] = option(
        "rope",
        "Positions",
        "How the model encodes the position of a token.",
        choices={
            "sinusoidal": "fixed waves added to the embeddings: the original transformer's",
            "rope": "rotates queries and keys: what nearly all current models use",
            "alibi": "a penalty that grows with distance: reads longer texts than it was trained on",
            "yarn": "rope stretched to longer contexts: for extending a model trained on short ones",
        },
    )
    rope_theta: float = option(
        10000.0,
        "Rope base",
        "Base of the rotation frequencies.",
        typical="10,000 to 1,000,000; larger for longer contexts",
        applies_when={"positional_encoding": ROTARY},
        gt=0,
    )
    yarn_factor: float = option(
        4.0,
        "YaRN factor",
        "By how much the context is stretched.",
        typical="2 to 32",
        applies_when={"positional_encoding": ["yarn"]},
        ge=1,
    )
    yarn_original_max_seq_len: int | None = option(
        None,
        "Original context",
        "Context length before stretching; left out, it is max_seq_len / yarn_factor.",
        unit="tokens",
        applies_when={"positional_encoding": ["yarn"]},
        ge=1,
        le=LARGEST,
    )
    max_seq_len: int = option(
        1024,
        "Context length",
        "Longest sequence it is trained on.",
        unit="tokens",
        typical="256 to 32,768",
        ge=1,
    )
    sliding_window: int | None = option(
        None,
        "Sliding window",
        "How many tokens a position sees, itself included; left out, all that came before.",
        unit="tokens",
        advanced=True,
        ge=1,
        le=LARGEST,
    )
    dropout: float = option(
        0.0,
        "Dropout",
        "Share of activations dropped in training, after embeddings, attention and feed-forward.",
        typical="0 for one pass over the data, 0.1 for small data",
        advanced=True,
        ge=0,
        lt=1,
    )
    attention_bias: bool = option(
        False, "Attention bias", "A bias on the q, k and v projections, as Qwen2 has it.", advanced=True
    )
    norm_eps: float = option(1e-6, "Norm epsilon", "Added under the root of the norm.", advanced=True, gt=0)
    tie_word_embeddings: bool = option(
        True, "Tied embeddings", "One matrix serves as embedding and output head.", advanced=True
    )

    @property
    def head_dim(self) -> int:
        """Size of one attention head."""
        return self.d_model // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads in effect."""
        return {"mha": self.n_heads, "mqa": 1, "gqa": self.n_kv_heads}[self.attention_type]

    @property
    def gated(self) -> bool:
        """Whether the feed-forward part has a gate (three matrices instead of two)."""
        return self.activation in GATED_ACTIVATIONS

    @property
    def yarn_original(self) -> int:
        """Context length before YaRN stretches it."""
        return self.yarn_original_max_seq_len or max(1, int(self.max_seq_len / self.yarn_factor))

    @model_validator(mode="after")
    def _check_heads(self) -> ModelConfig:
        rotary = self.positional_encoding in ROTARY
        step = self.n_heads * (2 if rotary else 1)
        if self.d_model % step:
            below, above = self.d_model // step * step, -(-self.d_model // step) * step
            near = f"use {below} or {above}" if below else f"use {above}"
            if self.d_model % self.n_heads:
                fault = f"`d_model` {self.d_model} is not divisible by `n_heads` {self.n_heads}: {near}"
                even = rotary and (below, above) != (
                    self.d_model // self.n_heads * self.n_heads,
                    -(-self.d_model // self.n_heads) * self.n_heads,
                )
                raise ValueError(fault + (", since a rope head size must be even" if even else ""))
            raise ValueError(
                f"`d_model` {self.d_model} / `n_heads` {self.n_heads} gives a head size of {self.head_dim}, "
                f"and a {self.positional_encoding} head size must be even: {near}"
            )
        if self.attention_type == "gqa" and self.n_heads % self.n_kv_heads:
            divisors = [d for d in range(1, self.n_heads + 1) if self.n_heads % d == 0]
            nearest = sorted(sorted(divisors, key=lambda d: abs(d - self.n_kv_heads))[:2])
            raise ValueError(
                f"`n_kv_heads` {self.n_kv_heads} does not divide `n_heads` {self.n_heads}: use"
                f" {' or '.join(map(str, nearest))}"
            )
        return self

    @model_validator(mode="after")
    def _check_yarn(self) -> ModelConfig:
        if self.positional_encoding == "yarn" and self.yarn_original > self.max_seq_len:
            raise ValueError(
                f"`yarn_original_max_seq_len` {self.yarn_original} is above `max_seq_len` {self.max_seq_len}:"
                f" use at most {self.max_seq_len}"
            )
        return self
