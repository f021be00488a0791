"""The menu's way to an evaluation: a model, what it is measured on, beside which other one; and to those that
there are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from llmlab.ui import commands
from llmlab.ui.pickers import BACK, pick, pick_model
from llmlab.ui.prompts import Option, answer, plain, select

if TYPE_CHECKING:
    from llmlab.evaluation.folder import EvaluationFolder

NEW, OLD = "evaluate a model", "look at an evaluation that is there"
JUDGE = "judge the answers of one yourself, blind"
SINGLE, PAIRS = "one answer at a time", "two models' answers to a prompt: which is better?"
OWN = "data of your own or benchmarks by name: the form asks"
ALONE, PARENT, ANOTHER = "no other model", "what it was trained from", "another model"
RUN = "run it"


def evaluate_models(console: Console) -> None:
    """Evaluates a model, or shows an evaluation that is there, or lets the person judge its answers."""
    from llmlab.evaluation.folder import all_evaluations

    there = all_evaluations()
    choice = pick("Evaluations", [NEW, OLD, JUDGE]) if there else NEW
    if choice == OLD:
        names = [one.name for one in there]
        if name := pick("Which one?", names):
            commands.llmlab("evaluations", name)
    elif choice == JUDGE:
        judge(there)
    elif choice == NEW and (model := pick_model("Evaluate which model?", "evaluation", console)):
        evaluate_run(console, model)


def judge(there: list[EvaluationFolder]) -> None:
    """Opens the screen on which a person judges the answers of an evaluation."""
    models = {one.name: len(one.record.get("models") or ()) for one in there}
    name = pick("Whose answers?", list(models))
    way = pick("How?", [SINGLE, PAIRS]) if models.get(name, 0) > 1 else SINGLE
    if name and way:
        commands.llmlab("assess", name, *(["--pairs"] if way == PAIRS else []))


def evaluate_run(console: Console, model: str) -> None:
    """Asks on what a model is measured and beside which other one, saves the config, and runs it."""
    from llmlab.config.evaluation import EvaluationConfig
    from llmlab.config.suites import SUITES
    from llmlab.evaluation.subjects import parent_of
    from llmlab.ui.config_files import save_as
    from llmlab.ui.forms import fill_in

    suites = [Option(f"{name:10} {suite.title}", name) for name, suite in SUITES.items()]
    suite = answer(select("On what?", [*suites, *plain([OWN, BACK])]))
    if suite in (None, BACK):
        return
    parent = parent_of(model)
    beside = pick("Beside which other model?", [ALONE, *([PARENT] if parent else []), ANOTHER])
    if not beside:
        return
    values: dict[str, Any] = {"model": model}
    if beside == ANOTHER:
        values["against"] = pick_model("Which one?", "evaluation", console)
        if not values["against"]:
            return
    elif beside == PARENT:
        values["against"] = "parent"
    if suite != OWN:
        values["suite"] = suite
    config = EvaluationConfig(**values)
    chosen = fill_in(config, console, given=("model", "against", "suite")) if suite == OWN else config
    path = save_as(chosen, f"evaluate-{Path(model).name}", console) if chosen else None
    if path and pick("Run it now?", [RUN]):
        commands.llmlab("run", str(path))
