"""Where a run begins: a new folder or an old one, which checkpoint it goes on from, and that nobody else is
in it.

All of it is decided before anything is loaded, computed or written. A checkpoint is compared with what it
says of itself (`run_config.json` in it), not with the run's record, which may tell of options that no
checkpoint has seen yet.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from llmlab.config import load_config
from llmlab.config.sources import mixture_name
from llmlab.config.training import TrainingConfig
from llmlab.data.sources import contents_hash
from llmlab.errors import LabError
from llmlab.files import read_object
from llmlab.models.identity import known_weights
from llmlab.runs.folder import HOLDER, LOCK, RECORD, RUN_CONFIG, RUNS, RunFolder, read_json, run_name
from llmlab.runs.manifest import verify
from llmlab.training.engine.contents import FSDP_FILES, refuse_damaged
from llmlab.training.engine.environment import processes

# of another model: weights and optimizer of a checkpoint would not fit, or would be of something else
OF_THE_MODEL = {
    "kind",
    "model",
    "policy_checkpoint",
    "init_from",
    "adapter",
    "lora_r",
    "lora_alpha",
    "lora_targets",
    "load_in",
    "critic",
    "backbone",
    "gating_num_heads",
    "gating_size",
    "gating_layer_norm",
    "rm_bias",
}
SILENT = {
    "name",
    "output_dir",
    "schema_version",
    "save_every",
    "save_total_limit",
    "save_best_only",
    "log_every",
    "eval_every",
    "eval_rows",
    "sample_tokens",
    "report_to",
    "dataloader_workers",
    "max_skipped_steps",
    "out_of_memory",
    "device",
}
WHAT_IT_MEANS = {
    "max_steps": "the schedule is that of the new length",
    "learning_rate": "the schedule goes on with it",
    "scheduler": "the rate follows it from this step on",
    "warmup_steps": "the rate follows it from this step on",
    "optimizer": "its state starts anew; weights, data position and step are kept",
    "datasets": "rows are counted on by number, so which ones come is not what it was",
    "epochs": "the schedule is that of the new length",
    "seed": "rows come in another order, so some come twice and some not at all",
}
STARTING_POINTS = (
    "policy_checkpoint",
    "backbone",
    "init_from",
    "reference_checkpoint",
)  # options that name a model
IN_PARTS = (
    "pytorch_model_fsdp_",
    "optimizer_",
    "global_step",
)  # folders of a checkpoint that several processes wrote


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        path: folder of the run.
        checkpoint: to go on from; None at step 0.
        changed: options that are others than those of the checkpoint; "processes" where their number is.
        leaves: a step; what the folder holds of later ones belongs to a branch that is left. None where
            nothing does.
        reads: what the run depends on beside its options, as `what_it_reads` returns it.
    """

    path: Path
    checkpoint: Path | None = None
    changed: frozenset[str] = frozenset()
    leaves: int | None = None
    reads: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """The step it goes on from, -1 where it begins."""
        return int(self.checkpoint.name.split("-")[1]) if self.checkpoint else -1


@contextmanager
def begin(config: TrainingConfig, resume: str, console: Console) -> Iterator[Start]:
    """Yields where a run begins, and holds its folder meanwhile.

    A folder that is taken (a finished run, results without a whole checkpoint, something else) is left as it
    is: then it is the next of `RUN-2`, `RUN-3` ..., where the same config goes on if it was there before.

    Raises:
        LabError: when another process is in the folder; when the checkpoint is of another model, of other
            weights, or in parts for another number of processes; when none verifies where one was named.
    """
    reasons: list[tuple[Path, str]] = []
    for path in _folders(config, resume):
        if reason := _is_taken(path, config, resume):
            reasons.append((path, reason))
            continue
        with held(path):
            found = _examine(path, config, resume, console, first=not reasons)
            if isinstance(found, str):
                reasons.append((path, found))
                continue
            if reasons:
                console.print(
                    f"{reasons[0][0]} {reasons[0][1]}; this one goes to {path}",
                    highlight=False,
                    soft_wrap=True,
                )
            yield found
            return


