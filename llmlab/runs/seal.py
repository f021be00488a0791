"""Seals: a checkpoint folder counts only with a manifest of its files' sizes and SHA-256 that verifies."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from llmlab.files import write_text_atomically

MANIFEST = "MANIFEST.json"


def seal(folder: Path, **facts: object) -> None:
    """Writes the manifest of a folder, last and atomically; `facts` (step, parent ...) are kept in it."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_text_atomically(folder / MANIFEST, json.dumps({**facts, "files": files}, indent=1) + "\n")


def verify(folder: Path) -> str:
    """Returns "" when the folder is sealed and whole, else what is wrong with it."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        return "was never sealed"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{MANIFEST} cannot be read"
    for name, known in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != known["bytes"]:
            return f"{name} has {path.stat().st_size:,} bytes instead of {known['bytes']:,}"
        if _sha256(path) != known["sha256"]:
            return f"{name} has changed"
    return ""


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
