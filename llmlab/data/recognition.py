"""Which mapping a source has: set by hand, else known to the catalogue, else recognised from the columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from llmlab.data.columns import named_in
from llmlab.data.mapping import RowMapping
from llmlab.data.schemas import Row
from llmlab.errors import LabError

# the names under which a part is commonly found, most specific first
NAMES: dict[str, tuple[str, ...]] = {
    "text": ("text", "content", "article", "document", "sentence"),
    "messages": ("messages", "conversations", "conversation", "dialogue"),
    "system": ("system", "system_prompt"),
    "prompt": ("prompt", "instruction", "question", "query"),
    "input": ("input", "context"),
    "completion": ("completion", "output", "response", "answer"),
    "chosen": ("chosen", "chosen_response"),
    "rejected": ("rejected", "rejected_response"),
    "answer": ("answer", "solution", "ground_truth"),
    "label": ("label", "labels"),
}
# the most telling shape first
ORDER = ("preference", "messages", "prompt_completion", "prompt_answer", "prompt", "text")
NEEDED = {
    "text": ("text",),
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "preference": ("chosen", "rejected"),
    "prompt_answer": ("prompt", "answer"),
    "prompt": ("prompt",),
    "classification": ("text", "label"),
}
SHOWN = 60  # characters of a value in the message about a source that fits nothing


@dataclass(frozen=True)
class ByHand:
    """What a person said of how a source is read; what is empty was not said.

    Attributes:
        shape: a canonical shape, "classification", or "auto".
        columns: part -> column.
        prompt: with columns in braces.
        labels: the words, or those that the dataset itself names.
    """

    shape: str = "auto"
    columns: dict[str, str] = field(default_factory=dict)
    prompt: str = ""
    labels: tuple[str, ...] = ()

    @property
    def says_how(self) -> bool:
        """Whether it says more than label words: then the catalogue is not asked."""
        return self.shape != "auto" or bool(self.columns) or bool(self.prompt)


def choose_mapping(
    columns: list[str],
    sample: Row,
    needed: tuple[str, ...],
    where: str,
    *,
    by_hand: ByHand,
    usual: RowMapping | None = None,
) -> RowMapping:
    """Returns the mapping of a source: what the person set, else what the catalogue knows, else what the
    columns say.

    Args:
        columns: of the source.
        sample: one row, shown when nothing fits.
        needed: shapes that the method can use.
        where: name of the source.
        by_hand: what the person set.
        usual: what the catalogue says of this source.

    Raises:
        LabError: with the columns and a sample row, when nothing fits, or a set column is not there.
    """
    _check_columns(columns, by_hand, where)
    options = [usual] if usual and not by_hand.says_how else list(_possible(columns, by_hand, where))
    for mapping in options:
        if mapping.serves(needed):
            return replace(
                mapping, prompt=by_hand.prompt or mapping.prompt, labels=by_hand.labels or mapping.labels
            )
    raise _nothing_fits(columns, sample, needed, where, options)


def candidates(columns: list[str]) -> list[RowMapping]:
    """Returns every mapping that the columns allow by their names, the most telling first."""
    mappings = _usual_names(columns)
    if mappings.get("input") == mappings.get("prompt"):
        mappings.pop("input", None)
    return [RowMapping(shape, mappings) for shape in ORDER if all(part in mappings for part in NEEDED[shape])]


def _usual_names(columns: list[str]) -> dict[str, str]:
    """Returns part -> the column of one of its usual names."""
    first = {part: next((name for name in names if name in columns), None) for part, names in NAMES.items()}
    return {part: name for part, name in first.items() if name}


def _check_columns(columns: list[str], by_hand: ByHand, where: str) -> None:
    """Refuses columns that are not there."""
    named = [(f"`columns` {part!r}", column) for part, column in by_hand.columns.items()]
    named += [("`prompt`", column) for column in named_in(by_hand.prompt)]
    for option, column in named:
        if column.split(".")[0] not in columns:
            raise LabError(
                f"{option}: there is no column {column!r}",
                where=where,
                remedy=f"there are {', '.join(columns)}",
            )


def _possible(columns: list[str], by_hand: ByHand, where: str) -> Iterator[RowMapping]:
    """Yields the mappings that agree with what was set by hand, the most telling first."""
    by_names = candidates(columns)
    if not by_hand.says_how:
        yield from by_names
        return
    columns_by_part = {part: name for mapping in by_names for part, name in mapping.columns.items()}
    columns_by_part = {**_usual_names(columns), **columns_by_part, **by_hand.columns}
    shape = by_hand.shape
    if shape == "auto" and by_hand.prompt:
        labelled = by_hand.labels or "label" in by_hand.columns
        shape = "classification" if labelled else "prompt_completion"
    if shape != "auto":
        _check_parts(shape, columns_by_part, columns, by_hand, where)
        yield RowMapping(shape, columns_by_part)
        return
    complete = [shape for shape in ORDER if all(part in columns_by_part for part in NEEDED[shape])]
    complete.sort(key=lambda shape: -len(set(NEEDED[shape]) & set(by_hand.columns)))
    for shape in complete:
        yield RowMapping(shape, columns_by_part)


def _check_parts(
    shape: str, columns_of: dict[str, str], columns: list[str], by_hand: ByHand, where: str
) -> None:
    """Refuses a shape whose parts no column holds."""
    made_by_prompt = ("prompt", "text") if by_hand.prompt else ()
    lacking = [part for part in NEEDED[shape] if part not in columns_of and part not in made_by_prompt]
    if lacking:
        by_prompt = by_hand.shape == "auto"
        says = f"`prompt` makes {shape} rows, which need" if by_prompt else f"`format` {shape!r} needs"
        raise LabError(
            f"{says} a column for {' and '.join(lacking)}; the columns are {', '.join(columns)}",
            where=where,
            remedy=f'name it: "columns": {{"{lacking[0]}": "..."}}',
        )


def _nothing_fits(
    columns: list[str], sample: Row, needed: tuple[str, ...], where: str, options: list[RowMapping]
) -> LabError:
    shown = {name: _short(value) for name, value in sample.items()}
    shapes = " or ".join(mapping.shape for mapping in options)
    what = f"holds {shapes} rows" if options else "has columns of no known shape"
    return LabError(
        f"{what} (columns {', '.join(columns)}; a row: {shown})",
        where=where,
        remedy=(
            f"needed: {' or '.join(needed)} rows; `format` and `columns` of the source say where the"
            " parts are"
        ),
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
