"""The token of the hub: from the environment, a `.env` file here, or what `hf auth login` stored.

It is handed on as an argument, never written, and known to `redact`, so that no message shows it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from llmlab.errors import LabError
from llmlab.files import read_bytes
from llmlab.trust import keep_secret

NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
ENV_FILE = Path(".env")
_LINE = re.compile(r"\s*(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*?)\s*")


def find_token() -> str:
    """Returns the token of the hub.

    Raises:
        LabError: when there is none, or it cannot be sent.
    """
    from huggingface_hub import get_token

    values = {name: os.environ.get(name, "").strip() for name in NAMES}
    stored = next((value for value in values.values() if value), "") or _from_file() or get_token() or ""
    if not stored:
        raise LabError(
            "a push needs a token of the hub",
            remedy="make one that can write (Settings, Access Tokens), and set HF_TOKEN or write it to .env",
        )
    keep_secret("HF_TOKEN", stored)
    if not (stored.isascii() and stored.isprintable()) or " " in stored:
        raise LabError("the token of the hub holds characters that no token has", remedy="copy it again")
    return stored


def _from_file() -> str:
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
    return next((values[name] for name in NAMES if values.get(name)), "")


def _value(text: str) -> str:
    """Returns what stands behind the equals sign: without its quotes, or without a comment behind it."""
    if len(text) > 1 and text[0] in "'\"" and (end := text.find(text[0], 1)) > 0:
        return text[1:end]
    return re.split(r"\s+#", text)[0]
