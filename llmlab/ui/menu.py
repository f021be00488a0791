"""The menu: everything the lab does, numbered; each entry is a form, a config and a run.

Forms and configs are imported by the entry that needs them, so that the menu is there at once.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from llmlab.errors import LabError
from llmlab.runs.folder import RUNS, all_runs
from llmlab.screen import LabConsole, styled
from llmlab.ui import commands
from llmlab.ui.config_files import saved_configs
from llmlab.ui.pickers import answer, pick, pick_model
from llmlab.ui.prompts import Heading, Option, select, text
from llmlab.ui.publish import export_or_publish, serve_model
from llmlab.ui.saved import saved
from llmlab.ui.train import configure_model, from_recipe, train

KEYS = "123456789abceghij"  # of the model, the methods and the chat; letters of other entries left out

AMOUNT = r"[\d.]+\s*[gmt]?(i?b)?"  # of memory; whatever else is typed is a name


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
    nothing = "" if all_runs(RUNS) or saved_configs() else " (nothing is saved yet)"
    return [
        *lines,
        "tools",
        Entry(next(keys), "Test a model (chat)", test_model),
        Entry("x", "Export or publish a model", export_or_publish),
        Entry("v", "Serve a model", serve_model),
        Entry("f", "What fits? A model on a GPU: memory, speed, lengths", what_fits),
        Entry("r", "Recipes: published runs, ready for their hardware", recipes),
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
        options = [
            Heading(f"── {entry}") if isinstance(entry, str) else Option(entry.title, entry, entry.key)
            for entry in entries()
        ]
        instruction = "(number or letter, then Enter)"
        question = select("What next?", options, use_shortcuts=True, instruction=instruction)
        picked = answer(question, back=False)
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


def test_model(console: Console) -> None:
    """Opens a chat with a model."""
    if picked := pick_model("Talk to which model?", "chat", console):
        commands.llmlab("chat", picked)


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


def recipes(console: Console) -> None:
    """Shows the recipes; one of them becomes a form, a config and a run."""
    from llmlab.config.recipes import RECIPES
    from llmlab.ui.recipes import recipes_table

    console.print(recipes_table())
    if name := pick("Which one?", list(RECIPES)):
        from_recipe(name, console)


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


def compare_methods(console: Console) -> None:
    """Shows what each method needs and costs."""
    from llmlab.ui.methods import methods_table

    console.print(methods_table())
