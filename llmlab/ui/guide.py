"""The guided start: what a person has and wants becomes a config that fits the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from llmlab.errors import LabError
from llmlab.runs.folder import RUNS
from llmlab.runs.index import run_rows
from llmlab.ui import commands
from llmlab.ui.completion import Names, dataset_names
from llmlab.ui.config_files import save_as
from llmlab.ui.pickers import pick_model
from llmlab.ui.prompts import Option, answer, select, text
from llmlab.ui.train import from_recipe_list, offer_tokenizer, save_and_run
from llmlab.ui.units import long_time, short_count

if TYPE_CHECKING:
    from llmlab.planning.guide import Have, NewModel, Proposal
    from llmlab.planning.machines import Machine

HAVE: dict[str, str] = {
    "text": "text: books, articles, code, mails",
    "answers": "questions and answers, or conversations",
    "pairs": "pairs: a better and a worse answer to the same prompt",
    "prompts": "prompts whose answers can be checked: numbers, words, a rule",
}
QUICKSTART, RECIPES, METHODS = "quickstart", "recipes", "methods"
EXAMPLES = {"text": "llmlab:moby-dick", "answers": "llmlab:spam-mails"}
CARDS = (8, 12, 16, 24, 48, 80)  # GB
HERE, NAMED = "here", "named"


def guided(console: Console) -> None:
    """Asks what there is and what is wanted, proposes a run, and lets it be changed, saved and run."""
    have = _have()
    if have == QUICKSTART:
        commands.llmlab("quickstart")
    elif have == RECIPES:
        from_recipe_list(console)
    elif have == METHODS:
        commands.llmlab("methods")
    elif have:
        _guide(have, console)


def _have() -> str | None:
    first = [Option("nothing yet: show me the whole way, on what ships (the quickstart)", QUICKSTART)]
    first = first if not run_rows(RUNS) else []
    lines = [*first, *(Option(words, name) for name, words in HAVE.items())]
    lines += [
        Option("only an idea: published recipes, ready for their hardware", RECIPES),
        Option("only an idea: which method does what?", METHODS),
    ]
    return answer(select("What do you have?", lines))


def _guide(have: str, console: Console) -> None:
    from llmlab.planning.guide import METHOD

    kind = METHOD[_as_have(have)]
    source = _source(have, kind, console)
    if source is None:
        return
    new = have == "text" and _new_or_not()
    if new is None:
        return
    model = "" if new else pick_model("Which model is to learn from it?", kind, console)
    if not new and not model:
        return
    machine_and_count = _machine(console)
    if machine_and_count is None:
        return
    machine, devices = machine_and_count
    try:
        if new:
            _new_model(machine, devices, source, console)
        else:
            _existing(kind, model, machine, devices, source, console)
    except LabError as error:
        console.print(str(error), style="red", markup=False, highlight=False)


def _as_have(name: str) -> Have:
    from typing import cast

    return cast("Have", name)


def _source(have: str, kind: str, console: Console) -> str | None:
    """Asks for the data until it can be read; None where the person goes back."""
    from llmlab.config.base import validate
    from llmlab.config.sources import SourceConfig
    from llmlab.data.size import source_size
    from llmlab.training.registry import STAGES

    line: str | None = EXAMPLES.get(have, "")
    question = "Where is it? (a file, a folder, a hub id; Tab completes)"
    while (line := answer(text(question, line or "", completer=Names(dataset_names)))) is not None:
        if not line.strip():
            console.print("a file, a folder, or the id of a dataset", style="yellow")
            continue
        try:
            source_size(validate(SourceConfig, line.strip()), STAGES[kind].shapes, None)
        except LabError as error:
            console.print(str(error), style="red", markup=False, highlight=False)
            continue
        return line.strip()
    return None


def _new_or_not() -> bool | None:
    return answer(
        select(
            "What do you want?",
            [
                Option("a model of my own, trained on it from nothing", True),
                Option("an existing model that has read it, too", False),
            ],
        )
    )


def _machine(console: Console) -> tuple[Machine, int] | None:
    """Asks what it will run on, and how many of them."""
    from llmlab.planning.machines import machine_with, this_machine

    here = this_machine()
    lines = [Option(f"this machine: {here.name}, {here.free / 1e9:.0f} GB free", HERE)]
    lines += [Option(f"a GPU with {size} GB", f"{size}GB") for size in CARDS]
    lines.append(Option("a GPU by its name", NAMED))
    picked = answer(select("What will it run on?", lines))
    if picked is None:
        return None
    if picked == HERE:
        return here, 1
    machine = None
    while machine is None:
        name = picked if picked != NAMED else answer(text("Which GPU? (RTX 4090, H100, ...)"))
        if name is None:
            return None
        try:
            machine = machine_with("" if picked != NAMED else name, picked if picked != NAMED else "")
        except LabError as error:
            console.print(str(error), style="red", markup=False, highlight=False)
    count = answer(text("How many of them?", "1", validate=_is_count))
    return None if count is None else (machine, int(count))


def _is_count(typed: str) -> bool | str:
    return (typed.strip().isdigit() and 1 <= int(typed) <= 1024) or "a number from 1 to 1024"


def _existing(kind: str, model: str, machine: Machine, devices: int, source: str, console: Console) -> None:
    from llmlab.planning.fit import USUAL, Question
    from llmlab.planning.guide import propose
    from llmlab.training.registry import STAGES

    question = Question(model, machine, devices, (kind,), (USUAL,), sources=(source,))
    proposal = propose(question, STAGES[kind].shapes)
    _show(proposal, console)
    if proposal.config is None:
        console.print("nothing fits: a smaller model, or a larger device", style="yellow")
        return
    save_and_run(proposal.config, f"guided-{kind}", console, here=machine.here)


def _new_model(machine: Machine, devices: int, source: str, console: Console) -> None:
    from llmlab.config import preset
    from llmlab.config.loader import apply_changes
    from llmlab.planning.guide import new_models, recommended
    from llmlab.training.registry import STAGES

    models = list(new_models(machine, devices, source, STAGES["pretrain"].shapes))
    best = recommended(models)
    if best is None:
        console.print("no preset fits: configure a smaller model", style="yellow")
        return
    lines = [Option(_shape_line(model, model is best), model) for model in models]
    chosen = answer(select("Which shape?", lines, default=best))
    if chosen is None:
        return
    _show(chosen.proposal, console)
    shape = save_as(preset(chosen.name), f"guided-{chosen.name}", console)
    if shape is None or not offer_tokenizer(shape, console, source) or chosen.proposal.config is None:
        return
    config = apply_changes(chosen.proposal.config, {"model": str(shape)})
    save_and_run(config, "guided-pretrain", console, here=machine.here)


def _shape_line(model: NewModel, best: bool) -> str:
    time = model.proposal.time
    parts = [f"{model.name:14} {short_count(model.parameters):>5} parameters"]
    parts += [long_time(time.seconds)] if time and time.seconds else []
    parts += ["proposed"] if best else []
    return " · ".join(
        [*parts, f"reads {short_count(model.tokens)}{'' if model.enough else ', could use more'}"]
    )


def _show(proposal: Proposal, console: Console) -> None:
    """Shows what was looked at, what is proposed, and what it takes."""
    from llmlab.planning.fit import model_shape
    from llmlab.planning.plan import disk_plan
    from llmlab.ui.fit import fit_table, legend
    from llmlab.ui.plan import disk_in_words, time_rows

    console.print(fit_table(proposal.question, model_shape(proposal.question.model), list(proposal.rows)))
    amounts = {proposal.question.methods[0]: proposal.data} if proposal.data else {}
    for line in legend(proposal.question, list(proposal.rows), amounts):
        console.print(Text(line, style="dim"))
    if proposal.config is None:
        return
    for name, words in time_rows(proposal.time) if proposal.time else ():
        console.print(Text(f"{name}: {words}"))
    if disk := disk_plan(proposal.config):
        console.print(Text(f"disk: {disk_in_words(disk)}"))
