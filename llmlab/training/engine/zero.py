"""DeepSpeed's engine of ZeRO-2 and ZeRO-3 (Rajbhandari et al. 2020) under transformers' trainer.

accelerate's wrapper of the engine does the update within the backward pass. Here it is done afterwards, where
the trainer has looked at the losses of all processes and can still skip it.
"""

from __future__ import annotations

import importlib.util
import logging
import math
from typing import Any

import torch
from accelerate.utils.deepspeed import DeepSpeedEngineWrapper
from pydantic import ValidationError
from torch import nn

from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError


class UpdateApart(DeepSpeedEngineWrapper):  # type: ignore[misc]  # accelerate has no types
    """A DeepSpeed engine whose update is not part of the backward pass."""

    def backward(self, loss: torch.Tensor, sync_gradients: bool = True, **kwargs: Any) -> None:
        """Does the backward pass; that of the last micro-batch completes the gradients of an update."""
        self.engine.set_gradient_accumulation_boundary(is_boundary=sync_gradients)
        self.engine.backward(loss, **kwargs)


def refuse_settings(settings: dict[str, Any], where: str) -> None:
    """Lets DeepSpeed look at the settings of a file before anything is loaded.

    Raises:
        LabError: with the first that it does not know, or whose value it does not take.
    """
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    block = {name: value for name, value in settings["zero_optimization"].items() if value != "auto"}
    try:
        DeepSpeedZeroConfig(**block)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(["zero_optimization", *map(str, first["loc"])])
        raise LabError(f"`{name}`: {first['msg']}", where=where, remedy="see DeepSpeed's manual") from None


def update(engine: Any, parameters: list[torch.nn.Parameter], *, skip: bool) -> float:
    """Does an update, and returns the norm of its gradients before they are clipped; one that is not finite
    changes nothing.

    Args:
        engine: of DeepSpeed, behind the backward pass of the last micro-batch.
        parameters: that learn.
        skip: whether it must change nothing although its gradients are finite.
    """
    from deepspeed.utils import safe_get_full_grad, safe_set_full_grad

    if skip:  # DeepSpeed then clears what it has summed up, as it does for any that is not finite
        gradient = safe_get_full_grad(parameters[0])
        safe_set_full_grad(parameters[0], torch.full_like(gradient, math.nan))
    engine.step()
    if engine.optimizer.overflow:
        engine.optimizer.overflow = False  # the schedule goes on, as without DeepSpeed
        return math.nan
    return float(engine.get_global_grad_norm())


def refuse_for_zero(config: TrainingConfig, engine: str, device: str, precision: str) -> None:
    """Refuses what DeepSpeed cannot do here.

    Raises:
        LabError: with the reason and what works.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise LabError(
            f'`parallel` "{engine}" needs DeepSpeed, which is not installed',
            remedy="`pip install 'llmlab[deepspeed]'`, or use \"fsdp2\"",
        )
    asked = f'`parallel` "{engine}"'
    if precision == "fp16":
        raise LabError(
            f'`precision` "fp16" does not work with {asked}: its loss scale would not survive a stop',
            remedy='use "bf16" or "fp32", or `parallel` "fsdp2"',
        )
    from deepspeed.accelerator import get_accelerator

    found = get_accelerator().device_name().split(":")[0]
    if found != device:
        raise LabError(
            f"{asked}: DeepSpeed would compute on {found}, and `device` is {device}",
            remedy=f'set the environment variable DS_ACCELERATOR to "{device}"',
        )
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)


def stage_of(optimizer: Any) -> int:
    """Returns the stage of an optimizer that DeepSpeed divided over the processes: 2 or 3, 0 where it did
    not.
    """
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    if isinstance(optimizer, DeepSpeedZeroOptimizer_Stage3):
        return 3
    return 2 if isinstance(optimizer, DeepSpeedZeroOptimizer) and optimizer.partition_gradients else 0


def parts_of_zero(parameters: list[nn.Parameter], optimizer: Any, stage: int) -> tuple[str, int]:
    """Returns what DeepSpeed divided, in words, and of how many parameters; 0 where it is not the stage that
    was asked for.

    Args:
        parameters: of the model.
        optimizer: as accelerate prepared it.
        stage: that was asked for.
    """
    if stage_of(getattr(optimizer, "optimizer", None)) != stage:
        return "", 0
    if stage == 3:
        parts = sum(getattr(p, "ds_tensor", None) is not None for p in parameters)
        return f"{parts} of {len(parameters)} parameters sharded", parts
    parts = sum(p.requires_grad for p in parameters)
    return f"gradients and optimizer states of {parts} of {len(parameters)} parameters sharded", parts
