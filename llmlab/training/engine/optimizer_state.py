"""An optimizer's state in a checkpoint by the names of its weights, whoever holds which part of it.

Tensors go into safetensors files, one a process with the parts that it holds, through PyTorch's distributed
checkpoints (`torch.distributed.checkpoint`); numbers into `optimizer.json`. Any number of processes reads
what any other number wrote, and nothing of it is unpickled.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

FOLDER, NUMBERS = "optimizer", "optimizer.json"
WRAPPERS = re.compile(r"(_orig_mod|_checkpoint_wrapped_module)\.")
KERNELS = ("fused", "foreach")  # how this process computes, whatever the one that saved did
LIBRARY_FILE = "optimizer.pt"  # what transformers writes of an optimizer that one process has whole


def named_states(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    """Yields name, weight and state of every weight of an optimizer, in its order; the state may be changed.

    Raises:
        ValueError: when a weight is not the model's.
    """
    names = {id(p): WRAPPERS.sub("", name) for name, p in model.named_parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise ValueError("the optimizer has a weight that is not the model's")
            yield names[id(parameter)], parameter, optimizer.state[parameter]


@contextmanager
def own_errors() -> Iterator[None]:
    """Raises what went wrong in the first process that failed, in every process: torch wraps it in an error
    that is no `Exception`, past which nobody would wait for a full disk.
    """
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None


def save_parts(model: nn.Module, optimizer: Optimizer, folder: Path, *, main: bool) -> None:
    """Writes the state of an optimizer; every process has to call this.

    Args:
        model: whose weights it updates.
        optimizer: as accelerate prepared it.
        folder: of the checkpoint.
        main: whether this process writes the numbers.

    Raises:
        OSError: in every process, when one of them cannot write.
    """
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for name, _, state in named_states(model, optimizer):
        for key, value in state.items():
            if torch.is_tensor(value) and value.ndim:
                tensors[f"{name}|{key}"] = value
            else:
                kind = str(value.dtype).removeprefix("torch.") if torch.is_tensor(value) else ""
                numbers[f"{name}|{key}"] = [kind, value.item() if torch.is_tensor(value) else value]
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    if tensors:
        writer = HuggingFaceStorageWriter(str(folder / FOLDER), save_distributed=True)
        with own_errors():
            save(tensors, storage_writer=writer)
    if main:
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        about = {"groups": groups, "numbers": numbers, "tensors": sorted(tensors)}
        (folder / FOLDER / NUMBERS).write_text(json.dumps(about))


def load_parts(model: nn.Module, optimizer: Optimizer, folder: Path) -> None:
    """Reads the state of an optimizer that `save_parts` wrote; every process has to call this.

    Raises:
        OSError, ValueError, KeyError, RuntimeError: when the files hold something else.
    """
    about = json.loads((folder / FOLDER / NUMBERS).read_text())
    reader = HuggingFaceStorageReader(str(folder / FOLDER))
    wanted: dict[str, Tensor] = {}
    for name, parameter, state in named_states(model, optimizer):
        state.clear()
        for full in (one for one in about["tensors"] if one.rpartition("|")[0] == name):
            state[full.rpartition("|")[2]] = wanted[full] = torch.zeros_like(parameter)
        for full, (kind, value) in about["numbers"].items():
            if full.rpartition("|")[0] == name:
                state[full.rpartition("|")[2]] = (
                    torch.tensor(value, dtype=getattr(torch, kind)) if kind else value
                )
    if unread := set(about["tensors"]) - set(wanted):
        raise ValueError(f"`{sorted(unread)[0][:100]}` is of no weight that is trained")
    alone = not torch.distributed.is_initialized()
    with warnings.catch_warnings():
        if alone:  # which is said to be assumed, even where it was asked for
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
        with own_errors():
            load(wanted, storage_reader=reader, no_dist=alone)
    take_groups(optimizer, about["groups"])


def load_whole(model: nn.Module, optimizer: Optimizer, folder: Path) -> None:
    """Reads the state that one process wrote whole, into an optimizer of which this process has a part.

    Raises:
        OSError, ValueError, KeyError, RuntimeError: when the file holds something else.
    """
    saved = torch.load(folder / LIBRARY_FILE, map_location="cpu", weights_only=True)
    numbered = [number for group in saved["param_groups"] for number in group["params"]]
    for number, (_, parameter, state) in zip(numbered, named_states(model, optimizer), strict=True):
        state.clear()
        for key, value in saved["state"].get(number, {}).items():
            state[key] = as_part_of(parameter, value) if torch.is_tensor(value) else value
    groups = [{k: v for k, v in group.items() if k != "params"} for group in saved["param_groups"]]
    take_groups(optimizer, groups)


def whole(value: Tensor) -> Tensor:
    """Returns a tensor that is divided as a whole one; every process has to ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def as_part_of(parameter: Tensor, whole: Tensor) -> Tensor:
    """Returns the part of a tensor that goes with this process's part of a weight; a scalar whole."""
    if not whole.ndim:
        return whole
    if isinstance(parameter, DTensor):
        return distribute_tensor(
            whole.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
        )
    return whole.to(parameter.device)


def take_groups(optimizer: Any, groups: list[dict[str, Any]]) -> None:
    """Puts the hyperparameters of a checkpoint into the groups of an optimizer, or of what has its groups."""
    for group, saved in zip(optimizer.param_groups, groups, strict=True):
        values = {k: v for k, v in saved.items() if k not in KERNELS}
        group.update({k: tuple(v) if isinstance(group.get(k), tuple) else v for k, v in values.items()})
