"""A suite that is evaluated while the model learns: its figures are those of `llmlab evaluate`, they choose
the best weights, and neither it nor a stop or a kill in it changes the run by a bit.
"""

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from llmlab.config import RewardConfig, apply_changes, save_config
from llmlab.config.base import validate
from llmlab.config.evaluation import EvaluationConfig
from llmlab.config.suites import SUITES, is_source, suite_files, watched_tasks
from llmlab.errors import LabError
from llmlab.evaluation.figures import samples_of
from llmlab.evaluation.folder import EvaluationFolder
from llmlab.evaluation.run import evaluate
from llmlab.evaluation.watching import GIVES, Evaluator
from llmlab.planning.plan import make_plan
from llmlab.runs import disk, evaluations
from llmlab.runs.comparison import compare
from llmlab.runs.details import find_run, run_details
from llmlab.runs.figures import SUITE, SUITE_SECONDS, better_of, is_better
from llmlab.runs.folder import RunFolder
from llmlab.training.callbacks.stop import StopOnSignal
from llmlab.training.callbacks.suite_steps import SuiteSteps
from llmlab.training.engine.evaluator import chosen_metric, refuse_engine
from llmlab.training.engine.reporter import Silent
from llmlab.training.engine.run import run
from llmlab.training.engine.workers import JobWorkers
from llmlab.training.rewards import weighted
from llmlab.ui.reporters import result_line
from tests.conftest import write_rows
from tests.training.conftest import sft_config
from tests.training.stages import ending, stage_config, stop_after
from tests.waiting import PATIENCE

ROWS = [{"prompt": f"Who is {i}?", "completion": "Ahab" if i % 3 else "Stubb"} for i in range(12)]
MAILS = [{"text": f"{'win money' if i % 2 else 'the sea'} {i}", "label": i % 2} for i in range(10)]
BEST = f"{SUITE}asked/exact_match"


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    """A suite of questions, of mails and of pairs."""
    folder = tmp_path_factory.mktemp("suite")
    write_rows(folder / "asked.jsonl", ROWS)
    write_rows(folder / "mails.jsonl", MAILS)
    pairs = [{"prompt": f"Who is {i}?", "chosen": "Ahab", "rejected": "Stubb"} for i in range(4)]
    write_rows(folder / "pairs.jsonl", pairs)
    mails = {"name": str(folder / "mails.jsonl"), "format": "classification", "labels": ["ham", "spam"]}
    tasks = [
        {"source": str(folder / "asked.jsonl"), "by": "generate"},
        {"source": mails},
        {"source": str(folder / "pairs.jsonl")},
    ]
    (folder / "suite.json").write_text(json.dumps({"title": "ours", "tasks": tasks}))
    return folder / "suite.json"


def watched(base_run, folder, suite, **changes):
    values = dict(
        evaluation_suite=str(suite), evaluate_every=3, evaluation_batch_size=4, save_best_only=False
    )
    return sft_config(base_run, folder, **{**values, **changes})


def train(config, **how):
    return run(config, evaluator=Evaluator(weighted), **how)


class Listening(Silent):
    """Keeps what is said of evaluations."""

    def __init__(self):
        self.told, self.far = [], []

    def evaluated(self, step, figures, seconds):
        self.told.append((step, {one.name: one for one in figures}))

    def evaluating(self, source, done, total):
        self.far.append((source, done, total))


