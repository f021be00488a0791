"""Whether figures hold to the bounds of a gate. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmlab.config.gate import Bound
from llmlab.errors import LabError
from llmlab.evaluation.subjects import GENERAL
from llmlab.runs.figures import BETTER

Result = dict[str, Any]  # figures of a model on a source, as the record has them


@dataclass(frozen=True)
class Breach:
    """A figure beyond its bound.

    Attributes:
        figure: `source/figure`.
        value: that it has.
        bound: that it was to hold to.
        rule: "min", "max", or whose interval: "parent", "against".
    """

    figure: str
    value: float
    bound: float
    rule: str

    def words(self) -> str:
        """Returns it as one sentence."""
        side = "below" if self.value < self.bound else "above"
        what = {"min": "its least value", "max": "its greatest value"}.get(
            self.rule,
            f"the 95 % interval of the {'parent' if self.rule == 'parent' else 'other model'}, which"
            f" {'begins' if side == 'below' else 'ends'} at",
        )
        return f"`{self.figure}` {self.value:.4g} is {side} {what} {self.bound:.4g}"


def breaches(
    gate: Mapping[str, Bound], results: list[Result], others: Mapping[str, list[Result]]
) -> list[Breach]:
    """Returns the figures that are beyond their bounds.

    Args:
        gate: bounds by figure.
        results: of the model.
        others: results of the models that bounds may name, by "parent" and "against".

    Raises:
        LabError: when a figure that the gate names was not measured.
    """
    found: list[Breach] = []
    for name, bound in gate.items():
        places = list(_named(name, results))
        if not places:
            there = [f"{one['source']}/{figure}" for one in results for figure in one["figures"]]
            raise LabError(
                f"the gate names `{name}`, which was not measured",
                remedy=f"measured were {', '.join(there)}",
            )
        for source, figure, entry in places:
            found += _broken(f"{source}/{figure}", figure, entry["value"], bound, source, others)
    return found


def _named(name: str, results: list[Result]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yields source, figure and its entry of all that a name means."""
    for one in results:
        for figure, entry in one["figures"].items():
            if name in (figure, f"{one['source']}/{figure}"):
                yield one["source"], figure, entry


def _broken(
    full: str, figure: str, value: float, bound: Bound, source: str, others: Mapping[str, list[Result]]
) -> Iterator[Breach]:
    if bound.min is not None and not value >= bound.min:
        yield Breach(full, value, bound.min, "min")
    if bound.max is not None and not value <= bound.max:
        yield Breach(full, value, bound.max, "max")
    if bound.no_worse_than is None:
        return
    if figure not in BETTER:
        raise LabError(
            f"the gate wants `{full}` no worse than another model's, and it is neither good nor bad",
            remedy="give it `min` or `max`",
        )
    there = next(
        (
            one["figures"][figure]
            for one in others.get(bound.no_worse_than, [])
            if one["source"] == source and figure in one["figures"]
        ),
        None,
    )
    if there is None:
        raise LabError(f"`{full}` was not measured of the model's {bound.no_worse_than}")
    higher = BETTER[figure] == "higher"
    end = there["low"] if higher else there["high"]
    end = there["value"] if end is None else end
    if (value < end) if higher else (value > end):
        yield Breach(full, value, end, bound.no_worse_than)


def models_of(gate: Mapping[str, Bound]) -> set[str]:
    """Returns which other models have to be measured on every task: "parent", "against". The parent's loss on
    the general text is measured without that.
    """
    return {
        bound.no_worse_than
        for name, bound in gate.items()
        if bound.no_worse_than and not name.startswith(f"{GENERAL}/")
    }
