"""Between the two configs of an architecture: what a person sets, and what transformers reads."""

from __future__ import annotations

from llmlab.config import ModelConfig
from llmlab.models.transformer.config import LabConfig
from llmlab.models.transformer.defaults import DEFAULTS


def to_lab_config(config: ModelConfig, **token_ids: int | None) -> LabConfig:
    """Returns the transformers configuration of a validated `ModelConfig`.

    `token_ids` are `pad_token_id`, `bos_token_id` and `eos_token_id` of the tokenizer.
    """
    values = {name: getattr(config, name) for name in DEFAULTS}
    if config.positional_encoding == "yarn":
        values["yarn_original_max_seq_len"] = config.yarn_original
    return LabConfig(**values, **token_ids)


def to_model_config(config: LabConfig, tokenizer_name: str = "byte") -> ModelConfig:
    """Returns the `ModelConfig` of an architecture."""
    changed = {
        name: value for name, default in DEFAULTS.items() if (value := getattr(config, name)) != default
    }
    if config.positional_encoding != "yarn":
        changed.pop("yarn_original_max_seq_len", None)
    if config.attention_type != "gqa":
        changed.pop("n_kv_heads", None)
    return ModelConfig(tokenizer_name=tokenizer_name, **changed)
