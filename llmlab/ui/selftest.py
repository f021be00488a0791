"""What a selftest found: a row at a time while it runs, and as Markdown. No torch."""

from __future__ import annotations

import time
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmlab.readable import visible
from llmlab.selftest.rows import CHECKS, Machine, Row
from llmlab.selftest.run import Selftest
from llmlab.ui.units import long_time, size

STYLES = {"passed": "green", "slow": "yellow", "failed": "bold red", "not on this device": "dim"}
# as they stand in the table; "slow" also says that memory is not as planned
WORDS = {"passed": "passed", "slow": "look", "failed": "FAILED", "not on this device": "not here"}
NAME, STATUS, SECONDS = 20, 8, 7  # columns
BUSY = 0.3  # of the threads: what others take of the processor before it counts


def row_line(row: Row) -> Table:
    """Returns a line of the table: what was checked, whether it is right, the time, what was found."""
    line = Table.grid(padding=(0, 1))
    line.add_column(width=NAME, style="cyan", overflow="fold")
    line.add_column(width=STATUS, no_wrap=True)
    line.add_column(width=SECONDS, justify="right", no_wrap=True, style="dim")
    line.add_column(overflow="fold")
    found = Text(row.found)
    if row.remedy:
        found.append(f"; {row.remedy}", style=STYLES[row.status])
    line.add_row(row.name, Text(WORDS[row.status], STYLES[row.status]), f"{row.seconds:.1f} s", found)
    return line


def print_row(console: Console, row: Row) -> None:
    """Prints a row as soon as it is there."""
    console.print(row_line(row))


def machine_line(machine: Machine) -> str:
    """Returns where a selftest runs, in one line."""
    driver = f", driver {machine.driver}" if machine.driver else ""
    cuda = f", CUDA {machine.cuda}" if machine.cuda else ""
    line = (
        f"{machine.name} ({machine.device}, {machine.precision}), {size(machine.memory)} free; llmlab"
        f" {machine.llmlab}, torch {machine.torch}{cuda}{driver}, transformers {machine.transformers}"
    )
    if machine.load > BUSY * machine.threads:
        line += f"; other programs wanted {machine.load:.1f} processors as it began, so speeds are low"
    return line


def last_lines(found: Selftest) -> Iterator[str]:
    """Yields how a selftest ended, and where it is kept."""
    counts = {status: sum(row.status == status for row in found.rows) for status in WORDS}
    parts = [
        f"{counts['passed']} passed",
        f"{counts['slow']} to look at" if counts["slow"] else "",
        f"{counts['failed']} failed" if counts["failed"] else "",
        f"{counts['not on this device']} not on this device" if counts["not on this device"] else "",
    ]
    yield f"{', '.join(part for part in parts if part)}, in {long_time(found.seconds)}"
    if found.file:
        yield f"kept in {found.file}; to show it again: `llmlab selftest --last`, for a page add --markdown"
    elif found.quick:
        yield "not kept: speeds of the smallest sizes mean little"


def markdown(found: Selftest) -> str:
    """Returns the table as Markdown, ready for a page."""
    day = time.strftime("%Y-%m-%d", time.localtime(found.at))
    sizes = ", smallest sizes (`--quick`)" if found.quick else ""
    lines = [
        f"**{machine_line(found.machine)}** ({day}, {long_time(found.seconds)}{sizes})",
        "",
        "| check | result | seconds | found |",
        "| --- | --- | ---: | --- |",
    ]
    for row in found.rows:
        text = f"{row.found}; {row.remedy}" if row.remedy else row.found
        cells = (row.name, WORDS[row.status], f"{row.seconds:.1f}", text)
        lines.append(f"| {' | '.join(visible(cell).replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def checks_table() -> Table:
    """Returns the checks there are, for `--list`."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, check in CHECKS.items():
        table.add_row(name, check.title)
    return table
