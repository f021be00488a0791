"""Weights that are divided over the processes, into plain model folders and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from llmlab.training.engine.optimizer_state import WRAPPERS, as_part_of, whole

# peft saves an adapter's weights without its name: lora_A.default.weight as lora_A.weight
ADAPTER_NAME = re.compile(r"\.(modules_to_save\.)?default(?=\.|$)")


@torch.no_grad()
def whole_state(
    model: nn.Module, *, adapter_only: bool, main: bool, of: Callable[[Tensor], Tensor] = whole
) -> dict[str, Tensor]:
    """Returns the weights and buffers by name, whole and on the processor, in the main process; nothing in
    the others, which have to call this too.

    Args:
        model: as accelerate prepared it.
        adapter_only: whether weights that do not learn are left out.
        main: whether this is the main process.
        of: makes a weight whole.
    """
    learning = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    state: dict[str, Tensor] = {}
    seen: dict[int, Tensor] = {}  # tied weights stay one
    for name, value in model.state_dict(keep_vars=True).items():
        if adapter_only and name not in learning:
            continue
        if id(value) not in seen:
            full = of(value)
            seen[id(value)] = full.detach().cpu() if main else torch.empty(0)
        if main:
            state[WRAPPERS.sub("", name)] = seen[id(value)]
    return state


@torch.no_grad()
def load_weights(model: nn.Module, folder: Path) -> None:
    """Puts the weights of a checkpoint into a model, each process its part; names that the folder lacks keep
    what they have.

    Raises:
        OSError, ValueError, RuntimeError: when a file cannot be read, or a weight has another shape.
    """
    for name, parameter, saved in saved_weights(model, folder):
        if saved.shape != parameter.shape:
            raise ValueError(f"`{name[:100]}` has the shape {tuple(saved.shape)}")
        parameter.copy_(as_part_of(parameter, saved.to(parameter.dtype)))


def saved_weights(model: nn.Module, folder: Path) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
    """Yields name, weight and what a checkpoint has for it, for every weight that it has."""
    places: dict[str, Path] = {}
    for file in sorted(folder.glob("*model*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            places |= dict.fromkeys(opened.keys(), file)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        plain = WRAPPERS.sub("", name)
        spelled = next((one for one in (plain, ADAPTER_NAME.sub("", plain)) if one in places), None)
        if spelled is None:
            continue
        with safe_open(places[spelled], framework="pt") as opened:
            yield spelled, parameter, opened.get_tensor(spelled)
