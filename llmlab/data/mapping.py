"""From the columns of a source to canonical rows.

A `RowMapping` says how: its shape, which column holds which part, the prompt, the label words. Three mappers
make the rows: `text_row`, `conversation_row` (messages, prompt and completion, prompt and right answer, a
label) and `preference_row`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llmlab.data.columns import as_text, at, fill
from llmlab.data.messages import as_messages, tools
from llmlab.data.schemas import PARTS_OF_A_TURN, TOOLS, InvalidRow, Messages, Row, check, choice, user


@dataclass(frozen=True)
class RowMapping:
    """How the rows of a source become canonical.

    Attributes:
        shape: a canonical shape, or "classification".
        columns: part -> the column that holds it; dots reach into nested columns.
        prompt: text of the prompt with columns in braces; "" takes the `prompt` column.
        labels: the word of each label number; empty where labels are words already.
        parser: makes the canonical row where columns and prompt do not suffice.
    """

    shape: str
    columns: dict[str, str] = field(default_factory=dict)
    prompt: str = ""
    labels: tuple[str, ...] = ()
    parser: Callable[[Row], Row] | None = None

    @property
    def makes(self) -> str:
        """The canonical shape of the rows."""
        return "prompt_completion" if self.shape == "classification" else self.shape

    def serves(self, needed: tuple[str, ...]) -> bool:
        """Returns whether it makes rows of one of these shapes."""
        return self.makes in needed or self.shape in needed

    def __call__(self, row: Row) -> Row:
        """Returns the canonical row.

        Raises:
            InvalidRow: when the row cannot be used.
        """
        canonical = self.parser(row) if self.parser else MAPPERS[self.shape](self, row)
        turns = canonical.get("messages") or canonical.get("prompt")
        if turns and row.get(TOOLS):
            turns[0] = {**turns[0], TOOLS: tools(row[TOOLS])}
        return check(canonical)

    def key(self) -> str:
        """Returns a text that differs between mappings that make different rows."""
        parser = getattr(self.parser, "__qualname__", "")
        return repr((self.shape, sorted(self.columns.items()), self.prompt, self.labels, parser))

    def fills(self, part: str, row: Row) -> bool:
        """Returns whether a row has something in a part."""
        name = self.columns.get(part)
        if name is None or name.split(".")[0] not in row:
            return False
        try:
            return bool(at(row, name, object))
        except InvalidRow:
            return False

    def take(self, part: str, row: Row, kind: type | tuple[type, ...] = str) -> Any:
        """Returns the value of a part.

        Raises:
            InvalidRow: when the column is missing or its value is not of the wanted type.
        """
        return at(row, self.columns.get(part, part), kind)


# The three mappers


def text_row(mapping: RowMapping, row: Row) -> Row:
    """Returns a row of plain text.

    Raises:
        InvalidRow: when there is no text.
    """
    return {"text": fill(mapping.prompt, row) if mapping.prompt else mapping.take("text", row)}


def conversation_row(mapping: RowMapping, row: Row) -> Row:
    """Returns a row of messages, or of a prompt and what follows it: a completion, a right answer, a label's
    word, nothing.

    Raises:
        InvalidRow: when a part is missing, a turn has no known role, or a label no word.
    """
    match mapping.shape:
        case "messages":
            return _messages(mapping, row)
        case "classification":
            return _classification(mapping, row)
        case "prompt_completion":
            return _completion(mapping, row)
        case "prompt_answer":
            answer = mapping.take("answer", row, (str, int, float))
            return {"prompt": _prompt(mapping, row), "answer": as_text(answer)}
    return {"prompt": _prompt(mapping, row)}


def preference_row(mapping: RowMapping, row: Row) -> Row:
    """Returns a pair: two answers as text, and the prompt that they share.

    The answers are texts beside a prompt; or whole conversations, as turns or in one string, that differ in
    their last turn.

    Raises:
        InvalidRow: when a part is missing, the answers share no prompt, or hold more than text.
    """
    chosen, rejected = mapping.take("chosen", row, (str, list)), mapping.take("rejected", row, (str, list))
    if type(chosen) is not type(rejected):
        raise InvalidRow("chosen and rejected are of different types", malformed=True)
    prompt = _prompt(mapping, row) if mapping.prompt or mapping.fills("prompt", row) else None
    if prompt is not None and isinstance(chosen, str):
        return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    turns, others = as_messages(chosen), as_messages(rejected)
    if not turns or not others:
        raise InvalidRow("empty answer")
    if prompt is None or len(turns) > 1:
        if turns[:-1] != others[:-1] or len(turns) < 2:
            raise InvalidRow("the two answers share no prompt")
        prompt = turns[:-1]
    unused_parts = [part for turn in (turns[-1], others[-1]) for part in PARTS_OF_A_TURN if part in turn]
    if unused_parts:
        reason = f"an answer of a pair holds `{unused_parts[0]}`: pairs are compared as text alone"
        raise InvalidRow(reason, malformed=True)
    return {"prompt": prompt, "chosen": turns[-1]["content"], "rejected": others[-1]["content"]}


MAPPERS: dict[str, Callable[[RowMapping, Row], Row]] = {
    "text": text_row,
    **dict.fromkeys(
        ("messages", "prompt_completion", "prompt_answer", "prompt", "classification"), conversation_row
    ),
    "preference": preference_row,
}


def _prompt(mapping: RowMapping, row: Row) -> Messages:
    system: Messages = []
    if mapping.fills("system", row):
        system = [{"role": "system", "content": mapping.take("system", row)}]
    if mapping.prompt:
        return [*system, *user(fill(mapping.prompt, row))]
    value = mapping.take("prompt", row, (str, list))
    if isinstance(value, list):
        return [*system, *as_messages(value)]
    if mapping.fills("input", row):
        value = f"{value}\n\n{mapping.take('input', row)}"
    return [*system, *user(value)]


def _messages(mapping: RowMapping, row: Row) -> Row:
    messages = as_messages(mapping.take("messages", row, (list, str)))
    if mapping.fills("system", row) and messages[:1] and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": mapping.take("system", row)}, *messages]
    return {"messages": messages}


def _completion(mapping: RowMapping, row: Row) -> Row:
    completion = mapping.take("completion", row, (str, list, int, float))
    if isinstance(completion, list):
        turns = as_messages(completion)
        if len(turns) != 1 or any(part in turns[0] for part in PARTS_OF_A_TURN):
            return {"messages": [*_prompt(mapping, row), *turns]}
        completion = turns[0]["content"]
    return {"prompt": _prompt(mapping, row), "completion": as_text(completion)}


def _classification(mapping: RowMapping, row: Row) -> Row:
    label, words = mapping.take("label", row, (str, int)), mapping.labels
    if isinstance(label, int) and words and not 0 <= label < len(words):
        raise InvalidRow(f"label {label} has no word" if label >= 0 else "has no label", malformed=label >= 0)
    word = words[label] if isinstance(label, int) and words else str(label)
    if words and word not in words:
        raise InvalidRow(f"label {word!r} is not one of {', '.join(words)}", malformed=True)
    prompt = fill(mapping.prompt, row) if mapping.prompt else f"Text: {mapping.take('text', row)}\nLabel:"
    return choice(user(prompt), word, words)
