"""Weights and optimizer state that DeepSpeed divided, whole and by name in a checkpoint and back.

DeepSpeed's own checkpoints are pickles of flat pieces, which only as many processes read again. Here every
weight and every state is put together with DeepSpeed's public functions, and each process writes some of
them, so that any engine and any number of processes reads them (`optimizer_state`). Weights are written in
fp32, as the optimizer has them, also where the matrix products are in bf16.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from llmlab.training.engine.optimizer_state import (
    FOLDER,
    LIBRARY_FILE,
    NUMBERS,
    WRAPPERS,
    own_errors,
    take_groups,
)
from llmlab.training.engine.weights import saved_weights

AT_ONCE = 1 << 28  # numbers of states that are read together: 1 GiB in fp32


class ZeroState:
    """What DeepSpeed holds of a model and its optimizer.

    Args:
        model: without DeepSpeed's wrapper.
        optimizer: as DeepSpeed made it.
        stage: 2 or 3.
    """

    def __init__(self, model: nn.Module, optimizer: Any, stage: int):
        self.model, self.optimizer, self.stage = model, optimizer, stage
        self.rank, self.processes = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def pieces(self) -> Iterator[tuple[Tensor, list[nn.Parameter]]]:
        """Yields the flat pieces in fp32 that this process updates, each with the weights of which it has
        parts, in the order of the optimizer's groups.
        """
        if self.stage == 3:
            yield from zip(
                self.optimizer.fp32_partitioned_groups_flat, self.optimizer.fp16_groups, strict=True
            )
        else:
            yield from zip(
                self.optimizer.single_partition_of_fp32_groups, self.optimizer.bit16_groups, strict=True
            )

    # Weights

    def load_weights(self, folder: Path) -> None:
        """Puts the weights of a checkpoint into model and optimizer; names that the folder lacks keep what
        they have.

        Raises:
            OSError, ValueError, RuntimeError: when a file cannot be read, or a weight has another shape.
        """
        for name, parameter, saved in saved_weights(self.model, folder):
            self._set_weight(name, parameter, saved)

    @torch.no_grad()
    def whole(self, value: Tensor) -> Tensor:
        """Returns a weight whole, in fp32 where it learns; a buffer as it is."""
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        if not isinstance(value, nn.Parameter):
            return value
        if value.requires_grad:
            whole: Tensor = safe_get_full_fp32_param(value)
            return whole
        with GatheredParameters([value]):
            return value.detach().clone()

    @torch.no_grad()
    def _set_weight(self, name: str, parameter: nn.Parameter, saved: Tensor) -> None:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        if saved.shape != self._shape(parameter):
            raise ValueError(f"`{name[:100]}` has the shape {tuple(saved.shape)}")
        with GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(saved)
        if not parameter.requires_grad:
            return
        if self.stage == 3:
            safe_set_local_fp32_param(parameter, self._own_part(parameter, saved))
        else:
            safe_set_full_fp32_param(parameter, saved.to(parameter.device, torch.float32))

    # Optimizer

    def save(self, folder: Path) -> None:
        """Writes the optimizer's state as `optimizer_state.save_parts` does, every process some weights'
        whole; every process has to call this.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        names = self._names()
        own: dict[str, Tensor] = {}
        tensors: list[str] = []
        numbers: dict[str, Any] = {}
        written = [0] * self.processes  # numbers that each process writes
        for flat, weights in self.pieces():
            self._link(flat, weights)
            for weight in weights:
                for key, value in self.optimizer.optimizer.state.get(flat, {}).items():
                    full = f"{names[id(weight)]}|{key}"
                    if not torch.is_tensor(value) or not value.ndim:
                        kind = str(value.dtype).removeprefix("torch.") if torch.is_tensor(value) else ""
                        numbers[full] = [kind, value.item() if torch.is_tensor(value) else value]
                        continue
                    tensors.append(full)
                    writer = written.index(min(written))
                    whole = safe_get_full_optimizer_state(weight, key)
                    written[writer] += whole.numel()
                    if writer == self.rank:
                        own[full] = whole.cpu()
        place = folder / FOLDER  # behind what all do together: one whose disk is full leaves none waiting
        place.mkdir(parents=True, exist_ok=True)
        if self.rank == 0:
            groups = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
            about = {"groups": groups, "numbers": numbers, "tensors": sorted(tensors)}
            (place / NUMBERS).write_text(json.dumps(about))
        if own:
            save_file(own, place / f"whole-{self.rank:05d}.safetensors")

    def load(self, folder: Path) -> None:
        """Reads the state of an optimizer that any number of processes wrote under any engine.

        Raises:
            OSError, ValueError, KeyError, RuntimeError: when the files hold something else.
        """
        if (folder / FOLDER).is_dir():
            self._load_named(folder / FOLDER)
        else:
            self._load_numbered(folder / LIBRARY_FILE)

    def _load_named(self, place: Path) -> None:
        about = json.loads((place / NUMBERS).read_text())
        keys: dict[str, list[str]] = {}
        for full in about["tensors"]:
            name, _, key = full.rpartition("|")
            keys.setdefault(name, []).append(key)
        numbers: dict[str, dict[str, Any]] = {}
        for full, (kind, value) in about["numbers"].items():
            name, _, key = full.rpartition("|")
            number = torch.tensor(value, dtype=getattr(torch, kind)) if kind else value
            numbers.setdefault(name, {})[key] = number
        names = self._names()
        if unread := set(keys) - set(names.values()):
            raise ValueError(f"`{sorted(unread)[0][:100]}` is of no weight that is trained")
        for flat, weights in self.pieces():
            first = names[id(weights[0])]
            self._make_state(flat, weights, keys.get(first, []), numbers.get(first, {}))
            for together in _batches(weights, self._shape):
                wanted = {
                    f"{names[id(one)]}|{key}": torch.zeros(self._shape(one))
                    for one in together
                    for key in keys.get(names[id(one)], [])
                }
                with own_errors():
                    load(wanted, storage_reader=HuggingFaceStorageReader(str(place)), no_dist=True)
                for one in together:
                    for key in keys.get(names[id(one)], []):
                        self._set_state(one, key, wanted[f"{names[id(one)]}|{key}"])
        take_groups(self.optimizer, about["groups"])

    def _load_numbered(self, file: Path) -> None:
        """Reads what one process wrote whole."""
        saved = torch.load(file, map_location="cpu", weights_only=True)
        numbered = iter([number for group in saved["param_groups"] for number in group["params"]])
        for flat, weights in self.pieces():
            states = [saved["state"].get(next(numbered), {}) for _ in weights]
            tensors = [k for k, v in states[0].items() if torch.is_tensor(v) and v.ndim]
            self._make_state(flat, weights, tensors, {k: v for k, v in states[0].items() if k not in tensors})
            for weight, state in zip(weights, states, strict=True):
                for key in tensors:
                    if state[key].shape != self._shape(weight):
                        raise ValueError(f"`{key[:100]}` does not have the shape of its weight")
                    self._set_state(weight, key, state[key])
        groups = [{k: v for k, v in group.items() if k != "params"} for group in saved["param_groups"]]
        take_groups(self.optimizer, groups)

    def _make_state(
        self, flat: Tensor, weights: list[nn.Parameter], tensors: list[str], numbers: dict[str, Any]
    ) -> None:
        """Makes the state of a piece, its tensors still zero."""
        state = self.optimizer.optimizer.state[flat]
        state.clear()
        for key, value in numbers.items():
            state[key] = value.to(flat.device) if torch.is_tensor(value) else value
        for key in tensors:
            state[key] = torch.zeros_like(flat)
        self._link(flat, weights)

    def _link(self, flat: Tensor, weights: list[nn.Parameter]) -> None:
        """Tells weights where their states are under ZeRO-2: DeepSpeed does so for the first group alone,
        when the states of the others are not there yet.
        """
        from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state

        if self.stage == 2:
            lazy_init_hp_params_optimizer_state(weights, flat, self.optimizer.optimizer.state)

    def _set_state(self, weight: nn.Parameter, key: str, whole: Tensor) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self.stage == 3:
            safe_set_local_optimizer_state(weight, self._own_part(weight, whole), key)
        else:
            safe_set_full_optimizer_state(weight, whole, key)

    def _own_part(self, weight: Any, whole: Tensor) -> Tensor:
        """Returns this process's part of a whole tensor under ZeRO-3: an equal share of its numbers, zeros
        behind the last.
        """
        share = weight.ds_tensor.numel()
        padded = nn.functional.pad(whole.flatten().float(), (0, share * self.processes - whole.numel()))
        return padded[self.rank * share : (self.rank + 1) * share]

    def _shape(self, weight: Any) -> torch.Size:
        return torch.Size(weight.ds_shape if self.stage == 3 else weight.shape)

    def _names(self) -> dict[int, str]:
        return {id(p): WRAPPERS.sub("", name) for name, p in self.model.named_parameters()}


def _batches(weights: list[nn.Parameter], shape: Any) -> Iterator[list[nn.Parameter]]:
    """Yields weights in runs that together are not much larger than `AT_ONCE`."""
    together: list[nn.Parameter] = []
    size = 0
    for weight in weights:
        together.append(weight)
        size += shape(weight).numel()
        if size >= AT_ONCE:
            yield together
            together, size = [], 0
    if together:
        yield together
