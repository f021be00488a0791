"""The conversation at a terminal: what is typed is said, or is a command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from llmlab.chat.arena import CHOICES, QUESTION, REWRITES, Arena
from llmlab.chat.conversation import Conversation
from llmlab.chat.marks import COMMANDS, Marks, label_of
from llmlab.data.collection import Collection
from llmlab.errors import LabError

ONE_BY_ONE = ("/tokens", "/why")  # commands that are shown for each model
HIDDEN = "would tell which model is which"


@dataclass
class Chat:
    """A conversation with one model or two.

    Attributes:
        sessions: one, or two that are asked the same.
        console: where it is shown.
        answer: shows the answers to what was said.
        arena: where the models are not named.
        marks: where judgements are kept.
        draft: text that waits in the input line, to be changed.
        editing: whether it is the last message.
        rewriting: the number of the session whose last answer it is; None where it is none.
    """

    sessions: list[Conversation]
    console: Console
    answer: Callable[[list[Conversation], str, Console], None]
    arena: Arena | None = None
    marks: Marks = field(default_factory=lambda: Marks(Collection()))
    draft: str = ""
    editing: bool = field(default=False)
    rewriting: int | None = None

    def handle(self, line: str) -> bool:
        """Says a line, or carries it out as a command; returns False when it ends the chat.

        Raises:
            LabError: when that cannot be done.
        """
        if self.rewriting is not None:
            number, self.rewriting = self.rewriting, None
            self._noted(self.marks.rewritten(self.sessions, number, line))
            return True
        if line.startswith("/") and "\n" not in line:
            self.editing = False
            return self._command(line)
        if self.editing:
            self.editing = False
            self._each(lambda session: session.undo())
        self._say(line)
        return True

    def _say(self, line: str) -> None:
        if not self.arena:
            self.answer_turn(line)
            return
        before = [[*session.messages] for session in self.sessions]
        self.answer(self.arena.shuffle(), line, self.console)
        try:
            self._vote(self.arena)
        except (KeyboardInterrupt, EOFError):  # no vote: as if it had not been said
            for session, messages in zip(self.sessions, before, strict=True):
                session.messages = messages
            self.console.print("no vote; the last message is forgotten", style="dim")

    def answer_turn(self, said: str) -> None:
        """Shows the answers to what was said; they can be judged from here on."""
        before = self.marks.turn
        self.marks.forget()  # until they are there
        self.answer(self.sessions, said, self.console)
        self.marks.answered(self.sessions, before)

    def _vote(self, arena: Arena) -> None:
        first, second = arena.answers
        if first == second:
            self.console.print("the answers are the same: equal", style="dim")
            arena.same()
            return
        choice = ""
        while choice not in CHOICES:
            self.console.print(QUESTION, style="bold", highlight=False, end=" ")
            choice = input().strip().lower()
        if choice not in REWRITES:
            arena.vote(choice)
            return
        from llmlab.chat.input_line import InputLine

        number = REWRITES[choice]
        written = InputLine("better").ask(arena.answers[number])
        if not written or written == arena.answers[number]:
            self.console.print("nothing was changed: equal", style="dim")
            arena.same()
        else:
            arena.rewrite(number, written)

    def _command(self, line: str) -> bool:
        name = line.split()[0]
        match name:
            case "/regenerate":
                said = self.sessions[0].last_said()
                self._each(lambda session: session.undo())
                if self.sessions[0].settings.seed is not None:
                    self.console.print("with a seed the answer stays the same: /set seed none", style="dim")
                self._say(said)
            case "/edit":
                self.draft, self.editing = self.sessions[0].last_said(), True
            case "/undo":
                self.sessions[0].last_said()
                self.marks.forget()
                for session in self.sessions[1:]:
                    session.undo()
                return self.sessions[0].command(line, self.console)
            case _ if name in COMMANDS:
                self._mark(name, line.removeprefix(name).strip())
            case _ if name in ONE_BY_ONE and len(self.sessions) > 1:
                if self.arena:
                    raise LabError(f"{name} {HIDDEN}", remedy="chat with one of them alone")
                for session in self.sessions:
                    self.console.print(Text(session.name, style="bold"))
                    session.command(line, self.console)
            case _:
                return self._for_all(line)
        return True

    def _mark(self, name: str, rest: str) -> None:
        """Carries out a command that judges the last answer.

        Raises:
            LabError: when it cannot be judged so.
        """
        if self.arena:
            raise LabError(f"{name} is for models that are named", remedy="judge these where it is asked for")
        if name == "/unmark":
            self._noted(self.marks.take_back())
            return
        number, rest = self._meant(name, rest)
        match name:
            case "/good" | "/bad":
                self._noted(self.marks.label(number, label_of(name), rest))
            case "/better":
                self._noted(self.marks.better(self.sessions, number, rest))
            case "/worse":
                self._noted(self.marks.better(self.sessions, 1 - number, rest))
            case _ if rest:
                self._noted(self.marks.rewritten(self.sessions, number, rest))
            case _:
                if not sys.stdin.isatty():
                    raise LabError("/rewrite needs a terminal", remedy="/rewrite TEXT")
                self.draft, self.rewriting = self.marks.given(number).answer, number

    def _meant(self, name: str, rest: str) -> tuple[int, str]:
        """Returns the number of the session whose answer is meant, and what else was said.

        Raises:
            LabError: when there are two, and none is named.
        """
        if len(self.sessions) == 1:
            return 0, rest
        first, _, note = rest.partition(" ")
        if first not in ("1", "2"):
            raise LabError(f"{name} needs the number of an answer", remedy=f"{name} 1 (left) or {name} 2")
        return int(first) - 1, note.strip()

    def _noted(self, what: str) -> None:
        self.console.print(what, style="dim", highlight=False)

    def _for_all(self, line: str) -> bool:
        """Carries out a command for all: one set of settings, and one conversation that goes on or ends."""
        first, *others = self.sessions
        before, messages = first.settings, [*first.messages]
        goes_on = first.command(line, self.console)
        if first.messages != messages:
            self.marks.forget()
        for other in others:
            try:
                other.adopt(first.settings.model_copy(update={"show_alpha": False}))
            except LabError:
                first.settings = before
                raise
            if first.messages != messages:  # forgotten, or loaded
                other.messages = [*first.messages]
                other.forget_last()
        return goes_on

    def _each(self, do: Callable[[Conversation], object]) -> None:
        for session in self.sessions:
            do(session)


def converse(chat: Chat) -> None:
    """Asks for lines until the person leaves."""
    from llmlab.chat.input_line import InputLine

    prompt = InputLine("you" if chat.sessions[0].chats else "text")
    interrupted = False
    while True:
        draft, chat.draft = chat.draft, ""
        try:
            line = prompt.ask(draft)
        except EOFError:
            break
        except KeyboardInterrupt:
            if interrupted:
                break
            interrupted = not (chat.editing or chat.rewriting is not None)
            if not interrupted:
                chat.editing, chat.rewriting = False, None
                chat.console.print("nothing was changed", style="dim")
            else:
                chat.console.print("Ctrl+C once more to leave", style="dim")
            continue
        interrupted = False
        if not line:
            chat.editing, chat.rewriting = False, None
            continue
        try:
            if not chat.handle(line):
                break
        except LabError as error:
            chat.console.print(str(error), style="red")
    if chat.arena:
        for line in chat.arena.score():
            chat.console.print(line, highlight=False, soft_wrap=True)
    sys.stdout.flush()
