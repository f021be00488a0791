"""The menu: everything the lab does, numbered; each entry is a form, a config and a run.

Forms and configs are imported by the entry that needs them, so that the menu is there at once.
"""

from __future__ import annotations

import importlib
import itertools
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from llmlab.errors import LabError
from llmlab.runs.folder import RUNS
from llmlab.runs.index import has_runs, run_rows
from llmlab.screen import LabConsole, styled
from llmlab.ui import commands
from llmlab.ui.config_files import kind_of, saved_configs
from llmlab.ui.prompts import Heading, Option, answer, select, text

GUIDED = "Guided: what do you have, what do you want?"
CONFIGURE = "Configure a model"
CHAT = "Test a model: chat, judge its answers, train on that, compare"
BRIEFLY = "What next? (Enter: the menu; or the number or letter of an entry)"
KEYS = "123456789abceghij"  # of the model, the methods and the chat; letters of other entries left out
AMOUNT = r"[\d.]+\s*[gmt]?(i?b)?"  # of memory; whatever else is typed is a name


def _later(module: str, name: str) -> Callable[..., Any]:
    """Returns a function of `llmlab.ui` whose module is imported when it is called."""

    def call(*arguments: Any) -> Any:
        return getattr(importlib.import_module(f"llmlab.ui.{module}"), name)(*arguments)

    return call


evaluate_models = _later("evaluate", "evaluate_models")
guided = _later("guide", "guided")
pick_model = _later("pickers", "pick_model")
export_or_publish = _later("publish", "export_or_publish")
saved = _later("saved", "saved")
configure_model = _later("train", "configure_model")
from_recipe_list = _later("train", "from_recipe_list")
train = _later("train", "train")


@dataclass(frozen=True)
class Entry:
    """A line of the menu: its key, what it says, and what it does (None leaves)."""

    key: str
    title: str
    action: Callable[[Console], object] | None


def entries() -> list[Entry | str]:
    """Returns the menu: titles of sections but the first one's, and what can be chosen. The methods, their
    order and sections are those of the registry.
    """
    from llmlab.training.registry import STAGES

    keys = iter(KEYS)
    lines: list[Entry | str] = [
        Entry("w", GUIDED, guided),
        Entry(next(keys), CONFIGURE, configure_model),
    ]
    for section, stages in itertools.groupby(STAGES.values(), key=lambda stage: stage.section):
        lines.append(section)
        lines += [Entry(next(keys), stage.title, partial(train, stage.kind)) for stage in stages]
    nothing = "" if has_runs(RUNS) or saved_configs() else " (nothing is saved yet)"
    return [
        *lines,
        "tools",
        Entry(next(keys), CHAT, test_model),
        Entry("t", "Did it get better? Evaluate a model", evaluate_models),
        Entry("x", "Export, publish or serve a model", export_or_publish),
        Entry("f", "What fits? A model on a GPU: memory, speed, lengths", what_fits),
        Entry("r", "Recipes: published runs, ready for their hardware", from_recipe_list),
        Entry("s", f"Saved configs and runs{nothing}", saved),
        Entry("d", "Look at data", look_at_data),
        Entry("v", "Verify this machine: is it right, how fast, how much memory?", verify_machine),
        Entry("m", "Which method? A comparison", compare_methods),
        Entry("0", "Quit", None),
    ]


def main_menu() -> None:
    """Shows the menu until the person leaves.

    What an entry has shown stays on the screen: one line below it asks what is next; Enter shows the menu.
    """
    console, shown = MenuConsole(), False
    while True:
        lines = entries()
        picked = ask_briefly(lines) if shown else None
        picked = picked or ask_by_list(lines, console)
        if picked is None or picked.action is None:
            return
        console.printed, started = 0, commands.count()
        try:
            picked.action(console)
        except LabError as error:
            console.print(str(error), style="red")
        shown = bool(console.printed) or commands.count() != started


