"""Every private name of transformers, TRL, accelerate and peft that the lab depends on, with the reason.

`PRIVATE` lists them; `tests/contracts/` checks each one's signature and behaviour, and that the code uses no
other. A module that subclasses a trainer checks its names when it is imported: one that is gone raises, with
the version of its library.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from llmlab.errors import LabError


@dataclass(frozen=True)
class Private:
    """One private name.

    Attributes:
        owner: module and class, `transformers.Trainer`; a module where the name is a function.
        name: of the method, function or attribute.
        reason: why no public name serves.
        attribute: whether it is set on instances, so that the class does not have it.
    """

    owner: str
    name: str
    reason: str
    attribute: bool = False


AGENT = "torch.distributed.elastic.agent.server.local_elastic_agent.LocalElasticAgent"
MEETING = "torch.distributed.elastic.rendezvous.dynamic_rendezvous.DynamicRendezvousHandler"
VLLM = "trl.generation.vllm_generation.VLLMGeneration"
TRAINER, MODEL, GRPO, DPO = (
    "transformers.Trainer",
    "transformers.PreTrainedModel",
    "trl.GRPOTrainer",
    "trl.DPOTrainer",
)
ADDING = "how a model class is described to transformers; there is no public name for it"
PRIVATE = (
    Private(TRAINER, "_get_train_sampler", "the order of rows must follow from seed and epoch alone"),
    Private(
        TRAINER,
        "_prepare_for_training",
        "under DeepSpeed the lab's checkpoint is read behind it, not DeepSpeed's pickles",
    ),
    Private(
        TRAINER,
        "_get_grad_norm",
        "the norm, by which an update is skipped, is known before the step only here",
    ),
    Private(TRAINER, "_save_checkpoint", "a run stopped in the middle of an update is saved at its snapshot"),
    Private(TRAINER, "_get_output_dir", "a checkpoint is written aside and renamed when it is complete"),
    Private(TRAINER, "_load_from_checkpoint", "what fails in it is told as a damaged checkpoint"),
    Private(TRAINER, "_load_optimizer_and_scheduler", "options that were changed on purpose are kept"),
    Private(TRAINER, "_save", "weights that are divided are put together before they are saved"),
    Private(TRAINER, "_save_optimizer_and_scheduler", "states that are divided are written by name"),
    Private(TRAINER, "_load_scaler", "what fails in it is told as a damaged checkpoint"),
    Private(TRAINER, "_load_rng_state", "called last when resuming: the lab's own state is loaded after it"),
    Private(TRAINER, "_track_num_input_tokens", "processes that share layers count the same tokens each"),
    Private(TRAINER, "_prepare_inputs", "moves a batch to the device; TRL's trainers override it"),
    Private(TRAINER, "_tr_loss", "the loss since the last log is part of a snapshot", attribute=True),
    Private(TRAINER, "_total_loss_scalar", "part of a snapshot", attribute=True),
    Private(TRAINER, "_globalstep_last_logged", "part of a snapshot", attribute=True),
    Private(
        TRAINER, "_initial_global_step", "the mean loss of a resumed run is over all steps", attribute=True
    ),
    Private(GRPO, "_metrics", "TRL's figures since the last log are part of a snapshot", attribute=True),
    Private(GRPO, "_step", "counts micro-steps, by which completions are generated anew", attribute=True),
    Private(GRPO, "_buffered_inputs", "completions that are still trained on", attribute=True),
    Private(GRPO, "_generate_and_score_completions", "every answer is drawn by seed, step, row and place"),
    Private(GRPO, "_calculate_rewards", "parts of the reward are figures of their own"),
    Private(GRPO, "_generate_single_turn", "vLLM draws every answer by a seed of its own"),
    Private(AGENT, "_monitor_workers", "one that writes a checkpoint is not ended after torch's 30 seconds"),
    Private(AGENT, "_rendezvous", "processes that are started again have a store of their own"),
    *(
        Private(MEETING, name, "what torch keeps of an attempt for the next one", attribute=True)
        for name in ("_shared_tcp_store_server", "_bootstrap_store_info")
    ),
    Private(AGENT, "_shutdown", "one that can save nothing any more does not hold a job that is stopped"),
    Private(VLLM, "_iter_named_params", "the lab's weights have other names in vLLM"),
    Private(DPO, "_compute_loss", "the reference log-probabilities come from the cache"),
    Private(DPO, "_precompute_ref_logps", "they were computed before, in a phase of their own"),
    Private(DPO, "_prepare_dataset", "rows are rendered, tokenised and cached by the lab"),
    Private("trl.RewardTrainer", "_prepare_dataset", "the same"),
    Private("transformers.PreTrainedConfig", "_attn_implementation", "the kernel in use; there is no getter"),
    *(
        Private(MODEL, name, ADDING)
        for name in (
            "_init_weights",
            "_no_split_modules",
            "_skip_keys_device_placement",
            "_supports_attention_backend",
            "_supports_flash_attn",
            "_supports_flex_attn",
            "_supports_sdpa",
            "_can_compile_fullgraph",
            "_can_record_outputs",
            "_tied_weights_keys",
            "_tp_plan",
        )
    ),
    Private(
        "trl.trainer.utils", "_use_triton", "its fused log-probabilities need a GPU's Triton", attribute=True
    ),
    Private(
        "accelerate.state.AcceleratorState", "_reset_state", "what it would do is asked before it is done"
    ),
)

ROLLOUT_COUNTER = "_step"
# of the trainers, by name; those that a trainer does not have are left out
COUNTERS = (
    "_globalstep_last_logged",
    "_total_loss_scalar",
    "_total_train_tokens",
    ROLLOUT_COUNTER,
    "_current_train_step_time",
)


def require(private: Private) -> Any:
    """Returns what a private name stands for, None for one that only instances have.

    Raises:
        LabError: when its library has it no more.
    """
    module, _, cls = private.owner.rpartition(".")
    if private.attribute:
        return None
    owner = getattr(importlib.import_module(module), cls)
    if not hasattr(owner, private.name):
        library = module.split(".")[0]
        version = importlib.metadata.version(library)
        raise LabError(
            f"{private.owner} of {library} {version} has no `{private.name}`",
            remedy=f"install the version that the lab was made for: {library} as in requirements.lock",
            exit_code=1,
        )
    return getattr(owner, private.name)


def check(owner: str) -> None:
    """Looks whether a class has all private names that the lab takes from it.

    Raises:
        LabError: when its library has one of them no more.
    """
    for private in PRIVATE:
        if private.owner == owner:
            require(private)


def counters(trainer: Any) -> dict[str, Any]:
    """Returns the counters of a trainer by name."""
    return {name: getattr(trainer, name) for name in COUNTERS if hasattr(trainer, name)}


def set_counters(trainer: Any, values: dict[str, Any]) -> None:
    """Sets counters that `counters` returned."""
    for name, value in values.items():
        setattr(trainer, name, value)


def loss_since_log(trainer: Any) -> torch.Tensor:
    """Returns a copy of the sum of the losses since the last log, a scalar on the device."""
    summed: torch.Tensor = trainer._tr_loss
    return summed.clone()


def set_loss_since_log(trainer: Any, loss: torch.Tensor) -> None:
    """Sets the sum of the losses since the last log."""
    trainer._tr_loss = loss.clone()


def average_loss_over_all_steps(trainer: Any) -> None:
    """Lets the mean loss of a resumed run be over all its steps, as its sum is."""
    trainer._initial_global_step = 0


def train_metrics(trainer: Any) -> dict[str, list[float]]:
    """Returns TRL's figures since the last log, which are averaged then; empty for transformers' trainers."""
    figures: dict[str, list[float]] = getattr(trainer, "_metrics", {}).get("train", {})
    return figures


def pop_eval_metrics(trainer: Any) -> dict[str, float]:
    """Returns TRL's figures of the batch that was just evaluated, and removes them: TRL would average over
    batches of any size.
    """
    noted = getattr(trainer, "_metrics", {}).get("eval", {})
    return {name: noted.pop(name)[-1] for name in list(noted) if name != "num_tokens"}


def unspent_rollouts(trainer: Any) -> list[dict[str, Any]] | None:
    """Returns the completions that the next update trains on, None where they will be generated.

    They are replaced as a whole, never changed, so no copy is needed.
    """
    if getattr(trainer, "_buffered_inputs", None) is None:
        return None
    return None if trainer.rollout_is_spent else trainer._buffered_inputs


def set_rollouts(trainer: Any, rollouts: list[dict[str, Any]] | None) -> None:
    """Sets the completions that the next update trains on; nothing for trainers that generate none."""
    if hasattr(trainer, "_buffered_inputs"):
        trainer._buffered_inputs = rollouts


def start_rollouts_at(trainer: Any, global_step: int) -> None:
    """Lets the next update generate completions; nothing for trainers that generate none."""
    if hasattr(trainer, ROLLOUT_COUNTER):
        trainer._step = global_step * trainer.args.gradient_accumulation_steps


@contextmanager
def no_reference_model() -> Iterator[None]:
    """Keeps TRL's preference trainer from loading a reference that it would free unused: under FSDP it does
    so even where the reference log-probabilities are computed already. Nor does it read all weights for a
    hash, by which it would find again what the lab finds itself.
    """
    from trl.trainer import dpo_trainer

    module: Any = dpo_trainer
    loads, hashes = module.create_model_from_path, module.hash_module
    module.create_model_from_path = lambda *args, **kwargs: None
    module.hash_module = lambda model: ""
    try:
        yield
    finally:
        module.create_model_from_path, module.hash_module = loads, hashes


def save_checkpoint(trainer: Any) -> None:
    """Saves a checkpoint of the state that a trainer is in."""
    trainer._save_checkpoint(trainer.model, None)


def load_checkpoint(trainer: Any, folder: str) -> None:
    """Loads weights and random state of a checkpoint outside of training."""
    if trainer.is_deepspeed_enabled:  # whose model validates and is saved only under its engine
        trainer._prepare_for_training(trainer.args.max_steps, trainer.get_train_dataloader(), folder)
    else:
        trainer._load_from_checkpoint(folder)
    trainer._load_rng_state(folder)


def accelerate_shares_layers(device: str, size: int) -> bool:
    """Returns whether accelerate takes processes that share layers on a device.

    Args:
        device: "cpu", "cuda" ...
        size: processes that share a layer.
    """
    from accelerate import Accelerator, ParallelismConfig
    from accelerate.state import AcceleratorState

    try:
        Accelerator(cpu=device == "cpu", parallelism_config=ParallelismConfig(tp_size=size))
    except ValueError:
        return False
    finally:
        AcceleratorState._reset_state()
    return True


def engine_that_accelerate_takes(device: str) -> str:
    """Returns what accelerate really does on a device when it is asked to shard: "fsdp2", or "ddp" where it
    falls back without a word.
    """
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    processes = PartialState()
    before = processes.distributed_type  # it would keep the answer, and be wrong when it is asked again
    try:
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
        asked = Accelerator(cpu=device == "cpu", fsdp_plugin=plugin)
        return "fsdp2" if asked.distributed_type == DistributedType.FSDP else "ddp"
    finally:
        AcceleratorState._reset_state()
        processes.distributed_type = before
