"""Renaming and deleting a run, without breaking what came from it.

Other runs name it in their record (`parent`, and the options that name models), and the weights of some name
it as well: an adapter and a dual head are nothing without their base.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmlab.errors import LabError
from llmlab.files import write_text_atomically
from llmlab.readable import listed
from llmlab.runs.details import size_of
from llmlab.runs.folder import MODELS, RUNS, RunFolder, all_runs, read_json
from llmlab.runs.lock import HOLDER, is_training, run_lock
from llmlab.runs.record import RECORD

# options of a config, at any depth, that name a model or a tokenizer
NAMES_A_MODEL = (
    "policy_checkpoint",
    "backbone",
    "init_from",
    "reference_checkpoint",
    "reward_model",
    "tokenizer_name",
    "tokenizer",
)
BASES = (("adapter_config.json", "base_model_name_or_path"), ("config.json", "backbone"))


@dataclass(frozen=True)
class Child:
    """A run that names another one.

    Attributes:
        run: its folder.
        unfinished: whether it is not at its end, so that resuming it reads the other one.
        weights: a folder of its weights that are nothing without those of the other one, None for none.
    """

    run: RunFolder
    unfinished: bool
    weights: Path | None

    @property
    def need(self) -> str:
        """Why it needs the other one, in words; "" where it only names it."""
        if self.weights:
            return f"{self.weights} is an adapter of its weights"
        return f"{self.run.path} is not finished and reads it" if self.unfinished else ""


@dataclass(frozen=True)
class Deletion:
    """What a deletion would do: bytes that become free, and the runs whose lineage would end there."""

    path: Path
    size: int
    orphans: tuple[Path, ...]


def children(run: RunFolder) -> list[Child]:
    """Returns the runs that name a run, of those in `checkpoints/` and beside it."""
    target = run.path.resolve()
    beside = [RunFolder(path.parent) for path in run.path.absolute().parent.glob(f"*/{RECORD}")]
    others = {one.path.resolve(): one for one in (*beside, *all_runs(RUNS))}
    found = []
    for path, other in others.items():
        record = other.record
        if path == target:
            continue
        weights = _weights_on(other, target)
        if weights or any(_is_in(name, target) for name in _names(record)):
            found.append(Child(other, record.get("status") != "done", weights))
    return found


def rename_run(run: RunFolder, name: str) -> tuple[Path, list[Path]]:
    """Renames a run, and writes its new name into the records of the runs that came from it.

    Returns:
        Its new folder, and the runs whose record was changed.

    Raises:
        LabError: when the name cannot be used, a process trains in it or in a child, or the weights of a
            child name it: those are under a manifest, and stay as they are.
    """
    target = _new_folder(run, name)
    named = children(run)
    if held := [child.need for child in named if child.weights]:
        raise LabError(
            f"cannot be renamed: {listed(held)}",
            where=str(run.path),
            remedy="merge it first (`llmlab merge RUN`), and delete the adapter",
        )
    with ExitStack() as stack:
        for one in (run, *(child.run for child in named)):
            stack.enter_context(run_lock(one.path))
        before = run.path.resolve()
        try:
            run.path.rename(target)
        except OSError as error:
            raise LabError(f"cannot be renamed ({error.strerror})", where=str(run.path)) from None
        moved = RunFolder(target)
        _renamed_record(moved, before, target)
        for child in named:
            _renamed_record(child.run, before, target)
        (target / HOLDER).unlink(missing_ok=True)
    return target, [child.run.path for child in named]


def deletion(run: RunFolder) -> Deletion:
    """Returns what deleting a run would do.

    Raises:
        LabError: when a process trains in it, or a run needs it.
    """
    if is_training(run.path):
        raise LabError("a process is training in it", where=str(run.path), remedy="stop it first")
    named = children(run)
    if needs := [child.need for child in named if child.need]:
        raise LabError(
            f"is needed: {listed(needs)}",
            where=str(run.path),
            remedy="finish or delete those first; an adapter can be merged with `llmlab merge`",
        )
    return Deletion(run.path, size_of(run.path), tuple(child.run.path for child in named))


def delete_run(run: RunFolder) -> Deletion:
    """Deletes a run's folder, and returns what was done.

    Raises:
        LabError: as `deletion`, and when the folder cannot be removed.
    """
    planned = deletion(run)
    aside = run.path.absolute().with_name(f".deleting-{run.path.name}")
    try:
        with run_lock(run.path):
            run.path.rename(aside)  # at once: a kill leaves no half of a run under its name
        shutil.rmtree(aside)
    except OSError as error:
        raise LabError(f"cannot be removed ({error.strerror})", where=str(error.filename)) from None
    return planned


def _new_folder(run: RunFolder, name: str) -> Path:
    if not name or name in (".", "..") or "\0" in name or name.startswith("."):
        raise LabError(f"{name!r} is no name of a run", remedy="use letters, digits and . + - _")
    target = Path(name) if "/" in name else run.path.with_name(name)
    if target.exists() or target.is_symlink():
        raise LabError("already exists", where=str(target), remedy="choose another name")
    if not target.parent.is_dir():
        raise LabError("there is no such folder", where=str(target.parent), remedy="make it first")
    return target


def _renamed_record(run: RunFolder, before: Path, target: Path) -> None:
    """Writes the new name of a folder wherever a record names the old one."""

    def renamed(name: str) -> str:
        path = _as_path(name)
        if path is None or not _within(path, before):
            return name
        new = target / path.relative_to(before)
        return str(new if not Path(name).is_absolute() else new.absolute())

    record = run.record
    config = _mapped(record.get("config"), renamed)
    if isinstance(config, dict) and run.path == target:
        config["output_dir"] = str(target)
        config["name"] = target.name if config.get("name") else config.get("name")
    changed = {**record, "config": config}
    if isinstance(parent := record.get("parent"), str):
        changed["parent"] = renamed(parent)
    write_text_atomically(run.path / RECORD, json.dumps(changed, indent=2, default=str) + "\n")


def _mapped(data: Any, change: Callable[[str], str], option: str = "") -> Any:
    """Returns JSON data with the names of models in it changed."""
    if isinstance(data, dict):
        inside = option in NAMES_A_MODEL  # a reward: {"name": ..., "weight": ...}
        return {key: _mapped(value, change, option if inside else key) for key, value in data.items()}
    if isinstance(data, list):
        return [_mapped(value, change, option) for value in data]
    return change(data) if isinstance(data, str) and option in NAMES_A_MODEL else data


def _names(record: dict[str, Any]) -> Iterator[str]:
    found: list[str] = []

    def note(name: str) -> str:
        found.append(name)
        return name

    _mapped(record.get("config"), note)
    if isinstance(parent := record.get("parent"), str):
        found.append(parent)
    yield from found


def _is_in(name: str, target: Path) -> bool:
    path = _as_path(name)
    return path is not None and _within(path, target)


def _as_path(name: str) -> Path | None:
    """Returns the path that a name of a model stands for, absolute; None for what is no path."""
    try:
        path = Path(name)
        if not path.exists() and "/" not in name:
            path = RUNS / name
        return path.resolve()
    except (OSError, ValueError, RuntimeError):
        return None


def _within(path: Path, folder: Path) -> bool:
    return path == folder or path.is_relative_to(folder)


def _weights_on(run: RunFolder, target: Path) -> Path | None:
    """Returns a folder of weights of a run that are nothing without those of another one."""
    for folder in [*(run.path / name for name in MODELS), *(one.path for one in run.checkpoints())]:
        for file, option in BASES:
            base = read_json(folder / file).get(option)
            if isinstance(base, str) and _is_in(base, target):
                return folder
    return None
