"""The menu: everything the lab does, numbered; each entry is a form, a config and a run.

Forms and configs are imported by the entry that needs them, so that the menu is there at once.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import questionary
from rich.console import Console

from llmlab.errors import LabError
from llmlab.files import read_object
from llmlab.models.hub import NOT_CHECKED
from llmlab.models.resolve import check_model, runs_for
from llmlab.readable import said
from llmlab.runs.folder import RECORD, RUNS, all_runs
from llmlab.screen import LabConsole, styled
from llmlab.ui.prompts import Back, Cancelled, ask, select

if TYPE_CHECKING:
    from llmlab.config import KindConfig, ModelConfig
    from llmlab.runs.folder import RunFolder

CONFIGS = Path("model_configs")
BACK = "back"
ANOTHER = "another model: a hub id, a folder, a GGUF file"
NEW_SHAPE = "a new one: configure it now"
IN_THE_FORM = "something else: the form asks"
RECENT = 10  # runs at hand
KEYS = "123456789abcefghij"  # of the model, the methods and the chat; letters of other entries left out


@dataclass(frozen=True)
class Entry:
    """A line of the menu: its key, what it says, and what it does (None leaves)."""

    key: str
    title: str
    action: Callable[[Console], object] | None


def entries() -> list[Entry | str]:
    """Returns the menu: titles of sections, and what can be chosen. The methods, their order and sections are
    those of the registry.
    """
    from llmlab.training.registry import STAGES

    keys = iter(KEYS)
    lines: list[Entry | str] = ["model", Entry(next(keys), "Configure a model", configure_model)]
    for section, stages in itertools.groupby(STAGES.values(), key=lambda stage: stage.section):
        lines.append(section)
        lines += [Entry(next(keys), stage.title, partial(train, stage.kind)) for stage in stages]
    nothing = "" if all_runs(RUNS) or _configs() else " (nothing is saved yet)"
    return [
        *lines,
        "tools",
        Entry(next(keys), "Test a model (chat)", test_model),
        Entry("s", f"Saved configs and runs{nothing}", saved),
        Entry("d", "Look at data", look_at_data),
        Entry("m", "Which method? A comparison", compare_methods),
        Entry("0", "Quit", None),
    ]


def main_menu() -> None:
    """Shows the menu until the person leaves."""
    console = LabConsole()
    while True:
        console.print(styled("\n[bold]llmlab[/bold]  [dim]{}[/dim]", status()))
        choices = [
            (
                questionary.Separator(f"── {entry}")
                if isinstance(entry, str)
                else questionary.Choice(entry.title, value=entry, shortcut_key=entry.key)
            )
            for entry in entries()
        ]
        question = select(
            "What next?",
            choices,
            use_shortcuts=True,
            use_arrow_keys=True,
            instruction="(number or letter, then Enter)",
        )
        picked = _answer(question, back=False)
        if picked is None or picked.action is None:
            return
        try:
            picked.action(console)
        except LabError as error:
            console.print(str(error), style="red")


def status() -> str:
    """Returns one line: device, its free memory, disk and the last run."""
    from llmlab.planning.live import available_memory, gpu_memory

    last = next(iter(all_runs()), None)
    on_gpu = gpu_memory()
    device = "NVIDIA GPU" if on_gpu else f"{os.cpu_count()} cores"
    memory = f"{(on_gpu or available_memory()) / 1e9:.0f} GB {'of its ' if on_gpu else ''}memory free"
    free = f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB disk free"
    run = f"last run: {last.path} ({last.status})" if last else "no runs yet"
    return f"{device} · {memory} · {free} · {run}"


def configure_model(console: Console) -> Path | None:
    """Asks for an architecture, from a preset on, saves it, and returns its file;
    None where the person left.
    """
    from llmlab.config import MODEL_PRESETS, preset
    from llmlab.planning.parameters import count_parameters
    from llmlab.ui.forms import fill_in
    from llmlab.ui.units import short_count

    shown = [
        questionary.Choice(
            f"{name:14} {short_count(count_parameters(preset(name)).total):>5} parameters", name
        )
        for name in MODEL_PRESETS
    ]
    name = _answer(select("Start from which shape?", shown))
    if name:
        config = fill_in(preset(name), console, origin=name)
        if config:
            return _save(config, name, console)
    return None


def train(kind: str, console: Console, checkpoint: str = "", reward: str = "") -> None:
    """Asks for a training config, saves it, and runs it if the person wants; then offers what naturally comes
    next.

    Args:
        kind: of the config.
        console: where it is shown.
        checkpoint: to start from; "" asks.
        reward: what answers are rewarded for; "" asks where the kind needs one.
    """
    from llmlab.config import METHOD_PRESETS, load_config
    from llmlab.config.loader import kind_class
    from llmlab.training.registry import STAGES
    from llmlab.ui.forms import fill_in

    cls = kind_class(kind)
    if STAGES[kind].needs:
        picked = checkpoint or pick_model(f"Start from which model? ({STAGES[kind].needs})", kind, console)
        if not picked:
            return
        values: dict[str, Any] = {cls.STARTS_FROM: picked}
        if "reward_model" in cls.model_fields:
            reward = reward or pick_reward(console)
            if not reward:
                return
            if reward != IN_THE_FORM:
                values["reward_model"] = [reward]
        sizes = METHOD_PRESETS.get(kind, {})
        size = (
            _pick("Settings for a model of about which size?", ["the defaults", *sizes])
            if sizes
            else "the defaults"
        )
        if not size:
            return
        start = cls(**values, **sizes.get(size, {}))
    else:
        picked = _pick(
            "Which model?", [*(str(path) for path in _configs() if _kind(path) == "model"), NEW_SHAPE]
        )
        if picked == NEW_SHAPE:
            picked = str(configure_model(console) or "")
        if not picked or not offer_tokenizer(load_config(picked), console):
            return
        start = cls(model=picked)
    config = fill_in(start, console)
    if config is None:
        return
    path = _save(config, kind, console)
    if not path:
        return
    from llmlab.ui.preflight import of_the_data

    for line in of_the_data(config):
        console.print(line)
    measure = "measure three steps first"
    while (choice := _pick("Run it now?", ["run it", measure])) == measure:
        _llmlab("check", str(path), "--measure")
    if choice:
        run_and_go_on(path, kind, console)


def run_and_go_on(path: Path, kind: str, console: Console) -> None:
    """Runs a config of a kind, or goes on with a run; when it made a model,
    offers the natural next steps with it filled in.
    """
    from llmlab.training.registry import STAGES

    before = {run.path: run.status for run in all_runs(RUNS)}
    _llmlab("run", str(path))
    ended = [run for run in all_runs(RUNS) if run.status == "done" and before.get(run.path) != "done"]
    if not ended or not ended[0].result():
        return
    made = str(ended[0].path)
    steps = {f"{STAGES[next_kind].title} with it": next_kind for next_kind in STAGES[kind].then}
    talk = {"Talk to it": "chat"} if kind != "reward" else {}
    picked = _pick(f"{made} is made. What now?", [*talk, *steps], back="back to the menu")
    if picked in talk:
        _llmlab("chat", made)
    elif picked in steps and kind == "reward":  # it judges what another model says
        train(steps[picked], console, reward=made)
    elif picked in steps:
        train(steps[picked], console, checkpoint=made)


def offer_tokenizer(shape: ModelConfig, console: Console) -> bool:
    """Trains the tokenizer that a model config names where its folder is missing;
    returns whether base training can go on.
    """
    name = shape.tokenizer_name
    if Path(name).exists() or not name.startswith((".", "/", "checkpoints/")):
        return True
    console.print(f"this model reads with a tokenizer in {name}, which does not exist yet", style="yellow")
    question = f"Train one of {shape.vocab_size:,} tokens on (a file, a folder, a hub id, llmlab:moby-dick)"
    source = _answer(questionary.text(question, default="llmlab:moby-dick"))
    if not source:
        return False
    _llmlab("tokenizer", source, "--vocab-size", str(shape.vocab_size), "-o", name)
    return Path(name).exists()


def test_model(console: Console) -> None:
    """Opens a chat with a model."""
    if picked := pick_model("Talk to which model?", "chat", console):
        _llmlab("chat", picked)


def pick_model(question: str, use: str, console: Console, *more: str) -> str:
    """Returns the name of a model that fits a use (a key of `FITS`), a run or one that is brought; "" for
    none.

    Args:
        question: its words.
        use: what the model is wanted for.
        console: where it is said why a model does not fit.
        *more: further choices.
    """
    runs = {str(run.path): f"{run.path}  ({run.record['config']['kind']})" for run in runs_for(use)}
    while True:
        choices = [questionary.Choice(said(label), path) for path, label in runs.items()]
        picked = _answer(select(question, [*choices, *more, ANOTHER, BACK]))
        if picked != ANOTHER:
            return "" if picked in (None, BACK) else picked
        if typed := type_model(use, console):
            return typed


def type_model(use: str, console: Console) -> str:
    """Asks for the name of a model that is brought until it fits a use;
    returns "" where the person goes back.
    """
    name = ""
    while (
        name := _answer(questionary.text(said("Which one? (a hub id, a folder, a GGUF file)"), default=name))
        or ""
    ):
        name = name.strip().strip("'\"").strip()
        try:
            where = check_model(name, use)
        except LabError as error:
            console.print(str(error), style="red", markup=False, highlight=False)
            continue
        if where.startswith(NOT_CHECKED[:11]):
            console.print(f"{name}: {where}", style="yellow", markup=False, highlight=False)
        return name
    return ""


def pick_reward(console: Console) -> str:
    """Returns what answers are rewarded for: a reward model, a rule, or `IN_THE_FORM`; "" for none."""
    from llmlab.config.rewards import FUNCTIONS

    rules = {
        f"{name}  (a rule)": name for name in FUNCTIONS if name != "format"
    }  # which needs an expression: in the form
    picked = pick_model("Answers are rewarded for what?", "score", console, *rules, IN_THE_FORM)
    return rules.get(picked, picked)


def look_at_data(console: Console) -> None:
    """Shows what a dataset holds, or the datasets that are known."""
    question = (
        "Which dataset? (a hub id, a file, a folder, llmlab:spam-mails; `name | subset`; nothing lists the"
        " known ones)"
    )
    name = _answer(questionary.text(question))
    if name is None:
        return
    if not name.strip():
        _llmlab("data", "catalog")
        return
    picked = pick_model("Whose tokens are counted?", "tokenizer", console, "bytes")
    if picked:
        _llmlab("data", "inspect", name, "--tokenizer", "byte" if picked == "bytes" else picked)


def compare_methods(console: Console) -> None:
    """Shows what each method needs and costs."""
    from llmlab.ui.methods import methods_table

    console.print(methods_table())


def saved(console: Console) -> None:
    """Lists runs and configs; each can be looked at and gone on with."""
    from llmlab.ui.configs import configs_table
    from llmlab.ui.runs import runs_table

    console.print(runs_table())
    files = _configs()
    if files:
        console.print(configs_table(files))
    recent = {f"{run.path} ({run.status})": run for run in all_runs(RUNS)[:RECENT]}
    picked = _pick("Which one?", [*map(str, files), *recent])
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
    ended, made = run.status == "done" or kind not in STAGES, run.result()
    actions = [
        *([] if ended else ["go on with it"]),
        *(["talk to it"] if made and kind != "reward" else []),
        *(["details"] if made else []),
        "verify checkpoints",
    ]
    action = _pick("What with it?", actions)
    if action == "go on with it":
        run_and_go_on(run.path, kind, console)
    elif action == "talk to it":
        _llmlab("chat", str(run.path))
    elif action == "details":
        _llmlab("info", str(run.path))
    elif action:
        _llmlab("runs", "verify", str(run.path))


def with_config(path: Path, console: Console) -> None:
    """Looks at a config, checks, runs, edits, copies, compares or deletes it."""
    from llmlab.config import load_config
    from llmlab.training.registry import STAGES
    from llmlab.ui.configs import compared
    from llmlab.ui.forms import fill_in, review

    config = _loadable(path)
    if config is None:
        console.print(_fault(path), style="yellow")
    else:
        console.print(review(config))
        if config.migrated:
            console.print(f"{config.migrated}; editing it saves it so", style="yellow")
    others = [
        str(other) for other in _configs() if other != path and _kind(other) == (config and config.kind)
    ]
    runs = ["check", "run"] if config and config.kind in STAGES else ["check"]
    actions = [*runs, "edit", "duplicate", *(["compare with another"] if others else [])] if config else []
    action = _pick("What with it?", [*actions, "delete"])
    if action == "check":
        _llmlab("check", str(path))
    elif action == "edit" and (changed := fill_in(config, console, origin=path.name)):
        _save(changed, path.stem, console)
    elif action == "duplicate":
        _save(config, _unused_name(path).stem, console)
    elif action == "compare with another" and (other := _pick("With which one?", others)):
        console.print(compared(config, load_config(other), path.name, Path(other).name))
    elif action == "run":
        run_and_go_on(path, config.kind, console)
    elif action == "delete" and _answer(questionary.confirm(f"Delete {path}?", default=False)):
        path.unlink()


def _answer(question: questionary.Question, *, back: bool = True) -> Any:
    """Returns the answer; None where the person went back or left."""
    try:
        return ask(question, back=back)
    except (Back, Cancelled):
        return None


def _pick(question: str, choices: list[str], *, back: str = BACK) -> str:
    """Returns the choice, "" for none."""
    if not choices:
        return ""
    picked = _answer(select(question, [*choices, back]))
    return "" if picked in (None, back) else picked


def _unused_name(path: Path) -> Path:
    number = 2
    while path.with_stem(f"{path.stem}-{number}").exists():
        number += 1
    return path.with_stem(f"{path.stem}-{number}")


def _save(config: KindConfig, name: str, console: Console) -> Path | None:
    """Saves a config where the person says; None where they do not, and then it is kept as a draft."""
    from llmlab.config import save_config
    from llmlab.ui import drafts

    target = CONFIGS / f"{name}.json"
    while text := _answer(questionary.text("Save as", default=str(target))):
        target = Path(text)
        if target.exists() and not _answer(
            questionary.confirm(f"{target} exists. Replace it?", default=True)
        ):
            target = _unused_name(target)
            continue
        try:
            path = save_config(config, target)
        except LabError as error:
            console.print(str(error), style="red")
            continue
        console.print(f"saved as {path}")
        return path
    kept = drafts.keep(
        type(config), {option: getattr(config, option) for option in type(config).model_fields}
    )
    console.print(f"kept as {kept}: the next form of this kind offers it")
    return None


def _configs() -> list[Path]:
    return sorted(CONFIGS.glob("*.json"))


def _kind(path: Path) -> str:
    """Returns the kind that a config file says it is, without validating it:
    the menu has to be there at once.
    """
    try:
        return str(read_object(path).get("kind"))
    except (OSError, ValueError):
        return ""


def _loadable(path: Path) -> KindConfig | None:
    from llmlab.config import load_config

    try:
        return load_config(path)
    except LabError:
        return None


def _fault(path: Path) -> str:
    from llmlab.config import load_config

    try:
        load_config(path)
    except LabError as error:
        return str(error)
    return ""


def _llmlab(*arguments: str) -> None:
    """Runs a command of the lab in a process of its own:
    what the menu starts is what the command line starts.
    """
    before = signal.signal(
        signal.SIGINT, lambda *_: None
    )  # Ctrl+C is for that process, which may have to save first
    try:
        subprocess.run([sys.executable, "-m", "llmlab", *arguments], check=False)
    finally:
        signal.signal(signal.SIGINT, before)
