"""What is asked of a model: the rows of a task, one item each, known by their content.

The key of an item is a hash of the tokens that the model reads and of every setting that its answer depends
on, beside the model's weights. So an answer is found again in any order, subset or batch size, and from
another evaluation too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from llmlab.config.evaluation import Task
from llmlab.data.opening import each_row
from llmlab.data.pipeline import SourceRows
from llmlab.data.schemas import Messages, Row
from llmlab.errors import LabError

WHOLE = 8_000_000  # characters of a text file that are measured as one document
SHAPES = ("text", "messages", "prompt_completion", "preference")


@dataclass(frozen=True)
class Item:
    """One thing that a model is asked.

    Attributes:
        row: number of the row in its source.
        part: of the row: the window of a text, the repeat of a sampled answer; else 0.
        group: of rows that belong together; None where a row stands for itself.
        ids: token ids that the model reads, in their parts: prompt, answers.
        prompt: as it is shown: messages, or a text.
        reference: the right answer, None where there is none.
        settings: what else the answer depends on; JSON data.
        more: what is known of the row beside that, for its answer.
    """

    row: int
    part: int
    group: str | None
    ids: tuple[Sequence[int], ...]
    prompt: Messages | str
    reference: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """Its tokens."""
        return sum(map(len, self.ids))

    def key(self, measure: str, identity: dict[str, Any]) -> str:
        """Returns the name of its answer.

        Args:
            measure: what is done with it.
            identity: of the model: its weights and how they are loaded.
        """
        asked = [
            identity,
            measure,
            [list(map(int, part)) for part in self.ids],
            self.settings,
            self.reference,
        ]
        text = json.dumps(asked, sort_keys=True, ensure_ascii=False)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class TaskRow:
    """A canonical row of a task: its number in the source, and its group."""

    number: int
    row: Row
    group: str | None


def read_rows(task: Task, shapes: tuple[str, ...] = SHAPES) -> tuple[list[TaskRow], list[str]]:
    """Returns the rows of a task, and notes on those that were left out.

    Raises:
        LabError: when the source cannot be read, no row is left, or a row has no column to group by.
    """
    source = task.source
    rows = SourceRows.of(source, shapes, piece=WHOLE)
    rows.fraction, rows.held_out = task.held_out, bool(task.held_out)
    found: list[TaskRow] = []
    for number, raw in enumerate(each_row(rows.opened.rows)):
        row = rows.take(number, raw)
        if row is None:
            continue
        if task.group_by and task.group_by not in raw:
            raise LabError(
                f"`group_by` {task.group_by!r} is no column",
                where=source.name,
                remedy=f"the columns are {', '.join(raw)}",
            )
        found.append(TaskRow(number, row, str(raw[task.group_by]) if task.group_by else None))
        if source.max_rows and len(found) == source.max_rows:
            break
    if not found:
        what = "measured" if "text" in shapes else "answered"
        raise LabError(f"has no row that can be {what}", where=source.name, remedy="; ".join(rows.notes()))
    return found, rows.notes()
