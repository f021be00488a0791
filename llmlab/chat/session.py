"""A conversation at the terminal: streaming answers, commands that begin with a slash."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from llmlab.chat.generation import is_chat_model, stream
from llmlab.chat.pieces import Piece
from llmlab.config.base import as_number, validate
from llmlab.config.chat import ChatSettings
from llmlab.config.loading import LoadOptions
from llmlab.data.rendering import render
from llmlab.errors import LabError
from llmlab.files import in_home, write_text_atomically
from llmlab.models import LabDualHeadForCausalLM
from llmlab.models.typed import LanguageModel
from llmlab.readable import visible

HELP = {
    "/set": "show the settings, or change one: /set temperature 0.2",
    "/system TEXT": "what the model is told first; without a text, nothing",
    "/reset": "forget the conversation",
    "/save FILE": "write the conversation as JSON lines",
    "/help": "this list",
    "/quit": "leave (so do Ctrl+D, and Ctrl+C twice)",
}

LONGEST_LINE = 10_000_000  # bytes of a line that is read from a pipe
OF_A_DUAL_HEAD = ("alignment", "show_alpha")


class ChatSession:
    """One conversation with one model.

    A model with a chat template is chatted with; a base model continues the text it is given.

    Args:
        model: to talk to.
        tokenizer: its own.
        settings: how it answers.
        name: shown; left out, the model's own.
        plain: of a dual head, whether its backbone alone is talked to.
    """

    def __init__(
        self,
        model: LanguageModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: ChatSettings,
        *,
        name: str = "",
        plain: bool = False,
    ):
        self.name, self.plain = name or model.config.name_or_path or "", plain
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.settings = settings
        self.chats = is_chat_model(tokenizer)
        self.messages: list[dict[str, str]] = []

    def beside(self, name: str, options: LoadOptions | None = None) -> ChatSession:
        """Returns a session of the same settings with another model, loaded as `options` say; the backbone of
        a dual head is in memory already.
        """
        from llmlab.models.load import is_backbone_of
        from llmlab.models.loading import load_for_use

        if is_backbone_of(name, self.model):
            return ChatSession(self.model, self.tokenizer, self.settings, name=name, plain=True)
        options = options or validate(LoadOptions, {"device": self.model.device.type})
        model, tokenizer = load_for_use(name, options)
        return ChatSession(model, tokenizer, self.settings, name=name)

    def prompt(self, said: str) -> str:
        """Returns the text that the model continues when `said` comes next.

        Raises:
            LabError: when it is no text.
        """
        if not said.isascii() and any("\ud800" <= sign <= "\udfff" for sign in said):
            raise LabError("what was said is not UTF-8 text", remedy="save it as UTF-8")
        if not self.chats:
            return said
        system = (
            [{"role": "system", "content": self.settings.system_prompt}]
            if self.settings.system_prompt
            else []
        )
        return render(
            self.tokenizer, [*system, *self.messages, {"role": "user", "content": said}], generate=True
        )

    @property
    def fused(self) -> bool:
        """Whether there is an alignment to turn."""
        return isinstance(self.model, LabDualHeadForCausalLM) and not self.plain

    def reply(self, said: str, write: Callable[[Piece], None]) -> tuple[str, bool]:
        """Streams the answer to `write`; returns it and whether it was cut short by Ctrl+C.
        Both are remembered.
        """
        parts: list[str] = []
        settings = self.settings.model_copy(update={"alignment": 0.0}) if self.plain else self.settings
        pieces = stream(self.model, self.tokenizer, self.prompt(said), settings)
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
                console.print("a new conversation", style="dim")
            case "/system":
                if not self.chats:
                    raise LabError("a base model has no system prompt", remedy="fine-tune it first")
                self.settings = self._changed("system_prompt", rest or None)
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
            for name, info in ChatSettings.options().items():
                if name in OF_A_DUAL_HEAD and not self.fused:
                    continue
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
        self.settings = self._changed(name, parsed)
        console.print(f"{name} is now {getattr(self.settings, name)}", style="dim")

    def _changed(self, name: str, value: object) -> ChatSettings:
        return validate(ChatSettings, {**self.settings.model_dump(), name: value})


def coloured(piece: Piece) -> Text:
    """Returns a piece on a ground from none (alpha 0) to deep orange (alpha 1),
    whatever the terminal's own colours.
    """
    if piece.alpha is None:
        return Text(piece)
    share = min(1.0, max(0.0, piece.alpha))
    dark = [round(30 + share * (high - 30)) for high in (200, 90, 0)]
    return Text(piece, style=f"rgb(255,255,255) on rgb({dark[0]},{dark[1]},{dark[2]})")


def legend(alphas: list[float]) -> Text:
    """Returns the scale of the colours, and the mean of an answer."""
    scale = Text("  alpha ", style="dim")
    for step in range(11):
        block = Piece(" ")
        block.alpha = step / 10
        scale.append_text(coloured(block))
    scale.append(f" 0 to 1, mean {sum(alphas) / len(alphas):.2f}", style="dim")
    return scale


def answer_at_terminal(session: ChatSession, said: str, console: Console) -> None:
    """Streams one answer to the terminal."""
    alphas: list[float] = []

    def write(piece: Piece) -> None:
        alphas.extend([] if piece.alpha is None else [piece.alpha])
        shown = coloured(piece) if session.settings.show_alpha else Text(piece)
        console.print(shown, end="", highlight=False, soft_wrap=True)

    console.print("model ", style="green bold", end="")
    _, stopped = session.reply(said, write)
    console.print(" (stopped)" if stopped else "", style="dim")
    if session.fused and session.settings.show_alpha and alphas:
        console.print(legend(alphas))


def answer_side_by_side(sessions: list[ChatSession], said: str, console: Console) -> None:
    """Shows the answers of two models in two columns, the second once the first has ended."""
    answers = [Text(), Text()]

    def columns() -> Table:
        table = Table(*(session.name for session in sessions), expand=True, show_lines=False)
        for column in table.columns:
            column.overflow, column.ratio = "fold", 1
        table.add_row(*answers)
        return table

    with Live(columns(), console=console, refresh_per_second=8, vertical_overflow="visible") as live:
        for session, answer in zip(sessions, answers, strict=True):

            def write(piece: Piece, answer: Text = answer, shows: bool = session.settings.show_alpha) -> None:
                answer.append_text(coloured(piece) if shows else Text(piece))
                live.update(columns())

            _, stopped = session.reply(said, write)
            if stopped:
                answer.append(" (stopped)", style="dim")
                live.update(columns())


def _lines(source: TextIO) -> Iterator[str]:
    """Yields the lines of a stream.

    Raises:
        LabError: when one is no UTF-8 text, or longer than `LONGEST_LINE` bytes.
    """
    raw = getattr(source, "buffer", None)
    if raw is None:  # a stream of a caller
        yield from source
        return
    number = 0
    while line := raw.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise LabError(
                f"line {number} of standard input has more than {LONGEST_LINE:,} bytes", remedy="cut it up"
            )
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise LabError(
                f"line {number} of standard input is not UTF-8 text ({error.reason} at byte"
                f" {error.start + 1:,})",
                remedy="save it as UTF-8",
            ) from None


def from_pipe(sessions: list[ChatSession]) -> None:
    """Answers each line of standard input by itself; of two models, each answer behind the model's name."""
    for line in _lines(sys.stdin):
        if not (prompt := line.strip()):
            continue
        for session in sessions:
            if len(sessions) > 1:
                print(f"{visible(session.name)}: ", end="")
            session.reply(prompt, lambda piece: print(visible(piece), end="", flush=True))
            print(flush=True)
            session.messages.clear()


