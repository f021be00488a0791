"""What the menu lets a person pick: one of a few words, a model, what answers are rewarded for."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from rich.console import Console

from llmlab.errors import LabError
from llmlab.models.hub import HubAnswer
from llmlab.models.resolve import check_model, runs_for
from llmlab.runs.folder import MODELS
from llmlab.runs.index import RunRow
from llmlab.ui.completion import Names, model_names
from llmlab.ui.inputs import WORDS
from llmlab.ui.prompts import Heading, Option, answer, plain, select, text
from llmlab.ui.remembered import remember, remembered
from llmlab.ui.runs import figure
from llmlab.ui.units import short_count

BACK = "back"
ANOTHER = "another one: a hub id, a folder, a GGUF file"
IN_THE_FORM = "something else: the form asks"
SEARCHED = 20  # lines from which on a list can be searched by typing


def pick(question: str, choices: list[str], *, back: str = BACK) -> str:
    """Returns the choice, "" for none.

    Args:
        question: its words.
        choices: that there are; without any, nothing is asked.
        back: the words of the last line, which stands for none.
    """
    if not choices:
        return ""
    picked = answer(select(question, plain([*choices, back])))
    return "" if picked in (None, back) else picked or ""


def pick_model(question: str, use: str, console: Console, *more: str) -> str:
    """Returns the name of a model that fits a use (a key of `FITS`), a run or one that is brought; "" for
    none. Runs stand below what they came from; what was brought before is offered again.

    Args:
        question: its words.
        use: what the model is wanted for.
        console: where it is said why a model does not fit.
        *more: further choices.
    """
    lines: list[Option[str] | Heading] = list(by_lineage(runs_for(use)))
    if brought := remembered(use):
        lines += [Heading("── used before"), *plain(brought)]
    if lines:
        lines.append(Heading("──"))
    lines += plain([*more, ANOTHER, BACK])
    how = {"use_search_filter": True, "use_jk_keys": False} if len(lines) > SEARCHED else {}
    words = f"{question} (type to search)" if how else question
    while True:
        picked = answer(select(words, lines, **how)) or BACK
        if picked == ANOTHER:
            picked = type_model(use, console)
        elif picked in brought and not (picked := fitting(picked, use, console)):
            continue
        if picked:
            return "" if picked == BACK else picked


def by_lineage(rows: Iterable[RunRow]) -> list[Option[str] | Heading]:
    """Returns runs as lines to choose from, those of one origin together below its name."""
    families: dict[str, list[RunRow]] = {}
    rows = list(rows)
    parents = {str(row.path): _run_of(row.parent) for row in rows}
    for row in rows:
        origin, seen = str(row.path), set[str]()
        while (parent := parents.get(origin) or "") and origin not in seen:
            seen.add(origin)
            origin = parent
        families.setdefault(origin, []).append(row)
    lines: list[Option[str] | Heading] = []
    for origin, members in families.items():
        if len(families) > 1 or origin != str(members[-1].path):
            lines.append(Heading(f"── from {origin}"))
        lines += [Option(run_line(row), str(row.path)) for row in members]
    return lines


def run_line(row: RunRow) -> str:
    """Returns what a list says of a run: its name, method, size, date and held-out figure."""
    about = [row.kind]
    if row.parameters:
        about.append(short_count(row.parameters))
    with suppress(ValueError):
        about.append(f"{datetime.fromisoformat(row.started).astimezone():%d %b %H:%M}")
    about += [figure(row)] if figure(row) else []
    return f"{row.path}  {' · '.join(about)}"


def _run_of(parent: str) -> str:
    """Returns the run that made a model, as a path from here; what is brought stays as it is."""
    path = Path(parent)
    if path.name not in MODELS and not path.name.startswith("checkpoint-"):
        return parent
    folder = path.parent
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)


def fitting(name: str, use: str, console: Console) -> str:
    """Returns the name of a model that is brought, "" where it does not fit a use, which is said."""
    try:
        where = check_model(name, use)
    except LabError as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return ""
    if isinstance(where, HubAnswer) and not where.is_sure:
        console.print(f"{name}: {WORDS[where]}", style="yellow", markup=False, highlight=False)
    remember(use, name)
    return name


def type_model(use: str, console: Console) -> str:
    """Asks for the name of a model that is brought until it fits a use;
    returns "" where the person goes back.
    """
    name, question = "", "Its hub id, folder or GGUF file (Tab completes):"
    while name := answer(text(question, name, completer=Names(model_names))) or "":
        name = name.strip().strip("'\"").strip()
        if fits := fitting(name, use, console):
            return fits
    return ""


def pick_reward(console: Console) -> str:
    """Returns what answers are rewarded for: a reward model, a rule, or `IN_THE_FORM`; "" for none."""
    from llmlab.config.rewards import FUNCTIONS

    # "format" needs an expression: in the form
    rules = {f"{name}  (a rule)": name for name in FUNCTIONS if name != "format"}
    picked = pick_model("Answers are rewarded for what?", "score", console, *rules, IN_THE_FORM)
    return rules.get(picked, picked)
