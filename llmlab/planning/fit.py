"""What fits on a machine: methods and adapters against row lengths. No torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmlab.config import (
    MODEL_PRESETS,
    DPOConfig,
    ModelConfig,
    RewardConfig,
    load_config,
    preset,
)
from llmlab.config.adapters import AdapterOptions
from llmlab.config.base import validate
from llmlab.config.batches import AccumulatedBatches
from llmlab.config.loader import KINDS, apply_changes, kind_class
from llmlab.config.rollouts import RolloutConfig
from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError
from llmlab.models.headers import checkpoint_shape, why_unknown
from llmlab.models.known_models import nearest_known
from llmlab.models.shapes import CheckpointShape
from llmlab.planning.duration import DataSize, time_plan
from llmlab.planning.engines import EngineNeed, Verdict, choose_engine
from llmlab.planning.machines import Machine
from llmlab.planning.speed import Pace, pace_of
from llmlab.planning.start import shape_of

Adapter = Literal["none", "lora", "qlora"]
ADAPTERS: tuple[Adapter, ...] = ("none", "lora", "qlora")
METHODS = ("sft", "dpo", "grpo")  # where none are named
LENGTHS = (512, 2048, 8192)
USUAL = 2048  # tokens of a row that batches, speed and a config are given for
STEP = 64  # tokens; the longest row is looked for in such steps
LONGEST = 1 << 20
MOST_ROWS = 512  # of a forward pass
ROWS_OF_AN_UPDATE = 64


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        model: a run, a folder, a GGUF file or a hub id; a preset or a file of a model that is new.
        machine: to train on.
        devices: of it.
        methods: kinds of training.
        lengths: tokens of a row.
        changes: options of every config.
        sources: to train on; none for the defaults of a method.
    """

    model: str
    machine: Machine
    devices: int = 1
    methods: tuple[str, ...] = METHODS
    lengths: tuple[int, ...] = LENGTHS
    changes: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """A run of one row a forward pass, of a length.

    Attributes:
        length: tokens of a row.
        need: what each device holds.
        checkpointing: whether activations are made anew, without which it does not fit.
    """

    length: int
    need: EngineNeed
    checkpointing: bool

    @property
    def over(self) -> float:
        """Bytes that are missing; 0 where it fits."""
        return max(0.0, self.need.total - self.need.free)

    @property
    def verdict(self) -> Verdict:
        """Whether it fits."""
        return self.need.verdict


@dataclass(frozen=True)
class FitRow:
    """A method with an adapter.

    Attributes:
        kind: of the config.
        adapter: "none" trains all weights.
        cells: one for each length; None where the model has no such positions.
        longest: tokens of the longest row that fits, one a forward pass; 0 where none does.
        length: the usual length, or the longest where that is shorter.
        batch: rows of a forward pass that fit at this length; 0 where none does.
        config: that trains so; None where nothing fits.
        pace: of an update of it; None where it is not known.
        data_seconds: of one pass over the data; None where there is none, or it is not known.
    """

    kind: str
    adapter: Adapter
    cells: tuple[Cell | None, ...]
    longest: int
    length: int
    batch: int
    config: TrainingConfig | None = None
    pace: Pace | None = None
    data_seconds: float | None = None


def new_model(name: str) -> ModelConfig | None:
    """Returns the architecture that a name stands for, a preset or a file; None where it is a model that is
    there.

    Raises:
        LabError: when the file is of another kind.
    """
    if name in MODEL_PRESETS:
        return preset(name)
    if not (name.endswith(".json") and Path(name).is_file()):
        return None
    config = load_config(name)
    if not isinstance(config, ModelConfig):
        raise LabError(
            f"is a {config.kind!r} config, not a model", where=name, remedy="`llmlab check` plans it"
        )
    return config


def model_shape(name: str) -> CheckpointShape:
    """Returns the shape of a model.

    Raises:
        LabError: when it is not known here, with the reason.
    """
    if (new := new_model(name)) is not None:
        return shape_of(new)
    if shape := checkpoint_shape(name):
        return shape
    if reason := why_unknown(name):
        raise LabError(reason, where=name)
    near = nearest_known(name)
    likely = f"did you mean {' or '.join(near)}?" if near else "download it, or name a model of a known shape"
    raise LabError("the shape of this model is not known here", where=name, remedy=likely)


def fit_rows(question: Question, data: Mapping[str, DataSize] | None = None) -> Iterator[FitRow]:
    """Yields what fits of each method: all weights first, then LoRA and QLoRA.

    Args:
        question: what is asked.
        data: for each kind, how much there is to train on.

    Raises:
        LabError: when the model's shape is not known, a method does not exist, or an option does not suit it.
    """
    shape, new = model_shape(question.model), new_model(question.model) is not None
    methods = ("pretrain",) if new else question.methods
    for kind in methods:
        cls = kind_class(kind)
        if not issubclass(cls, TrainingConfig):
            kinds = [name for name, one in KINDS.items() if issubclass(one, TrainingConfig)]
            raise LabError(f"{kind!r} is no method of training", remedy=f"use one of {', '.join(kinds)}")
        adapters = ADAPTERS if issubclass(cls, AdapterOptions) and not new else ADAPTERS[:1]
        for adapter in adapters:
            yield _row(question, kind, adapter, shape.longest or LONGEST, (data or {}).get(kind))


