"""Adapters in methods that compare a policy with what it was: dropout,
and a frozen copy of the adapter at the start.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from peft import PeftModel

REFERENCE = "ref"  # the name of the adapter that TRL's trainers take for the reference


def is_adapted(model: nn.Module) -> bool:
    """Returns whether a model is in an adapter's wrapper."""
    from peft import PeftModel

    return isinstance(model, PeftModel)


def without_adapter(model: nn.Module) -> PreTrainedModel:
    """Returns the model in an adapter's wrapper, the adapter at work in its layers; any other itself."""
    return model.get_base_model() if is_adapted(model) else model


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel | None:
    """Returns the policy as it is now, to be held to; None for an adapter, whose own copy is smaller."""
    return None if is_adapted(model) else copy.deepcopy(model).eval().requires_grad_(False)


def add_reference_adapter(model: PeftModel) -> None:
    """Adds a frozen copy of the adapter as it is now, under the name that TRL's trainers use for the
    reference.

    Without the copy they would use the base model as the reference. That is wrong for an adapter that was
    trained before.
    """
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
def reference_adapter(model: PeftModel) -> Iterator[None]:
    """Lets a model compute with the frozen copy that `add_reference_adapter` made."""
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
