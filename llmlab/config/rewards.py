"""What answers are rewarded for: built-in functions, reward models, functions of the person's own,
with weights.
"""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar

from pydantic import model_validator

from llmlab.config.base import LabBaseConfig, as_number
from llmlab.config.options import option

FUNCTIONS = (
    "exact_match",
    "numeric_match",
    "arithmetic_steps",
    "label_match",
    "format",
    "length",
    "compiles",
    "repetition",
)
OWN = re.compile(r"^[\w.]+:\w+$")  # module:function


class RewardSource(LabBaseConfig):
    """One reward. Wherever a text is accepted, it is the line `name | weight | setting`."""

    LINE: ClassVar[tuple[str, ...]] = ("name", "weight", "setting")
    name: str = option(
        ...,
        "Name",
        f"A built-in function ({', '.join(FUNCTIONS)}), `module:function`, or a reward model (a run, a"
        " folder, a hub id).",
        min_length=1,
    )
    weight: float = option(1.0, "Weight", "Its weight in the sum; negative weights penalise.")
    setting: str | None = option(
        None, "Setting", "The regular expression of `format`, the number of words of `length`."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_line(cls, data: Any) -> Any:
        if not isinstance(data, str):
            return data
        name, *rest = (part.strip() for part in data.split("|", 2))
        parsed: dict[str, Any] = {"name": name}
        if rest and rest[0]:
            try:
                parsed["weight"] = float(as_number(cls, "weight", rest[0]))
            except ValueError:
                raise ValueError(f"the weight {rest[0]!r} in {data!r} is not a number") from None
        if len(rest) > 1 and rest[1]:
            parsed["setting"] = rest[1]
        return parsed

    @model_validator(mode="after")
    def _check(self) -> RewardSource:
        if not math.isfinite(self.weight) or self.weight == 0:
            raise ValueError(
                f"`weight` {self.weight} of the reward {self.name!r} must be a number other than 0"
            )
        if self.name == "format":
            try:
                re.compile(self.setting or "")
            except re.error as error:
                raise ValueError(
                    f"`setting` {self.setting!r} is not a regular expression ({error})"
                ) from None
            if not self.setting:
                raise ValueError(
                    "the reward `format` needs a regular expression: write `format | 1.0 | ^\\d+$`"
                )
        if self.setting and self.name not in ("format", "length"):
            raise ValueError(f"the reward {self.name!r} takes no setting ({self.setting!r}): leave it out")
        if self.name == "length" and self.setting and not (self.setting.isdigit() and int(self.setting) > 0):
            raise ValueError(f"`setting` {self.setting!r} of the reward `length` is not a number of words")
        return self

    def line(self) -> str:
        """Returns the reward as one line of the wizard."""
        parts = [
            self.name,
            f"{self.weight:g}" if self.weight != 1 or self.setting else "",
            self.setting or "",
        ]
        return " | ".join(part for part in parts if part)

    @property
    def kind(self) -> str:
        """Returns "built-in", "function" (the person's own) or "model"."""
        return "built-in" if self.name in FUNCTIONS else "function" if OWN.match(self.name) else "model"
