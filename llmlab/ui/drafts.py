"""Forms that were left: their answers are kept, and offered the next time."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmlab.config.base import KindConfig, LabBaseConfig, validate_option
from llmlab.errors import LabError
from llmlab.files import read_object, write_text_atomically
from llmlab.trust import redact

DRAFTS = Path("model_configs/drafts")


def keep(cls: type[KindConfig], values: dict[str, Any]) -> Path:
    """Writes the answers of a form, which need not be valid together, and returns the file."""
    path = DRAFTS / f"{cls.KIND}.json"
    write_text_atomically(path, redact(json.dumps(values, indent=2, default=_plain)) + "\n")
    return path


def kept(cls: type[KindConfig]) -> dict[str, Any]:
    """Returns the answers that are valid by themselves of the form that was left;
    empty when there are none.
    """
    try:
        draft = read_object(DRAFTS / f"{cls.KIND}.json")
    except (OSError, ValueError):
        return {}
    good = {}
    for name, value in draft.items():
        if name in cls.model_fields and name not in ("kind", "schema_version"):
            with suppress(LabError):  # written by another version, or by hand: the form asks for it anew
                good[name] = validate_option(cls, name, value)
    return good


def forget(cls: type[KindConfig]) -> None:
    """Removes what was kept."""
    (DRAFTS / f"{cls.KIND}.json").unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    return value.to_json_dict() if isinstance(value, LabBaseConfig) else str(value)
