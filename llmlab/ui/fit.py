"""What fits, as a table and a few lines. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from llmlab.models.shapes import CheckpointShape
from llmlab.planning.duration import DataSize
from llmlab.planning.fit import Cell, FitRow, Question, command_of
from llmlab.planning.largest import TOKENS, LargestModel
from llmlab.planning.machines import CONTEXT, DRIVER, ECC, Machine
from llmlab.planning.speed import Pace
from llmlab.ui.units import long_time, short_count, size

ADAPTERS = {"none": "full", "lora": "LoRA", "qlora": "QLoRA"}
STYLES = {"fits": "green", "tight": "yellow", "does not fit": "red"}


def fit_table(question: Question, shape: CheckpointShape, rows: list[FitRow]) -> Table:
    """Returns the methods and adapters against lengths of a row, in GB of each device."""
    devices = f"{question.devices} x " if question.devices > 1 else ""
    title = f"{question.model} ({short_count(shape.parameters)}) on {devices}{question.machine.name}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method", style="cyan", no_wrap=True)
    table.add_column("trains", no_wrap=True)
    for length in question.lengths:
        table.add_column(f"{length:,}", justify="right", no_wrap=True)
    table.add_column("longest", justify="right", no_wrap=True)
    table.add_column("batch", justify="right", no_wrap=True)
    table.add_column("tokens/s", justify="right", no_wrap=True)
    if any(row.data_seconds is not None for row in rows):
        table.add_column("one pass", justify="right", no_wrap=True)
    for row in rows:
        cells = [_cell(cell) for cell in row.cells]
        longest = f"{row.longest:,}" if row.longest else "-"
        batch = f"{row.batch:,}" if row.batch else "-"
        speed = short_count(row.pace.speed) if row.pace else "-" if not row.batch else "?"
        once = [long_time(row.data_seconds) if row.data_seconds is not None else "-"]
        last = once if len(table.columns) > 5 + len(cells) else []
        table.add_row(row.kind, ADAPTERS[row.adapter], *cells, longest, batch, speed, *last)
    return table


def _cell(cell: Cell | None) -> Text:
    if cell is None:
        return Text("-", style="dim")
    need = cell.need
    mark = " c" if cell.checkpointing else ""
    if cell.verdict == "does not fit":
        return Text(f"+{_gigabytes(cell.over)}", style=STYLES[cell.verdict])
    tight = "~" if cell.verdict == "tight" else ""
    return Text(f"{tight}{_gigabytes(need.total)}{mark}", style=STYLES[cell.verdict])


def _gigabytes(count: float) -> str:
    value = count / 1e9
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 0.95 else f"{value:.2f}"


def legend(question: Question, rows: list[FitRow], data: dict[str, DataSize]) -> Iterator[str]:
    """Yields what the table means, and how its figures are known."""
    usual = sorted({row.length for row in rows if row.batch})
    lengths = " or ".join(f"{length:,}" for length in usual)
    yield (
        "GB of each device with one row a forward pass (c: with gradient checkpointing, ~: tight, +: so many"
        " GB too much). A tenth of the memory stays free with the longest row"
        + (f" and with the batch, whose rows have {lengths} tokens, as for tokens/s." if usual else ".")
    )
    yield memory_line(question.machine)
    engines = {row.cells[0].need.engine for row in rows if row.cells and row.cells[0]}
    if question.devices > 1:
        yield f"shared by {', '.join(sorted(engines))}: the least sharding that fits."
    if paces := [row.pace for row in rows if row.pace]:
        yield speed_line(question.machine, paces)
    elif any(row.batch for row in rows):
        yield "tokens/s are not known: name the card (--gpu), or measure there (`llmlab check --measure`)."
    for kind in question.methods if question.sources else ():
        yield data_line(kind, data.get(kind))


def data_line(kind: str, amount: DataSize | None) -> str:
    """Returns how much there is to train on for a method."""
    if amount is None:
        return f"data for {kind}: not counted; `llmlab data inspect` says why."
    tokens = f", {short_count(amount.tokens)} tokens" if amount.tokens else ""
    return f"data for {kind}: about {amount.rows:,} rows as a run takes them{tokens}."


def memory_line(machine: Machine) -> str:
    """Returns how much of the memory a run can take, and where the rest is."""
    if not machine.nominal:
        return f"{size(machine.free)} are free here now."
    ecc = f"error correction {ECC:.1%}, " if machine.gpu and machine.gpu.ecc else ""
    return (
        f"{size(machine.free)} of its {size(machine.nominal)} can be used:"
        f" {ecc}the driver keeps {DRIVER:.0%}, CUDA and its libraries {size(CONTEXT)}."
    )


def speed_line(machine: Machine, paces: list[Pace]) -> str:
    """Returns how the speeds are known."""
    bases = {pace.basis for pace in paces}
    if bases == {"measured"}:
        return "tokens/s were measured here."
    if "flops" not in bases:
        return "tokens/s follow from runs that were measured here; `llmlab check --measure` makes them exact."
    shares = sorted({pace.share for pace in paces if pace.share})
    ends = " to ".join(dict.fromkeys(f"{share:.0%}" for share in (shares[:1] + shares[-1:])))
    peak = f" of {machine.gpu.bf16:g} TFLOP/s" if machine.gpu else ""
    return (
        f"tokens/s are estimated from FLOPs, at {ends}{peak};"
        " `llmlab check --measure` there makes them exact."
    )


def largest_lines(largest: LargestModel | None, devices: int) -> Iterator[str]:
    """Yields the largest model that can be trained from scratch, and how long it should learn."""
    if largest is None:
        yield "base training from scratch: not even the smallest model fits."
        return
    shape = largest.config
    on = f" on {devices} devices" if devices > 1 else ""
    time = "" if largest.seconds is None else f", about {long_time(largest.seconds)}"
    yield (
        f"base training from scratch{on}: up to {short_count(largest.parameters)} parameters"
        f" ({shape.n_layers} layers of {shape.d_model:,}, rows of {shape.max_seq_len:,},"
        f" {size(largest.need.total)}), for which {short_count(largest.tokens)} tokens use compute best"
        f" ({TOKENS} a parameter, Hoffmann et al. 2022): {largest.flops:.2g} FLOPs{time}."
    )


def to_json(
    question: Question,
    shape: CheckpointShape,
    rows: list[FitRow],
    largest: LargestModel | None,
    data: dict[str, DataSize],
) -> dict[str, Any]:
    """Returns all figures as JSON data; memory in bytes, times in seconds."""
    machine = question.machine
    return {
        "model": question.model,
        "parameters": shape.parameters,
        "device": machine.name,
        "devices": question.devices,
        "nominal_memory": machine.nominal or None,
        "usable_memory": machine.free,
        "data": {kind: asdict(amount) for kind, amount in data.items()},
        "rows": [_row_json(row) for row in rows],
        "largest_model": largest
        and {
            "parameters": largest.parameters,
            "config": largest.config.to_json_dict(),
            "memory": largest.need.total,
            "tokens": largest.tokens,
            "flops": largest.flops,
            "seconds": largest.seconds,
        },
    }


def _row_json(row: FitRow) -> dict[str, Any]:
    return {
        "method": row.kind,
        "adapter": row.adapter,
        "lengths": [
            {
                "length": cell.length,
                "memory": cell.need.total,
                "verdict": cell.verdict,
                "missing": cell.over,
                "gradient_checkpointing": cell.checkpointing,
                "engine": cell.need.engine,
                "parts": cell.need.memory.parts(),
            }
            for cell in row.cells
            if cell
        ],
        "longest": row.longest,
        "length": row.length,
        "largest_batch": row.batch,
        "tokens_per_second": row.pace.speed if row.pace else None,
        "speed_is": row.pace.basis if row.pace else None,
        "seconds_for_one_pass": row.data_seconds,
        "command": command_of(row.config) if row.config else None,
    }
