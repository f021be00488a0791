"""Commands for data that one can trust: data clean, data overlap."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmlab.cli import completing
from llmlab.cli.options import JsonOption, print_json, quiet_datasets, show, source_config
from llmlab.errors import LabError

SourceArgument = Annotated[
    str,
    typer.Argument(
        help="A hub id, a file, a folder or a shipped dataset; also `name | subset`, or an object as JSON.",
        autocompletion=completing.sources,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Options of the source that is read: split, format, columns, streaming ...",
        autocompletion=completing.changes,
    ),
]
ProcessesOption = Annotated[
    int, typer.Option(help="Processes that measure rows; the result is the same.", min=1, max=1024)
]


def clean_source(
    source: SourceArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The copy, a .jsonl file; its report lies beside it.")
    ],
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EVALSET",
            help="Leave out rows that share 13 words in a row with an evaluation set.",
            autocompletion=completing.sources,
        ),
    ] = None,
    near: Annotated[
        float,
        typer.Option(help="Likeness from which on near duplicates are left out; 0 keeps them.", min=0, max=1),
    ] = 0.8,
    language: Annotated[
        list[str] | None,
        typer.Option(metavar="CODE", help="Keep rows in these languages (en, de ...), and undecided ones."),
    ] = None,
    min_words: Annotated[int, typer.Option(help="Leave out rows with fewer words.", min=0)] = 0,
    max_words: Annotated[
        int, typer.Option(help="Leave out rows with more words; 0 for no limit.", min=0)
    ] = 0,
    processes: ProcessesOption = 1,
    set_: SetOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a copy that exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a cleaned copy: without duplicates, near duplicates, evaluation rows; with a report."""
    from llmlab.data.language import check_language

    if output.exists() and not force:
        raise LabError("already exists", where=str(output), remedy="add --force, or choose another file")
    if 0 < near < 0.5:
        raise LabError(
            f"`--near` {near:g} is below 0.5",
            remedy="texts that share fewer than half of their word pairs are not near duplicates",
        )
    languages = tuple(check_language(code) for code in language or ())
    config = source_config(source, set_)
    sets = tuple(source_config(line, None) for line in against or ())
    from llmlab.data.cleaning import Cleaning, clean, report_path
    from llmlab.screen import screen, styled
    from llmlab.ui.data_quality import cleaning_report

    quiet_datasets()
    with screen().status(styled("reading {}", config.line())) as status:

        def tell(read: int) -> None:
            status.update(f"{read:,} rows measured")

        report = clean(config, output, Cleaning(near, sets, languages, min_words, max_words, processes), tell)
    if as_json:
        print_json({**report.to_json(), "report": report_path(output)})
    else:
        show(cleaning_report(report, report_path(output)))


def overlap_of_sources(
    train: SourceArgument,
    evaluation: Annotated[
        list[str],
        typer.Argument(metavar="EVALSET...", help="Evaluation sets.", autocompletion=completing.sources),
    ],
    processes: ProcessesOption = 1,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how many evaluation rows stand in training data, by 13 words in a row, with examples."""
    config = source_config(train, set_)
    sets = tuple(source_config(line, None) for line in evaluation)
    from llmlab.data.cleaning import overlap
    from llmlab.screen import screen, styled
    from llmlab.ui.data_quality import overlap_table

    quiet_datasets()
    with screen().status(styled("reading {}", config.line())) as status:
        found = overlap([config], sets, processes, lambda read: status.update(f"{read:,} rows compared"))
    if as_json:
        print_json([one.to_json() for one in found])
    else:
        show(overlap_table(found))
