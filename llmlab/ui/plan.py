"""The plan of a config as a table, and its figures below a form's question. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator

from rich.table import Table

from llmlab.config import KINDS, LabBaseConfig, ModelConfig, PretrainConfig
from llmlab.config.training import TrainingConfig
from llmlab.hardware import available_memory
from llmlab.planning.advice import (
    MOST_PASSES,
    BeyondContext,
    Concern,
    HostTooSmall,
    LongRun,
    NeverValidated,
    TooLarge,
    TooManyPasses,
    UnusualRate,
    ValidatedOnTraining,
    WayToFit,
)
from llmlab.planning.dual_head import DualHeadPlan
from llmlab.planning.duration import EvaluationsPlan, TimePlan, time_plan
from llmlab.planning.engines import Choice, EngineNeed, Verdict, fit, need_in_effect
from llmlab.planning.memory import training_memory
from llmlab.planning.parameters import count_parameters, kv_cache_bytes_per_token
from llmlab.planning.plan import ArchitecturePlan, DiskPlan, EnginePlan, MemoryPlan, Plan, SchedulePlan
from llmlab.planning.processes import replicas_of
from llmlab.planning.speed import Pace
from llmlab.planning.start import row_length, start_shape
from llmlab.ui.units import long_time, short_count, short_time, size

WIDTH = 12  # of the bar
BASIS = {"measured": " (measured)", "similar": " (by another run)", "flops": " (by FLOPs)"}


def plan_table(plan: Plan) -> Table:
    """Returns a table of what a config will cost."""
    table = Table(title=KINDS[plan.kind].TITLE, show_header=False, title_justify="left")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in plan_rows(plan):
        table.add_row(name, value)
    return table


def plan_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    """Yields (what, how much) of a plan."""
    if plan.architecture:
        yield from _architecture_rows(plan.architecture)
    if plan.tokens:
        tokens = plan.tokens
        yield "tokens", f"{tokens.tokens:,} in all, in rows of {tokens.row:,}; {tokens.flops:.3g} FLOPs"
    if plan.engine:
        yield "engine", engine_in_words(plan.engine)
    if plan.memory:
        yield from _memory_rows(plan.memory, plan.engine)
    if plan.engine and plan.memory:
        looked_at = plan.engine.choice.looked_at
        others = looked_at if len(looked_at) > 1 else ()  # a single one is the one in effect
        yield from ((f"  {need.engine}", need_in_words(need)) for need in others)
    if plan.engine and plan.engine.deepspeed:
        yield "DeepSpeed", json.dumps(plan.engine.deepspeed, indent=1)
    if plan.disk:
        yield "disk", disk_in_words(plan.disk)
    if plan.dual_head:
        yield from _dual_head_rows(plan.dual_head)
    if plan.schedule:
        yield from _schedule_rows(plan.schedule)
    if plan.time:
        yield from time_rows(plan.time)
    yield from (("warning", in_words(concern)) for concern in plan.concerns)
    yield from (("would fit with", way_in_words(way)) for way in plan.ways_to_fit)


def forecast_lines(plan: Plan) -> Iterator[tuple[str, bool]]:
    """Yields what a person has to know before a run begins: does it fit, what is unusual, and what would make
    it fit; and whether the line deserves attention.
    """
    if plan.engine:
        yield f"engine: {engine_in_words(plan.engine)}", False
    if plan.memory:
        rows = _memory_rows(plan.memory, plan.engine)
        yield from ((f"{name}: {value}", False) for name, value in rows)
    if plan.time:
        yield from ((f"{name}: {value}", False) for name, value in time_rows(plan.time))
    yield from ((f"warning: {in_words(concern)}", True) for concern in plan.concerns)
    yield from ((f"would fit with: {way_in_words(way)}", True) for way in plan.ways_to_fit)


def in_words(concern: Concern) -> str:
    """Returns what is unusual about a run as a sentence."""
    match concern:
        case UnusualRate(rate, kind, end):
            side = "above" if rate > end else "below"
            return f"`learning_rate` {rate:g} is {side} what {kind} usually takes (the limit is {end:g})"
        case BeyondContext(length, positions, option):
            return f"`{option}` {length:,} is beyond the {positions:,} positions that the model was made for"
        case ValidatedOnTraining(source):
            both = "appears in both training and evaluation data"
            return f"{source.line()} {both}: its held-out figures mean nothing"
        case TooLarge(needed, free):
            return f"about {size(needed)} are needed and {size(free)} are free: it will not fit"
        case TooManyPasses(passes):
            return (
                f"{passes:.3g} passes over the data: more than {MOST_PASSES} teach little that is new;"
                " more text, or fewer steps"
            )
        case LongRun(seconds):
            return f"about {long_time(seconds)} on this device"
        case NeverValidated(option, every, steps):
            return f"`{option}` {every:,} is more than the {steps:,} steps of the run"
        case HostTooSmall(needed, free):
            return (
                f"`cpu_offload` puts about {size(needed)} into the machine's memory and {size(free)}"
                " are free: it will not fit"
            )


def time_rows(plan: TimePlan) -> Iterator[tuple[str, str]]:
    """Yields (what, how much) of the length of a run, as far as it is known."""
    if plan.tokens:
        passes = f"; {passes_in_words(plan.passes)}" if plan.passes is not None else ""
        yield "reads", f"{short_count(plan.tokens)} tokens in {plan.steps:,} updates{passes}"
    elif plan.passes is not None and plan.steps:
        yield "reads", f"{plan.steps:,} updates; {passes_in_words(plan.passes)}"
    if plan.pace and plan.seconds is not None:
        yield "time", f"about {long_time(plan.seconds)}; {pace_in_words(plan.pace)}"
    elif plan.pace:
        yield "time", pace_in_words(plan.pace)
    if plan.evaluations:
        yield "evaluations", evaluations_in_words(plan.evaluations, plan.seconds)
    if plan.cost is not None:
        yield "cost", f"about {plan.cost:,.2f}, at its price per hour"


def evaluations_in_words(plan: EvaluationsPlan, seconds: float | None) -> str:
    """Returns how often a suite is evaluated on how many rows, and what part of the run's time that is."""
    known = [rows for rows in plan.rows if rows is not None]
    rows = f"at most {sum(known):,} rows" if len(known) == len(plan.rows) else "all rows of its tasks"
    said = f"{f'{plan.count:,} times ' if plan.count else ''}{plan.suite}, {rows}"
    if plan.seconds is None:
        return f"{said}; not in the time above: how long one takes is known after the first run"
    each = f"{said}, {short_time(plan.seconds)} each"
    if not plan.count or not seconds:
        return each
    return f"{each} ({plan.count * plan.seconds / seconds:.0%} of the time)"


