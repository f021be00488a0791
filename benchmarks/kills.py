"""SIGKILL at random moments of a sequential DPO run, while the reference's values are filled in and while it
trains.

    python benchmarks/kills.py --fill 50 --train 50

A run is started, killed after a random time, started again, until it is done; then the next one. Every
finished run must have the weights, the metrics and the reference values of one that was never interrupted,
and no pair may have been computed twice beyond the last, unsealed part. Runs are forked from this process,
which has imported everything and computed nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

from llmlab.config import DPOConfig, ModelConfig
from llmlab.data.tokenizer import load_tokenizer, save_tokenizer
from llmlab.models import LabForCausalLM
from llmlab.models.transformer.shapes import to_lab_config
from llmlab.runs.folder import RunFolder
from llmlab.training.engine import run as engine
from llmlab.training.reference import scorer as reference
from llmlab.training.reference.cache import caches

PAIRS, PART = 120, 8


def forked(work, log: Path) -> int:
    """Runs a function in a process of its own and returns its number."""
    gc.freeze()  # else the child copies every page on which its collector marks what was imported
    child = os.fork()
    if child:
        return child
    with open(log, "a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        try:
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)


def finished(work, log: Path) -> None:
    _, status = os.waitpid(forked(work, log), 0)
    if status:
        sys.exit(f"a run failed:\n{log.read_text()[-3000:]}")


def make_policy(folder: Path, seed: int = 0) -> None:
    torch.manual_seed(seed)
    shape = ModelConfig(
        tokenizer_name="byte",
        vocab_size=260,
        d_model=64,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        d_ff=128,
        max_seq_len=128,
    )
    LabForCausalLM(to_lab_config(shape, pad_token_id=0, bos_token_id=None, eos_token_id=1)).save_pretrained(
        folder
    )
    save_tokenizer(load_tokenizer("byte"), folder / "tokenizer")
    for file in (folder / "tokenizer").iterdir():
        shutil.move(file, folder / file.name)
    (folder / "tokenizer").rmdir()


def job(work: Path, name: str):
    config = DPOConfig(
        policy_checkpoint=str(work / "policy"),
        datasets=[str(work / "pairs.jsonl")],
        max_steps=12,
        batch_size=4,
        mini_batch_size=2,
        max_length=120,
        max_prompt_length=60,
        learning_rate=1e-3,
        warmup_steps=0,
        log_every=1,
        eval_every=6,
        save_every=3,
        eval_fraction=0.1,
        group_by_length=True,
        reference_batch_size=4,
        save_best_only=False,
        report_to=[],
        output_dir=str(work / name / "run"),
        cache_dir=str(work / name / "cache"),
    )
    computed = work / name / "computed.log"
    real = reference.reference_values

    def noted(model, items, *args, **kwargs):
        values = real(model, items, *args, **kwargs)
        time.sleep(0.1)  # so that a kill finds it at work
        with open(computed, "a") as file:
            file.write(f"{len(items)}\n")
        return values

    def start() -> None:
        torch.set_num_threads(1)
        (work / name).mkdir(exist_ok=True)
        reference.PART_ITEMS = PART
        reference.reference_values = noted
        engine.run(config)

    return start


def count_of(log: Path) -> int:
    """Returns how many pairs were computed so far."""
    return sum(int(line) for line in log.read_text().split()) if log.exists() else 0


def compare(whole: Path, other: Path) -> str:
    """Returns "" when two runs ended alike, else in what they differ."""
    from safetensors.torch import load_file

    a, b = (load_file(folder / "run" / "final" / "model.safetensors") for folder in (whole, other))
    if any(not torch.equal(a[name], b[name]) for name in a):
        return "weights"
    wanted = ("step", "loss", "eval_loss", "grad_norm", "rewards/margins")
    curves = []
    for folder in (whole, other):
        lines = [
            line for line in RunFolder(folder / "run").metrics() if "loss" in line or "eval_loss" in line
        ]
        curves.append([{name: line[name] for name in wanted if name in line} for line in lines])
    if curves[0] != curves[1]:
        return f"metrics: {curves[0]} and {curves[1]}"
    values = [caches(folder / "cache")[0]._values for folder in (whole, other)]
    if values[0].keys() != values[1].keys() or any(
        (values[0][key] != values[1][key]).any() for key in values[0]
    ):
        return "reference values"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fill", type=int, default=50, help="kills while filling")
    parser.add_argument("--train", type=int, default=50, help="kills while training")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["LLMLAB_CACHE"] = str(work / "data")
        words = ["whale", "ship", "sea", "deck", "mast"]

        def say(most: int) -> str:
            return " ".join(rng.choices(words, k=rng.randint(1, most)))

        rows = [
            {"prompt": f"{i} {say(6)}?", "chosen": f"{say(8)} A", "rejected": f"{say(8)} B"}
            for i in range(PAIRS)
        ]
        (work / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        log = work / "log"
        finished(lambda: make_policy(work / "policy"), log)
        began = time.perf_counter()
        finished(job(work, "whole"), log)
        length = time.perf_counter() - began
        kills = {"start": 0, "fill": 0, "between": 0, "train": 0}
        rounds = 0
        while kills["fill"] < given.fill or kills["train"] < given.train:
            name = f"round-{rounds}"
            rounds += 1
            died_filling = 0
            while True:
                child = forked(job(work, name), log)
                limit = time.perf_counter() + rng.uniform(0.1, length)
                done = 0
                while time.perf_counter() < limit and not done:
                    time.sleep(0.01)
                    done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    if status:
                        sys.exit(f"a run failed:\n{log.read_text()[-3000:]}")
                    break
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                known = count_of(work / name / "computed.log")
                begun = (work / name / "run" / "run.json").exists()
                phase = "train" if begun else "start" if not known else "fill" if known < PAIRS else "between"
                kills[phase] += 1
                died_filling += phase == "fill"
            if difference := compare(work / "whole", work / name):
                sys.exit(f"{name} differs from an uninterrupted run: {difference}")
            computed = count_of(work / name / "computed.log")
            if computed > PAIRS + died_filling * (PART + 3):
                sys.exit(f"{name}: {computed} pairs were computed for {PAIRS} after {died_filling} kills")
            shutil.rmtree(work / name)
            print(f"{name}: kills so far {kills}; alike, {computed} of {PAIRS} pairs computed", flush=True)
    print(f"{kills['fill']} kills while filling, {kills['train']} while training, {rounds} runs: all alike")


if __name__ == "__main__":
    main()
