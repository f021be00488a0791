"""Direct preference optimisation through TRL (Rafailov et al. 2023, eq. 7).

loss = -log sigmoid(beta * [(log pi(y+|x) - log ref(y+|x)) - (log pi(y-|x) - log ref(y-|x))])

`reference: sequential` computes log ref first, with the reference alone in memory, and keeps it by content;
    `live` asks the reference in every step. Both are the same trainer.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import trl
from datasets import Dataset
from peft import PeftModel

from llmlab.config import DPOConfig
from llmlab.data.prepare import dpo_data
from llmlab.data.tokenizer import ensure_chat_template, load_tokenizer
from llmlab.errors import LabError
from llmlab.models.adapters import set_dropout
from llmlab.models.load import load_model, stop_at_turn_ends
from llmlab.models.policy import load_policy, refuse_encoder_decoders
from llmlab.models.resolve import resolve_model
from llmlab.training import compat
from llmlab.training.engine.arguments import rows_per_step
from llmlab.training.engine.job import Job
from llmlab.training.engine.reporter import Reporter
from llmlab.training.held_out import pair_weights
from llmlab.training.order import LengthGrouped, SeededOrder
from llmlab.training.padding_free import answers_alone, make_padding_free, packing_leaks
from llmlab.training.reference.scorer import with_reference
from llmlab.training.trainers.base import LabTrainerMixin

TRAIN = "\0train"  # no validation source has this name


compat.check(compat.DPO)


class DPOTrainer(LabTrainerMixin, trl.DPOTrainer):
    """TRL's trainer on pairs that are tokenised already, so that what is counted as answer is decided in one
    place.

    Args:
        padding_free: whether the sequences of a batch share rows.
        order: of the training pairs.
        adapter_dropout: dropout of the adapter; of the model itself there is none.
        **kwargs: of TRL's trainer.
    """

    def __init__(
        self,
        *args: Any,
        order: SeededOrder | None = None,
        padding_free: bool = False,
        adapter_dropout: float = 0.0,
        **kwargs: Any,
    ):
        self._wanted = order
        super().__init__(*args, **kwargs)
        set_dropout(self.model, adapter_dropout)
        if self.ref_model is not None:
            set_dropout(self.ref_model, 0.0)
        if padding_free:
            make_padding_free(
                self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
            )
            if self.ref_model is not None:
                make_padding_free(self.ref_model)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def held_out_weights(self, inputs: Any) -> dict[str, float]:
        """Returns the pairs of a batch, and its tokens for what is a mean over tokens."""
        return pair_weights(inputs)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Returns the pairs as they are: their reference columns are there (`reference.with_reference`)."""
        return dataset

    def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        with answers_alone():
            return super()._compute_loss(*args, **kwargs)

    def _make_order(self, library: Any) -> Any:
        return self._wanted or super()._make_order(library)


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
        read = {TRAIN: order.first(config.max_steps * rows_per_step(config))}
        read |= {name: range(min(len(rows), config.eval_rows)) for name, rows in data.eval.items()}
        made, note = with_reference(together, read, config, tokenizer, device, precision, reporter)
        data.train, data.eval = made.pop(TRAIN), made
        data.notes.append(note)
    model, _ = load_policy(policy, config, device, precision)
    stop_at_turn_ends(model, tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    if config.padding_free and packing_leaks(
        model.to(device) if device != "cpu" and config.quantised == "none" else model
    ):
        raise LabError(
            f"`padding_free`: {type(model).__name__} lets answers in one row see each other with this"
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
            trl.DPOConfig,
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
