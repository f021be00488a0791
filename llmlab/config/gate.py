"""The bounds of a gate: a JSON or YAML file of figures and what they must hold to.

{"exact_match": {"min": 0.5}, "spam-mails/accuracy": {"no_worse_than": "parent"}, "loss": {"max": 3.2}}
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from llmlab.config.base import LabBaseConfig, as_typed, validate
from llmlab.config.options import option
from llmlab.config.suites import read_data
from llmlab.errors import LabError


class Bound(LabBaseConfig):
    """What a figure must hold to; a name may be `source/figure`, or a figure of every source that has it."""

    min: float | None = option(None, "Least", "The figure must not be below this.")
    max: float | None = option(None, "Most", "The figure must not be above this.")
    no_worse_than: Literal["parent", "against"] | None = option(
        None,
        "No worse than",
        "The figure must not be worse than the 95 % interval of this model's figure.",
        choices={"parent": "what the model was trained from", "against": "the model it is compared with"},
    )

    @model_validator(mode="after")
    def _check(self) -> Bound:
        if self.min is None and self.max is None and self.no_worse_than is None:
            raise ValueError("a bound needs `min`, `max` or `no_worse_than`")
        return self


def load_gate(name: str) -> dict[str, Bound]:
    """Returns the bounds of a gate's file, by figure.

    Raises:
        LabError: when there is no such file, or it holds no bounds.
    """
    data = read_data(Path(name), "gate")
    if not isinstance(data, dict) or not data:
        raise LabError(
            "a gate is an object of figures and bounds",
            where=name,
            remedy='write {"exact_match": {"min": 0.5}}',
        )
    bounds = {}
    for figure, bound in data.items():
        if not isinstance(figure, str) or not isinstance(bound, dict):
            raise LabError(
                f"the bound of `{figure}` is no object",
                where=name,
                remedy=f'write {{"{figure}": {{"min": 0.5}}}}',
            )
        bounds[figure] = validate(Bound, as_typed(Bound, bound), where=f"{name}: {figure}")
    return bounds
