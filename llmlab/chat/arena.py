"""Two models behind numbers: the person votes, and the votes are rows of preference data.

The order is drawn for each turn. After a vote both models continue from the better answer, so that the prompt
of every row is what both have read.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from llmlab.chat.conversation import Conversation
from llmlab.chat.marks import Given, given_by, go_on_from, labelled, pair, rewriting
from llmlab.data.collection import BAD, EQUAL, GOOD, Collection, Mark
from llmlab.readable import visible

FIRST, SECOND, TIE, SKIP, BOTH_GOOD, BOTH_BAD = "1", "2", "=", "s", "g", "b"
VERDICTS_OF_BOTH = {BOTH_GOOD: GOOD, BOTH_BAD: BAD}
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
    def given(self) -> list[Given]:
        """The last answers, in the order of this turn."""
        return [given_by(session) for session in self.in_order]

    @property
    def answers(self) -> list[str]:
        """Their texts."""
        return [one.answer for one in self.given]

    def vote(self, choice: str) -> None:
        """Counts a vote, keeps its mark, and lets both continue from the better answer.

        Raises:
            LabError: when the mark cannot be kept.
        """
        first, second = self.given
        if choice == FIRST:
            self._keep(pair(first, second, MADE_IN))
        elif choice == SECOND:
            self._keep(pair(second, first, MADE_IN))
        elif choice == TIE:
            answers, models = (first.answer, second.answer), (first.model, second.model)
            self._keep(Mark(EQUAL, first.prompt, *answers, *models, made_in=MADE_IN))
        elif choice in VERDICTS_OF_BOTH:
            self._keep(*(labelled(one, VERDICTS_OF_BOTH[choice], MADE_IN) for one in (first, second)))
        better = self.order[choice == SECOND]
        self.wins[better] += choice in (FIRST, SECOND)
        self.equal += choice in (TIE, *VERDICTS_OF_BOTH)
        go_on_from(self.sessions, self.sessions[better].messages[:-1], self.answers[choice == SECOND])

    def same(self) -> None:
        """Counts two equal answers as equal; there is nothing to keep of them."""
        self.equal += 1
        go_on_from(self.sessions, self.sessions[0].messages[:-1], self.answers[0])

    def rewrite(self, number: int, text: str) -> None:
        """Keeps a text as better than the answer with this number, and lets both continue from it.

        Raises:
            LabError: when it cannot be kept.
        """
        self._keep(rewriting(self.given[number], text, MADE_IN))
        go_on_from(self.sessions, self.in_order[number].messages[:-1], text)

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
