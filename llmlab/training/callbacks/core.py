"""What every run does beside training: keep a record, seal checkpoints, keep the best weights,
stop when asked.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from llmlab.data.stream import PackedStream
from llmlab.models.identity import base_of, note_base
from llmlab.runs.disk import patiently
from llmlab.runs.folder import RunFolder, read_json
from llmlab.runs.manifest import MANIFEST, seal
from llmlab.training.engine.snapshot import Stopped


class Record(TrainerCallback):
    """Appends every logged step to `metrics.jsonl`, held-out losses of text also as bits per byte."""

    def __init__(
        self,
        folder: RunFolder,
        bytes_per_token: dict[str, float],
        say: Callable[[str], None],
        stopped: Callable[[], bool],
        *,
        endless: bool = False,
    ):
        self.folder = folder
        self.endless = endless
        self.say, self.stopped = say, stopped
        self.bytes_per_token = bytes_per_token
        self._bits: dict[str, float] = {}

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Writes one line."""
        if not state.is_world_process_zero or not logs:
            return
        figures = {
            key: value
            for key, value in logs.items()
            if isinstance(value, (int, float)) and math.isfinite(value)
        }
        self._add_bits(figures)
        if self.endless:  # a stream has no epochs, and the library would count them from where it was resumed
            figures.pop("epoch", None)
        line = {"step": state.global_step, **figures}
        patiently(lambda: self.folder.log(line), self.folder.path, 0, self.say, self.stopped)

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


class DataPosition:
    """Keeps the place in a stream with every checkpoint; stored rows need none,
    their order follows from seed and step.
    """

    FILE = "data_position.json"

    def __init__(self, rows: Any, rows_per_step: int):
        self.stream = rows if isinstance(rows, PackedStream) else None
        self.rows_per_step = rows_per_step

    def restore(self, checkpoint: Path | None, workers: int) -> bool:
        """Sets the stream to the place of a checkpoint; returns whether it did, else the rows have to be read
        again.

        With loader processes the stream lives in them, where its place cannot be taken: then it is read
        again.
        """
        if self.stream is None or workers:
            return False
        self.stream.snapshot_every = self.rows_per_step
        place = read_json(checkpoint / self.FILE) if checkpoint else {}
        if place.get("rows_per_step") != self.rows_per_step:  # another batch size or number of processes
            return False
        self.stream.start = place["stream"]
        return True

    def write(self, checkpoint: Path, step: int) -> None:
        """Writes into a checkpoint the place of the first row that is not trained on yet
        (the loader has read further).
        """
        if self.stream is None:
            return
        trained = step * self.rows_per_step
        known = [place for place in self.stream.snapshots if place["rows"] <= trained]
        if not known:
            return
        place = known[-1]
        place = {**place, "rows": trained, "inside": place["inside"] + trained - place["rows"]}
        (checkpoint / self.FILE).write_text(
            json.dumps({"rows_per_step": self.rows_per_step, "stream": place})
        )


class KeepBest(TrainerCallback):
    """Keeps the weights with the best held-out figure in `best/`, replaced only by a whole new folder."""

    def __init__(self, folder: RunFolder, figure: str = "eval_loss"):
        self.folder = folder
        self.figure = figure
        self.sign = -1.0 if figure.endswith("loss") else 1.0  # of a loss the lowest is the best
        self.trainer: Trainer | None = None
        self.best = float("-inf")

    def remember(self) -> None:
        """Takes the figure of the weights that are in `best/`."""
        value = read_json(self.folder.path / "best" / MANIFEST).get(self.figure)
        self.best = self.sign * value if isinstance(value, (int, float)) else float("-inf")

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Saves when the held-out figure is the best so far; the untrained model is never the best."""
        value = (metrics or {}).get(self.figure, float("nan"))
        if state.global_step == 0 or not self.sign * value > self.best:
            return
        self.best = self.sign * value
        save_model(self.trainer, self.folder.path / "best", step=state.global_step, **{self.figure: value})


def save_model(trainer: Trainer, target: Path, **facts: object) -> None:
    """Saves model and tokenizer as a plain Hugging Face folder: written aside, sealed, then renamed;
    waits for room.
    """
    needed = sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
    patiently(
        lambda: _save_model(trainer, target, **facts), target.parent, needed, trainer.say, trainer.stopped
    )


def _save_model(trainer: Trainer, target: Path, **facts: object) -> None:
    aside = target.with_name(f".{target.name}-{os.getpid()}")
    configuration = trainer.model.config
    cached, configuration.use_cache = (
        configuration.use_cache,
        True,
    )  # off in training; whoever loads this will generate
    try:
        trainer.save_model(str(aside))  # every process takes part; the first one writes
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    finally:
        configuration.use_cache = cached
    if not trainer.is_world_process_zero():
        return
    for leftover in ("training_args.bin", "README.md"):  # a pickle, and a card that says nothing of this run
        (aside / leftover).unlink(missing_ok=True)
    shutil.rmtree(
        aside / "ref", ignore_errors=True
    )  # TRL's frozen copy of an adapter, which is not what was trained
    if base := base_of(aside):
        note_base(aside, base)
    seal(aside, **facts)
    old = target.with_name(f".{target.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    aside.rename(target)
    shutil.rmtree(old, ignore_errors=True)


class StopOnSignal(TrainerCallback):
    """On SIGINT, SIGTERM or SIGHUP ends the run before the next forward pass; a second signal ends it at
    once.

    Of several processes all stop behind the same update.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number

    def heard(self) -> bool:
        """Returns whether an end was asked for."""
        return bool(self.received)

    def watch(self, model: Any) -> None:
        """Looks for a signal before every forward pass of a model: micro-steps, validations,
        tokens of an answer.
        """
        model.register_forward_pre_hook(self._look)

    def _look(self, module: Any, inputs: Any) -> None:
        if self.received:
            raise Stopped

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asks the trainer to save and to stop; of several processes all stop when one was asked to."""
        if args.world_size > 1:
            import torch

            heard = torch.tensor([self.received], device=args.device)
            torch.distributed.all_reduce(heard, torch.distributed.ReduceOp.MAX)
            self.received = int(heard.item())
        if self.received:
            control.should_save = control.should_training_stop = True