def passes_in_words(passes: float) -> str:
    """Returns how often the data is read."""
    return f"{passes:.3g} pass{'' if passes == 1 else 'es'} over the data"


def pace_in_words(pace: Pace) -> str:
    """Returns the time of an update, the tokens a second, and how both are known."""
    said = f"{short_time(pace.update)} an update, {short_count(pace.speed)} tokens/s"
    match pace.basis:
        case "measured":
            return f"{said} (measured on this device)"
        case "similar":
            return f"{said} (from another run on this device; `--measure` makes it exact)"
        case "flops":
            return (
                f"{said} (estimated from FLOPs at {pace.share:.0%} of the peak; `--measure` makes it exact)"
            )


def _memory_rows(plan: MemoryPlan, engine: EnginePlan | None) -> Iterator[tuple[str, str]]:
    yield "memory per device" if engine else "memory", memory_in_words(plan)
    if plan.host:
        yield "machine's memory", f"about {size(plan.host)} by offload ({size(plan.host_free)} free)"


def engine_in_words(plan: EnginePlan) -> str:
    """Returns how the processes share the work, and why so."""
    engine = "tensor parallel" if plan.choice.engine == "tensor" else plan.choice.engine
    return f"{engine} over {plan.processes} processes: {why_in_words(plan.choice)}"


def why_in_words(choice: Choice) -> str:
    """Returns why an engine was chosen."""
    match choice.why:
        case "one process":
            return "one process has nothing to share"
        case "asked for":
            return f"as `{'tensor_parallel' if choice.engine == 'tensor' else 'parallel'}` says"
        case "not known":
            return "what it needs is not known before the model is loaded"
        case "no GPUs":
            return "accelerate shards on GPUs alone"
        case "least that fits":
            return "the least sharding that fits"
        case "nothing fits":
            return "nothing fits, and this needs the least"


def need_in_words(need: EngineNeed) -> str:
    """Returns what a device needs under an engine, and whether it fits or by how much not."""
    over = need.total - need.free
    offload = " with CPU offload" if need.cpu_offload else ""
    said = f"about {size(need.total)}{offload}, {need.verdict}"
    if over > 0:
        return f"{said}: {size(over)} too much"
    return f"{said}: the machine's memory is too small" if need.verdict == "does not fit" else said


def disk_in_words(plan: DiskPlan) -> str:
    """Returns what a run writes, in all and with each checkpoint."""
    return f"up to {size(plan.needed)} for checkpoints, {size(plan.one)} each; {size(plan.free)} free"


def memory_in_words(plan: MemoryPlan) -> str:
    """Returns the memory of a run, whether it fits, and its parts from 1 MB on."""
    parts = ", ".join(f"{name} {size(value)}" for name, value in plan.parts.items() if value >= 1e6)
    return f"about {size(plan.total)}, {plan.verdict} ({size(plan.free)} free): {parts}"


