"""Whether the checkpoints and models of a run are whole."""

from __future__ import annotations

import time
from pathlib import Path

from llmlab.errors import LabError
from llmlab.runs.folder import MODELS, RUNS, RunFolder
from llmlab.runs.manifest import GONE, verify

BEING_REPLACED = 2.0  # seconds that a model may be missing for, between two renames


def verify_run(name: str) -> dict[Path, str]:
    """Returns what is wrong with each checkpoint and model of a run, "" where it is whole.

    The run may be at work: what it removes meanwhile is left out.

    Raises:
        LabError: when there is no such run, or it holds no checkpoints.
    """
    folder = next((path for path in (Path(name), RUNS / name) if path.is_dir()), None)
    if folder is None:
        raise LabError("there is no such run", where=name, remedy="`llmlab runs` lists them")
    folders = [*(one.path for one in RunFolder(folder).checkpoints()), *(folder / model for model in MODELS)]
    faults = {path: fault for path in folders if (fault := _fault(path)) != GONE}
    if not faults:
        raise LabError("holds no checkpoints", where=name)
    return faults


def _fault(path: Path) -> str:
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
