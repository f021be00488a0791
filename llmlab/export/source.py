"""The model that is exported: loaded, its adapter merged, and what it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from llmlab.config.export import ExportOptions
from llmlab.data.tokenizer import load_tokenizer
from llmlab.errors import LabError
from llmlab.files import read_object
from llmlab.models import LabDualHeadForCausalLM
from llmlab.models.adapters import is_adapted
from llmlab.models.load import load_model, load_scorer, safely
from llmlab.models.resolve import ModelRef, resolve_model
from llmlab.models.typed import moved
from llmlab.runs.folder import RunFolder

QUANTISED_BASE = (
    "this adapter was trained on a quantised base; it is merged into the base's own weights in full"
    " precision, so answers differ by what quantisation had rounded away"
)


@dataclass(frozen=True)
class Source:
    """A model on its way out.

    Attributes:
        name: as a person gave it.
        model: its weights whole, without an adapter.
        tokenizer: its own.
        use: "write" for a language model, "score" for a reward model.
        notes: what is to be said of it.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    use: Literal["write", "score"]
    notes: tuple[str, ...] = ()

    @property
    def chats(self) -> bool:
        """Whether conversations can be put to it."""
        return self.use == "write" and bool(self.tokenizer.chat_template)


def load_source(name: str, options: ExportOptions) -> Source:
    """Returns the model of a run, a folder, a GGUF file or a hub id, ready to be written.

    Raises:
        LabError: when it cannot be loaded, or cannot be what the options ask for.
    """
    ref = resolve_model(name)
    dtype = saved_dtype(ref) if options.dtype == "auto" else getattr(torch, options.dtype)
    # adapters are merged in full precision, and rounded once
    loading = torch.float32 if ref.kind == "adapter" else dtype
    notes: tuple[str, ...] = ()
    model: PreTrainedModel
    if scores(ref):
        tokenizer = load_tokenizer(str(ref.path))
        model = load_scorer(ref, pad=tokenizer.pad_token_id, dtype=loading)
    else:
        model, tokenizer = load_model(ref, dtype=loading)
    if is_adapted(model):
        model = cast(PreTrainedModel, model.merge_and_unload())
        if trained_quantised(ref):
            notes += (QUANTISED_BASE,)
    if options.alignment is not None and not isinstance(model, LabDualHeadForCausalLM):
        raise LabError(
            "is no dual head: it has no alignment to fix", where=name, remedy="leave out --alignment"
        )
    if isinstance(model, LabDualHeadForCausalLM) and options.alignment is not None:
        model = at_fixed_alignment(model, options.alignment, name)
    elif isinstance(model, LabDualHeadForCausalLM) and options.to != "hf":
        raise LabError(
            "is a dual head: its gate exists in no GGUF architecture",
            where=name,
            remedy="export it with --to hf, or its backbone with --alignment 0",
        )
    model.config.use_cache = True
    return Source(name, moved(model, dtype).eval(), tokenizer, "score" if scores(ref) else "write", notes)


def scores(ref: ModelRef) -> bool:
    """Returns whether a name stands for a reward model."""
    if ref.kind == "gguf":
        return False
    if ref.kind == "adapter":
        return read_object(ref.path / "adapter_config.json").get("task_type") == "SEQ_CLS"
    classes = AutoConfig.from_pretrained(str(ref.path), **_code(ref)).architectures or []
    return any(name.endswith("ForSequenceClassification") for name in classes)


def saved_dtype(ref: ModelRef) -> torch.dtype:
    """Returns the dtype that a model was saved in, of an adapter its base's; fp32 where nothing says so."""
    if ref.kind == "gguf":
        return torch.float32
    if ref.kind == "adapter":
        base = read_object(ref.path / "adapter_config.json").get("base_model_name_or_path")
        return saved_dtype(resolve_model(str(base)))
    dtype = AutoConfig.from_pretrained(str(ref.path), **_code(ref)).dtype
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _code(ref: ModelRef) -> dict[str, bool]:
    return {"trust_remote_code": safely(ref.name)["trust_remote_code"]}


def trained_quantised(ref: ModelRef) -> bool:
    """Returns whether a run's adapter was trained on a quantised base."""
    config = RunFolder(Path(ref.where).parent).record.get("config") or {}
    return config.get("adapter") == "qlora" or config.get("load_in", "none") != "none"


def at_fixed_alignment(model: LabDualHeadForCausalLM, alignment: float, name: str) -> PreTrainedModel:
    """Returns the plain model that a dual head is at one alignment.

    Raises:
        LabError: where that is not exact: the gate's share of the reward head changes from token to token,
            so that no single head gives the same logits.
    """
    if alignment == 0:
        backbone: PreTrainedModel = model.backbone
        return backbone
    raise LabError(
        f"at alignment {alignment:g} it is no plain model: its gate mixes two heads in another share at every"
        " token, which no single head can do",
        where=name,
        remedy="use --alignment 0 (the backbone, exact), or leave it out to export the model with its code",
    )
