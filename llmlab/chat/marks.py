"""Marks that a person gives to answers in a conversation: each is kept at once, as data to train on."""

from __future__ import annotations

from dataclasses import dataclass, field

from llmlab.chat.conversation import Conversation
from llmlab.data.collection import BAD, BETTER, GOOD, REWRITTEN, Collection, Mark
from llmlab.data.schemas import Messages
from llmlab.errors import LabError

COMMANDS = ("/good", "/bad", "/better", "/worse", "/rewrite", "/unmark")


@dataclass(frozen=True)
class Replaced:
    """An answer that was there before `/regenerate`: what it answered, and its text."""

    asked: list[dict[str, str]]
    answer: str


@dataclass
class Marks:
    """What is judged in one conversation.

    Attributes:
        collection: where marks are kept.
        replaced: the answers before `/regenerate`, of each session.
        given: ids of the marks, the newest last.
    """

    collection: Collection
    replaced: list[Replaced] = field(default_factory=list)
    given: list[str] = field(default_factory=list)

    def label(self, session: Conversation, verdict: str, note: str = "") -> str:
        """Marks the last answer of a session as good or bad; returns what was noted, in words.

        Raises:
            LabError: when there is no answer, or it cannot be kept.
        """
        answer = last_answer(session)
        text, model = ("chosen", "chosen_model") if verdict == GOOD else ("rejected", "rejected_model")
        mark = Mark(
            verdict, prompt_of(session), note=note, **{text: answer, model: session.name}
        )  # the other one stays empty
        return self.keep(mark)

    def keep(self, mark: Mark) -> str:
        """Keeps a mark; returns what was noted, in words."""
        self.collection.add(mark)
        self.given.append(mark.id)
        return f"noted: {mark.verdict} ({mark.id}; /unmark takes it back)"

    def better(self, sessions: list[Conversation], number: int, note: str = "") -> str:
        """Marks one answer as better than the other: of two models the one with this number, of one model 0
        for the answer that is there, 1 for the one before `/regenerate`.

        Both models go on from the better one.

        Raises:
            LabError: when there are no two answers to the same messages, or they are the same.
        """
        if len(sessions) == 1:
            return self._better_than_before(sessions[0], number, note)
        first, second = sessions
        if prompt_of(first) != prompt_of(second):
            raise LabError(
                "the two models have read different conversations",
                remedy="after each answer say which is better, or begin anew with /reset",
            )
        chosen, rejected = sessions[number], sessions[1 - number]
        noted = self.keep(pair(chosen, rejected, "beside", note))
        rejected.messages = [*chosen.messages]
        rejected.forget_last()
        return noted

    def _better_than_before(self, session: Conversation, number: int, note: str) -> str:
        asked = prompt_of(session)
        before = self.replaced[0] if self.replaced else None
        if before is None or before.asked != asked:
            raise LabError(
                "there is no other answer to the last message", remedy="/regenerate, then /better or /worse"
            )
        answers = [last_answer(session), before.answer]
        chosen, rejected = answers if number == 0 else answers[::-1]
        refuse_equal(chosen, rejected)
        return self.keep(Mark(BETTER, asked, chosen, rejected, session.name, session.name, note=note))

    def rewritten(self, session: Conversation, text: str) -> str:
        """Keeps a text as the better answer, which the conversation goes on from.

        Raises:
            LabError: when there is no answer, the text is empty or the answer itself.
        """
        answer = last_answer(session)
        text = text.strip()
        if not text:
            raise LabError("an empty text is no answer", remedy="/bad marks the answer as bad")
        refuse_equal(text, answer)
        noted = self.keep(Mark(REWRITTEN, prompt_of(session), text, answer, rejected_model=session.name))
        session.messages[-1] = {"role": "assistant", "content": text}
        session.forget_last()
        return noted

    def take_back(self) -> str:
        """Removes the newest mark of this conversation; returns what was done, in words.

        Raises:
            LabError: when there is none.
        """
        if not self.given:
            raise LabError("nothing was marked here", remedy="`llmlab preferences list` shows all marks")
        gone = self.given.pop()
        self.collection.delete([gone])
        return f"taken back: {gone}"

    def before_regenerating(self, sessions: list[Conversation]) -> None:
        """Notes the answers that are about to be replaced."""
        self.replaced = [Replaced(prompt_of(one), last_answer(one)) for one in sessions if one.messages]


def prompt_of(session: Conversation) -> Messages:
    """Returns the messages that the last answer follows, the system prompt first.

    Raises:
        LabError: when there is no answer.
    """
    last_answer(session)
    system = session.settings.system_prompt
    if not session.chats:  # it read the last text alone
        return [session.messages[-2]]
    return [*([{"role": "system", "content": system}] if system else []), *session.messages[:-1]]


def last_answer(session: Conversation) -> str:
    """Returns the last answer.

    Raises:
        LabError: when there is none, or it is empty.
    """
    if not session.messages or session.messages[-1]["role"] != "assistant":
        raise LabError("there is no answer yet", remedy="say something first")
    return session.messages[-1]["content"]


def pair(chosen: Conversation, rejected: Conversation, made_in: str, note: str = "") -> Mark:
    """Returns the mark of a better and a worse answer.

    Raises:
        LabError: when they are the same.
    """
    answers = last_answer(chosen), last_answer(rejected)
    refuse_equal(*answers)
    return Mark(BETTER, prompt_of(chosen), *answers, chosen.name, rejected.name, made_in=made_in, note=note)


def refuse_equal(chosen: str, rejected: str) -> None:
    """Refuses a pair of two equal answers.

    Raises:
        LabError: when they are.
    """
    if chosen == rejected:
        raise LabError("both answers are the same: there is nothing to learn from them")


def label_of(command: str) -> str:
    """Returns the verdict of `/good` or `/bad`."""
    return {"/good": GOOD, "/bad": BAD}[command]
