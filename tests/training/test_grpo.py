"""GRPO: advantages as defined within each group, rewards checked, consent asked, and the policy learns."""

import inspect
import subprocess
import sys

import pytest
import torch
import trl

from llmlab.config import GRPOConfig, save_config
from llmlab.config.base import validate
from llmlab.config.rewards import RewardSource
from llmlab.errors import LabError
from llmlab.runs.folder import RunFolder
from llmlab.training import rewards
from llmlab.training.engine.reporter import SILENT
from llmlab.training.engine.run import run
from llmlab.training.methods import grpo
from llmlab.training.rewards import reward_function
from llmlab.training.trainers.grpo import GRPOTrainer, group_figures
from tests.conftest import write_rows
from tests.training.conftest import grpo_config
from tests.waiting import PATIENCE


@pytest.mark.slow
def test_it_learns_what_is_rewarded(policy, tmp_path):
    result = run(grpo_config(policy, tmp_path))
    assert (
        result.metrics["before_eval_reward"] < 0.8
        and result.metrics["eval_reward"] > result.metrics["before_eval_reward"] + 0.2
    )
    figures = [line for line in RunFolder(result.folder).metrics() if "reward" in line]
    assert len(figures) == 20
    for line in figures:  # no reference, no KL
        assert {
            "group/spread",
            "group/best",
            "group/no_signal",
            "entropy",
        } <= line.keys() and "kl" not in line
    assert figures[-1]["group/no_signal"] > figures[0]["group/no_signal"] and result.model.name == "best"


@pytest.mark.slow
def test_a_strong_kl_weight_holds_the_policy(policy, tmp_path):
    moved = []
    for beta in (0.01, 5.0):
        (tmp_path / str(beta)).mkdir()
        result = run(
            grpo_config(
                policy,
                tmp_path / str(beta),
                beta=beta,
                max_steps=12,
                eval_every=12,
                save_every=12,
                iterations=2,
            )
        )
        moved.append([line["kl"] for line in RunFolder(result.folder).metrics() if "kl" in line])
    assert moved[0][0] == pytest.approx(0, abs=1e-3) and abs(moved[1][-1]) < 0.1 * abs(moved[0][-1]) + 0.02


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "qlora"])
def test_with_adapters_one_model_is_policy_and_reference(policy, tmp_path, adapter):
    result = run(
        grpo_config(
            policy,
            tmp_path,
            adapter=adapter,
            lora_r=8,
            beta=0.02,
            learning_rate=5e-3,
            max_steps=12,
            eval_every=12,
        )
    )
    assert result.metrics["eval_reward"] >= result.metrics["before_eval_reward"] - 0.1
    assert (
        RunFolder(result.folder).record["trained_parameters"]
        < 0.5 * RunFolder(result.folder).record["parameters"]
    )


@pytest.mark.slow
def test_groups_are_never_mixed_across_prompts(policy, tmp_path, monkeypatch):
    seen = []
    real = GRPOTrainer._generate_and_score_completions

    def noted(self, inputs):
        out = real(self, inputs)
        if self.model.training:
            seen.append((out["advantages"].clone(), [row["prompt"][-1]["content"] for row in inputs]))
        return out

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", noted)
    run(grpo_config(policy, tmp_path, max_steps=3, eval_every=3))
    assert len(seen) == 3
    for advantages, prompts in seen:
        assert all(len(set(prompts[start : start + 4])) == 1 for start in range(0, 16, 4)), (
            "a group is one prompt"
        )
        torch.testing.assert_close(advantages.view(-1, 4).mean(dim=1), torch.zeros(4), atol=1e-5, rtol=0)
    assert len({prompt for _, prompts in seen for prompt in prompts}) > 4


