"""What every conversation has in common, wherever its model is: settings, turns, commands that begin with a
slash. No torch.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmlab.chat.choices import MEANING, Choice, Tokens, number_of_alternatives, tokens_line, why_table
from llmlab.chat.pieces import Piece
from llmlab.chat.saved import read_conversation
from llmlab.config.base import as_number, validate
from llmlab.config.chat import ChatSettings
from llmlab.errors import LabError
from llmlab.files import in_home, write_text_atomically

HELP = {
    "/set": "show the settings, or change one: /set temperature 0.2",
    "/system TEXT": "what the model is told first; without a text, nothing",
    "/regenerate": "answer the last message again",
    "/edit": "change the last message: it stands in the input line again",
    "/undo": "forget the last message and its answer",
    "/reset": "forget the conversation",
    "/save FILE": "write the conversation as JSON lines",
    "/load FILE": "go on with a saved conversation",
    "/tokens": "tokens of the conversation, and their share of the context",
    "/why [N]": "the tokens of the last answer, with the N likeliest in their place",
    "/good · /bad [NOTE]": "mark the last answer (Alt+G, Alt+B); of two models: /good 1",
    "/better · /worse": "than the answer before /regenerate; of two models: /better 1",
    "/rewrite [TEXT]": "write the answer as it should be (Alt+W)",
    "/unmark": "take the newest mark back",
    "/help": "this list",
    "/quit": "leave (so do Ctrl+D, and Ctrl+C twice)",
}

OF_A_DUAL_HEAD = ("alignment", "show_alpha")


class Conversation(ABC):
    """A conversation with one model.

    Args:
        name: of the model, shown.
        settings: how it answers.
        chats: whether it is asked with messages; a base model continues the text it is given.
    """

    def __init__(self, name: str, settings: ChatSettings, *, chats: bool):
        self.name, self.settings, self.chats = name, settings, chats
        self.messages: list[dict[str, str]] = []
        self.spoken: list[int] = []  # tokens of the last answer, where they are known

    @abstractmethod
    def pieces(self, said: str) -> Generator[Piece, None, object]:
        """Yields the answer piece by piece; closing the iterator stops the model.

        Raises:
            LabError: when it cannot be answered.
        """

    @property
    @abstractmethod
    def fused(self) -> bool:
        """Whether there is an alignment to turn."""

    def forget_last(self) -> None:
        """Forgets the tokens of an answer that is no longer the last."""
        self.spoken = []

    def undo(self) -> str:
        """Forgets the last message and its answer; returns the message.

        Raises:
            LabError: when there is none.
        """
        said = self.last_said()
        while self.messages and self.messages.pop()["role"] != "user":
            pass
        self.forget_last()
        return said

    def last_said(self) -> str:
        """Returns the last message of the person.

        Raises:
            LabError: when there is none.
        """
        said = next((one["content"] for one in reversed(self.messages) if one["role"] == "user"), None)
        if said is None:
            raise LabError("nothing was said yet")
        return said

    def take_up(self, messages: list[dict[str, str]]) -> None:
        """Goes on with another conversation; a system message at its beginning becomes the system prompt."""
        if messages and messages[0]["role"] == "system":
            self.adopt(self._changed("system_prompt", messages[0]["content"]))
            messages = messages[1:]
        self.messages = [*messages]
        self.forget_last()

    def tokens(self) -> Tokens:
        """Returns how long the conversation is.

        Raises:
            LabError: when that cannot be known here.
        """
        raise LabError("the tokens of a served model are counted by its server", where=self.name)

    def why(self, count: int) -> list[Choice]:
        """Returns the tokens of the last answer and the likeliest in their place.

        Raises:
            LabError: when that cannot be known here, or there is no answer.
        """
        raise LabError("a served model does not tell its probabilities", where=self.name)

    def refuse_no_text(self, said: str) -> None:
        """Refuses what is no text.

        Raises:
            LabError: when it holds half of a character.
        """
        if not said.isascii() and any("\ud800" <= sign <= "\udfff" for sign in said):
            raise LabError("what was said is not UTF-8 text", remedy="save it as UTF-8")

    def adopt(self, settings: ChatSettings) -> None:
        """Takes the settings of the session beside it."""
        self.settings = settings

    def shown_options(self) -> list[str]:
        """Returns the settings that `/set` lists."""
        return [name for name in ChatSettings.model_fields if name not in OF_A_DUAL_HEAD or self.fused]

    def reply(self, said: str, write: Callable[[Piece], None]) -> tuple[str, bool]:
        """Streams the answer to `write`; returns it and whether it was cut short by Ctrl+C.
        Both are remembered.
        """
        parts: list[str] = []
        pieces = self.pieces(said)
        stopped = False
        try:
            for piece in pieces:
                parts += [] if piece.thought else [piece]
                write(piece)
        except KeyboardInterrupt:
            stopped = True
        finally:
            pieces.close()
        answer = "".join(parts).strip()
        self.messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
        return answer, stopped

    def command(self, line: str, console: Console) -> bool:
        """Carries out a slash command; returns False when it ends the chat.

        Raises:
            LabError: when the command or its value is not known.
        """
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        match name:
            case "/quit" | "/exit":
                return False
            case "/reset":
                self.messages.clear()
                self.forget_last()
                console.print("a new conversation", style="dim")
            case "/undo":
                self.undo()
                console.print(f"{len(self.messages)} messages are left", style="dim")
            case "/load":
                if not rest:
                    raise LabError("/load needs a file name", remedy="/load talk.jsonl")
                self.take_up(read_conversation(in_home(rest)))
                console.print(f"{len(self.messages)} messages from {rest}", style="dim")
            case "/tokens":
                console.print(tokens_line(self.tokens()), style="dim", highlight=False)
            case "/why":
                table = why_table(self.why(number_of_alternatives(rest)))
                console.print(MEANING, style="dim")
                console.print(table, highlight=False)
            case "/system":
                if not self.chats:
                    raise LabError("a base model has no system prompt", remedy="fine-tune it first")
                self.adopt(self._changed("system_prompt", rest or None))
                console.print("noted", style="dim")
            case "/set":
                self._set(rest, console)
            case "/save":
                if not rest:
                    raise LabError("/save needs a file name", remedy="/save talk.jsonl")
                lines = "".join(json.dumps(message, ensure_ascii=False) + "\n" for message in self.messages)
                write_text_atomically(in_home(rest), lines)
                console.print(f"{len(self.messages)} messages in {rest}", style="dim")
            case "/help":
                table = Table.grid(padding=(0, 2))
                for command, text in HELP.items():
                    table.add_row(command, text)
                console.print(table)
            case _:
                raise LabError(f"there is no command {name}", remedy="/help lists them")
        return True

    def _set(self, rest: str, console: Console) -> None:
        if not rest:
            table = Table.grid(padding=(0, 2))
            for name in self.shown_options():
                info = ChatSettings.options()[name]
                table.add_row(name, str(getattr(self.settings, name)), Text(info.description, style="dim"))
            console.print(table)
            return
        name, _, value = rest.replace("=", " ", 1).partition(" ")
        value = value.strip()
        if not value:
            raise LabError(
                f"/set {name} needs a value", remedy=f"/set {name} {getattr(self.settings, name, '...')}"
            )
        if name in OF_A_DUAL_HEAD and not self.fused:
            raise LabError(
                f"{self.name} has no alignment to turn",
                remedy="`llmlab new dual_head` trains a model that has",
            )
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            parsed = None if value == "none" else as_number(ChatSettings, name, value)
        self.adopt(self._changed(name, parsed))
        console.print(f"{name} is now {getattr(self.settings, name)}", style="dim")

    def _changed(self, name: str, value: object) -> ChatSettings:
        return validate(ChatSettings, {**self.settings.model_dump(), name: value})
