"""Canonical rows: whatever a source holds becomes one of six rows, and trainers see nothing else.

`text` · `messages` · `prompt` + `completion` · `prompt` + `chosen` + `rejected` · `prompt` + `answer` and
`prompt` alone (for rewards). Prompts are lists of messages, completions and answers are text. A
classification is a prompt whose completion is the label's word, with `choices` (all label words) and `label`
(the number of the right one) beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]
Messages = list[dict[str, Any]]
# what a turn may hold beside role and content; whether a chat template renders it is tried
# (`render.check_parts`)
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
PARTS_OF_A_TURN = ("tool_calls", "name", *THOUGHTS)
CALL_ID = "tool_call_id"  # of a tool's answer; some templates write it (Mistral's), others go by the order
TOOLS = "tools"  # the tools that a conversation may use travel with its first turn

SHAPES = ("text", "messages", "prompt_completion", "preference", "prompt_answer", "prompt")
CONVERSATIONS = ("messages", "prompt_completion")


class InvalidRow(Exception):
    """A row that cannot be used.

    Attributes:
        reason: what is wrong with it, in words that can be counted.
        malformed: whether it breaks the form (a missing column, a wrong type); else it merely has nothing to
            teach (an empty answer, two equal ones).
    """

    def __init__(self, reason: str, *, malformed: bool = False):
        super().__init__(reason)
        self.reason = reason
        self.malformed = malformed


def check(row: Row) -> Row:
    """Returns the canonical row if it has something to teach and its turns are in order.

    Raises:
        InvalidRow: when it has not.
    """
    if "text" in row:
        if not row["text"].strip():
            raise InvalidRow("empty text")
        return row
    if "messages" in row:
        check_turns(row["messages"])
        if row["messages"][-1]["role"] != "assistant":
            raise InvalidRow("does not end with the assistant")
        if not row["messages"][-1]["content"].strip() and not row["messages"][-1].get("tool_calls"):
            raise InvalidRow("empty answer")
        return row
    check_turns(row["prompt"])
    if row["prompt"][-1]["role"] not in ("user", "tool"):
        raise InvalidRow("the prompt does not end with the user", malformed=True)
    if not row["prompt"][-1]["content"].strip():
        raise InvalidRow("empty prompt")
    answers = [row[name] for name in ("completion", "chosen", "rejected", "answer") if name in row]
    if not all(answer.strip() for answer in answers):
        raise InvalidRow("empty answer")
    if "chosen" in row and row["chosen"] == row["rejected"]:
        raise InvalidRow("chosen and rejected are equal")
    return row


def check_turns(messages: Messages) -> None:
    """Refuses conversations whose roles do not take turns: system messages first, then user and assistant in
    turn.

    Raises:
        InvalidRow: with the place of the first turn that is out of order.
    """
    if not messages:
        raise InvalidRow("no messages")
    turns = [message["role"] for message in messages]
    start = next((index for index, role in enumerate(turns) if role != "system"), len(turns))
    if start == len(turns):
        raise InvalidRow("only system messages", malformed=True)
    before = "assistant"
    for index, role in enumerate(turns[start:], start + 1):
        allowed = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}.get(
            role, ()
        )
        if before not in allowed:
            raise InvalidRow(
                f"roles do not alternate: turn {index} is {role!r} after {before!r}", malformed=True
            )
        before = role


def to_messages(row: Row) -> Messages:
    """Returns a canonical row of messages, or of prompt and completion,
    as the messages of the whole conversation.
    """
    if "messages" in row:
        messages: Messages = row["messages"]
        return messages
    return [*row["prompt"], {"role": "assistant", "content": row["completion"]}]


def user(text: str) -> Messages:
    """Returns a prompt of one user message."""
    return [{"role": "user", "content": text}]


def choice(prompt: Messages, word: str, words: Sequence[str]) -> Row:
    """Returns the canonical row of a question with a closed set of answers."""
    return {
        "prompt": prompt,
        "completion": word,
        "choices": list(words),
        "label": list(words).index(word) if words else -1,
    }
