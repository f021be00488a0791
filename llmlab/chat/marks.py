"""Marks that a person gives to answers in a conversation: each is kept at once, as data to train on.

A mark is about the last turn's answers as the models gave them, even if the conversation continues from
another text.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from llmlab.chat.conversation import Conversation
from llmlab.data.collection import BAD, BETTER, GOOD, REWRITTEN, Collection, Mark
from llmlab.data.schemas import Messages
from llmlab.errors import LabError

COMMANDS = ("/good", "/bad", "/better", "/worse", "/rewrite", "/unmark")


@dataclass(frozen=True)
class Given:
    """An answer as a model gave it, and the messages that it followed."""

    prompt: Messages
    answer: str
    model: str


@dataclass
class Marks:
    """What is judged in one conversation.

    Attributes:
        collection: where marks are kept.
        turn: the last answers, of each session; empty where there are none that were given here.
        replaced: those before `/regenerate`.
        kept: ids of the marks, the newest last.
        better_of_turn: id of the mark that says which answer of this turn is better, "" for none.
    """

    collection: Collection
    turn: list[Given] = field(default_factory=list)
    replaced: list[Given] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    better_of_turn: str = ""

    def answered(self, sessions: list[Conversation], before: list[Given]) -> None:
        """Takes the answers of a turn, and those before them, which can be compared with them where they
        followed the same messages.
        """
        self.turn, self.replaced, self.better_of_turn = [given_by(one) for one in sessions], before, ""

    def forget(self) -> None:
        """Forgets the turn: the conversation was changed, and its last answer may be anybody's."""
        self.turn, self.replaced, self.better_of_turn = [], [], ""

    def given(self, number: int) -> Given:
        """Returns the last answer of a session.

        Raises:
            LabError: when there is none that was given here.
        """
        if not self.turn:
            raise LabError("there is no answer that was given here", remedy="say something first")
        return self.turn[number]

    def label(self, number: int, verdict: str, note: str = "") -> str:
        """Marks the last answer of a session as good or bad; returns what was noted, in words.

        Raises:
            LabError: when there is no answer, or it cannot be kept.
        """
        return self.keep(labelled(self.given(number), verdict, "chat", note))

    def keep(self, mark: Mark) -> str:
        """Keeps a mark; returns what was noted, in words."""
        self.collection.add(mark)
        self.kept.append(mark.id)
        return f"noted: {mark.verdict} ({mark.id}; /unmark takes it back)"

    def better(self, sessions: list[Conversation], number: int, note: str = "") -> str:
        """Marks one answer as better than the other: of two models the one with this number, of one model 0
        for the answer that is there, 1 for the one before `/regenerate`.

        Both models continue from the better one. Said anew in a turn, it replaces what was said.

        Raises:
            LabError: when there are no two answers to the same messages, or they are the same.
        """
        if len(sessions) > 1:
            both, made_in = [self.given(0), self.given(1)], "beside"
            remedy = "after each answer say which is better, or begin anew with /reset"
            problem = "the two models have read different conversations"
        else:
            both, made_in = [self.given(0), *self.replaced[:1]], "chat"
            problem, remedy = "there is no other answer to the last message", "/regenerate, then /better"
        if len(both) < 2 or both[0].prompt != both[1].prompt:
            raise LabError(problem, remedy=remedy)
        mark = pair(both[number], both[1 - number], made_in, note)
        if self.better_of_turn:
            self.collection.delete([self.better_of_turn])
        noted = self.keep(mark)
        self.better_of_turn = mark.id
        if len(sessions) > 1:
            go_on_from(sessions, sessions[number].messages[:-1], both[number].answer)
        return noted

    def rewritten(self, sessions: list[Conversation], number: int, text: str) -> str:
        """Keeps a text as the better answer, which the conversation continues from.

        Raises:
            LabError: when there is no answer, the text is empty or the answer itself.
        """
        given, text = self.given(number), text.strip()
        if not text:
            raise LabError("an empty text is no answer", remedy="/bad marks the answer as bad")
        noted = self.keep(rewriting(given, text, "chat"))
        go_on_from(sessions, sessions[number].messages[:-1], text)
        return noted

    def take_back(self) -> str:
        """Removes the newest mark of this conversation; returns what was done, in words.

        Raises:
            LabError: when there is none.
        """
        if not self.kept:
            raise LabError("nothing was marked here", remedy="`llmlab preferences list` shows all marks")
        gone = self.kept.pop()
        self.collection.delete([gone])
        self.better_of_turn = "" if gone == self.better_of_turn else self.better_of_turn
        return f"taken back: {gone}"


def labelled(given: Given, verdict: str, made_in: str, note: str = "") -> Mark:
    """Returns the mark of a good or a bad answer."""
    if verdict == GOOD:
        return Mark(
            GOOD, given.prompt, chosen=given.answer, chosen_model=given.model, made_in=made_in, note=note
        )
    return Mark(
        BAD, given.prompt, rejected=given.answer, rejected_model=given.model, made_in=made_in, note=note
    )


def pair(chosen: Given, rejected: Given, made_in: str, note: str = "") -> Mark:
    """Returns the mark of a better and a worse answer.

    Raises:
        LabError: when they are the same.
    """
    _refuse_equal(chosen.answer, rejected.answer)
    answers, models = (chosen.answer, rejected.answer), (chosen.model, rejected.model)
    return Mark(BETTER, chosen.prompt, *answers, *models, made_in=made_in, note=note)


def rewriting(given: Given, text: str, made_in: str) -> Mark:
    """Returns the mark of an answer that a person wrote anew.

    Raises:
        LabError: when it is as it was.
    """
    _refuse_equal(text, given.answer)
    return Mark(REWRITTEN, given.prompt, text, given.answer, rejected_model=given.model, made_in=made_in)


def go_on_from(sessions: list[Conversation], before: list[dict[str, str]], answer: str) -> None:
    """Lets all models continue from one answer, which follows `before`."""
    history = [*before, {"role": "assistant", "content": answer}]
    for session in sessions:
        if session.messages != history:
            session.messages = [*history]
            session.forget_last()


def given_by(session: Conversation) -> Given:
    """Returns the last answer of a session, after the system prompt and all that was said."""
    *before, said, answer = session.messages
    system = session.settings.system_prompt
    head = [{"role": "system", "content": system}] if system else []
    prompt = [*head, *before, said] if session.chats else [said]  # a base model reads the last text alone
    return Given(prompt, answer["content"], session.name)


def _refuse_equal(chosen: str, rejected: str) -> None:
    if chosen == rejected:
        raise LabError("both answers are the same: there is nothing to learn from them")


def label_of(command: str) -> str:
    """Returns the verdict of `/good` or `/bad`."""
    return {"/good": GOOD, "/bad": BAD}[command]
