"""The menu's screens of what is saved: runs and configs, and what can be done with one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from llmlab.errors import LabError
from llmlab.runs.details import find_run
from llmlab.runs.folder import RUNS, RunFolder
from llmlab.runs.index import RunRow, run_rows
from llmlab.runs.record import RECORD
from llmlab.ui import commands
from llmlab.ui.config_files import kind_of, save_as, saved_configs, unused_name
from llmlab.ui.pickers import pick
from llmlab.ui.prompts import Option, answer, confirm, select, several, text
from llmlab.ui.publish import export_or_publish, serve_model
from llmlab.ui.train import has_cluster, run_and_go_on, write_job

if TYPE_CHECKING:
    from llmlab.config import KindConfig

RECENT = 10  # runs at hand
MOST = 12  # configs at hand
ANOTHER_RUN, ANOTHER_CONFIG = "another run: by its name", "another config: by its name"
LOOK, PAGE, TAGS = "curves, figures, lineage", "write a page about it (HTML)", "tag"
STAYS = (LOOK, PAGE, TAGS)
COMPARE, BY_TAG = "compare runs", "runs with a tag"


def saved(console: Console) -> None:
    """Lists runs and configs; each can be looked at and gone on with."""
    from llmlab.ui.configs import configs_table
    from llmlab.ui.runs import runs_table

    rows = run_rows(RUNS)
    console.print(runs_table(rows, RECENT))
    files = saved_configs()
    newest = sorted(files, key=changed, reverse=True)[:MOST] if len(files) > MOST else files
    if newest:
        console.print(configs_table(newest))
    if len(files) > MOST:
        console.print(f"and {len(files) - MOST:,} older configs in {files[0].parent}/", style="dim")
    recent = {f"{row.path} ({row.status})": row for row in rows[:RECENT]}
    further = [ANOTHER_CONFIG] if len(files) > MOST else []
    further += [ANOTHER_RUN] if len(rows) > RECENT else []
    further += [COMPARE] if len(rows) > 1 else []
    further += [BY_TAG] if any(row.tags for row in rows) else []
    picked = pick("Which one?", [*map(str, newest), *recent, *further])
    if picked in recent:
        with_run(RunFolder(recent[picked].path), console)
    elif picked == ANOTHER_RUN:
        if name := answer(text("Which run? (its folder, or its name in checkpoints/)")):
            with_run(find_run(name.strip()), console)
    elif picked == ANOTHER_CONFIG:
        if name := answer(text("Which config?", f"{files[0].parent}/")):
            with_config(Path(name.strip()), console)
    elif picked == COMPARE:
        compare(rows, console)
    elif picked == BY_TAG:
        with_tag(rows, console)
    elif picked:
        with_config(Path(picked), console)


def changed(path: Path) -> float:
    """Returns when a file was changed last."""
    return path.stat().st_mtime


def compare(rows: list[RunRow], console: Console) -> None:
    """Asks for runs and shows them beside each other; may write it as a page."""
    options = [Option(f"{row.path} ({row.kind}, {row.status})", str(row.path)) for row in rows[: 3 * RECENT]]
    runs = answer(several("Which runs?", options, instruction="(the space bar marks, Enter goes on)")) or []
    if len(runs) < 2:
        console.print("a comparison needs two runs", style="yellow")
        return
    commands.llmlab("runs", "compare", *runs)
    if answer(confirm("Write it as a page (HTML)?", default=False)) and (
        file := answer(text("Save as", "comparison.html"))
    ):
        commands.llmlab("runs", "compare", *runs, "--html", file)


def with_tag(rows: list[RunRow], console: Console) -> None:
    """Asks for a tag, shows its runs, and goes on with one."""
    from llmlab.ui.runs import runs_table

    tags = list(dict.fromkeys(tag for row in rows for tag in row.tags))
    if tag := pick("Which tag?", tags):
        chosen = [row for row in rows if tag in row.tags]
        console.print(runs_table(chosen))
        if picked := pick("Which run?", [str(row.path) for row in chosen]):
            with_run(find_run(picked), console)


def with_run(run: RunFolder, console: Console) -> None:
    """Resumes a run that was stopped, talks to what it made, shows or changes it; what only shows it asks
    again, since the menu would push it off the screen.
    """
    from llmlab.training.registry import STAGES

    if run.damage:
        console.print(f"{run.path}: {RECORD} {run.damage}", style="yellow")
    kind = (run.record.get("config") or {}).get("kind", "")
    ended, model, name = run.status == "done" or kind not in STAGES, run.result(), str(run.path)
    actions: dict[str, Callable[[], object]] = {}
    if not ended:
        actions["resume it"] = lambda: resume(run, kind, console)
    elif kind in STAGES and run.checkpoints():
        actions["train it longer"] = lambda: resume(run, kind, console, longer=True)
    if model and kind != "reward":
        actions["talk to it"] = lambda: commands.llmlab("chat", name)
    if model:
        actions["export or publish it"] = lambda: export_or_publish(console, name)
    if model and kind != "reward":
        actions["serve it"] = lambda: serve_model(console, name)
    if model:
        actions["details"] = lambda: commands.llmlab("info", name)
    actions["verify checkpoints"] = lambda: commands.llmlab("runs", "verify", name)
    if not run.damage:
        actions[LOOK] = lambda: commands.llmlab("runs", "show", name)
        actions[PAGE] = lambda: commands.llmlab("runs", "report", name)
        actions["run it again, with a change"] = lambda: _again(name)
        actions[TAGS] = lambda: _tag(name)
    actions["rename"] = lambda: _rename(name)
    actions["delete"] = lambda: commands.llmlab("runs", "delete", name)
    while picked := pick("What do you want to do?", list(actions)):
        actions[picked]()
        if picked not in STAYS:
            return


def resume(run: RunFolder, kind: str, console: Console, *, longer: bool = False) -> None:
    """Asks from which checkpoint a run goes on, how far, and whether its optimizer does; then goes on."""
    config = run.record.get("config") or {}
    steps = sorted((checkpoint.step for checkpoint in run.checkpoints()), reverse=True)
    arguments: list[str] = []
    if len(steps) > 1:
        lines = [
            Option(f"step {step:,}{' (the newest)' if step == steps[0] else ''}", step) for step in steps
        ]
        picked = answer(select("From which checkpoint?", lines))
        if picked is None:
            return
        if picked != steps[0]:
            arguments += ["--resume", str(run.path / f"checkpoint-{picked}")]
    most = config.get("max_steps")
    if isinstance(most, int) and config.get("epochs") is None:
        offered = str(2 * most if longer else most)
        typed = answer(
            text(f"To how many steps in all? (it was made for {most:,})", offered, validate=_count)
        )
        if typed is None:
            return
        if int(typed) != most:
            arguments += ["--set", f"max_steps={int(typed)}"]
    if steps:
        kept = answer(confirm("With the state of its optimizer? (no: it begins anew)"))
        if kept is None:
            return
        arguments += [] if kept else ["--fresh-optimizer"]
    run_and_go_on(run.path, kind, console, *arguments)


def _count(typed: str) -> bool | str:
    return (typed.strip().isdigit() and int(typed) > 0) or "a whole number of steps"


def _again(name: str) -> None:
    change = answer(text("Which change? (key=value; several with ; between)", "seed=1"))
    if change is not None:
        pairs = [part.strip() for part in change.split(";") if part.strip()]
        commands.llmlab("runs", "again", name, *(part for pair in pairs for part in ("--set", pair)))


def _tag(name: str) -> None:
    if words := answer(text("Which tags? (with blanks between; -word takes one away)")):
        gone = [word[1:] for word in words.split() if word.startswith("-")]
        given = [word for word in words.split() if not word.startswith("-")]
        for action, tags in (("tag", given), ("untag", gone)):
            if tags:
                commands.llmlab("runs", action, name, *tags)


def _rename(name: str) -> None:
    if new := answer(text("Its new name", Path(name).name)):
        commands.llmlab("runs", "rename", name, new.strip())


def with_config(path: Path, console: Console) -> None:
    """Looks at a config, checks, runs, edits, copies, compares or deletes it."""
    from llmlab.config import load_config
    from llmlab.ui.explanations import review

    actions: dict[str, Callable[[], object]] = {}
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


def _with_valid(config: KindConfig, path: Path, console: Console) -> dict[str, Callable[[], object]]:
    """Returns what can be done with a config that validates, by its words, in order."""
    from llmlab.training.registry import STAGES

    actions: dict[str, Callable[[], object]] = {"check": lambda: commands.llmlab("check", str(path))}
    if config.kind in STAGES:
        actions["run"] = lambda: run_and_go_on(path, config.kind, console)
    if config.kind == "evaluation":
        actions["run"] = lambda: commands.llmlab("run", str(path))
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
