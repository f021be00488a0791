"""A language-model head and a reward head on one frozen backbone, fused by a learned gate."""

from llmlab.models.dual_head.config import LabDualHeadConfig
from llmlab.models.dual_head.modeling import LabDualHeadForCausalLM

__all__ = ["LabDualHeadConfig", "LabDualHeadForCausalLM"]
