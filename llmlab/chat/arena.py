"""Two models behind numbers: the person votes, and the votes are rows of preference data.

The order is drawn for each turn. After a vote both models go on from the better answer, so that the prompt of
every row is what both have read.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmlab.chat.conversation import Conversation
from llmlab.errors import LabError
from llmlab.readable import visible

FIRST, SECOND, EQUAL, SKIP = "1", "2", "=", "s"
QUESTION = "which is better? 1, 2, = (equal), s (skip)"


@dataclass
class Arena:
    """A comparison of two models that are not named.

    Attributes:
        sessions: the two.
        votes: file that rows are added to.
        wins: of each of the two.
        equal: votes for neither.
        rows: written here.
        order: which session stands first in this turn.
    """

    sessions: list[Conversation]
    votes: Path
    wins: list[int] = field(default_factory=lambda: [0, 0])
    equal: int = 0
    rows: int = 0
    order: tuple[int, int] = (0, 1)

    def refuse(self) -> None:
        """Looks whether votes can be written.

        Raises:
            LabError: when they cannot.
        """
        self._append("")

    def shuffle(self) -> list[Conversation]:
        """Draws the order of a turn; returns the sessions in it."""
        self.order = random.SystemRandom().choice([(0, 1), (1, 0)])
        return [self.sessions[number] for number in self.order]

    @property
    def answers(self) -> list[str]:
        """The last answers, in the order of this turn."""
        return [self.sessions[number].messages[-1]["content"] for number in self.order]

    def vote(self, choice: str) -> None:
        """Counts a vote, writes its row, and lets both go on from the better answer.

        Raises:
            LabError: when the row cannot be written.
        """
        better = self.order[1] if choice == SECOND else self.order[0]
        if choice in (FIRST, SECOND):
            self.wins[better] += 1
            self._append(json.dumps(self._row(better), ensure_ascii=False) + "\n")
            self.rows += 1
        elif choice == EQUAL:
            self.equal += 1
        history = self.sessions[better].messages
        for session in self.sessions:
            session.messages = [*history]
            session.forget_last()

    def _row(self, better: int) -> dict[str, Any]:
        """Returns the row of a vote: `prompt`, `chosen` and `rejected`, of chat models as messages."""
        chosen, rejected = self.sessions[better], self.sessions[1 - better]
        *before, said, answer = chosen.messages
        other = rejected.messages[-1]
        system = chosen.settings.system_prompt
        row: dict[str, Any]
        if chosen.chats:
            head = [{"role": "system", "content": system}] if system else []
            row = {"prompt": [*head, *before, said], "chosen": [answer], "rejected": [other]}
        else:
            row = {"prompt": said["content"], "chosen": answer["content"], "rejected": other["content"]}
        return {**row, "chosen_model": chosen.name, "rejected_model": rejected.name}

    def _append(self, text: str) -> None:
        try:
            with open(self.votes, "a", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise LabError(
                f"cannot be written ({error.strerror})",
                where=str(self.votes),
                remedy="name another with --votes",
            ) from None

    def score(self) -> list[str]:
        """Returns the score with the models' names, in lines."""
        total = sum(self.wins)
        lines = [
            f"{visible(session.name)}: {wins} of {total}"
            for session, wins in zip(self.sessions, self.wins, strict=True)
        ]
        lines += [f"equal: {self.equal}"] if self.equal else []
        return [*lines, f"{self.rows} rows added to {self.votes}: preference data for DPO"]
