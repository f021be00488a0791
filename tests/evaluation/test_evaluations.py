"""Evaluations on disk: answers are kept, taken up again and never computed twice; figures hold to a gate."""

import csv
import json
import os
import signal
import time

import pytest

from llmlab.cli import command_line
from llmlab.config import SourceConfig, load_config, save_config
from llmlab.config.evaluation import EvaluationConfig, Task
from llmlab.config.suites import SUITES, find_suite
from llmlab.data.tasks import distinct_questions
from llmlab.data.verdicts import QUESTION, VERDICTS
from llmlab.errors import LabError
from llmlab.evaluation import run as evaluation
from llmlab.evaluation.folder import ANSWERS, EvaluationFolder, all_evaluations
from llmlab.evaluation.items import read_rows
from llmlab.evaluation.run import evaluate
from llmlab.evaluation.seeds import over_seeds
from llmlab.evaluation.sources import measure
from llmlab.models.load import load_model
from tests.conftest import write_rows


@pytest.fixture
def desk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    questions = distinct_questions(24, seed=3)
    rows = [{"prompt": q, "completion": a, "kind": task} for task, q, a in questions]
    write_rows(tmp_path / "asked.jsonl", rows)
    mails = [
        {"text": f"{'win money' if i % 3 else 'the sea'} {i}", "label": int(i % 3 > 0)} for i in range(24)
    ]
    write_rows(tmp_path / "mails.jsonl", mails)
    return tmp_path


MAILS = {"name": "mails.jsonl", "format": "classification", "labels": ["ham", "spam"]}


def config(model, **changes):
    values = dict(model=str(model), datasets=["asked.jsonl", MAILS], by="generate", max_new_tokens=4)
    return EvaluationConfig(**{**values, "batch_size": 4, "name": "it", **changes})


@pytest.fixture
def computed(monkeypatch):
    """Counts the answers that a model computes; the computing is real."""
    counted = []
    real = evaluation._answers

    def noted(measure, batch, job):
        counted.extend((job.subject.name, job.named.name, item.row, item.part) for item in batch)
        return real(measure, batch, job)

    monkeypatch.setattr(evaluation, "_answers", noted)
    return counted


def content(folder):
    """The answers by row, log-probabilities to rounding."""
    lines = sorted(folder.answers(), key=lambda one: (one["model"], one["source"], one["row"], one["part"]))
    return [{**one, "log_prob": round(one["log_prob"], 3), "log_probs": None} for one in lines]


def test_every_answer_is_kept_and_figures_do_not_depend_on_the_batch_size(desk, chat_folder):
    folder = evaluate(config(chat_folder, by="score", csv=True))
    other = evaluate(config(chat_folder, by="score", batch_size=7, name="other", output_dir="elsewhere"))
    assert content(folder) == content(other)
    exact = [
        {name: entry for name, entry in one["figures"].items() if name in ("accuracy", "macro_f1")}
        for one in (folder.record["results"][1], other.record["results"][1])
    ]
    assert exact[0] == exact[1] and exact[0]["accuracy"]["low"] < exact[0]["accuracy"]["value"]
    model, tokenizer = load_model(str(chat_folder))
    found = measure(model, tokenizer, SourceConfig(**MAILS)).figures
    saved = {name: entry["value"] for name, entry in folder.record["results"][1]["figures"].items()}
    assert saved == pytest.approx(found) and {"calibration_error", "brier_score"} <= saved.keys()
    one = next(one for one in folder.answers() if one["source"] == "mails" and one["row"] == 1)
    assert one["prompt"][0]["content"].endswith("win money 1") or "win money 1" in str(one["prompt"])
    assert (one["reference"], one["measure"], one["score"]) == (
        "spam",
        "label",
        float(one["answer"] == "spam"),
    )
    assert one["log_prob"] == max(one["log_probs"].values()) < 0
    with open(folder.path / "answers.csv") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 48 and {row["reference"] for row in table if row["source"] == "mails"} == {
        "ham",
        "spam",
    }
    record = folder.record
    assert record["status"] == "done" and record["models"][0]["weights"] and record["packages"]["torch"]


