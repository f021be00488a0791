"""The methods beside each other, for the menu and for `llmlab methods`. No torch."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from llmlab.training.registry import STAGES


def methods_table() -> Group:
    """Returns what each method learns from, what it costs, and when to choose it."""
    blocks: list[Text | Table] = []
    for stage in STAGES.values():
        blocks.append(Text.assemble((stage.title, "bold"), (f"  {stage.kind}", "dim")))
        lines = Table.grid(padding=(0, 1))
        for name in ("when", "data", "memory", "speed"):
            lines.add_row("  " + name, getattr(stage, name), style="" if name == "when" else "dim")
        blocks.append(lines)
    blocks.append(
        Text(
            "Speed: of one update, relative to SFT on as many tokens. A copy: the model's weights once.",
            "dim",
        )
    )
    return Group(*blocks)
