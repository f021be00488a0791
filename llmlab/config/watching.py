"""Watching a run: a suite that is evaluated while the model learns, and the figure that decides which weights
are the best.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import model_validator

from llmlab.config.options import GIVEN, option
from llmlab.config.schedule import ScheduleOptions

SECTION = "Evaluation while it trains"
Better = Literal["higher", "lower"]  # which of two values is the better one
EVAL = "eval_"  # how the name of a held-out figure begins, and no figure of a suite


class WatchOptions(ScheduleOptions):
    """What is evaluated between the updates of a run, and what its weights are chosen by.

    Attributes:
        METRICS: held-out figures that `best/` may be chosen by and which values are better; the first one is
            taken where nothing else is said.
    """

    METRICS: ClassVar[Mapping[str, Better]] = {"eval_loss": "lower"}

    evaluation_suite: str | None = option(
        None,
        "Evaluation suite",
        "What the model is evaluated on while it learns, as by `llmlab evaluate`: a suite by name, a JSON or"
        " YAML file of tasks, or a source. Left out, there is no such evaluation.",
        advanced=True,
        min_length=1,
        resume_note="figures of other rows follow; `best/` and `patience` by one of them begin anew",
        section=SECTION,
    )
    evaluate_every: int | None = option(
        None,
        "Evaluate every",
        "Steps between two evaluations on the suite, besides those before the first and after the last step."
        " Left out, as often as held-out rows are validated.",
        unit="steps",
        applies_when={"evaluation_suite": GIVEN},
        advanced=True,
        ge=1,
        le=1_000_000_000,
        resume="silent",
        section=SECTION,
    )
    evaluation_rows: int | None = option(
        None,
        "Evaluation rows",
        "Rows of each task of the suite: the first so many. Left out, as many as the suite says.",
        unit="rows",
        typical="100 to 500",
        applies_when={"evaluation_suite": GIVEN},
        advanced=True,
        ge=1,
        le=10_000_000,
        resume_note="figures of other rows follow; `best/` and `patience` by one of them begin anew",
        section=SECTION,
    )
    evaluation_batch_size: int = option(
        16,
        "Evaluation batch size",
        "Rows that are answered at a time.",
        unit="rows",
        applies_when={"evaluation_suite": GIVEN},
        advanced=True,
        ge=1,
        resume="silent",
        section=SECTION,
    )
    metric_for_best: str | None = option(
        None,
        "Metric for best",
        "The figure that `best/` and `patience` go by: a held-out one (`eval_loss`) or one of the suite"
        " (`questions/exact_match`, or `exact_match` where one task has it). Left out, the held-out loss, or"
        " the reward of methods that learn from rewards.",
        advanced=True,
        min_length=1,
        aliases=["metric_for_best_model"],
        resume_note="`best/` and `patience` begin anew with it",
        section=SECTION,
    )

    @property
    def holds_out(self) -> bool:
        """Whether rows are held out, on which the run is validated."""
        return bool(self.eval_datasets or self.eval_fraction)

    @property
    def suite_metric(self) -> str:
        """The figure of the suite that the best weights are chosen by; "" where it is a held-out one."""
        name = self.metric_for_best or ""
        return "" if name.startswith(EVAL) else name

    @model_validator(mode="after")
    def _check_metric(self) -> WatchOptions:
        name = self.metric_for_best
        if name is None:
            return self
        held_out = ", ".join(self.METRICS)
        if self.suite_metric and self.evaluation_suite is None:
            raise ValueError(
                f"`metric_for_best` {name!r} is a figure of a suite, and `evaluation_suite` names none: name"
                f" one, or use {held_out}"
            )
        if not self.suite_metric and name not in self.METRICS:
            raise ValueError(
                f"`metric_for_best` {name!r} is no held-out figure of this method: use {held_out}, or a"
                " figure of `evaluation_suite`"
            )
        if not self.suite_metric and not self.holds_out:
            raise ValueError(
                f"`metric_for_best` {name!r} is of held-out rows, and nothing is held out: set"
                " `eval_fraction` or `eval_datasets`"
            )
        return self
