"""A conversation at the terminal: streaming answers, commands that begin with a slash."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmlab.chat.generation import is_chat_model, stream
from llmlab.config.base import validate
from llmlab.config.chat import ChatSettings
from llmlab.data.render import render
from llmlab.errors import LabError
from llmlab.files import write_text_atomically

HELP = {
    "/set": "show the settings, or change one: /set temperature 0.2",
    "/system TEXT": "what the model is told first; without a text, nothing",
    "/reset": "forget the conversation",
    "/save FILE": "write the conversation as JSON lines",
    "/help": "this list",
    "/quit": "leave (so do Ctrl+D, and Ctrl+C twice)",
}


class ChatSession:
    """One conversation with one model.

    A model with a chat template is chatted with; a base model continues the text it is given.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: ChatSettings):
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.settings = settings
        self.chats = is_chat_model(tokenizer)
        self.messages: list[dict[str, str]] = []

    def prompt(self, said: str) -> str:
        """Returns the text that the model continues when `said` comes next."""
        if not self.chats:
            return said
        system = [{"role": "system", "content": self.settings.system_prompt}] if self.settings.system_prompt else []
        return render(self.tokenizer, [*system, *self.messages, {"role": "user", "content": said}], generate=True)

    def reply(self, said: str, write: Callable[[str], None]) -> tuple[str, bool]:
        """Streams the answer to `write`; returns it and whether it was cut short by Ctrl+C. Both are remembered."""
        parts: list[str] = []
        pieces = stream(self.model, self.tokenizer, self.prompt(said), self.settings)
        stopped = False
        try:
            for piece in pieces:
                parts.append(piece)
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
                console.print("[dim]a new conversation[/dim]")
            case "/system":
                if not self.chats:
                    raise LabError("a base model has no system prompt", remedy="fine-tune it first")
                self.settings = self._changed("system_prompt", rest or None)
                console.print("[dim]noted[/dim]")
            case "/set":
                self._set(rest, console)
            case "/save":
                if not rest:
                    raise LabError("/save needs a file name", remedy="/save talk.jsonl")
                lines = "".join(json.dumps(message, ensure_ascii=False) + "\n" for message in self.messages)
                write_text_atomically(Path(rest).expanduser(), lines)
                console.print(f"[dim]{len(self.messages)} messages in {rest}[/dim]")
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
            for name, info in ChatSettings.options().items():
                table.add_row(name, str(getattr(self.settings, name)), f"[dim]{info.description}[/dim]")
            console.print(table)
            return
        name, _, value = rest.replace("=", " ", 1).partition(" ")
        value = value.strip()
        if not value:
            raise LabError(f"/set {name} needs a value", remedy=f"/set {name} {getattr(self.settings, name, '...')}")
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError:
            parsed = None if value == "none" else value
        self.settings = self._changed(name, parsed)
        console.print(f"[dim]{name} is now {getattr(self.settings, name)}[/dim]")

    def _changed(self, name: str, value: object) -> ChatSettings:
        return validate(ChatSettings, {**self.settings.model_dump(), name: value})


def chat(session: ChatSession, console: Console) -> None:
    """Holds the conversation: with a prompt at a terminal, else one answer for each line of standard input."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            if said := line.strip():
                session.reply(said, lambda piece: print(piece, end="", flush=True))
                print(flush=True)
                session.messages.clear()
        return
    from prompt_toolkit import PromptSession
    from prompt_toolkit.formatted_text import HTML

    kind = "chat" if session.chats else "base model: it continues your text"
    console.print(f"[bold]{session.model.config.name_or_path}[/bold] [dim]({kind}; /help for commands)[/dim]")
    prompt = PromptSession(
        HTML("<ansicyan><b>you</b></ansicyan> ") if session.chats else HTML("<ansicyan><b>text</b></ansicyan> ")
    )
    interrupted = False
    while True:
        try:
            said = prompt.prompt().strip()
        except EOFError:
            break
        except KeyboardInterrupt:
            if interrupted:
                break
            interrupted = True
            console.print("[dim]Ctrl+C once more to leave[/dim]")
            continue
        interrupted = False
        if not said:
            continue
        try:
            if said.startswith("/"):
                if not session.command(said, console):
                    break
                continue
            console.print("[green bold]model[/green bold] ", end="")
            _, stopped = session.reply(
                said, lambda piece: console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
            )
            console.print("[dim] (stopped)[/dim]" if stopped else "")
        except LabError as error:
            console.print(f"[red]{error}[/red]")
