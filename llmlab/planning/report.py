"""What a person has to know before a run begins, as plain lines for its log. No torch."""

from __future__ import annotations

from llmlab.config.training import TrainingConfig
from llmlab.planning.plan import make_plan


def before_a_run(config: TrainingConfig) -> list[str]:
    """Returns a line each: does it fit, what is unusual, and what would make it fit.

    Raises:
        LabError: when the model config that it names cannot be read.
    """
    plan = make_plan(config)
    return [
        *([f"memory: {plan.memory}"] if plan.memory else []),
        *(f"warning: {warning}" for warning in plan.warnings),
        *(f"would fit with: {way}" for way in plan.ways_to_fit),
    ]
