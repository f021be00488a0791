"""Values of a `.env` file in the working directory: where a secret stands that is in no environment."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from llmlab.errors import LabError
from llmlab.files import read_bytes

ENV_FILE = Path(".env")
_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*?)\s*")


def from_environment(names: Sequence[str]) -> str:
    """Returns the first of these variables that is set, in the environment, then in the `.env` file here; ""
    where none is.

    Raises:
        LabError: when the file is there and cannot be read.
    """
    values = [os.environ.get(name, "").strip() for name in names]
    return next((value for value in values if value), "") or _from_file(names)


def _from_file(names: Sequence[str]) -> str:
    try:
        text = read_bytes(ENV_FILE, 1_000_000).decode("utf-8-sig", errors="replace")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise LabError(f"cannot be read ({error})", where=str(ENV_FILE)) from None
    values = {}
    for line in text.splitlines():
        if match := _LINE.fullmatch(line):
            values[match[1]] = _value(match[2])
    return next((values[name] for name in names if values.get(name)), "")


def _value(text: str) -> str:
    """Returns what stands behind the equals sign: without its quotes, or without a comment behind it."""
    if len(text) > 1 and text[0] in "'\"" and (end := text.find(text[0], 1)) > 0:
        return text[1:end]
    return re.split(r"\s+#", text)[0]
