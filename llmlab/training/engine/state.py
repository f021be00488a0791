"""What transformers forgets between checkpoints, so that a resumed run equals one that was never stopped.

A `TrainerSnapshot` is a run between two updates: random generators, the loss summed since the last log, TRL's
figures since then, counters, the completions that GRPO and PPO still train on, and the trainer's other
`Stateful` parts. One is taken after every update; a run that is stopped in the middle of the next one returns
to it and is saved there. `save_state` and `load_state` write it into a checkpoint and read it from one.
"""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from llmlab.files import read_object
from llmlab.training import compat
from llmlab.training.callbacks.patience import PATIENCE
from llmlab.training.engine.optimizer_state import as_part_of, whole

if TYPE_CHECKING:
    from llmlab.training.trainers.base import LabTrainerMixin

STATE, ROLLOUTS = "lab_state", "rollouts"


class Stateful(Protocol):
    """Something beside weights and optimizer that a run must not lose: tensors by name."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Returns its state."""

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> object:
        """Takes a state that `state_dict` returned."""


@dataclass(frozen=True)
class TrainerSnapshot:
    """A run between two updates.

    Attributes:
        generators: states of the random generators of Python, numpy and torch.
        counters: of the trainer.
        loss: summed since the last log.
        metrics: TRL's, since the last log.
        tokens: seen so far.
        flops: counted since they were last stored.
        rollouts: completions that are still trained on.
        eval_due: whether an evaluation at this step was not finished.
        parts: states of the trainer's `Stateful` parts.
    """

    generators: dict[str, Any]
    counters: dict[str, Any]
    loss: torch.Tensor
    metrics: dict[str, list[float]]
    tokens: Any
    flops: int
    rollouts: list[dict[str, Any]] | None
    eval_due: bool
    parts: dict[str, dict[str, torch.Tensor]]


def take_snapshot(trainer: LabTrainerMixin, *, eval_due: bool = False) -> TrainerSnapshot:
    """Returns the state that a trainer is in."""
    generators = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state_all()
    metrics = compat.train_metrics(trainer)
    return TrainerSnapshot(
        generators=generators,
        counters=compat.counters(trainer),
        loss=compat.loss_since_log(trainer),
        metrics=copy.deepcopy({name: list(values) for name, values in metrics.items()}),
        tokens=copy.copy(trainer.state.num_input_tokens_seen),
        flops=trainer.current_flos,
        rollouts=compat.unspent_rollouts(trainer),
        eval_due=eval_due,
        parts={
            name: {key: value.clone() for key, value in part.state_dict().items()}
            for name, part in trainer.stateful_parts().items()
        },
    )


def restore_snapshot(trainer: LabTrainerMixin, snapshot: TrainerSnapshot) -> None:
    """Puts a trainer into an earlier state; its weights and optimizer are there already."""
    random.setstate(snapshot.generators["python"])
    np.random.set_state(snapshot.generators["numpy"])
    torch.set_rng_state(snapshot.generators["torch"])
    if "cuda" in snapshot.generators:
        torch.cuda.set_rng_state_all(snapshot.generators["cuda"])
    _restore(trainer, snapshot.counters, snapshot.loss, snapshot.metrics, snapshot.rollouts)
    trainer.state.num_input_tokens_seen = snapshot.tokens
    trainer.current_flos = snapshot.flops
    for name, part in trainer.stateful_parts().items():
        part.load_state_dict(snapshot.parts[name])


