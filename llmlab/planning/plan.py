"""What a config will cost, as records: parameters, memory, disk, tokens and steps. Nothing is drawn here, and
nothing is loaded. No torch.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from llmlab.config import DualHeadConfig, KindConfig, ModelConfig, PretrainConfig, load_config
from llmlab.config.hardware import DEEPSPEED
from llmlab.config.schedule import NO_LIMIT
from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError
from llmlab.models.headers import checkpoint_shape
from llmlab.planning.advice import (
    TIME_CONCERNS,
    Concern,
    WayToFit,
    concerns,
    time_concerns,
    ways_to_fit,
)
from llmlab.planning.deepspeed import Settings, deepspeed_settings
from llmlab.planning.dual_head import DualHeadPlan, dual_head_plan
from llmlab.planning.duration import DataSize, TimePlan, time_plan
from llmlab.planning.engines import Choice, Verdict, choose_engine, need_in_effect
from llmlab.planning.memory import checkpoint_bytes, one_checkpoint_bytes
from llmlab.planning.parameters import (
    count_parameters,
    flops_of_checkpoint,
    flops_per_token,
    kv_cache_bytes_per_token,
)
from llmlab.planning.processes import processes_of, replicas_of
from llmlab.planning.start import row_length, start_shape


@dataclass(frozen=True)
class ArchitecturePlan:
    """Figures of an architecture.

    Attributes:
        parameters: all of them.
        non_embedding: those beside the embeddings.
        kv_bytes_per_token: of the cache in bf16.
        flops_per_token: of training, at the full context.
        context: tokens.
    """

    parameters: int
    non_embedding: int
    kv_bytes_per_token: float
    flops_per_token: float
    context: int


@dataclass(frozen=True)
class TokensPlan:
    """What base training reads: tokens, those of a row, and the FLOPs of training on them."""

    tokens: int
    row: int
    flops: float


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of a run on each of its devices.

    Attributes:
        total: bytes at most.
        parts: bytes of each part.
        free: bytes that are free now on the fullest device.
        verdict: whether it fits.
        host: bytes that offload puts into the memory of a machine.
        host_free: bytes that are free there.
    """

    total: float
    parts: dict[str, float]
    free: int
    verdict: Verdict
    host: float
    host_free: int


@dataclass(frozen=True)
class EnginePlan:
    """How the processes of a job share its work: the engine, why, and what the others would need; the
    settings of DeepSpeed where it is used.
    """

    processes: int
    choice: Choice
    deepspeed: Settings | None = None


@dataclass(frozen=True)
class DiskPlan:
    """Bytes of all checkpoints at most, of one of them, and bytes that are free where they go."""

    needed: float
    one: float
    free: int


@dataclass(frozen=True)
class SchedulePlan:
    """How a run trains: on what, how many rows an update, how long.

    Attributes:
        start: (option, name) of the model that it starts from; None where it starts from nothing.
        micro_batch: rows of a forward pass.
        accumulation: forward passes of an update.
        devices: that work on an update together.
        epochs: after which it ends; None where only the steps count.
        max_steps: at most; None where the epochs alone say when it ends.
        warmup: a number of steps, or a share of them; None where it follows from the epochs.
        sources: (name, share of the rows) of each dataset.
    """

    start: tuple[str, str] | None
    micro_batch: int
    accumulation: int
    devices: int
    epochs: float | None
    max_steps: int | None
    warmup: int | float | None
    scheduler: str
    optimizer: str
    learning_rate: float
    weight_decay: float
    sources: tuple[tuple[str, float], ...]

    @property
    def effective_batch(self) -> int:
        """Rows of an update."""
        return self.micro_batch * self.accumulation * self.devices


@dataclass(frozen=True)
class Plan:
    """What is known of a config before anything is loaded; None where a part does not apply or is not known.

    Attributes:
        kind: of the config.
        engine: how several devices share the run; None where it has one.
        time: how long it is.
        concerns: what is unusual about it.
        ways_to_fit: changes that would make a run fit that does not.
    """

    kind: str
    architecture: ArchitecturePlan | None = None
    tokens: TokensPlan | None = None
    engine: EnginePlan | None = None
    memory: MemoryPlan | None = None
    disk: DiskPlan | None = None
    dual_head: DualHeadPlan | None = None
    schedule: SchedulePlan | None = None
    time: TimePlan | None = None
    concerns: tuple[Concern, ...] = ()
    ways_to_fit: tuple[WayToFit, ...] = ()


