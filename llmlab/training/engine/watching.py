"""What a run needs to be watched: the figure that counts, its suite made ready, and who is told."""

from __future__ import annotations

from typing import cast

from llmlab.config.suites import watched_tasks
from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError
from llmlab.models.typed import LanguageModel
from llmlab.runs.folder import RunFolder
from llmlab.runs.workers import Workers
from llmlab.training.callbacks.suite_steps import SuiteSteps
from llmlab.training.engine.context import RunContext
from llmlab.training.engine.evaluator import Evaluator, SuiteEvaluation, chosen_metric
from llmlab.training.engine.job import Job
from llmlab.training.rewards import refuse_untrusted
from llmlab.training.trainers.watched import Watch


def metric_of(config: TrainingConfig, evaluator: Evaluator | None) -> str:
    """Returns the figure that the best weights of a run are chosen by; its suite is looked at.

    Raises:
        LabError: when the suite cannot be run, or has no such figure.
    """
    if not config.evaluation_suite:
        return chosen_metric(config, {})
    refuse_untrusted(reward for task in watched_tasks(config) for reward in task.rewards)
    return chosen_metric(config, _given(evaluator).metrics(config))


def suite_of(config: TrainingConfig, evaluator: Evaluator | None, job: Job) -> SuiteEvaluation | None:
    """Returns the suite of a run made ready for its model; None where it has none.

    Raises:
        LabError: when this model cannot be measured on it.
    """
    if not config.evaluation_suite:
        return None
    return _given(evaluator).prepare(config, cast(LanguageModel, job.model), job.tokenizer)


def watch_of(
    context: RunContext, job: Job, folder: RunFolder, suite: SuiteEvaluation, workers: Workers
) -> Watch:
    """Returns what evaluates the model of a run on its suite."""
    config, reporter = context.config, context.reporter

    return Watch(
        suite,
        cast(LanguageModel, job.model),
        SuiteSteps(config.evaluate_interval, config.eval_interval if job.data.eval else 0),
        workers,
        folder,
        reporter,
    )


def _given(evaluator: Evaluator | None) -> Evaluator:
    if evaluator is None:
        raise LabError(
            "`evaluation_suite` needs an evaluator, and `run` was given none",
            remedy="start the run with `llmlab run`, or pass `evaluator=` to `run`",
        )
    return evaluator
