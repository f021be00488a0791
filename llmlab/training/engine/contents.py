"""What a checkpoint must hold to be resumed from, and what is said where it does not.

A manifest says that files are those that were written; whoever wrote it may have listed anything. `fault_in`
looks at the files before anything is loaded, `restoring` turns what fails while they are loaded into one
message. Both name the next older checkpoint.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from llmlab.errors import LabError
from llmlab.files import read_object
from llmlab.models.headers import whole
from llmlab.readable import shortened, type_words
from llmlab.runs.checkpoint import Checkpoint
from llmlab.runs.folder import RunFolder
from llmlab.runs.manifest import PICKLES

TRAINER_STATE, LAB_STATE, DATA_POSITION = "trainer_state.json", "lab_state*.json", "data_position.json"
# what torch.save writes for a run that goes on: its restricted loader makes tensors and numbers of it, and
# calls nothing
TORCH_FILES = re.compile(r"(optimizer|scheduler|scaler|rng_state(_\d+)?)\.(pt|pth)")
# the same, of a run whose weights lie in parts; refused without FSDP
FSDP_FILES = ("optimizer.bin", "pytorch_model_fsdp.bin")
# states of optimizers that have the shape of their weight
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer", "hessian")


def refuse_damaged(checkpoint: Checkpoint) -> None:
    """Looks at the files of a checkpoint whose manifest fits, before anything is loaded.

    Raises:
        LabError: when one of them cannot be what a resume reads.
    """
    if fault := fault_in(checkpoint):
        raise damaged(checkpoint, fault)


def damaged(checkpoint: Checkpoint, fault: str) -> LabError:
    """Returns the error of a checkpoint that cannot be resumed from; it names the next older one."""
    older = RunFolder(checkpoint.run).latest_valid_checkpoint(up_to=checkpoint.step - 1)[0]
    if older:
        remedy = f"take the one before it: `llmlab run {checkpoint.run} --resume {older}`"
    else:
        remedy = "no older checkpoint is there: --resume never starts a new run in a new folder"
    return LabError(f"cannot be resumed from: {fault}", where=str(checkpoint), remedy=remedy)


def fault_in(checkpoint: Checkpoint) -> str:
    """Returns which file of a checkpoint cannot be what it should be, and why; "" where none is found."""
    looks: list[tuple[str, Callable[[Any], str]]] = [
        (TRAINER_STATE, lambda state: _trainer_state_fault(state, checkpoint.step)),
        (LAB_STATE, _lab_state_fault),
        (DATA_POSITION, lambda place: _position_fault(place, checkpoint.step)),
        ("config.json", lambda about: ""),
        ("adapter_config.json", lambda about: ""),
    ]
    if not (checkpoint.path / TRAINER_STATE).is_file():
        return f"{TRAINER_STATE} is missing"
    for pattern, look in looks:
        for file in sorted(checkpoint.path.glob(pattern)):
            try:
                fault = look(read_object(file))
            except (OSError, ValueError) as error:
                fault = str(getattr(error, "strerror", None) or error)
            if fault:
                return f"{file.name} {fault}"
    for file in sorted(checkpoint.path.iterdir()):
        if file.suffix == ".safetensors" and not whole(file):
            return f"{file.name} is truncated or damaged"
        if TORCH_FILES.fullmatch(file.name):
            if not zipfile.is_zipfile(file):  # what a bare pickle is, too
                return f"{file.name} is not a file that torch writes; it was not opened"
        elif file.suffix in PICKLES and file.name not in FSDP_FILES:
            return f"{file.name} is a pickle, which can run code when it is read; it was not opened"
    return ""


@contextmanager
def restoring(checkpoint: str) -> Iterator[None]:
    """Turns what fails while a checkpoint is put into a trainer into one message.

    Raises:
        LabError: with the reason, and the next older checkpoint.
    """
    try:
        yield
    except (LabError, MemoryError):
        raise
    except Exception as error:  # the libraries raise many kinds where files are not what they were
        if "out of memory" in str(error).lower():
            raise
        snapshot = Checkpoint.at(Path(checkpoint))
        if snapshot is None:
            raise
        raise damaged(snapshot, _reason(error)) from None


def check_scheduler(state: Any, scheduler: Any, *, groups: bool) -> None:
    """Looks at the state that will become the attributes of a scheduler.

    Args:
        state: as read from a file.
        scheduler: that will take it.
        groups: whether it must be of as many parameter groups.

    Raises:
        ValueError: when it would replace a method, or holds a value of another type.
    """
    if not isinstance(state, dict):
        raise ValueError("scheduler.pt has no state of a scheduler")
    for name, value in state.items():
        own = vars(scheduler).get(name)
        method = callable(getattr(type(scheduler), str(name), None))
        if not isinstance(name, str) or method or not (own is None or _alike(value, own)):
            raise ValueError(f"scheduler.pt holds under `{shortened(str(name), 60)}` {type_words(value)}")
        if groups and isinstance(own, list) and len(value) != len(own):
            raise ValueError(f"scheduler.pt holds {len(value)} of `{name}`, not {len(own)}")


def check_weights_are_there(model: Any, saved: dict[str, list[int]]) -> None:
    """Looks whether a file had every weight that is trained: transformers and peft go on with what they have
    where one lacks.

    Args:
        model: that took the weights.
        saved: names and shapes of what was in the file.

    Raises:
        ValueError: with the first weight that was not.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(id(parameter), []).append(name)
    for spellings in names.values():
        # peft saves an adapter's weights without its name: lora_A.default.weight as lora_A.weight
        if not any(
            name in saved or re.sub(r"\.(modules_to_save\.)?default(?=\.|$)", "", name) in saved
            for name in spellings
        ):
            raise ValueError(f"the weights of `{shortened(spellings[0], 100)}` are missing")


