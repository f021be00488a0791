"""Memory as it is planned before a run, beside the peak of the run: six real runs of a few updates.

What these updates take is kept with the speeds of other runs on this device (`planning.speed`), as of every
run, so that plans begin with a measurement. On a GPU the peak is what torch had allocated, on the processor
what the process had resident.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmlab.config import parse_config
from llmlab.config.training import TrainingConfig
from llmlab.data.tokenizer import load_tokenizer
from llmlab.models import LabConfig, LabForCausalLM
from llmlab.planning.speed import pace_of
from llmlab.runs.details import Memory
from llmlab.runs.folder import RunFolder
from llmlab.selftest.rows import Row
from llmlab.selftest.setting import Setting, Shape
from llmlab.training.engine.memory import free_memory
from llmlab.training.engine.run import run

NEAR, FAR = 0.2, 0.4  # of the plan; beyond the second one it is wrong
SAID = "It is a large animal that lives in the sea, and it was hunted for its oil by men in small boats. "
REMEDY = (
    "plans of memory are off here: leave more room than they say, and see which part is wrong (`llmlab check`"
    " shows the parts)"
)


def check(setting: Setting, part: str) -> Iterator[Row]:
    """Yields the row of one setting."""
    config = parse_config(_settings(setting)[part])
    assert isinstance(config, TrainingConfig)
    yield row_of(f"memory: {part}", config, kept=not setting.quick)
    shutil.rmtree(str(config.output_dir))
    free_memory()


def row_of(name: str, config: TrainingConfig, *, kept: bool) -> Row:
    """Returns the row of a run, which is done.

    Args:
        name: of the row.
        config: of the run.
        kept: whether its speed is where plans look for it.
    """
    result = run(config)
    memory = Memory.of(RunFolder(result.folder).record)
    pace = pace_of(config)
    speed = pace.speed if pace and pace.basis == "measured" else None
    figures: dict[str, Any] = {
        "kind": config.kind,
        "measured": memory.measured,
        "predicted": memory.predicted,
        "of": memory.place,
        "tokens_per_second": speed,
    }
    if not memory.measured or not memory.predicted:
        missing = "predicted" if memory.measured else "measured"
        return Row(name, "not on this device", f"the memory of this run was not {missing}", figures=figures)
    off = memory.measured / memory.predicted - 1
    figures["off"] = off
    of = "allocated on the device" if memory.place == "GPU" else "resident"
    found = f"{memory.measured / 1e9:.2f} GB {of}, {memory.predicted / 1e9:.2f} GB planned ({off:+.0%})"
    found += f"; {speed:,.0f} tokens/s{', kept for plans' if kept else ''}" if speed else ""
    if abs(off) <= NEAR:
        return Row(name, "passed", found, figures=figures)
    return Row(name, "slow" if abs(off) <= FAR else "failed", found, REMEDY, figures)


def _settings(setting: Setting) -> dict[str, dict[str, Any]]:
    """Returns the configs by the names of the parts."""
    shape, folder = _shape(setting), setting.folder
    policy, steps = _untrained(shape, folder), 3 if not setting.on_gpu else 8
    shared: dict[str, Any] = dict(
        max_steps=2 if setting.quick else steps,
        warmup_steps=0,
        eval_fraction=0.0,
        log_every=1,
        save_every=10**6,
        save_best_only=False,
        report_to=[],
        sample_tokens=0,
        learning_rate=1e-5,
        device=setting.device,
    )
    model = {"kind": "model", "tokenizer_name": "byte", **shape.options()}
    base = dict(
        kind="pretrain",
        datasets=["llmlab:moby-dick"],
        model=model,
        batch_size=shape.rows,
        gradient_accumulation_steps=1,
    )
    sft = dict(
        kind="sft",
        datasets=[str(_talk(folder))],
        policy_checkpoint=policy,
        max_length=shape.length,
        batch_size=shape.rows,
        gradient_accumulation_steps=1,
    )
    dpo = dict(
        kind="dpo",
        datasets=[str(_pairs(folder, shape.length))],
        policy_checkpoint=policy,
        max_length=shape.length,
        max_prompt_length=shape.length // 2,
        batch_size=max(1, shape.rows // 2),
        mini_batch_size=max(1, shape.rows // 2),
        cache_dir=str(folder / "reference"),
    )
    configs: dict[str, dict[str, Any]] = {
        "base": base,
        "base, checkpointing": {**base, "gradient_checkpointing": True},
        "SFT": sft,
        "LoRA": {**sft, "adapter": "lora"},
        "QLoRA": {**sft, "adapter": "qlora"},
        "DPO": dpo,
    }
    return {
        name: {**shared, **values, "output_dir": str(folder / f"memory-{values['kind']}")}
        for name, values in configs.items()
    }


def _shape(setting: Setting) -> Shape:
    """Returns a model, and rows of it, that keep the device busy for a few seconds."""
    if setting.large():  # 230 million weights
        return Shape(1024, 16, 16, 4, 2816, 32768, 8, 1024)
    if setting.on_gpu and not setting.quick:  # 57 million
        return Shape(512, 13, 8, 2, 1408, 32768, 4, 512)
    if setting.quick:
        return Shape(128, 4, 4, 2, 344, 1024, 4, 128)
    return Shape(320, 8, 5, 1, 864, 8192, 4, 512)  # 10 million


def _untrained(shape: Shape, folder: Path) -> str:
    """Returns the folder of a model of random weights, made once."""
    place = folder / "untrained"
    if not place.exists():
        LabForCausalLM(LabConfig(**shape.options())).save_pretrained(place)
        load_tokenizer("byte").save_pretrained(place)
    return str(place)


def _talk(folder: Path) -> Path:
    """Returns a file of conversations of several lengths, so that some share a row."""
    file = folder / "talk.jsonl"
    answers = (SAID * (1 + number % 4) for number in range(400))
    rows = ({"prompt": f"What is whale {n}?", "completion": said} for n, said in enumerate(answers))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _pairs(folder: Path, length: int) -> Path:
    """Returns a file of pairs that are longer than what is kept of them, with prompts half as long as they
    may be, as plans take them to be.
    """
    file = folder / "pairs.jsonl"
    said = SAID * (1 + length // len(SAID))
    rows = (
        {
            "prompt": f"{n} {said}"[: length // 4],
            "chosen": f"It is {n}. {said}",
            "rejected": f"No. {said[:-9]}",
        }
        for n in range(48)
    )
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
