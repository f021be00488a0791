"""How long a run is, in steps or in passes over its rows, and how the learning rate runs over that length."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator

from llmlab.config.data import DataOptions
from llmlab.config.options import LARGEST_STEP, option

NO_LIMIT = LARGEST_STEP  # `max_steps` of a run that counts in epochs, where nobody has set it


def steps_option(default: int) -> Any:
    """Returns the option `max_steps`, with the default of a method."""
    return option(
        default,
        "Steps",
        "Optimizer updates; with `epochs`, at most so many.",
        unit="steps",
        ge=1,
        resume_note="the schedule is that of the new length",
    )


def epochs_option(default: float | None = None) -> Any:
    """Returns the option `epochs`, with the default of a method."""
    return option(
        default,
        "Epochs",
        "Passes over the training rows; the steps follow from how many rows there are. Left out, the run is"
        " as long as `max_steps` says.",
        unit="passes",
        typical="1 to 3",
        gt=0,
        le=999,
        resume_note="the schedule is that of the new length",
    )


def warmup_option(default: int) -> Any:
    """Returns the option `warmup_steps`, with the default of a method."""
    return option(
        default,
        "Warm-up",
        "Steps over which the learning rate rises from zero. Left out, at most a tenth of the run.",
        unit="steps",
        applies_when={"warmup_ratio": [None]},
        ge=0,
        resume_note="it applies from this step on",
    )


class ScheduleOptions(DataOptions):
    """Length of a run and course of the learning rate.

    `max_steps` and `warmup_steps` of a run that counts in epochs are known once its rows are counted:
    `at_length` fills them in.
    """

    epochs: float | None = epochs_option()
    max_steps: int = steps_option(10000)
    scheduler: Literal["none", "cosine", "linear", "polynomial"] = option(
        "cosine",
        "Schedule",
        "How the learning rate falls after warm-up.",
        choices={
            "none": "stays at the peak",
            "cosine": "cosine decay to zero: the usual choice",
            "linear": "linear decay to zero",
            "polynomial": "linear decay to 1e-7",
        },
        resume_note="it applies from this step on",
    )
    warmup_steps: int = warmup_option(1000)
    warmup_ratio: float | None = option(
        None,
        "Warm-up ratio",
        "Warm-up as a share of the run's steps, in place of `warmup_steps`.",
        typical="0.03 to 0.1",
        advanced=True,
        ge=0,
        lt=1,
        resume_note="it applies from this step on",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_warmup(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("warmup_ratio") is not None and "warmup_steps" in data:
            raise ValueError("`warmup_steps` and `warmup_ratio` set the same thing: set only one of them")
        return data

    @model_validator(mode="after")
    def _check_length(self) -> ScheduleOptions:
        """Fills in what follows from the length of the run."""
        if self.epochs is not None:
            self._refuse_epochs_of_streams()
            if "max_steps" not in self.model_fields_set:
                self.__dict__["max_steps"] = NO_LIMIT
        if self.warmup_ratio is not None:  # the product is rounded: 0.07 * 100 is a little above 7
            self.__dict__["warmup_steps"] = math.ceil(round(self.warmup_ratio * self.max_steps, 6))
        elif not self.sets_warmup:
            # the default is meant for long runs: at most a tenth of this one
            self.__dict__["warmup_steps"] = min(self.warmup_steps, self.max_steps // 10)
        if self.warmup_steps > self.max_steps:
            raise ValueError(
                f"`warmup_steps` {self.warmup_steps} is above `max_steps` {self.max_steps}: use at most"
                f" {self.max_steps}"
            )
        return self

    def _refuse_epochs_of_streams(self) -> None:
        streamed = [source.name for source in self.datasets if source.streaming]
        if streamed:
            raise ValueError(
                f"`epochs` counts passes over stored rows, and {streamed[0]} is streamed: nobody knows how"
                " many rows a stream has; set `max_steps`, or `streaming` to false"
            )

    @property
    def sets_warmup(self) -> bool:
        """Whether `warmup_steps` was asked for; a file with all the defaults of a run in epochs does not."""
        default = type(self).model_fields["warmup_steps"].default
        standard = self.epochs is not None and self.warmup_steps == default
        return "warmup_steps" in self.model_fields_set and not standard

    @property
    def warmup(self) -> int | float | None:
        """The warm-up that is asked for: so many steps, or this share of them; None where it follows from
        the length of a run in epochs.
        """
        if self.warmup_ratio is not None:
            return self.warmup_ratio
        return self.warmup_steps if self.epochs is None or self.sets_warmup else None

    def inapplicable(self, name: str) -> str:
        """Returns the unmet condition of an option; steps that follow from the rows are not options."""
        follows = self.epochs is not None and name in ("max_steps", "warmup_steps")
        if follows and name not in self.model_fields_set:
            return "`epochs` is left out"
        return super().inapplicable(name)

    @classmethod
    def follows(cls, name: str, values: Mapping[str, Any]) -> bool:
        """Returns whether an option follows from others: the steps from the epochs."""
        fields = cls.model_fields
        in_epochs = values.get("epochs") is not None
        return in_epochs and name == "max_steps" and values.get(name) == fields[name].default

    def steps_of_a_pass(self, rows: int, processes: int) -> int:
        """Returns the updates that take every row once; the last of them takes what is left.

        Args:
            rows: to train on.
            processes: that each take their share of an update.
        """
        raise NotImplementedError

    def at_length(self, rows: int, processes: int) -> dict[str, Any]:
        """Returns the options that follow once the rows are counted: none where the run counts in steps.

        Each pass begins with an update of its own, so a run of two passes takes twice the updates of one.

        Args:
            rows: to train on.
            processes: that each take their share of an update.
        """
        if self.epochs is None:
            return {}
        whole, part = divmod(self.epochs, 1)
        steps = int(whole) * self.steps_of_a_pass(rows, processes)
        if part:
            steps += self.steps_of_a_pass(math.ceil(round(part * rows, 6)), processes)
        steps = min(steps, self.max_steps)
        length: dict[str, Any] = {"max_steps": steps}
        if self.warmup_ratio is None and not self.sets_warmup:
            default = type(self).model_fields["warmup_steps"].default
            length["warmup_steps"] = min(default, steps // 10)
        return length
