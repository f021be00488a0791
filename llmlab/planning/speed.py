"""How long an update takes: as it was measured on this device, else by its FLOPs. No torch.

Every run and every `llmlab check --measure` leaves what its updates took in the lab's cache folder, a file
for each device. A run of the same setting is predicted by its own measurement; another one by its FLOPs, at
the rates that the most similar measured settings reached; before any measurement at a share of the device's
peak, on a processor as the sum of its parts.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from llmlab.config.adapters import AdapterOptions
from llmlab.config.training import TrainingConfig
from llmlab.device_store import device_file
from llmlab.errors import LabError
from llmlab.files import write_text_atomically
from llmlab.hardware import processor_name
from llmlab.planning.live import on_gpu
from llmlab.planning.machines import Machine, this_machine
from llmlab.planning.processes import local_processes_of, processes_of
from llmlab.planning.start import start_shape
from llmlab.planning.work import Work, row_tokens, updates_of_a_round, work_of

KEPT = 400  # records of a device
NEAREST = 5  # measured settings that another one is predicted by
NOISE = 0.2  # of a measured time and of the formula together, as logarithms
# shares of the device's peak in matrix products that training reaches. GPUs: 38 to 46 % is reported for large
# jobs with fused kernels (Chowdhery et al. 2022, table 3; Llama 3, Dubey et al. 2024, table 4); less is taken
# for one device without them. 4-bit weights are made bf16 again in every pass
UTILISATION = {"gpu": 0.35, "gpu, quantised": 0.25}
# processors: shares of the peak, and seconds of a value, as torch's profiler gave them on two cores for five
# of the runs of benchmarks/durations.py
PRODUCTS, ATTENTION, NARROW = 0.87, 0.33, 0.3
ELEMENT, DRAWN, UNPACKED, UPDATED = 3.1e-9, 5e-9, 20e-9, 1.3e-9
THROUGH_A_LAYER = 3.5e-3  # seconds of Python and of starting about a hundred kernels, there and back
# generation by transformers: of the memory's bandwidth, and seconds a layer takes to be started
BANDWIDTH, LAUNCH = 0.5, 4e-4
ANSWERS_ON_CPU = 0.25  # of the peak, in generation

# options that the time of an update does not depend on
APART = {
    *("name", "output_dir", "seed", "learning_rate", "value_learning_rate", "weight_decay", "max_steps"),
    *("epochs", "scheduler", "warmup_steps", "warmup_ratio", "eval_every", "eval_rows", "eval_fraction"),
    *("eval_datasets", "save_every", "save_total_limit", "save_best_only", "sample_tokens", "log_every"),
    *("report_to", "patience", "price_per_hour", "cache_dir", "restarts", "process_timeout", "out_of_memory"),
    *("max_skipped_steps", "max_grad_norm", "device", "schema_version", "policy_checkpoint", "init_from"),
    *("model", "backbone", "adam_beta1", "adam_beta2", "adam_eps", "datasets", "metric_for_best"),
    *("evaluation_suite", "evaluate_every", "evaluation_rows", "evaluation_batch_size"),
}

Basis = Literal["measured", "similar", "flops"]


@dataclass(frozen=True)
class SpeedRecord:
    """What the updates of a run took.

    Attributes:
        setting: what the time depends on, as `setting_of` returns it.
        update: seconds, of the whole job.
        tokens: that an update read.
        flops: of an update on each device.
        validation: seconds; None where there was none.
        start: seconds before the first update.
        at: seconds since the epoch.
        evaluations: seconds of one on a suite, by `suite_of`.
        expected: seconds that the formula gave for an update at `peak`; None in records of before.
        peak: FLOP/s of the device in products of matrices, when this was measured.
        saving: seconds of a checkpoint; None where none was saved.
    """

    setting: dict[str, Any]
    update: float
    tokens: float
    flops: float
    validation: float | None = None
    start: float | None = None
    at: float = 0.0
    evaluations: dict[str, float] = field(default_factory=dict)
    expected: float | None = None
    peak: float | None = None
    saving: float | None = None


@dataclass(frozen=True)
class Pace:
    """How long an update takes.

    Attributes:
        update: seconds.
        tokens: that it reads.
        basis: "measured": a run of the same setting, or a few steps of it; "similar": by FLOPs, at the rate
            of another measured setting on this device; "flops": at a share of the device's peak.
        share: of the peak that was taken; 0 where it was measured.
        validation: seconds of one; None where it is not known.
        start: seconds before the first update; None where it is not known.
        evaluation: seconds of one on the suite; None where it is not known.
        saving: seconds of a checkpoint; None where it is not known.
    """

    update: float
    tokens: float
    basis: Basis
    share: float = 0.0
    validation: float | None = None
    start: float | None = None
    evaluation: float | None = None
    saving: float | None = None

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.update


def setting_of(config: TrainingConfig) -> dict[str, Any]:
    """Returns what the time of an update depends on: the model's shape, the data, and most options."""
    options = {name: value for name, value in config.to_json_dict().items() if name not in APART}
    shape = start_shape(config)
    model = {
        name: value
        for name, value in (asdict(shape) if shape else {}).items()
        if name not in ("longest", "tied", "in_matrices")
    }
    data = sorted(source.line() for source in config.datasets)
    return {
        **options,
        "model": model,
        "data": data,
        "row": row_tokens(config),
        "processes": processes_of(config),
    }


