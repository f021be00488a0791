"""A person judges answers: nothing is lost, nobody sees which model it was, and the figures are right."""

import itertools
import json
import random
import signal

import numpy as np
import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from llmlab.cli import command_line
from llmlab.config.evaluation import EvaluationConfig
from llmlab.data.collection import Collection
from llmlab.errors import LabError
from llmlab.evaluation.agreement import alpha_of_items, overall, pairwise
from llmlab.evaluation.answers_import import evaluation_named
from llmlab.evaluation.assessed import assessed, keep_result
from llmlab.evaluation.assessment import Judgements, Session, Terms, agreed_terms, keys_of
from llmlab.evaluation.judged_items import given_answers, in_drawn_order, pair_items, single_items
from llmlab.evaluation.run import evaluate
from llmlab.ui.assess import RESERVED, AssessScreen
from tests.conftest import write_rows
from tests.end_to_end.terminal import ENTER, Terminal

COUNT = 25


def rows(says):
    return [
        {"id": n, "prompt": f"Add {n} and 4.", "answer": str(n + 4), "completion": says(n)}
        for n in range(COUNT)
    ]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An evaluation of two models: one says sentences, one bare numbers; two answers are the same."""
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "long.jsonl", rows(lambda n: f"The answer is {n + 4}."))
    write_rows(tmp_path / "short.jsonl", rows(lambda n: "The answer is 5." if n == 1 else str(n + 4)))
    return evaluation_named("long.jsonl", "short.jsonl")


def session(folder, assessor="anna", mode="single", seed=0, categories=None):
    judgements = Judgements.of(folder.path, assessor, mode)
    terms = agreed_terms(judgements, None if judgements.terms else seed, categories)
    if judgements.terms is None:
        judgements.begin(terms)
    answers = given_answers(folder)
    items = pair_items(answers)[0] if mode == "pairs" else single_items(answers)
    return Session(in_drawn_order(items, terms.seed, assessor), judgements, terms.categories)


def models(item):
    return {one.model for one in item.answers}


def test_each_assessor_has_an_order_of_their_own_which_stays(folder):
    first, again, other = session(folder), session(folder), session(folder, "bob")
    assert first.items == again.items and {*first.items} == {*other.items} and first.items != other.items
    assert len(first.items) == 2 * COUNT - 1, "what both answered alike is judged once"
    halves = first.items[:COUNT], first.items[COUNT:]
    assert all({name for item in half for name in models(item)} == {"long", "short"} for half in halves)
    pairs = session(folder, mode="pairs")
    assert len(pairs.items) == COUNT - 1
    assert {item.answers[0].model for item in pairs.items} == {"long", "short"}, "either comes first"


def test_a_judgement_is_taken_back_put_off_and_gone_on_with(folder):
    one = session(folder)
    first, second, third = one.items[:3]
    one.judge("good")
    one.later()
    assert one.item == third
    one.write_note("unclear")
    one.judge("unsure")
    assert one.undo() == "unsure" and one.item == third and one.note == "unclear"
    one.judge("bad")
    again = session(folder)
    assert (again.done, again.item) == (2, second)
    assert {item: each.verdict for item, each in again.judgements.given.items()} == {
        first.key: "good",
        third.key: "bad",
    }
    assert again.undo() == "bad" and again.undo() == "good" and again.undo() == ""
    assert session(folder).done == 0


def test_whatever_ends_the_writing_no_judgement_before_is_lost(folder):
    one = session(folder)
    for verdict in ("good", "bad", "unsure"):
        one.judge(verdict)
    path = one.judgements.path
    whole = path.read_bytes()
    for end in range(whole.rindex(b"\n", 0, -1) + 1, len(whole) - 1):
        path.write_bytes(whole[:end])
        again = session(folder)
        assert (again.done, again.item) == (2, one.items[2])
    again.judge("good")
    assert session(folder).done == 3


@pytest.mark.parametrize(
    "categories, keys",
    [
        (("right", "wrong", "made-up"), "rwm"),
        (("good", "bad", "unsure"), "gbu"),
        (("supported", "contradicted", "unsupported", "abstained"), "scua"),
        (("no", "nobody"), "ob"),
    ],
)
def test_categories_have_keys_that_are_free(categories, keys):
    found = keys_of(categories, RESERVED)
    assert (
        [found[key] for key in keys] == [*categories] == [found[str(n + 1)] for n in range(len(categories))]
    )


def press(screen_of, keys):
    with create_pipe_input() as keyboard:
        keyboard.send_text(keys)
        screen = screen_of(keyboard, DummyOutput())
        screen.run()
        return screen


def test_keys_on_the_screen(folder):
    one = session(folder, categories=["right", "wrong", "made-up"])

    def screen(keyboard, output):
        return AssessScreen(one, folder.name, "anna", keyboard=keyboard, output=output)

    press(screen, "rwm1z2nfine" + ENTER + "\tv q")
    said = [each.verdict for each in one.judgements.given.values()]
    assert said == ["right", "wrong", "made-up", "wrong"]
    assert list(one.judgements.notes.values()) == ["fine"] and one.place == 5
    shown = "".join(text for _, text in press(screen, "q")._body())
    assert "Add " in shown and "long" not in shown and "short" not in shown, "no model is named"


@pytest.mark.slow
def test_rates_wins_and_their_difference(folder):
    generator = random.Random(0)
    for name in ("anna", "bob"):
        one = session(folder, name)
        while one.item:
            bare = models(one.item) == {"short"}
            one.judge("good" if bare != (generator.random() < 0.2) else "bad")
        two = session(folder, name, "pairs")
        while two.item:
            two.judge(
                "equal" if two.done < 2 else "first" if two.item.answers[0].model == "short" else "second"
            )
    result = assessed(folder)
    judged = {name: session(folder, name).judgements.given for name in ("anna", "bob")}
    items = {item.key: item for item in session(folder).items}
    for rate in result.rates:
        people = judged if rate.assessor == "all" else [rate.assessor]
        verdicts = [
            each.verdict
            for name in people
            for key, each in judged[name].items()
            if rate.model in models(items[key])
        ]
        assert (rate.judged, rate.count) == (len(verdicts), verdicts.count(rate.category))
        assert rate.judged == COUNT * (2 if rate.assessor == "all" else 1)
        assert rate.interval.low <= rate.share <= rate.interval.high
    category, (one, other), found = result.difference
    assert (category, one, other) == ("good", "long", "short") and found.difference < -0.4 and found.clear
    anna, bob, both = result.wins
    assert anna.won == bob.won == (0, COUNT - 3) and (anna.equal, both.equal) == (2, 4)
    assert anna.p == pytest.approx(2 * 0.5 ** (COUNT - 3)) and both.p is None and result.same == 1
    assert anna.share == 0 and anna.interval.high < 0.2


def test_what_was_judged_is_training_data_once(folder, capsys):
    one = session(folder, mode="pairs")
    while one.item:
        one.judge(
            "unsure" if one.done == 0 else "first" if one.item.answers[0].model == "short" else "second"
        )
    two = session(folder)
    two.judge("good")
    two.judge("bad")
    for _ in range(2):
        command_line(["assess", folder.name, "--collect"])
    marks = Collection().marks()
    assert [mark.verdict for mark in marks].count("better") == COUNT - 2 and len(marks) == COUNT
    assert all(len(mark.chosen) < len(mark.rejected) for mark in marks if mark.verdict == "better")
    assert {mark.made_in for mark in marks} == {"long-vs-short"}
    assert folder.record["assessment"]["wins"][0]["won"] == [0, COUNT - 2]


def test_a_judgement_is_one_of_a_text_and_a_comparison_one_of_two_answers(folder):
    rows = folder.answers()
    again = [
        {**row, "key": f"again{n}", "row": 100 + n, "prompt": "Add 0 and 4."}
        for n, row in enumerate(rows[:1])
    ]
    folder.append(again)
    one, two = session(folder), session(folder, mode="pairs")
    assert len(one.items) == 2 * COUNT - 1, "the same answer to the same prompt is judged once"
    while one.item:
        one.judge("good")
    while two.item:
        two.judge("first")
    found = assessed(folder)
    assert [rate.judged for rate in found.rates if rate.category == "good"] == [COUNT + 1, COUNT]
    other = [{**row, "key": row["key"][::-1]} for row in rows]
    (folder.path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    assert session(folder).done == 2 * COUNT - 1, "given anew, the same texts are as good"
    assert session(folder, mode="pairs").done == 0 and not assessed(folder).wins


@pytest.mark.slow
def test_what_was_judged_stands_beside_what_was_measured(tmp_path, monkeypatch, chat_folder):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "own.jsonl", [{"prompt": f"Add {n}.", "completion": str(n)} for n in range(4)])
    config = EvaluationConfig(
        model=str(chat_folder), datasets=["own.jsonl"], by="generate", max_new_tokens=4, forgetting=False
    )
    folder = evaluate(config)
    one = session(folder)
    for verdict in ("good", "bad", "good", "unsure"):
        one.judge(verdict)
    keep_result(folder)
    measured, judged = folder.record["results"]
    assert (measured["source"], judged["source"], judged["rows"]) == ("own", "judgement", 4)
    assert judged["figures"]["good"]["value"] == 0.5
    again = evaluate(config)
    assert again.path == folder.path and folder.record["results"] == [measured, judged]
    assert folder.record["assessment"]["assessors"] == ["anna"]
    assert folder.summary()["figures"]["judgement/good"] == 0.5


# Agreement, against published examples and the definitions


@pytest.mark.slow
def test_cohens_kappa_is_that_of_the_definition():
    # Cohen 1960, table 1 (proportions of 200): kappa 0.492
    cells = {("a", "a"): 88, ("a", "b"): 14, ("a", "c"): 18, ("b", "a"): 10, ("b", "b"): 40, ("b", "c"): 10,
             ("c", "a"): 2, ("c", "b"): 6, ("c", "c"): 12}  # fmt: skip
    labels = list(itertools.chain(*([both] * count for both, count in cells.items())))
    said = {
        name: {str(n): both[side] for n, both in enumerate(labels)}
        for side, name in enumerate(("one", "two"))
    }
    (found,) = pairwise(said)
    assert found.items == 200 and found.agreed == 0.7 and found.kappa == pytest.approx(0.492, abs=5e-4)
    assert found.low < found.kappa < found.high


def by_the_definition(said):
    """Krippendorff's alpha of nominal data, from the matrix of coincidences (Krippendorff 2011)."""
    labels = sorted({label for each in said.values() for label in each.values()})
    matrix = np.zeros((len(labels), len(labels)))
    for item in {item for each in said.values() for item in each}:
        given = [labels.index(each[item]) for each in said.values() if item in each]
        for one, other in itertools.permutations(range(len(given)), 2):
            matrix[given[one], given[other]] += 1 / (len(given) - 1)
    totals, count = matrix.sum(0), matrix.sum()
    expected = (totals.sum() ** 2 - (totals**2).sum()) / (count - 1)
    return 1 - (count - np.trace(matrix)) / expected


