"""A saved conversation: one message a line, as `/save` writes it, or one row of a conversation dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmlab.errors import LabError
from llmlab.files import BadFile, read_bytes

REMEDY = '/save writes such a file: {"role": "user", "content": "..."} a line'


def read_conversation(path: Path) -> list[dict[str, str]]:
    """Returns the messages of a file: a system message first or none, then user and assistant in turn.

    Raises:
        LabError: with the line, when it is not one.
    """
    try:
        text = read_bytes(path).decode("utf-8")
    except FileNotFoundError:
        raise LabError("there is no such file", where=str(path)) from None
    except OSError as error:
        raise LabError(f"cannot be read ({error.strerror})", where=str(path)) from None
    except (BadFile, UnicodeDecodeError) as error:
        reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise LabError(reason, where=str(path)) from None
    rows = [(number, _row(line, f"{path}, line {number}")) for number, line in _lines(text)]
    if len(rows) == 1 and isinstance(rows[0][1].get("messages"), list):
        rows = [(1, one if isinstance(one, dict) else {}) for one in rows[0][1]["messages"]]
    if not rows:
        raise LabError("holds no message", where=str(path), remedy=REMEDY)
    messages: list[dict[str, str]] = []
    for number, row in rows:
        where = f"{path}, line {number}"
        role, content = row.get("role"), row.get("content")
        if role not in ("system", "user", "assistant") or not isinstance(content, str):
            raise LabError("is no message with a role and a text", where=where, remedy=REMEDY)
        turns = [one for one in messages if one["role"] != "system"]
        expected = "assistant" if len(turns) % 2 else "user"
        if role != expected and not (role == "system" and not messages):
            raise LabError(f"is a message of the {role}, where the {expected}'s is expected", where=where)
        messages.append({"role": role, "content": content})
    if messages[-1]["role"] != "assistant":
        raise LabError("ends without an answer", where=str(path), remedy="leave the last message out")
    return messages


def _lines(text: str) -> list[tuple[int, str]]:
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise LabError("is no JSON", where=where, remedy=REMEDY) from None
    if not isinstance(row, dict):
        raise LabError("is no message with a role and a text", where=where, remedy=REMEDY)
    return row
