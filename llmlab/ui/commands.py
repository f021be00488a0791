"""Commands of the lab, started by the menu: each is a process of its own, as from the command line."""

from __future__ import annotations

import signal
import subprocess
import sys

_started = 0


def count() -> int:
    """Returns how many commands were started."""
    return _started


def llmlab(*arguments: str) -> int:
    """Runs a command, waits for it and returns its exit code.

    Ctrl+C is for that process, which may have to save first.
    """
    global _started
    _started += 1
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.run([sys.executable, "-m", "llmlab", *arguments], check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)
