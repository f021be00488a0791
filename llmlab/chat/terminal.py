"""A conversation at the terminal: streaming answers, two models side by side; or lines of a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llmlab.chat.arena import Arena
from llmlab.chat.conversation import Conversation
from llmlab.chat.loop import Chat, converse
from llmlab.chat.marks import COMMANDS, Marks
from llmlab.chat.pieces import Piece
from llmlab.data.collection import Collection
from llmlab.errors import LabError
from llmlab.readable import visible
from llmlab.screen import LabConsole

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


def answer_side_by_side(sessions: list[Conversation], said: str, console: Console, names: list[str]) -> None:
    """Shows the answers of two models in two columns, the second once the first has ended."""
    answers = [Text(), Text()]

    def columns() -> Table:
        table = Table(*names, expand=True, show_lines=False)
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


IN_A_PIPE = (
    "/regenerate",
    "/undo",
    "/reset",
    "/load",
    "/save",
    "/set",
    "/system",
    "/tokens",
    "/why",
    "/help",
    *COMMANDS,
)


def from_pipe(sessions: list[Conversation], marks: Marks) -> None:
    """Answers each line of standard input by itself; of two models, each answer behind the model's name.

    A line that is a command applies to the exchange before it; after `/load` each line continues
    the loaded conversation.

    Raises:
        LabError: when a command fails.
    """
    chat = Chat(sessions, LabConsole(), _print_answers, marks=marks)
    begin: list[dict[str, str]] = []
    for line in _lines(sys.stdin):
        if not (said := line.strip()):
            continue
        name = said.split()[0]
        if name in ("/quit", "/exit"):
            return
        if name == "/edit":
            raise LabError("/edit needs a terminal", remedy="send the changed message as a line of its own")
        if name in IN_A_PIPE:
            chat.handle(said)
            if name in ("/load", "/reset"):
                begin = [*sessions[0].messages]
            continue
        for session in sessions:
            session.messages = [*begin]
        chat.answer_turn(said)


def _print_answers(sessions: list[Conversation], said: str, console: Console) -> None:
    for session in sessions:
        if len(sessions) > 1:
            print(f"{visible(session.name)}: ", end="")
        session.reply(said, lambda piece: print(visible(piece), end="", flush=True))
        print(flush=True)


def _show_answers(sessions: list[Conversation], said: str, console: Console) -> None:
    """Shows the answers of one model or two at the terminal."""
    if len(sessions) == 1:
        answer_at_terminal(sessions[0], said, console)
    else:
        answer_side_by_side(sessions, said, console, [session.name for session in sessions])


def _show_hidden(sessions: list[Conversation], said: str, console: Console) -> None:
    """Shows the answers of two models behind numbers."""
    answer_side_by_side(sessions, said, console, ["1", "2"])


def talk(
    session: Conversation,
    console: Console,
    against: Conversation | None = None,
    *,
    blind: bool = False,
    collection: Collection | None = None,
) -> None:
    """Holds the conversation: with a prompt at a terminal, else one answer for each line of standard input.

    Args:
        session: with the model.
        console: where it is shown.
        against: with another model, whose answers stand beside.
        blind: whether the two are not named, and voted on.
        collection: where judgements are kept; left out, that of this folder.

    Raises:
        LabError: when votes cannot be given or kept.
    """
    collection = collection or Collection()
    sessions = [session, *([against] if against else [])]
    if not sys.stdin.isatty():
        from_pipe(sessions, Marks(collection))
        return
    if blind:
        arena = Arena(sessions, collection)
        arena.refuse()
        console.print("two models, in an order drawn for each turn; /quit shows the score", style="dim")
        converse(Chat(sessions, console, _show_hidden, arena))
        return
    kind = "chat" if session.chats else "base model: it continues your text"
    names = Text(" beside ", style="dim").join(Text(one.name, style="bold not dim") for one in sessions)
    console.print(names, Text(f"({kind}; /help for commands, Alt+Enter for a new line)", style="dim"))
    if session.fused:
        console.print(
            "a dual head: /set alignment 1.5 turns it up, /set show_alpha true shows where it acts",
            style="dim",
        )
    converse(Chat(sessions, console, _show_answers, marks=Marks(collection)))