def chat(session: ChatSession, console: Console, against: ChatSession | None = None) -> None:
    """Holds the conversation: with a prompt at a terminal, else one answer for each line of standard input.

    Args:
        session: with the model.
        console: where it is shown.
        against: with another model, whose answers stand beside.
    """
    sessions = [session, *([against] if against else [])]
    if not sys.stdin.isatty():
        from_pipe(sessions)
        return
    from prompt_toolkit import PromptSession
    from prompt_toolkit.formatted_text import HTML

    kind = "chat" if session.chats else "base model: it continues your text"
    names = Text(" beside ", style="dim").join(Text(one.name, style="bold not dim") for one in sessions)
    console.print(names, Text(f"({kind}; /help for commands)", style="dim"))
    if session.fused:
        console.print(
            "a dual head: /set alignment 1.5 turns it up, /set show_alpha true shows where it acts",
            style="dim",
        )
    prompt: PromptSession[str] = PromptSession(
        HTML("<ansicyan><b>you</b></ansicyan> ")
        if session.chats
        else HTML("<ansicyan><b>text</b></ansicyan> ")
    )
    interrupted = False
    while True:
        try:
            line = prompt.prompt().strip()
        except EOFError:
            break
        except KeyboardInterrupt:
            if interrupted:
                break
            interrupted = True
            console.print("Ctrl+C once more to leave", style="dim")
            continue
        interrupted = False
        if not line:
            continue
        try:
            if line.startswith("/"):
                if not session.command(line, console):
                    break
                if against:  # one set of settings; conversations are forgotten together
                    against.settings = session.settings.model_copy(update={"show_alpha": False})
                    against.messages = against.messages if session.messages else []
            elif against:
                answer_side_by_side(sessions, line, console)
            else:
                answer_at_terminal(session, line, console)
        except LabError as error:
            console.print(str(error), style="red")