def _folders(config: TrainingConfig, resume: str) -> Iterator[Path]:
    if resume not in ("auto", "never"):
        given = Path(resume)
        if resume in ("latest", "last", "newest") and not given.is_dir():
            raise LabError(
                f"`--resume {resume}` is not known",
                remedy="`--resume auto`, the default, takes the newest checkpoint",
            )
        if not given.is_dir():
            raise LabError(
                "there is no such checkpoint",
                where=resume,
                remedy="name a run or one of its checkpoints; auto takes the newest",
            )
        yield given.parent if given.name.startswith("checkpoint-") else given
        return
    first = (
        Path(config.output_dir) if config.output_dir else RUNS / (config.name or run_name(name_parts(config)))
    )
    if first.exists() and not first.is_dir():
        raise LabError("is a file, not a folder", where=str(first), remedy="choose another `output_dir`")
    yield first
    yield from (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))


def name_parts(config: TrainingConfig) -> list[str]:
    """Returns model, data and kind, for the name of a run."""
    if config.kind == "pretrain":
        shape = config.model
        model = Path(shape).stem if isinstance(shape, str) else f"{shape.d_model}x{shape.n_layers}"
    else:
        model = model_name(getattr(config, config.STARTS_FROM))
    return [model, mixture_name(config.datasets), config.kind]


def model_name(checkpoint: str) -> str:
    """Returns a short name of a checkpoint's model."""
    path = Path(checkpoint).resolve() if Path(checkpoint).exists() else Path(checkpoint)
    run = path.parent.name if path.name in ("best", "final") else path.stem
    return run.split("_")[0]  # the names of runs begin with the model


def _is_taken(path: Path, config: TrainingConfig, resume: str) -> str:
    """Returns why a folder cannot be this run's, as far as that is seen without holding it;
    "" where it can.
    """
    record = RunFolder(path).record
    if resume not in ("auto", "never"):
        return ""
    if damage := RunFolder(path).damage:
        return f"holds a run whose record is damaged ({RECORD} {damage})"
    if not record:
        return "" if RunFolder(path).is_blank() else "holds something else"
    if record.get("status") == "done" and not (resume == "auto" and _longer(record, config)):
        return "holds a finished run"
    return "holds a run" if resume == "never" else ""


def _examine(
    path: Path, config: TrainingConfig, resume: str, console: Console, *, first: bool
) -> Start | str:
    """Returns where the run begins in a folder that is held, or why it cannot be this run's."""
    folder = RunFolder(path)
    if resume not in ("auto", "never"):
        return _named(folder, Path(resume), config, console)
    record = folder.record
    if not record:
        return Start(path, reads=what_it_reads(config))
    same = not _differences(record.get("config"), as_run(config)) - SILENT
    if not first and not same:
        return "holds another run"
    back = record.get("back_to")  # a branch was being left when the run was killed
    checkpoint, passed = folder.newest_sealed(up_to=back if isinstance(back, int) else None)
    for reason in passed:
        console.print(f"passed over {reason}", style="yellow", highlight=False)
    if checkpoint:
        changed, reads = _changes(checkpoint, config, console)
        console.print(f"resuming from {checkpoint}")
        leaves = int(checkpoint.name.split("-")[1]) if changed - SILENT or isinstance(back, int) else None
        return Start(path, checkpoint, changed, leaves, reads)
    results = [f"{name}/" for name in ("best", "final") if (path / name).is_dir()]
    if folder.had_checkpoints():
        holds = " and ".join([*results, "metrics"])
        return f"holds {holds} of a run, but no checkpoint that is whole: they are left as they are"
    if results and not same:
        return (
            f"holds {' and '.join(results)} of a run with other options, and no checkpoint: they are left as"
            " they are"
        )
    console.print(
        f"{path} was stopped before its first checkpoint: it begins at step 0 again",
        style="yellow",
        highlight=False,
    )
    return Start(path, reads=what_it_reads(config))


def _named(folder: RunFolder, given: Path, config: TrainingConfig, console: Console) -> Start:
    """Returns the start from a checkpoint, or the newest of a run, that the person named."""
    if given.name.startswith("checkpoint-"):
        checkpoint: Path | None = given
        if fault := verify(given):
            raise LabError(
                f"cannot be resumed from: {fault}",
                where=str(given),
                remedy="name another checkpoint, or the run's folder",
            )
    else:
        checkpoint, passed = folder.newest_sealed()
        if checkpoint is None:
            raise LabError(
                "holds no sealed checkpoint to resume from", where=str(given), remedy="; ".join(passed)
            )
    changed, reads = _changes(checkpoint, config, console)
    return Start(folder.path, checkpoint, changed, int(checkpoint.name.split("-")[1]), reads)