def way_in_words(way: WayToFit) -> str:
    """Returns the changes of options that would make a run fit, and what it would need then."""
    options = ", ".join(f"{name} {value}" for name, value in way.changes.items())
    return f"{options}: about {size(way.total)}"


def _architecture_rows(plan: ArchitecturePlan) -> Iterator[tuple[str, str]]:
    yield "parameters", f"{plan.parameters:,} ({plan.non_embedding:,} without embeddings)"
    yield "weights", f"{size(plan.parameters * 2)} in bf16, {size(plan.parameters * 4)} in fp32"
    yield "KV cache", f"{size(1000 * plan.kv_bytes_per_token)} per 1,000 tokens in bf16"
    yield "training", f"{plan.flops_per_token:.3g} FLOPs per token at {plan.context:,} tokens"


def _dual_head_rows(plan: DualHeadPlan) -> Iterator[tuple[str, str]]:
    yield "heads", f"{plan.head:,} parameters each, over {plan.vocabulary:,} tokens; the gate {plan.gate:,}"
    yield "trained", f"{plan.trained:,} of {plan.total:,} parameters ({plan.trained / plan.total:.1%})"


def _schedule_rows(plan: SchedulePlan) -> Iterator[tuple[str, str]]:
    if plan.start:
        option, name = plan.start
        yield "starts from" if option == "init_from" else option.split("_")[0], name
    yield (
        "effective batch",
        f"{plan.micro_batch} x {plan.accumulation} x {plan.devices} = {plan.effective_batch}"
        " (batch x accumulation x devices)",
    )
    yield "steps", f"{_length(plan)}, {_warmup(plan)} of them warm-up, then {plan.scheduler}"
    yield (
        "optimizer",
        f"{plan.optimizer}, learning rate {plan.learning_rate:g}, weight decay {plan.weight_decay:g}",
    )
    yield "data", ", ".join(f"{name} ({share:.0%})" for name, share in plan.sources)


def _length(plan: SchedulePlan) -> str:
    at_most = "" if plan.max_steps is None else f"{plan.max_steps:,}"
    if plan.epochs is None:
        return at_most
    those = f"those of {plan.epochs:g} epoch{'' if plan.epochs == 1 else 's'}"
    return f"{those}, at most {at_most}" if at_most else f"{those} (known when the rows are counted)"


def _warmup(plan: SchedulePlan) -> str:
    if plan.warmup is None:
        return "at most a tenth"
    return f"{100 * plan.warmup:g} %" if isinstance(plan.warmup, float) else f"{plan.warmup:,}"


def live_figures(config: LabBaseConfig) -> list[str]:
    """Returns a few short lines of what the answers of a form amount to, while they are given; none where
    nothing is known without loading.
    """
    if isinstance(config, ModelConfig):
        count = count_parameters(config)
        memory = training_memory(
            config, batch_size=1, optimizer="adamw", precision="fp32", gradient_checkpointing=False
        )
        free = available_memory()
        bar = memory_bar(memory.total, free, fit(memory.total, free))
        cache = size(1000 * kv_cache_bytes_per_token(config))
        return [
            f"{short_count(count.total)} parameters, {short_count(count.non_embedding)} without embeddings; "
            f"bf16 {size(count.total * 2)}; KV {cache} a 1,000 tokens",
            f"training {size(memory.total)} (adamw, fp32, 1 row) {bar}",
        ]
    if not isinstance(config, TrainingConfig):
        return []
    rows = config.micro_batch_size * config.accumulation_steps * replicas_of(config)
    lines = [f"{rows:,} rows an update"]
    if config.epochs is None:
        lines = [f"{lines[0]}, {rows * config.max_steps:,} in all"]
    if config.epochs is None and isinstance(config, PretrainConfig) and (shape := start_shape(config)):
        lines = [f"{lines[0]}: {rows * config.max_steps * row_length(config, shape):,} tokens"]
    if need := need_in_effect(config):
        each = "" if need.engine == "none" else f" a device with {need.engine}"
        bar = memory_bar(need.total, need.free, need.verdict)
        lines.append(f"memory about {size(need.total)}{each} {bar}")
    if (time := time_plan(config)).pace and time.seconds is not None:
        cost = f", cost about {time.cost:,.2f}" if time.cost is not None else ""
        lines.append(f"time about {long_time(time.seconds)}{BASIS[time.pace.basis]}{cost}")
    return lines


def memory_bar(needed: float, free: float, verdict: Verdict) -> str:
    """Returns a bar of what is needed of the memory that is free, and whether it fits."""
    filled = min(WIDTH, round(needed / free * WIDTH)) if free else WIDTH
    return f"[{'#' * filled}{'.' * (WIDTH - filled)}] {verdict} ({size(free)} free)"
