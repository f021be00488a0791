"""Commands for what was judged in chat: preferences list, show, edit, delete, export."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmlab.cli.completing import one_of
from llmlab.cli.options import JsonOption, print_json, show
from llmlab.data.collection import COLLECT, COLLECTED, EXPORTS, VERDICTS
from llmlab.errors import LabError
from llmlab.readable import visible

if TYPE_CHECKING:
    from llmlab.data.collection import Mark

FileOption = Annotated[Path, typer.Option("--file", metavar="FILE", help="Another collection.")]
IdArgument = Annotated[str, typer.Argument(help="Id of a mark, or its beginning; `last` is the newest.")]
ModelOption = Annotated[str, typer.Option(help="Only marks of this model's answers.")]
VerdictOption = Annotated[
    str,
    typer.Option(help="Only these: " + ", ".join(VERDICTS) + ".", autocompletion=one_of("|".join(VERDICTS))),
]
SinceOption = Annotated[str, typer.Option(metavar="DATE", help="Only from this day on: 2026-11-27.")]

preferences_commands = typer.Typer(
    help="What was judged in chat: look, edit, delete, export. As a source: `llmlab:preferences`.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@preferences_commands.callback(invoke_without_command=True)
def preferences(context: typer.Context) -> None:
    """What was judged in chat: counts by model, and the newest marks."""
    if context.invoked_subcommand is None:
        list_preferences()


@preferences_commands.command("list")
def list_preferences(
    model: ModelOption = "",
    verdict: VerdictOption = "",
    since: SinceOption = "",
    all_: Annotated[bool, typer.Option("--all", help="All of them, not the newest 20.")] = False,
    file: FileOption = COLLECTED,
    as_json: JsonOption = False,
) -> None:
    """Counts by model, what can be trained on them, and the newest marks; with `--json` all of them."""
    marks = chosen(file, model, verdict, since)
    if as_json:
        print_json(marks)
        return
    from llmlab.ui.preferences import SHOWN, overview

    show(overview(marks, None if all_ else SHOWN))


@preferences_commands.command("show")
def show_preference(mark: IdArgument, file: FileOption = COLLECTED, as_json: JsonOption = False) -> None:
    """One mark: the conversation, the answers, who gave them, the note."""
    from llmlab.data.collection import Collection

    one = Collection(file).find(mark)
    if as_json:
        print_json(one)
        return
    from llmlab.ui.preferences import mark_view

    show(mark_view(one))


@preferences_commands.command("edit")
def edit_preference(
    mark: IdArgument,
    verdict: Annotated[
        str,
        typer.Option(
            metavar="VERDICT",
            help="good or bad; of a pair better, worse or equal.",
            autocompletion=one_of("good|bad|better|worse|equal"),
        ),
    ] = "",
    text: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The better answer (of a bad one: it), as it should be."),
    ] = None,
    note: Annotated[str | None, typer.Option(metavar="TEXT", help="The note; '' for none.")] = None,
    file: FileOption = COLLECTED,
    as_json: JsonOption = False,
) -> None:
    """Change a mark: its verdict, the text of its answer, its note. Without options it asks."""
    from llmlab.data.collection import Collection, edited

    collection = Collection(file)
    one = collection.find(mark)
    if not verdict and text is None and note is None:
        if not sys.stdin.isatty():
            raise LabError(
                "what is to be changed?", where=one.id, remedy="give --verdict, --text or --note a value"
            )
        from llmlab.ui.preferences import ask_for_change

        changed = ask_for_change(one)
    else:
        changed = edited(one, verdict=verdict, text=text, note=note)
    if changed is not None and changed != one:
        collection.change(changed)
    if as_json:
        print_json(changed or one)
    else:
        typer.echo("nothing was changed" if changed in (None, one) else f"{one.id} is changed")


@preferences_commands.command("delete")
def delete_preferences(
    marks: Annotated[list[str], typer.Argument(help="Ids of marks, or their beginnings; `last`.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    file: FileOption = COLLECTED,
    as_json: JsonOption = False,
) -> None:
    """Delete marks."""
    from llmlab.data.collection import Collection

    collection = Collection(file)
    gone = [collection.find(name) for name in marks]
    if not yes:
        if not sys.stdin.isatty():
            raise LabError("asks first, and stdin is not a terminal", remedy="add --yes")
        for mark in gone:
            typer.echo(visible(f"{mark.id}  {mark.verdict}  {mark.chosen or mark.rejected}")[:200])
        typer.confirm(f"Delete {len(gone)}?", abort=True)
    collection.delete(mark.id for mark in gone)
    if as_json:
        print_json({"deleted": [mark.id for mark in gone]})
    else:
        typer.echo(f"{len(gone)} deleted")


@preferences_commands.command("export")
def export_preferences(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="A .jsonl file to write.")],
    as_: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="pairs|answers|labels",
            help="pairs for DPO and reward models, answers for SFT, labels (good or bad) for KTO.",
            autocompletion=one_of("|".join(EXPORTS)),
        ),
    ] = "pairs",
    model: ModelOption = "",
    verdict: VerdictOption = "",
    since: SinceOption = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    file: FileOption = COLLECTED,
    as_json: JsonOption = False,
) -> None:
    """Write marks as a file of rows, for here or for other programs."""
    from llmlab.data.collection import exported
    from llmlab.files import write_text_atomically

    if as_ not in EXPORTS:
        raise LabError(f"`--as` {as_!r} is not one of {', '.join(EXPORTS)}")
    if output.exists() and not force:
        raise LabError("already exists", where=str(output), remedy="add --force, or choose another file")
    rows = exported(chosen(file, model, verdict, since), as_)
    if not rows:
        raise LabError(
            f"there are no {as_} among these marks", where=str(file), remedy="`llmlab preferences`"
        )
    write_text_atomically(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    if as_json:
        print_json({"path": output, "rows": len(rows), "as": as_})
        return
    typer.echo(visible(f"{len(rows):,} {as_} in {output}"))
    if as_ == "labels":
        typer.echo("rows of KTO: no method of llmlab learns from them yet; TRL's KTOTrainer does")


def chosen(file: Path, model: str, verdict: str, since: str) -> list[Mark]:
    """Returns the marks of a collection that are of a model, a verdict and from a day on.

    Raises:
        LabError: when nothing was collected, or the verdict or the day is none.
    """
    from datetime import date, datetime

    from llmlab.data.collection import Collection

    if verdict and verdict not in VERDICTS:
        raise LabError(f"`--verdict` {verdict!r} is not one of {', '.join(VERDICTS)}")
    try:
        day = date.fromisoformat(since) if since else date.min
    except ValueError:
        raise LabError(f"`--since` {since!r} is no day", remedy="write 2026-11-27") from None
    marks = Collection(file).marks()
    if not marks:
        raise LabError("nothing was collected yet", where=str(file), remedy=COLLECT)
    return [
        mark
        for mark in marks
        if verdict in ("", mark.verdict)
        and (not model or model in mark.models)
        and datetime.fromisoformat(mark.when).astimezone().date() >= day
    ]