def _longer(record: dict[str, Any], config: TrainingConfig) -> bool:
    """Returns whether a finished run is asked for again with more steps and nothing else that would make it
    another run.
    """
    changed = _differences(record.get("config"), as_run(config))
    steps = (record.get("config") or {}).get("max_steps")
    return (
        "max_steps" in changed
        and isinstance(steps, int)
        and config.max_steps > steps
        and changed <= {"max_steps", *SILENT}
    )


def as_run(config: TrainingConfig) -> dict[str, Any]:
    """Returns a config as JSON data that stays what it is: the model of a base training stands in it,
    links are followed.
    """
    data = config.to_json_dict()
    if config.kind == "pretrain" and isinstance(config.model, str):
        with suppress(LabError):  # said when it is loaded
            data["model"] = load_config(config.model).to_json_dict()
    for name in STARTING_POINTS:
        if (
            data.get(name) and Path(data[name]).is_symlink()
        ):  # which may lead elsewhere by the time this run goes on
            model = Path(data[name]).resolve()
            data[name] = str(model.relative_to(Path.cwd()) if model.is_relative_to(Path.cwd()) else model)
    return data


def what_it_reads(config: TrainingConfig) -> dict[str, Any]:
    """Returns what a run depends on beside its options: `processes`, hashes of `data` by name, of `weights`
    by option.

    Only what lies on this machine is hashed; what else is wrong with a name is said when it is loaded.
    """
    data = {}
    for source in [*config.datasets, *config.eval_datasets]:
        with suppress(LabError, OSError):
            if found := contents_hash(source):
                data[f"{source.name} {source.split}"] = found
    named = {option: name for option in STARTING_POINTS if (name := getattr(config, option, None))}
    weights = {option: found for option, name in named.items() if (found := known_weights(name))}
    return {"processes": processes(), "data": data, "weights": weights}


def _changes(
    checkpoint: Path, config: TrainingConfig, console: Console
) -> tuple[frozenset[str], dict[str, Any]]:
    """Returns the options that are others than those of a checkpoint, and what the run reads; says what each
    change means.

    Raises:
        LabError: when it is another model, one whose parts this number of processes cannot read, or one that
            is damaged.
    """
    folder = checkpoint.parent
    known = read_json(checkpoint / RUN_CONFIG) or {
        "config": RunFolder(folder).record.get("config")
    }  # of older versions
    before, now = _block(known, "config"), as_run(config)
    if before.get("kind", config.kind) != config.kind:
        raise LabError("holds a run of another kind", where=str(folder), remedy="choose another `output_dir`")
    _refuse_parts(checkpoint, known.get("processes"))
    refuse_damaged(checkpoint)
    reads = what_it_reads(config)
    other_weights = {
        name for name, found in reads["weights"].items() if _block(known, "weights").get(name, found) != found
    }
    changed = _differences(before, now)
    changed -= {
        name for name in STARTING_POINTS if name in _block(known, "weights") and name not in other_weights
    }
    if refused := sorted(changed & OF_THE_MODEL):
        name, was, is_now = _part(refused[0], before, now)
        raise LabError(
            f"`{name}` is {json.dumps(is_now)} and was {json.dumps(was)} so far: that is another model",
            where=str(folder),
            remedy="put it back, choose another `output_dir`, or add --resume never",
        )

    def say(text: str) -> None:
        console.print(text, style="yellow", highlight=False, soft_wrap=True)

    for name in sorted(other_weights - changed):
        what = f"{getattr(config, name)} does not hold the weights that this run began with"
        if config.kind not in ("pretrain", "sft", "reward") or getattr(config, "frozen_base", False):
            raise LabError(
                what,
                where=str(folder),
                remedy="put that model back, choose another `output_dir`, or add --resume never",
            )
        say(f"{what}: those of the checkpoint are used")
    for name in sorted(changed - SILENT):
        plain = not any(isinstance(values.get(name), (list, dict)) for values in (before, now))
        told = f"`{name}` {before.get(name)} -> {now.get(name)}" if plain else f"`{name}` has changed"
        say(f"{told}: {WHAT_IT_MEANS.get(name, 'used from here on')}")
    if "dataloader_workers" in changed and any(source.streaming for source in config.datasets):
        told = f"`dataloader_workers` {before.get('dataloader_workers')} -> {now.get('dataloader_workers')}"
        say(f"{told}: a stream comes in another order, so some rows come twice and some not at all")
    for name, found in reads["data"].items():
        if _block(known, "data").get(name, found) != found:
            say(f"{name.rsplit(' ', 1)[0]} has changed since the checkpoint: {WHAT_IT_MEANS['datasets']}")
    was, is_now = known.get("processes", reads["processes"]), reads["processes"]
    if was != is_now:
        changed.add("processes")
        rows = config.micro_batch_size * config.accumulation_steps
        say(
            f"{was} processes -> {is_now}: an update reads {is_now * rows} rows, rows are counted on by"
            " number"
        )
    return frozenset(changed), reads


