"""Adapters in methods that compare a policy with what it was: dropout,
and a frozen copy of the adapter at the start.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from torch import nn
from transformers import (
    PreTrainedModel,
)

from llmlab.config.adapters import AdapterOptions
from llmlab.errors import LabError
from llmlab.models.typed import LanguageModel, Module

if TYPE_CHECKING:
    from peft import PeftModel
    from typing_extensions import TypeIs

REFERENCE = "ref"  # the name of the adapter that TRL's trainers take for the reference


def is_adapted(model: nn.Module) -> TypeIs[PeftModel]:
    """Returns whether a model is in an adapter's wrapper."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def without_adapter(model: nn.Module) -> PreTrainedModel:
    """Returns the model in an adapter's wrapper, the adapter at work in its layers; any other itself."""
    return cast(PreTrainedModel, model.get_base_model() if is_adapted(model) else model)


def frozen_copy(model: LanguageModel) -> LanguageModel | None:
    """Returns the policy as it is now, to be held to; None for an adapter, whose own copy is smaller."""
    if is_adapted(model):
        return None
    copied = copy.deepcopy(model).eval()
    copied.requires_grad_(False)
    return copied


def add_reference_adapter(model: nn.Module) -> None:
    """Adds a frozen copy of the adapter as it is now, under the name that TRL's trainers use for the
    reference.

    Without the copy they would use the base model as the reference. That is wrong for an adapter that was
    trained before.
    """
    assert is_adapted(model)
    config = copy.deepcopy(model.peft_config["default"])
    config.inference_mode = True
    if hasattr(config, "lora_dropout"):
        config.lora_dropout = 0.0
    model.add_adapter(REFERENCE, config)
    current = dict(model.named_parameters())
    for name, parameter in current.items():
        if ".default." in name:
            copied = current[name.replace(".default.", f".{REFERENCE}.")]
            copied.data = parameter.data.clone()  # in the same number format, so that both round alike
            copied.requires_grad_(False)


@contextmanager
def reference_adapter(model: nn.Module) -> Iterator[None]:
    """Lets a model compute with the frozen copy that `add_reference_adapter` made."""
    assert is_adapted(model)
    model.set_adapter(REFERENCE)
    try:
        yield
    finally:
        model.set_adapter("default")


def set_dropout(model: nn.Module, adapter: float) -> None:
    """Turns all dropout of a model off but that of the adapter that is trained, which becomes `adapter`.

    Log-probabilities of a policy are compared with those of a reference, or with its own of a moment ago:
    what differs is to be the weights. TRL turns off the modules alone, not the rates that attention and this
    package's own model hold as numbers.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if name.endswith(("dropout", "pdrop", "dropout_prob")) and isinstance(value, float):
                setattr(module, name, 0.0)
    for module in model.modules():
        drops = getattr(module, "lora_dropout", None)
        if isinstance(drops, nn.ModuleDict):
            for name in drops:
                rate = 0.0 if name == REFERENCE else adapter
                drops[name] = nn.Dropout(rate) if rate else nn.Identity()


GROUPS = {
    "attention": (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "out_proj",
        "c_attn",
        "query_key_value",
        "q",
        "k",
        "v",
        "o",
    ),
    "ffn": ("gate_proj", "up_proj", "down_proj", "c_fc", "fc1", "fc2", "wi", "wi_0", "wi_1", "wo"),
}


# a mixture's routers stay as they are: moved by an adapter, tokens would reach experts that never saw their
# like
ROUTERS = r".*(^|\.)(router|gate|shared_expert_gate)$"


def whole(model: nn.Module, name: str) -> PreTrainedModel:
    """Returns a model without adapters: one that it has is merged into the weights, as where the base of an
    adapter is one.

    Raises:
        LabError: when the weights are quantised, so that merging would round them.
    """
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return cast(PreTrainedModel, model)
    if getattr(model, "is_loaded_in_4bit", False) or getattr(model, "is_loaded_in_8bit", False):
        raise LabError(
            "is an adapter that would have to be merged into quantised weights, which rounds it",
            where=name,
            remedy=(
                f'merge it first (`llmlab merge {name}`), or load it unquantised: `adapter` "lora", `load_in`'
                ' "none"'
            ),
        )
    return cast(PreTrainedModel, model.merge_and_unload())


def add_adapter(model: Module, config: AdapterOptions, *, task: str = "CAUSAL_LM") -> Module:
    """Returns the model with a LoRA adapter as the config says; one that has an adapter already goes on with
    it.

    Raises:
        LabError: when no module has the wanted names.
    """
    from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training

    if isinstance(model, PeftModel) or config.adapter == "none":
        return model
    if config.quantised != "none":
        prepare_model_for_kbit_training(model, use_gradient_checkpointing=config.gradient_checkpointing)
    targets: str | list[str] = config.lora_targets
    routers = any(re.fullmatch(ROUTERS, name) for name, _ in model.named_modules())
    if isinstance(targets, str) and targets in GROUPS:
        names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
        targets = [name for name in GROUPS[targets] if name in names]
    elif targets == "all-linear" and routers:
        # spelled out: for some mixtures peft adds the routers to "all-linear", whatever is excluded
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        targets = sorted(
            {name.rsplit(".", 1)[-1] for name in linear if not re.fullmatch(ROUTERS, name)}
            - {"lm_head", "score"}
        )
    try:
        adapted = get_peft_model(
            cast(PreTrainedModel, model),
            LoraConfig(
                r=config.lora_r,
                lora_alpha=config.lora_alpha,
                lora_dropout=config.lora_dropout,
                target_modules=targets,
                exclude_modules=ROUTERS if routers else None,
                task_type=task,
            ),
        )
        return cast(Module, adapted)  # a wrapper that hands everything through
    except ValueError as error:
        if "ParamWrapper" in str(error) and config.lora_dropout:
            raise LabError(
                f"`lora_dropout` {config.lora_dropout}: experts are single tensors and take no dropout",
                remedy='set it to 0, or `lora_targets` to "attention"',
            ) from None
        raise LabError(
            f"`lora_targets` {config.lora_targets!r}: {str(error).splitlines()[0][:160]}"
        ) from None
