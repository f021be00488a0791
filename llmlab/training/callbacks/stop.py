"""The end of a run on SIGINT, SIGTERM, SIGHUP or a key."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Stopped(Exception):
    """An end was asked for in the middle of an update, a validation or an answer."""


class StopOnSignal(TrainerCallback):
    """On SIGINT, SIGTERM or SIGHUP ends the run before the next forward pass; a second signal ends it at
    once.

    Of several processes all stop behind the same update.
    """

    def __init__(self) -> None:
        self.received = 0
        self._arrived = False  # in this process; a launcher's signal reaches each of them a moment apart
        self._before: dict[int, Any] = {}  # as `signal.signal` returns them

    def __enter__(self) -> StopOnSignal:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._arrived:
            raise KeyboardInterrupt
        self._arrived, self.received = True, number

    def heard(self) -> bool:
        """Returns whether an end was asked for."""
        return bool(self.received)

    def watch(self, model: torch.nn.Module) -> None:
        """Looks for a signal before every forward pass of a model: micro-steps, validations,
        tokens of an answer.
        """
        model.register_forward_pre_hook(self._look)

    def _look(self, module: torch.nn.Module, inputs: object) -> None:
        if self.received:
            raise Stopped

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Asks the trainer to save and to stop; of several processes all stop when one was asked to."""
        if args.world_size > 1:
            signals = torch.tensor([self.received], device=args.device)
            torch.distributed.all_reduce(signals, torch.distributed.ReduceOp.MAX)
            self.received = int(signals.item())
        if self.received:
            control.should_save = control.should_training_stop = True
