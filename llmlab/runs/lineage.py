"""What a run came from: each run's record names its parent."""

from __future__ import annotations

from pathlib import Path

from llmlab.runs.folder import MODELS, RunFolder


def lineage(run: Path) -> list[str]:
    """Returns a run and what it came from, youngest first; the last one may be no run."""
    names: list[str] = []
    seen: set[Path] = set()
    current: Path | None = run
    while current is not None and current not in seen:
        seen.add(current)
        names.append(str(current))
        parent = RunFolder(current).record.get("parent")
        if not parent:
            break
        path = Path(parent)
        try:
            current = path.resolve().parent if path.name in MODELS or path.is_symlink() else None
        except (OSError, RuntimeError):  # a name that no file can have, links in a circle
            current = None
        if current is None:
            names.append(parent)
        elif current.is_relative_to(Path.cwd()):
            current = current.relative_to(Path.cwd())
    return names
