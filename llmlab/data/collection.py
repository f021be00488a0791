"""What a person judged: answers marked good or bad, better than another, or rewritten; and the rows that
methods learn from them.

One file, `preferences/collected.jsonl`, one mark a line; every line has all columns, so that the file is a
source as it stands: pairs for DPO and reward models, good and rewritten answers for SFT.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmlab.data.schemas import InvalidRow, Messages, Row
from llmlab.errors import LabError
from llmlab.journal import Journal

SOURCE = "llmlab:preferences"
COLLECTED = Path("preferences") / "collected.jsonl"
BETTER, EQUAL, GOOD, BAD, REWRITTEN = "better", "equal", "good", "bad", "rewritten"
VERDICTS = {
    BETTER: "one answer is better than another",
    EQUAL: "two answers are as good as each other",
    GOOD: "an answer is good",
    BAD: "an answer is bad",
    REWRITTEN: "a person wrote a better answer",
}
COLLECT = "`llmlab chat MODEL`, then /good, /bad or /rewrite; or `--against OTHER --blind`"


@dataclass(frozen=True)
class Mark:
    """One judgement.

    Attributes:
        verdict: a key of `VERDICTS`.
        prompt: messages that both answers follow.
        chosen: the better, good or rewritten answer; of equal ones the first. "" for a bad one.
        rejected: the worse or bad answer, or the one that was rewritten; of equal ones the second.
        chosen_model: who gave the first; "" for a person.
        rejected_model: who gave the second.
        made_in: chat, beside, blind, or the name of an evaluation.
        note: the person's.
        id: by which it is found.
        when: it was made, ISO 8601 with the time zone.
    """

    verdict: str
    prompt: Messages
    chosen: str = ""
    rejected: str = ""
    chosen_model: str = ""
    rejected_model: str = ""
    made_in: str = "chat"
    note: str = ""
    id: str = field(default_factory=lambda: secrets.token_hex(4))
    when: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def models(self) -> tuple[str, ...]:
        """The models whose answers were judged."""
        return tuple(name for name in dict.fromkeys((self.chosen_model, self.rejected_model)) if name)

    @property
    def answer(self) -> str:
        """The answer that a label or a rewriting is about."""
        return self.chosen if self.verdict == GOOD else self.rejected

    def judges_the_same(self, other: Mark) -> bool:
        """Returns whether both are labels of the same answer, or rewrite it."""
        same = self.prompt == other.prompt and self.answer == other.answer and self.models == other.models
        return same and any({self.verdict, other.verdict} <= kind for kind in ({GOOD, BAD}, {REWRITTEN}))


COLUMNS = tuple(Mark.__dataclass_fields__)


@dataclass(frozen=True)
class Collection:
    """The marks of a file.

    Attributes:
        path: of the file; it need not exist.
    """

    path: Path = COLLECTED

    def marks(self) -> list[Mark]:
        """Returns the marks, the oldest first.

        Raises:
            LabError: when the file cannot be read, or holds something else.
        """
        return [self._mark(row, number) for number, row in enumerate(Journal(self.path).rows(), 1)]

    def refuse(self) -> None:
        """Looks whether marks can be added.

        Raises:
            LabError: when they cannot, or the file is of something else.
        """
        with Journal(self.path).lock():
            self.marks()
            try:
                with open(self.path, "ab"):
                    pass
            except OSError as error:
                raise LabError(
                    f"cannot be written ({error.strerror})",
                    where=str(self.path),
                    remedy="name another with --collect",
                ) from None

    def add(self, *marks: Mark) -> None:
        """Adds marks; a label or a rewriting of the same answer that was there is replaced.

        Raises:
            LabError: when they cannot be written.
        """
        journal = Journal(self.path)
        with journal.lock():
            before = self.marks()
            left = [mark for mark in before if not any(mark.judges_the_same(new) for new in marks)]
            if len(left) < len(before):
                journal.replace([asdict(mark) for mark in [*left, *marks]])
                return
            for mark in marks:
                journal.append(asdict(mark))

    def put(self, marks: Iterable[Mark]) -> None:
        """Adds marks, each in the place of the one with its id where there is one.

        Raises:
            LabError: when they cannot be written.
        """
        new = {mark.id: mark for mark in marks}
        self._rewrite(
            lambda before: [
                *(new.pop(mark.id, mark) for mark in before),
                *new.values(),
            ]
        )

    def change(self, mark: Mark) -> None:
        """Puts a mark in the place of the one with its id.

        Raises:
            LabError: when there is none, or it cannot be written.
        """
        self._rewrite(lambda marks: [mark if one.id == mark.id else one for one in marks])

    def delete(self, ids: Iterable[str]) -> None:
        """Removes marks.

        Raises:
            LabError: when the file cannot be written.
        """
        gone = set(ids)
        self._rewrite(lambda marks: [mark for mark in marks if mark.id not in gone])

    def find(self, beginning: str) -> Mark:
        """Returns the mark whose id begins so; `last` is the newest.

        Raises:
            LabError: when there is none, or more than one.
        """
        marks = self.marks()
        if not marks:
            raise LabError("nothing was collected yet", where=str(self.path), remedy=COLLECT)
        if beginning == "last":
            return marks[-1]
        matches = [mark for mark in marks if beginning and mark.id.startswith(beginning)]
        if len(matches) == 1:
            return matches[0]
        what = f"no mark {beginning!r}" if not matches else f"{len(matches)} marks that begin {beginning!r}"
        raise LabError(
            f"has {what}", where=str(self.path), remedy="`llmlab preferences list` shows their ids"
        )

    def _rewrite(self, do: Any) -> None:
        journal = Journal(self.path)
        with journal.lock():
            journal.replace([asdict(mark) for mark in do(self.marks())])

    def _mark(self, row: dict[str, Any], number: int) -> Mark:
        wanted = dict.fromkeys(COLUMNS, str) | {"prompt": list}
        wrong = [name for name, kind in wanted.items() if not isinstance(row.get(name), kind)]
        if wrong or row["verdict"] not in VERDICTS:
            raise LabError(
                f"is no collection of preferences: row {number} has no proper `{(wrong or ['verdict'])[0]}`",
                where=str(self.path),
                remedy="name another with --collect; pairs of another program are a source as they are",
            )
        return Mark(**{name: row[name] for name in COLUMNS})


def edited(mark: Mark, *, verdict: str = "", text: str | None = None, note: str | None = None) -> Mark:
    """Returns a mark with another verdict, another text of the better answer, another note.

    Raises:
        LabError: when the verdict needs another answer, or would leave no text.
    """
    if note is not None:
        mark = replace(mark, note=note)
    if verdict and verdict != mark.verdict:
        mark = _judged_otherwise(mark, verdict)
    if text is not None:
        if not text.strip():
            raise LabError("an empty text is no answer", where=mark.id, remedy="delete the mark instead")
        if mark.verdict == BAD:
            return replace(mark, rejected=text)
        mark = replace(mark, chosen=text)
    if mark.verdict in (BETTER, REWRITTEN) and mark.chosen == mark.rejected:
        raise LabError("both answers would be the same", where=mark.id, remedy="delete the mark instead")
    return mark


def _judged_otherwise(mark: Mark, verdict: str) -> Mark:
    if verdict not in (*VERDICTS, "worse"):
        raise LabError(f"`{verdict}` is no verdict", remedy=f"there are {', '.join([*VERDICTS, 'worse'])}")
    pair = mark.verdict in (BETTER, EQUAL)
    if verdict == "worse" and pair:  # the other one is better
        return replace(
            mark,
            verdict=BETTER,
            chosen=mark.rejected,
            rejected=mark.chosen,
            chosen_model=mark.rejected_model,
            rejected_model=mark.chosen_model,
        )
    if pair and verdict in (BETTER, EQUAL):
        return replace(mark, verdict=verdict)
    label = mark.verdict in (GOOD, BAD)
    if label and verdict in (GOOD, BAD):
        return replace(
            mark,
            verdict=verdict,
            chosen=mark.rejected,
            rejected=mark.chosen,
            chosen_model=mark.rejected_model,
            rejected_model=mark.chosen_model,
        )
    can = "better, worse or equal" if pair else "good or bad" if label else "no other verdict: it is a text"
    raise LabError(f"a mark `{mark.verdict}` can become {can}", where=mark.id, remedy="or delete it")


# Rows for training


def pair_row(row: Row) -> Row:
    """Returns the preference row of a mark: better and worse, or rewritten and as it was.

    Raises:
        InvalidRow: of a mark that is no pair.
    """
    if row["verdict"] not in (BETTER, REWRITTEN):
        raise InvalidRow(f"marked {row['verdict']}: no pair")
    return {"prompt": _turns(row["prompt"]), "chosen": row["chosen"], "rejected": row["rejected"]}


def answer_row(row: Row) -> Row:
    """Returns the row of prompt and completion of a mark: an answer that is good or rewritten. The better of
    two need not be good.

    Raises:
        InvalidRow: of another mark.
    """
    if row["verdict"] not in (GOOD, REWRITTEN):
        raise InvalidRow(f"marked {row['verdict']}: no answer to learn")
    return {"prompt": _turns(row["prompt"]), "completion": row["chosen"]}


def labelled_rows(row: Row) -> list[Row]:
    """Returns rows of prompt, completion and label as KTO learns from: true for good, false for bad answers;
    a rewritten one gives both.
    """
    rows: list[Row] = []
    if row["verdict"] in (GOOD, REWRITTEN):
        rows.append({"prompt": row["prompt"], "completion": row["chosen"], "label": True})
    if row["verdict"] in (BAD, REWRITTEN):
        rows.append({"prompt": row["prompt"], "completion": row["rejected"], "label": False})
    return rows


def _turns(prompt: Sequence[dict[str, Any]]) -> Messages:
    return [{"role": turn["role"], "content": turn["content"]} for turn in prompt]


EXPORTS = ("pairs", "answers", "labels")


def exported(marks: Iterable[Mark], what: str) -> list[Row]:
    """Returns the rows of marks as `pairs` (prompt, chosen, rejected), `answers` (prompt, completion) or
    `labels` (prompt, completion, label), the models' names beside pairs.
    """
    rows: list[Row] = []
    for mark in marks:
        row = asdict(mark)
        if what == "labels":
            rows += labelled_rows(row)
            continue
        try:
            rows.append(pair_row(row) if what == "pairs" else answer_row(row))
        except InvalidRow:
            continue
        if what == "pairs":
            rows[-1] |= {"chosen_model": mark.chosen_model, "rejected_model": mark.rejected_model}
    return rows
