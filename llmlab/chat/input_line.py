"""The line that a person types into: history over sessions, several lines with Alt+Enter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmlab.files import state_root

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

HISTORY = "chat_history"  # what was typed, and nothing else
MARKS = {"g": "/good", "b": "/bad", "w": "/rewrite"}  # with Alt, in an empty line


class InputLine:
    """Asks for a line at the terminal.

    Args:
        label: before the line.
    """

    def __init__(self, label: str):
        from prompt_toolkit import PromptSession
        from prompt_toolkit.formatted_text import HTML

        self.session: PromptSession[str] = PromptSession(
            HTML(f"<ansicyan><b>{label}</b></ansicyan> "),
            history=_history(),
            key_bindings=_keys(),
            multiline=True,
            prompt_continuation=" " * (len(label) + 1),
        )

    def ask(self, default: str = "") -> str:
        """Returns what is typed, beginning with a text to change.

        Raises:
            EOFError: at Ctrl+D.
            KeyboardInterrupt: at Ctrl+C.
        """
        return self.session.prompt(default=default).strip()


def _keys() -> KeyBindings:
    from prompt_toolkit.filters import Condition
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    for letter, command in MARKS.items():

        @keys.add("escape", letter, filter=Condition(_nothing_is_typed))
        def _mark(event: KeyPressEvent, command: str = command) -> None:
            event.current_buffer.text = command
            event.current_buffer.validate_and_handle()

    return keys


def _nothing_is_typed() -> bool:
    from prompt_toolkit.application import get_app

    return not get_app().current_buffer.text


def _history() -> History:
    """Returns the history of the state folder, which its owner alone reads; else one in memory."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = state_root() / HISTORY
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600, exist_ok=True)
        with path.open("ab"):
            pass
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
