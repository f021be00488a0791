"""Saved configs: the list, and two of them beside each other."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from rich.table import Table
from rich.text import Text

from llmlab.config import load_config
from llmlab.config.base import KindConfig
from llmlab.errors import LabError
from llmlab.ui.explanations import show
from llmlab.ui.form_state import FIXED


def configs_table(files: list[Path]) -> Table:
    """Returns kind, model and date of each config, and whether it still validates."""
    table = Table("config", "kind", "model", "changed", "", title="configs", title_justify="left")
    for path in files:
        changed = f"{datetime.fromtimestamp(path.stat().st_mtime):%Y-%m-%d %H:%M}"
        try:
            config = load_config(path)
        except LabError as error:
            table.add_row(path.name, "?", "", changed, Text(str(error).splitlines()[0][:60], style="red"))
            continue
        start = getattr(config, getattr(type(config), "STARTS_FROM", ""), "")
        table.add_row(
            path.name,
            config.kind,
            start if isinstance(start, str) else "inline",
            changed,
            config.migrated or "valid",
        )
    return table


def compared(one: KindConfig, other: KindConfig, name: str, other_name: str) -> Table:
    """Returns the options in which two configs of a kind differ."""
    table = Table("option", name, other_name, title="what differs", title_justify="left")
    for option in type(one).model_fields:
        values = [
            ""
            if config.inapplicable(option)
            else show(getattr(config, option))
            if option in type(config).model_fields
            else ""
            for config in (one, other)
        ]
        if option not in FIXED and values[0] != values[1]:
            table.add_row(option, *values)
    if not table.row_count:
        table.add_row("nothing", "", "")
    return table
