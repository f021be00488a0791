"""Whether a name of a model is the address of a server that has it. No torch."""

from __future__ import annotations


def is_url(name: str) -> bool:
    """Returns whether a name is the address of a server."""
    return name.startswith(("http://", "https://"))
