"""Generated configs and damaged files: each is read, or refused with one message; none ends in a traceback or hangs.

    python benchmarks/fuzz.py --configs 10000 --files 1000

Configs: every kind with options left out, added, of wrong types and extreme sizes, nested deeply, and files that are no JSON.
Files: a real run's (weights, tokenizer, manifest, record, metrics, optimizer state, adapter) and datasets of every kind, each
cut, bit-flipped, swapped with another or replaced by hostile bytes, then read by what reads it in earnest. A pickle that
creates a file when it runs stands among the hostile ones. Nothing outside the folder in use may be written.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import pickle
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llmlab.config import KINDS, SFTConfig, SourceConfig, load_config
from llmlab.data.prepare import document_texts
from llmlab.data.tokenizer import load_tokenizer
from llmlab.errors import LabError
from llmlab.plan.report import plan_table
from llmlab.runs.folder import RunFolder
from llmlab.runs.report import info_table
from llmlab.runs.seal import verify
from llmlab.train.engine import run
from llmlab.train.loading import load_model

SLOW = 1.0  # seconds; reading is done without a model's first load


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def values(rng: random.Random) -> Any:
    """Returns a value that somebody might put anywhere."""
    return rng.choice([
        None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e308, 10**30, float("nan"), float("inf"), "", " ", "none", "adamw",
        "a" * 5000, "\0", "../../etc/passwd", "💥", "1", "true", [], [[]], {}, {"name": "x"},
        [{"name": "x", "weight": -1}], ["x | y | z"],
        ["a | | 2"], {"": {}}, [None], ["x"] * 300, 7, 64, "llmlab:moby-dick",
    ])  # fmt: skip


def config_text(rng: random.Random) -> bytes:
    """Returns the bytes of a config that is nearly one."""
    kind = rng.choice([*KINDS, "", "nothing", None])
    cls = KINDS.get(kind)
    data: dict[str, Any] = {"kind": kind}
    names = list(cls.model_fields) if cls else ["a", "b"]
    for name in rng.sample(names, rng.randint(0, min(6, len(names)))):
        default = cls.model_fields[name].get_default(call_default_factory=True) if cls else 1
        data[name] = (
            values(rng) if rng.random() < 0.7 else default if isinstance(default, (int, float, str, bool)) else values(rng)
        )
    if rng.random() < 0.2:
        data[rng.choice(["learning_rat", "list[", "", "schema_version", "{}", "a" * 300])] = values(rng)
    match rng.randint(0, 19):
        case 0:
            return rng.randbytes(rng.randint(0, 300))
        case 1:
            depth = rng.choice([100, 2000, 100_000])
            return b'{"kind":' * depth + b"1" + b"}" * depth
        case 2:
            return json.dumps(rng.choice([[], 1, "x", None, [data]])).encode()
        case 3:
            whole = json.dumps(data).encode()
            return whole[: rng.randint(0, len(whole))]
        case 4:
            return ("\ufeff" + json.dumps(data)).encode(rng.choice(["utf-8", "utf-16"]))
        case _:
            return json.dumps(data, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def damage(content: bytes, other: bytes, rng: random.Random, marker: Path) -> bytes:
    """Returns a file as it may arrive."""
    match rng.randint(0, 5):
        case 0:
            return content[: rng.randint(0, len(content))]
        case 1:
            made = bytearray(content)
            for _ in range(rng.randint(1, 20)):
                if made:
                    made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
            return bytes(made)
        case 2:
            return other
        case 3:
            return pickle.dumps(Hostile(str(marker)))
        case 4:  # a header that promises more than there is, as safetensors have them
            return rng.choice([b"\xff" * 8, (2**40).to_bytes(8, "little"), (8).to_bytes(8, "little")]) + rng.randbytes(40)
        case _:
            start = rng.randint(0, len(content))
            return content[:start] + rng.randbytes(rng.randint(1, 200)) + content[start:]


def make_run(work: Path) -> Path:
    """Returns a small run with everything in it that a run can have."""
    from kills import make_policy

    torch.manual_seed(0)
    torch.set_num_threads(1)
    make_policy(work / "policy")
    rows = work / "sft.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Who is {i}?", "completion": "Ahab"}) + "\n" for i in range(40)))
    return run(SFTConfig(
        policy_checkpoint=str(work / "policy"), datasets=[str(rows)], max_steps=2, save_every=2, batch_size=4, max_length=64,
        gradient_accumulation_steps=1, adapter="lora", eval_fraction=0.2, output_dir=str(work / "run"), report_to=[],
        warmup_steps=0,
    )).folder  # fmt: skip


def make_data(folder: Path) -> None:
    """Writes a dataset of every kind."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    rows = [{"prompt": f"Who is {i}?", "completion": "Ahab, the captain"} for i in range(60)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "a.jsonl").write_text(lines)
    (folder / "a.json").write_text(json.dumps(rows))
    (folder / "a.txt").write_text("Call me Ishmael.\n\n" * 50)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    with open(folder / "a.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(rows)


def readers(work: Path) -> list[tuple[Path, Callable[[], Any]]]:
    """Returns files of the copies in `work`, each with what reads it."""
    made: list[tuple[Path, Callable[[], Any]]] = []
    checkpoint = next((work / "run").glob("checkpoint-*"))
    for file in sorted(checkpoint.iterdir()):
        made.append((file, lambda: (verify(checkpoint), RunFolder(work / "run").newest_sealed())))
    for name in ("run.json", "metrics.jsonl"):
        made.append((work / "run" / name, lambda: (RunFolder(work / "run").record, RunFolder(work / "run").metrics(),
                                                   info_table(str(work / "run")))))  # fmt: skip
    for folder in (work / "policy", work / "run" / "best"):
        for file in sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".jinja")):
            made.append((file, lambda folder=folder: load_model(str(folder))))
    made.append((work / "policy" / "tokenizer.json", lambda: load_tokenizer(str(work / "policy"))))
    for file in sorted((work / "data").iterdir()):
        made.append((file, lambda file=file: list(document_texts(SourceConfig(name=str(file))))))
    return made


