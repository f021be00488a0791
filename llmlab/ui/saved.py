"""The menu's screens of what is saved: runs and configs, and what can be done with one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from llmlab.errors import LabError
from llmlab.runs.folder import RECORD, RUNS, RunFolder, all_runs
from llmlab.ui import commands
from llmlab.ui.config_files import kind_of, save_as, saved_configs, unused_name
from llmlab.ui.pickers import answer, pick
from llmlab.ui.prompts import confirm
from llmlab.ui.publish import export_or_publish, serve_model
from llmlab.ui.train import has_cluster, run_and_go_on, write_job

if TYPE_CHECKING:
    from llmlab.config import KindConfig

RECENT = 10  # runs at hand


def saved(console: Console) -> None:
    """Lists runs and configs; each can be looked at and gone on with."""
    from llmlab.ui.configs import configs_table
    from llmlab.ui.runs import runs_table

    console.print(runs_table())
    files = saved_configs()
    if files:
        console.print(configs_table(files))
    recent = {f"{run.path} ({run.status})": run for run in all_runs(RUNS)[:RECENT]}
    picked = pick("Which one?", [*map(str, files), *recent])
    if picked in recent:
        with_run(recent[picked], console)
    elif picked:
        with_config(Path(picked), console)


def with_run(run: RunFolder, console: Console) -> None:
    """Resumes a run that was stopped, talks to what it made, or shows its details."""
    from llmlab.training.registry import STAGES

    if run.damage:
        console.print(f"{run.path}: {RECORD} {run.damage}", style="yellow")
    kind = (run.record.get("config") or {}).get("kind", "")
    ended, model, name = run.status == "done" or kind not in STAGES, run.result(), str(run.path)
    actions: dict[str, Callable[[], None]] = {}
    if not ended:
        actions["resume it"] = lambda: run_and_go_on(run.path, kind, console)
    if model and kind != "reward":
        actions["talk to it"] = lambda: commands.llmlab("chat", name)
    if model:
        actions["export or publish it"] = lambda: export_or_publish(console, name)
    if model and kind != "reward":
        actions["serve it"] = lambda: serve_model(console, name)
    if model:
        actions["details"] = lambda: commands.llmlab("info", name)
    actions["verify checkpoints"] = lambda: commands.llmlab("runs", "verify", name)
    if action := actions.get(pick("What do you want to do?", list(actions))):
        action()


def with_config(path: Path, console: Console) -> None:
    """Looks at a config, checks, runs, edits, copies, compares or deletes it."""
    from llmlab.config import load_config
    from llmlab.ui.explanations import review

    actions: dict[str, Callable[[], None]] = {}
    try:
        config = load_config(path)
    except LabError as error:
        console.print(str(error), style="yellow")
    else:
        console.print(review(config))
        if config.migrated:
            console.print(f"{config.migrated}; editing it saves it so", style="yellow")
        actions |= _with_valid(config, path, console)
    actions["delete"] = lambda: _delete(path)
    if action := actions.get(pick("What do you want to do?", list(actions))):
        action()


def _with_valid(config: KindConfig, path: Path, console: Console) -> dict[str, Callable[[], None]]:
    """Returns what can be done with a config that validates, by its words, in order."""
    from llmlab.training.registry import STAGES

    actions: dict[str, Callable[[], None]] = {"check": lambda: commands.llmlab("check", str(path))}
    if config.kind in STAGES:
        actions["run"] = lambda: run_and_go_on(path, config.kind, console)
    if config.kind in STAGES and has_cluster():
        actions["write its Slurm job"] = lambda: write_job(path)
    actions["edit"] = lambda: _edit(config, path, console)
    actions["duplicate"] = lambda: _duplicate(config, path, console)
    others = [other for other in saved_configs() if other != path and kind_of(other) == config.kind]
    if others:
        actions["compare with another"] = lambda: _compare(config, path, others, console)
    return actions


def _edit(config: KindConfig, path: Path, console: Console) -> None:
    from llmlab.ui.forms import fill_in

    if changed := fill_in(config, console, origin=path.name):
        save_as(changed, path.stem, console)


def _duplicate(config: KindConfig, path: Path, console: Console) -> None:
    save_as(config, unused_name(path).stem, console)


def _compare(config: KindConfig, path: Path, others: list[Path], console: Console) -> None:
    from llmlab.config import load_config
    from llmlab.ui.configs import compared

    if other := pick("Compare with which one?", [str(other) for other in others]):
        console.print(compared(config, load_config(other), path.name, Path(other).name))


def _delete(path: Path) -> None:
    if answer(confirm(f"Delete {path}?", default=False)):
        path.unlink()