def suite_of(config: TrainingConfig) -> str:
    """Returns what the time of an evaluation on a suite depends on."""
    return f"{config.evaluation_suite} {config.evaluation_rows} {config.evaluation_batch_size}"


def record(config: TrainingConfig, measured: SpeedRecord) -> None:
    """Keeps what the updates of a run took; a disk that cannot be written to does not matter."""
    file = _file(_device_of(config))
    with suppress(OSError, ValueError, LabError):
        lines = [json.dumps(asdict(one)) for one in _records(file)][-KEPT + 1 :]
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(file, "\n".join([*lines, json.dumps(asdict(measured))]) + "\n")
    _read.cache_clear()


def pace_of(
    config: TrainingConfig, machine: Machine | None = None, *, row: float | None = None
) -> Pace | None:
    """Returns how long an update takes; None where the model's shape is not known, or nothing of the device.

    Args:
        config: of the run.
        machine: that it is planned for; left out, this one.
        row: tokens of a row, as the data has them.
    """
    work = work_of(config, row=row)
    if work is None:
        return None
    here = machine is None or machine.here
    known = list(_records(_file(_device_of(config)))) if here else []
    setting = json.loads(json.dumps(setting_of(config))) if known else {}
    same = [one for one in reversed(known) if one.setting == setting]
    if same:
        one, suite = same[0], suite_of(config)
        timed = (each.evaluations[suite] for each in same if suite in each.evaluations)
        saving = next((each.saving for each in same if each.saving is not None), None)
        return Pace(
            one.update, one.tokens, "measured", 0.0, one.validation, one.start, next(timed, None), saving
        )
    if alike := _similar(known, setting, config):
        return _scaled(alike, work, config, this_machine(local_processes_of(config)))
    return _by_flops(config, work, machine or this_machine(local_processes_of(config)))


def _similar(known: list[SpeedRecord], setting: dict[str, Any], config: TrainingConfig) -> list[SpeedRecord]:
    """Returns the measured settings, nearest first: generation, 4-bit weights and processes have to be alike,
    then size and tokens of a forward pass should be.
    """

    def comparable(one: SpeedRecord) -> bool:
        same = ("precision", "processes")
        return (
            all(one.setting.get(name) == setting.get(name) for name in same)
            and _group(one.setting) == _group(setting)
            and one.flops > 0
            and (
                bool(one.expected) or on_gpu(config)
            )  # FLOPs alone tell less than the formula of a processor
        )

    def distance(one: SpeedRecord) -> float:
        apart = abs(math.log(_size(one.setting) / _size(setting)))
        apart += 0.5 * abs(math.log(_tokens_at_once(one.setting) / _tokens_at_once(setting)))
        apart += 0.3 * (one.setting.get("adapter") != setting.get("adapter"))
        return apart + 0.3 * (one.setting.get("kind") != setting.get("kind"))

    return sorted((one for one in reversed(known) if comparable(one)), key=distance)


def _group(setting: dict[str, Any]) -> tuple[bool, bool, bool]:
    quantised = setting.get("adapter") == "qlora" or setting.get("load_in", "none") != "none"
    return "max_new_tokens" in setting, quantised, setting.get("compile", False)


def _size(setting: dict[str, Any]) -> float:
    return float(max(1, setting.get("model", {}).get("parameters", 1)))


def _tokens_at_once(setting: dict[str, Any]) -> float:
    rows = setting.get("mini_batch_size") or setting.get("batch_size") or 1
    return float(max(1, rows * (setting.get("row") or 1)))


def _scaled(alike: list[SpeedRecord], work: Work, config: TrainingConfig, machine: Machine) -> Pace:
    """Returns the formula's time, as many times longer or shorter as it was for the measured settings.

    A measurement is off by some percent itself, and the formula is between settings: differences far below
    `NOISE` are not believed, those far above are, and sooner the more was measured. Of a GPU the formula is a
    guess: the nearest setting counts as it is.
    """
    nearest = alike[0]
    update, start = work.flops / nearest.flops * nearest.update, nearest.start
    if nearest.expected and nearest.peak:
        apart = [math.log(one.update / one.expected) for one in alike[:NEAREST] if one.expected]
        if machine.on_gpu:
            factor = apart[0]
        else:
            mean = fmean(apart)
            factor = mean**3 / (mean**2 + NOISE**2 / len(apart)) if mean else 0.0
        update = _formula(config, work, machine, nearest.peak) * math.exp(factor)
    return Pace(update, work.tokens, "similar", start=start)


