"""Floor 1: what a config will cost. No torch."""

from llmlab.plan.memory import training_memory
from llmlab.plan.parameters import ParameterCount, count_parameters, flops_per_token, kv_cache_bytes_per_token

__all__ = ["ParameterCount", "count_parameters", "flops_per_token", "kv_cache_bytes_per_token", "training_memory"]
