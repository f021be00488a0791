"""The end of a run on SIGINT, SIGTERM, SIGHUP or a key."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Stopped(Exception):
    """An end was asked for in the middle of an update, a validation or an answer."""


def _end_with_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class StopOnSignal(TrainerCallback):
    """Ends the run before the next forward pass on SIGINT, SIGTERM or SIGHUP; on SIGINT after that, at once.

    SIGTERM comes more than once where a job of a cluster ends (from Slurm to every process, from `srun`, from
    the launcher), and must not end the saving that the first one began.

    Of several processes all stop behind the same update. The DataLoader workers of a process, which get the
    signals of a job or of a process group as well, stay: a worker that ends is an error while the run saves.
    """

    def __init__(self) -> None:
        self.received = 0
        self._arrived = False  # in this process; a launcher's signal reaches each of them a moment apart
        self._entered = False
        self._before: dict[int, Any] = {}  # as `signal.signal` returns them

    def __enter__(self) -> StopOnSignal:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._receive)
        self._entered = True
        os.register_at_fork(after_in_child=self._leave_term_to_parent)
        return self

    def __exit__(self, *_: object) -> None:
        self._entered = False
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._arrived and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._arrived:
            self._arrived, self.received = True, number

    def _leave_term_to_parent(self) -> None:
        """In a child: ends on SIGTERM only where the parent sends it."""
        # macOS has no sigwaitinfo, and does not fork workers
        if not self._entered or not hasattr(signal, "sigwaitinfo"):
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, daemon=True).start()

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
