"""Direct preference optimisation through TRL (Rafailov et al. 2023, eq. 7).

loss = -log sigmoid(beta * [(log pi(y+|x) - log ref(y+|x)) - (log pi(y-|x) - log ref(y-|x))])

`reference: sequential` computes log ref first, with the reference alone in memory, and keeps it by content; `live` asks the
reference in every step. Both are the same trainer.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import trl
import trl.trainer.utils as trl_utils
from peft import PeftModel
from transformers.trainer_pt_utils import get_length_grouped_indices

from llmlab.config import DPOConfig
from llmlab.data.prepare import dpo_data
from llmlab.data.tokenizer import ensure_chat_template, load_tokenizer
from llmlab.errors import LabError
from llmlab.runs.folder import find_model
from llmlab.screen import screen
from llmlab.train.adapters import set_dropout
from llmlab.train.engine import Job
from llmlab.train.held_out import pair_weights
from llmlab.train.loading import load_model, load_policy, refuse_encoder_decoders, stop_at_turn_ends
from llmlab.train.padding_free import make_padding_free
from llmlab.train.reference import speaks, with_reference
from llmlab.train.sft import packing_leaks
from llmlab.train.trainer import LabTrainerMixin

TRAIN = "\0train"  # no validation source has this name
# score the answers' tokens alone; TRL does so only where it has Triton, and elsewhere scores prompts and padding too
trl_utils._use_triton = lambda device: True


class LengthGrouped(torch.utils.data.Sampler[int]):
    """Pairs of similar length together; the order of an epoch follows from the seed and its number alone.

    The library's sampler draws from the global generator, so that a resumed run sees another order.
    """

    def __init__(self, lengths: list[int], batch: int, seed: int):
        self.lengths, self.batch, self.seed = lengths, batch, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        """Yields the indices of the next epoch."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        self.epoch += 1
        return iter(get_length_grouped_indices(self.lengths, self.batch, generator=generator))


class DPOTrainer(LabTrainerMixin, trl.DPOTrainer):
    """TRL's trainer on pairs that are tokenised already, so that what is counted as answer is decided in one place.

    Args:
        padding_free: whether the sequences of a batch share rows.
        lengths: tokens of each training pair, to group by; None for a random order.
        adapter_dropout: dropout of the adapter; of the model itself there is none.
        **kwargs: of TRL's trainer.
    """

    def __init__(
        self, *args: Any, padding_free: bool = False, lengths: list[int] | None = None, adapter_dropout: float = 0.0,
        **kwargs: Any,
    ):  # fmt: skip
        self._lengths = lengths
        self.length_sampler: LengthGrouped | None = None
        super().__init__(*args, **kwargs)
        set_dropout(self.model, adapter_dropout)
        if self.ref_model is not None:
            set_dropout(self.ref_model, 0.0)
        if padding_free:
            make_padding_free(self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model)
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

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self._lengths is None:
            return super()._get_train_sampler(train_dataset)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        self.length_sampler = LengthGrouped(self._lengths, batch, self.args.data_seed or self.args.seed)
        return self.length_sampler

    def _load_callback_state(self) -> None:
        """Also sets the order of pairs to the epoch that a resumed run is in."""
        super()._load_callback_state()
        if self.length_sampler is not None:
            self.length_sampler.epoch = int((self.state.epoch or 0) + 1e-9)


def prepare(config: DPOConfig, device: str, precision: str) -> Job:
    """Returns the job of a preference run; with a sequential reference its phase is over then, and its model freed.

    Raises:
        LabError: when policy, reference or data do not load.
    """
    refuse_encoder_decoders(config)
    tokenizer = load_tokenizer(find_model(config.policy_checkpoint))
    ensure_chat_template(tokenizer)
    data = dpo_data(config, tokenizer)
    sequential = config.reference == "sequential"
    if sequential:
        together = {TRAIN: data.train, **data.eval}
        made, note = with_reference(together, config, tokenizer, device, precision, speaks(screen()))
        data.train, data.eval = made.pop(TRAIN), made
        data.notes.append(note)
    model, _ = load_policy(config, device, precision)
    stop_at_turn_ends(model, tokenizer)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    if config.padding_free and packing_leaks(model.to(device) if device != "cpu" and config.quantised == "none" else model):
        raise LabError(
            f"`padding_free`: {type(model).__name__} lets answers in one row see each other with this attention backend",
            remedy="set it to false",
        )
    reference = None  # none: the policy itself, before its first step or without its adapter
    if not sequential and config.reference_checkpoint:
        reference = load_model(config.reference_checkpoint, dtype=model.dtype)[0]
    elif not sequential and not isinstance(model, PeftModel):
        reference = copy.deepcopy(model)
    lengths = None
    if config.group_by_length:
        sizes = zip(*(data.train[f"{part}_ids"] for part in ("prompt", "chosen", "rejected")), strict=True)
        lengths = [len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in sizes]
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
            DPOTrainer, ref_model=reference, padding_free=config.padding_free, lengths=lengths,
            adapter_dropout=config.adapter_dropout,
        ),
        parent=find_model(config.policy_checkpoint),
    )  # fmt: skip