def _block(known: dict[str, Any], name: str) -> dict[str, Any]:
    found = known.get(name)
    return found if isinstance(found, dict) else {}


def _refuse_parts(checkpoint: Path, written_by: Any) -> None:
    """Refuses a checkpoint whose weights several processes wrote in parts, where this job cannot put them
    together.

    Raises:
        LabError: with how many processes it takes.
    """
    parts = [
        path
        for path in checkpoint.iterdir()
        if path.name in FSDP_FILES or (path.is_dir() and path.name.startswith(IN_PARTS))
    ]
    together = (
        os.environ.get("ACCELERATE_USE_FSDP", os.environ.get("ACCELERATE_USE_DEEPSPEED", "")).lower()
        == "true"
    )
    if not parts or (together and processes() > 1):
        return
    count = (
        written_by
        if isinstance(written_by, int)
        else len(list(checkpoint.glob("rng_state_*.pth"))) or "as many"
    )
    raise LabError(
        f"was written in parts by {count} processes, which this one cannot put together",
        where=str(checkpoint),
        remedy=(
            f"start it as it was: `accelerate launch --num_processes {count}` with the same FSDP or DeepSpeed"
            " settings"
        ),
    )


def _part(name: str, before: dict[str, Any], now: dict[str, Any]) -> tuple[str, Any, Any]:
    """Returns a changed option, or the first changed part of a block, with its values before and now."""
    was, is_now = before.get(name), now.get(name)
    if isinstance(was, dict) and isinstance(is_now, dict):
        part = next((key for key in {**was, **is_now} if was.get(key) != is_now.get(key)), "")
        return f"{name}.{part}", was.get(part), is_now.get(part)
    return name, was, is_now


def _differences(before: Any, now: dict[str, Any]) -> set[str]:
    if not isinstance(before, dict):
        return set()
    changed = {name for name in now if name in before and before[name] != now[name]} - {"output_dir", "name"}
    return changed - (
        {"model"} if isinstance(before.get("model"), str) else set()
    )  # a file's name, from older versions


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Holds a run's folder while a run is in it; the system lets go of it when its holder dies.

    Raises:
        LabError: when another process is in it.
    """
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / LOCK, blocking=False)
        lock.acquire()
    except Timeout:
        try:
            who = read_object(path / HOLDER)
            holder = f"process {who['pid']} on {who['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            holder = "another process"
        raise LabError(
            f"{holder} is training in this folder",
            where=str(path),
            remedy="wait for it, stop it, or choose another `output_dir`",
        ) from None
    except OSError as error:
        raise LabError(
            f"cannot be made ({error.strerror})", where=str(path), remedy="choose another `output_dir`"
        ) from None
    try:
        with suppress(OSError):  # a full disk: the lock holds without a name
            (path / HOLDER).write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        (path / HOLDER).unlink(missing_ok=True)
        lock.release()
        if made and path.is_dir() and [file.name for file in path.iterdir()] == [LOCK]:
            (path / LOCK).unlink()
            path.rmdir()
