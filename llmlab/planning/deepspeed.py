"""The DeepSpeed settings that a config stands for, and a file that replaces some of them. No torch.

What the lab decides elsewhere (batch size, optimizer, schedule, precision, clipping, stage, offload) is
written here from the config; a file may repeat it, not contradict it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError
from llmlab.files import read_object

STAGES = {"zero2": 2, "zero3": 3}
# settings that an option of the config decides, and which one
DECIDED = {
    "train_micro_batch_size_per_gpu": "batch_size",
    "train_batch_size": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
    "bf16.enabled": "precision",
    "fp16.enabled": "precision",
    "zero_optimization.stage": "parallel",
    "zero_optimization.offload_optimizer.device": "cpu_offload",
    "zero_optimization.offload_param.device": "cpu_offload",
    "zero_force_ds_cpu_optimizer": "optimizer",
}
# parts that would do what the lab does itself
REFUSED = {
    "optimizer": "the optimizer is that of `optimizer`",
    "scheduler": "the schedule is that of `scheduler`",
    "torch_autocast": "the number format is that of `precision`",
    "amp": "the number format is that of `precision`",
    "tensor_parallel": "the engine divides by data alone",
    "sequence_parallel_size": "the engine divides by data alone",
    "zenflow": "its updates are not those of one process",
    "compression_training": "its weights are not those of one process",
    "curriculum_learning": "the order of rows is that of `seed`",
    "data_efficiency": "the order of rows is that of `seed`",
    "zero_optimization.mics_shard_size": "checkpoints are written by its whole shards",
    "zero_optimization.zero_quantized_weights": "its weights are not those of one process",
    "zero_optimization.zero_quantized_gradients": "its gradients are not those of one process",
}
Settings = dict[str, Any]


def deepspeed_settings(config: TrainingConfig, processes: int) -> Settings:
    """Returns the settings of a run as DeepSpeed's JSON has them; "auto" is filled in when the model is there
    (from its width, and from the precision of the device).

    Args:
        config: of the run, whose `parallel` is "zero2" or "zero3".
        processes: of the whole job.

    Raises:
        LabError: when the file that the config names cannot be read, or contradicts the config.
    """
    settings = _own_settings(config, processes)
    if config.deepspeed_config is None:
        return settings
    path = Path(config.deepspeed_config).expanduser()
    try:
        changes = read_object(path)
    except (OSError, ValueError) as error:
        raise LabError(
            f"`deepspeed_config` cannot be read: {getattr(error, 'strerror', None) or error}", where=str(path)
        ) from None
    _refuse_contradictions(settings, changes, str(path))
    return _merged(settings, changes)


def _own_settings(config: TrainingConfig, processes: int) -> Settings:
    zero: Settings = {
        "stage": STAGES[config.parallel],
        "contiguous_gradients": True,
        "reduce_bucket_size": "auto",  # the square of the model's width
    }
    if config.parallel == "zero3":
        zero |= {"stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto"}
    place = {"device": "cpu" if config.cpu_offload else "none"}
    zero["offload_optimizer"] = dict(place)
    if config.parallel == "zero3":
        zero["offload_param"] = dict(place)
    return {
        "train_batch_size": config.micro_batch_size * config.accumulation_steps * processes,
        "train_micro_batch_size_per_gpu": config.micro_batch_size,
        "gradient_accumulation_steps": config.accumulation_steps,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": False},
        # gradients are summed in fp32, and the buffers of a model (RoPE's frequencies) are not rounded
        "data_types": {"grad_accum_dtype": "fp32", "keep_in_fp32_modules": ["*"]},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # the config's optimizer with offload, too
        "zero_optimization": zero,
    }


def _refuse_contradictions(settings: Settings, changes: Settings, where: str) -> None:
    own_values = _flat(settings)
    for name, value in _flat(changes).items():
        if any(one.startswith(f"{name}.") for one in own_values) and value != {}:
            raise LabError(f"`{name}` is {value!r:.60}, not an object of settings", where=where)
        if reason := next((REFUSED[one] for one in REFUSED if f"{name}.".startswith(f"{one}.")), ""):
            raise LabError(f"`{name}` cannot be set in a DeepSpeed file: {reason}", where=where)
        own = own_values.get(name, "none" if name.endswith(".device") else None)
        if name in DECIDED and value not in (own, "auto"):
            decided = f"`{DECIDED[name]}` of the config decides that"
            shown = f" ({own})" if own not in ("auto", None) else ""
            raise LabError(
                f"`{name}` is {value!r}, but {decided}{shown}", where=where, remedy="take it out of the file"
            )


def _merged(settings: Settings, changes: Settings) -> Settings:
    """Returns settings with changes, part by part; what is "auto" in the changes stays as it is."""
    merged = dict(settings)
    for name, value in changes.items():
        inner = merged.get(name)
        if isinstance(inner, dict) and isinstance(value, dict):
            merged[name] = _merged(inner, value)
        elif value != "auto" or name not in merged:
            merged[name] = value
    return merged


def _flat(settings: Settings, before: str = "") -> Settings:
    flat: Settings = {}
    for name, value in settings.items():
        block = isinstance(value, dict) and value
        flat |= _flat(value, f"{before}{name}.") if block else {f"{before}{name}": value}
    return flat
