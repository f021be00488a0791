"""Exact resume: a short base training with dropout, the same one stopped by a signal behind its third update
and resumed; the weights at the end are compared to the bit.

On a GPU the runs compute with deterministic kernels (the atomic sums of some backward passes come in any
order), so that a difference is the resume's.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file

from llmlab.config import ModelConfig, PretrainConfig, SourceConfig
from llmlab.runs.folder import RunFolder
from llmlab.selftest.rows import Row
from llmlab.selftest.setting import Setting
from llmlab.training.engine.reporter import Progress, Silent
from llmlab.training.engine.run import run

STEPS, STOPPED = 7, 3
REMEDY = "a run here may continue otherwise than it would have; keep this folder for a report: {}"


class _Stopping(Silent):
    """Sends this process the signal of a job's end behind an update."""

    def progress(self, at: Progress) -> None:
        """Stops behind the third update."""
        if at.step == STOPPED:
            signal.raise_signal(signal.SIGTERM)


def check(setting: Setting, part: str) -> Iterator[Row]:
    """Yields one row."""
    with _deterministic(setting):
        whole = run(_config(setting, "whole"))
        stopped = run(_config(setting, "resumed"), reporter=_Stopping())
        if stopped.stopped_by != signal.SIGTERM:
            found = f"the run was to stop after update {STOPPED}, and went on to its end"
            yield Row("resume", "failed", found, REMEDY.format(stopped.folder))
            return
        resumed = run(_config(setting, "resumed"))
        different = _different(whole.model, resumed.model)
        again = _different(whole.model, run(_config(setting, "again")).model) if different else []
    losses = [
        [line["loss"] for line in RunFolder(one.folder).metrics() if "loss" in line]
        for one in (whole, resumed)
    ]
    figures = {"different": different, "of_two_whole_runs": again, "losses": losses}
    if different and again:
        found = (
            f"{len(different)} weights differ, but so do those of two runs that were not stopped: the kernels"
            " of this device do not compute the same twice"
        )
        yield Row("resume", "slow", found, "runs resume, but repeat no bits here", figures)
    elif different or losses[0] != losses[1]:
        found = (
            f"a run stopped after update {STOPPED} of {STEPS} and resumed ends with {len(different)} weights"
            f" ({', '.join(different[:3])} ...) that are not those of the run without a stop, to the bit"
        )
        yield Row("resume", "failed", found, REMEDY.format(setting.folder), figures)
    else:
        kernels = ", by deterministic kernels" if setting.on_gpu else ""
        found = (
            f"stopped after update {STOPPED} of {STEPS} and resumed: all weights and losses equal to the bit"
        )
        yield Row("resume", "passed", found + kernels, figures=figures)


def _config(setting: Setting, name: str) -> PretrainConfig:
    return PretrainConfig(
        model=ModelConfig(
            tokenizer_name="byte",
            vocab_size=320,
            d_model=64,
            n_layers=2,
            n_heads=4,
            n_kv_heads=2,
            d_ff=128,
            max_seq_len=64,
            dropout=0.1,
        ),
        datasets=[SourceConfig(name="llmlab:moby-dick", max_rows=10)],
        eval_fraction=0.0,
        max_steps=STEPS,
        warmup_steps=2,
        batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        log_every=1,
        save_every=100,
        report_to=[],
        sample_tokens=0,
        device=setting.device,
        output_dir=str(setting.folder / f"resume-{name}"),
    )


def _different(one: Path | None, other: Path | None) -> list[str]:
    """Returns the weights of two models that are not the same to the bit."""
    if one is None or other is None:
        return ["all: a run ended without a model"]
    weights, others = (load_file(folder / "model.safetensors") for folder in (one, other))
    return [name for name, values in weights.items() if not torch.equal(values, others[name])]


@contextmanager
def _deterministic(setting: Setting) -> Iterator[None]:
    """Lets a GPU compute the same sums in the same order each time."""
    if not setting.on_gpu:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
