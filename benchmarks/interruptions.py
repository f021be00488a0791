"""SIGKILL or SIGTERM at random moments of runs of every stage: each goes on until it ends as one that was
never interrupted.

    python benchmarks/interruptions.py --kills 100
    python benchmarks/interruptions.py --signal TERM --kills 50
    python benchmarks/interruptions.py --kills 60 --early 0.33 --earlier 0.2 --stages pretrain sft-lora dpo
    grpo ppo

A run is started, interrupted after a random time (inside saving, validating and generating too), started
again, until it is done. Every finished run must have the weights and the metrics of one that was never
interrupted, to the bit; its best model, its samples and what TensorBoard reads of it too, in the folder that
it began in, with nothing left over. After a SIGTERM the process must end by itself with 143, and what it had
learned must be in a sealed checkpoint; the longest wait is printed.

`--early` is the share of interruptions that fall within two seconds of a run's first write, or of a
restart's. `--earlier` is the share of restarts that name an earlier checkpoint (`--resume RUN/checkpoint-N`),
of finished runs too: one does whenever there is such a checkpoint and fewer did so far.

Runs are forked from this process, which has imported everything and computed nothing. Of every other run the
data cache is its own, so that interruptions meet it being filled. `benchmarks/kills.py` does the same while
the cache of a sequential reference is filled.
"""

from __future__ import annotations

import argparse
import importlib
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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kills import finished, forked, make_policy
from safetensors.torch import load_file

from llmlab.config import (
    DPOConfig,
    DualHeadConfig,
    GRPOConfig,
    ModelConfig,
    PPOConfig,
    PretrainConfig,
    RewardConfig,
    SFTConfig,
)
from llmlab.evaluation.folder import EvaluationFolder
from llmlab.evaluation.watching import Evaluator
from llmlab.runs import evaluations
from llmlab.runs.folder import HOLDER, LEFTOVERS, RunFolder, read_json
from llmlab.training.engine import run as engine
from llmlab.training.engine.job import exit_code
from llmlab.training.rewards import weighted

CLOCK = ("runtime", "per_second", "step_time", "preparation_time")
EARLY = 2.0  # seconds from the first write
AT_MOST = 8  # interruptions of a run
PHASES = ("before its folder", "first 2 s", "first 2 s of a restart", "saving", "later", "done")
QUIET: dict[str, Any] = {"report_to": []}  # TensorBoard is on where nothing is said
SHARED: dict[str, Any] = dict(
    max_steps=14,
    learning_rate=1e-3,
    warmup_steps=2,
    log_every=3,
    eval_every=4,
    save_every=5,
    eval_fraction=0.15,
    eval_steps=2,
    save_best_only=False,
    sample_tokens=12,
)
SHAPE = ModelConfig(
    tokenizer_name="byte",
    vocab_size=260,
    d_model=64,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    d_ff=128,
    max_seq_len=128,
)
TEXT: dict[str, Any] = dict(model=SHAPE, batch_size=4, gradient_accumulation_steps=2)
ROLLOUT: dict[str, Any] = dict(
    reward_model="length | 1 | 3", batch_size=16, mini_batch_size=8, max_new_tokens=16, max_prompt_length=64
)
PAIR: dict[str, Any] = dict(max_length=96, max_prompt_length=64)
STAGES: dict[str, tuple[type, str, dict[str, Any]]] = {
    "pretrain": (PretrainConfig, "text", TEXT),
    "pretrain-stream": (PretrainConfig, "stream", {**TEXT, **QUIET}),
    "sft": (SFTConfig, "answers", dict(batch_size=4, gradient_accumulation_steps=2, max_length=96)),
    "sft-lora": (
        SFTConfig,
        "answers",
        dict(
            batch_size=4,
            gradient_accumulation_steps=2,
            max_length=96,
            adapter="lora",
            log_every=1,
            eval_every=4,
            save_every=4,
        ),
    ),
    "sft-watched": (
        SFTConfig,
        "answers",
        dict(
            batch_size=4,
            gradient_accumulation_steps=2,
            max_length=96,
            evaluation_suite="questions",
            evaluation_rows=24,
            evaluation_batch_size=4,
            evaluate_every=3,
            metric_for_best="exact_match",
        ),
    ),
    "reward": (RewardConfig, "pairs", dict(batch_size=4, gradient_accumulation_steps=2, **PAIR, **QUIET)),
    "dpo": (DPOConfig, "pairs", dict(batch_size=8, mini_batch_size=4, **PAIR, log_every=1, save_every=2)),
    "dpo-live": (
        DPOConfig,
        "pairs",
        dict(batch_size=8, mini_batch_size=4, reference="live", **PAIR, **QUIET),
    ),
    "dual-head": (
        DualHeadConfig,
        "pairs",
        dict(batch_size=4, gradient_accumulation_steps=2, epochs=9, **PAIR),
    ),
    "grpo": (GRPOConfig, "prompts", dict(**ROLLOUT, group_size=4, beta=0.05, iterations=3, save_every=2)),
    "ppo": (PPOConfig, "prompts", dict(**ROLLOUT, ppo_epochs=3, kl_coef=0.05, save_every=3, **QUIET)),
}


