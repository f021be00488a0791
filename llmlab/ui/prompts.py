"""One question at the terminal: questionary's own, with a way back,
an explanation and a line of live figures below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import questionary
from prompt_toolkit.application import Application
from prompt_toolkit.filters import Condition, is_done, to_filter
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent, merge_key_bindings
from prompt_toolkit.layout import ConditionalContainer, FormattedTextControl, HSplit, Layout, Window
from questionary.prompts.common import InquirerControl

from llmlab.readable import said

QUICK = 0.05  # seconds until a lone Escape is one, and not the beginning of an arrow key
EXPLAINS = "? explains · "
HINT = f"Esc back · {EXPLAINS}Ctrl+C leaves"


class Cancelled(Exception):
    """The person left."""


class Back(Exception):
    """The person wants the previous question."""


@dataclass
class Explain(Exception):
    """The person wants to know more.

    Attributes:
        typed: what stood in the line.
    """

    typed: str | None = None


def ask(
    question: questionary.Question,
    *,
    below: Callable[[Any], str] | None = None,
    back: bool = True,
    explains: bool = False,
) -> Any:
    """Returns the answer.

    Args:
        question: of questionary.
        below: from the answer as it stands, typed or pointed at, the lines below the question.
        back: whether there is a previous question.
        explains: whether "?" is answered.

    Raises:
        Cancelled: on Ctrl+C.
        Back: on Escape or Shift+Tab.
        Explain: on "?" in a line that was not touched.
    """
    app = question.application
    at_first = _standing(app)
    keys = KeyBindings()

    def leave(event: KeyPressEvent, error: Exception) -> None:
        event.app.exit(exception=error, style="class:aborting")

    if back:

        @keys.add("escape", eager=True)
        @keys.add("s-tab", eager=True)
        def _(event: KeyPressEvent) -> None:
            leave(event, Back())

    if explains:

        @keys.add("?", eager=True, filter=Condition(lambda: _standing(app) in ("", at_first)))
        def _(event: KeyPressEvent) -> None:
            leave(event, Explain(_typed(app)))

    app.key_bindings = merge_key_bindings([app.key_bindings, keys]) if app.key_bindings else keys
    app.ttimeoutlen = QUICK
    if below is not None:
        text = FormattedTextControl(lambda: [("class:below fg:ansibrightblack", said(below(_standing(app))))])
        old = app.layout
        for (
            window
        ) in old.find_all_windows():  # the lines stand below the question, not at the bottom of the screen
            window.dont_extend_height = to_filter(True)
        under = ConditionalContainer(Window(text, dont_extend_height=True, wrap_lines=True), filter=~is_done)
        app.layout = Layout(HSplit([old.container, under]), focused_element=old.current_window)
    answer = question.ask(kbi_msg="")
    if answer is None:
        raise Cancelled
    return answer


def select(question: str, choices: Sequence[Any], **kwargs: Any) -> questionary.Question:
    """Returns questionary's question, in the letters that this terminal has.

    Args:
        question: its words.
        choices: texts, or questionary's own choices and separators.
        **kwargs: of questionary.
    """
    made = [
        questionary.Choice(said(choice), choice) if isinstance(choice, str) else choice for choice in choices
    ]
    for choice in made:
        if isinstance(choice.title, str):
            choice.title = said(choice.title)
    return questionary.select(said(question), made, pointer=said("»"), **kwargs)


def _typed(app: Application) -> str | None:
    return app.current_buffer.text if app.layout.buffer_has_focus else None


def _standing(app: Application) -> Any:
    """Returns what the answer would be now: the typed text, or the value of the choice that is pointed at."""
    for control in app.layout.find_all_controls():
        if isinstance(control, InquirerControl):
            return control.get_pointed_at().value
    return _typed(app) or ""
