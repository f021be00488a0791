"""The menu's way from a form to a trained model, and to what naturally comes next."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from llmlab.runs.folder import RUNS, all_runs
from llmlab.ui import commands
from llmlab.ui.config_files import kind_of, save_as, saved_configs
from llmlab.ui.evaluate import evaluate_run
from llmlab.ui.pickers import IN_THE_FORM, pick, pick_model, pick_reward
from llmlab.ui.prompts import Option, answer, select, text
from llmlab.ui.publish import export_or_publish, serve_model

if TYPE_CHECKING:
    from llmlab.config import KindConfig
    from llmlab.config.training import TrainingConfig

    Start = tuple[KindConfig, tuple[str, ...]]  # what a form begins with, and the options that were chosen

EVALUATE = "Did it get better? Evaluate it"
NEW_SHAPE = "a new one: configure it now"
FROM_SCRATCH = "from scratch: a new model learns from nothing"
FURTHER = "from an existing model: it reads on, in your texts"
DEFAULTS = "the defaults"
AS_IT_IS, CHANGED = "as it is", "with changes, in the form"
RUN, MEASURE, QUEUE = "run it", "measure a few steps first", "write its Slurm job"


def configure_model(console: Console) -> Path | None:
    """Asks for an architecture, from a preset on, saves it, and returns its file;
    None where the person left.
    """
    from llmlab.config import MODEL_PRESETS, preset
    from llmlab.planning.parameters import count_parameters
    from llmlab.ui.forms import fill_in
    from llmlab.ui.units import short_count

    counts = {name: short_count(count_parameters(preset(name)).total) for name in MODEL_PRESETS}
    shapes = [Option(f"{name:14} {count:>5} parameters", name) for name, count in counts.items()]
    name = answer(select("Start from which shape?", shapes))
    config = fill_in(preset(name), console, origin=name) if name else None
    return save_as(config, name, console) if name and config else None


def train(kind: str, console: Console, checkpoint: str = "", reward: str = "", **offered: Any) -> None:
    """Asks for a training config, saves it, and runs it if the person wants; then offers what naturally comes
    next.

    Args:
        kind: of the config.
        console: where it is shown.
        checkpoint: to start from; "" asks.
        reward: what answers are rewarded for; "" asks where the kind needs one.
        **offered: options that the form begins with; its rows (`datasets`) are not asked for again.
    """
    from llmlab.config import apply_changes
    from llmlab.training.registry import STAGES

    starts = STAGES[kind].needs or checkpoint or pick("Train which model?", [FROM_SCRATCH, FURTHER])
    if not starts:
        return
    new = starts == FROM_SCRATCH
    start = _from_a_shape(kind, console) if new else _from_a_model(kind, console, checkpoint, reward)
    if start:
        config, given = start
        given = (*given, *({"datasets"} & offered.keys()))
        _fill_in_and_run(apply_changes(config, offered), kind, console, given=given)


def from_recipe(name: str, console: Console) -> None:
    """Asks for the config of a recipe, whose options are offered; then as `train`."""
    from llmlab.config.recipes import RECIPES

    _fill_in_and_run(RECIPES[name].config(), name, console, origin=name)


def from_recipe_list(console: Console) -> None:
    """Shows the recipes; one of them becomes a form, a config and a run."""
    from llmlab.config.recipes import RECIPES
    from llmlab.ui.recipes import recipes_table

    console.print(recipes_table())
    if name := pick("Which one?", list(RECIPES)):
        from_recipe(name, console)


def save_and_run(config: TrainingConfig, name: str, console: Console, *, here: bool) -> None:
    """Saves a config that was proposed, as it is or changed in the form, and runs it if the person wants.

    Args:
        config: that was proposed.
        name: to save it under.
        console: where it is shown.
        here: whether it was made for this machine; else it is said how it is run where it belongs.
    """
    from llmlab.ui.forms import fill_in

    choice = pick("Take it?", [AS_IT_IS, CHANGED])
    chosen: KindConfig | None = config if choice == AS_IT_IS else None
    if choice == CHANGED:
        chosen = fill_in(config, console, origin="the proposal")
    path = save_as(chosen, name, console) if chosen else None
    if path and here:
        _run_saved(path, config.kind, console)
    elif path:
        console.print(f"on the machine that it is for: llmlab check {path}, then llmlab run {path}")


def _fill_in_and_run(
    start: KindConfig, name: str, console: Console, origin: str = "", given: Collection[str] = ()
) -> None:
    """Asks for the options of a config but those that were chosen, saves it under a name, and runs it if the
    person wants.
    """
    from llmlab.config.training import TrainingConfig
    from llmlab.ui.forms import fill_in

    config = fill_in(start, console, origin=origin, given=given)
    path = save_as(config, name, console) if config else None
    if not path:
        return
    assert isinstance(config, TrainingConfig)
    _before(config, console)
    _run_saved(path, start.kind, console)


def _run_saved(path: Path, kind: str, console: Console) -> None:
    """Runs a saved config, if the person wants; or measures it, or writes its job."""
    ways = [RUN, MEASURE, *([QUEUE] if has_cluster() else [])]
    while (choice := pick("Run it now?", ways)) == MEASURE:
        commands.llmlab("check", str(path), "--measure")
    if choice == QUEUE:
        write_job(path)
    elif choice:
        run_and_go_on(path, kind, console)


def has_cluster() -> bool:
    """Returns whether jobs are of use here: there is a queue, or somebody told of one."""
    from llmlab.config.slurm import kept_file

    return shutil.which("sbatch") is not None or kept_file().exists()


def write_job(path: Path) -> None:
    """Writes the Slurm job of a config beside it; asks about the cluster where nothing is known of it."""
    commands.llmlab("slurm", str(path), "-o", str(path.with_suffix(".sh")))


def run_and_go_on(path: Path, kind: str, console: Console, *further: str) -> None:
    """Runs a config of a kind, or goes on with a run; when it made a model,
    offers the natural next steps with it filled in.

    Args:
        path: of the config, or of the run's folder.
        kind: of it.
        console: where it is shown.
        *further: arguments of `llmlab run`.
    """
    from llmlab.training.registry import STAGES

    before = {run.path: run.status for run in all_runs(RUNS)}
    commands.llmlab("run", str(path), *further)
    ended = [run for run in all_runs(RUNS) if run.status == "done" and before.get(run.path) != "done"]
    if not ended or not ended[0].result():
        return
    model = str(ended[0].path)
    steps = {f"{STAGES[next_kind].title} with it": next_kind for next_kind in STAGES[kind].then}
    talk = ["Talk to it"] if kind != "reward" else []
    parent = str(ended[0].record.get("parent") or "")
    blind = (
        ["Compare it blind with what it came from"] if parent and kind not in ("reward", "pretrain") else []
    )
    ways_out: dict[str, Callable[[Console, str], None]] = {"Export or publish it": export_or_publish}
    if talk:
        ways_out["Serve it"] = serve_model
        ways_out[EVALUATE] = evaluate_run
    picked = pick(f"{model} is made. What now?", [*talk, *blind, *steps, *ways_out], back="back to the menu")
    if picked in talk:
        commands.llmlab("chat", model)
    elif picked in blind:
        commands.llmlab("chat", model, "--against", parent, "--blind")
    elif picked in ways_out:
        ways_out[picked](console, model)
    elif picked in steps and kind == "reward":  # it judges what another model says
        train(steps[picked], console, reward=model)
    elif picked in steps:
        train(steps[picked], console, checkpoint=model)


def _from_a_model(kind: str, console: Console, checkpoint: str, reward: str) -> Start | None:
    """Returns the config to begin a form with, of a method that starts from a model, and what was chosen;
    None for none.
    """
    from llmlab.config import METHOD_PRESETS
    from llmlab.config.loader import kind_class
    from llmlab.config.rollouts import RolloutConfig
    from llmlab.config.training import TrainingConfig
    from llmlab.models.resolve import wanted

    cls = kind_class(kind)
    assert issubclass(cls, TrainingConfig)
    question = f"Start from which model? ({wanted(kind)})"
    picked = checkpoint or pick_model(question, kind, console)
    if not picked:
        return None
    values: dict[str, Any] = {cls.STARTS_FROM: picked}
    if issubclass(cls, RolloutConfig):
        reward = reward or pick_reward(console)
        if not reward:
            return None
        if reward != IN_THE_FORM:
            values["reward_model"] = [reward]
    sizes = METHOD_PRESETS.get(kind, {})
    size = DEFAULTS
    if sizes:
        size = pick("Settings for a model of about which size?", [DEFAULTS, *sizes])
    return (cls(**values, **sizes.get(size, {})), tuple(values)) if size else None


def _from_a_shape(kind: str, console: Console) -> Start | None:
    """Returns the config to begin a form with, of base training, and what was chosen; None for none."""
    from llmlab.config import parse_config

    shapes = [str(path) for path in saved_configs() if kind_of(path) == "model"]
    picked = pick("Which model?", [*shapes, NEW_SHAPE])
    if picked == NEW_SHAPE:
        picked = str(configure_model(console) or "")
    if not picked or not offer_tokenizer(Path(picked), console):
        return None
    return parse_config({"kind": kind, "model": picked}), ("model",)


def offer_tokenizer(model: Path, console: Console, text_of: str = "llmlab:moby-dick") -> bool:
    """Trains the tokenizer that a model config names where its folder is missing;
    returns whether base training can go on.
    """
    from llmlab.config import ModelConfig, load_config

    shape = load_config(model)
    assert isinstance(shape, ModelConfig)
    name = shape.tokenizer_name
    if Path(name).exists() or not name.startswith((".", "/", "checkpoints/")):
        return True
    console.print(f"this model reads with a tokenizer in {name}, which does not exist yet", style="yellow")
    question = f"Train one of {shape.vocab_size:,} tokens on (a file, a folder, a hub id):"
    source = answer(text(question, text_of))
    if not source:
        return False
    commands.llmlab("tokenizer", source, "--vocab-size", str(shape.vocab_size), "-o", name)
    return Path(name).exists()


def _before(config: TrainingConfig, console: Console) -> None:
    from llmlab.ui.preflight import of_the_data

    for part in of_the_data(config):
        console.print(part)
