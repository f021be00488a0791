"""The question for one option, by the type of its field: yes or no, a choice, a text, lines of a list."""

from __future__ import annotations

import json
import typing
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from rich.console import Console

from llmlab.config import LabBaseConfig
from llmlab.config.base import as_number, members, validate, validate_option
from llmlab.config.options import option_info
from llmlab.config.training import NEWEST
from llmlab.errors import LabError
from llmlab.models.resolve import FITS, check_model
from llmlab.ui.completion import completer_of
from llmlab.ui.explanations import explanation, heading, line_class, show
from llmlab.ui.form_state import Origin, default
from llmlab.ui.prompts import (
    HINT,
    Answer,
    Navigation,
    Option,
    Question,
    Reply,
    ask_explained,
    confirm,
    select,
    text,
)

Below = Callable[[object], str]  # from the answer as it stands, the lines below a question


def ask_option(
    cls: type[LabBaseConfig],
    name: str,
    value: Any,
    console: Console,
    *,
    back: bool = True,
    below: Below | None = None,
    origin: Origin | None = None,
    jumps: bool = False,
) -> Reply[Any]:
    """Asks for one option until the answer is valid by itself, and returns it, or where the person goes.

    Args:
        cls: the config's class.
        name: of the option.
        value: that is offered.
        console: where it is explained.
        back: whether there is a question before.
        below: the lines below the question.
        origin: of the form's values, for the explanation.
        jumps: whether the person can go to the end, or to another option.
    """
    field = cls.model_fields[name]
    console.print(heading(option_info(field)))

    def explain() -> None:
        console.print(explanation(cls, name, origin))

    if (lined := line_class(field.annotation)) is not None:
        return _Lines(lined, name, value, explain, below).ask(back=back, jumps=jumps)
    make = partial(_question, cls, name, value)
    return ask_explained(make, explain, below=below, back=back, jumps=jumps)


def parse_typed(cls: type[LabBaseConfig], name: str, typed: str) -> Any:
    """Returns the value that a typed text stands for.

    Raises:
        LabError: when the option does not take it.
    """
    field = cls.model_fields[name]
    typed = typed.strip()
    if not typed and type(None) in typing.get_args(field.annotation):
        return None
    try:
        is_json = str not in members(field.annotation) or typed[:1] in '{["'
        value: Any = json.loads(typed) if is_json else typed
    except (ValueError, RecursionError):  # a text, and whatever else JSON is not
        value = typed
    number = as_number(cls, name, typed)
    return validate_option(cls, name, value if isinstance(number, str) else number)


def _question(cls: type[LabBaseConfig], name: str, value: Any, typed: str | None) -> Question[Any]:
    """Returns the question of an option that is no list of lines."""
    kinds = members(cls.model_fields[name].annotation)
    if kinds == [bool]:
        return confirm(name, default=value)
    if len(kinds) == 1 and typing.get_origin(kinds[0]) is Literal:
        advice, usual = option_info(cls.model_fields[name]).choices, default(cls, name)
        options = [
            Option(f"{choice}{' (default)' if choice == usual else ''}  {advice.get(choice, '')}", choice)
            for choice in typing.get_args(kinds[0])
        ]
        return select(name, options, default=value)
    offered = value if isinstance(value, str) else json.dumps(value, default=_jsonable)
    offered = "" if value is None else offered
    completer = completer_of(cls, name)
    asked = text(
        name,
        offered if typed is None else typed,
        validate=partial(_fault, cls, name),
        completer=completer,
    )
    return Question(asked.asked, partial(parse_typed, cls, name))


def _fault(cls: type[LabBaseConfig], name: str, typed: str) -> bool | str:
    """Returns True, or what is wrong with a typed text; a model has to fit the config's kind."""
    kind = getattr(cls, "KIND", "")
    try:
        parsed = parse_typed(cls, name, typed)
        if kind in FITS and name == getattr(cls, "STARTS_FROM", "") and parsed not in (None, NEWEST):
            check_model(parsed, kind, ask=False)
    except LabError as error:
        return str(error).splitlines()[0]
    return True


class _Lines:
    """A list that is asked for line by line; an emptied line is taken out, an empty one at the end ends it.

    Args:
        cls: of an item.
        name: of the option.
        value: the items that are offered.
        explain: shows all that is known of the option.
        below: the lines below each question.
    """

    def __init__(
        self,
        cls: type[LabBaseConfig],
        name: str,
        value: list[Any],
        explain: Callable[[], None],
        below: Below | None,
    ):
        self.cls, self.name, self.explain, self.below = cls, name, explain, below
        self.offered = {show(item): item for item in value}
        self.parts = " | ".join(getattr(cls, "LINE", ()))

    def ask(self, *, back: bool, jumps: bool) -> Reply[list[Any]]:
        """Returns the items, or where the person goes."""
        lines, index = list(self.offered), 0
        while True:
            make = partial(self._question, index, lines[index] if index < len(lines) else "")
            reply = ask_explained(make, self.explain, below=self._below, back=back or index > 0, jumps=jumps)
            if reply is Navigation.BACK and index > 0:
                index -= 1
                continue
            if isinstance(reply, Navigation):
                return reply
            line = reply.value.strip()
            if not line and index >= len(lines):
                return Answer([self.offered.get(line) or validate(self.cls, line) for line in lines])
            lines[index : index + 1] = [line] if line else []
            index += bool(line)

    def _question(self, index: int, line: str, typed: str | None) -> Question[str]:
        return text(
            f"{self.name} {index + 1}",
            line if typed is None else typed,
            validate=self._fault,
            completer=completer_of(self.cls),
        )

    def _below(self, standing: object) -> str:
        end = self.below(None) if self.below else HINT
        return f"{self.parts}; an empty line ends the list\n{end}"

    def _fault(self, line: str) -> bool | str:
        try:
            if line.strip():
                validate(self.cls, line.strip())
        except LabError as error:
            return str(error).splitlines()[0]
        return True


def _jsonable(value: Any) -> Any:
    return value.to_json_dict() if isinstance(value, LabBaseConfig) else str(value)
