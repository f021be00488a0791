"""The command that says what fits on a device: fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmlab.cli.options import JsonOption, SetOption, parse_changes, quiet_datasets
from llmlab.errors import LabError
from llmlab.readable import visible

if TYPE_CHECKING:
    from llmlab.planning.duration import DataSize
    from llmlab.planning.fit import Question

BYTES_A_TOKEN = 4.0  # of English text, where the tokenizer is not here


def fit(
    model: Annotated[
        str,
        typer.Argument(
            help="A run, a folder, a GGUF file or a hub id, downloaded or not; a preset or a model config."
        ),
    ],
    memory: Annotated[str, typer.Option(metavar="12GB", help="Memory of the GPU; GB or GiB.")] = "",
    gpu: Annotated[str, typer.Option(metavar="NAME", help='The GPU by its name: "RTX 4090", H100.')] = "",
    devices: Annotated[int, typer.Option(min=1, max=1024, help="GPUs that train together.")] = 1,
    data: Annotated[
        list[str] | None, typer.Option(metavar="SOURCE", help="What to train on; its tokens are counted.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="A method, repeatable. Left out: sft, dpo, grpo.")
    ] = None,
    length: Annotated[
        list[int] | None, typer.Option(min=8, help="Tokens of a row, repeatable. Left out: 512, 2048, 8192.")
    ] = None,
    set_: SetOption = None,
    save: Annotated[
        str,
        typer.Option(metavar="NAME", help="Write the most capable run that fits as a config."),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Say what can be trained on a device: memory, speed, longest rows, largest batches; starts nothing."""
    from rich.text import Text

    from llmlab.planning.fit import LENGTHS, METHODS, Question, best, command_of, fit_rows, model_shape
    from llmlab.planning.largest import largest_model
    from llmlab.planning.machines import machine_with
    from llmlab.screen import LabConsole
    from llmlab.ui.fit import fit_table, largest_lines, legend, to_json

    shape = model_shape(model)
    positions = shape.longest or LENGTHS[-1]
    within = [one for one in LENGTHS if one <= positions] or [positions]
    question = Question(
        model,
        machine_with(gpu, memory),
        devices,
        tuple(dict.fromkeys(method or METHODS)),
        tuple(sorted(set(length or within))),
        parse_changes(set_),
        tuple(data or ()),
    )
    amounts = _amounts(question) if data else {}
    rows = list(fit_rows(question, amounts))
    largest = largest_model(question.machine, devices, changes=question.changes)
    chosen = best(rows)
    file = str(_file(save)) if save else ""
    if save and (chosen is None or chosen.config is None):
        remedy = "a larger device, or more of them"
        raise LabError("nothing fits, so no config is written", where=model, remedy=remedy)
    command = command_of(chosen.config, file) if chosen and chosen.config else None
    if save and chosen and chosen.config:
        from llmlab.config import save_config

        save_config(chosen.config, Path(file))
    if as_json:
        result = to_json(question, shape, rows, largest, amounts)
        typer.echo(json.dumps({**result, "command": command, "saved": file or None}))
        return
    console = LabConsole()
    console.print(fit_table(question, shape, rows))
    for line in [*legend(question, rows, amounts), *largest_lines(largest, devices)]:
        console.print(Text(line))
    if file:
        typer.echo(visible(f"{file}: llmlab check {file}, then llmlab run {file}"))
    elif command:
        typer.echo(f"the most capable that fits: {command}")


def _file(name: str) -> Path:
    return Path(name) if name.endswith(".json") else Path("model_configs") / f"{name}.json"


def _amounts(question: Question) -> dict[str, DataSize]:
    """Returns how much there is to train on, for each method that can read it.

    Raises:
        LabError: when none of them can, with the reason.
    """
    from llmlab.planning.data_size import data_size
    from llmlab.planning.fit import USUAL, config_of
    from llmlab.training.registry import STAGES

    quiet_datasets()
    amounts = {}
    for kind in question.methods:
        config = config_of(question, kind, "none", USUAL, 1, False)
        if amount := data_size(config, STAGES[kind].shapes, bytes_a_token=BYTES_A_TOKEN):
            amounts[kind] = amount
    return amounts