def best(rows: list[FitRow]) -> FitRow | None:
    """Returns the most capable run of the first method that fits: all weights before LoRA before QLoRA."""
    return next((row for row in rows if row.config is not None), None)


def command_of(config: TrainingConfig, file: str = "") -> str:
    """Returns the command line that writes a config."""
    options = {
        name: value
        for name, value in config.to_json_dict().items()
        if name in config.model_fields_set and name not in ("kind", "schema_version")
    }
    parts = ["llmlab", "new", config.kind, "--yes"]
    for name, value in options.items():
        if name == "datasets":
            value = [source.line() for source in config.datasets]
        text = value if isinstance(value, str) else json.dumps(value)
        parts += ["--set", f"{name}={text}"]
    return shlex.join([*parts, *(["-o", file] if file else [])])


def _row(question: Question, kind: str, adapter: Adapter, positions: int, data: DataSize | None) -> FitRow:
    def need(length: int, rows: int, checkpointing: bool) -> EngineNeed:
        return _need(question, config_of(question, kind, adapter, length, rows, checkpointing))

    def cell(length: int) -> Cell:
        plain = Cell(length, need(length, 1, False), False)
        return plain if plain.verdict == "fits" else Cell(length, need(length, 1, True), True)

    cells = tuple(cell(length) if length <= positions else None for length in question.lengths)
    top = min(positions, LONGEST) // STEP
    longest = STEP * largest(top, lambda steps: need(STEP * steps, 1, True).fits)
    usual = min(USUAL, positions)
    length = min(usual, longest) or usual
    if not longest:
        return FitRow(kind, adapter, cells, 0, length, 0)
    checkpointing = cell(length).checkpointing
    batch = _rows(kind, lambda rows: need(length, rows, checkpointing).fits)
    most = max(1, ROWS_OF_AN_UPDATE // question.devices)
    rows = 1 << (min(batch, most).bit_length() - 1)
    config = config_of(question, kind, adapter, length, rows, checkpointing)
    pace = pace_of(config, question.machine, row=data.row if data else None)
    once = apply_changes(config, {"epochs": 1}) if data and not config.datasets[0].streaming else None
    seconds = time_plan(once, data, question.machine).seconds if once else None
    return FitRow(kind, adapter, cells, longest, length, batch, config, pace, seconds)


def config_of(
    question: Question, kind: str, adapter: Adapter, length: int, rows: int, checkpointing: bool
) -> TrainingConfig:
    """Returns a run with so many rows a forward pass.

    Raises:
        LabError: when an option does not suit the method.
    """
    cls = kind_class(kind)
    assert issubclass(cls, TrainingConfig)
    options: dict[str, Any] = {"kind": kind, **_length(cls, length), **_batch(cls, rows, question.devices)}
    if (new := new_model(question.model)) is not None:
        options = {**options, "model": new.model_copy(update={"max_seq_len": length})}
        options.pop("max_length")
    else:
        options[cls.STARTS_FROM] = question.model
    if adapter != "none":
        options["adapter"] = adapter
    if checkpointing:
        options["gradient_checkpointing"] = True
    if question.sources:
        options["datasets"] = list(question.sources)
    if question.devices > 1:
        options["devices"] = question.devices
    if question.machine.gpu and question.machine.gpu.half:
        options["precision"] = "fp16"
    config = validate(cls, options)
    return apply_changes(config, dict(question.changes)) if question.changes else config


def _rows(kind: str, fits: Callable[[int], bool]) -> int:
    """Returns the most rows of a forward pass that fit; of a batch that is divided, a power of two."""
    if issubclass(kind_class(kind), AccumulatedBatches):
        return largest(MOST_ROWS, fits)
    exponents = largest(MOST_ROWS.bit_length(), lambda exponent: fits(1 << (exponent - 1)))
    return 1 << (exponents - 1) if exponents else 0


def _length(cls: type[TrainingConfig], length: int) -> dict[str, int]:
    if issubclass(cls, RolloutConfig):
        return {"max_prompt_length": length // 2, "max_new_tokens": length - length // 2}
    if issubclass(cls, DPOConfig | RewardConfig):
        return {"max_length": length, "max_prompt_length": length // 2}
    return {"max_length": length}


def _batch(cls: type[TrainingConfig], rows: int, devices: int) -> dict[str, int]:
    """Returns the options of so many rows a forward pass, and the usual rows of an update."""
    passes = max(1, ROWS_OF_AN_UPDATE // devices // rows)
    if issubclass(cls, AccumulatedBatches):
        return {"batch_size": rows, "gradient_accumulation_steps": passes}
    return {"batch_size": rows * passes, "mini_batch_size": rows}


def _need(question: Question, config: TrainingConfig) -> EngineNeed:
    need = choose_engine(config, devices=question.devices, machine=question.machine).need
    assert need is not None  # the shape is known
    return need


def largest(most: int, fits: Callable[[int], bool]) -> int:
    """Returns the largest number from 1 to `most` that fits, where all below one that fits do; 0 for none."""
    if most < 1 or not fits(1):
        return 0
    low, high = 1, 2
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