def write_data(work: Path) -> None:
    """Writes rows of every shape, from the words of the shipped novel."""
    from llmlab.config import SourceConfig
    from llmlab.data.sources import load_rows

    text = " ".join(
        row["text"] for row in itertools.islice(load_rows(SourceConfig(name="llmlab:moby-dick")), 400)
    ).split()
    says = [" ".join(text[i : i + 3 + i % 5]) for i in range(0, 3000, 9)]
    rows = {
        "text": [{"text": " ".join(text[i : i + 60])} for i in range(0, 20000, 60)],
        "answers": [{"prompt": a, "completion": b} for a, b in itertools.pairwise(says)],
        "pairs": [{"prompt": a, "chosen": b, "rejected": b[::-1]} for a, b in itertools.pairwise(says)],
        "prompts": [{"prompt": a} for a in says],
    }
    for name, made in rows.items():
        (work / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))


def job(
    work: Path, stage: str, name: str, *, resume: str = "auto", own_cache: bool = False
) -> Callable[[], None]:
    """Returns what a process of a run does."""
    cls, data, values = STAGES[stage]
    source: Any = str(work / f"{data}.jsonl")
    if data == "stream":
        source = {"name": str(work / "text.jsonl"), "streaming": True}
    policy = {} if cls is PretrainConfig else {cls.STARTS_FROM: str(work / "policy")}
    cache = {"cache_dir": str(work / name / "cache")} if stage == "dpo" else {}
    config = cls(
        **{
            **SHARED,
            **policy,
            **cache,
            **values,
            "datasets": [source],
            "output_dir": str(work / name / "run"),
        }
    )

    def start() -> None:
        torch.set_num_threads(1)
        (work / name).mkdir(exist_ok=True)
        if own_cache:
            os.environ["LLMLAB_CACHE"] = str(work / name / "data")
        result = engine.run(config, resume=resume, evaluator=Evaluator(weighted))
        if code := exit_code(result):
            os._exit(code)

    return start


def noting_modules(start: Callable[[], None], file: Path) -> Callable[[], None]:
    """Returns a start that also writes down what was imported by its end."""

    def noted() -> None:
        start()
        file.write_text("\n".join(sys.modules))

    return noted


def import_all(file: Path) -> None:
    """Imports what a run had imported, so that those that follow do not have to."""
    for module in file.read_text().split():
        if module not in sys.modules:
            with suppress(Exception):  # some can only be imported by others
                importlib.import_module(module)


def without_clock(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if not any(part in name for part in CLOCK)}