def check_optimizer(optimizer: Any) -> None:
    """Looks at the state that an optimizer took from a file.

    Raises:
        ValueError: when it is of other weights than those that are trained.
    """
    for group in optimizer.param_groups:
        if not isinstance(group.get("lr"), (int, float)) and not hasattr(group.get("lr"), "item"):
            raise ValueError("optimizer.pt holds a learning rate that is not a number")
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if not isinstance(state, dict):
                raise ValueError("optimizer.pt has no state of an optimizer")
            for name in MOMENTS:
                if name in state and getattr(state[name], "shape", None) != parameter.shape:
                    raise ValueError(f"`{name}` in optimizer.pt does not have the shape of its weight")


def _reason(error: Exception) -> str:
    text = str(error)
    if isinstance(error, pickle.UnpicklingError):
        named = re.search(r"(?:GLOBAL|class|function|type) ([\w.]*\w\.\w+)", text)
        code = (
            f"holds code ({named[1]}) that would run when it is read; none of it was run"
            if named
            else "is damaged"
        )
        return f"a file that torch.save writes {code}"
    if isinstance(error, KeyError):
        return f"an entry {shortened(text, 100)} is missing"
    return shortened((text.strip().splitlines() or [type(error).__name__])[0], 200)


def _alike(value: object, other: object) -> bool:
    """Returns whether a value has the type of another; numbers are alike,
    lists where they hold what is alike.
    """
    if isinstance(other, (list, tuple)):
        numbers = bool(other) and _number(other[0])
        return isinstance(value, (list, tuple)) and (not numbers or all(map(_number, value)))
    return _number(value) if _number(other) else isinstance(value, type(other))


def _number(value: object) -> bool:
    return isinstance(value, float) or (
        isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62
    )


def _count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and _number(value) and value >= 0


