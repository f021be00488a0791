"""Commands for what is on disk: runs and what can be done with them, info; and doctor."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from llmlab.cli import completing
from llmlab.cli.options import JsonOption, SetOption, TrustOption, parse_changes, print_json, show
from llmlab.errors import LabError
from llmlab.readable import listed, visible

RunArgument = Annotated[
    str,
    typer.Argument(help="A run: its folder, or its name in checkpoints/.", autocompletion=completing.runs),
]
RunsArgument = Annotated[
    list[str],
    typer.Argument(help="Runs: folders, or names in checkpoints/.", autocompletion=completing.runs),
]
TagsArgument = Annotated[list[str], typer.Argument(help="Words: letters, digits and . + - _.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
TagOption = Annotated[list[str] | None, typer.Option("--tag", help="Only runs that have this tag.")]

runs_commands = typer.Typer(
    help="Every run; and show, compare, report, repeat, rename, tag, delete, verify one.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@runs_commands.callback(invoke_without_command=True)
def runs(context: typer.Context) -> None:
    """Runs with their status, parent and best figure."""
    if context.invoked_subcommand is None:
        list_runs()


@runs_commands.command("list")
def list_runs(
    tag: TagOption = None,
    kind: Annotated[str, typer.Option(help="Only runs of this kind.")] = "",
    all_: Annotated[bool, typer.Option("--all", help="All of them, not the newest 40.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Runs with their status, parent and best figure, newest first; with `--json` all of them."""
    from llmlab.ui.runs import SHOWN, chosen_rows, rows_as_json, runs_table

    rows = chosen_rows(tags=tag or [], kind=kind)
    if as_json:
        typer.echo(rows_as_json(rows))
    else:
        show(runs_table(rows, None if all_ else SHOWN))


@runs_commands.command("show")
def show_run(run: RunArgument, as_json: JsonOption = False) -> None:
    """Curves, figures, options that are not the defaults, data, lineage, sizes and tags of a run."""
    from llmlab.runs.details import as_json as line
    from llmlab.runs.details import find_run, run_details

    details = run_details(find_run(run))
    if as_json:
        typer.echo(visible(line(details.to_json())))
        return
    from llmlab.screen import LabConsole
    from llmlab.ui.run_details import details_view

    console = LabConsole()
    console.print(details_view(details, console.width, console.encoding), highlight=False)


