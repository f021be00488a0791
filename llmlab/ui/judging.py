"""One path in the menu: talk to a model and judge its answers, train on what was judged, compare blind."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from rich.console import Console

from llmlab.data.collection import SOURCE, Collection, Mark, exported
from llmlab.errors import LabError
from llmlab.runs.folder import RUNS, RunFolder
from llmlab.runs.index import RunRow, run_rows
from llmlab.ui import commands
from llmlab.ui.pickers import pick, pick_model
from llmlab.ui.prompts import Option, answer, select

FEW = 20  # marks below which more of them are the natural next step
MOST = 30  # marks at hand
TALK = "talk to a model, and judge its answers"
COMPARE = "compare two models blind; each vote is a pair"
LEARNS_FROM = {"dpo": "pairs", "sft": "answers", "reward": "pairs"}
METHODS = {
    "dpo": "prefer the better answers (DPO)",
    "sft": "answer like the good and rewritten ones (SFT)",
    "reward": "score answers (a reward model)",
}


HELD_OUT = 0.1
# what the form offers: the defaults of the methods are for thousands of rows
FOR_FEW_ROWS: dict[str, dict[str, Any]] = {
    "dpo": {"epochs": 10, "batch_size": 16, "mini_batch_size": 4},
    "sft": {"epochs": 5, "batch_size": 4, "gradient_accumulation_steps": 2},
    "reward": {"epochs": 3, "batch_size": 4, "gradient_accumulation_steps": 2},
}


def chat_and_judge(console: Console) -> None:
    """Offers the steps of the path, what comes next first pointed at."""
    marks = Collection().marks()
    counts = {what: len(exported(marks, what)) for what in ("pairs", "answers")}
    trained = next((row for row in run_rows(RUNS) if row.result and learned_from_marks(row)), None)
    steps: dict[str, Callable[[], object]] = {TALK: lambda: talk(console)}
    steps[COMPARE] = lambda: compare(console)
    if marks:
        steps[f"look at the {len(marks):,} judgements, change, export them"] = lambda: look(console)
    ready: list[str] = []
    for kind, words in METHODS.items():
        if count := counts[LEARNS_FROM[kind]]:
            title = f"train on {count:,} {LEARNS_FROM[kind]}: {words}"
            steps[title] = lambda kind=kind: learn(kind, console)  # type: ignore[misc]
            ready += [title] if count >= FEW else []
    against = ""
    if trained:
        against = f"compare {trained.path} blind with what it came from"
        steps[against] = lambda: compare(console, trained)
    default = TALK
    if ready:
        default = against if trained and _newer(trained, marks) else ready[0]
    picked = answer(select("What next?", [Option(words, words) for words in steps], default=default))
    if picked:
        steps[picked]()


def learned_from_marks(row: RunRow) -> bool:
    """Returns whether a run learned from what was judged here, as its record says."""
    if row.kind not in ("dpo", "sft"):
        return False
    sources = (RunFolder(row.path).record.get("config") or {}).get("datasets") or []
    return any(isinstance(source, dict) and source.get("name") == SOURCE for source in sources)


def _newer(run: RunRow, marks: list[Mark]) -> bool:
    try:
        return datetime.fromisoformat(run.started) > max(datetime.fromisoformat(one.when) for one in marks)
    except (TypeError, ValueError):
        return True


def talk(console: Console) -> None:
    """Opens a chat with a model."""
    if picked := pick_model("Talk to which model?", "chat", console):
        commands.llmlab("chat", picked)


def compare(console: Console, run: RunRow | None = None) -> None:
    """Opens a chat with two models that are not named: a run and its parent, or two that are picked."""
    first = str(run.path) if run else pick_model("The one model?", "chat", console)
    second = run.parent if run else pick_model("The other model?", "chat", console) if first else ""
    if first and second:
        commands.llmlab("chat", first, "--against", second, "--blind")


def learn(kind: str, console: Console) -> None:
    """Fills in the config of a method that learns from what was judged, and runs it."""
    from llmlab.ui.train import train

    train(kind, console, datasets=[SOURCE], eval_fraction=HELD_OUT, **FOR_FEW_ROWS[kind])


def look(console: Console) -> None:
    """Shows what was judged; a mark can be looked at, changed and deleted, all be exported."""
    from llmlab.ui.preferences import line, overview

    console.print(overview(Collection().marks()))
    export = "write them as a file"
    while marks := Collection().marks():
        newest = {line(mark): mark for mark in reversed(marks[-MOST:])}
        picked = pick("Which one?", [export, *newest])
        if not picked:
            return
        if picked == export:
            write(console)
        else:
            one(newest[picked], console)


def one(mark: Mark, console: Console) -> None:
    """Shows a mark, and changes or deletes it."""
    from llmlab.ui.preferences import ask_for_change, mark_view

    console.print(mark_view(mark))
    match pick("What do you want to do?", ["change it", "delete it"]):
        case "change it":
            try:
                changed = ask_for_change(mark)
            except LabError as error:
                console.print(str(error), style="red")
                return
            if changed:
                Collection().change(changed)
        case "delete it":
            Collection().delete([mark.id])


def write(console: Console) -> None:
    """Asks what to export and where, and does it."""
    from llmlab.ui.prompts import text

    kinds = {
        "pairs: a better and a worse answer (DPO, reward models)": "pairs",
        "answers that are good or rewritten (SFT)": "answers",
        "labels, good or bad (KTO)": "labels",
    }
    what = kinds.get(pick("As what?", list(kinds)), "")
    if what and (file := answer(text("Save as", f"preferences/{what}.jsonl"))):
        commands.llmlab("preferences", "export", "--as", what, "-o", file)
