"""What a user may set: pydantic models. Torch is never imported here."""

from llmlab.config.base import KindConfig, LabBaseConfig
from llmlab.config.dpo import DPOConfig
from llmlab.config.dual_head import DualHeadConfig
from llmlab.config.evaluation import EvaluationConfig
from llmlab.config.grpo import GRPOConfig
from llmlab.config.loader import KINDS, apply_changes, load_config, parse_config, save_config, schema
from llmlab.config.model import ModelConfig
from llmlab.config.options import option_info
from llmlab.config.ppo import PPOConfig
from llmlab.config.presets import METHOD_PRESETS, MODEL_PRESETS, method_preset, preset
from llmlab.config.pretrain import PretrainConfig
from llmlab.config.reward import RewardConfig
from llmlab.config.sft import SFTConfig
from llmlab.config.sources import SourceConfig

__all__ = [
    "KINDS",
    "METHOD_PRESETS",
    "MODEL_PRESETS",
    "DPOConfig",
    "DualHeadConfig",
    "EvaluationConfig",
    "GRPOConfig",
    "KindConfig",
    "LabBaseConfig",
    "ModelConfig",
    "PPOConfig",
    "PretrainConfig",
    "RewardConfig",
    "SFTConfig",
    "SourceConfig",
    "apply_changes",
    "load_config",
    "method_preset",
    "option_info",
    "parse_config",
    "preset",
    "save_config",
    "schema",
]
