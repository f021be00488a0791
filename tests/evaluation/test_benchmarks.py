"""What is known of benchmarks without lm-eval: options, what is refused, figures of rows."""

import importlib.util

import pytest

from llmlab.cli import command_line
from llmlab.config.base import validate, validate_option
from llmlab.config.evaluation import EvaluationConfig
from llmlab.config.suites import tasks_of, with_benchmarks
from llmlab.errors import LabError
from llmlab.evaluation.benchmarks import better_of, check_benchmarks, samples_of_benchmark
from llmlab.evaluation.results import differences, result_of
from llmlab.evaluation.subjects import evaluation_name
from llmlab.trust import TRUSTED


def rows(values, by="mean", better="higher"):
    return [
        {"row": n, "metrics": {"f": {"value": value, "by": by, "better": better}}}
        for n, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(harness="a,a"), "`harness` names 'a' twice"),
        (dict(harness=""), "without a name"),
        (dict(limit=3), "`limit` is of benchmarks, and `harness` names none"),
        (dict(chat_template=True, suite="mails"), "`chat_template` is of benchmarks"),
        (dict(harness="a", by="generate"), "`by` is of sources"),
        (dict(harness="a", temperature=0.5), "`temperature` is of sources"),
    ],
)
def test_options_that_say_nothing_are_refused(values, message):
    with pytest.raises(LabError, match=message):
        validate(EvaluationConfig, {"model": "m", **values})


def test_names_stand_with_commas_and_measure_nothing_else():
    config = validate(EvaluationConfig, {"model": "m", "harness": "arc_easy, hellaswag"})
    assert config.harness == ["arc_easy", "hellaswag"] and tasks_of(config) == []
    assert evaluation_name(config) == "m-arc_easy-hellaswag"
    assert validate_option(EvaluationConfig, "harness", "arc_easy, mmlu") == ["arc_easy", "mmlu"]  # in a form
    both = validate(EvaluationConfig, {"model": "m", "harness": ["a"], "suite": "mails", "by": "generate"})
    assert len(tasks_of(both)) == 1 and evaluation_name(both) == "m-mails-a"


def test_a_suite_names_benchmarks_and_how_they_are_asked(tmp_path):
    (tmp_path / "s.yaml").write_text("harness: [arc_easy, mmlu]\nlimit: 20\nfew_shot: 2\n")
    (tmp_path / "no.yaml").write_text("title: nothing\n")
    config = EvaluationConfig(model="m", suite=str(tmp_path / "s.yaml"))
    merged = with_benchmarks(config)
    assert merged.harness == ["arc_easy", "mmlu"] and (merged.limit, merged.few_shot) == (20, 2)
    assert tasks_of(merged) == [] and with_benchmarks(merged) == merged
    own = config.model_copy(update={"harness": ["mmlu", "x"], "few_shot": 0})
    assert with_benchmarks(own).harness == ["arc_easy", "mmlu", "x"] and with_benchmarks(own).few_shot == 0
    with pytest.raises(LabError, match="names `tasks` or benchmarks"):
        tasks_of(EvaluationConfig(model="m", suite=str(tmp_path / "no.yaml")))


def test_what_is_missing_is_said_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else real(name))
    with pytest.raises(
        LabError, match=r"needs the package lm-eval: pip install 'llmlab\[lm-eval\]'"
    ) as caught:
        command_line(["evaluate", "nothing", "--harness", "arc_easy"])
    assert caught.value.exit_code == 2
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    config = EvaluationConfig(model="m", harness=["own"], tasks_folder="own")
    with pytest.raises(LabError, match="there is no such folder"):
        check_benchmarks(config)
    (tmp_path / "own").mkdir()
    with pytest.raises(LabError, match="holds no task"):
        check_benchmarks(config)
    task = tmp_path / "own" / "own.yaml"
    for code in ("process_docs: !function own.run", "class: Own", "include: ../elsewhere.yaml"):
        task.write_text(f"task: own\n{code}\n")
        with pytest.raises(LabError, match=r"own\.yaml: this task runs Python code .* add --trust own"):
            check_benchmarks(config)
    monkeypatch.setattr("llmlab.evaluation.benchmarks.TRUSTED", {*TRUSTED, "own"})
    check_benchmarks(config)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    task.write_text("task: own\ninclude: _shared.yaml\n")
    check_benchmarks(config)


def test_a_figure_is_lm_evals_and_its_interval_that_of_its_rows():
    about = {"source": "x", "model": "m", "measure": "benchmark", "rows": 4, "values": {"f": 0.75, "g": 3.0}}
    found = result_of(about, rows([1.0, 1.0, 0.0, 1.0]), 0)["figures"]
    assert found["f"]["value"] == 0.75 and found["f"]["how"] == "share of rows"
    assert found["g"]["value"] == 3.0 and found["g"]["low"] is None
    other = result_of({**about, "values": {"f": 0.5}}, rows([1.0, 1.0, 0.0, 1.0]), 0)["figures"]["f"]
    assert other["value"] == 0.5 and other["low"] is None  # the rows say something else
    assert result_of(about, [], 0)["figures"]["f"]["low"] is None  # of a group of tasks


def test_differences_are_of_rows_and_know_which_way_is_better():
    one, other = (
        rows([[-9.0, 3]] * 20, "weighted_perplexity", "lower"),
        rows([[-3.0 - n / 9, 3] for n in range(20)], "weighted_perplexity", "lower"),
    )
    (found,) = differences("benchmark", "x", ("a", "b"), (one, other), 0)
    assert found["words"] == "worse" and found["better"] == better_of("f", one) == "lower"
    assert found["difference"] > 0 and found["p"] < 0.05


def test_a_figure_of_a_function_that_is_not_known_has_no_interval():
    unknown = rows([[0, 1], [1, 1]], "f1_score")
    assert samples_of_benchmark(unknown) == {} and samples_of_benchmark([]) == {}
    assert differences("benchmark", "x", ("a", "b"), (unknown, unknown), 0) == []
