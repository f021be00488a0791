"""The transformer, the dual head, and what a name of a model stands for.

The names below are loaded when they are first used: the layers that work without torch import other modules
    of this package. Loading any of them registers the lab's architectures with transformers' Auto classes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmlab.models.dual_head import LabDualHeadConfig, LabDualHeadForCausalLM
    from llmlab.models.transformer.config import LabConfig
    from llmlab.models.transformer.modeling import LabForCausalLM, LabForSequenceClassification, LabModel

__all__ = [
    "LabConfig",
    "LabDualHeadConfig",
    "LabDualHeadForCausalLM",
    "LabForCausalLM",
    "LabForSequenceClassification",
    "LabModel",
]

_DUAL_HEAD, _TRANSFORMER = "llmlab.models.dual_head", "llmlab.models.transformer.modeling"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    transformer, dual_head = importlib.import_module(_TRANSFORMER), importlib.import_module(_DUAL_HEAD)
    return getattr(dual_head if "DualHead" in name else transformer, name)
