"""Canonical rows: whatever a source holds becomes text, messages, prompt + completion, or prompt + chosen + rejected."""

from __future__ import annotations

import re
from typing import Any

from llmlab.errors import LabError

Row = dict[str, Any]
PROMPTS = ("prompt", "instruction", "question")
ANSWERS = ("completion", "output", "response", "answer")
TURN = re.compile(r"\n\n(Human|Assistant): ?")


def detect(columns: list[str]) -> str:
    """Returns the shape that the columns fit, or "" when they fit none."""
    names = set(columns)
    if {"chosen", "rejected"} <= names:
        return "preference"
    if "messages" in names or "conversations" in names:
        return "messages"
    if names & set(PROMPTS) and names & set(ANSWERS):
        return "prompt_completion"
    return "text" if "text" in names else ""


def shape_of(columns: list[str], sample: Row, wanted: str, needed: tuple[str, ...], where: str) -> str:
    """Returns the shape of a source, detected or as `wanted`, if it is one that the method can use.

    Raises:
        LabError: with the columns and a sample row, when the columns fit no shape or not a needed one.
    """
    shape = detect(columns) if wanted == "auto" else wanted
    if shape in needed:
        return shape
    shown = {name: str(value)[:60] for name, value in sample.items()}
    found = f"holds {shape} rows" if shape else "has columns of no known shape"
    raise LabError(
        f"{found} (columns {', '.join(columns)}; a row: {shown})",
        where=where,
        remedy=f"needed: {' or '.join(needed)} rows",
    )


def to_messages(row: Row) -> list[dict[str, str]]:
    """Returns a row of messages, or of prompt and completion, as a list of messages that ends with the assistant's."""
    if "messages" in row or "conversations" in row:
        return [_message(turn) for turn in row.get("messages") or row["conversations"]]
    prompt = next(row[name] for name in PROMPTS if name in row)
    answer = next(row[name] for name in ANSWERS if name in row)
    if isinstance(prompt, list) and isinstance(answer, list):
        return [_message(turn) for turn in prompt + answer]
    if row.get("input"):
        prompt = f"{prompt}\n\n{row['input']}"
    return [{"role": "user", "content": str(prompt)}, {"role": "assistant", "content": str(answer)}]


def to_pair(row: Row) -> tuple[list[dict[str, str]], str, str] | None:
    """Returns a preference row as the messages of the prompt, the chosen and the rejected answer.

    None when the two answers are equal, one is empty, or they do not share a prompt.
    """
    chosen, rejected = row["chosen"], row["rejected"]
    prompt = next((row[name] for name in PROMPTS if row.get(name)), None)
    if isinstance(chosen, list):
        chosen, rejected = [_message(turn) for turn in chosen], [_message(turn) for turn in rejected]
    elif prompt is None:
        chosen, rejected = parse_conversation(chosen), parse_conversation(rejected)
    if isinstance(chosen, list):
        if not chosen or not rejected:
            return None
        if prompt is None:
            if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
                return None
            prompt = chosen[:-1]
        chosen, rejected = chosen[-1]["content"], rejected[-1]["content"]
    messages = [_message(turn) for turn in prompt] if isinstance(prompt, list) else [{"role": "user", "content": str(prompt)}]
    if chosen == rejected or not chosen.strip() or not rejected.strip():
        return None
    return messages, chosen, rejected


def parse_conversation(text: str) -> list[dict[str, str]]:
    """Returns the turns of a conversation stored as one string, `\\n\\nHuman: ... \\n\\nAssistant: ...`."""
    parts = TURN.split(text if text.startswith("\n\n") else "\n\n" + text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]


def _message(turn: dict[str, Any]) -> dict[str, str]:
    role = turn.get("role") or turn.get("from", "")
    role = {"human": "user", "gpt": "assistant"}.get(role, role)
    return {"role": role, "content": str(turn.get("content") if "content" in turn else turn.get("value", ""))}
