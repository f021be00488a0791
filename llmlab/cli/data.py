"""Commands for datasets: data inspect, data catalog."""

from __future__ import annotations

from typing import Annotated

import typer

from llmlab.cli import completing
from llmlab.cli.options import JsonOption, print_json, quiet_datasets, show, source_config


def inspect_source(
    source: Annotated[
        str,
        typer.Argument(
            help="A hub id, a file, a folder or a shipped dataset; also `name | subset`.",
            autocompletion=completing.sources,
        ),
    ],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Tokenizer for the counts: a model, a tokenizer folder, a hub id or `byte`."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Options of the source: split, format, columns, labels ...",
            autocompletion=completing.changes,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a dataset holds: shape, a row as the model sees it, lengths, padding, duplicates."""
    config = source_config(source, set_)
    from llmlab.data.inspect import inspect
    from llmlab.data.tokenizer import ensure_chat_template, load_tokenizer
    from llmlab.models.resolve import runs_for
    from llmlab.runs.folder import find_model
    from llmlab.ui.data import inspection

    name = tokenizer or next((str(run.path) for run in runs_for("tokenizer")), "byte")
    reader = load_tokenizer(name if name == "byte" else find_model(name, tokenizer=True))
    ensure_chat_template(reader)
    quiet_datasets()
    inspected = inspect(config, reader)
    if as_json:
        print_json(inspected.to_json())
    else:
        show(inspection(inspected, "bytes (--tokenizer NAME counts tokens)" if name == "byte" else name))


def catalog(
    word: Annotated[str, typer.Argument(help="A dataset, or a word: finance, sft, classification ...")] = "",
    as_json: JsonOption = False,
) -> None:
    """Show the datasets that are known, or all that is known of one."""
    if as_json:
        from llmlab.ui.data import found_datasets

        print_json(found_datasets(word))
        return
    from llmlab.screen import LabConsole
    from llmlab.ui.data import show_catalogue

    show_catalogue(LabConsole(), word)
