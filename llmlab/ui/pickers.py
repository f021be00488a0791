"""What the menu lets a person pick: one of a few words, a model, what answers are rewarded for."""

from __future__ import annotations

from typing import TypeVar

from rich.console import Console

from llmlab.errors import LabError
from llmlab.models.hub import HubAnswer
from llmlab.models.resolve import check_model, runs_for
from llmlab.ui.inputs import WORDS
from llmlab.ui.prompts import Answer, Option, Question, ask, plain, select, text

T = TypeVar("T")
BACK = "back"
ANOTHER = "another model: a hub id, a folder, a GGUF file"
IN_THE_FORM = "something else: the form asks"


def answer(question: Question[T], *, back: bool = True) -> T | None:
    """Returns the answer; None where the person went back or left."""
    reply = ask(question, back=back)
    return reply.value if isinstance(reply, Answer) else None


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
    none.

    Args:
        question: its words.
        use: what the model is wanted for.
        console: where it is said why a model does not fit.
        *more: further choices.
    """
    runs = [Option(f"{run.path}  ({run.record['config']['kind']})", str(run.path)) for run in runs_for(use)]
    while True:
        picked = answer(select(question, [*runs, *plain([*more, ANOTHER, BACK])]))
        if picked != ANOTHER:
            return "" if picked in (None, BACK) else picked or ""
        if typed := type_model(use, console):
            return typed


def type_model(use: str, console: Console) -> str:
    """Asks for the name of a model that is brought until it fits a use;
    returns "" where the person goes back.
    """
    name = ""
    while name := answer(text("Which one? (a hub id, a folder, a GGUF file)", name)) or "":
        name = name.strip().strip("'\"").strip()
        try:
            where = check_model(name, use)
        except LabError as error:
            console.print(str(error), style="red", markup=False, highlight=False)
            continue
        if isinstance(where, HubAnswer) and not where.is_sure:
            console.print(f"{name}: {WORDS[where]}", style="yellow", markup=False, highlight=False)
        return name
    return ""


def pick_reward(console: Console) -> str:
    """Returns what answers are rewarded for: a reward model, a rule, or `IN_THE_FORM`; "" for none."""
    from llmlab.config.rewards import FUNCTIONS

    # "format" needs an expression: in the form
    rules = {f"{name}  (a rule)": name for name in FUNCTIONS if name != "format"}
    picked = pick_model("Answers are rewarded for what?", "score", console, *rules, IN_THE_FORM)
    return rules.get(picked, picked)
