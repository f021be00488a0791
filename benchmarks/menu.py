"""How soon the menu is there, and how soon each question of a form answers a key, in a real terminal.

    python benchmarks/menu.py

The menu: from the start of the process to its last entry on the screen, beside a Python that only prints and
one that imports torch first, in the same kind of terminal; and in a folder of 500 runs and 200 configs, where
`llmlab runs list` and the seconds that the list of runs takes by itself, with and without what is kept of it,
are measured as well. A question: from the Enter that answers it to the next one on the
    screen; of a text, also from a typed character to the live figures below it.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pexpect
import pyte

from llmlab.config import SFTConfig, save_config

REPEATS = 7
RUNS, CONFIGS = 500, 200


class Desk:
    """A program at a terminal, read as fast as it writes."""

    def __init__(self, *arguments: str, folder: str, program: tuple[str, ...] = ("-m", "llmlab")):
        self.screen = pyte.Screen(120, 40)
        self.began = time.perf_counter()
        self.child = pexpect.spawn(
            sys.executable,
            [*program, *arguments],
            cwd=folder,
            dimensions=(40, 120),
            encoding="utf-8",
            env={**os.environ, "TERM": "xterm-256color"},
        )
        self.child.delaybeforesend = None
        self.screen.write_process_input = self.child.send
        self.stream = pyte.Stream(self.screen)

    def until(self, wanted, seconds: float = 20.0) -> float:
        """Reads until the screen is as wanted; returns the moment of the last change before."""
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            try:
                self.stream.feed(self.child.read_nonblocking(65536, timeout=0.002))
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                break
            if wanted(self.text()):
                return time.perf_counter()
        raise TimeoutError(self.text())

    def settle(self, seconds: float = 0.15) -> None:
        """Reads until nothing comes any more."""
        while True:
            try:
                self.stream.feed(self.child.read_nonblocking(65536, timeout=seconds))
            except (pexpect.TIMEOUT, pexpect.EOF):
                return

    def text(self) -> str:
        return "\n".join(self.screen.display)


def last_question(text: str) -> str:
    return ([line for line in text.splitlines() if line.startswith("? ")] or [""])[-1]


def moved_on(asked: str, text: str) -> bool:
    """Whether another question than the one that was asked stands there whole, with the lines below it."""
    now = last_question(text)
    return ("leaves" in text or "What now" in text) and now.split()[1:3] != asked.split()[1:3] and bool(now)


def menu(folder: str) -> float:
    desk = Desk(folder=folder)
    taken = desk.until(lambda text: "0) Quit" in text) - desk.began
    desk.child.close(force=True)
    return taken


def listing(folder: str) -> float:
    """Seconds from the start of `llmlab runs list` to its end."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "llmlab", "runs", "list"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - began


def rows(folder: str, *, kept: bool) -> float:
    """Seconds of the processor that reading the list of runs takes."""
    from llmlab.runs.index import run_rows

    if not kept:
        for file in Path(os.environ["LLMLAB_CACHE"]).glob("runs-*.json"):
            file.unlink()
    began = time.process_time()
    assert len(run_rows(Path(folder) / "checkpoints")) == RUNS
    return time.process_time() - began


def many(folder: str) -> None:
    """Makes runs and configs as a person has them after a year."""
    for number in range(RUNS):
        run = Path(folder) / "checkpoints" / f"run-{number:03d}"
        for name in ("best", "checkpoint-100", "checkpoint-200", "checkpoint-300"):
            (run / name).mkdir(parents=True)
            for file in ("config.json", "model.safetensors", "optimizer.pt", "MANIFEST.json"):
                (run / name / file).write_text("{}")
        record = {
            "status": "done",
            "started": f"2026-01-01T{number // 60:02d}:{number % 60:02d}:00+00:00",
            "config": SFTConfig(seed=number).to_json_dict(),
            "metrics": {"eval_loss": 2.5, "before_eval_loss": 3.5},
            "step": 300,
            "result": "best",
            "summary": {"curves": {"loss": [[step, 2.0] for step in range(100)]}},
        }
        (run / "run.json").write_text(json.dumps(record, indent=2))
    (Path(folder) / "model_configs").mkdir()
    for number in range(CONFIGS):
        save_config(SFTConfig(seed=number), Path(folder) / "model_configs" / f"sft-{number:03d}.json")
    time.sleep(3)  # the list keeps what was at rest before it was read


