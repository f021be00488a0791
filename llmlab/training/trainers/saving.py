"""A trained model as a plain Hugging Face folder, whole or not there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from llmlab.models.identity import base_of, note_base
from llmlab.runs.disk import FullDisk
from llmlab.runs.manifest import write_manifest
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
    disk.retry(lambda: _save_model(trainer, target, **facts), target.parent, needed)


def _save_model(trainer: LibraryTrainer, target: Path, **facts: object) -> None:
    aside = target.with_name(f".{target.name}-{os.getpid()}")
    configuration = trainer.model.config
    cached, configuration.use_cache = (
        configuration.use_cache,
        True,
    )  # off in training; whoever loads this will generate
    try:
        trainer.save_model(str(aside))  # every process takes part; the first one writes
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    finally:
        configuration.use_cache = cached
    if not trainer.is_world_process_zero():
        return
    for leftover in LEFT_OUT:
        (aside / leftover).unlink(missing_ok=True)
    shutil.rmtree(
        aside / "ref", ignore_errors=True
    )  # TRL's frozen copy of an adapter, which is not what was trained
    if base := base_of(aside):
        note_base(aside, base)
    write_manifest(aside, **facts)
    old = target.with_name(f".{target.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    aside.rename(target)
    shutil.rmtree(old, ignore_errors=True)
