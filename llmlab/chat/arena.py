"""Two models behind numbers: the person votes, and the votes are rows of preference data.

The order is drawn for each turn. After a vote both models go on from the better answer, so that the prompt of
every row is what both have read.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from llmlab.chat.conversation import Conversation
from llmlab.chat.marks import last_answer, pair, prompt_of
from llmlab.data.collection import BAD, EQUAL, GOOD, REWRITTEN, Collection, Mark
from llmlab.readable import visible

FIRST, SECOND, TIE, SKIP, BOTH_GOOD, BOTH_BAD = "1", "2", "=", "s", "g", "b"
REWRITES = {"r1": 0, "r2": 1}
CHOICES = (FIRST, SECOND, TIE, SKIP, BOTH_GOOD, BOTH_BAD, *REWRITES)
QUESTION = "which is better? 1 2 · = equal · g b both good, bad · r1 r2 rewrite · s skip"
MADE_IN = "blind"


@dataclass
class Arena:
    """A comparison of two models that are not named.

    Attributes:
        sessions: the two.
        collection: where marks are kept.
        wins: of each of the two.
        equal: votes for neither.
        marks: kept here.
        order: which session stands first in this turn.
    """

    sessions: list[Conversation]
    collection: Collection
    wins: list[int] = field(default_factory=lambda: [0, 0])
    equal: int = 0
    marks: int = 0
    order: tuple[int, int] = (0, 1)

    def refuse(self) -> None:
        """Looks whether votes can be kept.

        Raises:
            LabError: when they cannot.
        """
        self.collection.refuse()

    def shuffle(self) -> list[Conversation]:
        """Draws the order of a turn; returns the sessions in it."""
        self.order = random.SystemRandom().choice([(0, 1), (1, 0)])
        return self.in_order

    @property
    def in_order(self) -> list[Conversation]:
        """The sessions, in the order of this turn."""
        return [self.sessions[number] for number in self.order]

    @property
    def answers(self) -> list[str]:
        """The last answers, in the order of this turn."""
        return [last_answer(session) for session in self.in_order]

    def vote(self, choice: str) -> None:
        """Counts a vote, keeps its mark, and lets both go on from the better answer.

        Raises:
            LabError: when the mark cannot be kept.
        """
        better = self.order[1] if choice == SECOND else self.order[0]
        if choice in (FIRST, SECOND):
            self._keep(pair(self.sessions[better], self.sessions[1 - better], MADE_IN))
            self.wins[better] += 1
        elif choice == TIE:
            self._keep(self._equal())
        elif choice in (BOTH_GOOD, BOTH_BAD):
            self._keep(*(_label(session, choice == BOTH_GOOD) for session in self.in_order))
        self.equal += choice in (TIE, BOTH_GOOD, BOTH_BAD)
        self._go_on_from(self.sessions[better].messages)

    def same(self) -> None:
        """Counts two equal answers as equal; there is nothing to keep of them."""
        self.equal += 1
        self._go_on_from(self.sessions[0].messages)

    def rewrite(self, number: int, text: str) -> None:
        """Keeps a text as better than the answer with this number, and lets both go on from it.

        Raises:
            LabError: when it cannot be kept.
        """
        session = self.in_order[number]
        answer = last_answer(session)
        mark = Mark(REWRITTEN, prompt_of(session), text, answer, rejected_model=session.name, made_in=MADE_IN)
        self._keep(mark)
        self._go_on_from([*session.messages[:-1], {"role": "assistant", "content": text}])

    def _go_on_from(self, messages: list[dict[str, str]]) -> None:
        history = [*messages]
        for session in self.sessions:
            session.messages = [*history]
            session.forget_last()

    def _equal(self) -> Mark:
        first, second = self.in_order
        return Mark(
            EQUAL,
            prompt_of(first),
            last_answer(first),
            last_answer(second),
            first.name,
            second.name,
            made_in=MADE_IN,
        )

    def _keep(self, *marks: Mark) -> None:
        self.collection.add(*marks)
        self.marks += len(marks)

    def score(self) -> list[str]:
        """Returns the score with the models' names, in lines."""
        total = sum(self.wins)
        lines = [
            f"{visible(session.name)}: {wins} of {total}"
            for session, wins in zip(self.sessions, self.wins, strict=True)
        ]
        lines += [f"equal: {self.equal}"] if self.equal else []
        return [
            *lines,
            f"{self.marks} marks added to {self.collection.path}: `llmlab preferences` shows them",
        ]


def _label(session: Conversation, good: bool) -> Mark:
    if good:
        return Mark(
            GOOD,
            prompt_of(session),
            chosen=last_answer(session),
            chosen_model=session.name,
            made_in=MADE_IN,
        )
    return Mark(
        BAD, prompt_of(session), rejected=last_answer(session), rejected_model=session.name, made_in=MADE_IN
    )
