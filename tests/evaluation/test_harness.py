"""Benchmarks of EleutherAI's harness: the figures are those of the same call by hand, to all digits."""

import json
import math

import numpy as np
import pytest
import torch

from llmlab.cli import command_line
from llmlab.config.evaluation import EvaluationConfig
from llmlab.errors import LabError
from llmlab.evaluation.benchmarks import AGGREGATIONS
from llmlab.evaluation.folder import EvaluationFolder
from llmlab.evaluation.run import evaluate
from tests.conftest import write_rows

pytest.importorskip("lm_eval", reason="the extra [lm-eval] is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of lm-eval and its own libraries
]
TASKS = {
    "which": """
        output_type: multiple_choice
        doc_to_text: "Question: {{q}}\\nAnswer:"
        doc_to_choice: "{{choices}}"
        doc_to_target: "{{right}}"
        metric_list: [{metric: acc}, {metric: acc_norm}]
    """,
    "said": """
        output_type: generate_until
        doc_to_text: "{{q}}"
        doc_to_target: "{{answer}}"
        generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
        metric_list: [{metric: exact_match, ignore_case: true}]
    """,
    "prose": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
    """,
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    words = ["whale", "ship", "sea", "captain", "island"]
    rows = [
        {
            "q": f"What is {number} of the {words[number % 5]}?",
            "choices": [words[(number + step) % 5] for step in (0, 1, 2)],
            "right": number % 3,
            "answer": words[number % 5],
            "text": f"Call me {words[number % 5]}, said the {words[(number + 1) % 5]}. " * (number % 4 + 1),
        }
        for number in range(24)
    ]
    data = write_rows(folder / "rows.jsonl", rows)
    for name, text in TASKS.items():
        lines = [line[8:] for line in text.strip("\n").splitlines()]
        source = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {json.dumps(data)}}}}}\n"
        head = f"task: {name}\n{source}test_split: test\nfewshot_split: test\nmetadata: {{version: 1.0}}\n"
        (folder / f"{name}.yaml").write_text(head + "\n".join(lines).rstrip() + "\n")
    (folder / "all.yaml").write_text(
        "group: pair\ntask: [which]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    return folder


@pytest.fixture(scope="module")
def adapter(chat_folder, tmp_path_factory):
    from peft import LoraConfig, get_peft_model

    from llmlab.models.load import load_model

    place = tmp_path_factory.mktemp("harness") / "adapter"
    base, tokenizer = load_model(str(chat_folder))
    torch.manual_seed(2)
    adapted = get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    for name, weights in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weights, std=0.5)
    adapted.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def by_hand(tasks):
    """Figures as lm-eval itself gives them, of a folder that it loads itself."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    import llmlab.models  # noqa: F401  # so that transformers knows the lab's models

    manager = TaskManager(include_path=str(tasks), include_defaults=False)

    def figures(folder, names, peft=None, **options):
        model = HFLM(pretrained=str(folder), peft=peft, device="cpu", batch_size=8)
        results = simple_evaluate(model, tasks=[*names], task_manager=manager, **options)
        return {task: results["results"][task] for task in results["samples"]}

    return figures


def config(model, tasks, **changes):
    values = dict(harness=["which", "said", "prose"], tasks_folder=str(tasks), batch_size=8, forgetting=False)
    return EvaluationConfig(**{"model": str(model), "name": "it", **values, **changes})


def same(record, wanted, model):
    """Whether the figures of a record are those of lm-eval, to the last bit; all of them are there."""
    found = {one["source"]: one["figures"] for one in record["results"] if one["model"] == str(model)}
    for task, results in wanted.items():
        figures = {
            key.removesuffix(",none"): value
            for key, value in results.items()
            if key.endswith(",none") and "_stderr" not in key
        }
        assert figures and {name: entry["value"] for name, entry in found[task].items()} == figures
    return found


def test_figures_are_those_of_the_call_by_hand(tmp_path, monkeypatch, tasks, chat_folder, adapter, by_hand):
    """Of a lab model and its LoRA adapter, which is compared with it row by row."""
    monkeypatch.chdir(tmp_path)
    folder = evaluate(config(adapter, tasks, against=str(chat_folder), csv=True))
    record = folder.record
    found = same(record, by_hand(chat_folder, TASKS, peft=str(adapter)), adapter)
    same(record, by_hand(chat_folder, TASKS), chat_folder)
    for task, figure in (("which", "acc"), ("said", "exact_match"), ("prose", "word_perplexity")):
        entry = found[task][figure]
        assert entry["low"] <= entry["value"] <= entry["high"], task
    between = {(one["source"], one["figure"]): one for one in record["differences"]}
    assert between["which", "acc"]["test"] == "mcnemar"
    words = between["prose", "word_perplexity"]
    assert words["better"] == "lower" and words["rows"] == 24 and words["p"] < 0.05
    rows = folder.answers()
    assert len(rows) == 2 * 3 * 24 and (folder.path / "answers.csv").exists()
    one = next(row for row in rows if row["source"] == "which" and row["row"] == 4)
    assert one["prompt"].startswith("Question: What is 4") and one["reference"] == one_right(tasks, 4)
    assert one["log_prob"] == max(one["log_probs"].values()) and one["tokens"] > 0
    assert one["score"] == float(one["answer"] == one["reference"])
    said = next(row for row in rows if row["source"] == "said")
    assert isinstance(said["answer"], str) and said["reference"] == "whale"

    def refuse(*_, **__):
        raise AssertionError("computed twice")

    monkeypatch.setattr(
        "lm_eval.evaluator.evaluate", refuse
    )  # the same rows, from another evaluation and here
    other = evaluate(config(adapter, tasks, name="other", harness=["prose", "which"]))
    assert {one["source"] for one in other.record["results"]} == {"prose", "which"}
    stopped = {**record, "status": "stopped"}
    folder.write(stopped)
    assert evaluate(config(adapter, tasks, against=str(chat_folder))).record["results"] == record["results"]


def one_right(tasks, number):
    row = [json.loads(line) for line in (tasks / "rows.jsonl").read_text().splitlines()][number]
    return row["choices"][row["right"]]


def test_few_shot_chat_template_and_limit_are_passed_on(tmp_path, monkeypatch, tasks, untrained, by_hand):
    monkeypatch.chdir(tmp_path)
    model = untrained("talks")
    options = dict(harness=["which"], few_shot=1, limit=7)
    record = evaluate(config(model, tasks, chat_template=True, **options)).record
    wanted = by_hand(model, ["which"], num_fewshot=1, limit=7, apply_chat_template=True)
    same(record, wanted, model)
    rows = EvaluationFolder(tmp_path / "evaluations" / "it").answers()
    assert len(rows) == 7 and rows[0]["prompt"].count("Question:") == 2
    plain = evaluate(config(model, tasks, name="plain", **options)).record["results"][0]
    same({"results": [plain]}, by_hand(model, ["which"], num_fewshot=1, limit=7), model)
    # a suite names them beside a source
    questions = {"source": {"name": "llmlab:questions", "max_rows": 4}}
    suite = {**options, "tasks_folder": str(tasks), "tasks": [questions]}
    (tmp_path / "both.json").write_text(json.dumps(suite))
    both = EvaluationConfig(model=str(model), name="both", suite="both.json", forgetting=False)
    results = {one["source"]: one for one in evaluate(both).record["results"]}
    assert results.keys() == {"questions", "which"} and results["which"]["figures"] == plain["figures"]


def test_groups_and_dual_heads(tmp_path, monkeypatch, tasks, chat_folder, by_hand):
    from llmlab.models.dual_head import LabDualHeadConfig, LabDualHeadForCausalLM
    from llmlab.models.load import load_model

    monkeypatch.chdir(tmp_path)
    backbone, tokenizer = load_model(str(chat_folder))
    heads = LabDualHeadForCausalLM(LabDualHeadConfig(backbone.config, str(chat_folder)), backbone)
    with torch.no_grad():
        heads.lm_head.weight.add_(0.2 * torch.randn_like(heads.lm_head.weight))
    heads.save_pretrained(tmp_path / "heads")
    tokenizer.save_pretrained(tmp_path / "heads")
    record = evaluate(config("heads", tasks, harness=["pair", "said"])).record
    found = same(record, by_hand(tmp_path / "heads", ["which", "said"]), "heads")
    assert found["pair"]["acc"]["value"] == found["which"]["acc"]["value"]


def test_what_is_wrong_is_one_message(tmp_path, monkeypatch, tasks, chat_folder):
    monkeypatch.chdir(tmp_path)
    base = ["evaluate", str(chat_folder), "--tasks-folder", str(tasks)]
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "far.yaml").write_text(
        "task: far\ndataset_path: someone/nothing_here\ntest_split: test\noutput_type: generate_until\n"
        "doc_to_text: '{{q}}'\ndoc_to_target: '{{a}}'\n"
    )
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "bad.yaml").write_text(
        (tasks / "said.yaml").read_text().replace("task: said", "task: bad").replace("{{q}}", "{{nothing}}")
    )
    cases = [
        ([*base, "--harness", "whihc"], "did you mean which"),
        ([*base[:3], "hub", "--harness", "far"], "its data cannot be loaded"),
        ([*base[:3], "bad", "--harness", "bad"], "nothing"),
    ]
    for arguments, words in cases:
        with pytest.raises(LabError) as caught:
            command_line(arguments)
        assert caught.value.exit_code == 2 and words in str(caught.value), arguments
    with pytest.raises(LabError, match="has no chat template"):
        bare = tmp_path / "bare"
        bare.mkdir()
        for file in chat_folder.iterdir():
            if file.suffix != ".jinja":
                text = file.read_bytes()
                (bare / file.name).write_bytes(text)
        settings = json.loads((bare / "tokenizer_config.json").read_text())
        settings.pop("chat_template", None)
        (bare / "tokenizer_config.json").write_text(json.dumps(settings))
        evaluate(config(bare, tasks, chat_template=True))


