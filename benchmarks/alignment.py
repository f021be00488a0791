"""What alignment learns on held-out questions, by method and seed, all from one checkpoint: the quickstart's
SFT model.

    llmlab quickstart                                        # in a folder of its own; makes
    checkpoints/quickstart python benchmarks/alignment.py --seeds 1 2 3 ppo ppo-no-critic grpo dpo reward

Judged on 400 questions, 252 pairs, that no training row contains: the greedy answer's exact match, the share
of pairs whose chosen answer is likelier (dpo) or scores higher (reward). Every line is one run; the last ones
are means and spreads.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from llmlab.config import DPOConfig, GRPOConfig, PPOConfig, RewardConfig
from llmlab.data.schemas import user
from llmlab.data.tasks import distinct_questions, questions, wrong_answer
from llmlab.data.tokenizer import load_tokenizer
from llmlab.evaluation.answers import answer
from llmlab.evaluation.pairs import preference_accuracy
from llmlab.models.load import load_model, load_scorer
from llmlab.rewards.model import scores
from llmlab.runs.folder import RunFolder
from llmlab.training.engine.run import run

QUICKSTART = Path("checkpoints/quickstart")
SHARED: dict[str, Any] = dict(
    policy_checkpoint=str(QUICKSTART / "sft"),
    eval_fraction=0.02,
    eval_steps=2,
    save_every=100_000,
    log_every=1,
    save_best_only=False,
    report_to=[],
    max_prompt_length=64,
)
ROLLOUTS: dict[str, Any] = dict(
    reward_model="exact_match",
    batch_size=128,
    mini_batch_size=64,
    max_new_tokens=14,
    learning_rate=3e-4,
    warmup_steps=5,
)
PPO: dict[str, Any] = dict(**ROLLOUTS, ppo_epochs=2, kl_coef=0.01, max_steps=240)
CRITIC: dict[str, Any] = dict(vf_coef=1.0, value_learning_rate=3e-3)
PAIRS: dict[str, Any] = dict(datasets=[str(QUICKSTART / "dpo.jsonl")], max_length=128)
UPDATES: dict[str, Any] = dict(max_steps=120, warmup_steps=10, batch_size=32)
METHODS: dict[str, tuple[type, dict[str, Any]]] = {
    "ppo": (PPOConfig, dict(**PPO, **CRITIC)),
    "ppo-no-critic": (PPOConfig, dict(**PPO, critic=False)),
    "ppo-high-kl": (PPOConfig, {**PPO, **CRITIC, "kl_coef": 3.0}),
    "grpo": (GRPOConfig, dict(**ROLLOUTS, group_size=8, beta=0.0, iterations=1, max_steps=80)),
    "dpo": (DPOConfig, dict(**PAIRS, **UPDATES, beta=0.3, learning_rate=1e-4, mini_batch_size=32)),
    "reward": (
        RewardConfig,
        dict(
            max_length=128,
            learning_rate=5e-4,
            max_steps=900,
            warmup_steps=20,
            batch_size=32,
            gradient_accumulation_steps=1,
        ),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", default=["ppo", "ppo-no-critic", "grpo", "dpo", "reward"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", default="{}", help="JSON of options to change")
    args = parser.parse_args()
    prompts = Path(tempfile.mkdtemp()) / "prompts.jsonl"
    rows = itertools.islice(questions(11, held_out=False), 6000)
    prompts.write_text("".join(json.dumps({"prompt": q, "answer": a}) + "\n" for _, q, a in rows))
    test = distinct_questions(400, seed=1)
    pairs = [json.loads(line) for line in (QUICKSTART / "dpo_test.jsonl").read_text().splitlines()]
    careless = prompts.with_name("careless.jsonl")
    rows = itertools.islice(questions(12, held_out=False), 20_000)
    careless.write_text("".join(json.dumps(pair) + "\n" for row in rows if (pair := wrong_pair(*row))))
    careless_test = [pair for row in test if (pair := wrong_pair(*row))]
    before = judge(QUICKSTART / "sft", test, pairs)
    print("before", json.dumps(before), flush=True)
    results: dict[str, list[dict[str, float]]] = {}
    for method, seed in itertools.product(args.methods, args.seeds):
        cls, values = METHODS[method]
        data = (
            {"datasets": [str(careless if method == "reward" else prompts)]}
            if "datasets" not in values
            else {}
        )
        folder = tempfile.mkdtemp() + "/run"
        merged = {**SHARED, **data, **values, **json.loads(args.set), "seed": seed, "output_dir": folder}
        merged.setdefault("eval_every", merged["max_steps"])
        began = time.perf_counter()
        result = run(cls(**merged))
        seconds = time.perf_counter() - began
        if method == "reward":
            figures = {"pairs": held_out_scores(result.folder / "final", careless_test)}
        else:
            figures = judge(result.folder / "final", test, pairs)
        lines = RunFolder(result.folder).metrics()
        for name in ("explained_variance", "kl"):
            seen = [line[name] for line in lines if name in line]
            if seen:
                last = seen[-max(1, len(seen) // 4) :]
                figures |= {f"{name} first": seen[0], f"{name} last quarter": statistics.fmean(last)}
        figures["seconds"] = seconds
        results.setdefault(method, []).append(figures)
        print(method, seed, json.dumps({key: round(value, 3) for key, value in figures.items()}), flush=True)
    for method, runs in results.items():
        for name in runs[0]:
            values = [figures[name] for figures in runs]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"{method:14} {name:32} mean {statistics.fmean(values):.3f}  spread {spread:.3f}")


def wrong_pair(task: str, question: str, right: str) -> dict[str, str] | None:
    """Returns the right answer before one with a slip in it; None where the slip changes nothing."""
    wrong = wrong_answer(task, question, right)
    return {"prompt": question, "chosen": right, "rejected": wrong} if wrong != right else None


def judge(folder: Path, test: list[Any], pairs: list[dict[str, str]]) -> dict[str, float]:
    """Returns greedy exact match and preference accuracy of a model."""
    model, tokenizer = load_model(str(folder))
    rows = [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in pairs]
    return {
        "exact match": answer(model, tokenizer, test, batch_size=128).accuracy,
        "pairs": preference_accuracy(model, tokenizer, rows),
    }


def held_out_scores(folder: Path, pairs: list[dict[str, str]]) -> float:
    """Returns how often the reward model scores the chosen answer higher."""
    tokenizer = load_tokenizer(str(folder))
    model = load_scorer(str(folder), pad=tokenizer.pad_token_id)
    chosen, rejected = (
        scores(
            model,
            tokenizer,
            [[*user(pair["prompt"]), {"role": "assistant", "content": pair[side]}] for pair in pairs],
        )
        for side in ("chosen", "rejected")
    )
    return sum(a > b for a, b in zip(chosen, rejected, strict=True)) / len(pairs)


if __name__ == "__main__":
    main()
