"""Conversations: turns of any form as messages of `role` and `content`, with tool calls and reasoning."""

from __future__ import annotations

import json
import re
from typing import Any

from llmlab.data.schemas import CALL_ID, PARTS_OF_A_TURN, InvalidRow, Messages
from llmlab.readable import TYPE_WORDS, type_words

TURN = re.compile(r"\n\n(Human|Assistant): ?")
ROLES = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
KNOWN_ROLES = ("system", "user", "assistant", "tool")


def parse_conversation(text: str) -> Messages:
    """Returns the turns of a conversation stored as one string, `\\n\\nHuman: ... \\n\\nAssistant: ...`."""
    parts = TURN.split(text if text.startswith("\n\n") else "\n\n" + text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": content.strip()}
        for who, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def as_messages(value: Any) -> Messages:
    """Returns a list of turns, or a conversation in one string, as messages of role and content.

    Raises:
        InvalidRow: when a turn has no role or no text.
    """
    if isinstance(value, str):
        return parse_conversation(value)
    return [message(turn) for turn in value]


def message(turn: Any) -> dict[str, Any]:
    """Returns one turn as `role` and `content`, whatever it calls them, with its tool calls, name and
    reasoning.

    Raises:
        InvalidRow: when it has no known role or no text.
    """
    if not isinstance(turn, dict):
        raise InvalidRow(f"a turn is {type(turn).__name__}, not an object", malformed=True)
    role = turn.get("role") or turn.get("from") or turn.get("speaker")
    role = ROLES.get(str(role).lower(), str(role).lower())
    if role not in KNOWN_ROLES:
        raise InvalidRow(f"unknown role {role!r}", malformed=True)
    content = next((turn[name] for name in ("content", "value", "text") if turn.get(name) is not None), None)
    if isinstance(content, list):  # parts of one message
        others = {
            str(part.get("type")) if isinstance(part, dict) else type_words(part)
            for part in content
            if not isinstance(part.get("text") if isinstance(part, dict) else part, str)
        }
        if others:
            raise InvalidRow(
                f"a turn of {role!r} holds a part of type {min(others)!r}: only text can be read",
                malformed=True,
            )
        content = "".join(part if isinstance(part, str) else part["text"] for part in content)
    parts = {name: turn[name] for name in (*PARTS_OF_A_TURN, CALL_ID) if turn.get(name)}
    for name, part in parts.items():
        wanted = list if name == "tool_calls" else str
        if not isinstance(part, wanted):
            raise InvalidRow(
                f"the `{name}` of a turn of {role!r} is {type_words(part)}, not {TYPE_WORDS[wanted]}",
                malformed=True,
            )
    if parts.get("tool_calls"):
        parts["tool_calls"] = [_tool_call(call) for call in parts["tool_calls"]]
        content = content or ""
    if not isinstance(content, str):
        raise InvalidRow(f"a turn of {role!r} has no text", malformed=True)
    return {"role": role, "content": content, **parts}


def tools(value: Any) -> list[dict[str, Any]]:
    """Returns the tools of a row, a list or its JSON text, as the list that chat templates take.

    Raises:
        InvalidRow: when it is neither.
    """
    try:
        tool_list = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        tool_list = None
    if not isinstance(tool_list, list) or not all(isinstance(tool, dict) for tool in tool_list):
        raise InvalidRow("column 'tools' is not a list of objects", malformed=True)
    plain: list[dict[str, Any]] = without_nulls(tool_list)
    return plain


def without_nulls(value: Any) -> Any:
    """Returns nested data without the empty fields that a table adds:
    there all rows have the fields of any row.
    """
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _tool_call(call: Any) -> dict[str, Any]:
    function = (call.get("function") or call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRow("a tool call has no function with a name", malformed=True)
    arguments = function.get("arguments")
    if isinstance(arguments, str):  # as an API gives them
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise InvalidRow(
                f"the arguments of the tool call {function['name']!r} are not JSON", malformed=True
            ) from None
    call_data = {
        "type": "function",
        "function": {"name": function["name"], "arguments": without_nulls(arguments or {})},
    }
    return {**({"id": call["id"]} if call.get("id") else {}), **call_data}
