"""A trained model as a plain Hugging Face folder, whole or not there."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

from llmlab.launching.rank_files import RankFiles
from llmlab.models.identity import base_of, note_base
from llmlab.runs.disk import FullDisk
from llmlab.runs.manifest import write_manifest
from llmlab.training.engine.distributed import worst_of_all
from llmlab.training.trainers.library import LibraryTrainer

LEFT_OUT = ("training_args.bin", "README.md")  # a pickle, and a card that says nothing of this run


def save_model(trainer: LibraryTrainer, target: Path, disk: FullDisk, **facts: object) -> None:
    """Saves model and tokenizer: written aside, manifest last, then renamed; waits for room.

    Args:
        trainer: whose model it is; every process has to call this.
        target: folder, replaced only by a whole new one.
        disk: waits for room on a full one.
        **facts: for the manifest.
    """
    trained = (p for p in trainer.model.parameters() if p.requires_grad)
    needed = sum(p.numel() * p.element_size() for p in trained)
    aside = target.with_name(f".{target.name}-{os.getpid()}")
    try:
        disk.retry(lambda: _save_aside(trainer, aside), target.parent, needed, worst=worst_of_all)
        move = partial(_move, aside, target, **facts) if trainer.is_world_process_zero() else lambda: None
        disk.retry(move, target.parent, worst=worst_of_all)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _save_aside(trainer: LibraryTrainer, aside: Path) -> None:
    configuration = trainer.model.config
    # off in training; whoever loads this will generate
    cached, configuration.use_cache = configuration.use_cache, True
    try:
        trainer.save_model(str(aside))  # every process takes part; the first one writes
    finally:
        configuration.use_cache = cached


def _move(aside: Path, target: Path, **facts: object) -> None:
    for leftover in LEFT_OUT:
        (aside / leftover).unlink(missing_ok=True)
    # TRL's frozen copy of an adapter, which is not what was trained
    shutil.rmtree(aside / "ref", ignore_errors=True)
    if base := base_of(aside):
        note_base(aside, base)
    with RankFiles.of_this_process().writing():
        write_manifest(aside, **facts)
        old = target.with_name(f".{target.name}-old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        aside.rename(target)
    shutil.rmtree(old, ignore_errors=True)
