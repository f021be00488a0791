"""Which engine serves which kind of run: short runs in two processes against one, every combination.

    python -m benchmarks.engines                   the whole matrix, into docs/engines.json and docs/scale.md
    python -m benchmarks.engines --engines zero2   some engines; the results of the others stay
    python -m benchmarks.engines --only sft dpo    some kinds, onto the screen

A combination works when two processes end where one does: the largest difference of a weight after four
updates at a rate of 1e-3; losses within 2 % where numbers are rounded to 16 or 4 bits or labels are drawn. It
is refused when the lab says so before it trains, and fails otherwise. Without GPUs FSDP2 is allowed by
`tests/shims`; ZeRO needs the extra `deepspeed`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
RESULTS, PAGE = DOCS / "engines.json", DOCS / "scale.md"
BEGIN, END = "<!-- table of engines: made by benchmarks/engines.py -->\n", "<!-- end of the table -->\n"
ENGINES = ("ddp", "fsdp2", "zero2", "zero3")
CLOSE = 3e-4  # a weight moves by up to 4e-3 in four updates
ALIKE = 0.02  # of a loss: bf16 and 4 bit round by what is computed together, sophia draws labels
STAGES = ("pretrain", "sft", "reward", "dpo", "dpo-live", "grpo", "ppo", "dual-head")
VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "LoRA": {"adapter": "lora", "lora_dropout": 0.0},
    "QLoRA, 4 bit": {"adapter": "qlora", "lora_dropout": 0.0},
}
OPTIMIZERS = ("adafactor", "lion", "muon", "sophia")
EXTRAS: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "CPU offload": {"cpu_offload": True},
}


@dataclass
class Cell:
    """One combination, and what came of it.

    Attributes:
        kind: of the run.
        what: the variant, optimizer or setting.
        engine: how two processes share the work.
        verdict: "works", "refused", "fails" or "differs".
        detail: what is in effect and how far the weights are apart, or why not.
    """

    kind: str
    what: str
    engine: str
    verdict: str = ""
    detail: str = ""


def combinations(only: list[str]) -> list[tuple[str, str, dict[str, Any]]]:
    """Returns kind, name of the variant and its options, of every combination."""
    found = [(kind, name, values) for kind in only for name, values in VARIANTS.items()]
    found = [part for part in found if not (part[0] == "dual-head" and part[1] != "whole")]
    if "sft" in only:
        found += [("sft", name, {"optimizer": name}) for name in OPTIMIZERS]
        found += [("sft", name, values) for name, values in EXTRAS.items()]
    return found


def measured(only: list[str], engines: list[str], work: Path) -> list[Cell]:
    """Returns what came of every combination."""
    from llmlab.config import PretrainConfig, parse_config
    from llmlab.data.tokenizer import load_tokenizer, save_tokenizer
    from llmlab.errors import LabError
    from llmlab.training.engine.run import run
    from tests.training.jobs import config_of

    save_tokenizer(load_tokenizer("byte"), work / "tokenizer")
    shape = dict(kind="model", tokenizer_name=str(work / "tokenizer"), vocab_size=260, d_model=64, n_layers=2)
    base = PretrainConfig(
        model={**shape, "n_heads": 4, "d_ff": 128, "max_seq_len": 128},
        datasets=["llmlab:moby-dick"],
        batch_size=4,
        gradient_accumulation_steps=1,
        max_steps=20,
        report_to=[],
        sample_tokens=0,
        output_dir=str(work / "base"),
    )
    run(base)
    cells, plans = [], []
    for kind, name, values in combinations(only):
        label = f"{kind}-{name}".replace(" ", "_").replace(",", "")
        alone = {key: value for key, value in values.items() if key != "cpu_offload"}
        one = work / f"{label}-one"
        try:
            run(parse_config(config_of(kind, str(work / "base"), one, 1, **alone)))
        except LabError as error:
            cells += [Cell(kind, name, engine, "refused", str(error)) for engine in engines]
            continue
        for engine in engines:
            place = work / f"{label}-{engine}"
            config = config_of(kind, str(work / "base"), place, 2, parallel=engine, **values)
            cells.append(Cell(kind, name, engine))
            plans.append((cells[-1], {"config": config}, one, place))
    while plans:
        done = together([plan for _, plan, _, _ in plans], work)
        for (cell, _, one, place), result in zip(plans, done, strict=False):
            judge(cell, result, one, place)
            print(
                f"{cell.kind:10} {cell.what:24} {cell.engine:6} {cell.verdict:8} {cell.detail[:90]}",
                flush=True,
            )
        plans = plans[len(done) :]  # one that fails ends its job
    return cells


def together(plan: list[dict[str, Any]], work: Path) -> list[dict[str, str]]:
    """Runs configs in one job; returns what came of them, up to the first that failed."""
    from tests.training.jobs import several

    try:
        return several(plan, work)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        results = json.loads(file.read_text()) if (file := work / "result.json").exists() else []
        if results and results[-1]["error"].startswith("Traceback"):
            return results
        lines = [line for line in str(error).splitlines() if "Error" in line]
        hangs = isinstance(error, subprocess.TimeoutExpired)
        return [
            *results,
            {"error": "Traceback\n" + ("hangs" if hangs else (lines or ["ended"])[-1]), "engine": ""},
        ]


def judge(cell: Cell, result: dict[str, str], one: Path, place: Path) -> None:
    """Notes what came of one combination in two processes."""
    from tests.training.jobs import apart

    if error := result["error"]:
        failed = error.startswith("Traceback")
        cell.verdict, cell.detail = "fails" if failed else "refused", error.strip().splitlines()[-1][:300]
        return
    weights, losses = apart(one, place), losses_apart(one, place)
    cell.verdict = "works" if weights < CLOSE or losses < ALIKE else "differs"
    cell.detail = f"{result['engine']}; weights {weights:.1e} apart, losses {losses:.1e} of their size"


def losses_apart(one: Path, place: Path) -> float:
    """Returns the largest difference of a step's loss, as a share of it; of rewards where a loss is 0 by
    construction.
    """
    from llmlab.runs.folder import RunFolder

    first, second = (RunFolder(folder).metrics() for folder in (one, place))
    name = "reward" if any("reward" in line for line in first) else "loss"
    pairs = [(a[name], b[name]) for a, b in zip(first, second, strict=True) if name in a and name in b]
    return max(abs(a - b) / max(abs(a), 1e-6) for a, b in pairs)


def together_with_others(cells: list[Cell], engines: list[str]) -> list[Cell]:
    """Returns new results and those of the file that are of other engines, in the order of the table."""
    kept = [Cell(**values) for values in json.loads(RESULTS.read_text())]
    cells = [*cells, *(cell for cell in kept if cell.engine not in engines)]
    rows = [(kind, name) for kind, name, _ in combinations(list(STAGES))]
    return sorted(cells, key=lambda cell: (rows.index((cell.kind, cell.what)), ENGINES.index(cell.engine)))


def page_with(cells: list[Cell], page: str) -> str:
    """Returns the docs page with the table of the results in its place."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + table(cells) + END + rest.partition(END)[2]


