"""Updates that are not finite are skipped and counted, then the run stops; jumps of the loss are reported."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmlab.errors import LabError
from llmlab.runs.folder import RunFolder
from llmlab.training.engine.distributed import all_processes_agree

RECENT = 50  # logged losses that a spike is measured against
SPIKE = 6.0  # standard deviations above their mean
SHOWN_ROWS, SHOWN_CHARACTERS = 3, 80
FP16_SKIPS = 20  # a loss scale that begins at 65,536 may have to be halved so often


class NonFiniteGuard(TrainerCallback):
    """Counts skipped updates and stops the run after too many in a row; reports losses far above the recent
    ones.

    Args:
        folder: of the run, whose metrics get a line for every skipped update.
        warn: takes a line for the person.
        limit: skipped updates in a row that are borne.
    """

    def __init__(self, folder: RunFolder, warn: Callable[[str], None], limit: int):
        self.folder = folder
        self.warn = warn
        self.limit = limit
        self.in_a_row = 0
        self._losses: deque[float] = deque(maxlen=RECENT)

    def note(
        self, step: int, bad: bool, norm: torch.Tensor | float, rows: tuple[str, ...], *, fp16: bool = False
    ) -> None:
        """Takes in one update.

        Raises:
            LabError: when more than `limit` in a row were skipped.
        """
        if not bad:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        what = "the loss is not finite" if rows else f"the gradients are not finite (norm {float(norm)})"
        self.folder.log({"step": step, "skipped": what, "rows": list(rows)})
        shown = "".join(f"\n  {row[:SHOWN_CHARACTERS]}" for row in rows[:SHOWN_ROWS])
        self.warn(f"step {step} skipped: {what}{shown}")
        if self.in_a_row <= (max(self.limit, FP16_SKIPS) if fp16 else self.limit):
            return
        raise LabError(
            f"{what} at step {step}, and {self.in_a_row} updates in a row were skipped{shown}",
            where=str(self.folder.path),
            exit_code=1,
            remedy=self._remedy(),
        )

    def _remedy(self) -> str:
        checkpoint, _ = self.folder.latest_valid_checkpoint()
        back = (
            f"`llmlab run {self.folder.path}` resumes from {checkpoint.name}"
            if checkpoint
            else "no checkpoint was saved yet"
        )
        return f"lower `learning_rate` or look at these rows; {back}"

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, object] | None = None,
        **kwargs: object,
    ) -> None:
        """Compares a loss with the recent ones."""
        loss = (logs or {}).get("loss")
        if not isinstance(loss, (int, float)) or not math.isfinite(loss):
            return
        if len(self._losses) >= RECENT // 2:
            mean, spread = statistics.fmean(self._losses), statistics.stdev(self._losses)
            if loss > mean + SPIKE * spread and loss > 1.2 * mean:
                self.warn(
                    f"step {state.global_step}: the loss jumped to {loss:.3g} from {mean:.3g} (the mean of"
                    f" the last {len(self._losses)} logged)"
                )
        self._losses.append(loss)

    def check_weights(self, weights: Iterable[torch.Tensor], checkpoint: str) -> None:
        """Looks at the weights before a checkpoint counts, in all processes at once: each may hold a part of
        its own.

        Raises:
            LabError: in every process, when those of any are not finite; no resume will take them.
        """
        sound = all(bool(torch.isfinite(one).all()) for one in weights)
        if all_processes_agree(sound):
            return
        raise LabError(
            f"the weights are not finite; {checkpoint} was not saved",
            where=str(self.folder.path),
            exit_code=1,
            remedy=self._remedy(),
        )


@torch.no_grad()
def suspects(trainer: Any, model: Any, inputs: Any, *, divided: bool = False) -> tuple[str, ...]:
    """Returns the texts of the rows of a micro-batch whose loss is not finite: alone,
    where rows can be computed alone.

    Args:
        trainer: of the model.
        model: as the trainer calls it.
        inputs: the micro-batch.
        divided: whether the processes have to compute together, so that none can compute a row by itself.
    """
    tokenizer = trainer.processing_class
    if isinstance(inputs, list):
        return tuple(str(row.get("prompt", row)) for row in inputs)
    rows = inputs.get("input_ids")
    if not torch.is_tensor(rows):
        return ("(rows without text)",)
    alone: Sequence[int] = range(len(rows))
    tensors = {name: value for name, value in inputs.items() if torch.is_tensor(value) and value.dim() == 2}
    if (
        not divided
        and len(rows) > 1
        and "labels" in tensors
        and all(len(value) == len(rows) for value in tensors.values())
    ):
        parts = [{name: value[i : i + 1] for name, value in tensors.items()} for i in alone]
        losses = [
            model(**{name: value.to(model.device) for name, value in part.items()}).loss for part in parts
        ]
        alone = [i for i, loss in enumerate(losses) if not torch.isfinite(loss)] or alone
    return tuple(
        tokenizer.decode(rows[i][rows[i] != tokenizer.pad_token_id]).replace("\n", " ") for i in alone
    )
