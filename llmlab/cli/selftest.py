"""The command that tries the lab on this machine: selftest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmlab.cli import completing
from llmlab.cli.options import DeviceOption, JsonOption, load_options, print_json, show
from llmlab.errors import LabError
from llmlab.readable import visible

if TYPE_CHECKING:
    from llmlab.selftest.run import Selftest


def selftest(
    device: DeviceOption = "auto",
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only this check; repeat it for more, or write NAME,NAME.",
            autocompletion=completing.checks,
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The smallest sizes: under a minute; nothing is kept.")
    ] = False,
    last: Annotated[
        bool, typer.Option("--last", help="Show what is kept of this device; do nothing.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="Say which checks there are; do nothing.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the result as a table in Markdown.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Prove on this machine that the lab computes right, and measure speed and memory for its plans.

    Every check says what it compared, and what to do where something is wrong; then the exit code is 1.
    """
    if as_json and as_markdown:
        raise LabError(
            "`--json` and `--markdown` are two ways to print one result", remedy="give one of them"
        )
    load_options("none", device, "auto")  # a device that there is no such name for
    if list_:
        _list(as_json)
        return
    names = [name.strip() for given in only or [] for name in given.split(",")]
    found = _last(device) if last else _run(device, names, quick, quiet=as_json or as_markdown)
    if as_json:
        print_json({**found.to_json(), "file": found.file})
    elif as_markdown:
        from llmlab.ui.selftest import markdown

        typer.echo(markdown(found))
    raise typer.Exit(1 if found.failed else 0)


def _list(as_json: bool) -> None:
    from llmlab.selftest.rows import CHECKS
    from llmlab.ui.selftest import checks_table

    if as_json:
        print_json({name: check.title for name, check in CHECKS.items()})
    else:
        show(checks_table())


def _run(device: str, only: list[str], quick: bool, *, quiet: bool) -> Selftest:
    """Does the selftest and shows its rows as they come; on stderr where the result is for a program."""
    from llmlab.screen import LabConsole, screen
    from llmlab.selftest.run import run_selftest
    from llmlab.ui.selftest import last_lines, machine_line, print_row

    console = screen() if quiet else LabConsole()
    status = console.status("loading the libraries ...")
    status.start()

    def doing(name: str) -> None:
        if name:
            status.update(f"{name} ...")
        else:
            status.stop()

    try:
        found = run_selftest(
            device,
            only=only,
            quick=quick,
            begins=lambda machine: console.print(machine_line(machine), highlight=False),
            doing=doing,
            shows=lambda row: print_row(console, row),
        )
    finally:
        status.stop()
    for line in last_lines(found):
        console.print(visible(line), highlight=False)
    return found


def _last(device: str) -> Selftest:
    """Returns what is kept of a device."""
    from llmlab.hardware import device_name, has_nvidia
    from llmlab.selftest.run import last_selftest

    chosen = ("cuda" if has_nvidia() else "cpu") if device == "auto" else device
    return last_selftest(device_name(chosen))
