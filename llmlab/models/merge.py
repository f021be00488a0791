"""Adapters into weights: W + (alpha / r) B A for every adapted matrix (Hu et al. 2021, section 4.1)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel

from llmlab.errors import LabError
from llmlab.models.adapters import is_adapted
from llmlab.models.load import load_model
from llmlab.runs.folder import RunFolder, find_model
from llmlab.runs.manifest import write_manifest


def merge(checkpoint: str, output: Path | None = None) -> list[str]:
    """Writes the merged model, whole or not at all, and returns what is to be said of it.

    Raises:
        LabError: when the checkpoint has no adapter, its base does not load, or the folder is taken.
    """
    where = Path(find_model(checkpoint))
    if not (where / "adapter_config.json").is_file():
        raise LabError("has no adapter to merge", where=checkpoint, remedy="it is already a plain model")
    target = output or where.parent / "merged"
    if target.exists():
        raise LabError("already exists", where=str(target), remedy="choose another folder with -o")
    model, tokenizer = load_model(checkpoint, dtype=torch.float32)
    config = RunFolder(where.parent).record.get("config") or {}
    lines = []
    if config.get("adapter") == "qlora" or config.get("load_in", "none") != "none":
        lines.append(
            "this adapter was trained on a quantised base; it is merged into the base's own weights in full"
            " precision, so answers differ by what quantisation had rounded away"
        )
    if not is_adapted(model):
        raise LabError("has no adapter to merge", where=checkpoint, remedy="it is already a plain model")
    merged = cast(PreTrainedModel, model.merge_and_unload())
    merged.config.use_cache = True
    aside = target.with_name(f".{target.name}-{os.getpid()}")
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        merged.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        write_manifest(aside, merged_from=str(where))
        aside.rename(target)
    except OSError as error:
        raise LabError(
            f"cannot be written ({error.strerror or error})", where=str(target), remedy="free space"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    lines.append(str(target))
    return lines