def bare(code: str, folder: str) -> float:
    """Seconds until a Python that does nothing else has printed a word, in the same kind of terminal."""
    desk = Desk(folder=folder, program=("-c", f"{code}; print('here')"))
    taken = desk.until(lambda text: "here" in text) - desk.began
    desk.child.close(force=True)
    return taken


def form(kind: str, folder: str) -> dict[str, list[tuple[float, str]]]:
    """Returns seconds until the next question,
    and until the figures below a question follow what is typed.
    """
    desk = Desk("new", kind, "-o", f"{folder}/made.json", folder=folder)
    desk.until(lambda text: "? " in text)
    desk.settle()
    taken: dict[str, list[tuple[float, str]]] = {"next": [], "typed": []}
    for _ in range(60):
        before = desk.text()
        if "What now" in before:
            break
        asked = last_question(before)
        if re.fullmatch(r"\? \w+ \d+ *", asked):
            desk.child.send("1")
            began = time.perf_counter()
            took = desk.until(lambda text, before=before: text != before) - began
            taken["typed"].append((took, asked.split()[1]))
            desk.settle()
            desk.child.send("\x7f")
            desk.settle()
            before = desk.text()
        desk.child.send("\r")
        began = time.perf_counter()
        took = desk.until(partial(moved_on, asked)) - began
        taken["next"].append((took, last_question(desk.text()).split()[1]))
        desk.settle()
    desk.child.close(force=True)
    return taken


def main() -> None:
    folder = tempfile.mkdtemp()
    configs = Path(folder) / "model_configs"
    configs.mkdir()
    for number in range(20):  # as many as a person has after a while
        (configs / f"m{number}.json").write_text(json.dumps({"kind": "model"}))
    for name, call in (
        ("python", lambda: bare("pass", folder)),
        ("the menu", lambda: menu(folder)),
        ("torch", lambda: bare("import torch", folder)),
    ):
        call()
        times = [call() for _ in range(REPEATS)]
        print(
            f"{name:10} {statistics.median(times):.3f} s (of {REPEATS}: {min(times):.3f} to"
            f" {max(times):.3f})",
            flush=True,
        )
    full = tempfile.mkdtemp()
    os.environ["LLMLAB_CACHE"] = f"{full}/cache"
    many(full)
    for name, call in (
        (f"the menu with {RUNS} runs and {CONFIGS} configs", lambda: menu(full)),
        (f"llmlab runs list, {RUNS} runs", lambda: listing(full)),
        ("the list alone (processor)", lambda: rows(full, kept=True)),
        ("the list alone, nothing kept (processor)", lambda: rows(full, kept=False)),
    ):
        call()
        times = [call() for _ in range(REPEATS)]
        print(
            f"{name:45} {statistics.median(times):.3f} s ({min(times):.3f} to {max(times):.3f})", flush=True
        )
    for kind in ("model", "pretrain", "sft", "dpo", "ppo", "dual_head"):
        for what, times in form(kind, folder).items():
            if times:
                median, longest = (
                    sorted(times)[len(times) // 2][0] * 1e3,
                    ", ".join(
                        f"{name} {seconds * 1e3:.0f}" for seconds, name in sorted(times, reverse=True)[:3]
                    ),
                )
                print(
                    f"{kind:10} {what:6} median {median:4.0f} ms of {len(times)}; longest: {longest} ms",
                    flush=True,
                )


if __name__ == "__main__":
    main()