@pytest.mark.slow
def test_weighted_rewards_and_advantages_by_the_formula(policy, tmp_path, monkeypatch):
    kept = {}
    calculate, score = GRPOTrainer._calculate_rewards, GRPOTrainer._generate_and_score_completions

    def rewards_of(self, *args):
        kept["rewards"] = calculate(self, *args)
        return kept["rewards"]

    def advantages_of(self, inputs):
        out = score(self, inputs)
        if self.model.training and "advantages" not in kept:
            kept["advantages"] = out["advantages"].clone()
            kept["of"] = kept["rewards"].clone()
        return out

    monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", rewards_of)
    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", advantages_of)
    run(
        grpo_config(
            policy, tmp_path, max_steps=1, eval_every=1, reward_model=["exact_match | 2", "length | 0.5 | 2"]
        )
    )
    total = (2 * kept["of"][:, 0] + 0.5 * kept["of"][:, 1]).view(-1, 4)
    wanted = (total - total.mean(1, keepdim=True)) / (total.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(kept["advantages"], wanted.flatten())


@pytest.mark.slow
def test_prompts_bring_the_bare_answer_where_the_catalogue_knows_it(policy, tmp_path):
    from llmlab.data.prompts import prompts_data
    from llmlab.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(policy)
    rows = [{"question": f"{i} + 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"} for i in range(9)]
    path = write_rows(tmp_path / "math.jsonl", rows)
    known, plain = (
        prompts_data(grpo_config(policy, tmp_path, datasets=[source], eval_fraction=0), tokenizer).train
        for source in ({"name": path, "like": "gsm8k"}, {"name": path})
    )
    assert sorted(known["answer"]) == [str(i) for i in range(1, 10)] and "####" in plain["answer"][0]
    with pytest.raises(LabError, match="cannot be streamed for this method"):
        prompts_data(grpo_config(policy, tmp_path, datasets=[{"name": path, "streaming": True}]), tokenizer)


def test_group_figures():
    figures = group_figures(torch.tensor([[1.0, 0.0, 1.0, 0.0], [2.0, 2.0, 2.0, 2.0]]))
    assert figures["group/best"] == 1.5 and figures["group/no_signal"] == 0.5
    assert figures["group/spread"] == pytest.approx(0.5773502 / 2)


@pytest.mark.slow
def test_killed_runs_resume_alike(policy, tmp_path):
    import shutil

    whole = run(grpo_config(policy, tmp_path, max_steps=8, save_every=4, eval_every=8, save_best_only=False))
    folder = tmp_path / "again"
    shutil.copytree(whole.folder, folder)
    for left in ("checkpoint-8", "final", "best"):
        shutil.rmtree(folder / left, ignore_errors=True)
    RunFolder(folder).update(status="running")
    run(
        grpo_config(
            policy,
            tmp_path,
            max_steps=8,
            save_every=4,
            eval_every=8,
            save_best_only=False,
            output_dir=str(folder),
        )
    )
    curves = [
        [(line["step"], line["reward"]) for line in RunFolder(f).metrics() if "reward" in line]
        for f in (whole.folder, folder)
    ]
    assert curves[0] == curves[1]


BAD = {
    "raises": (
        "def f(prompts, completions, **k): raise KeyError('x')",
        r"failed \(KeyError: 'x'\); the answer was",
    ),
    "none": (
        "def f(prompts, completions, **k): return [None] * len(completions)",
        "gave None, which is not a finite number; the answer",
    ),
    "nan": (
        "def f(prompts, completions, **k): return [float('nan')] * len(completions)",
        "gave nan, which is not a finite number",
    ),
    "count": ("def f(prompts, completions, **k): return [1.0]", "returned 1 values for 3 answers"),
    "kind": ("def f(prompts, completions, **k): return 1.0", "returned float values for 3 answers"),
    "text": (
        "def f(prompts, completions, **k): return ['good'] * 3",
        "gave 'good', which is not a finite number",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_rewards_that_misbehave(tmp_path, monkeypatch, case):
    code, message = BAD[case]
    (tmp_path / f"own_{case}.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rewards, "TRUSTED", {f"own_{case}:f"})
    function = reward_function(RewardSource(name=f"own_{case}:f"), "cpu")
    with pytest.raises(LabError, match=message) as caught:
        function(prompts=["a", "b", "c"], completions=["x", "y", "z"], answer=["1", "2", "3"])
    assert caught.value.exit_code == 1 and f"own_{case}:f" in str(caught.value)


@pytest.mark.slow
def test_a_function_of_ones_own_gets_columns_and_runs_only_with_consent(policy, tmp_path):
    (tmp_path / "mine.py").write_text(
        "open('imported', 'w').close()\n"
        "def score(prompts, completions, answer, **columns):\n"
        "    return [float(c == a) for c, a in zip(completions, answer)]\n"
    )
    path = save_config(
        grpo_config(policy, tmp_path, reward_model="mine:score", max_steps=2, eval_every=2),
        tmp_path / "grpo.json",
    )
    command = [sys.executable, "-m", "llmlab", "run", str(path)]
    refused = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, stdin=subprocess.DEVNULL, timeout=PATIENCE
    )
    assert (
        refused.returncode == 2
        and "--trust mine:score" in refused.stderr
        and not (tmp_path / "imported").exists()
    )
    agreed = subprocess.run(
        [*command, "--trust", "mine:score"], capture_output=True, text=True, cwd=tmp_path, timeout=PATIENCE
    )
    assert agreed.returncode == 0, agreed.stderr[-2000:]
    assert (tmp_path / "imported").exists()


@pytest.mark.slow
def test_a_failing_reward_ends_the_run_with_one_message(policy, tmp_path):
    (tmp_path / "bad.py").write_text("def f(prompts, completions, **k): return [1 / 0]")
    path = save_config(grpo_config(policy, tmp_path, reward_model="bad:f"), tmp_path / "grpo.json")
    done = subprocess.run(
        [sys.executable, "-m", "llmlab", "run", str(path), "--trust", "bad:f"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=PATIENCE,
    )
    assert (
        done.returncode == 1
        and "error: the reward 'bad:f' failed (ZeroDivisionError" in done.stderr
        and "Traceback" not in done.stderr
    )


@pytest.mark.slow
def test_a_reward_model_by_name_whatever_its_tokenizer(policy, base_run, tmp_path):
    from llmlab.config import RewardConfig
    from llmlab.data.tokenizer import load_tokenizer
    from llmlab.models import LabConfig, LabForSequenceClassification

    pairs = [{"prompt": f"Who is {i}?", "chosen": "Ahab", "rejected": "Stubb"} for i in range(60)]
    scorer = run(
        RewardConfig(
            policy_checkpoint=str(base_run.model),
            datasets=[write_rows(tmp_path / "pairs.jsonl", pairs)],
            max_steps=20,
            learning_rate=3e-3,
            batch_size=8,
            gradient_accumulation_steps=1,
            max_length=64,
            max_prompt_length=48,
            eval_every=20,
            output_dir=str(tmp_path / "scorer"),
            report_to=[],
        )
    )
    function = reward_function(RewardSource(name=str(scorer.folder)), "cpu")
    good, bad = function(
        prompts=[[{"role": "user", "content": "Who is 3?"}]] * 2, completions=["Ahab", "Stubb"]
    )
    assert good > bad
    result = run(grpo_config(policy, tmp_path, reward_model=str(scorer.folder), max_steps=12, eval_every=12))
    assert result.metrics["eval_reward"] > result.metrics["before_eval_reward"]
    other = LabForSequenceClassification(
        LabConfig(vocab_size=260, d_model=32, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=32, num_labels=1)
    )
    other.save_pretrained(tmp_path / "bytes")
    load_tokenizer("byte").save_pretrained(tmp_path / "bytes")
    scores = reward_function(RewardSource(name=str(tmp_path / "bytes")), "cpu")(
        prompts=["Who?"], completions=["Ahab"]
    )
    assert len(scores) == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(group_size=1), "`group_size` 1 must be at least 2"),
        (dict(batch_size=18, mini_batch_size=4), "does not divide `batch_size` 18"),
        (
            dict(batch_size=18, mini_batch_size=6),
            "`batch_size` 18 is not a multiple of `group_size` 4: use 16",
        ),
        (dict(reward_model=[]), "reward_model"),
    ],
)
def test_sizes_that_do_not_fit(changes, message):
    with pytest.raises(LabError, match=message):
        validate(GRPOConfig, {"kind": "grpo", **changes})


def test_what_is_overridden_is_still_there():
    """Contract with the pinned TRL: fails when a parent's method or data contract changes."""
    names = list(inspect.signature(trl.GRPOTrainer._calculate_rewards).parameters)
    assert names == ["self", "inputs", "prompts", "completions", "completion_ids_list"]
    source = inspect.getsource(trl.GRPOTrainer)
    assert "self.reward_weights" in source and "self.ref_model" in source and "self.beta != 0.0" in source


def test_the_options_of_answers_and_updates_reach_the_trainer(base_run, tmp_path):
    """None of these values is a default of this package or of TRL."""
    rows = [{"prompt": f"Who is {i}?", "answer": "Ahab"} for i in range(8)]
    made = GRPOConfig(
        policy_checkpoint=str(base_run.folder),
        datasets=[write_rows(tmp_path / "prompts.jsonl", rows)],
        reward_model=[
            {"name": "exact_match", "weight": 0.3},
            {"name": "length", "weight": 2.0, "setting": "6"},
        ],
        clip_range=0.11,
        max_new_tokens=9,
        top_k=13,
        top_p=0.83,
        batch_size=16,
        mini_batch_size=8,
        eval_fraction=0.0,
        grpo_temperature=0.7,
        iterations=3,
        group_size=8,
    )
    job = grpo.prepare(made, "cpu", "fp32", SILENT)
    arguments = job.arguments(
        output_dir=str(tmp_path), per_device_train_batch_size=8, use_cpu=True, bf16=False
    )
    assert (arguments.temperature, arguments.top_k, arguments.top_p) == (0.7, 13, 0.83)
    assert (arguments.epsilon, arguments.num_iterations, arguments.max_completion_length) == (0.11, 3, 9)
    assert arguments.reward_weights == [0.3, 2.0] and arguments.num_generations == 8
    assert arguments.generation_batch_size == 16
