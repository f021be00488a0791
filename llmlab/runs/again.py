"""The config of a run once more, with changes, for a run of its own."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from llmlab.config import apply_changes
from llmlab.errors import LabError
from llmlab.runs.details import find_run
from llmlab.runs.folder import run_config


def again_as(run: str, changes: dict[str, Any], name: str = "") -> tuple[Path, Path]:
    """Returns the folder of a run, whose config is started again, and the folder of the new run.

    Args:
        run: as a person names it.
        changes: of its options.
        name: of the new run; left out, `RUN-2`, `RUN-3` ...: the first that is not there.

    Raises:
        LabError: when there is no such run, a change does not validate, the new folder is there, or nothing
            would be another run (a changed output folder is asked for by `name`).
    """
    source = find_run(run).path
    if "output_dir" in changes:
        raise LabError("`output_dir` is set by the name of the new run", remedy="--name NAME")
    apply_changes(run_config(source), changes)
    if name:
        folder = Path(name) if "/" in name else source.with_name(name)
        if folder.exists():
            raise LabError("already exists", where=str(folder), remedy="choose another name")
        return source, folder
    numbered = (source.with_name(f"{source.name}-{number}") for number in itertools.count(2))
    return source, next(folder for folder in numbered if not folder.exists())