def models(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Returns the weights of the models that a run ended with, by folder."""
    folders = [path for path in (run / "final", run / "best") if path.is_dir()]
    return {path.name: load_file(next(path.glob("*model.safetensors"))) for path in folders}


def ending(folder: Path) -> dict[str, Any]:
    """Returns what two runs must have in common beside their weights."""
    run = RunFolder(folder / "run")
    best = read_json(run.path / "best" / "MANIFEST.json")
    figures = {
        name: value
        for name, value in run.record["metrics"].items()
        if not any(part in name for part in CLOCK)
    }
    return {
        "folders": sorted(path.name for path in folder.iterdir() if path.name.startswith("run")),
        "status": (run.record["status"], run.record["step"], run.record["result"], figures),
        "metrics": [without_clock(line) for line in run.metrics() if "train_loss" not in line],
        "samples": run.samples(),
        "best": {name: value for name, value in best.items() if name != "files"},
        "newest checkpoint": run.checkpoints()[0].name,
        "damaged": [fault for checkpoint in run.checkpoints() if (fault := checkpoint.fault())],
    }


def answers(folder: Path) -> dict[str, Any]:
    """Returns the answers of the evaluations of a run by step, in order."""
    return {
        f"answers of step {step}": [
            (one["source"], one["row"], one["answer"], one["log_prob"], one["score"])
            for one in EvaluationFolder(path).answers()
        ]
        for step, path in evaluations.places(folder / "run").items()
    }


def differs(whole: Path, other: Path) -> str:
    """Returns "" when two runs ended alike, else in what they differ."""
    first, second = models(whole / "run"), models(other / "run")
    if first.keys() != second.keys():
        return f"models: {list(first)} and {list(second)}"
    for model, weights in first.items():
        if any(not torch.equal(value, second[model][name]) for name, value in weights.items()):
            return f"weights of {model}"
    wanted, found = ending(whole) | answers(whole), ending(other) | answers(other)
    for name in wanted:
        if wanted[name] != found[name]:
            return f"{name}: {wanted[name]} and {found[name]}"
    if left := [path.name for path in (other / "run").iterdir() if LEFTOVERS.fullmatch(path.name)]:
        return f"left over: {left}"
    return curves_fault(RunFolder(other / "run"))


def curves_fault(run: RunFolder) -> str:
    """Returns what TensorBoard would show of a run that is not in its metrics, or what it would lack;
    "" where nothing is.
    """
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    from llmlab.training.callbacks.tensorboard import tag_of

    if not (run.path / "tensorboard").is_dir():
        return "" if not run.record["config"]["report_to"] else "no curves"
    seen: dict[tuple[int, str], set[float]] = {}
    for file in (run.path / "tensorboard").iterdir():
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                seen.setdefault((event.step, value.tag), set()).add(value.simple_value)
    for line in run.metrics():
        for name, value in without_clock(line).items():
            if name in ("step", "epoch") or "bits_per_byte" in name or "train_loss" in line:
                continue
            found = seen.get((line["step"], tag_of(name)))
            if found != {float(np.float32(value))}:
                return f"curves: step {line['step']}, {name} is {value}, and {found} in TensorBoard"
    return ""


def phase_of(run: Path, elapsed: float, *, restarted: bool) -> str:
    """Returns where an interruption came: `elapsed` seconds after the first write of this process,
    -1 before it.
    """
    if (
        RunFolder(run).status == "done"
    ):  # while the process was leaving, or before a named start had begun to write
        return "done"
    if (run / ".saving").exists():
        return "saving"
    if elapsed < 0:
        return "before its folder"
    if elapsed <= EARLY:
        return "first 2 s of a restart" if restarted else "first 2 s"
    return "later"


def earlier_checkpoint(run: RunFolder, rng: random.Random) -> str:
    """Returns a whole checkpoint that is not the newest; "" where there is none."""
    older = [checkpoint.path for checkpoint in run.checkpoints()[1:] if not checkpoint.fault()]
    return str(rng.choice(older)) if older else ""


def wait_for(
    child: int, rng: random.Random, run: Path, length: float, early: bool
) -> tuple[int | None, float]:
    """Waits for the moment of an interruption; returns the status of a process that ended before it, else
    None, and how many seconds before that the process began to write, -1 where it did not.
    """
    began = time.perf_counter()
    wrote = None
    limit = began + rng.uniform(0.05, length)
    while True:
        now = time.perf_counter()
        if wrote is None and read_json(run / HOLDER).get("pid") == child:
            wrote = now
            if early:
                limit = now + rng.uniform(0, EARLY)
        if now >= limit and not (early and wrote is None):
            return None, now - wrote if wrote else -1.0
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status, -1.0
        time.sleep(0.002)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument(
        "--early", type=float, default=0.0, help="share within two seconds of the first write"
    )
    parser.add_argument(
        "--earlier", type=float, default=0.0, help="share of restarts that name an earlier checkpoint"
    )
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
            modules = work / f"modules-{stage}"
            began = time.perf_counter()
            finished(noting_modules(job(work, stage, f"whole-{stage}"), modules), log)
            lengths[stage] = time.perf_counter() - began
            import_all(modules)
        kills: Counter[tuple[str, str]] = Counter()
        named: Counter[str] = Counter()
        longest, rounds, restarts = 0.0, 0, 0
        while sum(kills.values()) < given.kills:
            stage = given.stages[rounds % len(given.stages)]
            name, rounds = f"round-{rounds}", rounds + 1
            run = RunFolder(work / name / "run")
            resume, died, gone_back = "auto", 0, False
            early = rng.random() < given.early
            while True:
                named[stage] += resume != "auto"
                began = time.perf_counter()
                child = forked(job(work, stage, name, resume=resume, own_cache=rounds % 2 == 0), log)
                if died < AT_MOST:
                    status, elapsed = wait_for(child, rng, run.path, lengths[stage], early)
                else:
                    status = os.waitpid(child, 0)[1]
                if status is None:
                    os.kill(child, number)
                    asked = time.perf_counter()
                    _, status = os.waitpid(child, 0)
                    longest = max(longest, time.perf_counter() - asked)
                    kills[stage, phase_of(run.path, elapsed, restarted=died > 0)] += 1
                    died, restarts = died + 1, restarts + 1
                    early = rng.random() < given.early
                    behind = sum(named.values()) < given.earlier * restarts
                    resume = (behind and earlier_checkpoint(run, rng)) or "auto"
                    if run.status == "done":
                        break
                    if given.signal == "KILL":
                        continue
                    if os.waitstatus_to_exitcode(status) == 143:
                        if run.record.get("step", 0) and run.checkpoints()[0].fault():
                            sys.exit(
                                f"{name} ({stage}): {run.checkpoints()[0]} {run.checkpoints()[0].fault()}"
                            )
                        continue
                    if os.waitstatus_to_exitcode(status) == -15:  # before the run had begun
                        continue
                if status:
                    sys.exit(f"{name} ({stage}) failed:\n{log.read_text()[-3000:]}")
                if not died and not gone_back:
                    lengths[stage] = min(lengths[stage], time.perf_counter() - began)
                behind = sum(named.values()) < given.earlier * restarts
                if behind and not gone_back and (found := earlier_checkpoint(run, rng)):
                    resume, gone_back, early, restarts = found, True, False, restarts + 1
                    continue
                break
            difference = differs(work / f"whole-{stage}", work / name)
            if difference:
                sys.exit(
                    f"{name} ({stage}) differs from an uninterrupted run:"
                    f" {difference}\n{log.read_text()[-3000:]}"
                )
            shutil.rmtree(work / name)
            print(
                f"{name} ({stage}): alike; {sum(kills.values())} so far, {sum(named.values())} named",
                flush=True,
            )
    for stage in given.stages:
        places = ", ".join(f"{kills[stage, phase]} {phase}" for phase in PHASES if kills[stage, phase])
        print(f"{stage}: {places or 'none'}; {named[stage]} starts from a named earlier checkpoint")
    back = f"{sum(named.values())} starts from a named earlier checkpoint"
    wait = f"{longest:.1f} s at most from the signal to the end" if given.signal == "TERM" else back
    print(f"{sum(kills.values())} x SIG{given.signal}, {wait}, {rounds} runs: all alike")


if __name__ == "__main__":
    main()
