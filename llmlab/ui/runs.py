"""Runs and checkpoints as tables."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from llmlab.errors import LabError
from llmlab.files import read_object
from llmlab.readable import shortened
from llmlab.runs.folder import RECORD, RunFolder, all_runs, find_model
from llmlab.runs.lineage import lineage
from llmlab.runs.manifest import MANIFEST, verify

FIGURES = ("eval_bits_per_byte", "eval_rewards/accuracies", "eval_accuracy", "eval_loss")


def runs_table() -> Table:
    """Returns every run below `checkpoints/`, newest first."""
    table = Table(title="runs", title_justify="left")
    for name in ("run", "kind", "status", "step", "held-out", "parent"):
        table.add_column(name, overflow="fold")
    for run in all_runs():
        record = run.record
        metrics = record.get("metrics") or {}
        figures = [
            f"{name.removeprefix('eval_')} {metrics[name]:.4g}"
            for name in FIGURES
            if metrics.get(name) is not None
        ]
        figure = next(iter(figures), "")
        kind, step = (record.get("config") or {}).get("kind", "?"), record.get("step")
        status = f"damaged: {RECORD} {shortened(damage, 120)}" if (damage := run.damage) else run.status
        table.add_row(
            str(run.path),
            kind,
            status,
            "" if step is None else str(step),
            figure,
            _short(record.get("parent")),
        )
    if not table.row_count:
        table.add_row("no runs yet: `llmlab quickstart` makes some", *[""] * 5)
    return table


def info_table(name: str) -> Table:
    """Returns what is known of a checkpoint.

    Raises:
        LabError: when it is no checkpoint on this machine.
    """
    model = Path(find_model(name))
    if not model.exists():
        raise LabError("is not on this machine", where=name)
    folder = model if model.is_dir() else model.parent
    table = Table(title=name, show_header=False, title_justify="left")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for row in _info_rows(folder):
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
