"""Memory of each of several devices as it is predicted, beside what was counted in real updates of two
processes on the CPU (gloo).

    python benchmarks/memory_devices.py                     # every setting, two processes each
    python benchmarks/memory_devices.py --only fsdp2-tied   # some of them

What stands between two updates (weights, optimizer's state) is counted tensor by tensor; the peak is of
all bytes that the profiler saw allocated and not freed in the third update. It is what a GPU would have to
hold, but for its kernels and NCCL's buffers. DDP is torch's, FSDP2 is wrapped as accelerate wraps it, ZeRO is
DeepSpeed's where that is installed; without it its rows are left out.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from llmlab.config import ModelConfig, PretrainConfig
from llmlab.models import LabForCausalLM
from llmlab.models.adapters import add_adapter
from llmlab.models.transformer.shapes import to_lab_config
from llmlab.planning.needs import needs_of
from llmlab.planning.sharding import EngineInEffect, on_a_device
from llmlab.training.optimizers import build_optimizer

PROCESSES = 2
UPDATES = 3  # the third one is watched
PARTS = ("weights", "optimizer", "standing", "peak")


@dataclass(frozen=True)
class Setting:
    """A run that is measured: an engine, and options of base training and of its model."""

    engine: EngineInEffect
    options: dict[str, Any] = field(default_factory=dict)
    shape: dict[str, Any] = field(default_factory=dict)

    def config(self, folder: str = "") -> PretrainConfig:
        """Returns the config; one with an adapter starts from a model in `folder`."""
        values: dict[str, Any] = {
            "batch_size": 2,
            "gradient_accumulation_steps": 2,
            "precision": "fp32",
            "device": "cpu",
            "sample_tokens": 0,
            **self.options,
        }
        if "adapter" in self.options:
            return PretrainConfig(init_from=folder, max_length=256, **values)
        return PretrainConfig(model=self.model(), **values)

    def model(self) -> ModelConfig:
        """Returns the shape of the model."""
        return ModelConfig(
            **{
                "tokenizer_name": "byte",
                "vocab_size": 8192,
                "d_model": 384,
                "n_layers": 8,
                "n_heads": 6,
                "n_kv_heads": 2,
                "d_ff": 1024,
                "max_seq_len": 256,
                "tie_word_embeddings": False,
                **self.shape,
            }
        )


TIED = {"tie_word_embeddings": True}
TINY = {"vocab_size": 1024, "d_model": 64, "n_layers": 4, "n_heads": 4, "d_ff": 160}
WIDE = {"vocab_size": 32768, "n_layers": 4, **TIED}
SETTINGS = {
    "none": Setting("none"),
    "none-bf16": Setting("none", {"precision": "bf16"}),
    "ddp": Setting("ddp"),
    "ddp-one-pass": Setting("ddp", {"gradient_accumulation_steps": 1}),
    "ddp-lora": Setting("ddp", {"adapter": "lora"}),
    "fsdp2": Setting("fsdp2"),
    "fsdp2-tied": Setting("fsdp2", shape=TIED),
    "fsdp2-vocabulary": Setting("fsdp2", shape=WIDE),
    "fsdp2-one-pass": Setting("fsdp2", {"gradient_accumulation_steps": 1}),
    "fsdp2-bf16": Setting("fsdp2", {"precision": "bf16"}),
    "fsdp2-checkpointing": Setting("fsdp2", {"gradient_checkpointing": True, "batch_size": 6}),
    "fsdp2-lion": Setting("fsdp2", {"optimizer": "lion"}),
    "fsdp2-lora": Setting("fsdp2", {"adapter": "lora"}),
    "zero2": Setting("zero2"),
    "zero2-bf16": Setting("zero2", {"precision": "bf16"}),
    "zero3": Setting("zero3"),
    "zero3-bf16": Setting("zero3", {"precision": "bf16"}),
    "fsdp2-tiny": Setting("fsdp2", shape=TINY),
}


@dataclass(frozen=True)
class Engine:
    """A wrapped model: what is done for each micro-batch, and for the update.

    Attributes:
        counts: whether it counts the micro-batches itself and wants `update` after each.
    """

    model: nn.Module
    backward: Callable[[Tensor], None]
    update: Callable[[], None]
    standing: Callable[[], dict[str, Iterable[Any]]]
    counts: bool = False


def local_bytes(tensors: Iterable[Any]) -> int:
    """Returns the bytes that this process holds of tensors, each storage once."""
    from torch.distributed.tensor import DTensor

    found = {}
    for tensor in tensors:
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        found[local.untyped_storage().data_ptr()] = local.untyped_storage().nbytes()
    return sum(found.values())


def states(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """Yields the tensors of an optimizer's state that have the size of a weight, or a row of it."""
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor) and value.ndim)


