"""Amounts as a person reads them."""

from __future__ import annotations

YEAR = 365.25 * 86_400  # seconds


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


def long_time(seconds: float) -> str:
    """Returns the length of a run as a person says it: `3.2 days`, `2 h 05 min`, `3 min 20 s`, `14 s`."""
    if seconds >= 2 * YEAR:
        return f"{seconds / YEAR:,.0f} years"
    if seconds >= 2 * 86_400:
        return f"{seconds / 86_400:,.3g} days"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def short_time(seconds: float) -> str:
    """Returns a time that is mostly short: `2.4 s`, `35 ms`."""
    return f"{seconds:.3g} s" if seconds >= 0.1 else f"{seconds * 1000:.3g} ms"
