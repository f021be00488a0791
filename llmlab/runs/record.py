"""The record of a run, `run.json`: what it says, or what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmlab.files import BadFile, read_bytes
from llmlab.readable import TYPE_WORDS, nested_deeper, shortened, type_words

RECORD = "run.json"
MAX_RECORD, MAX_RECORD_DEPTH = 10_000_000, 50  # bytes, and lists and objects inside one another
# the fields of a record that are read again; what else is in it is kept as it is
RECORD_TYPES: dict[str, type] = {
    "config": dict,
    "metrics": dict,
    "data": dict,
    "weights": dict,
    "summary": dict,
    **dict.fromkeys(("status", "started", "parent", "result", "attention"), str),
    **dict.fromkeys(("step", "back_to", "sealed", "parameters", "trained_parameters"), int),
}


def read_record(folder: Path) -> tuple[dict[str, Any], str]:
    """Returns the record of a run and what is wrong with it: (record, "") or ({}, what is wrong in words).

    A folder without a record gives ({}, "").
    """
    path = folder / RECORD
    try:
        record = json.loads(read_bytes(path, MAX_RECORD).decode())
    except (FileNotFoundError, NotADirectoryError):
        return {}, ""
    except OSError as error:
        return {}, f"cannot be read ({error.strerror})"
    except BadFile as error:
        return {}, str(error)
    except (ValueError, RecursionError):
        return {}, "is not JSON"
    fault = _record_fault(record)
    return ({}, fault) if fault else (record, "")


def _record_fault(record: Any) -> str:
    """Returns what is wrong with the data of a record,
    "" when every field has the type that this program writes.
    """
    if not isinstance(record, dict):
        return f"is {type_words(record)}, not an object"
    if nested_deeper(record, MAX_RECORD_DEPTH):
        return f"is nested more than {MAX_RECORD_DEPTH} deep"
    for name, wanted in RECORD_TYPES.items():
        value = record.get(name)
        if value is None:
            continue
        if not isinstance(value, wanted) or isinstance(value, bool):
            return f"`{name}` is {type_words(value)}, not {TYPE_WORDS[wanted]}"
        if isinstance(value, int) and abs(value) >= 1 << 63:
            return f"`{name}` is too large a number"
        if isinstance(value, str) and "\0" in value:
            return f"`{name}` contains a NUL character"
    if (result := record.get("result")) and (result != Path(result).name or len(result) > 255):
        return f"`result` is {shortened(repr(result), 100)}, not the name of a folder in it"
    kind = (record.get("config") or {}).get("kind", "")
    if not isinstance(kind, str):
        return f"`config.kind` is {type_words(kind)}, not a text"
    for name, value in (record.get("metrics") or {}).items():
        if value is not None and not isinstance(value, (int, float)):
            return f"`metrics.{shortened(name, 100)}` is {type_words(value)}, not a number"
        if isinstance(value, int) and abs(value) >= 1 << 63:
            return f"`metrics.{shortened(name, 100)}` is too large a number"
    return ""
