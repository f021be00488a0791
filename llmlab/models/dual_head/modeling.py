"""A language-model head and a reward head on one frozen backbone, fused token by token by a gate.

h_t is the backbone's last hidden state.

    z_LM = W_LM h_t        z_RM = W_RM h_t + b        alpha_t = sigmoid(w_g . gelu(W_s MHA(LN h_t; LN h_1..t))
    + b_g) z_t = (1 - alpha_t) z_LM + alpha_t z_RM

Both heads begin as the backbone's own, so that an untrained model says what its backbone says, whatever the
gate.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.configuration_utils import GenerationConfig
from transformers.generation.utils import GenerationMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.generic import ModelOutput
from transformers.utils.hub import cached_file

from llmlab.errors import LabError
from llmlab.models.dual_head.config import LabDualHeadConfig
from llmlab.models.dual_head.gate import Gate
from llmlab.models.identity import check_base
from llmlab.models.slices import SLICES_ALIVE, slice_rows
from llmlab.models.typed import dtype_of

WEIGHTS = "model.safetensors"
BUNDLED = "backbone"  # the name of a backbone that lies in the heads' own folder or repository


@dataclass
class DualHeadOutput(CausalLMOutputWithPast):
    """What transformers' decoders return, and the gate.

    Attributes:
        alpha: how much of each next token's distribution is the reward head's, (B, T); None where the gate
            was not asked.
    """

    alpha: Tensor | None = None


@dataclass
class AnswerScores(ModelOutput):
    """What is learned from a batch of answers.

    Attributes:
        fused: log pi of each token of the chosen answers under the fused logits, (N,).
        alpha: of the gate before each of them, (N,).
        margin: log pi_r(y+) - log pi_r(y-) of each pair, sums over the answers' tokens under the reward head,
            (pairs,).
    """

    fused: Tensor | None = None
    alpha: Tensor | None = None
    margin: Tensor | None = None


class LabDualHeadForCausalLM(PreTrainedModel, GenerationMixin):
    """The frozen backbone, its two heads and the gate; `save_pretrained` leaves the backbone out and keeps
    its name.

    Args:
        config: of the heads and the gate.
        backbone: the loaded model, which is frozen here; None loads the one that the config names.

    Attributes:
        alignment: how strongly the gate acts where a call does not say: 0 not at all, 1 as learned.
        last_alpha: of the last position of the last call, (B,); for those who watch a generation.
    """

    config: LabDualHeadConfig
    config_class = LabDualHeadConfig
    base_model_prefix = "backbone"
    main_input_name = "input_ids"
    accepts_loss_kwargs = True
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _skip_keys_device_placement = ["past_key_values"]

    def __init__(self, config: LabDualHeadConfig, backbone: PreTrainedModel | None = None):
        backbone = backbone if backbone is not None else load_backbone(config.backbone)
        check_fits(config, backbone)
        super().__init__(config)
        own = backbone.get_output_embeddings()
        with torch.device(own.weight.device):
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=own.bias is not None)
            self.rm_head = nn.Linear(
                config.hidden_size, config.vocab_size, bias=config.rm_bias or own.bias is not None
            )
            self.gate = Gate(config)
        self.rm_dropout = nn.Dropout(config.rm_dropout)
        self.post_init()  # before the backbone is here, whose weights it would draw anew
        with torch.no_grad():
            for head in (self.lm_head, self.rm_head):
                head.weight.copy_(own.weight)
                if head.bias is not None:
                    head.bias.zero_() if own.bias is None else head.bias.copy_(own.bias)
        self.backbone = backbone.requires_grad_(False).eval()
        self.generation_config = GenerationConfig.from_dict(backbone.generation_config.to_dict())
        self.alignment = 1.0
        self.last_alpha: Tensor | None = None

    @contextlib.contextmanager
    def backbone_alone(self) -> Iterator[None]:
        """Within it the gate does not act: the logits are the backbone's, to the bit."""
        before, self.alignment = self.alignment, 0.0
        try:
            yield
        finally:
            self.alignment = before

    # What is saved and what is loaded

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the arguments of transformers' go to the backbone
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *args: Any,
        config: LabDualHeadConfig | None = None,
        backbone: PreTrainedModel | None = None,
        **kwargs: Any,
    ) -> LabDualHeadForCausalLM:
        """Returns heads and gate of a folder or hub id on their backbone.

        Args:
            pretrained_model_name_or_path: of the heads.
            *args: unused.
            config: of the heads; read where left out.
            backbone: loaded already; where left out the one that the config names is loaded with the other
                arguments.
            **kwargs: for the backbone's `from_pretrained` (dtype, device_map, quantization_config ...).

        Raises:
            LabError: when backbone and heads do not belong together.
        """
        where = str(pretrained_model_name_or_path)
        config = config or LabDualHeadConfig.from_pretrained(where)
        if backbone is None:
            bundled = config.backbone == BUNDLED
            if not bundled:
                check_base(Path(where), config.backbone, made="heads")
            passed_on = (
                "dtype",
                "torch_dtype",
                "device_map",
                "quantization_config",
                "attn_implementation",
                "trust_remote_code",
            )
            given = {name: kwargs[name] for name in passed_on if name in kwargs}
            if bundled:
                given |= {"subfolder": BUNDLED, "trust_remote_code": kwargs.get("trust_remote_code")}
            backbone = load_backbone(where if bundled else config.backbone, **given)
        model = cls(config, backbone)
        file = cached_file(where, WEIGHTS, local_files_only=bool(kwargs.get("local_files_only")))
        weights = load_file(str(file))
        lacking = set(model.state_dict()) ^ set(weights)
        wrong = [
            name
            for name, value in model.state_dict().items()
            if name in weights and weights[name].shape != value.shape
        ]
        if lacking or wrong:
            raise LabError(
                f"holds heads of another shape ({', '.join(sorted([*lacking, *wrong])[:3])})",
                where=where,
                remedy="use the config.json they were saved with",
            )
        model.load_state_dict(weights, strict=False)
        for part in (model.lm_head, model.rm_head, model.gate):
            part.to(dtype_of(backbone.get_input_embeddings()))
        with contextlib.suppress(OSError):  # else it is the backbone's
            model.generation_config = GenerationConfig.from_pretrained(where)
        model.eval()
        return model

    def state_dict(  # type: ignore[override]  # torch has two overloads of it
        self, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Returns the weights of heads and gate; those of the backbone are where they came from."""
        weights: dict[str, Any] = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        for name in [name for name in weights if name.startswith(f"{prefix}backbone.")]:
            del weights[name]
        return weights

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Loads heads and gate; nothing of them may be missing."""
        outcome = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = [name for name in outcome.missing_keys if not name.startswith("backbone.")]
        if strict and (missing or outcome.unexpected_keys):
            raise RuntimeError(f"missing {missing}, unexpected {outcome.unexpected_keys}")
        return outcome

    def float_heads(self) -> LabDualHeadForCausalLM:
        """Sets what learns to fp32, whatever the backbone is in."""
        for part in (self.lm_head, self.rm_head, self.gate):
            part.float()
        return self

    def train(self, mode: bool = True) -> LabDualHeadForCausalLM:
        """Sets heads and gate to training; the backbone never drops anything out."""
        super().train(mode)
        if hasattr(self, "backbone"):
            self.backbone.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """Returns the backbone's embedding."""
        return cast(nn.Module, self.backbone.get_input_embeddings())

    def get_output_embeddings(self) -> nn.Module:
        """Returns the language-model head."""
        head: nn.Module = self.lm_head
        return head

    # What it computes

    @torch.no_grad()
    def hidden(self, input_ids: Tensor | None = None, **kwargs: Any) -> Any:
        """Returns the backbone's output without its head: `last_hidden_state` (B, T,
        D) and `past_key_values`.
        """
        return self.backbone.base_model(input_ids=input_ids, **kwargs)

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
        alignment: float | None = None,
        head: Literal["fused", "reward"] = "fused",
        chosen_at: Tensor | None = None,
        **kwargs: Any,
    ) -> DualHeadOutput | AnswerScores:
        """Returns logits (B, T, V) and alpha (B, T).

        Args:
            input_ids: (B, T).
            attention_mask: (B, S), 0 for padding.
            position_ids: (B, T).
            past_key_values: of earlier tokens; the gate's are in its last layer.
            inputs_embeds: (B, T, D) in place of `input_ids`.
            labels: (B, T), -100 where nothing counts; for the loss of the fused logits.
            use_cache: whether keys and values are kept.
            logits_to_keep: the last so many positions, 0 for all.
            alignment: 0 gives the backbone's logits to the bit, 1 the learned fusion, more goes further;
                between 0 and 1 the way from one to the other.
            head: "fused", or "reward" for z_RM alone.
            chosen_at: of a `DualHeadCollator`'s batch, which is the rest of the arguments then: the scores of
                its answers are returned, without logits. Training comes through here, as wrappers of several
                processes need it.
            **kwargs: for the backbone.
        """
        if chosen_at is not None:
            assert input_ids is not None and labels is not None
            return self.score_answers(input_ids, labels, chosen_at, attention_mask, position_ids, **kwargs)
        alignment = self.alignment if alignment is None else alignment
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        gated = head == "fused" and alignment != 0
        mask = None
        if gated:  # before the backbone's turn: its layers tell how much came earlier
            inputs = input_ids if input_ids is not None else inputs_embeds
            assert inputs is not None
            like = torch.empty(*inputs.shape[:2], 0, dtype=self.lm_head.weight.dtype, device=inputs.device)
            mask = create_causal_mask(
                self.gate.config, like, attention_mask, past_key_values, position_ids=position_ids
            )
        out = self.hidden(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = out.last_hidden_state
        alpha = self.gate(hidden, mask, past_key_values) if gated else None
        self.last_alpha = None if alpha is None or self.training else alpha[:, -1].detach()
        positions = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = hidden[:, positions]
        if head == "reward":
            logits = self.reward_logits(hidden)
        else:
            logits = self.fused_logits(hidden, None if alpha is None else alpha[:, positions], alignment)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size)
        return DualHeadOutput(loss=loss, logits=logits, past_key_values=past_key_values, alpha=alpha)

    def score_answers(
        self,
        input_ids: Tensor,
        labels: Tensor,
        chosen_at: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        *,
        chosen_row: Tensor,
        rejected_ids: Tensor,
        rejected_at: Tensor,
        rejected_row: Tensor,
        paired: Tensor,
        **_: Any,
    ) -> AnswerScores:
        """Returns the scores of the answers of a batch (shapes: see `DualHeadCollator`)."""
        if attention_mask is not None:
            attention_mask = attention_mask.to(dtype_of(self.get_input_embeddings()))
        hidden = self.hidden(
            input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state  # (R, T, D)
        # what stands behind a chosen answer in its row comes later, so that the causal gate cannot see it
        alpha = self.gate(hidden[: len(paired)], None).flatten()[chosen_at]
        before = hidden.flatten(0, 1)[torch.cat([chosen_at, rejected_at])]
        fused, reward_log_probs = self.log_probs(before, torch.cat([labels, rejected_ids]), alpha)
        chosen, rejected = reward_log_probs.split([len(labels), len(rejected_ids)])
        sums = torch.zeros(len(paired), device=alpha.device)
        margin = sums.index_add(0, chosen_row, chosen).index_add(0, rejected_row, rejected, alpha=-1)
        return AnswerScores(fused=fused, alpha=alpha, margin=margin[paired])

    def reward_logits(self, hidden: Tensor) -> Tensor:
        """hidden (..., D) -> z_RM (..., V)."""
        z: Tensor = self.rm_head(self.rm_dropout(hidden.to(self.rm_head.weight.dtype)))
        return z

    def fused_logits(self, hidden: Tensor, alpha: Tensor | None, alignment: float = 1.0) -> Tensor:
        """hidden (..., D) and alpha (...) -> z (..., V).

        z = z_LM + a alpha (z_RM - z_LM) with a = `alignment`; below 1 the backbone's own head takes the place
        of z_LM by 1 - a, so that turning alignment down ends at the backbone.
        """
        if alpha is None or alignment == 0:
            own: Tensor = self.backbone.get_output_embeddings()(hidden)
            return own
        plain = self.lm_head(hidden.to(self.lm_head.weight.dtype))
        reward = self.reward_logits(hidden)
        if alignment < 1:
            plain = torch.lerp(
                self.backbone.get_output_embeddings()(hidden).to(plain.dtype), plain, alignment
            )
        return torch.lerp(plain, reward, (alignment * alpha).to(plain.dtype).unsqueeze(-1))

    def log_probs(self, hidden: Tensor, targets: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log-probabilities of tokens without holding their logits: a slice at a time, made anew in
        the backward pass.

        Args:
            hidden: (N, D).
            targets: token ids, (N,).
            alpha: of the first M of them, for which the fused distribution is asked for, (M,).

        Returns:
            log pi(target) of the fused logits, (M,), and log pi_r(target) of the reward head's, (N,), both
            fp32.
        """
        dropped = self.rm_dropout(hidden)  # once for all slices: a repeated slice must drop the same
        gpu = hidden.device.type != "cpu"
        size = slice_rows(self.config.vocab_size, gpu=gpu, alive=SLICES_ALIVE)
        fused, rewards = (
            [hidden.new_zeros(0, dtype=torch.float32)],
            [hidden.new_zeros(0, dtype=torch.float32)],
        )
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            inputs = (hidden[part], dropped[part], targets[part], alpha[part])
            if torch.is_grad_enabled():
                scores = checkpoint(self._slice, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                scores = self._slice(*inputs)
            fused.append(scores[0])
            rewards.append(scores[1])
        return torch.cat(fused), torch.cat(rewards)

    def _slice(
        self, hidden: Tensor, dropped: Tensor, targets: Tensor, alpha: Tensor
    ) -> tuple[Tensor, Tensor]:
        reward = self.rm_head(dropped.to(self.rm_head.weight.dtype)).float()
        reward_log_probs = -F.cross_entropy(reward, targets, reduction="none")
        count = len(alpha)
        if not count:
            return reward_log_probs[:0], reward_log_probs
        plain = self.lm_head(hidden[:count].to(self.lm_head.weight.dtype)).float()
        fused = torch.lerp(plain, reward[:count], alpha.unsqueeze(-1))
        return -F.cross_entropy(fused, targets[:count], reduction="none"), reward_log_probs


def load_backbone(name: str, **kwargs: Any) -> PreTrainedModel:
    """Returns the model of a folder, a GGUF file or a hub id by transformers alone."""
    path = Path(name)
    if path.suffix == ".gguf":
        model = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, **kwargs)
    else:
        model = AutoModelForCausalLM.from_pretrained(name, **kwargs)
    return cast(PreTrainedModel, model)


def check_fits(config: LabDualHeadConfig, backbone: PreTrainedModel) -> None:
    """Refuses a backbone that these heads do not belong to, or that has no head to begin from.

    Raises:
        LabError: with what differs.
    """
    text_config, own = backbone.config.get_text_config(), backbone.get_output_embeddings()
    if own is None:
        raise LabError(f"{type(backbone).__name__} has no head over a vocabulary", where=config.backbone)
    for name in ("hidden_size", "vocab_size"):
        if getattr(text_config, name) != getattr(config, name):
            raise LabError(
                f"heads with `{name}` {getattr(config, name)} do not fit a backbone with"
                f" {getattr(text_config, name)}",
                where=config.backbone,
                remedy="name the backbone that they were trained on",
            )
    if config.hidden_size % config.gating_num_heads:
        fitting = [n for n in range(1, config.hidden_size + 1) if config.hidden_size % n == 0]
        near = min(fitting, key=lambda n: abs(n - config.gating_num_heads))
        raise LabError(
            f"`gating_num_heads` {config.gating_num_heads} does not divide the backbone's width"
            f" {config.hidden_size}",
            remedy=f"use {near}",
        )


AutoConfig.register("llmlab_dual_head", LabDualHeadConfig)
AutoModelForCausalLM.register(LabDualHeadConfig, LabDualHeadForCausalLM)
