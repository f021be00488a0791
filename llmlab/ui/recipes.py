"""The recipes beside each other, for the menu and for `llmlab recipes`. No torch."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from llmlab.config.recipes import RECIPES


def recipes_table() -> Group:
    """Returns what each recipe makes, on what hardware, from what data, and whose it is."""
    blocks: list[Text | Table] = []
    for name, recipe in RECIPES.items():
        blocks.append(Text.assemble((name, "bold"), f"  {recipe.title}", (f"  {recipe.kind}", "dim")))
        lines = Table.grid(padding=(0, 1))
        for part in ("hardware", "data", "source"):
            lines.add_row("  " + part, getattr(recipe, part), style="" if part == "hardware" else "dim")
        blocks.append(lines)
    blocks.append(Text("llmlab new KIND --preset NAME --yes writes one as a config.", "dim"))
    return Group(*blocks)
