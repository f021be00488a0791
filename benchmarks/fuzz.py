"""Generated bad inputs, each given to the program as a person would: it answers, or refuses with a message.

    python benchmarks/fuzz.py --count 10000 --workers 2

Names, run records, configs, datasets, what is typed, model folders, checkpoints with manifests made to fit,
the data cache (the generator is `tests/fuzzing.py`). Each input is tried in an empty folder by a process of
its own, forked from one in which the libraries are loaded. Counted as failures: a traceback; an end by a
signal; more than 2 s of the processor; foreign code that ran; control characters on the output; an exit code
that is neither 0 nor 2. Each failure is printed with its number.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import io
import json
import os
import pkgutil
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llmlab.__main__ import main as program
from llmlab.config import KINDS, SFTConfig, save_config
from llmlab.runs.manifest import write_manifest
from llmlab.training import methods
from tests.fuzzing import Case, case

SECONDS = 2.0  # of the processor, from the start of the command; libraries are loaded by then
WAIT = 40  # seconds of the clock, on a machine that does other things, too
FAULTS = ("traceback", "hang", "stuck", "crash", "code ran", "control characters", "exit code")
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def make_material(folder: Path) -> None:
    """Writes a policy, an adapter, a run that was stopped behind step 4,
    a config and the cache of its data.
    """
    from kills import make_policy

    from llmlab.models.load import load_model
    from llmlab.training.callbacks import stop as callbacks
    from llmlab.training.engine.run import run

    make_policy(folder / "policy")
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"Who is {i}?", "completion": "Ahab"}) + "\n" for i in range(40))
    )
    os.environ["LLMLAB_CACHE"] = str(folder / "cache")
    values = dict(
        policy_checkpoint=str(folder / "policy"),
        datasets=[str(rows)],
        batch_size=2,
        max_length=64,
        report_to=[],
        gradient_accumulation_steps=1,
        eval_fraction=0.0,
        warmup_steps=0,
        save_every=2,
        sample_tokens=0,
    )
    lora = SFTConfig(**values, max_steps=2, adapter="lora", output_dir=str(folder / "lora"))
    shutil.copytree(run(lora).model, folder / "adapter")
    save_config(SFTConfig(**values, max_steps=1), folder / "cached.json")
    look, left = callbacks.StopOnSignal._look, [4]

    def stop(self: callbacks.StopOnSignal, module: object, inputs: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise callbacks.Stopped

    callbacks.StopOnSignal._look = stop
    run(SFTConfig(**values, max_steps=5, output_dir=str(folder / "run")))
    callbacks.StopOnSignal._look = look
    load_model(str(folder / "adapter"))


def lay_out(made: Case, folder: Path) -> None:
    """Writes the files of a case."""
    for name, source in made.copies.items():
        shutil.copytree(source, folder / name)
    for name, content in made.files.items():
        path = folder / name
        if content is None:
            path.unlink(missing_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for name in made.sealed:
        write_manifest(folder / name, step=int(name.split("-")[-1]))
    (folder / ".stdin").write_bytes(made.stdin)


def child(made: Case, folder: Path, limit: float) -> None:
    """Runs the program in this process, which ends with it."""
    os.chdir(folder)
    for number, name in enumerate((".stdin", ".stdout", ".stderr")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o600), number)
    sys.stdin, sys.stdout = (
        io.TextIOWrapper(io.FileIO(0), "utf-8"),
        io.TextIOWrapper(io.FileIO(1, "w"), "utf-8"),
    )
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), "utf-8", "backslashreplace")
    os.environ["LLMLAB_CACHE"] = str(folder / "cache")
    sys.argv = ["llmlab", *made.argv]
    code = 0
    began = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (int(began + limit) + 8, int(began + limit) + 9))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    try:
        program()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        (folder / ".seconds").write_text(str(time.process_time() - began))
        os._exit(code)


def tried(made: Case, folder: Path, limit: float) -> tuple[list[str], float]:
    """Returns what was wrong with the answer to a case, and its seconds; above `limit` it is a hang."""
    lay_out(made, folder)
    pid = os.fork()
    if not pid:
        child(made, folder, limit)
    deadline = time.monotonic() + WAIT
    while not (ended := os.wait4(pid, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            used = os.wait4(pid, 0)[2]
            return ["stuck" if used.ru_utime < 1 else "hang"], float(WAIT)
        time.sleep(0.003)
    code, used = os.waitstatus_to_exitcode(ended[1]), ended[2]
    seconds = (
        float((folder / ".seconds").read_text())
        if (folder / ".seconds").exists()
        else used.ru_utime + used.ru_stime
    )
    said = "".join(
        (folder / name).read_bytes().decode("utf-8", "backslashreplace") for name in (".stdout", ".stderr")
    )
    faults = {
        "hang": code == -signal.SIGXCPU or seconds > limit,
        "crash": code < 0 and code != -signal.SIGXCPU,
        "traceback": "Traceback (most recent call last)" in said,
        "code ran": (folder / "ran").exists(),
        "control characters": bool(CONTROL.search(said)),
        "exit code": code > 0 and code != 2,
    }
    return [name for name, is_so in faults.items() if is_so], seconds


def worker(given: argparse.Namespace) -> None:
    """Tries every `workers`-th case, at the latest until a time, and writes a line for each."""
    import torch

    torch.set_num_threads(1)
    material, wanted = Path(given.material), tuple(filter(None, given.kinds.split(",")))
    for warm in (
        ["runs"],
        ["methods"],
        ["generate", str(material / "adapter"), "-p", "Who?", "--set", "max_new_tokens=2"],
    ):
        sys.argv = ["llmlab", *warm]  # whatever these load, the processes that are forked have
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            program()
    for module in pkgutil.iter_modules(methods.__path__, f"{methods.__name__}."):
        importlib.import_module(module.name)
    gc.freeze()  # else every child copies the pages on which its collector marks what was imported
    with (
        open(given.results, "w", encoding="utf-8", errors="backslashreplace") as out,
        tempfile.TemporaryDirectory() as work,
    ):
        for number in range(given.worker, given.count, given.workers):
            if time.time() > given.until:
                break
            made = case(random.Random(f"{given.seed}:{number}"), material, KINDS, wanted)
            for attempt in (
                "",
                "-again",
            ):  # a lock that another thread held is never freed in a process that was forked then
                folder = Path(work) / f"{number}{attempt}"
                folder.mkdir()
                faults, seconds = tried(made, folder, given.limit)
                if "stuck" not in faults:
                    break
            line = {"number": number, "kind": made.kind, "faults": faults, "seconds": seconds}
            if faults:
                said = (folder / ".stderr").read_bytes()[-3000:].decode("utf-8", "backslashreplace")
                line |= {"case": str(made), "said": said}
            out.write(json.dumps(line) + "\n")
            out.flush()
            shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Tries them and prints the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600, help="an end before the count is reached")
    parser.add_argument(
        "--limit", type=float, default=SECONDS, help="seconds of the processor; more is a hang"
    )
    parser.add_argument("--kinds", default="", help="of input, with commas between them; left out, all")
    for name, kind in (("worker", int), ("material", str), ("results", str), ("until", float)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        worker(given)
        return
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TERM": "dumb",
    }
    until = time.time() + 60 * given.minutes
    with tempfile.TemporaryDirectory() as place:
        material, home = Path(place) / "material", Path(place) / "home"
        material.mkdir()
        home.mkdir()
        os.environ["HOME"] = str(home)
        script = Path(__file__).resolve()
        os.chdir(home)
        make_material(material)
        results = [Path(place) / f"{index}.jsonl" for index in range(given.workers)]
        started = [
            subprocess.Popen(
                [
                    sys.executable,
                    str(script),
                    *sys.argv[1:],
                    "--worker",
                    str(index),
                    "--material",
                    str(material),
                    "--results",
                    str(file),
                    "--until",
                    str(until),
                ]
            )
            for index, file in enumerate(results)
        ]
        ended = [process.wait() for process in started]
        if any(ended):
            sys.exit("a worker ended with an error of its own")
        lines = [json.loads(line) for file in results for line in file.read_text().splitlines()]
        outside = [str(path) for path in home.iterdir() if path.name != ".cache"]  # of the datasets library
    report(lines, outside)


def report(lines: list[dict], outside: list[str]) -> None:
    """Prints failures and counts, and ends the program with 1 where there is a failure."""
    for line in sorted(lines, key=lambda line: line["number"]):
        if line["faults"]:
            print(
                f"{line['number']} {', '.join(line['faults'])} {line['seconds']:.1f} s:"
                f" {line['case']}\n{line['said']}\n"
            )
    if outside:
        print(f"written outside: {outside}")
    faults = Counter(fault for line in lines for fault in line["faults"])
    kinds = Counter(line["kind"] for line in lines)
    told = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
    found = ", ".join(f"{faults[name]:,} {name}" for name in FAULTS)
    print(
        f"{len(lines):,} inputs ({told}): {found}; longest {max(line['seconds'] for line in lines):.2f} s of"
        " the processor"
    )
    sys.exit(1 if faults or outside else 0)


if __name__ == "__main__":
    main()
