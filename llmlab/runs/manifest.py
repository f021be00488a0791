"""Manifests: a checkpoint folder counts only if the sizes and SHA-256 of its files are those listed in it."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath

from llmlab.files import read_object, write_text_atomically

MANIFEST = "MANIFEST.json"
GONE = "is not there"
LOOKS = 20  # at a folder that is replaced by a run whenever it was read
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def write_manifest(folder: Path, **facts: object) -> None:
    """Syncs every file to the disk and writes the manifest, last and atomically; `facts` (step,
    parent ...) are kept in it.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    write_text_atomically(folder / MANIFEST, json.dumps({**facts, "files": files}, indent=1) + "\n")
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Syncs the entries of a folder, so that a rename outlives a power cut; where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass  # a file system that has no such thing
    finally:
        os.close(handle)


def verify(folder: Path) -> str:
    """Returns "" when the folder has a manifest and every file is as it says, else what is wrong with it.

    Nothing outside the folder is ever read: links, and names that lead out of it, are faults. A folder that a
        run removed or
    replaced meanwhile is looked at again: half of one and half of another is no damage.
    """
    for _ in range(LOOKS):
        if (before := _identity(folder)) is None:
            return GONE
        fault = _fault(folder)
        if not fault or _identity(folder) == before:
            return fault
    return "was replaced by a run whenever it was read"


def _identity(folder: Path) -> tuple[int, ...] | None:
    """Returns what tells a folder from one that takes its place, None where there is none."""
    try:
        stat = folder.stat()
    except (OSError, ValueError):
        return None
    return stat.st_dev, stat.st_ino, stat.st_ctime_ns


def _fault(folder: Path) -> str:
    try:
        if (folder / MANIFEST).is_symlink():
            return f"{MANIFEST} is a link"
        files = read_object(folder / MANIFEST)["files"]
        expected = {str(name): (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        return "has no manifest"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    if not expected:
        return f"{MANIFEST} names no file"
    for name in expected:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
            return f"{MANIFEST} names a file outside the folder"
    try:
        return _compare(folder, expected)
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _compare(folder: Path, manifest: dict[str, tuple[int, str]]) -> str:
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            return f"{name} is a link"
        if path.suffix in PICKLES and name not in manifest:
            return f"{name} is not in the manifest"
    for name, (size, digest) in manifest.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return f"{name} has changed"
    return ""
