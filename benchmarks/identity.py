"""Whether the program still computes what it computed: 30 short runs before and after a change, bit by bit.

    python benchmarks/identity.py -o before.json            # the code as it was
    python benchmarks/identity.py --compare before.json     # as it is now; exit code 1 where a run differs

Of each run (`identity_runs.py`) the result holds its metrics (without times and speeds), its weights (name,
type, shape and bytes of every tensor in `final/` and `best/`) and its samples, as SHA-256 and in full. They
can be compared when they come from one machine and one set of packages: other processors round differently.

It knows the program by what users know: config files, `llmlab tokenizer`, `llmlab run`, and the files of a
run's folder. Each command runs in a process of its own, forked from this one, which imported the libraries
and computed nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import random
import re
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from identity_runs import RUNS, SHARED, Run

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
LIBRARIES = [
    "torch",
    "transformers",
    "datasets",
    "peft",
    "trl",
    "trl.trainer.sft_trainer",
    "trl.trainer.dpo_trainer",
    "trl.trainer.grpo_trainer",
    "trl.trainer.reward_trainer",
    "transformers.trainer",
    "transformers.models.llama.modeling_llama",
]
PACKAGES = [
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "tokenizers",
    "bitsandbytes",
    "pytorch_optimizer",
]
CLOCK = ("runtime", "per_second", "_time", "seconds", "memory")  # parts of names of figures that time decides
STEP = re.compile(r'"step": ?(\d+)')
COMPARED = ("metrics", "final", "best", "samples")
MOST = 8  # names of figures that a line lists
TRIES = 3  # of a run that ended before it could be stopped


def write_data() -> None:
    """Writes the rows that the runs learn from, of seeded random sentences."""
    rng = random.Random(0)
    names = ["Ahab", "Stubb", "Starbuck", "Queequeg", "Ishmael"]
    words = ["the", "whale", "ship", "sea", "captain", "white", "deck", "mast", "storm", "night", "sail"]

    def say(most: int) -> str:
        return " ".join(rng.choice(words) for _ in range(min(most, int(rng.expovariate(0.2)) + 1)))

    def pair(number: int) -> dict[str, str]:
        who, other = rng.sample(names, 2)
        return {
            "prompt": f"{number}: where is {who}, {say(4)}?",
            "chosen": f"{who} is here, {say(6)}.",
            "rejected": f"{other}, {say(9)}.",
        }

    def talk() -> dict[str, Any]:
        turns = [{"role": "system", "content": f"Speak of {say(3)}."}] if rng.random() < 0.3 else []
        for _ in range(rng.randint(1, 3)):
            turns += [
                {"role": "user", "content": f"Tell of {say(4)}."},
                {"role": "assistant", "content": say(8).capitalize() + "."},
            ]
        return {"messages": turns}

    rows: dict[str, list[dict[str, Any]]] = {
        "text": [{"text": f"{say(60).capitalize()}. {say(60)}."} for _ in range(500)],
        "questions": [{"prompt": f"Who is {i}?", "completion": rng.choice(names[:2])} for i in range(200)],
        "talks": [talk() for _ in range(160)],
        "pairs": [pair(i) for i in range(120)],
        "others": [pair(1000 + i) for i in range(60)],
        "prompts": [{"prompt": f"Who is {i}?", "answer": "Stubb"} for i in range(80)],
    }
    for name, lines in rows.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_models() -> None:
    """Writes untrained models of architectures that are not the lab's."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    size = dict(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    for name, model in {
        "llama": LlamaForCausalLM(LlamaConfig(**size)),
        "mixtral": MixtralForCausalLM(MixtralConfig(**size, num_local_experts=4, router_aux_loss_coef=0.05)),
    }.items():
        model.save_pretrained(name)
        AutoTokenizer.from_pretrained("tokenizer").save_pretrained(name)


def forked(work: Any, log: Path) -> int:
    """Runs a function in a process of its own, its output in a file, and returns the process's number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, output), (2, output)):
            os.dup2(file, number)
        code = 0
        try:
            work()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    finally:
        os._exit(1)


def ended(child: int) -> int:
    """Waits for a process and returns its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def llmlab(arguments: list[str]) -> Any:
    """Returns what calls the program as the command `llmlab` with these arguments does."""

    def call() -> None:
        from llmlab.__main__ import main

        sys.argv = ["llmlab", *arguments]
        main()

    return call


def must(work: Any, log: Path, wanted: int = 0) -> None:
    """Runs a function in a process of its own and ends this program when it did not end as wanted."""
    if (code := ended(forked(work, log))) != wanted:
        sys.exit(f"{log.stem} ended with {code}, not {wanted}:\n{log.read_text()[-3000:]}")


