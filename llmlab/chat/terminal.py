"""A conversation at the terminal: streaming answers, two models side by side; or lines of a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llmlab.chat.conversation import Conversation
from llmlab.chat.pieces import Piece
from llmlab.errors import LabError
from llmlab.readable import visible

LONGEST_LINE = 10_000_000  # bytes of a line that is read from a pipe


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


def answer_at_terminal(session: Conversation, said: str, console: Console) -> None:
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


def answer_side_by_side(sessions: list[Conversation], said: str, console: Console) -> None:
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


def from_pipe(sessions: list[Conversation]) -> None:
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


def _command(line: str, session: Conversation, against: Conversation | None, console: Console) -> bool:
    """Carries out a slash command for both: one set of settings, and conversations are forgotten together."""
    before = session.settings
    goes_on = session.command(line, console)
    if against:
        try:
            against.adopt(session.settings.model_copy(update={"show_alpha": False}))
        except LabError:
            session.settings = before
            raise
        against.messages = against.messages if session.messages else []
    return goes_on


def talk(session: Conversation, console: Console, against: Conversation | None = None) -> None:
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
                if not _command(line, session, against, console):
                    break
            elif against:
                answer_side_by_side(sessions, line, console)
            else:
                answer_at_terminal(session, line, console)
        except LabError as error:
            console.print(str(error), style="red")
