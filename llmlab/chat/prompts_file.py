"""A file of prompts to answer: a JSON object a line, with `prompt` or `messages` and any other columns."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmlab.config.base import no_text
from llmlab.data.messages import as_messages, tools
from llmlab.data.schemas import TOOLS, InvalidRow, Messages
from llmlab.errors import LabError
from llmlab.files import DEEPEST
from llmlab.readable import nested_deeper, type_words

LONGEST_LINE = 10_000_000  # bytes


@dataclass(frozen=True)
class PromptRow:
    """One row.

    Attributes:
        number: counted from 0.
        columns: all of it, with an `id` in front: its own, else its number.
        prompt: a text, or the messages of a conversation.
    """

    number: int
    columns: dict[str, Any]
    prompt: str | Messages


@dataclass(frozen=True)
class PromptsFile:
    """The rows of a file, read anew each time.

    Attributes:
        path: of the file.
        reserved: columns that the output adds; a row must not have them.
    """

    path: Path
    reserved: tuple[str, ...] = ()

    def check(self) -> int:
        """Returns how many rows there are, after a look at each.

        Raises:
            LabError: naming the line that cannot be used.
        """
        try:
            mode = self.path.stat().st_mode
        except OSError as error:
            raise LabError(f"cannot be read ({error.strerror})", where=str(self.path)) from None
        if not stat.S_ISREG(mode):
            raise LabError(
                "is no regular file", where=str(self.path), remedy="save the prompts as a file of JSON lines"
            )
        count = sum(1 for _ in self)
        if not count:
            raise LabError("holds no rows", where=str(self.path), remedy='one line each: {"prompt": "..."}')
        return count

    def __iter__(self) -> Iterator[PromptRow]:
        number = 0
        try:
            with open(self.path, "rb") as file:
                line_number = 0
                while line := file.readline(LONGEST_LINE + 1):
                    line_number += 1
                    if not line.strip():
                        continue
                    where = f"{self.path}: line {line_number}"
                    if len(line) > LONGEST_LINE:
                        raise LabError(f"has more than {LONGEST_LINE:,} bytes", where=where)
                    yield self._row(line, number, where)
                    number += 1
        except OSError as error:
            raise LabError(f"cannot be read ({error.strerror})", where=str(self.path)) from None

    def _row(self, line: bytes, number: int, where: str) -> PromptRow:
        columns = json_object(line, where)
        if fault := no_text(columns):
            raise LabError(fault, where=where)
        if taken := [name for name in self.reserved if name in columns]:
            raise LabError(
                f"has a column `{taken[0]}`, which the output adds",
                where=where,
                remedy="rename it, or write the answer elsewhere with --column",
            )
        return PromptRow(number, {"id": columns.get("id", number), **columns}, _prompt(columns, where))


def json_object(line: bytes, where: str) -> dict[str, Any]:
    """Returns the JSON object of a line.

    Raises:
        LabError: when it holds something else.
    """
    remedy = 'write one JSON object a line: {"prompt": "..."}'
    try:
        data = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise LabError(
            f"is not UTF-8 text ({error.reason} at byte {error.start + 1:,})", where=where
        ) from None
    except json.JSONDecodeError as error:
        raise LabError(
            f"is not valid JSON ({error.msg} at column {error.colno})", where=where, remedy=remedy
        ) from None
    except (ValueError, RecursionError):  # a number of too many digits, nested too deeply
        raise LabError("is no JSON that can be read", where=where, remedy=remedy) from None
    if not isinstance(data, dict):
        raise LabError(f"is {type_words(data)}, not a JSON object", where=where, remedy=remedy)
    if nested_deeper(data, DEEPEST):
        raise LabError(f"is nested more than {DEEPEST} deep", where=where)
    return data


def _prompt(columns: dict[str, Any], where: str) -> str | Messages:
    """Returns what is asked.

    Raises:
        LabError: when there is nothing, or more than one thing, or no conversation that waits for an answer.
    """
    given = [name for name in ("prompt", "messages") if columns.get(name) is not None]
    if len(given) != 1:
        raise LabError(
            "has both `prompt` and `messages`" if given else "has neither `prompt` nor `messages`",
            where=where,
            remedy='give it one: {"prompt": "..."} or {"messages": [{"role": "user", "content": "..."}]}',
        )
    asked = columns[given[0]]
    if isinstance(asked, str) and given[0] == "prompt":
        return asked
    if not isinstance(asked, list):
        wanted = "a text or a list of messages" if given[0] == "prompt" else "a list of messages"
        raise LabError(f"`{given[0]}` is {type_words(asked)}, not {wanted}", where=where)
    try:
        messages = as_messages(asked)
        if messages and columns.get(TOOLS):
            messages[0][TOOLS] = tools(columns[TOOLS])
    except InvalidRow as invalid:
        raise LabError(f"`{given[0]}`: {invalid.reason}", where=where) from None
    if not messages or messages[-1]["role"] not in ("user", "tool"):
        raise LabError(
            f"`{given[0]}` does not end with a message to answer",
            where=where,
            remedy="let the last message be the user's",
        )
    return messages
