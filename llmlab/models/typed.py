"""What the libraries' annotations leave out, said once for the type checker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

if TYPE_CHECKING:
    from typing import Self

    from transformers import GenerationConfig

    class LanguageModel(PreTrainedModel):
        """A model that writes. One in an adapter's wrapper counts: the wrapper hands everything through."""

        generation_config: GenerationConfig
        device: torch.device

        def eval(self) -> Self:
            """Turns dropout off."""
            ...

        def generate(self, **kwargs: Any) -> Tensor:
            """Returns token ids, (B, T)."""
            ...

else:
    LanguageModel = PreTrainedModel

Module = TypeVar("Module", bound=nn.Module)


def moved(model: Module, to: torch.device | torch.dtype | str) -> Module:
    """Returns the model, its weights moved to a device or a dtype in place."""
    nn_to: Any = model.to  # transformers' wrapper of it has lost its types
    nn_to(to)
    return model


def dtype_of(layer: nn.Module) -> torch.dtype:
    """Returns the dtype of a layer's weight."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.dtype
