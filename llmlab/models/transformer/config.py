"""`LabConfig`: the architecture as transformers knows it.

`attribute_map` gives its fields the names that transformers, TRL and PEFT look for.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from llmlab.models.transformer.defaults import DEFAULTS


class LabConfig(PreTrainedConfig):
    """Configuration of `LabForCausalLM`; takes the options of `ModelConfig` as keyword arguments."""

    model_type = "llmlab"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "d_ff",
        "max_position_embeddings": "max_seq_len",
    }
    # how several devices share a layer (Shoeybi et al. 2019, section 3): heads and inner units are divided
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.gate_proj": "colwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }

    def __init__(self, **kwargs: Any):
        for standard, own in self.attribute_map.items():
            if standard in kwargs:
                kwargs.setdefault(own, kwargs.pop(standard))
        for name, default in DEFAULTS.items():
            setattr(self, name, kwargs.pop(name, default))
        self.head_dim = kwargs.pop("head_dim", None) or self.d_model // self.n_heads
        kv_heads = {"mha": self.n_heads, "mqa": 1, "gqa": self.n_kv_heads}[self.attention_type]
        self.num_key_value_heads = kwargs.pop("num_key_value_heads", None) or kv_heads
        self.layer_types = (
            kwargs.pop("layer_types", None)
            or ["sliding_attention" if self.sliding_window else "full_attention"] * self.n_layers
        )
        self.initializer_range = kwargs.pop("initializer_range", 0.02)
        self.use_cache = kwargs.pop("use_cache", True)
        self.pad_token_id = kwargs.pop("pad_token_id", None)
        self.bos_token_id = kwargs.pop("bos_token_id", None)
        self.eos_token_id = kwargs.pop("eos_token_id", None)
        super().__init__(**kwargs)
