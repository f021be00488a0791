"""The command for a person's own judgement of answers: assess."""

from __future__ import annotations

import getpass
import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from llmlab.cli import completing
from llmlab.cli.options import JsonOption, print_json, show
from llmlab.errors import LabError

if TYPE_CHECKING:
    from llmlab.evaluation.assessment import Mode, Session
    from llmlab.evaluation.folder import EvaluationFolder


def assess(
    evaluation: Annotated[
        str,
        typer.Argument(
            help="An evaluation by name or folder, or a file that `generate` wrote.",
            autocompletion=completing.evaluations,
        ),
    ],
    against: Annotated[
        str | None, typer.Option(metavar="FILE", help="A second file of answers, of another model.")
    ] = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Two models' answers to one prompt: which is better?")
    ] = False,
    assessor: Annotated[str, typer.Option(metavar="NAME", help="Who judges; left out, your login.")] = "",
    categories: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="Own categories, the good one first; default good,bad,unsure."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the order of answers; default 0.")] = None,
    results: Annotated[
        bool, typer.Option("--results", help="Show rates, wins and agreement instead.")
    ] = False,
    collect: Annotated[
        bool, typer.Option("--collect", help="Add what was judged to your preferences, to train on.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Judge answers one by one, blind: good, bad, unsure; or which of two is better."""
    from llmlab.evaluation.answers_import import evaluation_named

    folder = evaluation_named(evaluation, against)
    if not results and not collect:
        _judge(folder, "pairs" if pairs else "single", assessor, categories, seed, as_json)
        return
    from llmlab.evaluation.assessed import keep_result

    result = keep_result(folder)
    added = _collect(folder) if collect else 0
    if as_json:
        print_json({**result.to_json(), **({"collected": added} if collect else {})})
        return
    from llmlab.ui.assessed import assessed_view

    show(assessed_view(result))
    if collect:
        typer.echo(f"{added:,} judgements added to your preferences: `llmlab preferences` shows them")


def _judge(
    folder: EvaluationFolder,
    mode: Mode,
    assessor: str,
    categories: str | None,
    seed: int | None,
    as_json: bool,
) -> None:
    if mode == "pairs" and categories is not None:
        raise LabError("`--categories` are for single answers", remedy="leave out --pairs")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise LabError(
            "asks at the terminal, and this is none", remedy="`--results` shows what was judged so far"
        )
    from llmlab.evaluation.assessment import Judgements

    name = assessor or _login()
    judgements = Judgements.of(folder.path, name, mode)
    with judgements.journal.lock(0):
        judgements = Judgements.of(folder.path, name, mode)  # nobody else writes it from here on
        wanted = None if categories is None else [one.strip() for one in categories.split(",")]
        session = _session(folder, judgements, wanted, seed, name)
        from llmlab.ui.assess import AssessScreen

        AssessScreen(session, folder.name, name).run()
    if judgements.given:
        from llmlab.evaluation.assessed import keep_result
        from llmlab.screen import warn

        try:
            keep_result(folder)
        except LabError as error:  # the judgements are there; their figures are written the next time
            warn(f"the figures were not written: {error}")
    said = {"evaluation": folder.name, "assessor": name, "judged": session.done, "of": len(session.items)}
    if as_json:
        print_json(said)
        return
    typer.echo(f"{session.done} of {len(session.items)} judged as {name}, all saved")
    again = f"llmlab assess {folder.name}{' --pairs' if mode == 'pairs' else ''} --assessor {name}"
    if session.done < len(session.items):
        typer.echo(f"to go on: `{again}`")
    typer.echo(f"results:  `llmlab assess {folder.name} --results`")


def _session(
    folder: EvaluationFolder,
    judgements: object,
    categories: list[str] | None,
    seed: int | None,
    assessor: str,
) -> Session:
    """Returns an assessor's session: the items in their order, and what was judged."""
    from llmlab.evaluation.assessment import Judgements, Session, agreed_terms
    from llmlab.evaluation.judged_items import given_answers, in_drawn_order, pair_items, single_items

    assert isinstance(judgements, Judgements)
    answers = given_answers(folder)
    items = pair_items(answers)[0] if judgements.mode == "pairs" else single_items(answers)
    if not items:
        raise LabError("all answers of the two models are the same", where=str(folder.path))
    terms = agreed_terms(judgements, seed, categories)
    if judgements.terms is None:
        judgements.begin(terms)
    return Session(in_drawn_order(items, terms.seed, assessor), judgements, terms.categories)


def _login() -> str:
    try:
        return re.sub(r"[^\w.+-]+", "-", getpass.getuser()) or "me"
    except (KeyError, OSError):  # a user without a name
        return "me"


def _collect(folder: EvaluationFolder) -> int:
    """Adds what was judged to the preferences, each once; returns how many there are."""
    from llmlab.data.collection import Collection
    from llmlab.evaluation.collecting import marks_of

    marks = marks_of(folder)
    Collection().put(marks)
    return len(marks)
