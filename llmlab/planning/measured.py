"""What a few real steps of a run take, in a process and a folder of their own. No torch here."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmlab.config import save_config
from llmlab.config.loader import apply_changes
from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError
from llmlab.files import read_object
from llmlab.planning.speed import measured_update, pace_of
from llmlab.planning.work import updates_of_a_round

STEPS = 3, 9  # that are measured, at least and at most; the first one, which warms up, does not count
ENOUGH = 6.0  # seconds of updates, by which hiccups of a machine are small
LOOK_EVERY = 0.25  # seconds


@dataclass(frozen=True)
class Measured:
    """What a few steps took.

    Attributes:
        seconds: of one update.
        peak: bytes at most: on a GPU what torch had allocated there, else what the process had resident.
    """

    seconds: float
    peak: int


@dataclass(frozen=True)
class Measuring:
    """How far a measurement is.

    Attributes:
        done: updates.
        steps: all of them.
        seconds: since it began.
        left: seconds until it ends, about; None before the first update.
    """

    done: int
    steps: int
    seconds: float
    left: float | None


def steps_to_measure(config: TrainingConfig) -> int:
    """Returns how many updates are measured: three to nine, and of methods that generate, two whole rounds
    to four; the more, the shorter they are.
    """
    round_, pace = updates_of_a_round(config), pace_of(config)
    few, many = STEPS if round_ == 1 else (2 * round_, 4 * round_)
    wanted = few if pace is None else round_ * (1 + math.ceil(ENOUGH / (round_ * pace.update)))
    return max(STEPS[0], few, min(many, wanted))


def measure(config: TrainingConfig, tell: Callable[[Measuring], None] = lambda at: None) -> Measured:
    """Returns what a few real steps take; nothing of them is left afterwards but their time, for plans.

    Args:
        config: of the run.
        tell: is called several times a second.

    Raises:
        LabError: when they fail, with the reason.
    """
    steps = steps_to_measure(config)
    with tempfile.TemporaryDirectory() as folder:
        few: dict[str, Any] = {
            "max_steps": steps,
            "epochs": None,
            "patience": None,
            "metric_for_best": None,
            "evaluation_suite": None,
            "warmup_steps": 0,
            "warmup_ratio": None,
            "log_every": 1,
            "save_every": 10**9,
            "eval_fraction": 0.0,
            "eval_datasets": [],
            "report_to": [],
            "save_best_only": False,
            "output_dir": f"{folder}/run",
        }
        path = save_config(apply_changes(config, few), Path(folder) / "few.json")
        progress = _Progress(Path(folder) / "run" / "metrics.jsonl", steps, tell)
        peak = _run(path, Path(folder) / "log", progress)
        peak = peak_on_device(Path(folder) / "run" / "run.json") or peak
        text = (Path(folder) / "run" / "metrics.jsonl").read_text()
    clock = _clock(text)
    updates = [later - earlier for earlier, later in zip([0.0, *clock], clock, strict=False)]
    seconds = measured_update(config, updates)
    if seconds is None:
        raise LabError("the measured steps left no times", exit_code=1)
    return Measured(seconds, peak)


def peak_on_device(record: Path) -> int:
    """Returns the bytes that a run had allocated on its GPU at most, as its record says; 0 where it had
    none, whose memory is that of the process.
    """
    with suppress(OSError, ValueError):
        memory = (read_object(record).get("summary") or {}).get("memory") or {}
        if memory.get("place") == "GPU":
            return int(memory.get("measured") or 0)
    return 0


def _clock(text: str) -> list[float]:
    """Returns the seconds after which each update of a run was logged."""
    lines = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    return [line["train_runtime"] for line in lines if "train_runtime" in line and "loss" in line]


@dataclass
class _Progress:
    """Tells how far a run is, by the file of its metrics."""

    metrics: Path
    steps: int
    tell: Callable[[Measuring], None]
    began: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        clock = _clock(self.metrics.read_text()) if self.metrics.exists() else []
        seconds = time.monotonic() - self.began
        each = clock[-1] / len(clock) if clock else 0.0
        left = (self.steps - len(clock)) * each if clock else None
        self.tell(Measuring(len(clock), self.steps, seconds, left))


def _run(config: Path, log: Path, progress: _Progress) -> int:
    """Runs a config in a process; returns the resident bytes that it had at most."""
    with open(log, "w") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "llmlab", "run", str(config)],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )
        try:
            while not (ended := os.wait4(child.pid, os.WNOHANG))[0]:
                progress.look()
                time.sleep(LOOK_EVERY)
        except BaseException:  # Ctrl+C: the steps end with the program
            child.kill()
            child.wait()
            raise
        _, status, usage = ended
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        last = (log.read_text(errors="replace").strip().splitlines() or ["exited without output"])[-1]
        raise LabError(f"the measured steps failed: {last.removeprefix('error: ')}", exit_code=1)
    return usage.ru_maxrss * 1024
