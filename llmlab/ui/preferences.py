"""The screens of what was judged: counts by model, the newest marks, one mark, a mark that is changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from llmlab.data.collection import (
    BAD,
    BETTER,
    EQUAL,
    GOOD,
    REWRITTEN,
    SOURCE,
    VERDICTS,
    Mark,
    edited,
    exported,
)
from llmlab.readable import shortened
from llmlab.ui.prompts import Option, answer, select, text

SHOWN = 20
LABELS = "no method here reads them yet: `llmlab preferences export --as labels` writes KTO rows"


def overview(marks: Sequence[Mark], most: int | None = SHOWN) -> RenderableType:
    """Returns counts by model, what can be trained on, and the newest marks.

    Args:
        marks: the oldest first.
        most: that are listed; None for all.
    """
    if not marks:
        return Text("no such marks")
    listed = list(reversed(marks))[:most]
    parts: list[RenderableType] = [_by_model(marks), _uses(marks), _newest(listed)]
    if len(listed) < len(marks):
        parts.append(Text(f"and {len(marks) - len(listed):,} more: `llmlab preferences list --all`", "dim"))
    return Group(*parts)


def _by_model(marks: Sequence[Mark]) -> Table:
    counts: dict[str, Counter[str]] = {}
    for mark in marks:
        for name, what in _told_of(mark):
            counts.setdefault(name, Counter())[what] += 1
    columns = ("good", "bad", "rewritten", "won", "lost", "equal")
    first, last = (_day(when) for when in (min(one.when for one in marks), max(one.when for one in marks)))
    table = Table("model", *columns, title_justify="left")
    table.title = f"{len(marks):,} marks, {first}" + (f" to {last}" if first != last else "")
    for name, count in sorted(counts.items()):
        table.add_row(name, *(str(count[column]) if count[column] else "" for column in columns))
    return table


def _told_of(mark: Mark) -> list[tuple[str, str]]:
    """Returns what a mark says of each model."""
    match mark.verdict:
        case "better":
            return [(mark.chosen_model, "won"), (mark.rejected_model, "lost")]
        case "equal":
            return [(name, "equal") for name in mark.models]
    return [(name, mark.verdict) for name in mark.models]


def _uses(marks: Sequence[Mark]) -> Text:
    pairs, answers, labels = (len(exported(marks, what)) for what in ("pairs", "answers", "labels"))
    line = Text(f"{pairs:,} pairs (DPO, reward models), {answers:,} answers (SFT) ", style="bold")
    line.append(f"in the source {SOURCE}", style="not bold")
    if labels:
        line.append(f"\n{labels:,} labels: {LABELS}", style="dim not bold")
    return line


def _newest(marks: Sequence[Mark]) -> Table:
    table = Table(title="newest first", title_justify="left", expand=True)
    table.add_column("id", no_wrap=True)
    table.add_column("when", no_wrap=True)
    table.add_column("mark", no_wrap=True)
    for name, share in (("prompt", 3), ("better", 3), ("worse", 3)):
        table.add_column(name, ratio=share, overflow="ellipsis", no_wrap=True)
    for mark in marks:
        asked = mark.prompt[-1]["content"] if mark.prompt else ""
        table.add_row(
            mark.id,
            _day(mark.when),
            mark.verdict,
            *(_one_line(value) for value in (asked, mark.chosen, mark.rejected)),
        )
    return table


def _one_line(value: str) -> str:
    return " ".join(shortened(value, 200).split())


def _day(when: str) -> str:
    try:
        return f"{datetime.fromisoformat(when).astimezone():%d %b %H:%M}"
    except ValueError:
        return when[:12]


def line(mark: Mark) -> str:
    """Returns a mark as a line of a list."""
    asked = mark.prompt[-1]["content"] if mark.prompt else ""
    said = _one_line(f"{asked} » {mark.chosen or mark.rejected}")
    return f"{mark.id}  {_day(mark.when)}  {mark.verdict:9}  {said}"


def mark_view(mark: Mark) -> RenderableType:
    """Returns all that a mark says."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("mark", f"{mark.id}: {VERDICTS[mark.verdict]}")
    table.add_row("when", f"{_day(mark.when)}, in {mark.made_in}")
    for turn in mark.prompt:
        table.add_row(str(turn.get("role", "")), str(turn.get("content", "")))
    for words, model, said in _answers(mark):
        table.add_row(words, Text(said).append(f"  ({model})" if model else "", style="dim"))
    if mark.note:
        table.add_row("note", mark.note)
    return table


def _answers(mark: Mark) -> list[tuple[str, str, str]]:
    """Returns words, model and text of each answer of a mark."""
    first, second = (mark.chosen_model, mark.chosen), (mark.rejected_model, mark.rejected)
    match mark.verdict:
        case "good":
            return [("good", *first)]
        case "bad":
            return [("bad", *second)]
        case "equal":
            return [("one", *first), ("the other", *second)]
        case "rewritten":
            return [("as it should be", first[0] or "you", first[1]), ("it was", *second)]
    return [("better", *first), ("worse", *second)]


def ask_for_change(mark: Mark) -> Mark | None:
    """Asks what of a mark is to be changed; returns it changed, None where the person went back.

    Raises:
        LabError: when it cannot be changed so.
    """
    ways: list[Option[str]] = [Option(words, verdict) for verdict, words in _other_verdicts(mark)]
    if mark.verdict != EQUAL:
        ways.append(Option("write the answer anew", "text"))
    ways += [Option("write a note", "note"), Option("leave it as it is", "")]
    picked = answer(select(f"{mark.id} is {mark.verdict}. What is to be changed?", ways))
    if not picked:
        return None
    if picked == "note":
        note = answer(text("Note:", mark.note))
        return None if note is None else edited(mark, note=note.strip())
    if picked == "text":
        written = answer(text("Answer:", mark.rejected if mark.verdict == BAD else mark.chosen))
        return None if written is None else edited(mark, text=written)
    return edited(mark, verdict=picked)


def _other_verdicts(mark: Mark) -> list[tuple[str, str]]:
    match mark.verdict:
        case "good":
            return [(BAD, "it is bad")]
        case "bad":
            return [(GOOD, "it is good")]
        case "better":
            return [("worse", "the other one is better"), (EQUAL, "they are equal")]
        case "equal":
            return [(BETTER, "the first one is better"), ("worse", "the second one is better")]
    assert mark.verdict == REWRITTEN
    return []
