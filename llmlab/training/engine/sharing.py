"""How the devices of a job share the work: which engine it is, and what it asks of the libraries.

Nothing distributed is done here: DDP and FSDP2 (Zhao et al. 2023) are PyTorch's through accelerate, ZeRO-2
and ZeRO-3 (Rajbhandari et al. 2020) DeepSpeed's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.tensor import DTensor

from llmlab.config.hardware import DEEPSPEED, SHARDED
from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError
from llmlab.planning.deepspeed import STAGES, deepspeed_settings
from llmlab.planning.engines import choose_engine, whats_wrong
from llmlab.planning.sharding import EngineInEffect
from llmlab.training import compat
from llmlab.training.engine.distributed import broadcast_from_main, processes
from llmlab.training.engine.zero import parts_of_zero, refuse_for_zero, refuse_settings

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Sharing:
    """How the devices share the work.

    Attributes:
        engine: "none" for one process, "ddp", "fsdp2", "zero2", "zero3", or "tensor" where processes compute
            every layer together.
        tensor_parallel: so many of them do.
    """

    engine: EngineInEffect
    tensor_parallel: int = 1

    @property
    def sharded(self) -> bool:
        """Whether no device has all weights."""
        return self.engine in (*SHARDED, "tensor")


ALONE = Sharing("none")


def resolve_sharing(config: TrainingConfig, device: str, precision: str) -> Sharing:
    """Returns the engine that a run will use; every process has to ask.

    Raises:
        LabError: when the engine that was asked for cannot be had here, or the run cannot be divided so.
    """
    if config.tensor_parallel > 1:
        return _tensor_parallel(config, device)
    if processes() == 1 and config.parallel in ("auto", "ddp"):
        return ALONE
    if processes() == 1:
        raise LabError(
            f'`parallel` "{config.parallel}" divides a run over several processes, and this is one',
            remedy='set `devices`, or `parallel` to "auto"',
        )
    # one process asks for all: the answer follows from the memory that is free at this moment
    sharing = Sharing(broadcast_from_main(lambda: choose_engine(config, devices=processes()).engine))
    if not sharing.sharded:
        return sharing
    if config.cpu_offload and device == "cpu":
        raise LabError("`cpu_offload` moves nothing: this run is on the processor", remedy="set it to false")
    if reason := whats_wrong(config.optimizer, sharing.engine):
        raise LabError(
            f'`optimizer` "{config.optimizer}" does not work with `parallel` "{config.parallel}": {reason}',
            remedy='use "adamw", or `parallel` "ddp"',
        )
    if sharing.engine in DEEPSPEED:
        refuse_for_zero(config, sharing.engine, device, precision)
        refuse_settings(deepspeed_settings(config, processes()), config.deepspeed_config or "")
        return sharing
    found = compat.engine_that_accelerate_takes(device)
    if found != sharing.engine:
        raise LabError(
            f'`parallel` "{config.parallel}": accelerate does not shard on {device}, it would run {found}'
            " and say nothing",
            remedy='use GPUs, or set `parallel` to "ddp"',
        )
    return sharing


def _tensor_parallel(config: TrainingConfig, device: str) -> Sharing:
    """Returns the sharing of layers, where it can be had."""
    size = config.tensor_parallel
    if processes() != size:
        raise LabError(
            f"`tensor_parallel` {size} needs {size} processes, and this job has {processes()}",
            remedy=f"set `devices` to {size}",
        )
    if reason := whats_wrong(config.optimizer, "tensor"):
        raise LabError(
            f'`optimizer` "{config.optimizer}" does not work with `tensor_parallel`: {reason}',
            remedy='use "adamw"',
        )
    if not compat.accelerate_shares_layers(device, size):
        raise LabError(
            f"`tensor_parallel` {size}: accelerate does not share layers on {device}",
            remedy="use GPUs, or set `tensor_parallel` to 1",
        )
    return Sharing("tensor", size)


def sharing_arguments(sharing: Sharing, config: TrainingConfig) -> dict[str, Any]:
    """Returns the arguments of transformers' `TrainingArguments` that an engine stands for."""
    if not sharing.sharded or sharing.engine == "tensor":
        return {}
    if sharing.engine in DEEPSPEED:
        return {"deepspeed": deepspeed_settings(config, processes())}
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "reshard_after_forward": True,
            "cpu_offload": config.cpu_offload,
            "state_dict_type": "FULL_STATE_DICT",  # `best/` and `final/` are plain folders
        },
    }


def shard_frozen(model: M, accelerator: Accelerator) -> M:
    """Returns a model that only answers, divided like the one that is trained where that one is divided,
    else on the device as it is.
    """
    if accelerator.is_fsdp2:
        return cast(M, fsdp2_prepare_model(accelerator, model.requires_grad_(False)))
    return cast(M, accelerator.prepare_model(model.to(accelerator.device), evaluation_mode=True))


def in_effect(model: torch.nn.Module, sharing: Sharing, optimizer: object = None) -> str:
    """Returns what is really done, in words: the engine, the processes, and how many of the parameters are
    divided; "" for one process.

    Args:
        model: as the trainer prepared it.
        sharing: that was asked for.
        optimizer: as the trainer prepared it.

    Raises:
        LabError: when it should be divided and nothing of it is.
    """
    if sharing == ALONE:
        return ""
    parameters = list(model.parameters())
    parts = sum(isinstance(p, DTensor) for p in parameters)
    what = f"{parts} of {len(parameters)} parameters sharded"
    if sharing.engine in DEEPSPEED:
        what, parts = parts_of_zero(parameters, optimizer, STAGES[sharing.engine])
    if sharing.sharded and not parts:
        raise LabError(
            f"{sharing.engine} was asked for, and no parameter is divided: the run would not be what it says",
            exit_code=1,
        )
    engine = "tensor parallel" if sharing.engine == "tensor" else sharing.engine
    return f"{engine} over {processes()} processes{f': {what}' if sharing.sharded else ''}"