def plain(model: nn.Module, config: PretrainConfig, wrap: Callable[[nn.Module], nn.Module]) -> Engine:
    """Returns a model that torch's own optimizer updates."""
    wrapped = wrap(model)
    optimizer = build_optimizer(wrapped, config)

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    def standing() -> dict[str, Iterable[Any]]:
        parameters = list(wrapped.parameters())
        return {"weights": parameters, "optimizer": list(states(optimizer))}

    return Engine(wrapped, lambda loss: loss.backward(), update, standing)


def ddp(model: nn.Module, config: PretrainConfig) -> Engine:
    """Returns a model under torch's DDP, with its own defaults, which are the trainer's."""
    return plain(model, config, nn.parallel.DistributedDataParallel)


def fsdp2(model: nn.Module, config: PretrainConfig) -> Engine:
    """Returns a model wrapped as accelerate does it for FSDP2; accelerate itself knows none on the CPU."""
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    keep_gloo_apart()
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if config.precision == "bf16" else "no")
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = plugin
    if config.precision == "bf16":
        plugin.set_mixed_precision("bf16")
    return plain(model, config, lambda whole: fsdp2_prepare_model(accelerator, whole))


def zero(model: nn.Module, config: PretrainConfig, stage: int) -> Engine:
    """Returns a model under DeepSpeed."""
    import deepspeed

    width = model.config.hidden_size
    settings = {
        "train_micro_batch_size_per_gpu": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "bf16": {"enabled": config.precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": width * width,
            "stage3_prefetch_bucket_size": int(0.9 * width * width),
            "stage3_param_persistence_threshold": 10 * width,
        },
    }
    engine, optimizer, *_ = deepspeed.initialize(
        model=model, optimizer=build_optimizer(model, config), config=settings
    )

    def standing() -> dict[str, Iterable[Any]]:
        own = (
            optimizer.fp32_partitioned_groups_flat
            if stage == 3
            else optimizer.single_partition_of_fp32_groups
        )
        parameters = [getattr(p, "ds_tensor", p) if stage == 3 else p for p in model.parameters()]
        return {"weights": parameters, "optimizer": [*own, *states(optimizer.optimizer)]}

    return Engine(engine, engine.backward, engine.step, standing, counts=True)


def keep_gloo_apart() -> None:
    """Lets what FSDP2 exchanges pass through memory that the profiler does not see.

    gloo copies tensors in threads of its own, where frees are not counted, and what it copies is nothing that
    a GPU would hold.
    """
    import torch.distributed as dist

    gather = dist.all_gather_single

    def unseen(tensor: Tensor) -> Tensor:
        raw = torch.from_numpy(numpy.empty(tensor.numel() * tensor.element_size(), dtype=numpy.uint8))
        return raw.view(tensor.dtype).view(tensor.shape)

    def all_gather_single(output_tensor: Tensor, input_tensor: Tensor, **how: Any) -> None:
        output, given = unseen(output_tensor), unseen(input_tensor).copy_(input_tensor)
        gather(output, given, group=how.get("group"))
        output_tensor.copy_(output)

    def reduce_scatter_single(output: Tensor, input: Tensor, **how: Any) -> None:
        given = unseen(input).copy_(input)
        dist.all_reduce(given, op=how["op"], group=how.get("group"))
        output.copy_(given.view(dist.get_world_size(), -1)[dist.get_rank()].view(output.shape))

    vars(dist).update(all_gather_single=all_gather_single, reduce_scatter_single=reduce_scatter_single)


ENGINES: dict[str, Callable[[nn.Module, PretrainConfig], Engine]] = {
    "none": lambda model, config: plain(model, config, lambda whole: whole),
    "ddp": ddp,
    "fsdp2": fsdp2,
    "zero2": lambda model, config: zero(model, config, 2),
    "zero3": lambda model, config: zero(model, config, 3),
}


def tensor_bytes() -> int:
    """Returns the bytes of every tensor's storage in this process that Python can reach."""
    gc.collect()
    things = (thing for thing in gc.get_objects() if type(thing) in (Tensor, nn.Parameter))
    found = {thing.untyped_storage().data_ptr(): thing.untyped_storage().nbytes() for thing in things}
    return sum(found.values())


