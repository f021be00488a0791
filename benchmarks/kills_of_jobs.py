"""Kills at random moments of a run in two processes: of one of them, of the program that started them, of
both, by SIGKILL; and SIGTERM to the launcher.

    python -m benchmarks.kills_of_jobs --kills 40 --engines ddp fsdp2

A run is started with `llmlab run --devices 2`, killed after a random time, started again, until it is done;
then the next one. Every finished run must have the weights and the figures of one that was never
interrupted, to the bit. After each kill no process may be left, and SIGTERM must end with 143 and a
checkpoint of the update it came in. On a machine without GPUs FSDP2 is allowed by `tests/shims`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from llmlab.config import PretrainConfig, save_config
from llmlab.data.tokenizer import load_tokenizer, save_tokenizer
from llmlab.runs.checkpoint import Checkpoint
from llmlab.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
WAYS = ("rank", "launcher", "both", "term")
CLOCK = ("runtime", "per_second", "step_time", "flos")
GONE_WITHIN = 60.0  # seconds that processes have to be gone in
SLOW = 10.0  # seconds from which on they are named


def config_file(work: Path, name: str, engine: str) -> Path:
    """Writes the config of a run; returns its file."""
    shape = {
        "kind": "model",
        "tokenizer_name": str(work / "tokenizer"),
        "vocab_size": 260,
        "d_model": 64,
        "n_layers": 2,
        "n_heads": 4,
        "d_ff": 128,
        "max_seq_len": 64,
    }
    config = PretrainConfig(
        model=shape,
        datasets=["llmlab:moby-dick"],
        batch_size=4,
        gradient_accumulation_steps=2,
        max_steps=40,
        learning_rate=1e-3,
        eval_every=10,
        eval_rows=8,
        save_every=5,
        log_every=1,
        sample_tokens=0,
        save_best_only=False,
        report_to=[],
        devices=2,
        parallel=engine,
        output_dir=str(work / name),
    )
    return save_config(config, work / f"{name}.json")


def started(config: Path, log: Path) -> subprocess.Popen[bytes]:
    """Starts a run in two processes."""
    places = [str(ROOT), str(ROOT / "tests" / "shims"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(places)}
    with log.open("ab") as output:
        command = [sys.executable, "-m", "llmlab", "run", str(config), "--resume", "once"]
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=ROOT)


def ranks(config: Path) -> list[int]:
    """Returns the processes of a run that train."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"llmlab.cli.rank" in words and str(config).encode() in words:
            found.append(int(place.name))
    return sorted(found)


def kill(job: subprocess.Popen[bytes], config: Path, way: str) -> float:
    """Ends a run in a way; returns after how many seconds all its processes were gone."""
    while not (members := ranks(config)) and job.poll() is None and way in ("rank", "both"):
        time.sleep(0.05)  # none to kill yet
    began = time.monotonic()
    if way == "term":
        job.send_signal(signal.SIGTERM)
    if way in ("rank", "both") and members:
        os.kill(random.choice(members), signal.SIGKILL)
    if way in ("launcher", "both"):
        job.kill()
    job.wait(timeout=GONE_WITHIN)
    while ranks(config):
        if time.monotonic() - began > GONE_WITHIN:
            sys.exit(f"after {way}: processes {ranks(config)} are left")
        time.sleep(0.05)
    return time.monotonic() - began


def ending(folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, object]]]:
    """Returns the last weights of a run, and its figures that are no times."""
    lines = [
        {name: value for name, value in line.items() if not any(part in name for part in CLOCK)}
        for line in RunFolder(folder).metrics()
        if "train_loss" not in line
    ]
    return load_file(folder / "final" / "model.safetensors"), lines


def differs(whole: Path, other: Path) -> str:
    """Returns in what two finished runs differ; "" where in nothing."""
    (weights, lines), (others, other_lines) = ending(whole), ending(other)
    if any(not value.equal(others[name]) for name, value in weights.items()):
        return "weights"
    return "" if lines == other_lines else "figures"


def main() -> None:
    """Kills until the number is reached, over the engines in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--engines", nargs="+", default=["ddp", "fsdp2"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    work = Path(tempfile.mkdtemp(prefix="kills-"))
    save_tokenizer(load_tokenizer("byte"), work / "tokenizer")
    span: dict[str, float] = {}
    for engine in arguments.engines:
        config = config_file(work, f"whole-{engine}", engine)
        began = time.monotonic()
        if started(config, work / "whole.log").wait():
            sys.exit(f"the run itself failed:\n{(work / 'whole.log').read_text()[-2000:]}")
        span[engine] = time.monotonic() - began
        print(f"{engine}: uninterrupted in {span[engine]:.0f} s", flush=True)
    killed: list[tuple[str, str, float]] = []
    number = 0
    while len(killed) < arguments.kills:
        engine = arguments.engines[number % len(arguments.engines)]
        name = f"run-{number}"
        config, log = config_file(work, name, engine), work / f"{name}.log"
        number += 1
        while True:
            job = started(config, log)
            try:
                code = job.wait(timeout=random.uniform(0.3, 1.0) * span[engine])
            except subprocess.TimeoutExpired:
                way = arguments.ways[len(killed) % len(arguments.ways)]
                training = bool(ranks(config)) and bool(Checkpoint.all_in(work / name))
                seconds = kill(job, config, way)
                ended = RunFolder(work / name).record.get("status") == "done"  # between the two looks
                killed.append((engine, way, seconds))
                if seconds > SLOW:
                    steps = RunFolder(work / name).record.get("sealed", 0) if training else "no"
                    print(f"{engine}, {way}: gone after {seconds:.1f} s, {steps} steps sealed", flush=True)
                if way == "term" and training and not ended and job.returncode != 143:
                    sys.exit(f"SIGTERM ended with {job.returncode}:\n{log.read_text()[-2000:]}")
                if len(killed) % 5 == 0:
                    print(f"{len(killed)} kills", flush=True)
                continue
            if code:
                sys.exit(f"a run failed with {code}:\n{log.read_text()[-3000:]}")
            break
        if difference := differs(work / f"whole-{engine}", work / name):
            sys.exit(f"{name} ({engine}) ended with other {difference}; see {work}")
    for way in WAYS:
        seconds = [s for _, done, s in killed if done == way]
        if seconds:
            usual, longest = statistics.median(seconds), max(seconds)
            print(f"{way}: {len(seconds)}, gone after {usual:.1f} s, at most {longest:.1f} s")
    print(json.dumps({"kills": len(killed), "runs": number, "equal": number}))
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
