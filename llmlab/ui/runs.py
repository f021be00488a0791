"""Runs and checkpoints as tables."""

from __future__ import annotations

import time
from pathlib import Path

from rich.table import Table

from llmlab.errors import LabError
from llmlab.files import read_object
from llmlab.readable import shortened
from llmlab.runs.folder import MODELS, RECORD, RUNS, RunFolder, all_runs, find_model
from llmlab.runs.manifest import GONE, MANIFEST, verify

FIGURES = ("eval_bits_per_byte", "eval_rewards/accuracies", "eval_accuracy", "eval_loss")

BEING_REPLACED = 2.0  # seconds that a model may be missing for, between two renames


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
        table.add_row("none yet: `llmlab quickstart` makes some", *[""] * 5)
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
            kept = {
                k: v for k, v in shape.items() if isinstance(v, (int, float, str)) and not k.startswith("_")
            }
            rows.append(
                (file.removesuffix(".json"), ", ".join(f"{key} {value}" for key, value in kept.items()))
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
    fault = verify(folder) if (folder / MANIFEST).is_file() else "was not made by this lab"
    rows.append(("seal", fault or "whole"))
    return rows


def lineage(run: Path) -> list[str]:
    """Returns a run and what it came from, youngest first."""
    names, seen = [], set()
    current: Path | None = run
    while current is not None and current not in seen:
        seen.add(current)
        names.append(str(current))
        parent = RunFolder(current).record.get("parent")
        if not parent:
            break
        path = Path(parent)
        try:
            current = path.resolve().parent if path.name in ("best", "final") or path.is_symlink() else None
        except (OSError, RuntimeError):  # a name that no file can have, links in a circle
            current = None
        if current is None:
            names.append(parent)
        else:
            current = current.relative_to(Path.cwd()) if current.is_relative_to(Path.cwd()) else current
    return names


def verify_run(name: str) -> tuple[list[str], bool]:
    """Returns a line for each checkpoint and model of a run, and whether all are whole.

    The run may be at work: what it removes meanwhile is left out.

    Raises:
        LabError: when there is no such run.
    """
    folder = next((p for p in (Path(name), RUNS / name) if p.is_dir()), None)
    if folder is None:
        raise LabError("there is no such run", where=name, remedy="`llmlab runs` lists them")
    found = [*(one.path for one in RunFolder(folder).checkpoints()), *(folder / model for model in MODELS)]
    faults = {path: fault for path in found if (fault := _checked(path)) != GONE}
    if not faults:
        raise LabError("holds no checkpoints", where=name)
    return [f"{path}: {fault or 'whole'}" for path, fault in faults.items()], not any(faults.values())


def _checked(path: Path) -> str:
    """Returns what `verify` says of a folder; where a run is just replacing it,
    of the one that takes its place.
    """
    until = time.monotonic() + BEING_REPLACED
    while (fault := verify(path)) == GONE and time.monotonic() < until:
        if not path.is_dir():
            if not path.with_name(f".{path.name}-old").is_dir() and not path.is_dir():
                break
            time.sleep(0.01)
    return fault


def _counted(number: int | None) -> str:
    return "?" if number is None else f"{number:,}"


def _short(parent: str | None) -> str:
    if not parent:
        return ""
    path = Path(parent)
    return path.parent.name if path.name in ("best", "final") else path.name