@pytest.mark.slow
def test_krippendorffs_alpha_is_that_of_the_published_example_and_of_the_definition():
    # Krippendorff 2011, part C: four observers, twelve units, missing data; nominal alpha 0.743
    data = [
        "1 2 3 3 2 1 4 1 2 . . .",
        "1 2 3 3 2 2 4 1 2 5 . 3",
        ". 3 3 3 2 3 4 2 2 5 1 .",
        "1 2 3 3 2 4 4 1 2 5 1 .",
    ]
    said = {
        str(number): {str(n): label for n, label in enumerate(line.split()) if label != "."}
        for number, line in enumerate(data)
    }
    found = overall(said)
    assert found.alpha == pytest.approx(0.743, abs=5e-4) and found.items == 11
    assert 0 < found.low < found.alpha < found.high <= 1
    generator = random.Random(3)
    for _ in range(20):
        said = {
            name: {str(n): generator.choice("gbu") for n in range(30) if generator.random() < 0.8}
            for name in "xyz"
        }
        assert overall(said).alpha == pytest.approx(by_the_definition(said))
        shared = [
            [said[who][item] for who in said if item in said[who]]
            for item in {*itertools.chain(*said.values())}
        ]
        sample = alpha_of_items([labels for labels in shared if len(labels) > 1])
        assert sample.figure == pytest.approx(overall(said).alpha)


