"""The dual head: a language-model head, a reward head and a gate learn on a frozen backbone.

    L = L_LM + lambda_r L_pref - lambda_g H

L_LM is the mean cross-entropy of the fused logits over the chosen answers' tokens, L_pref = -log
sigmoid(beta_r [log pi_r(y+) - log pi_r(y-)]) the mean over pairs with pi_r = softmax(z_RM), and H the mean
entropy of the gate's alpha over those tokens: it is taken off the loss, so that it holds the gate away from 0
and 1. Means are over the whole update, however it is cut up.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel, TrainingArguments

from llmlab.config import DualHeadConfig
from llmlab.data.dual_head import DualHeadCollator
from llmlab.data.pairs import dual_head_data
from llmlab.data.tokenizer import ensure_chat_template
from llmlab.errors import LabError
from llmlab.models import LabDualHeadConfig, LabDualHeadForCausalLM
from llmlab.models.adapters import without_adapter
from llmlab.models.load import load_model, stop_at_turn_ends
from llmlab.models.policy import loading_kwargs
from llmlab.models.resolve import resolve_model
from llmlab.models.typed import moved
from llmlab.training.engine.job import Job
from llmlab.training.engine.reporter import Reporter
from llmlab.training.trainers.dual_head import DualHeadTrainer


def prepare(config: DualHeadConfig, device: str, precision: str, reporter: Reporter) -> Job:
    """Returns the job of a dual-head run.

    Raises:
        LabError: when backbone or data do not load, or the backbone cannot carry two heads.
    """
    start = resolve_model(config.backbone)
    loaded, tokenizer = load_model(start, **loading_kwargs(config, device, precision))
    model = without_adapter(loaded)
    if isinstance(model, LabDualHeadForCausalLM) or model.config.is_encoder_decoder:
        kind = "an encoder-decoder" if model.config.is_encoder_decoder else "a dual-head model itself"
        raise LabError(
            f"is {kind} and cannot be a backbone",
            where=config.backbone,
            remedy="use a decoder (GPT, Llama, Qwen ...)",
        )
    ensure_chat_template(tokenizer, config.chat_template)
    stop_at_turn_ends(model, tokenizer)
    data = dual_head_data(config, tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    if config.quantised == "none":
        moved(model, device)
    refuse_other_logits(model, config.backbone)
    dual_config = LabDualHeadConfig(
        model.config.get_text_config(),
        backbone=str(start.path),
        **{
            name: getattr(config, name)
            for name in (
                "gating_num_heads",
                "gating_size",
                "gating_layer_norm",
                "gating_dropout",
                "rm_bias",
                "rm_dropout",
            )
        },
    )
    torch.manual_seed(config.seed)  # of the gate
    dual = LabDualHeadForCausalLM(dual_config, model).float_heads()
    share = config.objective != "sft" and config.share_prompts and shares_prompts(model, config.max_length)
    return Job(
        model=dual,
        tokenizer=tokenizer,
        data=data,
        arguments=partial(TrainingArguments, label_names=["labels"]),
        trainer=partial(
            DualHeadTrainer,
            lambda_r=0.0 if config.objective == "sft" else config.lambda_r,
            lambda_g=config.lambda_g,
            beta_r=config.beta_r,
            data_collator=DualHeadCollator(tokenizer.pad_token_id or 0, share=share),
        ),
        parent=start.where,
    )


@torch.no_grad()
def refuse_other_logits(model: PreTrainedModel, name: str) -> None:
    """Refuses a backbone whose logits are not its head times its hidden states (scaled or capped ones): tried
    on itself.

    Raises:
        LabError: when they are not.
    """
    ids = torch.arange(1, 9, device=model.device)[None] % model.config.get_text_config().vocab_size
    wanted = model(input_ids=ids, use_cache=False).logits
    head = model.get_output_embeddings()
    logits = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    if not torch.allclose(wanted.float(), logits.float(), atol=1e-3, rtol=1e-3):
        raise LabError(
            f"{type(model).__name__} scales or caps its logits, which two fused heads cannot follow",
            where=name,
            remedy="take a backbone with a plain head (Llama, Qwen, Mistral, GPT-2 ...)",
        )


@torch.no_grad()
def shares_prompts(model: PreTrainedModel, longest: int) -> bool:
    """Returns whether a prompt read once gives both answers the hidden states that they have alone: tried on
    the model itself.

    Sliding windows shorter than a row reach around the mask by which the answers are held apart.
    """
    text_config = model.config.get_text_config()
    window = getattr(text_config, "sliding_window", None)
    if (window and window < 2 * longest) or str(model.config._attn_implementation).startswith(
        ("flash", "flex")
    ):
        return False
    ids = [[(number * 7 + shift) % text_config.vocab_size for number in range(9)] for shift in (1, 2, 3)]
    row = {"prompt_ids": ids[0], "chosen_ids": ids[1], "chosen_labels": ids[1], "rejected_ids": ids[2][:5]}
    states: list[Tensor] = []
    for share in (True, False):
        batch = {
            name: value.to(model.device) for name, value in DualHeadCollator(0, share=share)([row]).items()
        }
        if share and "attention_mask" not in batch:
            return False
        mask, embedding = batch.get("attention_mask"), model.get_input_embeddings().weight
        assert isinstance(embedding, Tensor)
        mask = None if mask is None else mask.to(embedding.dtype)
        try:
            out = model.base_model(
                input_ids=batch["input_ids"],
                attention_mask=mask,
                position_ids=batch.get("position_ids"),
                use_cache=False,
            )
        except (RuntimeError, ValueError, TypeError, IndexError):  # it takes no mask of this form
            return False
        flat = out.last_hidden_state.flatten(0, 1).float()
        states.append(torch.cat([flat[batch["chosen_at"]], flat[batch["rejected_at"]]]))
    shared, alone = states
    return torch.allclose(shared, alone, atol=2e-2 * alone.abs().max().item(), rtol=1e-2)
