"""SIGKILL or SIGTERM at random moments of runs of every stage: each goes on until it ends as one that was never interrupted.

    python benchmarks/interruptions.py --kills 100
    python benchmarks/interruptions.py --signal TERM --kills 50

A run is started, interrupted after a random time (inside saving, validating and generating too), started again, until it is
done. Every finished run must have the weights and the metrics of one that was never interrupted, to the bit. After a SIGTERM
the process must end by itself with 143, and what it had learned must be in a sealed checkpoint; the longest wait is printed.
Runs are forked from this process, which has imported everything and computed nothing. `benchmarks/kills.py` does the same
while the cache of a sequential reference is filled.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from kills import finished, forked, make_policy
from safetensors.torch import load_file

from llmlab.config import DPOConfig, DualHeadConfig, GRPOConfig, ModelConfig, PPOConfig, PretrainConfig, RewardConfig, SFTConfig
from llmlab.runs.folder import RunFolder
from llmlab.runs.seal import verify
from llmlab.train import engine

CLOCK = ("runtime", "per_second", "step_time", "preparation_time")
SHARED: dict[str, Any] = dict(
    max_steps=14, learning_rate=1e-3, warmup_steps=2, log_every=3, eval_every=4, save_every=5, eval_fraction=0.15, eval_steps=2,
    save_best_only=False, report_to=[],
)  # fmt: skip
SHAPE = ModelConfig(
    tokenizer_name="byte", vocab_size=260, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=128, max_seq_len=128
)
TEXT: dict[str, Any] = dict(model=SHAPE, batch_size=4, gradient_accumulation_steps=2)
ROLLOUT: dict[str, Any] = dict(
    reward_model="length | 1 | 3", batch_size=16, mini_batch_size=8, max_new_tokens=16, max_prompt_length=64
)
PAIR: dict[str, Any] = dict(max_length=96, max_prompt_length=64)
STAGES: dict[str, tuple[type, str, dict[str, Any]]] = {
    "pretrain": (PretrainConfig, "text", TEXT),
    "pretrain-stream": (PretrainConfig, "stream", TEXT),
    "sft": (SFTConfig, "answers", dict(batch_size=4, gradient_accumulation_steps=2, max_length=96)),
    "sft-lora": (SFTConfig, "answers", dict(batch_size=4, gradient_accumulation_steps=2, max_length=96, adapter="lora")),
    "reward": (RewardConfig, "pairs", dict(batch_size=4, gradient_accumulation_steps=2, **PAIR)),
    "dpo": (DPOConfig, "pairs", dict(batch_size=8, mini_batch_size=4, **PAIR)),
    "dpo-live": (DPOConfig, "pairs", dict(batch_size=8, mini_batch_size=4, reference="live", **PAIR)),
    "dual-head": (DualHeadConfig, "pairs", dict(batch_size=4, gradient_accumulation_steps=2, epochs=9, **PAIR)),
    "grpo": (GRPOConfig, "prompts", dict(**ROLLOUT, group_size=4, beta=0.05, iterations=3)),
    "ppo": (PPOConfig, "prompts", dict(**ROLLOUT, ppo_epochs=3, kl_coef=0.05)),
}


def write_data(work: Path) -> None:
    """Writes rows of every shape, from the words of the shipped novel."""
    from llmlab.config import SourceConfig
    from llmlab.data.sources import load_rows

    text = " ".join(row["text"] for row in itertools.islice(load_rows(SourceConfig(name="llmlab:moby-dick")), 400)).split()
    says = [" ".join(text[i : i + 3 + i % 5]) for i in range(0, 3000, 9)]
    rows = {
        "text": [{"text": " ".join(text[i : i + 60])} for i in range(0, 20000, 60)],
        "answers": [{"prompt": a, "completion": b} for a, b in itertools.pairwise(says)],
        "pairs": [{"prompt": a, "chosen": b, "rejected": b[::-1]} for a, b in itertools.pairwise(says)],
        "prompts": [{"prompt": a} for a in says],
    }
    for name, made in rows.items():
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))


def job(work: Path, stage: str, name: str):
    cls, data, values = STAGES[stage]
    source: Any = str(work / f"{data}.jsonl")
    if data == "stream":
        source = {"name": str(work / "text.jsonl"), "streaming": True}
    policy = {} if cls is PretrainConfig else {cls.STARTS_FROM: str(work / "policy")}
    cache = {"cache_dir": str(work / name / "cache")} if stage == "dpo" else {}
    config = cls(**{**SHARED, **policy, **cache, **values, "datasets": [source], "output_dir": str(work / name / "run")})

    def start() -> None:
        torch.set_num_threads(1)
        (work / name).mkdir(exist_ok=True)
        result = engine.run(config)
        if code := engine.exit_code(result):
            os._exit(code)

    return start


def ending(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    run = folder / "run"
    weights = next(path for path in (run / "final").glob("*model.safetensors"))
    lines = [line for line in RunFolder(run).metrics() if "train_loss" not in line]
    return load_file(weights), [{k: v for k, v in line.items() if not any(part in k for part in CLOCK)} for line in lines]


def differs(whole: Path, other: Path) -> str:
    """Returns "" when two runs ended alike, else in what they differ."""
    (weights, lines), (found, seen) = ending(whole), ending(other)
    if any(not torch.equal(weights[name], found[name]) for name in weights):
        return "weights"
    return "" if lines == seen else f"metrics: {lines} and {seen}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, number = random.Random(given.seed), getattr(signal, f"SIG{given.signal}")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["LLMLAB_CACHE"] = str(work / "data")
        write_data(work)
        log = work / "log"
        finished(lambda: make_policy(work / "policy"), log)
        lengths = {}
        for stage in given.stages:
            began = time.perf_counter()
            finished(job(work, stage, f"whole-{stage}"), log)
            lengths[stage] = time.perf_counter() - began
        kills: Counter[str] = Counter()
        saving, longest, rounds = 0, 0.0, 0
        while sum(kills.values()) < given.kills:
            stage = given.stages[rounds % len(given.stages)]
            name, rounds = f"round-{rounds}", rounds + 1
            while True:
                child = forked(job(work, stage, name), log)
                limit = time.perf_counter() + rng.uniform(0.05, lengths[stage])
                done = status = 0
                while time.perf_counter() < limit and not done:
                    time.sleep(0.002)
                    done, status = os.waitpid(child, os.WNOHANG)
                if not done:
                    os.kill(child, number)
                    asked = time.perf_counter()
                    _, status = os.waitpid(child, 0)
                    longest = max(longest, time.perf_counter() - asked)
                    kills[stage] += 1
                    run = RunFolder(work / name / "run")
                    saving += (run.path / ".saving").exists()
                    if given.signal == "KILL":
                        continue
                    if os.waitstatus_to_exitcode(status) == 143:
                        if run.record.get("step", 0) and verify(run.checkpoints()[0]):
                            sys.exit(f"{name} ({stage}): {run.checkpoints()[0]} {verify(run.checkpoints()[0])}")
                        continue
                    if os.waitstatus_to_exitcode(status) == -15:  # before the run had begun
                        continue
                if status:
                    sys.exit(f"{name} ({stage}) failed:\n{log.read_text()[-3000:]}")
                break
            if difference := differs(work / f"whole-{stage}", work / name):
                sys.exit(f"{name} ({stage}) differs from an uninterrupted run: {difference}")
            shutil.rmtree(work / name)
            print(f"{name} ({stage}): alike; so far {dict(kills)}", flush=True)
    wait = f"{longest:.1f} s at most from the signal to the end" if given.signal == "TERM" else f"{saving} inside saving"
    print(f"{sum(kills.values())} x SIG{given.signal}, {wait}, {rounds} runs: all alike")


if __name__ == "__main__":
    main()