def make_plan(config: KindConfig, data: DataSize | None = None) -> Plan:
    """Returns what a config will cost, as far as it is known without loading anything.

    Args:
        config: of any kind.
        data: that it trains on, where it was looked at.

    Raises:
        LabError: when the model config that it names cannot be read.
    """
    if isinstance(config, ModelConfig):
        return Plan(config.KIND, architecture=architecture_plan(config))
    if not isinstance(config, TrainingConfig):
        return Plan(config.KIND)
    time = time_plan(config, data)
    plan = Plan(
        config.KIND,
        engine=engine_plan(config),
        memory=memory_plan(config),
        disk=disk_plan(config),
        schedule=schedule_plan(config),
        time=time,
        concerns=(*concerns(config), *time_concerns(config, time)),
        ways_to_fit=tuple(ways_to_fit(config)),
    )
    if isinstance(config, PretrainConfig):
        if config.init_from is None:
            return replace(plan, architecture=architecture_plan(_shape(config)), tokens=tokens_plan(config))
        return replace(plan, tokens=tokens_plan(config))
    if isinstance(config, DualHeadConfig) and (backbone := checkpoint_shape(config.backbone)):
        return replace(plan, dual_head=dual_head_plan(config, backbone))
    return plan


def with_time(plan: Plan, config: TrainingConfig, data: DataSize | None) -> Plan:
    """Returns a plan with the time of a run whose rows are counted now."""
    time = time_plan(config, data)
    others = [concern for concern in plan.concerns if not isinstance(concern, TIME_CONCERNS)]
    return replace(plan, time=time, concerns=(*others, *time_concerns(config, time)))


def architecture_plan(config: ModelConfig) -> ArchitecturePlan:
    """Returns the figures of an architecture."""
    count = count_parameters(config)
    return ArchitecturePlan(
        count.total,
        count.non_embedding,
        kv_cache_bytes_per_token(config),
        flops_per_token(config),
        config.max_seq_len,
    )


def tokens_plan(config: PretrainConfig) -> TokensPlan | None:
    """Returns what all devices read in base training; None where its model's shape is not known here, and
    where the rows have to be counted first.
    """
    if config.epochs is not None:
        return None
    rows = config.max_steps * schedule_plan(config).effective_batch
    if config.init_from is None:
        model = _shape(config)
        return TokensPlan(
            rows * model.max_seq_len, model.max_seq_len, rows * model.max_seq_len * flops_per_token(model)
        )
    shape = start_shape(config)
    if shape is None:
        return None
    length = row_length(config, shape)
    return TokensPlan(rows * length, length, rows * length * flops_of_checkpoint(shape, length))


def engine_plan(config: TrainingConfig) -> EnginePlan | None:
    """Returns how the devices of a run share it; None where there is one.

    Raises:
        LabError: when its file of DeepSpeed settings cannot be used.
    """
    processes = processes_of(config)
    if processes == 1:
        return None
    choice = choose_engine(config, devices=processes)
    asks = choice.engine in DEEPSPEED
    return EnginePlan(processes, choice, deepspeed_settings(config, processes) if asks else None)


def memory_plan(config: TrainingConfig) -> MemoryPlan | None:
    """Returns the memory of a run on each of its devices; None where it is not known without loading."""
    need = need_in_effect(config)
    if need is None:
        return None
    parts = need.memory.parts()
    return MemoryPlan(need.total, parts, need.free, need.verdict, need.host, need.host_free)


def disk_plan(config: TrainingConfig) -> DiskPlan | None:
    """Returns the disk space of a run; None where it is not known without loading."""
    needed = checkpoint_bytes(config)
    if not needed:
        return None
    target = Path(config.output_dir or ".")
    existing = next(path for path in (target, *target.absolute().parents) if path.exists())
    return DiskPlan(needed, one_checkpoint_bytes(config), shutil.disk_usage(existing).free)


def schedule_plan(config: TrainingConfig) -> SchedulePlan:
    """Returns how a run trains."""
    total = sum(source.weight for source in config.datasets)
    start = getattr(config, config.STARTS_FROM)
    return SchedulePlan(
        (config.STARTS_FROM, str(start)) if start else None,
        config.micro_batch_size,
        config.accumulation_steps,
        replicas_of(config),
        config.epochs,
        config.max_steps if config.max_steps < NO_LIMIT else None,
        config.warmup,
        config.scheduler,
        config.optimizer,
        config.learning_rate,
        config.weight_decay,
        tuple((source.line(), source.weight / total) for source in config.datasets),
    )


def _shape(config: PretrainConfig) -> ModelConfig:
    shape = config.model if isinstance(config.model, ModelConfig) else load_config(str(config.model))
    if not isinstance(shape, ModelConfig):
        raise LabError(f"is a {shape.kind!r} config, not a model", where=str(config.model))
    return shape
