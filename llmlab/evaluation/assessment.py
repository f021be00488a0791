"""The judgements of one assessor: each is on the disk before the next item is shown, and can be taken back.

    evaluations/<name>/judgements/<assessor>.jsonl

has lines of four forms: how it was begun (seed, categories), a judgement, a note, and what was taken back.
Nothing in it is ever changed; what counts is the last word on an item. No torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from llmlab.errors import LabError
from llmlab.evaluation.judged_items import Item
from llmlab.journal import Journal

Mode = Literal["single", "pairs"]
JUDGEMENTS = "judgements"  # the folder, in that of the evaluation
GOOD_OR_BAD = ("good", "bad", "unsure")
FIRST, SECOND, EQUAL, UNSURE = "first", "second", "equal", "unsure"
OF_PAIRS = (FIRST, SECOND, EQUAL, UNSURE)
NAME = re.compile(r"[\w.+-]{1,60}")
MOST_CATEGORIES, LONGEST_CATEGORY = 9, 24


@dataclass(frozen=True)
class Judgement:
    """What an assessor said of an item.

    Attributes:
        item: its key.
        keys: of its answers, as they were shown.
        verdict: a category; of a pair one of `OF_PAIRS`.
        note: of the assessor.
    """

    item: str
    keys: tuple[str, ...]
    verdict: str
    note: str = ""


@dataclass(frozen=True)
class Terms:
    """How an assessment was begun; it goes on so."""

    seed: int
    categories: tuple[str, ...]


@dataclass
class Judgements:
    """The file of one assessor.

    Attributes:
        path: of the file.
        mode: single answers or pairs.
        terms: how it was begun, None where it is new.
        given: what stands, by item, the newest last.
        notes: by item.
    """

    path: Path
    mode: Mode
    terms: Terms | None = None
    given: dict[str, Judgement] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, evaluation: Path, assessor: str, mode: Mode) -> Judgements:
        """Returns what an assessor has said so far.

        Raises:
            LabError: when the name is none, or the file is of something else.
        """
        if not NAME.fullmatch(assessor):
            raise LabError(
                f"`--assessor` {assessor!r} is no name", remedy="use letters, digits and . + - _, up to 60"
            )
        judgements = cls(evaluation / JUDGEMENTS / f"{assessor}.jsonl", mode)
        judgements._read()
        return judgements

    @property
    def journal(self) -> Journal:
        """The file as rows."""
        return Journal(self.path)

    def _read(self) -> None:
        for number, row in enumerate(self.journal.rows(), 1):
            try:
                if row["mode"] == self.mode:
                    self._take(row)
            except (KeyError, TypeError, ValueError):
                raise LabError(
                    "is no line of an assessment", where=f"{self.path}: row {number}", remedy="delete it"
                ) from None

    def _take(self, row: dict[str, Any]) -> None:
        if "begun" in row:
            self.terms = Terms(int(row["begun"]["seed"]), tuple(map(str, row["begun"]["categories"])))
        elif "taken_back" in row:
            self.given.pop(row["taken_back"], None)
        elif "verdict" in row:
            self.given.pop(row["item"], None)  # the newest stands last
            self.given[row["item"]] = Judgement(row["item"], tuple(row["keys"]), str(row["verdict"]))
        else:
            self.notes[row["item"]] = str(row["note"])

    def _append(self, row: dict[str, Any]) -> None:
        row = {**row, "mode": self.mode, "when": datetime.now(UTC).isoformat(timespec="seconds")}
        self.journal.append(row)
        self._take(row)

    def begin(self, terms: Terms) -> None:
        """Notes how the assessment is done.

        Raises:
            LabError: when it cannot be written.
        """
        self._append({"begun": {"seed": terms.seed, "categories": list(terms.categories)}})

    def judge(self, item: Item, verdict: str) -> None:
        """Keeps a judgement; as `take_back` and `note`, on the disk when it returns.

        Raises:
            LabError: when it cannot be written.
        """
        self._append({"item": item.key, "keys": [one.key for one in item.answers], "verdict": verdict})

    def take_back(self, item: str) -> None:
        """Takes the judgement of an item back."""
        self._append({"taken_back": item})

    def note(self, item: str, text: str) -> None:
        """Keeps a note on an item; "" for none."""
        self._append({"item": item, "note": text})

    def standing(self) -> list[Judgement]:
        """Returns what stands, with its notes."""
        return [
            Judgement(one.item, one.keys, one.verdict, self.notes.get(one.item, ""))
            for one in self.given.values()
        ]


def stands(judgement: Judgement | None, item: Item, mode: Mode) -> bool:
    """Returns whether a judgement is one of this item: of a single answer by its text, of a pair by the two
    answers that were shown.
    """
    if judgement is None or mode == "single":
        return judgement is not None
    return set(judgement.keys) == {one.key for one in item.answers}


def standing_on(judgements: Judgements, items: Iterable[Item]) -> list[Judgement]:
    """Returns the judgements of items, with the keys of all their answers and with notes."""
    by_key = {item.key: item for item in items}
    found = []
    for one in judgements.standing():
        item = by_key.get(one.item)
        if item is None or not stands(one, item, judgements.mode):
            continue
        keys = tuple(each.key for each in item.answers) if judgements.mode == "single" else one.keys
        found.append(replace(one, keys=keys))
    return found


def assessors(evaluation: Path) -> list[str]:
    """Returns who has judged an evaluation."""
    return sorted(path.stem for path in (evaluation / JUDGEMENTS).glob("*.jsonl"))


def agreed_terms(judgements: Judgements, seed: int | None, categories: Sequence[str] | None) -> Terms:
    """Returns how an assessment is done: as it was begun, else as it is asked for.

    Raises:
        LabError: when categories are none, or others than it was begun with.
    """
    wanted = OF_PAIRS if judgements.mode == "pairs" else tuple(categories or GOOD_OR_BAD)
    check_categories(wanted)
    before = judgements.terms
    if before is None:
        return Terms(seed or 0, wanted)
    asked = {"categories": categories and wanted, "seed": seed}
    for name, value in asked.items():
        was: Any = getattr(before, name)
        if value is not None and value != was:
            shown = ",".join(was) if name == "categories" else was
            raise LabError(
                f"was begun with {name} {shown}",
                where=str(judgements.path),
                remedy=f"leave out --{name}, or judge as another --assessor",
            )
    return before


def check_categories(names: Sequence[str]) -> None:
    """Refuses categories that cannot be told apart.

    Raises:
        LabError: naming what is wrong.
    """
    where = f"`--categories` {','.join(names)}"
    if not 2 <= len(names) <= MOST_CATEGORIES:
        raise LabError(f"{where} names {len(names)}", remedy=f"name 2 to {MOST_CATEGORIES}")
    if len(set(names)) < len(names):
        raise LabError(f"{where} names one twice")
    for name in names:
        if not name or len(name) > LONGEST_CATEGORY or not name.isprintable():
            raise LabError(
                f"{where}: {name!r} is no category", remedy=f"use words of 1 to {LONGEST_CATEGORY} letters"
            )


@dataclass
class Session:
    """An assessor at work: which item is next, what was judged, what is taken back.

    Attributes:
        items: in the order in which they are shown.
        judgements: of the assessor.
        categories: that a judgement can be.
        place: of the item that is shown; the number of items where all are judged.
    """

    items: list[Item]
    judgements: Judgements
    categories: tuple[str, ...]
    place: int = 0

    def __post_init__(self) -> None:
        self.place = self._next_from(0)

    @property
    def item(self) -> Item | None:
        """The item that is shown, None where all are judged."""
        return self.items[self.place] if self.place < len(self.items) else None

    @property
    def done(self) -> int:
        """Items that are judged."""
        return sum(map(self.is_judged, self.items))

    def is_judged(self, item: Item) -> bool:
        """Returns whether a judgement of it stands."""
        return stands(self.judgements.given.get(item.key), item, self.judgements.mode)

    @property
    def note(self) -> str:
        """The note on the item that is shown."""
        return self.judgements.notes.get(self.item.key, "") if self.item else ""

    def _next_from(self, place: int) -> int:
        """Returns the place of the next item without a judgement, from the beginning again at the end."""
        count = len(self.items)
        places = (*range(place, count), *range(min(place, count)))
        return next((at for at in places if not self.is_judged(self.items[at])), count)

    def judge(self, verdict: str) -> None:
        """Keeps a judgement of the item that is shown, and goes on to the next.

        Raises:
            LabError: when it cannot be written: the item stays.
        """
        if self.item:
            self.judgements.judge(self.item, verdict)
            self.place = self._next_from(self.place)

    def later(self) -> None:
        """Goes on to the next item without a judgement of this one."""
        if self.item:
            self.place = self._next_from(self.place + 1)

    def undo(self) -> str:
        """Takes the newest judgement back and shows its item again; returns it, "" where there is none.

        Raises:
            LabError: when it cannot be written.
        """
        places = {item.key: place for place, item in enumerate(self.items)}
        newest = next((one for one in reversed(self.judgements.given.values()) if one.item in places), None)
        if newest is None:
            return ""
        self.judgements.take_back(newest.item)
        self.place = places[newest.item]
        return newest.verdict

    def write_note(self, text: str) -> None:
        """Keeps a note on the item that is shown.

        Raises:
            LabError: when it cannot be written.
        """
        if self.item and text != self.note:
            self.judgements.note(self.item.key, text)


def keys_of(categories: Sequence[str], reserved: str) -> dict[str, str]:
    """Returns key -> category: the first letter of it that is free, and its number.

    Args:
        categories: in order.
        reserved: letters that mean something else.
    """
    letters: dict[str, str] = {}
    for name in categories:
        free = (sign for sign in name.lower() if sign.isascii() and sign.isalpha())
        letter = next((sign for sign in free if sign not in letters and sign not in reserved), "")
        if letter:
            letters[letter] = name
    return {**letters, **{str(number): name for number, name in enumerate(categories, 1)}}
