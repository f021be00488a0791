"""Canonical rows: whatever a source holds becomes one of five rows, and trainers see nothing else.

`text` · `messages` · `prompt` + `completion` · `prompt` + `chosen` + `rejected` · `prompt` + `answer` (for
rewards). Prompts are lists of messages, completions and answers are text. A classification is a prompt whose
completion is the label's word, with `choices` (all label words) and `label` (the number of the right one)
beside it.

A `Reading` says how a source becomes such rows; it comes from the config, from the catalogue, or from the
columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from llmlab.errors import LabError

Row = dict[str, Any]
Messages = list[dict[str, Any]]
# what a turn may hold beside role and content; whether a chat template renders it is tried
# (`render.check_parts`)
PARTS_OF_A_TURN = ("tool_calls", "name", "reasoning_content", "reasoning", "thinking")
TOOLS = "tools"  # the tools that a conversation may use travel with its first turn

SHAPES = ("text", "messages", "prompt_completion", "preference", "prompt_answer", "prompt")
# the names under which a part is commonly found, most specific first
NAMES: dict[str, tuple[str, ...]] = {
    "text": ("text", "content", "article", "document", "sentence"),
    "messages": ("messages", "conversations", "conversation", "dialogue"),
    "system": ("system", "system_prompt"),
    "prompt": ("prompt", "instruction", "question", "query"),
    "input": ("input", "context"),
    "completion": ("completion", "output", "response", "answer"),
    "chosen": ("chosen", "chosen_response"),
    "rejected": ("rejected", "rejected_response"),
    "answer": ("answer", "solution", "ground_truth"),
    "label": ("label", "labels"),
}
ORDER = (
    "preference",
    "messages",
    "prompt_completion",
    "prompt_answer",
    "prompt",
    "text",
)  # the most telling first
NEEDED = {
    "text": ("text",),
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "preference": ("chosen", "rejected"),
    "prompt_answer": ("prompt", "answer"),
    "prompt": ("prompt",),
    "classification": ("text", "label"),
}
TURN = re.compile(r"\n\n(Human|Assistant): ?")
ROLES = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
KNOWN_ROLES = ("system", "user", "assistant", "tool")
PLACE = re.compile(r"\{([\w.]+)\}")


class RowFault(Exception):
    """A row that cannot be used.

    Attributes:
        reason: what is wrong with it, in words that can be counted.
        wrong_form: whether it breaks the form (a missing column, a wrong type); else it merely has nothing to
            teach (an empty answer, two equal ones).
    """

    def __init__(self, reason: str, *, wrong_form: bool = False):
        super().__init__(reason)
        self.reason = reason
        self.wrong_form = wrong_form


@dataclass(frozen=True)
class Reading:
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

    def __call__(self, row: Row) -> Row:
        """Returns the canonical row.

        Raises:
            RowFault: when the row cannot be used.
        """
        made = self.parser(row) if self.parser else _MAKERS[self.shape](self, row)
        turns = made.get("messages") or made.get("prompt")
        if turns and row.get(TOOLS):
            turns[0] = {**turns[0], TOOLS: tools(row[TOOLS])}
        return check(made)

    def has(self, part: str, row: Row) -> bool:
        """Returns whether a row holds a part at all."""
        name = self.columns.get(part)
        return name is not None and name.split(".")[0] in row

    def fills(self, part: str, row: Row) -> bool:
        """Returns whether a row has something in a part."""
        if not self.has(part, row):
            return False
        try:
            return bool(at(row, self.columns[part], object))
        except RowFault:
            return False

    def take(self, part: str, row: Row, kind: type | tuple[type, ...] = str) -> Any:
        """Returns the value of a part.

        Raises:
            RowFault: when the column is missing or its value is not of the wanted type.
        """
        return at(row, self.columns.get(part, part), kind)


def at(row: Row, path: str, kind: type | tuple[type, ...] = str) -> Any:
    """Returns the value of a column, dots reaching into nested ones.

    Raises:
        RowFault: when it is missing or of another type.
    """
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if value is None:
        raise RowFault(f"no value in column {path!r}", wrong_form=True)
    if not isinstance(value, kind):
        names = {
            str: "text",
            list: "a list",
            int: "a whole number",
            float: "a number",
            dict: "an object",
            bool: "true or false",
        }
        wanted = " or ".join(names[k] for k in (kind if isinstance(kind, tuple) else (kind,)))
        held = names.get(type(value), type(value).__name__)
        raise RowFault(f"column {path!r} holds {held}, not {wanted}", wrong_form=True)
    return value


def candidates(columns: list[str]) -> list[Reading]:
    """Returns every reading that the columns allow, the most telling first."""
    found = {part: next((name for name in names if name in columns), None) for part, names in NAMES.items()}
    known = {part: name for part, name in found.items() if name}
    if known.get("input") == known.get("prompt"):
        known.pop("input", None)
    return [Reading(shape, known) for shape in ORDER if all(part in known for part in NEEDED[shape])]


def detect(columns: list[str]) -> str:
    """Returns the shape that the columns fit best, or "" when they fit none."""
    return next((reading.shape for reading in candidates(columns)), "")


def choose(
    columns: list[str],
    sample: Row,
    needed: tuple[str, ...],
    where: str,
    *,
    shape: str = "auto",
    mapping: dict[str, str] | None = None,
    prompt: str = "",
    labels: tuple[str, ...] = (),
    known: Reading | None = None,
) -> Reading:
    """Returns the reading of a source: what the person set, else what the catalogue knows, else what the
    columns say.

    Args:
        columns: of the source.
        sample: one row, shown when nothing fits.
        needed: shapes that the method can use.
        where: name of the source.
        shape: as set by hand, or "auto".
        mapping: part -> column, as set by hand.
        prompt: as set by hand.
        labels: as set by hand, or from the features of the dataset.
        known: what the catalogue says of this source.

    Raises:
        LabError: with the columns and a sample row, when nothing fits, or a set column is not there.
    """
    for part, column in (mapping or {}).items():
        if column.split(".")[0] not in columns:
            raise LabError(
                f"`columns` {part!r}: there is no column {column!r}",
                where=where,
                remedy=f"there are {', '.join(columns)}",
            )
    for column in PLACE.findall(prompt):
        if column.split(".")[0] not in columns:
            raise LabError(
                f"`prompt`: there is no column {column!r}",
                where=where,
                remedy=f"there are {', '.join(columns)}",
            )
    if known and shape == "auto" and not mapping and not prompt:
        options = [known]
    else:
        options = candidates(columns)
        names = {part: name for reading in options for part, name in reading.columns.items()}
        guessed = {part: next((n for n in NAMES[part] if n in columns), None) for part in NAMES}
        names = {**{part: name for part, name in guessed.items() if name}, **names, **(mapping or {})}
        by_prompt = bool(prompt) and shape == "auto"
        if by_prompt:
            shape = "classification" if labels or "label" in (mapping or {}) else "prompt_completion"
        if shape != "auto":
            lacking = [
                p for p in NEEDED[shape] if p not in names and not (prompt and p in ("prompt", "text"))
            ]
            if lacking:
                said = (
                    f"`prompt` makes {shape} rows, which need" if by_prompt else f"`format` {shape!r} needs"
                )
                raise LabError(
                    f"{said} a column for {' and '.join(lacking)}; the columns are {', '.join(columns)}",
                    where=where,
                    remedy=f'name it: "columns": {{"{lacking[0]}": "..."}}',
                )
            options = [Reading(shape, names)]
        elif mapping:
            options = [Reading(s, names) for s in ORDER if all(part in names for part in NEEDED[s])]
            options.sort(key=lambda reading: -len(set(NEEDED[reading.shape]) & set(mapping)))
    for reading in options:
        if reading.makes in needed or reading.shape in needed:
            return replace(reading, prompt=prompt or reading.prompt, labels=tuple(labels) or reading.labels)
    shown = {name: _short(value) for name, value in sample.items()}
    found = (
        f"holds {' or '.join(r.shape for r in options)} rows" if options else "has columns of no known shape"
    )
    raise LabError(
        f"{found} (columns {', '.join(columns)}; a row: {shown})",
        where=where,
        remedy=(
            f"needed: {' or '.join(needed)} rows; `format` and `columns` of the source say where the"
            " parts are"
        ),
    )


def check(row: Row) -> Row:
    """Returns the canonical row if it has something to teach and its turns are in order.

    Raises:
        RowFault: when it has not.
    """
    if "text" in row:
        if not row["text"].strip():
            raise RowFault("empty text")
        return row
    if "messages" in row:
        check_turns(row["messages"])
        if row["messages"][-1]["role"] != "assistant":
            raise RowFault("does not end with the assistant")
        if not row["messages"][-1]["content"].strip() and not row["messages"][-1].get("tool_calls"):
            raise RowFault("empty answer")
        return row
    check_turns(row["prompt"])
    if row["prompt"][-1]["role"] not in ("user", "tool"):
        raise RowFault("the prompt does not end with the user", wrong_form=True)
    if not row["prompt"][-1]["content"].strip():
        raise RowFault("empty prompt")
    answers = [row[name] for name in ("completion", "chosen", "rejected", "answer") if name in row]
    if not all(answer.strip() for answer in answers):
        raise RowFault("empty answer")
    if "chosen" in row and row["chosen"] == row["rejected"]:
        raise RowFault("chosen and rejected are equal")
    return row


def check_turns(messages: Messages) -> None:
    """Refuses conversations whose roles do not take turns: system messages first, then user and assistant in
    turn.

    Raises:
        RowFault: with the place of the first turn that is out of order.
    """
    if not messages:
        raise RowFault("no messages")
    turns = [message["role"] for message in messages]
    start = next((index for index, role in enumerate(turns) if role != "system"), len(turns))
    if start == len(turns):
        raise RowFault("only system messages", wrong_form=True)
    before = "assistant"
    for index, role in enumerate(turns[start:], start + 1):
        allowed = {"user": ("assistant",), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}.get(
            role, ()
        )
        if before not in allowed:
            raise RowFault(
                f"roles do not alternate: turn {index} is {role!r} after {before!r}", wrong_form=True
            )
        before = role


def to_messages(row: Row) -> Messages:
    """Returns a canonical row of messages, or of prompt and completion,
    as the messages of the whole conversation.
    """
    if "messages" in row:
        return row["messages"]
    return [*row["prompt"], {"role": "assistant", "content": row["completion"]}]


def fill(prompt: str, row: Row) -> str:
    """Returns a prompt with its columns filled in.

    Raises:
        RowFault: when a column is missing.
    """
    return PLACE.sub(lambda place: _text(at(row, place[1], (str, int, float, list))), prompt)


def parse_conversation(text: str) -> Messages:
    """Returns the turns of a conversation stored as one string, `\\n\\nHuman: ... \\n\\nAssistant: ...`."""
    parts = TURN.split(text if text.startswith("\n\n") else "\n\n" + text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]


def as_messages(value: Any) -> Messages:
    """Returns a list of turns, or a conversation in one string, as messages of role and content.

    Raises:
        RowFault: when a turn has no role or no text.
    """
    if isinstance(value, str):
        return parse_conversation(value)
    return [message(turn) for turn in value]


def message(turn: Any) -> dict[str, Any]:
    """Returns one turn as `role` and `content`, whatever it calls them, with its tool calls, name and
    reasoning.

    Raises:
        RowFault: when it has no known role or no text.
    """
    if not isinstance(turn, dict):
        raise RowFault(f"a turn is {type(turn).__name__}, not an object", wrong_form=True)
    role = turn.get("role") or turn.get("from") or turn.get("speaker")
    role = ROLES.get(str(role).lower(), str(role).lower())
    if role not in KNOWN_ROLES:
        raise RowFault(f"unknown role {role!r}", wrong_form=True)
    content = next((turn[name] for name in ("content", "value", "text") if turn.get(name) is not None), None)
    if isinstance(content, list):  # parts of one message
        others = {
            str(part.get("type"))
            for part in content
            if isinstance(part, dict) and not isinstance(part.get("text"), str)
        }
        if others:
            raise RowFault(
                f"a turn of {role!r} holds a part of type {min(others)!r}: only text can be read",
                wrong_form=True,
            )
        content = "".join(part if isinstance(part, str) else part["text"] for part in content)
    parts = {name: turn[name] for name in PARTS_OF_A_TURN if turn.get(name)}
    if parts.get("tool_calls"):
        parts["tool_calls"] = [_tool_call(call) for call in parts["tool_calls"]]
        content = content or ""
    if not isinstance(content, str):
        raise RowFault(f"a turn of {role!r} has no text", wrong_form=True)
    return {"role": role, "content": content, **parts}


def tools(value: Any) -> list[dict[str, Any]]:
    """Returns the tools of a row, a list or its JSON text, as the list that chat templates take.

    Raises:
        RowFault: when it is neither.
    """
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(tool, dict) for tool in found):
        raise RowFault("column 'tools' is not a list of objects", wrong_form=True)
    return without_nulls(found)


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
        raise RowFault("a tool call has no function with a name", wrong_form=True)
    arguments = function.get("arguments")
    if isinstance(arguments, str):  # as an API gives them
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise RowFault(
                f"the arguments of the tool call {function['name']!r} are not JSON", wrong_form=True
            ) from None
    made = {
        "type": "function",
        "function": {"name": function["name"], "arguments": without_nulls(arguments or {})},
    }
    return {**({"id": call["id"]} if call.get("id") else {}), **made}


def user(text: str) -> Messages:
    """Returns a prompt of one user message."""
    return [{"role": "user", "content": text}]


def _prompt(reading: Reading, row: Row) -> Messages:
    system: Messages = []
    if reading.fills("system", row):
        system = [{"role": "system", "content": reading.take("system", row)}]
    if reading.prompt:
        return [*system, *user(fill(reading.prompt, row))]
    value = reading.take("prompt", row, (str, list))
    if isinstance(value, list):
        return [*system, *as_messages(value)]
    if reading.fills("input", row):
        value = f"{value}\n\n{reading.take('input', row)}"
    return [*system, *user(value)]


def _make_text(reading: Reading, row: Row) -> Row:
    if reading.prompt:
        return {"text": fill(reading.prompt, row)}
    return {"text": reading.take("text", row)}


def _make_messages(reading: Reading, row: Row) -> Row:
    messages = as_messages(reading.take("messages", row, (list, str)))
    if reading.fills("system", row) and messages[:1] and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": reading.take("system", row)}, *messages]
    return {"messages": messages}


def _make_completion(reading: Reading, row: Row) -> Row:
    completion = reading.take("completion", row, (str, list, int, float))
    if isinstance(completion, list):
        turns = as_messages(completion)
        if len(turns) != 1 or any(part in turns[0] for part in PARTS_OF_A_TURN):
            return {"messages": [*_prompt(reading, row), *turns]}
        completion = turns[0]["content"]
    return {"prompt": _prompt(reading, row), "completion": _text(completion)}


def _make_answer(reading: Reading, row: Row) -> Row:
    return {"prompt": _prompt(reading, row), "answer": _text(reading.take("answer", row, (str, int, float)))}


def _make_classification(reading: Reading, row: Row) -> Row:
    label = reading.take("label", row, (str, int))
    if isinstance(label, int) and reading.labels and not 0 <= label < len(reading.labels):
        raise RowFault(f"label {label} has no word" if label >= 0 else "has no label", wrong_form=label >= 0)
    word = reading.labels[label] if isinstance(label, int) and reading.labels else str(label)
    if reading.labels and word not in reading.labels:
        raise RowFault(f"label {word!r} is not one of {', '.join(reading.labels)}", wrong_form=True)
    prompt = fill(reading.prompt, row) if reading.prompt else f"Text: {reading.take('text', row)}\nLabel:"
    return choice(user(prompt), word, reading.labels)


def choice(prompt: Messages, word: str, words: tuple[str, ...] | list[str]) -> Row:
    """Returns the canonical row of a question with a closed set of answers."""
    return {
        "prompt": prompt,
        "completion": word,
        "choices": list(words),
        "label": list(words).index(word) if words else -1,
    }


def _make_preference(reading: Reading, row: Row) -> Row:
    chosen, rejected = reading.take("chosen", row, (str, list)), reading.take("rejected", row, (str, list))
    if type(chosen) is not type(rejected):
        raise RowFault("chosen and rejected are of different types", wrong_form=True)
    prompt = _prompt(reading, row) if reading.prompt or reading.fills("prompt", row) else None
    if isinstance(chosen, list) or prompt is None:
        turns, others = as_messages(chosen), as_messages(rejected)
        if not turns or not others:
            raise RowFault("empty answer")
        if prompt is None or len(turns) > 1:
            if turns[:-1] != others[:-1] or len(turns) < 2:
                raise RowFault("the two answers share no prompt")
            prompt = turns[:-1]
        held = [part for turn in (turns[-1], others[-1]) for part in PARTS_OF_A_TURN if part in turn]
        if held:
            raise RowFault(
                f"an answer of a pair holds `{held[0]}`: pairs are compared as text alone", wrong_form=True
            )
        chosen, rejected = turns[-1]["content"], others[-1]["content"]
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


_MAKERS: dict[str, Callable[[Reading, Row], Row]] = {
    "text": _make_text,
    "messages": _make_messages,
    "prompt_completion": _make_completion,
    "prompt_answer": _make_answer,
    "prompt": lambda reading, row: {"prompt": _prompt(reading, row)},
    "preference": _make_preference,
    "classification": _make_classification,
}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n\n".join(str(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
