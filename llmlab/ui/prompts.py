"""One question at the terminal: questionary's own, with a way back, an explanation and a line of live figures
below. Where the person goes instead of answering is a value that is returned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Generic, TypeVar

import questionary
from prompt_toolkit.application import Application
from prompt_toolkit.completion import Completer
from prompt_toolkit.filters import Condition, is_done, to_filter
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent, merge_key_bindings
from prompt_toolkit.layout import ConditionalContainer, FormattedTextControl, HSplit, Layout, Window
from questionary.prompts.common import InquirerControl

from llmlab.readable import printable
from llmlab.ui.lines import broken, within

T = TypeVar("T")
QUICK = 0.05  # seconds until a lone Escape is one, and not the beginning of an arrow key
EXPLAINS = "? explains · "
JUMPS = "^R the rest as it is · ^F find an option · "
HINT = f"Esc back · {EXPLAINS}{JUMPS}^C leaves"


class Navigation(Enum):
    """Where the person goes instead of answering."""

    BACK = "the previous question"
    LEAVE = "out of the question"
    REST = "to the end, with what is offered"
    FIND = "another question, by its name"


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What the person answered."""

    value: T


Reply = Answer[T] | Navigation


@dataclass(frozen=True)
class Question(Generic[T]):
    """A question of questionary, and how its result is read.

    Attributes:
        asked: the question; it can be asked once.
        read: returns the answer that questionary's result stands for.
    """

    asked: questionary.Question
    read: Callable[[Any], T]


@dataclass(frozen=True)
class Option(Generic[T]):
    """A line that can be chosen: its words, what it stands for, and a key that points at it."""

    label: str
    value: T
    key: str | None = None


@dataclass(frozen=True)
class Heading:
    """A line between options."""

    label: str


@dataclass(frozen=True)
class _Explain:
    """The person wants to know more; `typed` stood in the line, None where there is none."""

    typed: str | None


def text(
    question: str,
    default: str = "",
    *,
    validate: Callable[[str], bool | str] | None = None,
    completer: Completer | None = None,
) -> Question[str]:
    """Returns a question that is answered by a line.

    Args:
        question: its words.
        default: what stands in the line.
        validate: returns True or what is wrong with a line.
        completer: says what Tab completes.
    """
    more: dict[str, Any] = {"completer": completer, "complete_while_typing": False} if completer else {}
    return Question(questionary.text(printable(question), default=default, validate=validate, **more), str)


def confirm(question: str, *, default: bool = True) -> Question[bool]:
    """Returns a question of yes or no."""
    return Question(questionary.confirm(printable(question), default=default), bool)


def select(
    question: str, options: Sequence[Option[T] | Heading], *, default: T | None = None, **how: Any
) -> Question[T]:
    """Returns a question with a list to choose from, in the letters that this terminal has.

    Args:
        question: its words.
        options: what can be chosen, and headings between.
        default: the value that is pointed at; left out, the first one.
        **how: of questionary's `select`.
    """
    choices: list[questionary.Choice] = []
    values: list[T | None] = []
    for number, option in enumerate(options):
        if isinstance(option, Heading):
            choices.append(questionary.Separator(within(printable(option.label))))
            values.append(None)
        else:
            label = within(printable(option.label))
            choices.append(questionary.Choice(label, number, shortcut_key=option.key))
            values.append(option.value)
    first = values.index(default) if default is not None else None
    asked = questionary.select(
        printable(question), choices, default=choices[first] if first is not None else None, **_looks(how)
    )
    return Question(asked, lambda number: _chosen(options[number]))


def several(question: str, options: Sequence[Option[T]], **how: Any) -> Question[list[T]]:
    """Returns a question with a list of which any number can be marked.

    Args:
        question: its words.
        options: what can be marked.
        **how: of questionary's `checkbox`.
    """
    choices = [
        questionary.Choice(within(printable(option.label)), number) for number, option in enumerate(options)
    ]
    asked = questionary.checkbox(printable(question), choices, **_looks(how))
    return Question(asked, lambda numbers: [options[number].value for number in numbers])


def plain(labels: Iterable[str]) -> list[Option[str]]:
    """Returns options that stand for their own words."""
    return [Option(label, label) for label in labels]


