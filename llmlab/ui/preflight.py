"""The screens before a run: the plan, the data as the model will see it, and what a few steps took."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from llmlab.config import DPOConfig
from llmlab.config.base import KindConfig
from llmlab.config.evaluation import EvaluationConfig
from llmlab.config.rollouts import RolloutConfig
from llmlab.config.schedule import NO_LIMIT
from llmlab.config.suites import tasks_of
from llmlab.config.training import TrainingConfig
from llmlab.data.preview import (
    COMPARED,
    Overlap,
    RowPreview,
    SourceLook,
    first_row,
    look_at,
    look_at_sources,
    overlaps,
)
from llmlab.data.prompts import prompt_shapes
from llmlab.evaluation.benchmarks import check_benchmarks
from llmlab.evaluation.items import SHAPES
from llmlab.planning.data_size import data_size
from llmlab.planning.measured import Measured, Measuring, measure
from llmlab.planning.memory import predicted
from llmlab.planning.plan import make_plan
from llmlab.training.inputs import check_inputs
from llmlab.training.registry import STAGES
from llmlab.ui.cache import reference_table
from llmlab.ui.data import Learned, sources_table
from llmlab.ui.figures import figure_title
from llmlab.ui.inputs import unchecked_line
from llmlab.ui.plan import plan_table
from llmlab.ui.units import long_time, size

A_MINUTE = 60.0


def show(config: KindConfig, console: Console) -> None:
    """Prints the plan, the sources, and a row of them as the model will see it.

    Raises:
        LabError: when a source or a model cannot be used.
    """
    unchecked = check_inputs(config)
    if isinstance(config, EvaluationConfig):
        check_benchmarks(config)
        if looks := _looks(config):
            console.print(sources_table(looks))
        if config.harness:
            console.print(Text(f"benchmarks of lm-eval: {', '.join(config.harness)}"))
        for one in unchecked:
            console.print(Text(unchecked_line(one), style="yellow"))
        return
    data = data_size(config, STAGES[config.kind].shapes) if isinstance(config, TrainingConfig) else None
    console.print(plan_table(make_plan(config, data)))
    for one in unchecked:
        console.print(Text(unchecked_line(one), style="yellow"))
    if not isinstance(config, TrainingConfig):
        return
    console.print(sources_table(look_at_sources(config, STAGES[config.kind].shapes)))
    for line in watched_lines(config):
        console.print(Text(line))
    for part in of_the_data(config):
        console.print(part)
    if isinstance(config, DPOConfig):
        console.print(reference_table(config))


def checked(config: KindConfig) -> dict[str, Any]:
    """Returns what `show` prints, as data.

    Raises:
        LabError: when a source or a model cannot be used.
    """
    unchecked = check_inputs(config)
    if isinstance(config, EvaluationConfig):
        check_benchmarks(config)
        return {"sources": _looks(config), "benchmarks": config.harness, "unchecked": unchecked}
    if not isinstance(config, TrainingConfig):
        return {"plan": make_plan(config), "unchecked": unchecked}
    shapes = STAGES[config.kind].shapes
    plan = make_plan(config, data_size(config, shapes))
    row = first_row(config, shapes)
    return {
        "plan": plan,
        "unchecked": unchecked,
        "sources": look_at_sources(config, shapes),
        "row": row,
        "warnings": [overlap_in_words(overlap) for overlap in overlaps(config, shapes)],
        **({"evaluation": watched_lines(config)} if config.evaluation_suite else {}),
    }


def watched_lines(config: TrainingConfig) -> list[str]:
    """Returns on what the model of a run is evaluated while it learns, and what its best weights are chosen
    by; nothing where it has no suite.

    Raises:
        LabError: when the suite cannot be run, or has no such figure.
    """
    if not config.evaluation_suite:
        return []
    from llmlab.evaluation.watching import Evaluator
    from llmlab.training.engine.evaluator import chosen_metric
    from llmlab.training.rewards import weighted

    evaluator = Evaluator(weighted)
    offered = evaluator.metrics(config)
    rows = ", ".join(f"{rows:,} rows of {name}" for name, rows in evaluator.rows(config).items())
    usable = ", ".join(name for name, better in offered.items() if better)
    return [
        f"evaluated on: {rows}; `metric_for_best` may be {usable}",
        f"best/ is chosen by: {figure_title(chosen_metric(config, offered))}",
    ]


def _looks(config: EvaluationConfig) -> list[SourceLook]:
    """Returns a look at each source of an evaluation; its rows have no share of a training."""
    return [
        look_at(task.source, None, prompt_shapes(task.source) if task.rewards else SHAPES)
        for task in tasks_of(config)
    ]


def of_the_data(config: TrainingConfig) -> Iterator[RenderableType]:
    """Yields what a person would want to know of the rows themselves: one as the model sees it,
    and what is wrong.
    """
    shapes = STAGES[config.kind].shapes
    if row := first_row(config, shapes):
        yield from _prompt(row) if isinstance(config, RolloutConfig) else _row(row)
    for overlap in overlaps(config, shapes):
        yield Text(f"warning: {overlap_in_words(overlap)}", style="yellow")


def _prompt(row: RowPreview) -> Iterator[RenderableType]:
    """Yields a row of a method that learns from its own answers."""
    yield Text("a prompt as the model sees it", style="bold")
    yield Text(row.given.rstrip())
    if row.learned:
        yield Text(f"the reference answer, for rewards that compare: {row.learned}", style="dim")


def _row(row: RowPreview) -> Iterator[RenderableType]:
    yield Learned("a row as the model sees it", row.pieces)
    if not row.answer_ends:
        fault = "the chat template puts no stop token after an answer: the model would never stop"
        yield Text(f"warning: {fault}", style="yellow")


def overlap_in_words(overlap: Overlap) -> str:
    """Returns how many validation rows are trained on as well, and what that means."""
    first = "first " if overlap.looked_at == COMPARED else ""
    if overlap.contaminated and overlap.contaminated > overlap.shared:
        return (
            f"{overlap.contaminated:,} of the validation rows of {overlap.source.line()} share 13 words in a"
            f" row with the training data ({overlap.shared:,} of the first {overlap.looked_at:,} are whole"
            " rows of it): held-out figures are inflated; `llmlab data overlap` shows them"
        )
    share = (
        f"{overlap.shared:,} of the {first}{overlap.looked_at:,} validation rows of {overlap.source.line()}"
    )
    return f"{share} appear in the training data as well: held-out figures are inflated"


def measured(config: TrainingConfig, console: Console) -> Measured:
    """Returns what a few real steps take; shows how far they are, and says when they take over a minute.

    Raises:
        LabError: when they fail, with the reason.
    """
    told = False
    with console.status("measuring: the model and its data are loaded") as status:

        def tell(at: Measuring) -> None:
            nonlocal told
            left = "" if at.left is None else f", about {long_time(at.left)} left"
            where = f"{at.done} of {at.steps} updates after {long_time(at.seconds)}{left}"
            if at.done:
                status.update(f"measuring: {where}")
            if not told and at.seconds + (at.left or 0.0) > A_MINUTE:
                told = True
                line = f"measuring takes more than a minute: {where} (Ctrl+C ends it, nothing is lost)"
                console.print(line, style="yellow", highlight=False, soft_wrap=True)

        return measure(config, tell)


def measured_lines(measured: Measured, config: TrainingConfig) -> list[str]:
    """Returns the measured figures for a whole run, beside what was predicted."""
    steps = "the steps of its epochs are known when the rows are counted"
    if config.max_steps < NO_LIMIT:
        time = long_time(measured.seconds * config.max_steps)
        most = "" if config.epochs is None else "at most "
        steps = f"{time} for {most}{config.max_steps:,} steps, validation and saving aside"
    memory = predicted(config)
    beside = f" (predicted {size(memory.total)})" if memory else ""
    return [
        f"measured: {measured.seconds:.2f} s an update, {steps}",
        f"measured: peak memory {size(measured.peak)}{beside}",
    ]
