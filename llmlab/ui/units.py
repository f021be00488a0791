"""Amounts as a person reads them."""

from __future__ import annotations


def size(count: float) -> str:
    """Returns bytes as a person reads them: `3.2 MB`."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def short_count(count: float) -> str:
    """Returns a count as a person says it: `1.3M`."""
    for unit in ("", "k", "M"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}B"


def duration(seconds: float) -> str:
    """Returns seconds as `2h05m`, `3m20s` or `14s`."""
    if seconds != seconds:
        return "?"
    seconds = int(seconds)
    if seconds >= 3600:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
    return f"{seconds // 60}m{seconds % 60:02d}s" if seconds >= 60 else f"{seconds}s"