@runs_commands.command("compare")
def compare_runs(
    runs: RunsArgument,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write a page instead.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Runs beside each other: curves, the options that differ, figures with their uncertainty.

    Runs that differ in nothing but the seed are one group, with a mean and its 95 % interval.
    """
    from llmlab.runs.comparison import compare
    from llmlab.runs.details import as_json as line
    from llmlab.runs.details import find_run, run_details

    comparison = compare([run_details(find_run(name)) for name in runs])
    if html:
        from llmlab.ui.report import comparison_page, write_page

        _say_path(write_page(comparison_page(comparison), html), as_json)
    elif as_json:
        typer.echo(visible(line(comparison.to_json())))
    else:
        from llmlab.screen import LabConsole
        from llmlab.ui.comparison import comparison_view

        console = LabConsole()
        console.print(comparison_view(comparison, console.width), highlight=False)


def _say_path(path: Path, as_json: bool) -> None:
    """Prints what was written."""
    if as_json:
        print_json({"path": path})
    else:
        typer.echo(visible(str(path)))


@runs_commands.command("report")
def report(
    run: RunArgument,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The file; left out, report.html in the run's folder."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """A page about a run in one file: curves, samples, figures, options, data, lineage, cost."""
    from llmlab.runs.details import find_run, run_details
    from llmlab.ui.report import REPORT, run_page, write_page

    details = run_details(find_run(run))
    _say_path(write_page(run_page(details), output or details.path / REPORT), as_json)


@runs_commands.command("again")
def again(
    run: RunArgument,
    set_: SetOption = None,
    name: Annotated[str, typer.Option(help="Name of the new run; left out, RUN-2, RUN-3 ...")] = "",
    print_: Annotated[
        bool, typer.Option("--print", help="Only print the command that would start it.")
    ] = False,
    trust: TrustOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train with the config of a run again, with changes, as a new run."""
    import shlex

    from llmlab.cli.training import run as run_config
    from llmlab.runs.again import again_as

    source, folder = again_as(run, parse_changes(set_), name)
    changes = [*(set_ or []), f"output_dir={folder}"]
    if print_:
        parts = ["llmlab", "run", str(source), *(part for change in changes for part in ("--set", change))]
        if as_json:
            print_json({"command": parts})
        else:
            typer.echo(visible(shlex.join(parts)))
        return
    run_config(source, set_=changes, trust=trust, as_json=as_json)


@runs_commands.command("rename")
def rename(
    run: RunArgument,
    name: Annotated[str, typer.Argument(help="Its new name.")],
    as_json: JsonOption = False,
) -> None:
    """Rename a run; the runs that came from it name it so from then on."""
    from llmlab.runs.details import find_run
    from llmlab.runs.manage import rename_run
    from llmlab.ui.config_files import configs_that_name

    found = find_run(run)
    configs = configs_that_name(found.path)
    folder, changed = rename_run(found, name)
    _say_path(folder, as_json)
    for child in changed:
        typer.echo(visible(f"{child}: its record names {folder} now"), err=True)
    for config in configs:
        typer.echo(visible(f"warning: {config} names {found.path}, which is gone: edit it"), err=True)


@runs_commands.command("delete")
def delete(run: RunArgument, yes: YesOption = False, as_json: JsonOption = False) -> None:
    """Delete a run with its checkpoints; refused while it trains or another run needs it."""
    from llmlab.runs.details import find_run
    from llmlab.runs.manage import delete_run, deletion
    from llmlab.ui.units import size

    found = find_run(run)
    planned = deletion(found)
    if planned.orphans:
        names = listed(planned.orphans, 3)
        typer.echo(visible(f"their lineage will end there: {names}"), err=True)
    if not yes:
        if not sys.stdin.isatty():
            raise LabError("stdin is not a terminal", where=str(found.path), remedy="add --yes")
        question = f"Delete {found.path}? {size(planned.size)} become free"
        if not typer.confirm(visible(question), default=False, err=True):
            raise typer.Exit(1)
    delete_run(found)
    if as_json:
        print_json({"path": found.path, "bytes_freed": planned.size})
    else:
        typer.echo(visible(f"{found.path}: deleted, {size(planned.size)} freed"))


@runs_commands.command("tag")
def tag_run(run: RunArgument, tags: TagsArgument, as_json: JsonOption = False) -> None:
    """Give a run tags, which `runs list --tag` looks for."""
    from llmlab.runs.details import find_run
    from llmlab.runs.tags import tag

    found = find_run(run)
    _say_tags(found.path, tag(found.path, *tags), as_json)


@runs_commands.command("untag")
def untag_run(run: RunArgument, tags: TagsArgument, as_json: JsonOption = False) -> None:
    """Take tags from a run."""
    from llmlab.runs.details import find_run
    from llmlab.runs.tags import untag

    found = find_run(run)
    _say_tags(found.path, untag(found.path, *tags), as_json)


def _say_tags(path: Path, tags: Sequence[str], as_json: bool) -> None:
    """Prints the tags that a run has now."""
    if as_json:
        print_json({"path": path, "tags": tags})
    else:
        typer.echo(visible(f"{path}: {', '.join(tags) or 'no tags'}"))


@runs_commands.command("verify")
def verify(run: RunArgument, as_json: JsonOption = False) -> None:
    """Check the files of a run's checkpoints and models against their manifests."""
    from llmlab.runs.verify import verify_run

    faults = verify_run(run)
    if as_json:
        print_json({path: {"verified": not fault, "fault": fault} for path, fault in faults.items()})
    else:
        typer.echo(visible("\n".join(f"{path}: {fault or 'verified'}" for path, fault in faults.items())))
    raise typer.Exit(2 if any(faults.values()) else 0)


def info(
    checkpoint: Annotated[
        str, typer.Argument(help="A run or a model folder.", autocompletion=completing.runs)
    ],
    as_json: JsonOption = False,
) -> None:
    """Architecture, parameters, method, steps, lineage and manifest of a checkpoint."""
    from llmlab.ui.runs import info_rows, info_table

    if as_json:
        print_json(dict(info_rows(checkpoint)))
    else:
        show(info_table(checkpoint))


def doctor(as_json: JsonOption = False) -> None:
    """Python, packages, devices, memory, disk, hub: what is here and what is missing for what."""
    from llmlab.runs.doctor import findings
    from llmlab.ui.doctor import doctor_table

    if as_json:
        print_json(list(findings()))
    else:
        show(doctor_table(findings()))
