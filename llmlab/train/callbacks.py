"""What every run does beside training: keep a record, seal checkpoints, keep the best weights, stop when asked."""

from __future__ import annotations

import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from llmlab.runs.folder import RunFolder
from llmlab.runs.seal import seal


class Record(TrainerCallback):
    """Appends every logged step to `metrics.jsonl`, held-out losses of text also as bits per byte."""

    def __init__(self, folder: RunFolder, bytes_per_token: float | None):
        self.folder = folder
        self.bytes_per_token = bytes_per_token

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Writes one line."""
        if not state.is_world_process_zero or not logs:
            return
        figures = {key: value for key, value in logs.items() if isinstance(value, (int, float))}
        if "eval_loss" in figures and self.bytes_per_token:
            figures["eval_bits_per_byte"] = bits_per_byte(figures["eval_loss"], self.bytes_per_token)
        self.folder.log({"step": state.global_step, **figures})


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Returns nats per token as bits per byte of text."""
    return loss / math.log(2) / bytes_per_token


class Seal(TrainerCallback):
    """Seals each checkpoint once it is whole."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the manifest, last of all files."""
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and checkpoint.is_dir():
            seal(checkpoint, step=state.global_step)


class KeepBest(TrainerCallback):
    """Keeps the weights with the lowest held-out loss in `best/`, replaced only by a whole new folder."""

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self.trainer: Trainer | None = None
        self.best = float("inf")

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Saves when the held-out loss is the lowest so far; the untrained model is never the best."""
        loss = (metrics or {}).get("eval_loss", float("nan"))
        if state.global_step == 0 or not loss < self.best:
            return
        self.best = loss
        save_model(self.trainer, self.folder.path / "best", step=state.global_step, eval_loss=loss)


def save_model(trainer: Trainer, target: Path, **facts: object) -> None:
    """Saves model and tokenizer as a plain Hugging Face folder: written aside, sealed, then renamed."""
    aside = target.with_name(f".{target.name}-{os.getpid()}")
    configuration = trainer.model.config
    cached, configuration.use_cache = configuration.use_cache, True  # off in training; whoever loads this will generate
    trainer.save_model(str(aside))  # every process takes part; the first one writes
    configuration.use_cache = cached
    if not trainer.is_world_process_zero():
        return
    for leftover in ("training_args.bin", "README.md"):  # a pickle, and a card that says nothing of this run
        (aside / leftover).unlink(missing_ok=True)
    shutil.rmtree(aside / "ref", ignore_errors=True)  # TRL's frozen copy of an adapter, which is not what was trained
    seal(aside, **facts)
    old = target.with_name(f".{target.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    aside.rename(target)
    shutil.rmtree(old, ignore_errors=True)


class StopOnSignal(TrainerCallback):
    """On SIGINT or SIGTERM finishes the step, saves, and stops; a second signal stops at once."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asks the trainer to save and to stop."""
        if self.received:
            control.should_save = control.should_training_stop = True
