"""Floor 1: the transformer. Importing this package registers it with transformers' Auto classes."""

from llmlab.model.config import LabConfig
from llmlab.model.dual_head import LabDualHeadConfig, LabDualHeadForCausalLM
from llmlab.model.modeling import LabForCausalLM, LabForSequenceClassification, LabModel

__all__ = [
    "LabConfig",
    "LabDualHeadConfig",
    "LabDualHeadForCausalLM",
    "LabForCausalLM",
    "LabForSequenceClassification",
    "LabModel",
]
