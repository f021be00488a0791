"""Weights of Llama, Qwen2 and Mistral to the lab's model, and the lab's to the families of transformers,
exactly.

Converting is translating the configuration and the names, and checking that nothing is left over. What one
side cannot express is refused with the reason; nothing is approximated.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
)

from llmlab.errors import LabError
from llmlab.models.families import Weights, native_family
from llmlab.models.transformer.config import LabConfig
from llmlab.models.transformer.modeling import LabForCausalLM, LabForSequenceClassification
from llmlab.models.typed import moved

CONVERTED = ("llama", "qwen2", "mistral")  # what `from_hf` takes


def from_hf(model: PreTrainedModel) -> LabForCausalLM:
    """Returns the lab's model with the weights of a Llama, Qwen2 or Mistral model (copied, same dtype).

    Raises:
        LabError: when its architecture has something that the lab's model does not.
    """
    config = model.config
    if not isinstance(config, (LlamaConfig, Qwen2Config, MistralConfig)):
        raise LabError(
            f"{config.model_type} models cannot be converted", remedy=f"known are {', '.join(CONVERTED)}"
        )
    own = moved(LabForCausalLM(_lab_config(config)), model.dtype)
    _copy(model.state_dict(), own)
    own.train(model.training)
    return own


def to_hf(model: LabForCausalLM | LabForSequenceClassification) -> PreTrainedModel:
    """Returns the same model as one of transformers' own architectures, weights copied.

    Dropout, which only training knows, is left out.

    Raises:
        LabError: when none of them computes the same.
    """
    config = model.config
    family = native_family(config)
    native_config = family.make_config(config)
    if isinstance(model, LabForSequenceClassification):
        native_config.num_labels = config.num_labels or 1
        native: PreTrainedModel = AutoModelForSequenceClassification.from_config(native_config)
    else:
        native = AutoModelForCausalLM.from_config(native_config)
    native = moved(native, model.dtype)
    _copy(family.rename(config, model.state_dict()), native)
    native.train(model.training)
    return native


def _copy(weights: Weights, target: PreTrainedModel) -> None:
    if target.config.tie_word_embeddings and "lm_head.weight" in target.state_dict():
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    target.load_state_dict(weights)  # strict: a missing or left-over name is an error
    target.tie_weights()


def _lab_config(config: LlamaConfig | Qwen2Config | MistralConfig) -> LabConfig:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim * config.num_attention_heads != config.hidden_size:
        raise LabError(
            f"head size {head_dim} x {config.num_attention_heads} heads is not the width {config.hidden_size}"
        )
    if config.hidden_act != "silu":
        raise LabError(
            f"activation {config.hidden_act!r} cannot be converted", remedy="only silu (swiglu) can"
        )
    if config.model_type == "llama" and (config.attention_bias or config.mlp_bias):
        raise LabError(
            "a Llama with biases cannot be converted", remedy="the lab has biases on q, k and v only"
        )
    windows = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    if len(windows) > 1:
        raise LabError("layers that differ in their attention window cannot be converted")
    if config.model_type == "qwen2" and windows == {"full_attention"}:
        window = None
    rope: dict[str, Any] = dict(config.rope_parameters or {})
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "yarn"):
        raise LabError(f"rope scaling {kind!r} cannot be converted", remedy="default and yarn can")
    yarn = {}
    if kind == "yarn":
        supported = {"rope_type", "rope_theta", "factor", "original_max_position_embeddings"}
        if extra := {key for key, value in rope.items() if value is not None} - supported:
            raise LabError(f"yarn with {', '.join(sorted(extra))} cannot be converted")
        yarn = {
            "yarn_factor": rope["factor"],
            "yarn_original_max_seq_len": rope["original_max_position_embeddings"],
        }
    same = config.num_key_value_heads == config.num_attention_heads
    return LabConfig(
        vocab_size=config.vocab_size,
        d_model=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        attention_type="mha" if same else "gqa",
        n_kv_heads=config.num_key_value_heads,
        d_ff=config.intermediate_size,
        norm_eps=config.rms_norm_eps,
        positional_encoding="yarn" if yarn else "rope",
        rope_theta=rope["rope_theta"],
        max_seq_len=config.max_position_embeddings,
        sliding_window=window,
        attention_bias=config.model_type == "qwen2",
        tie_word_embeddings=config.tie_word_embeddings,
        **yarn,
        **{name: getattr(config, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")},
    )
