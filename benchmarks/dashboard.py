"""What the panel of a run costs, with as many points on its curve: building it, and a step of a run with
short steps.

python benchmarks/dashboard.py
"""

from __future__ import annotations

import io
import time
from pathlib import Path

from rich.console import Console

from llmlab.training.engine.reporter import Progress, TrainingStart
from llmlab.ui import dashboard

STEP = 0.005  # seconds of a small model's step, which the panel comes on top of
STEPS = 400


def main() -> None:
    """Prints milliseconds for curves of 10, 1,000 and 20,000 points,
    with all points drawn at every step and as it is.
    """
    print(f"{'points':>8} {'all, every step':>16} {'thinned':>10} {'a step':>10}   (ms)")
    for points in (10, 1_000, 20_000):
        console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24)
        panel = dashboard.Dashboard(TrainingStart("sft", Path("run")), console, dashboard.Pace())
        panel.losses = [(step, 1 / (1 + step)) for step in range(points)]
        at = Progress(points, 2 * points, points)
        panel.open(at)
        thinned = milliseconds(lambda panel=panel, at=at: panel.draw(at, at_once=True), 3)
        keep, dashboard.thinned = dashboard.thinned, lambda curve, most: curve
        before = milliseconds(lambda panel=panel, at=at: panel.draw(at, at_once=True), 3)
        dashboard.thinned = keep
        spent = 0.0
        for _ in range(STEPS):
            time.sleep(STEP)
            spent += milliseconds(lambda panel=panel, at=at: panel.draw(at), 1)
        panel.close()
        print(f"{points:>8,} {before:16.2f} {thinned:10.2f} {spent / STEPS:10.3f}")


def milliseconds(do, times: int) -> float:
    """Returns the mean time that a call takes."""
    began = time.perf_counter()
    for _ in range(times):
        do()
    return 1000 * (time.perf_counter() - began) / times


if __name__ == "__main__":
    main()