def _trainer_state_fault(state: dict[str, Any], step: int) -> str:
    from transformers.trainer_callback import TrainerState

    if unknown := sorted(set(state) - set(TrainerState.__dataclass_fields__)):
        return f"has an unknown entry `{shortened(unknown[0], 60)}`"
    if state.get("global_step") != step:
        return f"is of step {shortened(repr(state.get('global_step')), 60)}"
    numbers = (
        "logging_steps",
        "eval_steps",
        "save_steps",
        "train_batch_size",
        "num_input_tokens_seen",
        "total_flos",
        "epoch",
    )
    for name in numbers:
        if name in state and not _number(state[name]):
            return f"holds under `{name}` {shortened(repr(state[name]), 60)}, not a number"
    if not _count(state.get("train_batch_size")):
        return "does not say the batch size"
    lines = state.get("log_history")
    if not isinstance(lines, list) or not all(isinstance(line, dict) for line in lines):
        return "has no list of figures under `log_history`"
    best, callbacks = state.get("best_model_checkpoint"), state.get("stateful_callbacks")
    if not isinstance(best, str | None) or not isinstance(callbacks, dict | None):
        return "has entries of a wrong type"
    return ""


def _lab_state_fault(state: dict[str, Any]) -> str:
    counters, figures, rollouts = state.get("counters"), state.get("figures"), state.get("rollouts", [])
    if not isinstance(counters, dict) or not all(_number(value) for value in counters.values()):
        return "has no counters"
    if not _number(state.get("loss")) or not isinstance(state.get("eval_due"), bool):
        return "lacks the loss, or whether a validation is due"
    if not isinstance(figures, dict) or not all(
        isinstance(v, list) and all(map(_figure, v)) for v in figures.values()
    ):
        return "has no lists of figures"
    if not (state.get("micro_batch") is None or _count(state["micro_batch"])) or "micro_batch" not in state:
        return "does not say the micro-batch"
    if not isinstance(rollouts, list) or not all(isinstance(part, dict) for part in rollouts):
        return "has no answers under `rollouts`"
    return ""


def _figure(value: object) -> bool:
    return value is None or isinstance(value, (int, float))


def _position_fault(place: dict[str, Any], step: int) -> str:
    stream, rows_per_step = place.get("stream"), place.get("rows_per_step")
    if not _count(rows_per_step) or not isinstance(stream, dict):
        return "has no position in a stream"
    lanes = stream.get("lanes", [stream])  # an older version had one lane
    if not isinstance(lanes, list) or not lanes or not _is_lane(stream.get("turn", 0), len(lanes)):
        return "has no positions in a stream"
    for number, lane in enumerate(lanes):
        if not isinstance(lane, dict) or not all(_count(lane.get(name)) for name in ("rows", "inside")):
            return "has no position in a stream"
        left_out = lane.get("left_out", {})
        if not isinstance(left_out, dict) or not all(map(_count, left_out.values())):
            return "does not say what was left out of the stream"
        if lane.get("lane", 0) != number or lane["inside"] > lane["rows"]:
            return "has a position in the stream that is not that of its step"
        if fault := _window_fault(lane.get("windows", "missing")):
            return fault
    if sum(lane["rows"] for lane in lanes) != step * rows_per_step:
        return "has a position in the stream that is not that of its step"
    return ""


def _window_fault(windows: object) -> str:
    if windows is None:
        return ""
    if not isinstance(windows, dict):
        return "has no position in a stream"
    readers, done = windows.get("readers"), windows.get("done")
    if not all(
        _count(value)
        for value in (windows.get("position"), windows.get("number", 0), windows.get("rounds", 0))
    ):
        return "has no position in a mixture"
    if not isinstance(done, list) or not all(map(_count, done)):
        return "has no position in a mixture"
    if not isinstance(readers, list) or not all(map(_is_reader, readers)):
        return "has no positions in its sources"
    return ""


def _is_lane(value: object, lanes: int) -> bool:
    return _count(value) and value < lanes


def _is_reader(place: object) -> bool:
    if not isinstance(place, dict):
        return False
    mark = place.get("mark")
    return (
        all(_count(place.get(name)) for name in ("passes", "number"))
        and isinstance(mark, dict)
        and _count(mark.get("number"))
        and isinstance(mark.get("library", ""), dict | None)
    )
