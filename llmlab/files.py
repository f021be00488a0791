"""Files that are whole or absent."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from llmlab.errors import LabError


def write_text_atomically(path: Path, text: str) -> None:
    """Writes a text file under a temporary name and renames it.

    Raises:
        LabError: when that fails; nothing is left behind.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8") as file:
            temporary = file.name
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise LabError(
            f"cannot be written ({error.strerror})", where=str(path), remedy="free space or choose another place"
        ) from None
