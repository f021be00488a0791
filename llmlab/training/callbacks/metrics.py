"""Every logged step as a line of `metrics.jsonl`."""

from __future__ import annotations

import math

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from llmlab.runs.disk import FullDisk
from llmlab.runs.folder import RunFolder


class MetricsWriter(TrainerCallback):
    """Appends every logged step to `metrics.jsonl`, held-out losses of text also as bits per byte.

    Args:
        folder: of the run.
        bytes_per_token: of each validation source of plain text, by name.
        disk: waits for room on a full one.
        endless: whether the rows are a stream, which has no epochs.
    """

    def __init__(
        self, folder: RunFolder, bytes_per_token: dict[str, float], disk: FullDisk, *, endless: bool = False
    ):
        self.folder = folder
        self.bytes_per_token = bytes_per_token
        self.disk = disk
        self.endless = endless
        self._bits: dict[str, float] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, object] | None = None,
        **kwargs: object,
    ) -> None:
        """Writes one line."""
        if not state.is_world_process_zero or not logs:
            return
        if "train_loss" in logs and state.global_step < state.max_steps:
            return  # the summary of a run that was stopped: it is not the run's
        figures = {
            key: value
            for key, value in logs.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
        self._add_bits(figures)
        if self.endless:  # transformers would count a stream's epochs from where it was resumed
            figures.pop("epoch", None)
        line = {"step": state.global_step, **figures}
        self.disk.retry(lambda: self.folder.log(line), self.folder.path)

    def _add_bits(self, figures: dict[str, float]) -> None:
        alone = len(self.bytes_per_token) == 1
        for name, per_token in self.bytes_per_token.items():
            loss = figures.get("eval_loss" if alone else f"eval_{name}_loss")
            if loss is not None:
                self._bits[name] = bits_per_byte(loss, per_token)
                if not alone:
                    figures[f"eval_{name}_bits_per_byte"] = self._bits[name]
        if "eval_loss" in figures and self._bits:
            figures["eval_bits_per_byte"] = sum(self._bits.values()) / len(self._bits)


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Returns nats per token as bits per byte of text."""
    return loss / math.log(2) / bytes_per_token
