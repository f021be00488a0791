"""The truth before a run: the plan, the data as the model will see it, and a few measured steps.
Starts nothing for good.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from llmlab.config import PretrainConfig, SourceConfig, load_config, save_config
from llmlab.config.base import KindConfig
from llmlab.config.loader import apply_changes
from llmlab.config.rollouts import RolloutConfig
from llmlab.config.training import TrainingConfig
from llmlab.data.sources import local_files
from llmlab.errors import LabError
from llmlab.planning.memory import predicted
from llmlab.planning.plan import make_plan
from llmlab.planning.units import size
from llmlab.runs.folder import find_model
from llmlab.training.inputs import check_inputs
from llmlab.ui.data import Learned, sources_table
from llmlab.ui.plan import plan_table

COMPARED = 100_000  # rows of a source in which the same ones are looked for
STEPS = 3  # that are measured; the first one, which warms up, does not count


def show(config: KindConfig, console: Console) -> None:
    """Prints the plan, the sources, and a row of them as the model will see it.

    Raises:
        LabError: when a source or a model cannot be used.
    """
    console.print(plan_table(make_plan(config)))
    for line in check_inputs(config):
        console.print(Text(line, style="yellow"))
    if not isinstance(config, TrainingConfig):
        return
    from llmlab.training.registry import STAGES

    console.print(sources_table(config, STAGES[config.kind].shapes))
    for line in of_the_data(config, STAGES[config.kind].shapes):
        console.print(line)
    if config.kind == "dpo":
        from llmlab.ui.cache import reference_plan

        console.print(reference_plan(config))


def of_the_data(config: TrainingConfig, shapes: tuple[str, ...]) -> list[RenderableType]:
    """Returns what a person would want to know of the rows themselves: one as the model sees it,
    and what is wrong.
    """
    return [
        *a_row(config, shapes),
        *(Text(f"warning: {line}", style="yellow") for line in overlaps(config, shapes)),
    ]


def overlaps(config: TrainingConfig, shapes: tuple[str, ...]) -> list[str]:
    """Returns a line for each validation source of which rows are trained on as well;
    of sources on this machine alone.
    """
    from itertools import islice

    from llmlab.data.canonical import RowCounter, open_source

    def rows(source: SourceConfig, limit: int) -> Iterator[bytes]:
        if not local_files(source.name, source.split):
            return
        try:
            for _, row in islice(open_source(source, shapes).canonical(RowCounter()), limit):
                yield hashlib.blake2b(
                    json.dumps(row, sort_keys=True, default=str).encode(), digest_size=16
                ).digest()
        except (LabError, OSError):  # told by the table of the sources
            return

    if not config.eval_datasets:
        return []
    trained = {row for source in config.datasets for row in rows(source, COMPARED)}
    found = []
    for source in config.eval_datasets:
        held = list(rows(source, COMPARED))
        if both := sum(row in trained for row in held):
            share = (
                f"{both:,} of the {'first ' if len(held) == COMPARED else ''}{len(held):,} validation rows"
            )
            found.append(
                f"{share} of {source.line()} appear in the training data as well: held-out figures are"
                " inflated"
            )
    return found


def a_row(config: TrainingConfig, shapes: tuple[str, ...]) -> list[RenderableType]:
    """Returns the first usable row, rendered, and what is wrong with it;
    nothing where tokenizer or data are not here.
    """
    from itertools import islice

    from transformers.utils import logging

    from llmlab.data.canonical import RowCounter, open_source
    from llmlab.data.inspect import sample_pieces
    from llmlab.data.schemas import InvalidRow
    from llmlab.data.tokenizer import ensure_chat_template, load_tokenizer

    logging.set_verbosity_error()
    source = config.datasets[0]
    name = _tokenizer(config)
    if not name or not local_files(source.name, source.split):
        return []
    try:
        tokenizer = load_tokenizer(name)
        ends = ensure_chat_template(tokenizer)
        rows = [row for _, row in islice(open_source(source, shapes).canonical(RowCounter()), 1)]
        pieces = sample_pieces(rows[0], tokenizer) if rows else []
    except (LabError, InvalidRow, OSError):
        return []
    if not pieces:
        return []
    lines: list[RenderableType] = [Learned("a row as the model sees it", pieces)]
    if isinstance(config, RolloutConfig):  # which learns from its own answers
        prompt, answer = (
            "".join(piece for piece, learned in pieces if learned is wanted) for wanted in (False, True)
        )
        lines = [Text("a prompt as the model sees it", style="bold"), Text(prompt.rstrip())]
        return (
            [*lines, Text(f"the right answer, for rewards that compare: {answer}", style="dim")]
            if answer
            else lines
        )
    if "text" not in rows[0] and not isinstance(config, PretrainConfig):
        said = "".join(piece for piece, learned in pieces if learned)
        marks = [tokenizer.decode([end]) for end in (ends if isinstance(ends, list) else [ends])]
        if said and not any(mark and mark in said for mark in marks):
            warning = (
                "the chat template ends an answer without a token that stops the model: it would never end"
            )
            lines.append(Text(f"warning: {warning}", style="yellow"))
    return lines


@dataclass
class Measured:
    """What a few steps took.

    Attributes:
        seconds: of one update.
        peak: resident bytes at most.
    """

    seconds: float
    peak: int

    def lines(self, config: TrainingConfig) -> list[str]:
        """Returns the figures for a whole run, beside what was predicted."""
        whole = self.seconds * config.max_steps
        hours, minutes = divmod(int(whole / 60), 60)
        time = f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {int(whole) % 60:02d} s"
        memory = predicted(config)
        beside = f" (predicted {size(memory.total)})" if memory else ""
        return [
            (
                f"measured: {self.seconds:.2f} s an update, {time} for {config.max_steps:,} steps, validation"
                " and saving aside"
            ),
            f"measured: peak memory {size(self.peak)}{beside}",
        ]


def measure(config: TrainingConfig) -> Measured:
    """Returns what a few real steps take, in a process and a folder of their own that are gone afterwards.

    Raises:
        LabError: when they fail, with the reason.
    """
    with tempfile.TemporaryDirectory() as folder:
        few = {
            "max_steps": STEPS,
            "warmup_steps": 0,
            "log_every": 1,
            "save_every": 10**9,
            "eval_fraction": 0.0,
            "eval_datasets": [],
            "report_to": [],
            "save_best_only": False,
            "output_dir": f"{folder}/run",
        }
        path = save_config(apply_changes(config, few), Path(folder) / "few.json")
        log = Path(folder) / "log"
        with open(log, "w") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "llmlab", "run", str(path)],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )
            _, status, usage = os.wait4(child.pid, 0)
            child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            last = (log.read_text(errors="replace").strip().splitlines() or ["exited without output"])[-1]
            raise LabError(f"the measured steps failed: {last.removeprefix('error: ')}", exit_code=1)
        lines = [
            json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
        ]
    clock = [
        line["train_runtime"] for line in lines if "train_runtime" in line and "loss" in line
    ]  # since the start
    if len(clock) < 2:
        raise LabError("the measured steps left no times", exit_code=1)
    seconds = (clock[-1] - clock[0]) / (len(clock) - 1)
    return Measured(seconds, usage.ru_maxrss * 1024)


def _tokenizer(config: Any) -> str:
    """Returns the folder or file of the tokenizer that a run will read with;
    "" where it is not on this machine.
    """
    try:
        if isinstance(config, PretrainConfig):
            shape = config.model if not isinstance(config.model, str) else load_config(config.model)
            name = shape.tokenizer_name
            return name if name == "byte" or Path(name).exists() else ""
        where = find_model(str(getattr(config, config.STARTS_FROM)), tokenizer=True)
    except LabError:
        return ""
    return where if Path(where).exists() else ""
