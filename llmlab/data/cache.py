"""Prepared data on disk: Arrow folders keyed by a fingerprint of everything they depend on, complete or absent."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab.errors import LabError

if TYPE_CHECKING:
    from datasets import DatasetDict

FORMAT = 1  # raised whenever prepared rows change their meaning


def cache_root() -> Path:
    """Returns the folder of prepared data: `LLMLAB_CACHE`, else `llmlab` in the user's cache folder."""
    base = os.environ.get("LLMLAB_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llmlab"
    return Path(base)


def cached(key: dict[str, Any], build: Callable[[], DatasetDict]) -> DatasetDict:
    """Returns the datasets stored under `key`, memory-mapped, building and storing them first where there are none.

    A build is written aside and renamed: a killed one leaves nothing that would be taken for data, and of two at the
    same time one wins and both use it.

    Raises:
        LabError: when the cache folder cannot be written.
    """
    from datasets import load_from_disk

    text = json.dumps({**key, "format": FORMAT}, sort_keys=True, default=str)
    folder = cache_root() / "data" / hashlib.sha256(text.encode()).hexdigest()[:24]
    if not folder.exists():
        built = build()
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
            try:
                built.save_to_disk(str(aside / "data"))
                (aside / "data" / "key.json").write_text(text)
                os.rename(aside / "data", folder)
            except OSError:
                if not folder.exists():
                    raise
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        except OSError as error:
            raise LabError(
                f"prepared data cannot be written ({error.strerror})",
                where=str(folder.parent),
                remedy="free space, or set LLMLAB_CACHE to another folder",
            ) from None
    return load_from_disk(str(folder))
