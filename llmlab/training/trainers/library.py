"""The libraries' trainers as a base of our mixins: for the type checker a `Trainer`, at run time nothing.

A mixin stands before a trainer of transformers or TRL in the list of bases, so that `super()` is theirs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import PreTrainedTokenizerBase, Trainer

    from llmlab.models.typed import LanguageModel

    class LibraryTrainer(Trainer):
        """A trainer with a model and a tokenizer; they are optional in transformers' annotations."""

        model: LanguageModel
        processing_class: PreTrainedTokenizerBase
        optimizer: Optimizer
        lr_scheduler: LambdaLR
        deepspeed: Any  # DeepSpeed's engine; None without it

else:
    LibraryTrainer = object
