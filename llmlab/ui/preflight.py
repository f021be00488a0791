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

from llmlab.config import ModelConfig, PretrainConfig, SourceConfig, load_config, save_config
from llmlab.config.base import KindConfig
from llmlab.config.loader import apply_changes
from llmlab.config.rollouts import RolloutConfig
from llmlab.config.training import TrainingConfig
from llmlab.data.catalogue import entry, real_id
from llmlab.data.sources import local_files
from llmlab.errors import LabError
from llmlab.models.hub import look_up
from llmlab.models.resolve import check_model
from llmlab.planning.memory import predicted
from llmlab.planning.report import plan_table
from llmlab.planning.units import size
from llmlab.runs.folder import find_model
from llmlab.ui.data import Learned, sources_table

COMPARED = 100_000  # rows of a source in which the same ones are looked for
STEPS = 3  # that are measured; the first one, which warms up, does not count


def show(config: KindConfig, console: Console) -> None:
    """Prints the plan, the sources, and a row of them as the model will see it.

    Raises:
        LabError: when a source or a model cannot be used.
    """
    console.print(plan_table(config))
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


def check_inputs(config: KindConfig) -> list[str]:
    """Looks for everything that a run reads: models, tokenizer, datasets. Nothing is downloaded.

    Returns:
        A line for each that only the hub can have and that could not be looked up: "policy_checkpoint: a/b:
        not checked ...".

    Raises:
        LabError: with the first that is not there, cannot be read, or does not fit its use.
    """
    lines = []

    def note(option: str, name: str, found: str) -> None:
        if found.startswith("not checked"):
            lines.append(f"{option}: {name}: {found}")

    shape = getattr(config, "model", None) if isinstance(config, PretrainConfig) else config
    shape = load_config(shape) if isinstance(shape, str) else shape
    if isinstance(shape, ModelConfig):
        note("tokenizer_name", shape.tokenizer_name, check_tokenizer(shape.tokenizer_name))
    if not isinstance(config, TrainingConfig):
        return lines
    for option, name, use in _models(config):
        found = check_model(name, use)
        note(option, name, found)
        if option == config.STARTS_FROM and Path(found).exists():
            check_tokenizer(found)
    for source in [*config.datasets, *config.eval_datasets]:
        if not local_files(source.name, source.split):
            known = entry(source.name, source.subset) is not None
            note("datasets", source.line(), look_up(real_id(source.name), "dataset", known=known)[0])
    return lines


def _models(config: TrainingConfig) -> Iterator[tuple[str, str, str]]:
    """Yields the models that a run loads: the option, the name, and what it is wanted for."""
    if isinstance(config, PretrainConfig):
        if config.init_from:
            yield "init_from", config.init_from, "weights"
        return
    yield config.STARTS_FROM, str(getattr(config, config.STARTS_FROM)), config.kind
    if name := getattr(config, "reference_checkpoint", None):
        yield "reference_checkpoint", name, config.kind
    if isinstance(config, RolloutConfig):
        for reward in config.reward_model:
            if reward.kind == "model":
                yield "reward_model", reward.name, "score"


def check_tokenizer(name: str) -> str:
    """Returns where a tokenizer was found: its folder or file, which loads, or what the hub says.

    Raises:
        LabError: when there is none of this name, or it does not load.
    """
    from transformers.utils import logging

    from llmlab.data.tokenizer import load_tokenizer

    if name != "byte" and not Path(name).exists():
        try:
            find_model(name, tokenizer=True)
        except LabError:
            remedy = "name a folder, a hub id or `byte`, or train one: `llmlab tokenizer SOURCE -o FOLDER`"
            raise LabError("there is no such tokenizer", where=name, remedy=remedy) from None
        return look_up(name, "model")[0]
    logging.set_verbosity_error()
    load_tokenizer(name)
    return name


def of_the_data(config: TrainingConfig, shapes: tuple[str, ...]) -> list[RenderableType]:
    """Returns what a person would want to know of the rows themselves: one as the model sees it,
    and what is wrong.
    """
    return [
        *a_row(config, shapes),
        *(Text(f"mind: {line}", style="yellow") for line in overlaps(config, shapes)),
    ]


def overlaps(config: TrainingConfig, shapes: tuple[str, ...]) -> list[str]:
    """Returns a line for each validation source of which rows are trained on as well;
    of sources on this machine alone.
    """
    from itertools import islice

    from llmlab.data.canonical import Tally, open_source

    def rows(source: SourceConfig, limit: int) -> Iterator[bytes]:
        if not local_files(source.name, source.split):
            return
        try:
            for _, row in islice(open_source(source, shapes).canonical(Tally()), limit):
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
            found.append(f"{share} of {source.line()} are trained on as well: held-out figures would flatter")
    return found


def a_row(config: TrainingConfig, shapes: tuple[str, ...]) -> list[RenderableType]:
    """Returns the first usable row, rendered, and what is wrong with it;
    nothing where tokenizer or data are not here.
    """
    from itertools import islice

    from transformers.utils import logging

    from llmlab.data.canonical import Tally, open_source
    from llmlab.data.inspect import sample_pieces
    from llmlab.data.schemas import RowFault
    from llmlab.data.tokenizer import ensure_chat_template, load_tokenizer

    logging.set_verbosity_error()
    source = config.datasets[0]
    name = _tokenizer(config)
    if not name or not local_files(source.name, source.split):
        return []
    try:
        tokenizer = load_tokenizer(name)
        ends = ensure_chat_template(tokenizer)
        rows = [row for _, row in islice(open_source(source, shapes).canonical(Tally()), 1)]
        pieces = sample_pieces(rows[0], tokenizer) if rows else []
    except (LabError, RowFault, OSError):
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
            lines.append(Text(f"mind: {warning}", style="yellow"))
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
            last = (log.read_text(errors="replace").strip().splitlines() or ["it ended without a word"])[-1]
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
