"""What the library forgets between checkpoints, so that a resumed run is the one that was never stopped.

A `Moment` is the run between two updates: random generators, the loss summed since the last log, TRL's
    figures since then, counters, and the answers that GRPO and PPO still train on. One is taken after every
    update; a run that is stopped in the middle of the next one goes back to it and is saved there.
"""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from llmlab.files import read_object

STATE, ROLLOUTS = "lab_state", "rollouts"
# of the trainer, by name; those that a trainer does not have are left out
COUNTERS = (
    "_globalstep_last_logged",
    "_total_loss_scalar",
    "_total_train_tokens",
    "_step",
    "_current_train_step_time",
)


class Stopped(Exception):
    """The person or the system asked for an end in the middle of an update, a validation or an answer."""


@dataclass
class Moment:
    """A run between two updates.

    Attributes:
        generators: states of the random generators of Python, numpy and torch.
        counters: of the trainer.
        loss: summed since the last log.
        figures: TRL's, since the last log.
        tokens: seen so far.
        flops: counted so far.
        rollouts: answers that are still trained on.
        eval_due: whether a validation stands at this step that was not finished.
        extras: what else a trainer keeps.
    """

    generators: dict[str, Any]
    counters: dict[str, Any]
    loss: float
    figures: dict[str, list[float]]
    tokens: Any
    flops: float
    rollouts: list[dict[str, Any]] | None
    eval_due: bool
    extras: Any


def take(trainer: Any, *, eval_due: bool = False) -> Moment:
    """Returns the moment a trainer is in."""
    generators = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        generators["cuda"] = torch.cuda.get_rng_state_all()
    return Moment(
        generators=generators,
        counters={name: getattr(trainer, name) for name in COUNTERS if hasattr(trainer, name)},
        loss=trainer._tr_loss.item(),
        figures=copy.deepcopy({name: list(values) for name, values in _figures(trainer).items()}),
        tokens=copy.copy(trainer.state.num_input_tokens_seen),
        flops=trainer.current_flos,
        rollouts=_rollouts(trainer),
        eval_due=eval_due,
        extras=trainer.extras(),
    )


def go_back(trainer: Any, moment: Moment) -> None:
    """Puts a trainer into a moment; its weights and optimizer are there already."""
    random.setstate(moment.generators["python"])
    np.random.set_state(moment.generators["numpy"])
    torch.set_rng_state(moment.generators["torch"])
    if "cuda" in moment.generators:
        torch.cuda.set_rng_state_all(moment.generators["cuda"])
    _put(trainer, moment.counters, moment.loss, moment.figures, moment.rollouts)
    trainer.state.num_input_tokens_seen = moment.tokens
    trainer.current_flos = moment.flops
    trainer.put_extras(moment.extras)


def write(trainer: Any, moment: Moment, folder: Path) -> None:
    """Writes what the library does not: everything but the generators and the weights.
    Every process writes its own.
    """
    rank = _suffix(trainer)
    state = {
        "counters": moment.counters,
        "loss": moment.loss,
        "figures": moment.figures,
        "eval_due": moment.eval_due,
        "micro_batch": trainer.args.per_device_train_batch_size,
    }
    if moment.rollouts is not None:
        tensors, layout = {}, []
        for index, part in enumerate(moment.rollouts):
            kept = {name: value for name, value in part.items() if not torch.is_tensor(value)}
            layout.append({name: value for name, value in kept.items() if _plain(value)})
            tensors |= {
                f"{index}.{name}": value.detach().cpu().clone()
                for name, value in part.items()
                if name not in kept
            }
        save_file(tensors, folder / f"{ROLLOUTS}{rank}.safetensors")
        state["rollouts"] = layout
    (folder / f"{STATE}{rank}.json").write_text(json.dumps(state))


def read(trainer: Any, folder: Path) -> bool:
    """Puts what `write` wrote into a trainer; returns whether a validation is still due.

    Raises:
        OSError, ValueError, KeyError, IndexError: when the files hold something else.
    """
    rank = _suffix(trainer)
    files = sorted(folder.glob(f"{STATE}*.json"))
    if not files:  # a checkpoint of an older version
        return False
    own = folder / f"{STATE}{rank}.json"
    same = own in files and len(files) == trainer.args.world_size
    state = read_object(own if same else files[0])
    if unknown := sorted(set(state["counters"]) - set(COUNTERS)):
        raise ValueError(f"{STATE} holds an unknown counter `{unknown[0][:60]}`")
    if not same:  # of another number of processes: their mean loss, and answers are generated anew
        others = [read_object(file) for file in files]
        state["loss"] = sum(other["loss"] for other in others) / len(others)
        state["micro_batch"] = None
    rollouts = None
    if (
        state["micro_batch"] != trainer.args.per_device_train_batch_size
    ):  # changed on purpose: answers are generated anew
        state["counters"].pop("_step", None)
        if hasattr(trainer, "_step"):
            trainer._step = trainer.state.global_step * trainer.args.gradient_accumulation_steps
    elif "rollouts" in state:
        rollouts = [dict(part) for part in state["rollouts"]]
        for name, value in load_file(folder / f"{ROLLOUTS}{rank}.safetensors").items():
            index, key = name.split(".", 1)
            rollouts[int(index)][key] = value.to(trainer.args.device)
    _put(trainer, state["counters"], state["loss"], state["figures"], rollouts)
    trainer._initial_global_step = 0  # the mean loss of the run is over all steps: its sum is
    return state["eval_due"]


def _put(
    trainer: Any, counters: dict[str, Any], loss: float, figures: dict[str, list[float]], rollouts: Any
) -> None:
    for name, value in counters.items():
        setattr(trainer, name, value)
    trainer._tr_loss = torch.tensor(loss, device=trainer.args.device)
    kept = _figures(trainer)
    kept.clear()
    for name, values in figures.items():
        kept[name] = list(values)
    if hasattr(trainer, "_buffered_inputs"):
        trainer._buffered_inputs = rollouts


def _figures(trainer: Any) -> dict[str, list[float]]:
    return getattr(trainer, "_metrics", {}).get("train", {})


def _rollouts(trainer: Any) -> list[dict[str, Any]] | None:
    """The answers that the next update goes on with; they are replaced as a whole, never changed,
    so no copy is needed.
    """
    if getattr(trainer, "_buffered_inputs", None) is None:
        return None
    return None if trainer.rollout_is_spent else trainer._buffered_inputs


def _suffix(trainer: Any) -> str:
    return f"_{trainer.args.process_index}" if trainer.args.world_size > 1 else ""


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
