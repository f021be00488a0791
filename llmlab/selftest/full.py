"""A batch that is too large for the device, met and handled: with `out_of_memory` "stop" the run ends with a
message that says what to do; with "halve" it goes on with half the rows, twice the accumulation.

The process may take a part of the device's memory only, so that the error comes soon, and nobody else's
program is in its way. On a processor a real lack of memory ends the process: nothing can be checked there.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any, Literal

import torch

from llmlab.config import ModelConfig, PretrainConfig, SourceConfig
from llmlab.errors import LabError
from llmlab.runs.folder import RunFolder
from llmlab.selftest.rows import Row
from llmlab.selftest.setting import Setting, Shape
from llmlab.training.engine.memory import free_memory
from llmlab.training.engine.run import run

ALLOWED = 1.5e9  # bytes that the process may take
ROWS, LENGTH = 256, 512
SHAPE = Shape(512, 8, 8, 2, 1408, 512, ROWS, LENGTH)  # 1.5 GB hold about 16 such rows in bf16
REMEDY = "lower batches by hand here: `out_of_memory` is not to be relied on"


def check(setting: Setting, part: str) -> Iterator[Row]:
    """Yields a row for each way to handle it."""
    if not setting.on_gpu:
        found = (
            "a process that takes too much of a processor's memory is ended by the system: this needs a GPU"
        )
        yield Row("out of memory", "not on this device", found)
        return
    share = min(1.0, ALLOWED / _memory(setting.device))
    _limit(setting.device, share)
    try:
        yield _stops(setting)
        free_memory()
        yield _halves(setting)
    finally:
        _limit(setting.device, 1.0)


def _memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    return int(torch.mps.recommended_max_memory())


def _limit(device: str, share: float) -> None:
    if device == "cuda":
        torch.cuda.set_per_process_memory_fraction(share)
    else:
        torch.mps.set_per_process_memory_fraction(share)


def _stops(setting: Setting) -> Row:
    name, said = "out of memory: stop", ""
    try:
        run(_config(setting, "stop"))
    except LabError as error:
        said = str(error)
    except Exception as error:
        found = (
            f"the run ended with {type(error).__name__}: {str(error)[:120]}, not with a message of the lab"
        )
        return Row(name, "failed", found, REMEDY)
    if not said:
        found = f"{ROWS} rows of {LENGTH} tokens did not fill {ALLOWED / 1e9:.1f} GB"
        return Row(name, "failed", found, "a fault of this check: please report it")
    status = RunFolder(setting.folder / "full-stop").record.get("status")
    gc.collect()
    left = torch.cuda.memory_allocated() if setting.device == "cuda" else 0
    figures = {"message": said, "status": status, "left": left}
    if "out of memory" not in said or "batch_size" not in said or status != "failed":
        found = f"the run ended with {said[:160]!r} and status {status!r}"
        return Row(name, "failed", found, REMEDY, figures)
    return Row(
        name, "passed", "the run ends with its message, and its record says that it failed", figures=figures
    )


def _halves(setting: Setting) -> Row:
    name = "out of memory: halve"
    result = run(_config(setting, "halve"))
    record = RunFolder(result.folder).record
    config: dict[str, Any] = record.get("config") or {}
    rows, times = config.get("batch_size", 0), config.get("gradient_accumulation_steps", 0)
    figures = {"rows": rows, "accumulation": times, "status": record.get("status")}
    found = f"{ROWS} rows of {LENGTH} tokens in {ALLOWED / 1e9:.1f} GB became {rows} x {times}"
    if rows >= ROWS or rows * times != ROWS or record.get("status") != "done":
        return Row(name, "failed", f"{found}, status {record.get('status')!r}", REMEDY, figures)
    return Row(name, "passed", f"{found}: the same rows an update, and the run ended well", figures=figures)


def _config(setting: Setting, handling: Literal["stop", "halve"]) -> PretrainConfig:
    return PretrainConfig(
        model=ModelConfig.model_validate({"tokenizer_name": "byte", **SHAPE.options()}),
        datasets=[SourceConfig(name="llmlab:moby-dick")],
        batch_size=ROWS,
        gradient_accumulation_steps=1,
        out_of_memory=handling,
        max_steps=2,
        warmup_steps=0,
        eval_fraction=0.0,
        save_every=10**6,
        report_to=[],
        sample_tokens=0,
        device=setting.device,
        output_dir=str(setting.folder / f"full-{handling}"),
    )