def write_config(name: str, run: Run, folder: str, **changes: Any) -> str:
    """Writes the config of a run and returns the file's name."""
    options = {"kind": run.kind, **SHARED, **run.options, "output_dir": folder, **changes}
    if run.kind == "dpo" and options.get("reference") != "live":
        options["cache_dir"] = f"caches/{folder}"
    if run.start:
        starts_from = {"pretrain": "init_from", "dual_head": "backbone"}.get(run.kind, "policy_checkpoint")
        options[starts_from] = f"{run.start}/final" if run.start in RUNS else run.start
    Path(f"{name}.json").write_text(json.dumps(options, indent=1))
    return f"{name}.json"


def stopped(config: str, log: Path, folder: str, step: int) -> bool:
    """Starts a run, stops it when it has logged a step, and returns whether it was not done already."""
    child = forked(llmlab(["run", config]), log)
    metrics = Path(folder, "metrics.jsonl")
    while True:
        if metrics.exists() and max(map(int, STEP.findall(metrics.read_text())), default=0) >= step:
            os.kill(child, signal.SIGTERM)
            code = ended(child)
            break
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.002)
    if code not in (0, 143):
        sys.exit(f"{log.stem} ended with {code}, not 143:\n{log.read_text()[-3000:]}")
    return code == 143


def carry_out(name: str, run: Run) -> str:
    """Makes a run and returns its folder."""
    log, folder = Path(f"{name}.log"), name
    if run.stop_at:
        for attempt in range(TRIES):
            folder = name if attempt == 0 else f"{name}-{attempt}"
            config = write_config(name, run, folder)
            if stopped(config, log, folder, run.stop_at):
                break
        else:
            sys.exit(f"{name} was done before SIGTERM reached it, {TRIES} times")
    if run.first_steps:
        must(llmlab(["run", write_config(name, run, folder, max_steps=run.first_steps)]), log)
    config = write_config(name, run, folder)
    must(llmlab(["run", config]), log)
    if run.back_to:
        must(llmlab(["run", config, "--resume", f"{folder}/checkpoint-{run.back_to}"]), log)
    return folder


def needed(names: list[str]) -> list[str]:
    """Returns the runs and those whose results they read, in the order of the table."""
    wanted, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name in RUNS and name not in wanted:
            wanted.add(name)
            waiting += [RUNS[name].start, *RUNS[name].reads]
    return [name for name in RUNS if name in wanted]


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def lines_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def without_clock(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if not any(part in name for part in CLOCK)}