class MenuConsole(LabConsole):
    """Counts what is printed.

    Attributes:
        printed: how often.
    """

    printed = 0

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Prints, and counts it."""
        self.printed += 1
        super().print(*args, **kwargs)


def ask_by_list(lines: list[Entry | str], console: Console) -> Entry | None:
    """Shows the menu and returns the entry that is chosen; None where the person leaves."""
    console.print(styled("\n[bold]llmlab[/bold]  [dim]{}[/dim]", status(console.width - 8)))
    options = [
        Heading(f"── {entry}") if isinstance(entry, str) else Option(entry.title, entry, entry.key)
        for entry in lines
    ]
    title = natural_next()
    default = next((entry for entry in lines if isinstance(entry, Entry) and entry.title == title), None)
    instruction = "(number or letter, then Enter)"
    question = select("What next?", options, default=default, use_shortcuts=True, instruction=instruction)
    return answer(question, back=False)


def ask_briefly(lines: list[Entry | str]) -> Entry | None:
    """Asks for an entry by its key in one line; None for the whole menu."""
    keys = {entry.key: entry for entry in lines if isinstance(entry, Entry)}

    def known(typed: str) -> bool | str:
        return typed.strip() in ("", *keys) or "no entry has this key; Enter shows the menu"

    return keys.get((answer(text(BRIEFLY, validate=known), back=False) or "").strip())


def natural_next() -> str:
    """Returns the title of the entry that a person will want next: what the newest run makes possible."""
    from llmlab.training.registry import STAGES

    last = next((row for row in run_rows(RUNS) if row.result and row.kind in STAGES), None)
    if last is not None:
        following = STAGES[last.kind].then
        return STAGES[following[0]].title if following else CHAT
    shapes = any(kind_of(path) == "model" for path in saved_configs())
    return STAGES["pretrain"].title if shapes else GUIDED


def status(width: int = 72) -> str:
    """Returns one line: device, its free memory, disk and the last run, whose name is cut to the width."""
    from llmlab.hardware import available_memory, gpu_memory

    last = next(iter(run_rows(RUNS)), None)
    on_gpu = gpu_memory()
    device = "NVIDIA GPU" if on_gpu else f"{os.cpu_count()} cores"
    memory = f"{(on_gpu or available_memory()) / 1e9:.0f} GB {'of its ' if on_gpu else ''}memory free"
    free = f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB disk free"
    line = f"{device} · {memory} · {free} · "
    if last is None:
        return f"{line}no runs yet"
    room = width - len(line) - len(f"last:  ({last.status})")
    name = os.path.relpath(last.path, RUNS)
    name = name if len(name) <= room else f"…{name[-max(room - 1, 8) :]}"
    return f"{line}last: {name} ({last.status})"


def test_model(console: Console) -> None:
    """Opens the path from a chat to judgements, to training on them, to a blind comparison."""
    from llmlab.ui.judging import chat_and_judge

    chat_and_judge(console)


def what_fits(console: Console) -> None:
    """Shows what can be trained of a model on a device, and saves the most capable run of it as a config."""
    known = "a run, a folder, a GGUF file or a hub id, downloaded or not"
    name = answer(text(f"Which model? ({known})", "Qwen/Qwen2.5-1.5B"))
    device = answer(text("On which GPU? (a name, 24GB; nothing for this machine)")) if name else None
    if name is None or device is None:
        return
    named = ["--memory" if re.fullmatch(AMOUNT, device.strip(), re.I) else "--gpu", device.strip()]
    question = ["fit", name.strip(), *(named if device.strip() else [])]
    if commands.llmlab(*question):
        return
    file = answer(text("Save the most capable run that fits as a config? (a name, or nothing)"))
    if file and file.strip():
        commands.llmlab(*question, "--save", file.strip())


def look_at_data(console: Console) -> None:
    """Shows what a dataset holds, or the datasets that are known."""
    where = "a hub id, a file, a folder, llmlab:spam-mails; `name | subset`; nothing lists the known ones"
    name = answer(text(f"Which dataset? ({where})"))
    if name is None:
        return
    if not name.strip():
        commands.llmlab("data", "catalog")
        return
    picked = pick_model("Whose tokens are counted?", "tokenizer", console, "bytes")
    if picked:
        commands.llmlab("data", "inspect", name, "--tokenizer", "byte" if picked == "bytes" else picked)


def verify_machine(console: Console) -> None:
    """Starts the selftest, the whole one or a quick one."""
    title = "Verify what? (let nothing else run meanwhile)"
    options: list[Option[list[str]] | Heading] = [
        Option("Everything, in about 3 minutes", []),
        Option("The smallest sizes, in under a minute", ["--quick"]),
        Option("Which attention kernel is the fastest", ["--only", "attention"]),
        Option("What was found last time", ["--last", "--markdown"]),
    ]
    picked = answer(select(title, options))
    if picked is not None:
        commands.llmlab("selftest", *picked)


def compare_methods(console: Console) -> None:
    """Shows what each method needs and costs."""
    from llmlab.ui.methods import methods_table

    console.print(methods_table())
