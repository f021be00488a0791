"""The number format of an adapter's weights while they are trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from llmlab.models.adapters import is_adapted


@contextmanager
def trained_weights_kept(model: nn.Module | None) -> Iterator[None]:
    """Keeps the weights that learn as they are while a trainer is made: TRL rounds those of an adapter on
    quantised weights to bf16, in which small updates are lost, and which no fp32 head beside it can read.
    """
    adapted = model is not None and is_adapted(model)
    weights = [(p, p.data) for p in model.parameters() if p.requires_grad] if adapted and model else []
    yield
    for parameter, data in weights:
        if parameter.dtype != data.dtype:
            parameter.data = data.to(parameter.device)
