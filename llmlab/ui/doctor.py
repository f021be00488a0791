"""What this machine has, as a table."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from llmlab.runs.doctor import Finding

STYLES = {"found": "", "missing": "red", "optional": "dim"}


def doctor_table(findings: Iterable[Finding]) -> Table:
    """Returns a table of the findings."""
    table = Table(title="doctor", show_header=False, title_justify="left")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(finding.name, Text(finding.text, style=STYLES[finding.state]))
    return table