def tensors(folder: Path) -> dict[str, str]:
    """Returns type, shape and SHA-256 of every tensor in the safetensors files of a folder."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        for name, entry in json.loads(data[8 : 8 + size]).items():
            if name != "__metadata__":
                begin, end = (8 + size + offset for offset in entry["data_offsets"])
                found[name] = f"{entry['dtype']} {entry['shape']} {sha(data[begin:end])}"
    return dict(sorted(found.items()))


def computed(name: str, folder: Path) -> dict[str, Any]:
    """Returns what a run computed: hashes, the last value of every figure, and all of it in full."""
    run = RUNS[name]
    metrics = [without_clock(line) for line in lines_of(folder / "metrics.jsonl")]
    end = max((line["step"] for line in metrics), default=0)  # a stop may leave a summary, by its moment
    metrics = [line for line in metrics if "train_loss" not in line or line["step"] == end or not run.stop_at]
    written = [json.dumps(line, sort_keys=True) for line in metrics]
    samples = [json.dumps(line, sort_keys=True) for line in lines_of(folder / "samples.jsonl")]
    weights = {model: tensors(folder / model) for model in ("final", "best")}
    if not written or not weights["final"]:
        sys.exit(f"{name}: {folder} holds no metrics or no weights")
    last: dict[str, Any] = {}
    for line in metrics:
        last.update(line)
    return {
        "kind": run.kind,
        "start": run.start,
        "metrics": sha("\n".join(written).encode()),
        **{model: sha(json.dumps(found).encode()) for model, found in weights.items()},
        "samples": sha("\n".join(samples).encode()),
        "figures": last,
        "in_full": {"metrics": written, **weights, "samples": samples},
    }


def machine() -> dict[str, str]:
    """Returns what two results must have in common to be comparable."""
    import torch

    found = {"processor": processor(), "kernels": torch.backends.cpu.get_cpu_capability()}
    found["python"] = platform.python_version()
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "none"
    return found


def processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def difference(part: str, before: Any, now: Any) -> str:
    """Returns in words where two full records of one part of a run differ."""
    if part in ("final", "best"):
        if lost := sorted(before.keys() - now.keys()):
            return f"{len(lost)} tensors are missing: {lost[0]}"
        if new := sorted(now.keys() - before.keys()):
            return f"{len(new)} tensors are new: {new[0]}"
        other = [name for name in before if before[name] != now[name]]
        return f"{len(other)} of {len(before)} tensors differ: {other[0]}"
    first, other, lost, new = "", set(), set(), set()
    for one, two in zip(map(json.loads, before), map(json.loads, now), strict=False):
        differ = {name for name in one.keys() & two.keys() if one[name] != two[name]}
        lost, new, other = lost | one.keys() - two.keys(), new | two.keys() - one.keys(), other | differ
        if differ and not first:
            name = min(differ)
            first = f"first at step {one['step']}: {name} {one[name]!r} is {two[name]!r}"
    said = [first, listed(other, "differ")] if other else ["the figures that both have are the same"]
    said += [listed(lost, "are missing")] if lost else []
    said += [listed(new, "are new")] if new else []
    said += [f"{len(before)} lines are {len(now)}"] if len(before) != len(now) else []
    return "; ".join(said)


def listed(names: set[str], what: str) -> str:
    shown = ", ".join(sorted(names)[:MOST])
    return f"{len(names)} {what}: {shown}{' ...' if len(names) > MOST else ''}"


def compare(before: dict[str, Any], now: dict[str, Any], names: list[str]) -> int:
    """Prints which runs differ and in what; returns how many do."""
    for name, value in before["machine"].items():
        if now["machine"].get(name) != value:
            print(
                f"warning: {name} was {value}, is {now['machine'].get(name)}: this alone may change results"
            )
    different = []
    print(f"{'run':26} " + " ".join(f"{part:8}" for part in COMPARED))
    for name in names:
        old, new = before["runs"].get(name), now["runs"][name]
        if old is None:
            different.append(name)
            print(f"{name:26} is not in the earlier result")
            continue
        other = [part for part in COMPARED if old[part] != new[part]]
        cells = [f"{'DIFFERS' if part in other else 'same':8}" for part in COMPARED]
        print(f"{name:26} {' '.join(cells)}".rstrip())
        if other:
            different.append(name)
            for part in other:
                print(f"    {part}: {difference(part, old['in_full'][part], new['in_full'][part])}")
            if behind := [start for start in (RUNS[name].start, *RUNS[name].reads) if start in different]:
                print(f"    starts from {' and '.join(behind)}, which differs itself")
    print(f"{len(names) - len(different)} of {len(names)} runs are the same to the bit")
    return len(different)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, help="where the result goes, as JSON")
    parser.add_argument("--compare", type=Path, metavar="RESULT", help="an earlier result")
    parser.add_argument(
        "--only", nargs="+", metavar="RUN", choices=list(RUNS), help="these, and those they start from"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for configs, logs and runs, which stay")
    given = parser.parse_args()
    if not (given.output or given.compare):
        parser.error("give -o, --compare or both")
    output = given.output.resolve() if given.output else None
    before = json.loads(given.compare.read_text()) if given.compare else None
    if given.keep:
        given.keep.mkdir(parents=True, exist_ok=True)
        if any(given.keep.iterdir()):
            parser.error(f"{given.keep} is not empty")
    if any(os.environ.get(name) != value for name, value in SETTINGS.items()):  # libraries read them once
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **SETTINGS})
    for library in LIBRARIES:
        importlib.import_module(library)
    names = needed(given.only or list(RUNS))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        sys.path.insert(0, str(ROOT))  # the code beside this file is judged, whatever is installed
        os.chdir(given.keep or temporary)  # names in configs are relative: nothing depends on where it is
        os.environ["LLMLAB_CACHE"] = str(Path("prepared").resolve())
        write_data()
        must(
            llmlab(["tokenizer", "llmlab:moby-dick", "--vocab-size", "512", "-o", "tokenizer"]),
            Path("tokenizer.log"),
        )
        must(make_models, Path("models.log"))
        now: dict[str, Any] = {"machine": machine(), "seconds": 0.0, "runs": {}}
        for name in names:
            start = time.perf_counter()
            now["runs"][name] = computed(name, Path(carry_out(name, RUNS[name])))
            print(f"{name}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
        os.chdir("/")
    now["seconds"] = round(time.perf_counter() - began, 1)
    if output:
        output.write_text(json.dumps(now, indent=1) + "\n")
    print(f"{len(names)} runs in {now['seconds']:.0f} s", file=sys.stderr)
    if before and compare(before, now, names):
        sys.exit(1)


if __name__ == "__main__":
    main()