def test_known_functions_are_lm_evals():
    """Figures of totals, which intervals are of, are those of lm-eval's functions, which it keeps by name."""
    from lm_eval.api import metrics

    draw = np.random.default_rng(0)
    singles = [-float(value) for value in draw.exponential(2, 50)]
    pairs = [[value, float(count)] for value, count in zip(singles, draw.integers(1, 9, 50), strict=True)]
    for name, (make, of_pairs) in AGGREGATIONS.items():
        values = pairs if of_pairs else singles
        function = getattr(metrics, name)
        assert function.__name__ == name and function.__module__ == "lm_eval.api.metrics"
        assert math.isclose(make(values).figure, function(values), rel_tol=1e-12)


def test_what_lm_eval_is_asked_for():
    """Names and arguments of it that are used."""
    import inspect

    from lm_eval import evaluate as evaluate_tasks
    from lm_eval.api.task import ConfigurableTask, Task
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    for function, names in (
        (evaluate_tasks, "lm task_dict limit apply_chat_template fewshot_as_multiturn bootstrap_iters"),
        (HFLM.__init__, "pretrained tokenizer backend batch_size"),
        (TaskManager.__init__, "include_path include_defaults"),
    ):
        assert set(names.split()) <= set(inspect.signature(function).parameters)
    for name in ("eval_docs", "dump_config", "fewshot_docs", "aggregation", "higher_is_better"):
        assert hasattr(Task, name) and hasattr(ConfigurableTask, name)
    assert isinstance(TaskManager.all_tasks, property) and isinstance(TaskManager.all_subtasks, property)
