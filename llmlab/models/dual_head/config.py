"""Configuration of a dual head."""

from __future__ import annotations

import copy
from typing import Any

from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmlab.models.transformer.config import LabConfig


class LabDualHeadConfig(PreTrainedConfig):
    """Configuration of `LabDualHeadForCausalLM`.

    Args:
        backbone_config: of the frozen model, or its dictionary.
        backbone: the name the frozen model is loaded by.
        gating_num_heads: attention heads of the gate.
        gating_size: width of the gate's last layer; None for a quarter of the backbone's.
        gating_layer_norm: whether the gate reads normed hidden states.
        gating_dropout: of the gate's attention and last layer.
        rm_bias: whether the reward head has a bias.
        rm_dropout: of the hidden states before the reward head.
        **kwargs: of every configuration.
    """

    model_type = "llmlab_dual_head"
    sub_configs = {"backbone_config": AutoConfig}
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        backbone_config: PreTrainedConfig | dict[str, Any] | None = None,
        backbone: str = "",
        gating_num_heads: int = 8,
        gating_size: int | None = None,
        gating_layer_norm: bool = True,
        gating_dropout: float = 0.1,
        rm_bias: bool = False,
        rm_dropout: float = 0.1,
        **kwargs: Any,
    ):
        if isinstance(backbone_config, dict):
            kind = backbone_config["model_type"]
            cls = LabConfig if kind == LabConfig.model_type else CONFIG_MAPPING[kind]
            backbone_config = cls(**backbone_config)
        # a copy: what transformers sets for all parts of a model would reach into the backbone that is loaded
        # already
        self.backbone_config = copy.deepcopy(backbone_config) if backbone_config is not None else LabConfig()
        self.backbone = backbone
        of_backbone = self.backbone_config
        self.vocab_size, self.hidden_size = of_backbone.vocab_size, of_backbone.hidden_size
        # one layer more than the backbone's, so that its cache has a place for the gate's keys and values
        self.num_hidden_layers = of_backbone.num_hidden_layers + 1
        self.num_attention_heads = of_backbone.num_attention_heads
        self.max_position_embeddings = getattr(of_backbone, "max_position_embeddings", None)
        self.sliding_window = getattr(of_backbone, "sliding_window", None)
        kind = (
            "sliding_attention"
            if self.sliding_window and getattr(of_backbone, "use_sliding_window", True)
            else "full_attention"
        )
        kinds = getattr(of_backbone, "layer_types", None) or [kind] * of_backbone.num_hidden_layers
        self.layer_types = [*kinds, "full_attention"]
        self.gating_num_heads = gating_num_heads
        self.gating_size = gating_size or max(1, of_backbone.hidden_size // 4)
        self.gating_layer_norm, self.gating_dropout = gating_layer_norm, gating_dropout
        self.rm_bias, self.rm_dropout = rm_bias, rm_dropout
        self.initializer_range = getattr(of_backbone, "initializer_range", None) or 0.02
        self.use_cache = kwargs.pop("use_cache", True)
        for name in ("layer_types", "num_hidden_layers", "vocab_size", "hidden_size", "num_attention_heads"):
            kwargs.pop(name, None)  # they follow from the backbone's
        for name in ("max_position_embeddings", "sliding_window", "initializer_range"):
            kwargs.pop(name, None)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(self, name, kwargs.pop(name, getattr(of_backbone, name, None)))
        kwargs["tie_word_embeddings"] = False
        super().__init__(**kwargs)
