"""Which architecture of transformers computes the same as the lab's model, and its weights in that form.

Each family is a row of the table: what of the lab's options it can express, its config, and its names of the
weights. Where a row fits, the copy is exact; where none does, the model is exported with its own code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    ArceeConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    StableLmConfig,
    Starcoder2Config,
)

from llmlab.errors import LabError
from llmlab.models.transformer.config import LabConfig

Weights = dict[str, Tensor]
ROPE = ("rope", "yarn")
PLAIN = ("relu", "gelu", "silu", "leaky_relu")  # feed-forward parts without a gate
EVERYWHERE = ("transformers", "vLLM", "TGI", "llama.cpp", "Ollama")


@dataclass(frozen=True)
class Family:
    """An architecture of transformers.

    Attributes:
        model_type: its name there.
        norms: of the lab's norms, those it has.
        activations: of the lab's activations, those it has.
        attention_bias: whether q, k and v have a bias; None where it can be set.
        window: whether there is a sliding window; None where it can be set.
        make_config: returns its config of the lab's.
        rename: returns the lab's weights under its names.
        programs: that read it and compute the same.
    """

    model_type: str
    norms: tuple[str, ...]
    activations: tuple[str, ...]
    attention_bias: bool | None
    window: bool | None
    make_config: Callable[[LabConfig], PreTrainedConfig]
    rename: Callable[[LabConfig, Weights], Weights]
    programs: tuple[str, ...]

    def fits(self, config: LabConfig) -> bool:
        """Returns whether it computes the same as the lab's model of this config."""
        return (
            config.positional_encoding in ROPE
            and config.norm_type in self.norms
            and config.activation in self.activations
            and self.attention_bias in (None, bool(config.attention_bias))
            and self.window in (None, sees_less(config))
        )


def native_family(config: LabConfig) -> Family:
    """Returns the family of transformers that computes the same.

    Raises:
        LabError: when there is none, with the options that none has.
    """
    for family in FAMILIES:
        if family.fits(config):
            return family
    if config.positional_encoding not in ROPE:
        reason = f"`positional_encoding` {config.positional_encoding!r}"
    else:
        options = ("norm_type", "activation", "attention_bias", "sliding_window")
        reason = "together " + ", ".join(f"`{name}` {getattr(config, name)!r}" for name in options)
    raise LabError(
        f"{reason} exists in none of {', '.join(family.model_type for family in FAMILIES)}",
        remedy="export it with its own code (`--to hf` does so), or keep it in the lab's format",
    )


def sees_less(config: LabConfig) -> bool:
    """Returns whether the sliding window is shorter than the context, so that it has an effect."""
    return bool(config.sliding_window) and config.sliding_window < config.max_seq_len


def _common(config: LabConfig) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.positional_encoding == "yarn":
        rope.update(
            rope_type="yarn",
            factor=config.yarn_factor,
            original_max_position_embeddings=config.yarn_original_max_seq_len,
        )
    return dict(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.num_key_value_heads,
        intermediate_size=config.d_ff,
        rope_parameters=rope,
        max_position_embeddings=config.max_seq_len,
        tie_word_embeddings=config.tie_word_embeddings,
        **{name: getattr(config, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
    )


def _llama(config: LabConfig) -> PreTrainedConfig:
    return LlamaConfig(**_common(config), rms_norm_eps=config.norm_eps)


def _qwen2(config: LabConfig) -> PreTrainedConfig:
    window: dict[str, Any] = {}
    if sees_less(config):
        window = dict(use_sliding_window=True, sliding_window=config.sliding_window, max_window_layers=0)
    return Qwen2Config(**_common(config), rms_norm_eps=config.norm_eps, **window)


def _mistral(config: LabConfig) -> PreTrainedConfig:
    return MistralConfig(
        **_common(config), rms_norm_eps=config.norm_eps, sliding_window=config.sliding_window
    )


def _stablelm(config: LabConfig) -> PreTrainedConfig:
    return StableLmConfig(
        # its own default turns a quarter of each head
        **{**_common(config), "partial_rotary_factor": 1.0},
        layer_norm_eps=config.norm_eps,
        use_qkv_bias=config.attention_bias,
    )


def _starcoder2(config: LabConfig) -> PreTrainedConfig:
    return Starcoder2Config(
        **_common(config),
        norm_epsilon=config.norm_eps,
        hidden_act=config.activation,
        use_bias=config.attention_bias,
        sliding_window=config.sliding_window if sees_less(config) else None,
    )


def _arcee(config: LabConfig) -> PreTrainedConfig:
    return ArceeConfig(**_common(config), rms_norm_eps=config.norm_eps, hidden_act=config.activation)


def _same_names(config: LabConfig, weights: Weights) -> Weights:
    return weights


def _starcoder2_names(config: LabConfig, weights: Weights) -> Weights:
    renamed = {
        name.replace("mlp.up_proj", "mlp.c_fc").replace("mlp.down_proj", "mlp.c_proj"): weight
        for name, weight in weights.items()
    }
    if (
        config.attention_bias
    ):  # Starcoder2 has biases on every matrix or on none: those of ours that lack are 0
        for name in [
            name for name in renamed if name.endswith(("o_proj.weight", "c_fc.weight", "c_proj.weight"))
        ]:
            renamed[f"{name.removesuffix('weight')}bias"] = torch.zeros(
                len(renamed[name]), dtype=renamed[name].dtype
            )
    return renamed


FAMILIES = (
    Family("llama", ("rmsnorm",), ("swiglu",), False, False, _llama, _same_names, EVERYWHERE),
    Family("qwen2", ("rmsnorm",), ("swiglu",), True, None, _qwen2, _same_names, EVERYWHERE),
    Family("mistral", ("rmsnorm",), ("swiglu",), False, True, _mistral, _same_names, EVERYWHERE),
    Family(
        "stablelm",
        ("layernorm",),
        ("swiglu",),
        None,
        False,
        _stablelm,
        _same_names,
        ("transformers", "vLLM", "llama.cpp", "Ollama"),
    ),
    Family(
        "starcoder2",
        ("layernorm",),
        PLAIN,
        None,
        None,
        _starcoder2,
        _starcoder2_names,
        ("transformers", "vLLM"),  # llama.cpp computes a gelu whatever the config says
    ),
    Family(
        "arcee",
        ("rmsnorm",),
        PLAIN,
        False,
        False,
        _arcee,
        _same_names,
        ("transformers",),  # vLLM and llama.cpp compute relu squared whatever the config says
    ),
)