def test_agreement_of_one_category_alone_is_not_a_number():
    said = {name: {str(n): "good" for n in range(5)} for name in "xy"}
    (found,) = pairwise(said)
    assert found.agreed == 1 and found.kappa is None and overall(said).alpha is None
    assert pairwise({"x": {"1": "a"}, "y": {"2": "a"}}) == [] and overall({"x": {"1": "a"}}) is None


# The command


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["none"], "there is no such evaluation"),
        (["long-vs-short", "--results"], "nobody has judged it yet"),
        (["long-vs-short"], "asks at the terminal"),
        (["long-vs-short", "--against", "short.jsonl"], "is for two files of answers"),
        (["long.jsonl", "--against", "long.jsonl"], "both files are answers of the same model"),
        (["other.jsonl"], "no row with a prompt and an answer"),
        (["long-vs-short", "--pairs", "--categories", "a,b"], "are for single answers"),
    ],
)
def test_what_cannot_be_judged_is_said(folder, tmp_path, arguments, expected):
    write_rows(tmp_path / "other.jsonl", [{"text": "a"}])
    with pytest.raises(LabError, match=expected):
        command_line(["assess", *arguments])


@pytest.mark.parametrize(
    "how, expected",
    [
        ({"categories": ["a"]}, "names 1"),
        ({"categories": ["a", "a"]}, "names one twice"),
        ({"categories": ["a", ""]}, "is no category"),
        ({"assessor": "../x"}, "is no name"),
    ],
)
def test_bad_terms_are_refused(folder, how, expected):
    with pytest.raises(LabError, match=expected):
        session(folder, **how)