def ask(
    question: Question[T], *, below: Callable[[object], str] | None = None, back: bool = True
) -> Reply[T]:
    """Returns the answer, or where the person goes: LEAVE on Ctrl+C and Ctrl+D, BACK on Escape and Shift+Tab.

    Args:
        question: to ask.
        below: from the answer as it stands, typed or pointed at, the lines below the question.
        back: whether there is a previous question; without one, BACK is never returned.
    """
    reply = _ask(question, below, back=back, explains=False)
    assert not isinstance(reply, _Explain)
    return reply


def answer(question: Question[T], *, back: bool = True) -> T | None:
    """Returns the answer; None where the person went back or left."""
    reply = ask(question, back=back)
    return reply.value if isinstance(reply, Answer) else None


def ask_explained(
    make: Callable[[str | None], Question[T]],
    explain: Callable[[], None],
    *,
    below: Callable[[object], str] | None = None,
    back: bool = True,
    jumps: bool = False,
) -> Reply[T]:
    """As `ask`; "?" in a line that was not touched explains, and asks again.

    Args:
        make: makes the question, from the text that stood in its line before an explanation.
        explain: shows the explanation.
        below: as in `ask`.
        back: as in `ask`.
        jumps: whether the person can go to the end (Ctrl+R: REST) and to another question (Ctrl+F: FIND).
    """
    typed: str | None = None
    while isinstance(reply := _ask(make(typed), below, back=back, explains=True, jumps=jumps), _Explain):
        explain()
        typed = reply.typed
    return reply


def _ask(
    question: Question[T],
    below: Callable[[object], str] | None,
    *,
    back: bool,
    explains: bool,
    jumps: bool = False,
) -> Reply[T] | _Explain:
    app = question.asked.application
    at_first = _standing(app)
    keys = KeyBindings()

    def end(event: KeyPressEvent, reply: Navigation | _Explain) -> None:
        event.app.exit(result=reply, style="class:aborting")

    if back:

        @keys.add("escape", eager=True)
        @keys.add("s-tab", eager=True)
        def _(event: KeyPressEvent) -> None:
            end(event, Navigation.BACK)

    if jumps:

        @keys.add("c-r", eager=True)
        def _(event: KeyPressEvent) -> None:
            end(event, Navigation.REST)

        @keys.add("c-f", eager=True)
        def _(event: KeyPressEvent) -> None:
            end(event, Navigation.FIND)

    if explains:

        def is_untouched() -> bool:
            return _standing(app) in ("", at_first)

        @keys.add("?", eager=True, filter=Condition(is_untouched))
        def _(event: KeyPressEvent) -> None:
            end(event, _Explain(_typed(app)))

    app.key_bindings = merge_key_bindings([app.key_bindings, keys]) if app.key_bindings else keys
    app.ttimeoutlen = QUICK
    if below is not None:
        _show_below(app, lambda: below(_value(question, _standing(app))))
    try:
        result = question.asked.ask(kbi_msg="")
    except EOFError:  # Ctrl+D in an empty line
        return Navigation.LEAVE
    if result is None:  # Ctrl+C
        return Navigation.LEAVE
    return result if isinstance(result, Navigation | _Explain) else Answer(question.read(result))


def _show_below(app: Application[Any], lines: Callable[[], str]) -> None:
    """Adds lines below a question, which go when it is answered."""
    shown = FormattedTextControl(lambda: [("class:below fg:ansibrightblack", broken(printable(lines())))])
    old = app.layout
    for window in old.find_all_windows():  # they stand below the question, not at the bottom of the screen
        window.dont_extend_height = to_filter(True)
    under = ConditionalContainer(Window(shown, dont_extend_height=True, wrap_lines=True), filter=~is_done)
    app.layout = Layout(HSplit([old.container, under]), focused_element=old.current_window)


def _looks(how: dict[str, Any]) -> dict[str, Any]:
    return {"pointer": printable("»"), **how}


def _chosen(option: Option[T] | Heading) -> T:
    assert isinstance(option, Option)  # a heading cannot be pointed at
    return option.value


def _value(question: Question[T], standing: object) -> object:
    """Returns what the answer would be: a typed text as it is, a choice as the value that it stands for."""
    return standing if isinstance(standing, str) else question.read(standing)


def _typed(app: Application[Any]) -> str | None:
    return app.current_buffer.text if app.layout.buffer_has_focus else None


def _standing(app: Application[Any]) -> object:
    """Returns the text that is typed, or the number of the choice that is pointed at."""
    for control in app.layout.find_all_controls():
        if isinstance(control, InquirerControl):
            return control.get_pointed_at().value
    return _typed(app) or ""
