"""SIGKILL at random moments of an evaluation: no answer is lost, and none that was saved is computed again.

    python benchmarks/kills_of_evaluations.py --kills 30

An evaluation of a tiny model against another is started, killed after a random time, started again, until it
is done; then the next one. Every finished evaluation must have the answers and, to the last bit, the figures
of one that was never interrupted. Evaluations are forked from this process, which has imported everything and
computed nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from kills import finished, forked, make_policy

from llmlab.config.evaluation import EvaluationConfig
from llmlab.data.tasks import distinct_questions
from llmlab.evaluation import run as evaluation
from llmlab.evaluation.folder import ANSWERS, EvaluationFolder

ROWS, BATCH = 96, 4


def make_work(work: Path) -> None:
    """Makes two models and two files of rows."""
    for seed, name in enumerate(("one", "other")):
        finished(partial(make_policy, work / name, seed), work / "log")
    questions = distinct_questions(ROWS, seed=3)
    lines = [{"prompt": question, "completion": answer} for _, question, answer in questions]
    (work / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    mails = [{"text": f"{'win' if i % 3 else 'sea'} {i}", "label": int(i % 3 > 0)} for i in range(ROWS)]
    (work / "mails.jsonl").write_text("".join(json.dumps(line) + "\n" for line in mails))


def config_of(work: Path, name: str) -> EvaluationConfig:
    """Returns the evaluation of both models on both files."""
    mails = {"name": str(work / "mails.jsonl"), "format": "classification", "labels": ["ham", "spam"]}
    return EvaluationConfig(
        model=str(work / "one"),
        against=str(work / "other"),
        datasets=[str(work / "asked.jsonl"), mails],
        by="generate",
        batch_size=BATCH,
        max_new_tokens=6,
        name=name,
        output_dir=str(work / f"in-{name}"),
    )


def folder_of(work: Path, name: str) -> Path:
    """Returns where the evaluation is."""
    return work / f"in-{name}" / name


def job(work: Path, name: str):
    """Returns the evaluation as a function, which notes what it computes."""
    computed = work / f"{name}.log"
    real = evaluation._answers

    def noted(measure, batch, given):
        time.sleep(0.02)  # so that a kill finds it at work
        answers = real(measure, batch, given)
        with open(computed, "a") as file:
            place = [(given.subject.name, given.named.name, item.row) for item in batch]
            file.write("".join(json.dumps(one) + "\n" for one in place))
        return answers

    def start() -> None:
        torch.set_num_threads(1)
        evaluation._answers = noted
        evaluation.evaluate(config_of(work, name))

    return start


def lines_of(path: Path) -> list[str]:
    """Returns the whole lines of a file."""
    return path.read_text().splitlines() if path.exists() else []


def main() -> None:
    """Kills evaluations until enough kills have met one at work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, kills, torn, rounds = random.Random(given.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        log = work / "log"
        make_work(work)
        began = time.perf_counter()
        finished(job(work, "whole"), log)
        length = time.perf_counter() - began
        whole = EvaluationFolder(folder_of(work, "whole"))
        while kills < given.kills:
            name = f"round-{rounds}"
            rounds += 1
            lost = 0
            while True:
                path = folder_of(work, name) / ANSWERS
                before = len(lines_of(path))
                child = forked(job(work, name), log)
                limit = time.perf_counter() + rng.uniform(0.3, length)
                done = 0
                while time.perf_counter() < limit and not done:
                    time.sleep(0.005)
                    done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    if status:
                        sys.exit(f"an evaluation failed:\n{log.read_text()[-3000:]}")
                    break
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                if len(lines_of(path)) > before:
                    kills += 1
                torn += path.exists() and not path.read_bytes().endswith(b"\n")
                lost += BATCH
            here = EvaluationFolder(folder_of(work, name))
            if sorted(map(str, here.answers())) != sorted(map(str, whole.answers())):
                sys.exit(f"{name} has other answers than an uninterrupted evaluation")
            if here.record["results"] != whole.record["results"]:
                sys.exit(f"{name} has other figures than an uninterrupted evaluation")
            computed = lines_of(work / f"{name}.log")
            again = len(computed) - len(set(computed))
            if again > lost:
                sys.exit(f"{name}: {again} answers were computed twice, with {lost} in flight at kills")
            saved = [(one["model"], one["source"], one["row"]) for one in here.answers()]
            if len(saved) != len(set(saved)):
                sys.exit(f"{name}: an answer was saved twice")
            shutil.rmtree(here.path)
            print(
                f"{name}: {kills} kills at work so far, alike, {again} of a batch in flight again", flush=True
            )
    print(f"{kills} kills, {rounds} evaluations, {torn} torn lines: all alike, none lost, none saved twice")


if __name__ == "__main__":
    main()
