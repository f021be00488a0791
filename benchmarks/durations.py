"""Times as they are predicted before a run, beside what the run takes: 8 runs of six kinds, on this machine.

    python benchmarks/durations.py                  # about 10 minutes on two cores
    python benchmarks/durations.py --only sft-lora
    python benchmarks/durations.py --processor     # seconds of the processor: others use the machine, too

Three predictions of the time from the first update to the last, validations and checkpoints included: `flops`
before anything was measured; `one` after a single measurement on this device, that of the first run, whatever
the kind; `measured` after `--measure` of the run itself.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from real_model import _write

from llmlab.config import parse_config, save_config
from llmlab.config.training import TrainingConfig
from llmlab.data.tasks import questions, wrong_answer
from llmlab.data.tokenizer import load_tokenizer
from llmlab.models import LabConfig, LabForCausalLM
from llmlab.planning.data_size import data_size
from llmlab.planning.duration import time_plan
from llmlab.planning.measured import measure
from llmlab.training.registry import STAGES

WORK = Path(tempfile.mkdtemp())


def jobs() -> dict[str, dict[str, Any]]:
    """Returns the configs by name; the first is the one that is measured alone."""
    rows = list(itertools.islice(questions(3, held_out=False), 1500))
    _write(WORK / "sft.jsonl", [{"prompt": q, "completion": f"The answer is {a}."} for _, q, a in rows])
    pairs = [
        {"prompt": q, "chosen": f"It is {a}.", "rejected": f"It is {wrong_answer(t, q, a)}."}
        for t, q, a in rows
    ]
    _write(WORK / "pairs.jsonl", pairs)
    _write(WORK / "prompts.jsonl", [{"prompt": q, "answer": a} for _, q, a in rows])
    small, middle = _untrained("small", 192, 6), _untrained("middle", 384, 8)
    shared: dict[str, Any] = dict(report_to=[], log_every=5, sample_tokens=0, eval_rows=16)
    shape = dict(kind="model", tokenizer_name="byte", vocab_size=512)
    sft, pair = dict(datasets=[str(WORK / "sft.jsonl")]), dict(datasets=[str(WORK / "pairs.jsonl")])
    text, ask = dict(datasets=["llmlab:moby-dick"]), dict(datasets=[str(WORK / "prompts.jsonl")])
    return {
        "sft-small": dict(
            **shared, **sft, kind="sft", policy_checkpoint=small, max_length=256, batch_size=8,
            gradient_accumulation_steps=1, max_steps=24,
        ),
        "base-256": dict(
            **shared, **text, kind="pretrain", batch_size=4, gradient_accumulation_steps=2, max_steps=16,
            model=dict(**shape, d_model=256, n_layers=6, n_heads=4, n_kv_heads=2, d_ff=704, max_seq_len=256),
        ),
        "base-512": dict(
            **shared, **text, kind="pretrain", batch_size=2, gradient_accumulation_steps=1, max_steps=10,
            model=dict(**shape, d_model=512, n_layers=8, n_heads=8, n_kv_heads=4, d_ff=1408, max_seq_len=512),
            gradient_checkpointing=True, optimizer="lion", learning_rate=1e-4,
        ),
        "sft-lora": dict(
            **shared, **sft, kind="sft", policy_checkpoint=middle, adapter="lora", max_length=128,
            batch_size=4, gradient_accumulation_steps=2, max_steps=12, learning_rate=1e-4,
        ),
        "further": dict(
            **shared, **text, kind="pretrain", init_from=middle, max_length=128, batch_size=4,
            gradient_accumulation_steps=1, max_steps=12, learning_rate=1e-5,
        ),
        "dpo-small": dict(
            **shared, **pair, kind="dpo", policy_checkpoint=small, max_length=96, max_prompt_length=64,
            batch_size=16, mini_batch_size=8, max_steps=16, cache_dir=str(WORK / "reference"),
        ),
        "reward-small": dict(
            **shared, **pair, kind="reward", policy_checkpoint=small, max_length=96, max_prompt_length=64,
            batch_size=8, gradient_accumulation_steps=2, max_steps=16,
        ),
        "grpo-small": dict(
            **shared, **ask, kind="grpo", policy_checkpoint=small, reward_model=["length | 1 | 8"],
            group_size=4, batch_size=16, mini_batch_size=8, iterations=2, max_new_tokens=24,
            max_prompt_length=64, max_steps=12, eval_fraction=0.0,
        ),
    }  # fmt: skip


def _untrained(name: str, width: int, layers: int) -> str:
    """Returns a folder with a model of random weights."""
    shape = dict(vocab_size=1024, n_heads=6, n_kv_heads=2, max_seq_len=512)
    config = LabConfig(**shape, d_model=width, n_layers=layers, d_ff=8 * width // 3)
    LabForCausalLM(config).save_pretrained(WORK / name)
    load_tokenizer("byte").save_pretrained(WORK / name)
    return str(WORK / name)


def predicted(config: TrainingConfig) -> tuple[float, str]:
    """Returns the seconds that a plan says, and how it knows."""
    plan = time_plan(config, data_size(config, STAGES[config.kind].shapes))
    assert plan.seconds is not None and plan.pace is not None
    return plan.seconds, plan.pace.basis


def really(config: TrainingConfig, name: str) -> float:
    """Runs a config; returns the seconds from its first update to its last, validations and checkpoints
    included.
    """
    file = save_config(config, WORK / f"{name}.json")
    with open(WORK / f"{name}.log", "w") as log:
        command = [sys.executable, "-m", "llmlab", "run", str(file)]
        subprocess.run(command, stdout=log, stderr=log, check=True)
    lines = (Path(str(config.output_dir)) / "metrics.jsonl").read_text().splitlines()
    return float(
        next(line["train_runtime"] for line in map(json.loads, reversed(lines)) if "train_loss" in line)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--processor", action="store_true")
    args = parser.parse_args()
    os.environ["LLMLAB_CACHE"] = str(WORK / "cache")  # nothing was measured yet
    if args.processor:  # every process that is started reads this first
        (WORK / "sitecustomize.py").write_text("import time\n\ntime.perf_counter = time.process_time\n")
        os.environ["PYTHONPATH"] = f"{WORK}:{os.environ.get('PYTHONPATH', '')}"
    configs: dict[str, TrainingConfig] = {}
    for name, values in jobs().items():
        config = parse_config({**values, "output_dir": str(WORK / name)})
        assert isinstance(config, TrainingConfig)
        configs[name] = config
    flops = {name: predicted(config)[0] for name, config in configs.items()}
    first = next(iter(configs.values()))
    measure(first)
    one = {name: predicted(config) for name, config in configs.items()}
    titles = "  ".join(f"{title:>8} {'off':>5}" for title in ("measured", "one", "flops"))
    print(f"{'run':14} {'real':>7}  {titles}  load", flush=True)
    for name, config in configs.items():
        if args.only and name not in args.only:
            continue
        if config is not first:
            measure(config)
        guess, basis = predicted(config)
        assert basis == "measured", basis
        real = really(config, name)
        figures = [guess, one[name][0], flops[name]]
        cells = "  ".join(f"{value:6.1f} s {value / real - 1:+5.0%}" for value in figures)
        print(f"{name:14} {real:5.1f} s  {cells}  {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
