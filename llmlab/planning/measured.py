"""What a few real steps of a run take, in a process and a folder of their own. No torch here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmlab.config import save_config
from llmlab.config.loader import apply_changes
from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError

STEPS = 3  # that are measured; the first one, which warms up, does not count


@dataclass(frozen=True)
class Measured:
    """What a few steps took.

    Attributes:
        seconds: of one update.
        peak: resident bytes at most.
    """

    seconds: float
    peak: int


def measure(config: TrainingConfig) -> Measured:
    """Returns what a few real steps take; nothing of them is left afterwards.

    Raises:
        LabError: when they fail, with the reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        few: dict[str, Any] = {
            "max_steps": STEPS,
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
        peak = _run(path, Path(folder) / "log")
        text = (Path(folder) / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    clock = [line["train_runtime"] for line in lines if "train_runtime" in line and "loss" in line]
    if len(clock) < 2:
        raise LabError("the measured steps left no times", exit_code=1)
    return Measured((clock[-1] - clock[0]) / (len(clock) - 1), peak)


def _run(config: Path, log: Path) -> int:
    """Runs a config in a process; returns the resident bytes that it had at most."""
    with open(log, "w") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "llmlab", "run", str(config)],
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        last = (log.read_text(errors="replace").strip().splitlines() or ["exited without output"])[-1]
        raise LabError(f"the measured steps failed: {last.removeprefix('error: ')}", exit_code=1)
    return usage.ru_maxrss * 1024