@pytest.fixture(scope="module")
def whole(base_run, suite, tmp_path_factory):
    """A run of 8 steps that is evaluated at 0, 3, 6 and the last one, never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    config = watched(base_run, folder, suite, metric_for_best="exact_match")
    said = Listening()
    return train(config, reporter=said), said, config


def figures_of(folder):
    """The figures of the suite by step, without times."""
    return {
        line["step"]: {k: v for k, v in line.items() if k.startswith(SUITE) and k != SUITE_SECONDS}
        for line in RunFolder(folder).metrics()
        if SUITE_SECONDS in line
    }


def answers_of(folder):
    """Every file of answers by step, as it stands."""
    return {step: (path / "answers.jsonl").read_text() for step, path in evaluations.places(folder).items()}


def same_answers(one, other):
    """Whether two runs gave the same answers in the same order; their folders have other names."""
    apart = ("key", "model")
    texts = [answers_of(folder) for folder in (one, other)]
    lines = [{step: map(json.loads, text.splitlines()) for step, text in each.items()} for each in texts]
    plain = [
        {
            step: [{k: v for k, v in row.items() if k not in apart} for row in rows]
            for step, rows in each.items()
        }
        for each in lines
    ]
    return plain[0] == plain[1]


@pytest.mark.slow
def test_figures_stand_wherever_a_run_is_looked_at(whole):
    result, said, _ = whole
    figures = figures_of(result.folder)
    assert list(figures) == [0, 3, 6, 8] == [step for step, _ in said.told]
    assert {f"{SUITE}mails/accuracy", f"{SUITE}pairs/preference_accuracy", BEST} <= figures[3].keys()
    told = said.told[1][1]["asked/exact_match"]
    assert told.value == figures[3][BEST] and told.low <= told.value <= told.high
    assert ("asked", 12, 12) in said.far and said.far[-1] == ("", 0, 0)
    details = run_details(find_run(str(result.folder)))
    assert details.curves[BEST] == [(step, one[BEST]) for step, one in figures.items()]
    assert details.figures[BEST] == (figures[0][BEST], figures[8][BEST])
    assert (
        details.interval(BEST)
        == details.intervals[BEST][8]
        == (said.told[3][1]["asked/exact_match"].low, said.told[3][1]["asked/exact_match"].high)
    )
    assert details.evaluating > 0 and result.metrics[BEST] == figures[8][BEST]


@pytest.mark.slow
def test_the_best_weights_are_those_of_the_earliest_best_figure(whole):
    result, _, _ = whole
    figures = {step: one[BEST] for step, one in figures_of(result.folder).items() if step}
    best = max(figures.values())
    step = next(step for step, value in figures.items() if value == best)
    manifest = json.loads((result.folder / "best" / "MANIFEST.json").read_text())
    assert (manifest["step"], manifest[BEST]) == (step, best)
    assert RunFolder(result.folder).record["best"] == {"figure": BEST, "value": best, "step": step}
    # the last line of the screen has the figures of these weights, not those of the last step
    lines = RunFolder(result.folder).metrics()
    losses = [
        f"loss {line['eval_loss']:.4g}" for line in lines if line["step"] == step and "eval_loss" in line
    ]
    said = result_line(dataclasses.replace(result, model=result.folder / "best"))
    assert [part for part in said.split("  ")[1:] if part.startswith("loss ")] == losses[:1]


@pytest.mark.slow
def test_an_evaluation_of_the_saved_weights_says_the_same(whole, suite, monkeypatch, tmp_path):
    result, _, _ = whole
    monkeypatch.chdir(tmp_path)
    folder = evaluate(
        EvaluationConfig(model=str(result.folder / "final"), suite=str(suite), batch_size=4, forgetting=False)
    )
    watched_one = EvaluationFolder(evaluations.place(result.folder, 8))
    assert watched_one.status == "done" and not watched_one.damage
    results = [{r["source"]: r["figures"] for r in one.record["results"]} for one in (folder, watched_one)]
    assert results[0] == results[1] and results[0]["mails"]["accuracy"]["low"] is not None
    texts = [
        {(a["source"], a["row"]): (a["answer"], a["log_prob"]) for a in one.answers()}
        for one in (folder, watched_one)
    ]
    assert texts[0] == texts[1] and len(texts[0]) == 26


@pytest.mark.slow
def test_weights_are_the_same_to_the_bit_with_a_suite_and_without(whole, base_run, tmp_path):
    result, _, config = whole
    plain = dict(evaluation_suite=None, metric_for_best=None, output_dir=str(tmp_path / "plain"))
    without = run(apply_changes(config, plain))
    assert not (without.folder / "evaluations").exists()
    (weights, lines, _), (wanted, wanted_lines, _) = ending(result.folder), ending(without.folder)
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert [line for line in lines if BEST not in line] == wanted_lines


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft-lora", "grpo", "ppo", "dual-head"])
def test_it_disturbs_no_method(stage, short_policy, suite, tmp_path):
    """With dropout, with answers that are drawn, with a critic, with two heads."""
    tasks = json.loads(suite.read_text())["tasks"]
    tasks = [tasks[0], tasks[2]] if stage != "grpo" else [tasks[0]]
    (tmp_path / "suite.json").write_text(json.dumps({"tasks": tasks}))
    ends = []
    for name, changes in (
        ("with", dict(evaluation_suite=str(tmp_path / "suite.json"), evaluate_every=3, evaluation_rows=4)),
        ("without", {}),
    ):
        config = stage_config(stage, short_policy, tmp_path / name)
        config = apply_changes(config, {"max_steps": 5, "eval_every": 4, "warmup_steps": 0, **changes})
        ends.append(ending(train(config).folder)[:2])
    (weights, lines), (wanted, wanted_lines) = ends
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert [line for line in lines if BEST not in line] == wanted_lines
    figures = figures_of(tmp_path / "with")
    assert list(figures) == [0, 3, 5] and all(0 <= one[BEST] <= 1 for one in figures.values())


@pytest.mark.slow
def test_stopped_again_and_again_it_ends_alike(whole, monkeypatch, tmp_path):
    result, _, config = whole
    config = apply_changes(config, {"output_dir": str(tmp_path / "stopped")})
    stops = inside = 0
    for forwards in (30, 9, 26, 31, 14, 22, 40, 1000):
        stop_after(monkeypatch, forwards)
        stopped = train(config)
        if not stopped.stopped_by:
            break
        stops += 1
        inside += any(
            EvaluationFolder(path).record.get("status") == "running"
            for path in evaluations.places(tmp_path / "stopped").values()
        )
    assert stops >= 2 and inside >= 1
    as_whole(tmp_path / "stopped", result.folder)


def as_whole(folder, wanted):
    """A run equals another one to the bit: weights, figures, answers, what is the best."""
    (weights, lines, samples), (other, other_lines, other_samples) = ending(folder), ending(wanted)
    assert lines == other_lines and samples == other_samples
    assert all(torch.equal(weights[name], other[name]) for name in other)
    assert same_answers(folder, wanted)
    best = [load_file(one / "best" / "model.safetensors") for one in (folder, wanted)]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[1])
    assert RunFolder(folder).record["best"] == RunFolder(wanted).record["best"]


@pytest.mark.slow
def test_killed_in_an_evaluation_it_ends_alike(whole, tmp_path):
    """SIGKILL while answers are written, behind a step without a checkpoint."""
    result, _, config = whole
    target = tmp_path / "killed"
    config = apply_changes(config, {"output_dir": str(target)})
    path = save_config(config, tmp_path / "sft.json")
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
    child = subprocess.Popen(
        [sys.executable, "-m", "llmlab", "run", str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    answers = evaluations.place(target, 6) / "answers.jsonl"
    ends = time.monotonic() + PATIENCE
    while not (answers.exists() and answers.stat().st_size) and child.poll() is None:
        assert time.monotonic() < ends
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it was over before it could be killed"
    with open(answers, "a") as file:
        file.write('{"key": "torn')  # as a power cut leaves it
    train(config)
    as_whole(target, result.folder)


@pytest.mark.slow
def test_a_resume_from_earlier_drops_evaluations_of_later_steps(whole, tmp_path):
    result, _, config = whole
    folder = tmp_path / "again"
    shutil.copytree(result.folder, folder)
    before = answers_of(folder)
    RunFolder(folder).update(status="running")
    shutil.rmtree(folder / "checkpoint-8")
    for name in ("best", "final"):
        shutil.rmtree(folder / name)
    (evaluations.place(folder, 6) / "answers.jsonl").write_text("")
    train(apply_changes(config, {"output_dir": str(folder)}))  # from checkpoint-4
    after = answers_of(folder)
    assert list(after) == [0, 3, 6, 8] and after[0] == before[0] and same_answers(folder, result.folder)


@pytest.mark.slow
def test_killed_behind_its_last_evaluation_it_has_no_figure_twice(whole, tmp_path):
    result, _, config = whole
    folder = tmp_path / "ended"
    shutil.copytree(result.folder, folder)
    shutil.rmtree(folder / "final")
    RunFolder(folder).update(status="running", result=None)
    train(apply_changes(config, {"output_dir": str(folder)}))
    as_whole(folder, result.folder)


@pytest.mark.slow
def test_patience_counts_evaluations_and_another_metric_begins_anew(base_run, suite, tmp_path):
    never = dict(metric_for_best="asked/exact_match", patience=2, evaluate_every=1, learning_rate=1e-9)
    result = train(watched(base_run, tmp_path, suite, **never))
    record = RunFolder(result.folder).record
    assert record["ended_early"]["figure"] == BEST and record["ended_early"]["step"] == 3 == record["step"]
    other = dict(never, metric_for_best="mails/label_loss", max_steps=5)
    again = train(watched(base_run, tmp_path, suite, **other), resume=str(result.folder))
    best = RunFolder(again.folder).record["best"]
    assert best["figure"] == f"{SUITE}mails/label_loss" and best["step"] > 3


@pytest.mark.slow
def test_a_suite_with_other_rows_begins_anew(whole, suite, tmp_path):
    """Its file is the same by its name: what changed in the rows is seen, and figures are not compared."""
    ours = tmp_path / "asked.jsonl"
    write_rows(ours, ROWS)
    _, _, config = whole
    changes = dict(evaluation_suite=str(ours), metric_for_best="loss", learning_rate=1e-9, max_steps=4)
    config = apply_changes(config, {**changes, "output_dir": str(tmp_path / "run")})
    first = train(config)
    write_rows(ours, [{**row, "completion": "Starbuck the mate"} for row in ROWS])
    told = Listening()
    told.warning = told.told.append
    train(apply_changes(config, {"max_steps": 8}), reporter=told, resume=str(first.folder))
    assert any("other tasks or rows" in line for line in told.told if isinstance(line, str))
    assert RunFolder(first.folder).record["best"]["step"] > 4


def test_what_a_suite_lacks_is_refused_with_what_it_has(base_run, suite, tmp_path):
    def refused(evaluator=None, **changes):
        with pytest.raises(LabError) as error:
            run(
                watched(base_run, tmp_path, suite, **changes),
                evaluator=evaluator or Evaluator(weighted),
            )
        assert not (tmp_path / "run").exists()
        return str(error.value)

    text = refused(metric_for_best="asked/f1")
    assert "asked/exact_match" in text and "mails/accuracy" in text and "eval_loss" in text
    assert "majority" not in text.split("use one of")[1]
    assert "neither good nor bad" in refused(metric_for_best="majority")
    assert "no suite 'mailz'" in refused(evaluation_suite="mailz") and "mails" in refused(
        evaluation_suite="mailz"
    )
    (tmp_path / "empty.json").write_text('{"tasks": []}')
    assert "tasks" in refused(evaluation_suite=str(tmp_path / "empty.json"))
    write_rows(tmp_path / "nothing.jsonl", [])
    assert refused(evaluation_suite=str(tmp_path / "nothing.jsonl"))
    judged = {"source": str(suite.parent / "asked.jsonl"), "by": "generate", "judge": "gpt2"}
    (tmp_path / "judged.json").write_text(json.dumps({"tasks": [judged]}))
    assert "another model" in refused(evaluation_suite=str(tmp_path / "judged.json"))
    twice = {"tasks": [{"source": str(suite.parent / "asked.jsonl"), "by": "generate"}] * 2}
    (tmp_path / "twice.json").write_text(json.dumps(twice))
    text = refused(evaluation_suite=str(tmp_path / "twice.json"), metric_for_best="exact_match")
    assert "asked/exact_match, asked-2/exact_match" in text
    with pytest.raises(LabError, match="needs an evaluator"):
        run(watched(base_run, tmp_path, suite))


def test_options_that_do_not_go_together_are_refused(base_run, tmp_path):
    config = sft_config(base_run, tmp_path).to_json_dict()
    for changes, words in (
        ({"evaluate_every": 5}, "`evaluate_every` applies only when `evaluation_suite`"),
        ({"metric_for_best": "exact_match"}, "`evaluation_suite` names none"),
        ({"metric_for_best": "eval_reward"}, "use eval_loss"),
        ({"metric_for_best": "eval_loss"}, "nothing is held out"),
        ({"patience": 3}, "nothing is held out"),
    ):
        with pytest.raises(LabError, match=words):
            validate(type(sft_config(base_run, tmp_path)), {**config, **changes})
    with pytest.raises(LabError, match="only scores"):
        validate(RewardConfig, {"policy_checkpoint": "x", "evaluation_suite": "mails"})
    reward = RewardConfig(policy_checkpoint="x", metric_for_best="eval_accuracy")
    assert chosen_metric(reward, {}) == "eval_accuracy" and better_of("eval_accuracy") == "higher"
    for engine in ("fsdp2", "zero3", "tensor"):
        with pytest.raises(LabError, match="no process has"):
            refuse_engine(sft_config(base_run, tmp_path, evaluation_suite="mails"), engine)


def test_what_is_offered_is_what_is_measured(suite, base_run, tmp_path, whole):
    """The figures that may be chosen are, of every measure, those that its answers give."""
    config = watched(base_run, tmp_path, suite)
    offered = Evaluator(weighted).metrics(config)
    assert {name.removeprefix(SUITE) for name in figures_of(whole[0].folder)[3]} == offered.keys()
    assert offered["asked/exact_match"] == "higher" and offered["mails/label_loss"] == "lower"
    one = dict(row=0, part=0, group=None, score=1.0, log_prob=-1.0, tokens=2, bytes=3, verdict="supported")
    one["right"] = 1.0
    for measure in GIVES.keys() - {"label"}:
        assert tuple(samples_of(measure, [one, {**one, "row": 1}])) == GIVES[measure]
    assert is_better(BEST, 0.5, 0.4) and not is_better(BEST, float("nan"), 0.4)
    assert is_better(f"{SUITE}a/loss", 0.4, 0.5) and better_of(f"{SUITE}a/majority") is None


def test_rows_suites_and_steps(base_run, suite, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tasks = watched_tasks(watched(base_run, tmp_path, suite, evaluation_rows=5))
    assert [task.source.max_rows for task in tasks] == [5, 5, 5]
    assert (
        watched_tasks(watched(base_run, tmp_path, "standard", evaluation_rows=300))[0].source.max_rows == 200
    )
    assert is_source("llmlab:spam-mails") and is_source("rows.jsonl") and not any(map(is_source, SUITES))
    by_reference = watched(base_run, tmp_path, "passages", evaluation_rows=5)
    assert Evaluator(weighted).metrics(by_reference)["passages/supported"] == "higher"
    asked = {"source": "llmlab:passages", "by": "generate", "judge": "http://127.0.0.1:9#judge"}
    for name, content, message in (
        ("judged.json", {"tasks": [asked]}, "is another model"),
        ("benchmarks.json", {"harness": ["arc_easy"]}, "no run measures while it learns"),
    ):
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(LabError, match=message):
            Evaluator(weighted).metrics(watched(base_run, tmp_path, str(tmp_path / name)))
        (tmp_path / name).unlink()
    shutil.copy(suite, tmp_path / "ours.json")
    (tmp_path / "sft.json").write_text('{"kind": "sft"}')
    assert suite_files() == ["ours.json"]
    steps = SuiteSteps(50, 40)
    assert [step for step in (0, 40, 50, 200) if steps.is_due(step)] == [0, 50, 200]
    assert [step for step in (0, 40, 47, 50, 200) if steps.validates(step)] == [0, 40, 47, 200]
    plan = make_plan(watched(base_run, tmp_path, suite, evaluate_every=1000)).time
    assert plan.evaluations.count == 2
    plan = make_plan(watched(base_run, tmp_path, suite, evaluate_every=3, evaluation_rows=5)).time
    assert plan.evaluations.count == 4 and plan.evaluations.rows == (5, 5, 5)


def test_generators_and_modes_are_as_they_were(base_run):
    from llmlab.models.load import load_model
    from llmlab.training.trainers.watched import undisturbed

    model, _ = load_model(str(base_run.model))
    model.train()
    first = next(module for module in model.modules() if module is not model)
    first.eval()
    modes = [module.training for module in model.modules()]

    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    wanted = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with pytest.raises(KeyError), undisturbed(model):
        assert not any(module.training for module in model.modules())
        draw()
        raise KeyError
    assert draw() == wanted and [module.training for module in model.modules()] == modes


def test_a_full_disk_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "LOOK_EVERY", 0.0)
    said, left = [], [2]

    def write():
        if left[0]:
            left[0] -= 1
            raise LabError("cannot be written (No space left on device); the answers before are complete")
        return "written"

    workers = JobWorkers.of_this_job(StopOnSignal(), disk.FullDisk(said.append), tmp_path)
    assert workers.from_first(write) == "written" and len(said) == 1 and "the disk is full" in said[0]


@pytest.mark.slow
def test_runs_are_compared_by_a_suite_of_the_same_rows(whole, base_run, suite, tmp_path):
    """With the interval of the evaluation; a run of fewer rows has no difference from it."""
    result, _, config = whole
    others = [("again", {"learning_rate": 1e-4}), ("fewer", {"evaluation_rows": 4})]
    for name, changes in others:
        train(apply_changes(config, {"max_steps": 2, "output_dir": str(tmp_path / name), **changes}))
    runs = [run_details(find_run(str(path))) for path in (result.folder, *(tmp_path / n for n, _ in others))]
    first, again, fewer = compare(runs).groups
    assert first.figures[BEST].how == "evaluation" and first.figures[BEST].low < first.figures[BEST].high
    assert BEST in again.differences and BEST not in fewer.differences and BEST in fewer.figures
