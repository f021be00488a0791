"""The line that a person types into: history over sessions, several lines with Alt+Enter."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmlab.files import state_root

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

HISTORY = "chat_history"  # what was typed, and nothing else


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
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


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
