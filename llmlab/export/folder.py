"""A Hugging Face folder: the native family where one computes the same, else the modelling code beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedModel

from llmlab.errors import LabError
from llmlab.export.bundle import with_auto_map, write_code
from llmlab.export.source import Source
from llmlab.models import LabDualHeadForCausalLM, LabForCausalLM, LabForSequenceClassification
from llmlab.models.convert import to_hf
from llmlab.models.dual_head.modeling import BUNDLED
from llmlab.models.families import EVERYWHERE, FAMILIES

CODE = "its own code beside the weights; it loads with trust_remote_code=True where llmlab is not installed"


@dataclass(frozen=True)
class Layout:
    """How a model is written.

    Attributes:
        source: the model, in the form that is written.
        own_code: whether its modelling code goes with it.
        description: what it is, in words.
        programs: that read it.
    """

    source: Source
    own_code: bool
    description: str
    programs: tuple[str, ...]


def layout(source: Source) -> Layout:
    """Returns how a model is written as a Hugging Face folder.

    Raises:
        LabError: when its architecture comes from a repository's own code.
    """
    model = source.model
    if isinstance(model, LabForCausalLM | LabForSequenceClassification):
        try:
            native = to_hf(model)
        except LabError as error:
            return Layout(source, True, f"{CODE} ({error.what})", ("transformers",))
        if isinstance(model, LabForCausalLM):
            native.generation_config = model.generation_config
        kind = native.config.model_type
        programs = next(family.programs for family in FAMILIES if family.model_type == kind)
        return Layout(
            replace(source, model=native), False, f"{type(native).__name__}, a native architecture", programs
        )
    if isinstance(model, LabDualHeadForCausalLM):
        return Layout(source, True, f"a dual head with {CODE}", ("transformers",))
    if not type(model).__module__.startswith("transformers."):
        raise LabError(
            f"is a {type(model).__name__}, whose code comes from its own repository",
            where=source.name,
            remedy="copy that repository's files; the lab exports what transformers or itself can build",
        )
    kind = model.config.model_type
    programs = EVERYWHERE if kind in ("llama", "qwen2", "mistral", "qwen3", "mixtral") else ("transformers",)
    return Layout(source, False, f"{type(model).__name__}, a native architecture", programs)


def write_folder(plan: Layout, folder: Path) -> None:
    """Writes weights, tokenizer and, where it goes with them, the code."""
    model, tokenizer = plan.source.model, plan.source.tokenizer
    if plan.own_code:
        model = with_auto_map(model, write_code(folder, model.config))
    if isinstance(model, LabDualHeadForCausalLM):
        _write_dual_head(model, folder)
    else:
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _write_dual_head(model: LabDualHeadForCausalLM, folder: Path) -> None:
    """Writes heads and gate, and the backbone in a folder inside, native where it can be."""
    name, model.config.backbone = model.config.backbone, BUNDLED
    try:
        model.save_pretrained(folder)
    finally:
        model.config.backbone = name
    backbone: PreTrainedModel = model.backbone
    if isinstance(backbone, LabForCausalLM):
        try:
            backbone = to_hf(backbone)
        except LabError:
            backbone = with_auto_map(backbone, write_code(folder / BUNDLED, backbone.config))
    backbone.save_pretrained(folder / BUNDLED)
