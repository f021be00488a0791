"""What a person brought before: names of models by what they were wanted for, the newest first."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from llmlab.errors import LabError
from llmlab.files import read_object, settings_folder, write_text_atomically

FILE, MOST = "remembered.json", 5


def remembered(use: str) -> list[str]:
    """Returns the models that were brought for a use (a key of `FITS`) or for any other, its own first.

    What was brought to generate is not offered where a score is wanted.
    """
    kept = _kept()
    own = kept.get(use, [])
    others = [name for other, names in kept.items() if other != use != "score" for name in names]
    return list(dict.fromkeys([*own, *others]))[:MOST]


def remember(use: str, name: str) -> None:
    """Notes that a model was brought; where nothing can be written, it is forgotten."""
    kept = _kept()
    kept[use] = list(dict.fromkeys([name, *kept.get(use, [])]))[:MOST]
    with suppress(LabError, OSError):
        write_text_atomically(_file(), json.dumps(kept, indent=2, ensure_ascii=False) + "\n")


def _file() -> Path:
    return settings_folder() / FILE


def _kept() -> dict[str, list[str]]:
    try:
        kept = read_object(_file())
    except (OSError, ValueError):  # none yet, or another program's: it is made anew
        return {}
    return {
        use: [name for name in names if isinstance(name, str)]
        for use, names in kept.items()
        if isinstance(names, list)
    }