def table(cells: list[Cell]) -> str:
    """Returns the results as a Markdown table, and below it why combinations are refused."""
    engines = [engine for engine in ENGINES if any(cell.engine == engine for cell in cells)]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    reasons: list[str] = []
    for cell in cells:
        words = cell.verdict
        if cell.verdict != "works":
            reason = cell.detail.replace(f'`parallel` "{cell.engine}"', "this engine")
            if reason not in reasons:
                reasons.append(reason)
            words += f" ({reasons.index(reason) + 1})"
        rows.setdefault((cell.kind, cell.what), {})[cell.engine] = words
    lines = [f"| run | {' | '.join(engines)} |", "| --- |" + " --- |" * len(engines)]
    for (kind, what), verdicts in rows.items():
        lines.append(f"| {kind}, {what} | {' | '.join(verdicts.get(e, '') for e in engines)} |")
    notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, "", *notes, ""])


def main() -> None:
    """Measures, and writes the results where the whole matrix was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=STAGES, default=None)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=None)
    arguments = parser.parse_args()
    from llmlab.libraries import quiet_libraries

    there = [e for e in ENGINES if not e.startswith("zero") or importlib.util.find_spec("deepspeed")]
    quiet_libraries(print)
    work = Path(tempfile.mkdtemp(prefix="engines-"))
    engines = arguments.engines or there
    cells = measured(arguments.only or list(STAGES), engines, work)
    if arguments.only is None:
        cells = together_with_others(cells, engines)
        RESULTS.write_text(json.dumps([asdict(cell) for cell in cells], indent=1) + "\n")
        PAGE.write_text(page_with(cells, PAGE.read_text()))
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
