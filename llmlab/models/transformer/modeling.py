"""`LabForCausalLM`: a decoder-only transformer composed of parts, as a `PreTrainedModel`.

Pre-norm blocks; no biases but the optional ones on q, k and v; parameter names are Llama's, so that adapters
and conversions know them. Packed rows (position ids that restart) never attend across documents. In training
the loss is computed without holding all logits; ask for them with `skip_logits=False`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GenericForSequenceClassification, GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from llmlab.models.transformer.attention import Attention
from llmlab.models.transformer.config import LabConfig
from llmlab.models.transformer.feed_forward import FEED_FORWARDS
from llmlab.models.transformer.norms import NORMS
from llmlab.models.transformer.ops import linear_cross_entropy
from llmlab.models.transformer.positions import POSITIONS, Alibi, Rotary, alibi_slopes


class Block(GradientCheckpointingLayer):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: LabConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = NORMS[config.norm_type](config)
        self.self_attn = Attention(config, layer_idx)
        self.post_attention_layernorm = NORMS[config.norm_type](config)
        self.mlp = FEED_FORWARDS[config.activation](config)
        self.dropout = config.dropout

    def forward(self, hidden_states: Tensor, **kwargs: object) -> Tensor:
        """(B, T, D) -> (B, T, D); the keyword arguments are the attention's."""
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + self._drop(attended)
        return hidden_states + self._drop(self.mlp(self.post_attention_layernorm(hidden_states)))

    def _drop(self, hidden_states: Tensor) -> Tensor:
        return F.dropout(hidden_states, self.dropout, self.training) if self.dropout else hidden_states


class LabPreTrainedModel(PreTrainedModel):
    """What the backbone and the models with a head have in common."""

    config: LabConfig
    config_class = LabConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": Block, "attentions": Attention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Rotary):  # a model loaded on the meta device computes its frequencies here
            frequencies, module.scale = module.frequencies(self.config, module.inv_freq.device)
            module.inv_freq.copy_(frequencies)
        elif isinstance(module, Alibi):
            module.slopes.copy_(torch.tensor(alibi_slopes(self.config.n_heads)))


class LabModel(LabPreTrainedModel):
    """The backbone: token ids to hidden states."""

    def __init__(self, config: LabConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = POSITIONS[config.positional_encoding](config)
        self.layers = nn.ModuleList([Block(config, index) for index in range(config.n_layers)])
        self.norm = NORMS[config.norm_type](config)
        self.dropout = config.dropout  # of the embeddings
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: object,
    ) -> BaseModelOutputWithPast:
        """input_ids (B, T) or inputs_embeds (B, T, D) -> last_hidden_state (B, T, D).

        `attention_mask` is (B, S) with 0 for padding; `position_ids` (B, T) that restart mark packed
        documents, which needs `attention_mask` to be left out.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        given_cache = past_key_values
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        if position_ids is None:
            position_ids = (
                torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device).unsqueeze(0) + seen
            )
            if (
                torch.is_tensor(attention_mask)
                and attention_mask.dim() == 2
                and self.config.positional_encoding == "sinusoidal"
            ):
                position_ids = real_positions(attention_mask)[
                    :, -inputs_embeds.shape[1] :
                ]  # the others are relative

        mask: Any  # in the form that the kernel takes
        if isinstance(attention_mask, dict):
            mask = attention_mask[self.config.layer_types[0]]
        else:
            make = create_sliding_window_causal_mask if self.config.sliding_window else create_causal_mask
            # a cache made here is empty: without it transformers sees packed rows for what they are
            mask = make(self.config, inputs_embeds, attention_mask, given_cache, position_ids=position_ids)

        encoded = self.positions(
            inputs_embeds, position_ids, self._key_distance(inputs_embeds, past_key_values)
        )
        hidden_states = encoded.hidden_states
        if self.dropout:
            hidden_states = F.dropout(hidden_states, self.dropout, self.training)
        if encoded.position_bias is None and self.config._attn_implementation == "sdpa":
            mask = additive(mask, hidden_states)
        if encoded.position_bias is not None:
            if self.config._attn_implementation.startswith("flash"):
                raise ValueError("flash attention cannot add alibi's bias: use sdpa, flex_attention or eager")
            kwargs["position_bias"] = encoded.position_bias.expand(
                len(inputs_embeds), -1, -1, -1
            )  # flex looks a row's own up
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                rotation=encoded.rotation,
                position_ids=position_ids,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values if use_cache else None
        )

    def _key_distance(self, inputs_embeds: Tensor, cache: Cache | None) -> Tensor | None:
        """Returns how far back each key lies from each query, (T, keys); only alibi reads it."""
        if self.config.positional_encoding != "alibi":
            return None
        queries, offset, keys, key_offset = inputs_embeds.shape[1], 0, inputs_embeds.shape[1], 0
        if cache is not None:
            offset = cache.get_query_offset(0)
            keys, key_offset = cache.get_mask_sizes(queries, 0)
        device = inputs_embeds.device
        return (torch.arange(queries, device=device)[:, None] + offset) - (
            torch.arange(keys, device=device) + key_offset
        )


def real_positions(mask: Tensor) -> Tensor:
    """Returns the positions of tokens, (B, S), as if there were no padding before them;
    `mask` is 0 at padding.
    """
    return (mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Returns a boolean mask (B, 1, T, S) as what is added to the scores: 0 where a key is seen, minus
    infinity elsewhere.

    The kernel would do the same in every layer, and keep a copy of each for the backward pass.
    """
    if mask is None or mask.dtype != torch.bool:
        return mask
    device = like.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


class LabForCausalLM(LabPreTrainedModel, GenerationMixin):
    """The backbone with an output head over the vocabulary."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: LabConfig):
        super().__init__(config)
        self.model = LabModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool | None = None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        """Returns logits (B, T, V) and, with labels (B, T), the mean next-token cross-entropy in nats.

        Args:
            input_ids: token ids, (B, T).
            attention_mask: (B, S), 0 for padding; left out for packed rows.
            position_ids: (B, T); positions that restart mark packed documents.
            past_key_values: the KV cache of earlier calls.
            inputs_embeds: embeddings (B, T, D) in place of token ids.
            labels: token ids, (B, T), -100 where nothing is to be learned.
            use_cache: whether to return a KV cache.
            logits_to_keep: how many last positions to compute logits for; 0 for all.
            skip_logits: compute the loss without the logits, which are then None; left out, so in training.
            num_items_in_batch: what the summed loss is divided by instead of the number of labels of this
                batch.
            **kwargs: passed on to the backbone and the attention kernel.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        loss = logits = None
        if skip_logits is None:
            skip_logits = self.training and labels is not None
        if skip_logits and labels is not None:
            loss = linear_cross_entropy(hidden_states, self.lm_head.weight, labels, num_items_in_batch)
        else:
            logits = self.lm_head(slice_logits_to_keep(hidden_states, logits_to_keep))
            if labels is not None:
                loss = self.loss_function(
                    logits=logits,
                    labels=labels,
                    vocab_size=self.config.vocab_size,
                    num_items_in_batch=num_items_in_batch,
                )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class LabForSequenceClassification(GenericForSequenceClassification, LabPreTrainedModel):
    """The backbone with a head that scores the last token: what reward models are made of."""


AutoConfig.register("llmlab", LabConfig)
AutoModel.register(LabConfig, LabModel)
AutoModelForCausalLM.register(LabConfig, LabForCausalLM)
AutoModelForSequenceClassification.register(LabConfig, LabForSequenceClassification)
