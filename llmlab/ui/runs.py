"""Runs and checkpoints as tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table
from rich.text import Text

from llmlab.errors import LabError
from llmlab.files import read_object
from llmlab.readable import shortened
from llmlab.runs.folder import RUNS, RunFolder, find_model
from llmlab.runs.index import RunRow, run_rows
from llmlab.runs.lineage import lineage
from llmlab.runs.manifest import MANIFEST, verify
from llmlab.runs.record import RECORD

FIGURES = {  # that a run is known by, the first one that it has, in short
    "eval_bits_per_byte": "bits/byte",
    "eval_rewards/accuracies": "pairs right",
    "eval_accuracy": "accuracy",
    "eval_reward": "reward",
    "eval_loss": "loss",
}

SHOWN = 40  # runs of a list: rich takes a second for 500


def chosen_rows(*, tags: Sequence[str] = (), kind: str = "") -> list[RunRow]:
    """Returns the runs below `checkpoints/` that have all these tags and are of this kind ("" for any),
    newest first.
    """
    return [row for row in run_rows(RUNS) if set(tags) <= set(row.tags) and kind in ("", row.kind)]


def runs_table(rows: Sequence[RunRow], most: int | None = None) -> Table:
    """Returns runs as a table.

    Args:
        rows: the runs.
        most: rows that are shown; None for all.
    """
    table = Table(title="runs", title_justify="left")
    for name in ("run", "kind", "status", "step", "held-out", "parent"):
        table.add_column(name, overflow="fold")
    for row in rows[:most]:
        status = f"damaged: {RECORD} {shortened(row.damage, 120)}" if row.damage else row.status
        step = "" if row.step is None else str(row.step)
        shown = Text(str(row.path)).append("".join(f" #{tag}" for tag in row.tags), style="yellow")
        table.add_row(shown, row.kind, status, step, figure(row), _short(row.parent))
    if not table.row_count:
        none = "no such runs" if run_rows(RUNS) else "no runs yet: `llmlab quickstart` makes some"
        table.add_row(none, *[""] * 5)
    if most is not None and len(rows) > most:
        table.caption = f"and {len(rows) - most:,} more: `llmlab runs list --all`"
    return table


def rows_as_json(rows: Sequence[RunRow]) -> str:
    """Returns runs as one line of JSON."""
    return json.dumps([{**asdict(row), "path": str(row.path)} for row in rows])


def figure(row: RunRow) -> str:
    """Returns the held-out figure that a run is known by; "" for none."""
    figures = (f"{word} {row.figures[name]:.4g}" for name, word in FIGURES.items() if name in row.figures)
    return next(figures, "")


def info_rows(name: str) -> list[tuple[str, str]]:
    """Returns the facts about a checkpoint, by name, as texts.

    Raises:
        LabError: when it is no checkpoint on this machine.
    """
    model = Path(find_model(name))
    if not model.exists():
        raise LabError("is not on this machine", where=name)
    return _info_rows(model if model.is_dir() else model.parent)


def info_table(name: str) -> Table:
    """Returns what is known of a checkpoint.

    Raises:
        LabError: when it is no checkpoint on this machine.
    """
    rows = info_rows(name)
    table = Table(title=name, show_header=False, title_justify="left")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _info_rows(folder: Path) -> list[tuple[str, str]]:
    rows = [("model", str(folder))]
    for file in ("config.json", "adapter_config.json"):
        if (folder / file).is_file():
            try:
                shape = read_object(folder / file)
            except (OSError, ValueError):
                rows.append((file, "is damaged"))
                continue
            values = {
                k: v for k, v in shape.items() if isinstance(v, (int, float, str)) and not k.startswith("_")
            }
            rows.append(
                (file.removesuffix(".json"), ", ".join(f"{key} {value}" for key, value in values.items()))
            )
    run = RunFolder(folder.parent)
    record = run.record
    if run.damage:
        rows.append(("record", f"damaged: {RECORD} {run.damage}"))
    if record:
        kind = (record.get("config") or {}).get("kind", "?")
        total, trained = (_counted(record.get(name)) for name in ("parameters", "trained_parameters"))
        rows += [
            ("method", f"{kind}, {_counted(record.get('step'))} steps, {run.status}"),
            ("parameters", f"{total}, {trained} trained"),
            ("attention", record.get("attention") or "?"),
            ("lineage", " <- ".join(lineage(folder.parent))),
        ]
        metrics = record.get("metrics") or {}
        rows += [
            (key, f"{value:.5g}") for key, value in metrics.items() if key in FIGURES and value is not None
        ]
    fault = verify(folder) if (folder / MANIFEST).is_file() else "none: it was not made by llmlab"
    rows.append(("manifest", fault or "verified"))
    return rows


def _counted(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _short(parent: str | None) -> str:
    if not parent:
        return ""
    path = Path(parent)
    return path.parent.name if path.name in ("best", "final") else path.name
