"""The command that answers a prompt, or a file of prompts: generate."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmlab.cli.chat import chat_settings, open_session
from llmlab.cli.options import (
    CheckpointArgument,
    DeviceOption,
    DtypeOption,
    JsonOption,
    LoadInOption,
    SetOption,
    load_options,
    print_json,
)
from llmlab.errors import LabError
from llmlab.readable import visible

if TYPE_CHECKING:
    from llmlab.chat.answer_job import AnswerJob


def generate(
    checkpoint: CheckpointArgument,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="What to answer or continue.")] = None,
    input_: Annotated[
        Path | None,
        typer.Option("--input", "-i", metavar="FILE", help="Prompts as JSON lines: `prompt` or `messages`."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where their answers go; a stopped run goes on."),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Prompts at a time; 0 takes as many as fit the free memory.")
    ] = 0,
    column: Annotated[
        str, typer.Option(help="Where the answer stands in a row of the output.")
    ] = "completion",
    load_in: LoadInOption = "none",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """One completion on stdout, or the answers to a file of prompts."""
    from llmlab.config.base import validate
    from llmlab.config.chat import BatchOptions

    options = load_options(load_in, device, dtype)
    settings = chat_settings(set_)
    batch = validate(BatchOptions, {"batch_size": batch_size, "column": column})
    if (prompt is None) == (input_ is None):
        raise LabError("give one of `--prompt` and `--input`", remedy="llmlab generate MODEL -p TEXT")
    if (input_ is None) != (output is None):
        raise LabError("`--input` and `--output` belong together", remedy="give both")
    if settings.show_alpha:
        raise LabError("`show_alpha` colours a chat at a terminal", remedy="leave it out")
    if input_ and output:
        from llmlab.chat.answer_job import AnswerJob

        job = AnswerJob(checkpoint, input_, output, settings, options, batch)
        errors = _answer_file(job)
        if as_json:
            print_json({"output": output, "rows": job.count, "errors": errors})
        if errors:
            raise LabError(
                f"{errors:,} of {job.count:,} rows could not be answered",
                where=str(job.target),
                remedy="their column `error` says why",
                exit_code=1,
            )
        return
    if batch != BatchOptions():
        raise LabError("`--batch-size` and `--column` are for `--input`", remedy="leave them out")
    session = open_session(checkpoint, settings, options)
    if as_json:
        answer, stopped = session.reply(str(prompt), lambda piece: None)
        print_json({"completion": answer, "stopped": stopped})
        return
    session.reply(str(prompt), lambda piece: print(visible(piece), end="", flush=True))
    print()


def _answer_file(job: AnswerJob) -> int:
    """Answers the rows of a file that have no answer yet; returns how many could not be answered."""
    with job.answers.lock():
        job.refuse()
        progress = _Progress(job.count, job.done)
        if job.done == job.count:
            progress.say(f"all {job.count:,} rows of {job.target} are answered already")
            return 0
        from llmlab.libraries import importing, quiet_libraries
        from llmlab.screen import warn

        with importing():
            from llmlab.models.loading import load_for_use

        quiet_libraries(warn)
        try:
            errors = job.run(lambda: load_for_use(job.model, job.load), progress)
        except KeyboardInterrupt:
            progress.say(f"{progress.done:,} of {job.count:,} rows are answered; the same command goes on")
            raise
        progress.say(f"{job.count:,} rows in {job.target}")
    return errors


@dataclass
class _Progress:
    """Says on standard error how far it is: at a terminal one line, elsewhere a line each tenth."""

    count: int
    done: int
    errors: int = 0
    told: int = 0

    def answered(self, rows: int, errors: int, batch: int) -> None:
        """Takes rows that were written."""
        self.done += rows
        self.errors += errors
        line = f"{self.done:,} of {self.count:,} rows, {batch} at a time"
        if sys.stderr.isatty():
            print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
        elif self.done * 10 // self.count > self.told:
            self.told = self.done * 10 // self.count
            print(line, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Prints a line."""
        start = "\r\x1b[K" if sys.stderr.isatty() else ""
        print(f"{start}{visible(text)}", file=sys.stderr, flush=True)

    warn = say
