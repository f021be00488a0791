"""Which weights a name stands for: hashes of files,
by which caches and adapters know what they were made with.
"""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

from llmlab.errors import LabError
from llmlab.files import read_object
from llmlab.runs.folder import find_model
from llmlab.runs.manifest import MANIFEST

WEIGHTS = ("*.safetensors", "*.gguf", "*.bin", "adapter_config.json", "config.json")
BASE = "base.json"  # beside an adapter: the name and the weights of the model that it was trained on


def known_weights(name: str) -> str:
    """Returns the hash of a checkpoint's weights where all of them are on this machine, else ""."""
    try:
        return weights_fingerprint(name, download=False)
    except (LabError, OSError):
        return ""


def weights_fingerprint(name: str, *, download: bool = True) -> str:
    """Returns a hash of a checkpoint's weights, those of an adapter's base included.

    Args:
        name: as a person gives it.
        download: whether a hub id that is not on this machine is fetched.

    Raises:
        LabError: when there is no such checkpoint.
    """
    where = Path(find_model(name))
    if not where.exists():  # a hub id: its files in huggingface_hub's cache, whose names are their hashes
        from huggingface_hub import snapshot_download

        try:
            where = Path(snapshot_download(name, local_files_only=True))
        except Exception:  # not downloaded yet
            try:
                where = Path(snapshot_download(name, local_files_only=not download))
            except Exception as error:  # huggingface_hub raises many kinds for one situation
                text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
                raise LabError(
                    f"is not on this machine and could not be downloaded from the hub ({text})",
                    where=name,
                    remedy="use a local run or folder",
                ) from None
    digest = hashlib.sha256()
    files = (
        [where] if where.is_file() else sorted({file for pattern in WEIGHTS for file in where.glob(pattern)})
    )
    manifest = _manifest_hashes(where)
    for file in files:
        file_hash = manifest.get(file.name)
        if file_hash is None:
            stat = file.stat()
            file_hash = _file_hash(file, stat.st_size, stat.st_mtime_ns)
        digest.update(f"{file.name}:{file_hash}".encode())
    if base := base_of(where):
        digest.update(weights_fingerprint(base, download=download).encode())
    return digest.hexdigest()[:32]


def base_of(folder: Path) -> str:
    """Returns the name of the model that an adapter or a dual-head model's heads were trained on;
    "" for whole models.
    """
    for file, key in (("adapter_config.json", "base_model_name_or_path"), ("config.json", "backbone")):
        try:
            base = read_object(folder / file).get(key)
        except (OSError, ValueError):
            continue
        if isinstance(base, str) and base:
            return base
    return ""


def note_base(adapter: Path, base: str) -> None:
    """Writes beside an adapter which base it belongs to."""
    try:
        fingerprint = weights_fingerprint(base)
    except LabError:  # gone from the disk since it was loaded
        return
    (adapter / BASE).write_text(json.dumps({"name": base, "weights": fingerprint}) + "\n")


def check_base(adapter: Path, base: str, *, made: str = "an adapter") -> None:
    """Compares a base with the one that an adapter, or the heads of a dual-head model, were trained on.

    Raises:
        LabError: when its weights are others.
    """
    try:
        wanted = read_object(adapter / BASE)["weights"]
    except (OSError, ValueError, KeyError):  # made elsewhere, or by an older version
        return
    if weights_fingerprint(base) != wanted:
        holds, named = ("is an adapter", "`base_model_name_or_path` in adapter_config.json")
        if made == "heads":
            holds, named = "holds heads", "`backbone` in config.json"
        raise LabError(
            f"{holds} of another base: {base} does not hold the weights it was trained on",
            where=str(adapter),
            remedy=f"restore that model, or set {named} and remove {BASE}",
        )


@functools.lru_cache
def _file_hash(file: Path, size: int, changed: int) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _manifest_hashes(folder: Path) -> dict[str, str]:
    """Returns the hashes that a manifest lists of files that have not been touched since."""
    try:
        manifest = folder / MANIFEST
        files = read_object(manifest)["files"]
        written = manifest.stat().st_mtime_ns
        return {
            name: entry["sha256"]
            for name, entry in files.items()
            if (folder / name).stat().st_size == entry["bytes"]
            and (folder / name).stat().st_mtime_ns <= written
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