def tried(read: Callable[[], Any], what: str, failures: list[str]) -> str:
    began = time.perf_counter()
    try:
        read()
        outcome = "read"
    except LabError:
        outcome = "refused"
    except Exception:
        failures.append(f"{what}: {traceback.format_exc()[-1500:]}")
        outcome = "failed"
    if time.perf_counter() - began > SLOW:
        failures.append(f"{what}: took {time.perf_counter() - began:.1f} s")
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, failures, outcomes = random.Random(given.seed), [], Counter()
    with tempfile.TemporaryDirectory() as folder:
        work, marker = Path(folder) / "use", Path(folder) / "ran"
        (Path(folder) / "home").mkdir()
        os.chdir(Path(folder) / "home")
        os.environ["LLMLAB_CACHE"] = str(Path(folder) / "cache")
        path = Path(folder) / "c.json"
        for number in range(given.configs):
            content = config_text(rng)
            path.write_bytes(content)

            def read() -> None:
                plan_table(load_config(path))

            outcomes["config " + tried(read, f"config {number} {content[:300]!r}", failures)] += 1
            if len(failures) > 5:
                break
        work.mkdir()
        make_run(work)
        make_data(work / "data")
        shutil.copytree(work, Path(folder) / "whole")
        contents = [file.read_bytes() for file, _ in readers(work)]
        for _, read in readers(work):
            read()  # whole files are read, and the libraries are warm
        for number in range(given.files):
            file, read = rng.choice(readers(work))
            before = file.read_bytes()
            file.write_bytes(damage(before, rng.choice(contents), rng, marker))
            outcomes["file " + tried(read, f"file {number} {file.name}", failures)] += 1
            file.write_bytes(before)
            if len(failures) > 5:
                break
        outside = list((Path(folder) / "home").iterdir())
        if marker.exists():
            failures.append("a pickle ran")
        if outside:
            failures.append(f"written outside: {outside}")
    for failure in failures:
        print(failure)
    print(", ".join(f"{count:,} {name}" for name, count in sorted(outcomes.items())))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
