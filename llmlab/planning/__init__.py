"""What a config will cost and whether it fits. No torch."""

from llmlab.planning.memory import training_memory
from llmlab.planning.parameters import (
    ParameterCount,
    count_parameters,
    flops_per_token,
    kv_cache_bytes_per_token,
)

__all__ = [
    "ParameterCount",
    "count_parameters",
    "flops_per_token",
    "kv_cache_bytes_per_token",
    "training_memory",
]
