"""The menu: everything the lab does, numbered; each entry is a form, a config and a run.

Forms and configs are imported by the entry that needs them, so that the menu is there at once.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import questionary
from rich.console import Console

from llmlab.errors import LabError
from llmlab.runs.folder import RUNS, all_runs

if TYPE_CHECKING:
    from llmlab.config import KindConfig, ModelConfig

CONFIGS = Path("model_configs")
BACK = "back"


def main_menu() -> None:
    """Shows the menu until the person leaves."""
    console = Console()
    entries: list[tuple[str, str, Callable[[Console], None] | None]] = [
        ("1", "Configure a model", configure_model),
        ("2", "Base training", lambda console: train("pretrain", console)),
        ("3", "Supervised fine-tuning (SFT)", lambda console: train("sft", console)),
        ("4", "Reward model", lambda console: train("reward", console)),
        ("5", "Preference training (DPO)", lambda console: train("dpo", console)),
        ("6", "Reward training in groups (GRPO)", lambda console: train("grpo", console)),
        ("7", "Reward training with a critic (PPO)", lambda console: train("ppo", console)),
        ("8", "Dual head (alignment at generation time)", lambda console: train("dual_head", console)),
        ("9", "Test a model (chat)", test_model),
        ("s", "Saved configs and runs", saved),
        ("d", "Look at data", look_at_data),
        ("m", "Which method? A comparison", compare_methods),
        ("0", "Quit", None),
    ]
    while True:
        console.print(f"\n[bold]llmlab[/bold]  [dim]{status()}[/dim]")
        choices = [questionary.Choice(title, value=index, shortcut_key=key) for index, (key, title, _) in enumerate(entries)]
        picked = questionary.select(
            "What next?", choices, use_shortcuts=True, use_arrow_keys=True, instruction="(number or letter, then Enter)"
        )
        index = picked.ask(kbi_msg="")
        action = entries[index][2] if index is not None else None
        if action is None:
            return
        try:
            action(console)
        except LabError as error:
            console.print(f"[red]{error}[/red]")


def status() -> str:
    """Returns one line: disk and the last run."""
    last = next(iter(all_runs()), None)
    free = f"{shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB disk free"
    return f"{free} · last run: {last.path} ({last.record.get('status')})" if last else f"{free} · no runs yet"


def configure_model(console: Console) -> None:
    """Asks for an architecture, from a preset on, and saves it."""
    from llmlab.config import MODEL_PRESETS, preset
    from llmlab.wizard.forms import fill_in

    shown = [questionary.Choice(f"{name}", name) for name in MODEL_PRESETS]
    name = questionary.select("Start from which shape?", shown).ask(kbi_msg="")
    if name:
        config = fill_in(preset(name), console)
        if config:
            _save(config, name, console)


def train(kind: str, console: Console) -> None:
    """Asks for a training config, saves it, and runs it if the person wants."""
    from llmlab.config import METHOD_PRESETS, ModelConfig, load_config
    from llmlab.config.loader import kind_class
    from llmlab.train.stages import STAGES
    from llmlab.wizard.forms import fill_in

    cls = kind_class(kind)
    start = cls()
    models = _checkpoints()
    if STAGES[kind].needs and not models:
        console.print(f"[yellow]there is no checkpoint yet: {STAGES[kind].needs} comes first (2 makes one)[/yellow]")
        return
    if STAGES[kind].needs:
        picked = questionary.select("Which checkpoint?", [*models, BACK]).ask(kbi_msg="")
        if picked in (None, BACK):
            return
        sizes = METHOD_PRESETS.get(kind, {})
        asked = questionary.select("Settings for a model of about which size?", ["the defaults", *sizes, BACK])
        size = asked.ask(kbi_msg="") if sizes else "the defaults"
        if size in (None, BACK):
            return
        start = cls(**{cls.STARTS_FROM: picked}, **sizes.get(size, {}))
    else:
        files = [str(path) for path in _configs() if isinstance(_loadable(path), ModelConfig)]
        if not files:
            console.print("[yellow]there is no model config yet: 1 makes one[/yellow]")
            return
        picked = questionary.select("Which model?", [*files, BACK]).ask(kbi_msg="")
        if picked in (None, BACK):
            return
        if not offer_tokenizer(load_config(picked), console):
            return
        start = cls(model=picked)
    config = fill_in(start, console)
    if config is None:
        return
    path = _save(config, kind, console)
    if path and questionary.confirm("Run it now?", default=True).ask(kbi_msg=""):
        _run(path)


def offer_tokenizer(shape: ModelConfig, console: Console) -> bool:
    """Trains the tokenizer that a model config names where its folder is missing; returns whether base training can go on."""
    name = shape.tokenizer_name
    if Path(name).exists() or not name.startswith((".", "/", "checkpoints/")):
        return True
    console.print(f"[yellow]this model reads with a tokenizer in {name}, which does not exist yet[/yellow]")
    question = f"Train one of {shape.vocab_size:,} tokens on (a file, a folder, a hub id, llmlab:moby-dick)"
    source = questionary.text(question, default="llmlab:moby-dick").ask(kbi_msg="")
    if not source:
        return False
    _llmlab("tokenizer", source, "--vocab-size", str(shape.vocab_size), "-o", name)
    return Path(name).exists()


def test_model(console: Console) -> None:
    """Opens a chat with a checkpoint."""
    models = _checkpoints()
    if not models:
        console.print("[yellow]there is no checkpoint yet: 2 makes one, or `llmlab chat` takes any model by name[/yellow]")
        return
    picked = questionary.select("Which one?", [*models, BACK]).ask(kbi_msg="")
    if picked not in (None, BACK):
        _llmlab("chat", picked)


def look_at_data(console: Console) -> None:
    """Shows what a dataset holds, or the datasets that are known."""
    question = "Which dataset? (a hub id, a file, a folder, llmlab:spam-mails; `name | subset`; nothing lists the known ones)"
    name = questionary.text(question).ask(kbi_msg="")
    if name is None:
        return
    if not name.strip():
        _llmlab("data", "catalog")
        return
    models = _checkpoints()
    arguments: list[str] = []
    if models:
        picked = questionary.select("Whose tokens are counted?", [*models, "bytes"]).ask(kbi_msg="")
        if picked is None:
            return
        arguments = ["--tokenizer", "byte" if picked == "bytes" else picked]
    _llmlab("data", "inspect", name, *arguments)


def compare_methods(console: Console) -> None:
    """Shows what each method needs and costs."""
    from llmlab.train.report import methods_table

    console.print(methods_table())


def saved(console: Console) -> None:
    """Lists runs and configs; a config can be looked at, edited, run, checked or deleted."""
    from llmlab.config import load_config, save_config
    from llmlab.plan.report import plan_table
    from llmlab.runs.report import runs_table
    from llmlab.train.stages import STAGES
    from llmlab.wizard.forms import fill_in, review

    console.print(runs_table())
    files = [str(path) for path in _configs()]
    picked = questionary.select("Which config?", [*files, BACK]).ask(kbi_msg="") if files else None
    if picked in (None, BACK):
        return
    config = load_config(picked)
    console.print(review(config))
    actions = ["check", "edit", *(["run"] if config.kind in STAGES else []), "delete", BACK]
    action = questionary.select("What with it?", actions).ask(kbi_msg="")
    if action == "check":
        console.print(plan_table(config))
    elif action == "edit" and (changed := fill_in(config, console)):
        console.print(f"saved as {save_config(changed, picked)}")
    elif action == "run":
        _run(Path(picked))
    elif action == "delete" and questionary.confirm(f"Delete {picked}?", default=False).ask(kbi_msg=""):
        Path(picked).unlink()


def _save(config: KindConfig, name: str, console: Console) -> Path | None:
    from llmlab.config import save_config

    target = questionary.text("Save as", default=str(CONFIGS / f"{name}.json")).ask(kbi_msg="")
    if not target:
        return None
    if Path(target).exists() and not questionary.confirm(f"{target} exists. Replace it?", default=True).ask(kbi_msg=""):
        return None
    path = save_config(config, target)
    console.print(f"saved as {path}")
    return path


def _configs() -> list[Path]:
    return sorted(CONFIGS.glob("*.json"))


def _loadable(path: Path) -> KindConfig | None:
    from llmlab.config import load_config

    try:
        return load_config(path)
    except LabError:
        return None


def _checkpoints() -> list[str]:
    return [str(run.path) for run in all_runs(RUNS) if run.result()]


def _run(path: Path) -> None:
    _llmlab("run", str(path))


def _llmlab(*arguments: str) -> None:
    """Runs a command of the lab in a process of its own: what the menu starts is what the command line starts."""
    before = signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl+C is for that process, which may have to save first
    try:
        subprocess.run([sys.executable, "-m", "llmlab", *arguments], check=False)
    finally:
        signal.signal(signal.SIGINT, before)
