"""Reads what `faulthandler` wrote of a process."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+) in (?P<name>.+)')


def innermost(file: Path) -> str:
    """Returns where the main thread was: `name (file:line)` of its innermost frame; "" where nothing was
    written.
    """
    text = ""
    with suppress(OSError):
        text = file.read_text(errors="replace")
    threads = re.split(r"\n\s*\n", text.strip())
    for thread in reversed(threads):  # the main thread is the last one
        if found := FRAME.search(thread):
            return f"{found['name']} ({Path(found['file']).name}:{found['line']})"
    return ""