def test_what_is_stopped_goes_on_and_ends_as_if_it_had_not_been(desk, chat_folder, computed):
    whole = evaluate(config(chat_folder, name="whole", output_dir="elsewhere"))
    everything = len(computed)
    computed.clear()

    def stop_after(count):
        def tell(at):
            if len(computed) >= count:
                raise KeyboardInterrupt

        return tell

    for count in (8, 20, 36):
        with pytest.raises(KeyboardInterrupt):
            evaluate(config(chat_folder), tell=stop_after(count))
        assert EvaluationFolder(desk / "evaluations" / "it").status == "stopped"
        with open(desk / "evaluations" / "it" / ANSWERS, "a") as file:
            file.write('{"key": "torn')  # as a power cut leaves it
    folder = evaluate(config(chat_folder))
    assert len(computed) == len(set(computed)) == everything == 48
    assert folder.answers() == whole.answers() or content(folder) == content(whole)
    assert folder.record["results"] == json.loads(
        json.dumps(whole.record["results"])
    )  # to the last bit, intervals included
    computed.clear()
    assert evaluate(config(chat_folder)).record["status"] == "done" and not computed


def test_the_same_answer_is_not_computed_for_another_evaluation(desk, chat_folder, untrained, computed):
    evaluate(config(chat_folder, datasets=["asked.jsonl"]))
    first = len(computed)
    write_rows(
        desk / "twice.jsonl",
        [json.loads(line) for line in (desk / "asked.jsonl").read_text().splitlines()] * 2,
    )
    folder = evaluate(config(chat_folder, name="more", datasets=["twice.jsonl"]))
    assert first == len(computed) == 24 and len(folder.answers()) == 48
    other = untrained("other", n_layers=1)
    evaluate(config(other, name="x", datasets=["asked.jsonl"]))
    assert len(computed) == 48  # other weights, other answers
    evaluate(config(chat_folder, name="longer", datasets=["asked.jsonl"], max_new_tokens=5))
    assert len(computed) == 72  # other settings, other answers


@pytest.mark.slow
def test_killed_evaluations_lose_nothing(desk, chat_folder):
    """A few SIGKILLs; `benchmarks/kills_of_evaluations.py --kills 30` does the large number."""
    whole = evaluate(config(chat_folder, name="whole", output_dir="elsewhere"))
    killed, most = 0, 0
    for delay in (0.15, 0.25, 0.35, 0.2, 0.3):
        child = os.fork()
        if not child:
            try:
                evaluate(config(chat_folder), tell=lambda at: time.sleep(0.03))
            finally:
                os._exit(0)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        killed += os.WIFSIGNALED(status)
        most = len(EvaluationFolder(desk / "evaluations" / "it").answers())
    assert killed >= 2
    folder = evaluate(config(chat_folder))
    assert len(folder.answers()) == 48 >= most and content(folder) == content(whole)
    assert folder.record["results"] == whole.record["results"]


