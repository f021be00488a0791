"""Direct preference optimisation through TRL (Rafailov et al. 2023, eq. 7).

loss = -log sigmoid(beta * [(log pi(y+|x) - log ref(y+|x)) - (log pi(y-|x) - log ref(y-|x))])

`reference: sequential` computes log ref first, with the reference alone in memory, and keeps it by content;
    `live` asks the reference in every step. Both are the same trainer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

from datasets import Dataset
from peft import PeftModel
from trl.trainer.dpo_config import DPOConfig as Arguments

from llmlab.config import DPOConfig
from llmlab.data.pairs import dpo_data
from llmlab.data.tokenizer import ensure_chat_template, load_tokenizer
from llmlab.errors import LabError
from llmlab.models.load import load_model, stop_at_turn_ends
from llmlab.models.policy import load_policy, refuse_encoder_decoders
from llmlab.models.resolve import resolve_model
from llmlab.models.typed import moved
from llmlab.training.engine.arguments import resolve_max_steps, rows_per_step
from llmlab.training.engine.job import Job
from llmlab.training.engine.reporter import Reporter
from llmlab.training.order import LengthGrouped, SeededOrder
from llmlab.training.padding_free import packing_leaks
from llmlab.training.reference.scorer import with_reference
from llmlab.training.trainers.dpo import DPOTrainer

TRAIN = "\0train"  # no validation source has this name


def order_of_pairs(pairs: Dataset, config: DPOConfig, rows_per_step: int) -> SeededOrder:
    """Returns the order in which a run reads its training pairs."""
    if not config.group_by_length:
        return SeededOrder(len(pairs), config.seed)
    sizes = zip(*(pairs[f"{part}_ids"] for part in ("prompt", "chosen", "rejected")), strict=True)
    lengths = [len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in sizes]
    return LengthGrouped(lengths, rows_per_step, config.seed)


def prepare(config: DPOConfig, device: str, precision: str, reporter: Reporter) -> Job:
    """Returns the job of a preference run; with a sequential reference its phase is over then, and its model
    freed.

    Raises:
        LabError: when policy, reference or data do not load.
    """
    policy = resolve_model(config.policy_checkpoint)
    refuse_encoder_decoders(policy, config.kind)
    tokenizer = load_tokenizer(policy.where)
    ensure_chat_template(tokenizer)
    data = dpo_data(config, tokenizer)
    order = order_of_pairs(data.train, config, rows_per_step(config))
    sequential = config.reference == "sequential"
    if sequential:
        together = {TRAIN: data.train, **data.eval}
        steps = resolve_max_steps(config, data.train).max_steps
        read: dict[str, Sequence[int]] = {TRAIN: order.first(steps * rows_per_step(config))}
        read |= {name: range(min(len(rows), config.eval_rows)) for name, rows in data.eval.items()}
        scored, note = with_reference(together, read, config, tokenizer, device, precision, reporter)
        data.train, data.eval = scored.pop(TRAIN), scored
        data.notes.append(note)
    model, _ = load_policy(policy, config, device, precision)
    stop_at_turn_ends(model, tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    if config.quantised == "none":
        moved(model, device)
    if config.padding_free and packing_leaks(model):
        raise LabError(
            f"`padding_free`: {type(model).__name__} lets answers in one row attend to each other with this"
            " attention backend",
            remedy="set it to false",
        )
    reference = None  # none: the policy itself, before its first step or without its adapter
    if not sequential and config.reference_checkpoint:
        reference = load_model(config.reference_checkpoint, dtype=model.dtype)[0]
    elif not sequential and not isinstance(model, PeftModel):
        reference = copy.deepcopy(model)
    return Job(
        model=model,
        tokenizer=tokenizer,
        data=data,
        arguments=partial(
            Arguments,
            beta=config.beta,
            loss_type=[config.loss_type],
            label_smoothing=0.0 if config.inapplicable("label_smoothing") else config.label_smoothing,
            max_length=config.max_length,
            precompute_ref_log_probs=sequential,
        ),
        trainer=partial(
            DPOTrainer,
            order=order,
            ref_model=reference,
            padding_free=config.padding_free,
            adapter_dropout=config.adapter_dropout,
        ),
        parent=policy.where,
    )