def _by_flops(config: TrainingConfig, work: Work, machine: Machine) -> Pace | None:
    peak = peak_flops(config, machine)
    if not peak:
        return None
    update = _formula(config, work, machine, peak)
    return Pace(update, work.tokens, "flops", work.flops / (update * peak))


def expected(config: TrainingConfig, work: Work) -> tuple[float | None, float | None]:
    """Returns the seconds of an update by the formula, and the device's peak; None where it is not known."""
    machine = this_machine(local_processes_of(config))
    peak = peak_flops(config, machine)
    return (_formula(config, work, machine, peak), peak) if peak else (None, None)


def _utilisation(config: TrainingConfig) -> float:
    quantised = isinstance(config, AdapterOptions) and config.frozen_base and config.quantised != "none"
    return UTILISATION["gpu, quantised" if quantised else "gpu"]


def _formula(config: TrainingConfig, work: Work, machine: Machine, peak: float) -> float:
    """Returns the seconds of an update: on a GPU at a share of its peak, on a processor as the sum of its
    parts.
    """
    if not machine.on_gpu:
        return _on_processor(work, peak)
    seconds = (work.flops - work.answer_flops) / (_utilisation(config) * peak)
    if work.answers and machine.gpu:
        reading = work.weights / (BANDWIDTH * machine.gpu.bandwidth * 1e9)
        seconds += work.answers * (reading + LAUNCH * work.layers)
    return seconds


def _on_processor(work: Work, peak: float) -> float:
    aside = work.aside
    wide = work.flops - work.answer_flops - aside.attention - aside.narrow
    return (
        wide / (PRODUCTS * peak)
        + aside.attention / (ATTENTION * peak)
        + aside.narrow / (NARROW * peak)
        + work.answer_flops / (ANSWERS_ON_CPU * peak)
        + aside.elements * ELEMENT
        + aside.drawn * DRAWN
        + aside.unpacked * UNPACKED
        + aside.updated * UPDATED
        + aside.layers * THROUGH_A_LAYER
    )


def peak_flops(config: TrainingConfig, machine: Machine) -> float:
    """Returns the FLOP/s of a device in matrix products; 0 where it is not known."""
    if machine.gpu:
        full = machine.gpu.bf16 * 1e12
        return full / 8 if config.precision == "fp32" else full
    if machine.on_gpu or not machine.here:
        return 0.0
    return processor_peak() / max(1, local_processes_of(config))


@functools.cache
def processor_peak() -> float:
    """Returns the FLOP/s that this processor reaches in a product of matrices: the best of a few, which take
    a tenth of a second.
    """
    import numpy as np

    size, best = 768, 0.0
    one = np.ones((size, size), np.float32)
    for _ in range(5):
        began = time.perf_counter()
        one @ one
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def measured_update(config: TrainingConfig, seconds: list[float]) -> float | None:
    """Returns what an update takes, of the times of all updates of a run in their order; None where there are
    too few.

    The first ones, which warm up, are left out, and of methods that generate, whole rounds count.
    """
    round_ = updates_of_a_round(config)
    later = seconds[round_:]
    whole = later[: len(later) // round_ * round_]
    if not whole:
        return None
    if round_ == 1 and len(whole) > 4:  # one that was held up does not count
        return sorted(whole)[len(whole) // 2]
    return sum(whole) / len(whole)


def _device_of(config: TrainingConfig) -> str:
    return this_machine().name if on_gpu(config) else processor_name()


def _file(device: str) -> Path:
    return device_file(device, ".jsonl")


def _records(file: Path) -> Iterator[SpeedRecord]:
    try:
        stamp = file.stat().st_mtime_ns
    except OSError:
        return iter(())
    return iter(_read(file, stamp))


@functools.lru_cache(maxsize=4)
def _read(file: Path, stamp: int) -> tuple[SpeedRecord, ...]:
    records = []
    with suppress(OSError, UnicodeDecodeError):
        for line in file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError, TypeError, KeyError):  # cut off, or of another version
                one = SpeedRecord(**json.loads(line))
                dicts = isinstance(one.setting, dict) and isinstance(one.evaluations, dict)
                if one.update > 0 and one.tokens > 0 and dicts:
                    records.append(one)
    return tuple(records)