def test_a_name_is_that_of_one_evaluation(desk, chat_folder):
    evaluate(config(chat_folder, datasets=["asked.jsonl"]))
    with pytest.raises(LabError, match=r"is another evaluation: `max_new_tokens` was 4 and is 6"):
        evaluate(config(chat_folder, datasets=["asked.jsonl"], max_new_tokens=6))
    names = []
    for tokens in (4, 6, 4):  # nobody gave a name: a folder for each, the first one again
        names.append(
            evaluate(config(chat_folder, name=None, datasets=["asked.jsonl"], max_new_tokens=tokens)).name
        )
    assert names == ["model-asked", "model-asked-2", "model-asked"]
    with (desk / "asked.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "Who?", "completion": "Ahab", "kind": "x"}) + "\n")
    with pytest.raises(LabError, match="the rows or the suite changed"):
        evaluate(config(chat_folder, datasets=["asked.jsonl"]))


def test_sampled_answers_are_drawn_by_row_and_repeat(desk, chat_folder):
    drawn = dict(temperature=1.5, repeats=3, datasets=["asked.jsonl"], seed=5)
    folder = evaluate(config(chat_folder, **drawn))
    other = evaluate(config(chat_folder, name="other", output_dir="elsewhere", **drawn | {"batch_size": 11}))
    assert [one["answer"] for one in content(folder)] == [one["answer"] for one in content(other)]
    said = {}
    for one in folder.answers():
        said.setdefault(one["row"], set()).add(one["answer"])
    assert any(len(answers) > 1 for answers in said.values())
    figure = folder.record["results"][0]["figures"]["exact_match"]
    assert len(figure["seeds"]["values"]) == 3 and (figure["how"], figure["count"]) == ("clusters", 24)
    with pytest.raises(LabError, match="set a `temperature` above 0"):
        command_line(["evaluate", str(chat_folder), "--task", "asked.jsonl", "--set", "repeats=3"])


def test_two_models_side_by_side(desk, chat_folder, untrained, capsys):
    other = untrained("other", n_layers=1)
    arguments = ["evaluate", str(chat_folder), "--against", str(other), "--name", "two"]
    command_line([*arguments, "--task", "mails.jsonl", *mails_options(), "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    between = {one["figure"]: one for one in found["differences"]}
    answers = EvaluationFolder(desk / "evaluations" / "two").answers()
    share = {
        name: sum(one["score"] for one in answers if one["model"] == str(name)) / 24
        for name in (chat_folder, other)
    }
    assert between["accuracy"]["difference"] == pytest.approx(share[chat_folder] - share[other])
    assert between["accuracy"]["test"] == "mcnemar" and between["macro_f1"]["test"] == "permutation"
    command_line(["evaluations", "two"])
    assert "less that of" in (shown := capsys.readouterr().out) and "saved in evaluations/two" in shown
    command_line(["evaluations"])
    assert "two" in capsys.readouterr().out
    arguments = ["evaluate", str(chat_folder), "--against", str(other), "--name", "won", "--reward", "length"]
    command_line([*arguments, "--task", "asked.jsonl", "--set", "max_new_tokens=4", "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert {"reward", "reward_of_the_other", "win_rate", "ties"} <= found.keys()


def mails_options():
    return ["--set", "format=classification", "--set", 'labels=["ham", "spam"]']


def gated(desk, model, bounds, *more):
    (desk / "gate.json").write_text(json.dumps(bounds))
    command = ["evaluate", str(model), "--task", "asked.jsonl", "--by", "generate", "--gate", "gate.json"]
    command_line([*command, "--set", "max_new_tokens=4", *more])


def test_a_gate_names_the_figure_its_value_and_its_bound(desk, chat_folder, untrained, capsys):
    gated(desk, chat_folder, {"exact_match": {"max": 1.0}, "asked/exact_match": {"min": 0}})
    assert "the gate holds" in capsys.readouterr().out
    with pytest.raises(LabError, match=r"`asked/exact_match` 0 is below its least value 0\.5") as caught:
        gated(desk, chat_folder, {"exact_match": {"min": 0.5}})
    assert caught.value.exit_code == 1 and "exact match" in capsys.readouterr().out
    assert all_evaluations()[0].record["gate"]["passed"] is False
    other = untrained("other", n_layers=1)
    gated(desk, chat_folder, {"exact_match": {"no_worse_than": "against"}}, "--against", str(other))
    for bounds, message in (
        (
            {"accuracy": {"min": 0.5}},
            "names `accuracy`, which was not measured: measured were asked/exact_match",
        ),
        ({"exact_match": {"mni": 0.5}}, "did you mean `min`"),
        ({"exact_match": 0.5}, "is no object"),
        ({"exact_match": {"no_worse_than": "parent"}}, "no parent is known"),
        ({"exact_match": {"no_worse_than": "against"}}, "add --against NAME"),
        ({}, "a gate is an object"),
    ):
        with pytest.raises(LabError, match=message) as caught:
            gated(desk, chat_folder, bounds)
        assert caught.value.exit_code == 2
    with pytest.raises(LabError, match="there is no such gate file"):
        command_line(["evaluate", str(chat_folder), "--gate", "none.json"])


def test_a_judge_says_which_answers_the_text_supports(desk, chat_folder, untrained, computed):
    judge = untrained("other", n_layers=1)
    folder = evaluate(config(chat_folder, datasets=["asked.jsonl"], judge=str(judge)))
    answers = folder.answers()
    figures = folder.record["results"][0]["figures"]
    assert figures.pop("exact_match")["value"] == sum(one["right"] for one in answers) / 24
    assert sum(one["value"] for one in figures.values()) == pytest.approx(1) and len(figures) == 4
    for name, one in figures.items():
        assert one["value"] == sum(answer["verdict"] == name for answer in answers) / 24
        assert one["low"] <= one["value"] <= one["high"]
    # the verdict is that of the same question as a classification
    model, tokenizer = load_model(str(judge))
    rows = [{"prompt": one["prompt"][0]["content"], "answer": one["answer"], "label": 0} for one in answers]
    write_rows(desk / "labelled.jsonl", rows)
    source = SourceConfig(
        name="labelled.jsonl", format="classification", labels=list(VERDICTS), prompt=QUESTION
    )
    found = measure(model, tokenizer, source).answers
    assert [one["answer"] for one in sorted(found, key=lambda one: one["row"])] == [
        one["verdict"] for one in answers
    ]
    evaluate(config(chat_folder, name="own", datasets=["asked.jsonl"], judge=str(chat_folder)))
    assert len(computed) == 48  # another judge, other verdicts
    with pytest.raises(LabError, match="these are classifications"):
        evaluate(config(chat_folder, name="no", datasets=[MAILS], judge=str(judge)))


def test_several_evaluations_have_a_mean_and_a_spread_over_seeds(desk, chat_folder, untrained, capsys):
    other = untrained("other", n_layers=1)
    both = [
        evaluate(config(model, name=name, by="score")) for name, model in (("a", chat_folder), ("b", other))
    ]
    compared = over_seeds(both)
    for one in compared.figures:
        place = next(r for r in both[0].record["results"] if r["source"] == one.source)
        assert one.values[0] == place["figures"][one.figure]["value"]
        assert one.mean == pytest.approx(sum(one.values) / 2)
        assert one.spread == pytest.approx(abs(one.values[0] - one.values[1]) / 2**0.5)
        half = 12.7062 * one.spread / 2**0.5  # Student's t of one degree of freedom
        assert one.high - one.mean == pytest.approx(half, rel=1e-4)
    assert {one.source for one in compared.figures} == {"asked", "mails"} and compared.seeds == (None, None)
    command_line(["evaluations", "a", "b"])
    assert "95 % over seeds" in capsys.readouterr().out
    evaluate(config(chat_folder, name="c", by="score", datasets=["asked.jsonl"]))
    for names, message in ((("a", "a"), "is named twice"), (("a", "c"), "was measured on other rows than a")):
        with pytest.raises(LabError, match=message):
            command_line(["evaluations", *names])
    with pytest.raises(LabError, match="`--report` writes a page about one evaluation"):
        command_line(["evaluations", "a", "b", "--report"])


def test_suites_ship_and_are_files(desk, chat_folder):
    for name, suite in SUITES.items():
        assert suite.tasks and find_suite(name) is suite
    (desk / "own.yaml").write_text(
        "title: mine\ntasks:\n  - source: asked.jsonl\n    by: generate\n    max_new_tokens: 4\n"
    )
    made = EvaluationConfig(model=str(chat_folder), suite="own.yaml")
    path = save_config(made, desk / "e.json")
    assert load_config(path) == made
    command_line(["run", "e.json"])
    assert (desk / "evaluations" / "model-own" / ANSWERS).exists()
    (desk / "bad.json").write_text('{"tasks": [{"source": "asked.jsonl", "by": "guess"}]}')
    for name, message in (
        ("standart", "did you mean 'standard'"),
        ("bad.json", r"`tasks\.0\.by` 'guess' is not one of score, generate"),
        ("gone.json", "there is no such suite file"),
    ):
        with pytest.raises(LabError, match=message):
            find_suite(name)


def test_the_shipped_questions_are_the_quickstarts_held_out_ones():
    rows = read_rows(Task(source=SourceConfig(name="llmlab:questions")))[0]
    asked = [(one.row["prompt"][0]["content"], one.row["completion"]) for one in rows]
    assert asked == [(question, answer) for _, question, answer in distinct_questions(600, seed=1)[:400]]


@pytest.mark.parametrize(
    "changes, where",
    [
        ({"results": [{"source": 1}]}, "`results.0.source`"),
        ({"models": []}, "names no model"),
        ({"status": 3}, "`status`"),
        ({"gate": {"passed": "x"}}, "`gate.passed`"),
    ],
)
def test_a_damaged_record_is_named(desk, chat_folder, computed, changes, where, capsys):
    folder = evaluate(config(chat_folder, datasets=["asked.jsonl"]))
    (folder.path / "evaluation.json").write_text(json.dumps(folder.record | changes))
    for command in (["evaluations", "it"], ["evaluations", "it", "--csv"]):
        with pytest.raises(LabError, match="is damaged") as caught:
            command_line(command)
        assert where in str(caught.value)
    command_line(["evaluations"])
    assert "damaged" in capsys.readouterr().out
    with pytest.raises(LabError, match="is another evaluation, whose record is damaged"):
        evaluate(config(chat_folder, datasets=["asked.jsonl"]))
    computed.clear()
    evaluate(config(chat_folder, name="again", datasets=["asked.jsonl"]))
    assert not computed  # its answers are taken


def test_a_damaged_answer_is_named_or_computed_again(desk, chat_folder, computed):
    folder = evaluate(config(chat_folder, datasets=["asked.jsonl"]))
    path = folder.path / ANSWERS
    lines = path.read_text().splitlines()
    broken = json.loads(lines[3]) | {"score": "much"}
    path.write_text("\n".join([*lines[:3], json.dumps(broken), *lines[4:]]) + "\n")
    (folder.path / "evaluation.json").write_text(json.dumps(folder.record | {"status": "stopped"}))
    computed.clear()
    again = evaluate(config(chat_folder, datasets=["asked.jsonl"]))
    assert len(computed) == 1 and again.record["results"] == folder.record["results"]
    path.write_text("\n".join([*lines[:3], "{", *lines[4:]]) + "\n")
    with pytest.raises(LabError, match=r"answers\.jsonl: line 4: is damaged: delete that line"):
        evaluate(config(chat_folder, datasets=["asked.jsonl"]))


def test_rows_that_belong_together_and_held_out_rows(desk, chat_folder):
    folder = evaluate(config(chat_folder, datasets=["asked.jsonl"], group_by="kind"))
    assert folder.record["results"][0]["figures"]["exact_match"]["count"] == 8  # tasks
    assert {one["group"] for one in folder.answers()} >= {"add", "copy"}
    half = evaluate(config(chat_folder, name="half", datasets=["asked.jsonl"], held_out=0.25))
    assert half.record["results"][0]["rows"] == 6
    with pytest.raises(LabError, match="`group_by` 'topic' is no column: the columns are prompt, completion"):
        evaluate(config(chat_folder, name="no", datasets=["asked.jsonl"], group_by="topic"))


@pytest.mark.slow
def test_what_fine_tuning_forgets_is_shown(desk, base_run, capsys):
    from llmlab.config import SFTConfig
    from llmlab.training.engine.run import run

    made = run(
        SFTConfig(
            policy_checkpoint=str(base_run.folder),
            datasets=[str(desk / "asked.jsonl")],
            max_steps=20,
            learning_rate=1e-2,
            batch_size=4,
            gradient_accumulation_steps=1,
            max_length=64,
            eval_fraction=0,
            output_dir=str(desk / "checkpoints" / "tuned"),
            report_to=[],
        )
    )
    command = ["evaluate", "tuned", "--task", "asked.jsonl", "--by", "generate", "--name", "it"]
    command_line(command)
    shown = capsys.readouterr().out
    assert "forgetting: loss on a general text" in " ".join(shown.split()) and "worse" in shown
    forgotten = EvaluationFolder(desk / "evaluations" / "it").record["forgetting"]
    assert {one["figure"] for one in forgotten} == {"loss", "bits_per_byte"}
    assert all(one["difference"] > 0 and one["p"] < 0.05 for one in forgotten)
    (desk / "gate.json").write_text('{"general text/loss": {"no_worse_than": "parent"}}')
    with pytest.raises(LabError, match=r"`general text/loss` .* is above the 95 % interval of the parent"):
        command_line([*command, "--gate", "gate.json"])
    assert made.folder.name == "tuned"
