"""Trainers of supervised fine-tuning: TRL's for decoders, transformers' for encoder-decoders."""

from __future__ import annotations

from typing import Any

import datasets
import transformers
from torch.utils.data import IterableDataset
from trl.trainer import sft_trainer as trl_trainer

from llmlab.training.held_out import EACH, learned_tokens
from llmlab.training.trainers.base import LabTrainerMixin


# transformers' could also generate in a validation, for which its methods have more arguments
class Seq2SeqTrainer(LabTrainerMixin, transformers.Seq2SeqTrainer):  # type: ignore[misc]
    """transformers' trainer of encoder-decoders: the prompt is read by the encoder,
    the answer is learned by the decoder.
    """

    def held_out_weights(self, inputs: Any) -> dict[str, float]:
        """Returns the tokens of the answers, of which the first is predicted too."""
        return {EACH: learned_tokens(inputs["labels"], shifted=False)}


class SFTTrainer(LabTrainerMixin, trl_trainer.SFTTrainer):
    """TRL's trainer on rows that are tokenised, masked and packed already.

    TRL takes no stream but one of datasets: it is made with a row in its place, and reads none of it.
    """

    def __init__(self, *args: Any, train_dataset: Any, **kwargs: Any):
        stream = isinstance(train_dataset, IterableDataset)
        row = {"input_ids": [[0]], "labels": [[0]]}
        stored = datasets.Dataset.from_dict(row) if stream else train_dataset
        super().__init__(*args, train_dataset=stored, **kwargs)
        self.train_dataset = train_dataset