def save_state(trainer: LabTrainerMixin, snapshot: TrainerSnapshot, folder: Path) -> None:
    """Writes all of a snapshot that transformers does not. Every process writes its own; parts, which are the
    same in all, are written by the first one.
    """
    parts = {
        name: {key: whole(value).contiguous() for key, value in tensors.items()}
        for name, tensors in snapshot.parts.items()
    }  # first: a process that then fails to write keeps no other one waiting
    suffix = _suffix(trainer)
    state: dict[str, object] = {
        "counters": snapshot.counters,
        "loss": snapshot.loss.item(),
        "figures": snapshot.metrics,
        "eval_due": snapshot.eval_due,
        "micro_batch": trainer.args.per_device_train_batch_size,
    }
    if snapshot.rollouts is not None:
        tensors: dict[str, torch.Tensor] = {}
        layout: list[dict[str, object]] = []
        for index, rollout in enumerate(snapshot.rollouts):
            plain = {name: value for name, value in rollout.items() if not torch.is_tensor(value)}
            layout.append({name: value for name, value in plain.items() if _is_plain(value)})
            tensors |= {
                f"{index}.{name}": value.detach().cpu().clone()
                for name, value in rollout.items()
                if name not in plain
            }
        save_file(tensors, folder / f"{ROLLOUTS}{suffix}.safetensors")
        state["rollouts"] = layout
    (folder / f"{STATE}{suffix}.json").write_text(json.dumps(state))
    if trainer.is_world_process_zero():
        for name, together in parts.items():
            save_file(together, folder / f"{name}.safetensors")


def load_parts(trainer: LabTrainerMixin, folder: Path) -> None:
    """Puts the states of a checkpoint into the trainer's `Stateful` parts.

    Raises:
        OSError, ValueError, KeyError, RuntimeError: when the files hold something else.
    """
    for name, part in trainer.stateful_parts().items():
        if name == PATIENCE and (
            not (folder / f"{name}.safetensors").exists()  # asked for since the checkpoint
            or (trainer.services and trainer.services.best_begins_anew)
        ):
            continue
        saved, present = load_file(folder / f"{name}.safetensors"), part.state_dict()
        part.load_state_dict(
            {
                key: as_part_of(present[key], value) if key in present else value
                for key, value in saved.items()
            }
        )


def load_state(trainer: LabTrainerMixin, folder: Path) -> bool:
    """Puts what `save_state` wrote into a trainer, without its parts; returns whether an evaluation is due.

    Raises:
        OSError, ValueError, KeyError, IndexError: when the files hold something else.
    """
    suffix = _suffix(trainer)
    files = sorted(folder.glob(f"{STATE}*.json"))
    if not files:  # a checkpoint of an older version
        return False
    own = folder / f"{STATE}{suffix}.json"
    same_processes = own in files and len(files) == trainer.args.world_size
    state = read_object(own if same_processes else files[0])
    if unknown := sorted(set(state["counters"]) - set(compat.COUNTERS)):
        raise ValueError(f"{STATE} holds an unknown counter `{unknown[0][:60]}`")
    if not same_processes:  # the mean loss of all of them, and completions are generated anew
        others = [read_object(file) for file in files]
        state["loss"] = sum(other["loss"] for other in others) / len(others)
        state["micro_batch"] = None
    rollouts = None
    if state["micro_batch"] != trainer.args.per_device_train_batch_size:
        state["counters"].pop(compat.ROLLOUT_COUNTER, None)  # changed on purpose: generated anew
        compat.start_rollouts_at(trainer, trainer.state.global_step)
    elif "rollouts" in state:
        rollouts = [dict(rollout) for rollout in state["rollouts"]]
        for name, value in load_file(folder / f"{ROLLOUTS}{suffix}.safetensors").items():
            index, key = name.split(".", 1)
            rollouts[int(index)][key] = value.to(trainer.args.device)
    loss = torch.tensor(float(state["loss"]), device=trainer.args.device)  # JSON may hold a whole number
    _restore(trainer, state["counters"], loss, state["figures"], rollouts)
    compat.average_loss_over_all_steps(trainer)
    return bool(state["eval_due"])


def _restore(
    trainer: LabTrainerMixin,
    counters: dict[str, Any],
    loss: torch.Tensor,
    metrics: dict[str, list[float]],
    rollouts: list[dict[str, Any]] | None,
) -> None:
    compat.set_counters(trainer, counters)
    compat.set_loss_since_log(trainer, loss)
    current = compat.train_metrics(trainer)
    current.clear()
    for name, values in metrics.items():
        current[name] = list(values)
    compat.set_rollouts(trainer, rollouts)


def _suffix(trainer: LabTrainerMixin) -> str:
    return f"_{trainer.args.process_index}" if trainer.args.world_size > 1 else ""


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
