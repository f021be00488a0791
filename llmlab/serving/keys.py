"""The API key of a server: from the environment, a `.env` file or a file of its own; never from the command
line, which the shell's history and every process list show.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path

from llmlab.endpoint import API_KEY
from llmlab.env_file import from_environment
from llmlab.errors import LabError
from llmlab.files import read_bytes
from llmlab.trust import keep_secret

SHORTEST = 8  # characters


def find_key(file: Path | None = None) -> str:
    """Returns the key that requests have to bring; "" where there is none.

    Args:
        file: that holds nothing else; left out, the variable LLMLAB_API_KEY.

    Raises:
        LabError: when it cannot be read, is too short to be a secret, or cannot be sent.
    """
    where = str(file) if file else API_KEY
    if file:
        try:
            key = read_bytes(file, 10_000).decode("utf-8-sig", errors="replace").strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise LabError(f"cannot be read ({reason})", where=where) from None
        if not key:
            raise LabError("holds no API key", where=where)
    else:
        key = from_environment([API_KEY])
    if not key:
        return ""
    keep_secret(f"{API_KEY} of a file" if file else API_KEY, key)
    if not key.isascii() or not key.isprintable() or " " in key:
        raise LabError("the API key holds characters that no header can carry", where=where)
    if len(key) < SHORTEST:
        raise LabError(f"the API key has fewer than {SHORTEST} characters", where=where)
    return key


def is_own_machine(host: str) -> bool:
    """Returns whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def refuse_open(host: str, key: str) -> None:
    """Refuses to let other machines in without a key.

    Raises:
        LabError: with what to do.
    """
    if not key and not is_own_machine(host):
        raise LabError(
            "other machines could use the model: that needs an API key",
            where=f"--host {host}",
            remedy=f"set {API_KEY}, write it to .env, or name a file with --api-key-file",
        )
