"""The token of the hub: from the environment, a `.env` file here, or what `hf auth login` stored.

It is handed on as an argument, never written, and known to `redact`, so that no message shows it.
"""

from __future__ import annotations

from llmlab.env_file import from_environment
from llmlab.errors import LabError
from llmlab.trust import keep_secret

NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def find_token() -> str:
    """Returns the token of the hub.

    Raises:
        LabError: when there is none, or it cannot be sent.
    """
    from huggingface_hub import get_token

    stored = from_environment(NAMES) or get_token() or ""
    if not stored:
        raise LabError(
            "a push needs a token of the hub",
            remedy="make one that can write (Settings, Access Tokens), and set HF_TOKEN or write it to .env",
        )
    keep_secret("HF_TOKEN", stored)
    if not (stored.isascii() and stored.isprintable()) or " " in stored:
        raise LabError("the token of the hub holds characters that no token has", remedy="copy it again")
    return stored