def measured(name: str, folder: str) -> dict[str, float]:
    """Returns the bytes that this process held in a setting, by part, and the peak."""
    setting = SETTINGS[name]
    config = setting.config(folder)
    torch.manual_seed(0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watch:
        model: Any = LabForCausalLM(to_lab_config(setting.model()))
        if "adapter" in setting.options:
            model = add_adapter(model, config)
        model.train()
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        engine = ENGINES[setting.engine](model, config)
        for number in range(UPDATES):
            found = tensor_bytes()
            with record_function(f"update {number}"):
                update(engine, config)
    events = sorted(watch.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    alive, standing, peak, last = 0, 0, 0, False
    for event in events:
        if event.name() == f"update {UPDATES - 1}":
            last, standing = True, alive
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive) if last else 0
    if setting.engine.startswith("zero"):  # frees in gloo's threads are not seen: what is there is counted
        standing, peak = found, peak - standing + found
    parts = {part: float(local_bytes(tensors)) for part, tensors in engine.standing().items()}
    peak = 0 if "adapter" in setting.options else peak
    return {**parts, "standing": float(standing), "peak": float(peak)}


def update(engine: Engine, config: PretrainConfig) -> None:
    """Does one update on random tokens."""
    rows = torch.randint(0, 1024, (config.batch_size, 256))
    adapted = config.adapter != "none"  # whose loss is TRL's; here only what stands is looked at
    for _ in range(config.gradient_accumulation_steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            logits = engine.model(input_ids=rows).logits if adapted else None
            loss = engine.model(input_ids=rows, labels=rows).loss if logits is None else logits.mean()
        engine.backward(loss / config.gradient_accumulation_steps)
        if engine.counts:
            engine.update()
    if not engine.counts:
        engine.update()


def predicted(name: str, folder: str) -> dict[str, float]:
    """Returns the same figures as the plan has them."""
    setting = SETTINGS[name]
    needs = needs_of(setting.config(folder))
    assert needs is not None
    one = on_a_device(needs, setting.engine, 1 if setting.engine == "none" else PROCESSES).device
    stands = one.weights + one.optimizer + (one.exchange if setting.engine == "ddp" else 0.0)
    # ZeRO-3 keeps the tensor of its gradients
    stands += one.gradients if setting.engine == "zero3" else 0.0
    peak = 0.0 if "adapter" in setting.options else one.allocated
    return {"weights": one.weights, "optimizer": one.optimizer, "standing": stands, "peak": peak}


def worker(name: str, folder: str, answer: Path) -> None:
    """Measures in a process that torchrun started; rank 0 writes the answer."""
    torch.set_num_threads(1)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if SETTINGS[name].engine.startswith("zero"):
            import deepspeed

            deepspeed.init_distributed("gloo")
        else:
            torch.distributed.init_process_group("gloo")
    figures = measured(name, folder)
    if os.environ.get("RANK", "0") == "0":
        answer.write_text(json.dumps(figures))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def measure(name: str, folder: str) -> dict[str, float]:
    """Returns what the first of two processes held.

    Raises:
        RuntimeError: when they failed, with what they said.
    """
    count = 1 if SETTINGS[name].engine == "none" else PROCESSES
    with tempfile.TemporaryDirectory() as place:
        answer = Path(place) / "figures.json"
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        command = [sys.executable, *launch, __file__, "--worker", name, folder, str(answer)]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        if not answer.exists():
            raise RuntimeError(done.stderr[-6000:])
        return dict(json.loads(answer.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker[0], args.worker[1], Path(args.worker[2]))
        return
    with tempfile.TemporaryDirectory() as folder:
        LabForCausalLM(to_lab_config(SETTINGS["fsdp2"].model())).save_pretrained(folder)
        print(f"{'setting':20} {'':>9}" + "".join(f"{part:>11}" for part in PARTS) + "   MB on each device")
        for name, setting in SETTINGS.items():
            missing = setting.engine.startswith("zero") and not importlib.util.find_spec("deepspeed")
            if (args.only and name not in args.only) or missing:
                continue
            for what, find in (("measured", measure), ("predicted", predicted)):
                figures = find(name, folder)
                said = "".join(f"{figures[part] / 1e6:11.1f}" for part in PARTS)
                print(f"{name:20} {what:>9}{said}", flush=True)


if __name__ == "__main__":
    main()
