"""How a run ends: the last validation, the model that is kept, the record."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import Any

from transformers import TrainerState

from llmlab.errors import LabError
from llmlab.planning.plan import Plan
from llmlab.runs.details import Memory
from llmlab.runs.figures import SUITE, is_of_suite
from llmlab.runs.folder import RunFolder, read_json
from llmlab.runs.manifest import MANIFEST
from llmlab.runs.summary import summarize
from llmlab.training import compat
from llmlab.training.callbacks.patience import EndedEarly, PatienceExhausted
from llmlab.training.callbacks.stop import StopOnSignal
from llmlab.training.engine.context import RunContext
from llmlab.training.engine.distributed import is_main, processes
from llmlab.training.engine.job import Job, RunResult
from llmlab.training.engine.memory import peak_memory
from llmlab.training.engine.resume import ResumePlan
from llmlab.training.trainers.base import LabTrainerMixin


def load_without_training(trainer: LabTrainerMixin, plan: ResumePlan) -> None:
    """Loads a checkpoint as the trainer's state: of a run that was stopped behind its last step."""
    assert plan.checkpoint is not None
    trainer.state = TrainerState.load_from_json(str(plan.checkpoint.path / "trainer_state.json"))
    with suppress(PatienceExhausted):
        compat.load_checkpoint(trainer, str(plan.checkpoint))


def finish(
    context: RunContext, job: Job, trainer: LabTrainerMixin, folder: RunFolder, stop: StopOnSignal
) -> RunResult:
    """Does what is left after the last step, or after a stop, and returns the result."""
    config, last = context.config, trainer.state.global_step
    if trainer.services and (notes := trainer.services.stream.notes()):
        note(folder, data_notes=job.data.notes + notes)
        context.reporter.warning("\n".join(notes))
    patience = trainer.services.patience if trainer.services else None
    early = patience.ended if patience and last < config.max_steps else None
    if early:
        context.reporter.note(early_in_words(early, config.max_steps))
    elif stop.received and last < config.max_steps:
        note(folder, status="stopped", step=last)
        return RunResult(folder.path, None, held_out_figures(folder), stop.received, context.seconds())
    trainer.evaluate_at_the_end(next(iter(config.METRICS)) if job.data.eval else "")
    has_best = (folder.path / "best").is_dir()
    if not config.save_best_only or not has_best:
        trainer.save_as("final", step=last)
    result = folder.path / ("best" if has_best and config.save_best_only else "final")
    metrics = held_out_figures(folder)
    if is_main():
        facts: dict[str, Any] = {"ended_early": asdict(early)} if early else {}
        if has_best and trainer.services and (figure := trainer.services.best_by):
            kept = read_json(folder.path / "best" / MANIFEST)
            facts["best"] = {"figure": figure, "value": kept.get(figure), "step": kept.get("step")}
        folder.update(status="done", step=last, result=result.name, metrics=metrics, **facts)
    return RunResult(folder.path, result, metrics, 0, context.seconds())


def note_costs(context: RunContext, folder: RunFolder, costs: Plan) -> None:
    """Writes what the run took until here into its record: seconds, over all times that it was resumed, and
    the peak of its memory beside the predicted one; and its summary.
    """
    if not is_main():
        return
    record = folder.record
    before = record.get("seconds") if isinstance(record.get("seconds"), (int, float)) else 0.0
    measured, place = peak_memory(context.device)
    measured = max(measured, Memory.of(record).measured or 0)
    predicted = round(costs.memory.total) if costs.memory else None
    memory = {"measured": measured, "predicted": predicted, "place": place}
    seconds = round((before or 0.0) + context.seconds(), 1)
    price = context.config.price_per_hour
    cost = {} if price is None else {"cost": round(seconds / 3600 * price * processes(), 4)}
    note(folder, seconds=seconds, summary=summarize(folder, memory=memory), **cost)


def early_in_words(early: EndedEarly, steps: int) -> str:
    """Returns why a run ended before its last step."""
    if is_of_suite(early.figure):
        figure, counted = early.figure.removeprefix(SUITE), "evaluation"
    else:
        figure, counted = f"held-out {early.figure.removeprefix('eval_').replace('_', ' ')}", "validation"
    return (
        f"ended early at step {early.step:,} of {steps:,}: no better {figure} in {early.patience}"
        f" {counted}{'s' if early.patience > 1 else ''} (the best is {early.best:.4g})"
    )


def note(folder: RunFolder, **changes: Any) -> None:
    """Changes a run's record, from the main process."""
    if is_main():
        with suppress(
            LabError
        ):  # on a full disk the run's record stays as it was, which a resume can do with
            folder.update(**changes)


def held_out_figures(folder: RunFolder) -> dict[str, float]:
    """Returns the first and the last value of every held-out figure, and the last training loss."""
    figures: dict[str, float] = {}
    for line in folder.metrics():
        for key, value in line.items():
            if key.startswith("eval_") and not key.endswith(("runtime", "per_second", "num_tokens")):
                figures[f"before_{key}" if line["step"] == 0 else key] = value
            elif key == "loss":
                figures["train_loss"] = value
    return figures