def test_what_was_begun_goes_on_as_it_was_begun(folder):
    session(folder, seed=3).judge("good")
    judgements = Judgements.of(folder.path, "anna", "single")
    assert agreed_terms(judgements, None, None) == Terms(3, ("good", "bad", "unsure"))
    with pytest.raises(LabError, match="was begun with seed 3"):
        agreed_terms(judgements, 4, None)
    with pytest.raises(LabError, match="was begun with categories good,bad,unsure"):
        agreed_terms(judgements, None, ["a", "b"])


def test_answers_that_were_added_to_a_file_are_judged_too(folder, tmp_path):
    session(folder).judge("good")
    more = {"id": 99, "prompt": "Add 9 and 9.", "completion": "18"}
    with open(tmp_path / "long.jsonl", "a") as file:
        file.write(json.dumps(more) + "\n")
    again = evaluation_named("long.jsonl", "short.jsonl")
    one = session(again)
    assert len(one.items) == 2 * COUNT and one.done == 1


@pytest.mark.slow
def test_a_kill_in_the_middle_loses_nothing(folder, tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "LANG": "C.UTF-8"}

    def start():
        screen = Terminal(
            "assess", folder.name, "--assessor", "anna", folder=tmp_path, environment=environment
        )
        screen.see("of 49")
        return screen

    screen = start()
    screen.send(*"gbgubgbbgg")
    screen.see("10 of 49")
    screen.child.kill(signal.SIGKILL)
    screen.close()
    assert [each.verdict[0] for each in session(folder).judgements.given.values()] == [*"gbgubgbbgg"]
    screen = start()
    screen.see("10 of 49")
    screen.send("g", "q")
    screen.see("11 of 49 judged as anna")
    assert folder.record["assessment"]["assessors"] == ["anna"]
