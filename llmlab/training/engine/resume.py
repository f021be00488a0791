"""Where a run begins: in which folder, from which checkpoint, and what a changed option means for it.

All of it is decided before anything is loaded, computed or written. A checkpoint is compared with its own
`run_config.json`, not with the run's record, which may hold options that no checkpoint was trained with yet.
What a change means (`use`, `silent`, `refuse`) stands on the option's field.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmlab.config import PretrainConfig, apply_changes, load_config
from llmlab.config.options import OptionInfo
from llmlab.config.rollouts import RolloutConfig
from llmlab.config.training import TrainingConfig
from llmlab.data.local import contents_hash
from llmlab.errors import LabError
from llmlab.models.device import KERNELS, default_kernel, fastest_kernel
from llmlab.models.identity import known_weights
from llmlab.runs.checkpoint import Checkpoint
from llmlab.runs.folder import RUN_CONFIG, RunFolder, read_json
from llmlab.runs.lock import run_lock
from llmlab.runs.record import RECORD
from llmlab.training.engine.contents import FSDP_FILES, refuse_damaged
from llmlab.training.engine.distributed import processes
from llmlab.training.engine.evaluator import suite_read
from llmlab.training.engine.reporter import Reporter
from llmlab.training.engine.run_dir import candidate_folders

# options that name a model
STARTING_POINTS = ("policy_checkpoint", "backbone", "init_from", "reference_checkpoint")
LENGTH = {"max_steps", "epochs"}  # options that say how long a run is
# folders of a checkpoint that several processes wrote
IN_PARTS = ("pytorch_model_fsdp_", "optimizer_", "global_step")


@dataclass(frozen=True)
class ResumePlan:
    """Where a run begins.

    Attributes:
        run_dir: folder of the run.
        checkpoint: to resume from; None at step 0.
        changed: options that are others than those of the checkpoint; "processes" where their number is.
        leaves: a step; what the folder holds of later ones belongs to a branch that is left. None where
            nothing does.
        reads: what the run depends on beside its options, as `inputs_read` returns it.
    """

    run_dir: Path
    checkpoint: Checkpoint | None = None
    changed: frozenset[str] = frozenset()
    leaves: int | None = None
    reads: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """The step it resumes from, -1 where it begins."""
        return self.checkpoint.step if self.checkpoint else -1


@contextmanager
def resolve_resume(config: TrainingConfig, resume: str, reporter: Reporter) -> Iterator[ResumePlan]:
    """Yields where a run begins, and locks its folder meanwhile.

    A folder that is taken (a finished run, results without a whole checkpoint, something else) is left as it
    is: then it is the next of `RUN-2`, `RUN-3` ..., where the same config goes on if it was there before.

    Raises:
        LabError: when another process is in the folder; when the checkpoint is of another model, of other
            weights, or in parts for another number of processes; when none verifies where one was named.
    """
    reasons: list[tuple[Path, str]] = []
    for path in candidate_folders(config, resume):
        if reason := _why_taken(path, config, resume):
            reasons.append((path, reason))
            continue
        with run_lock(path):
            plan = _examine(path, config, resume, reporter, first=not reasons)
            if isinstance(plan, str):
                reasons.append((path, plan))
                continue
            if reasons:
                reporter.note(f"{reasons[0][0]} {reasons[0][1]}; this one goes to {path}")
            yield plan
            return


def _why_taken(path: Path, config: TrainingConfig, resume: str) -> str:
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
    path: Path, config: TrainingConfig, resume: str, reporter: Reporter, *, first: bool
) -> ResumePlan | str:
    """Returns where the run begins in a folder that is held, or why it cannot be this run's."""
    folder = RunFolder(path)
    if resume not in ("auto", "never"):
        return _named(folder, Path(resume), config, reporter)
    record = folder.record
    if not record:
        return ResumePlan(path, reads=inputs_read(config))
    silent = _options_with(config, "silent")
    same = not _differences(record.get("config"), as_run(config)) - silent
    if not first and not same:
        return "holds another run"
    back = record.get("back_to")  # a branch was being left when the run was killed
    checkpoint, faults = folder.latest_valid_checkpoint(up_to=back if isinstance(back, int) else None)
    for fault in faults:
        reporter.warning(f"skipping {fault}")
    if checkpoint:
        changed, reads = _changes(checkpoint, config, reporter)
        reporter.note(f"resuming from {checkpoint}")
        leaves = checkpoint.step if changed - silent or isinstance(back, int) else None
        return ResumePlan(path, checkpoint, changed, leaves, reads)
    results = [f"{name}/" for name in ("best", "final") if (path / name).is_dir()]
    if folder.had_checkpoints():
        holds = " and ".join([*results, "metrics"])
        return f"holds {holds} of a run, but no complete checkpoint: they are left as they are"
    if results and not same:
        return (
            f"holds {' and '.join(results)} of a run with other options, and no checkpoint: they are left as"
            " they are"
        )
    reporter.warning(f"{path} was stopped before its first checkpoint: it starts again at step 0")
    return ResumePlan(path, reads=inputs_read(config))


def finished_run(config: TrainingConfig) -> Path | None:
    """Returns the folder of a config where it holds a finished run, unless more steps are asked for than it
    has; else None.
    """
    folder = next(candidate_folders(config, "auto"))
    record = RunFolder(folder).record
    return folder if record.get("status") == "done" and not _longer(record, config) else None


def _named(
    folder: RunFolder, checkpoint_path: Path, config: TrainingConfig, reporter: Reporter
) -> ResumePlan:
    """Returns the start from a checkpoint, or the newest of a run, that the person named."""
    checkpoint = Checkpoint.at(checkpoint_path)
    if checkpoint:
        if fault := checkpoint.fault():
            raise LabError(
                f"cannot be resumed from: {fault}",
                where=str(checkpoint_path),
                remedy="name another checkpoint, or the run's folder",
            )
    else:
        checkpoint, faults = folder.latest_valid_checkpoint()
        if checkpoint is None:
            raise LabError(
                "holds no complete checkpoint to resume from",
                where=str(checkpoint_path),
                remedy="; ".join(faults),
            )
    changed, reads = _changes(checkpoint, config, reporter)
    return ResumePlan(folder.path, checkpoint, changed, checkpoint.step, reads)


def _longer(record: dict[str, Any], config: TrainingConfig) -> bool:
    """Returns whether a finished run is asked for again with more steps or epochs, and nothing else that
    would make it another run.
    """
    before, now = _block(record, "config"), as_run(config)
    changed = _differences(before, now) - _options_with(config, "silent")
    return (
        bool(changed)
        and all(_grows(before.get(name), now.get(name)) for name in changed & LENGTH)
        and (changed <= LENGTH)
    )


def _grows(before: object, now: object) -> bool:
    """Returns whether a length of a run is above what it was."""
    return isinstance(before, (int, float)) and isinstance(now, (int, float)) and now > before


def as_run(config: TrainingConfig) -> dict[str, Any]:
    """Returns a config as JSON data that stays what it is: the model of a base training stands in it,
    links are followed.
    """
    data = config.to_json_dict()
    if isinstance(config, PretrainConfig) and isinstance(config.model, str):
        with suppress(LabError):  # said when it is loaded
            data["model"] = load_config(config.model).to_json_dict()
    for name in STARTING_POINTS:
        if (
            data.get(name) and Path(data[name]).is_symlink()
        ):  # which may lead elsewhere by the time this run goes on
            model = Path(data[name]).resolve()
            data[name] = str(model.relative_to(Path.cwd()) if model.is_relative_to(Path.cwd()) else model)
    return data


def with_kernel_as_begun(config: TrainingConfig, plan: ResumePlan, device: str) -> TrainingConfig:
    """Returns the config with the attention kernel that a resumed run began with, where "auto" is another one
    now: the selftest of this device may have run since.
    """
    record = RunFolder(plan.run_dir).record
    begun = record.get("attention")
    here = config.attention_backend == "auto" and record.get("device") == device
    if plan.checkpoint is None or not here or begun not in (*KERNELS, "eager"):
        return config
    now, usual = fastest_kernel(config, device), default_kernel(device) or "sdpa"
    if begun == (now or usual) or (now is None and begun in ("sdpa", "eager")):
        return config
    return apply_changes(config, {"attention_backend": KERNELS[begun][1] if begun in KERNELS else begun})


def inputs_read(config: TrainingConfig) -> dict[str, Any]:
    """Returns what a run depends on beside its options: `processes`, hashes of `data` by name, of `weights`
    by option, of the tasks of its `suite`.

    Only what lies on this machine is hashed; what else is wrong with a name is said when it is loaded.
    """
    data = {}
    for source in [*config.datasets, *config.eval_datasets]:
        with suppress(LabError, OSError):
            if digest := contents_hash(source):
                data[f"{source.name} {source.split}"] = digest
    named = {option: name for option in STARTING_POINTS if (name := getattr(config, option, None))}
    weights = {option: digest for option, name in named.items() if (digest := known_weights(name))}
    return {"processes": processes(), "data": data, "weights": weights, "suite": suite_read(config)}


def _changes(
    checkpoint: Checkpoint, config: TrainingConfig, reporter: Reporter
) -> tuple[frozenset[str], dict[str, Any]]:
    """Returns the options that are others than those of a checkpoint, and what the run reads; says what each
    change means.

    Raises:
        LabError: when it is another model, one whose parts this number of processes cannot read, or one that
            is damaged.
    """
    folder = checkpoint.run
    recorded = read_json(checkpoint.path / RUN_CONFIG) or {
        "config": RunFolder(folder).record.get("config")
    }  # of older versions
    before, now = type(config).with_current_names(_block(recorded, "config")), as_run(config)
    if before.get("kind", config.kind) != config.kind:
        raise LabError("holds a run of another kind", where=str(folder), remedy="choose another `output_dir`")
    _refuse_parts(checkpoint.path, recorded.get("processes"))
    refuse_damaged(checkpoint)
    reads = inputs_read(config)
    other_weights = {
        name
        for name, digest in reads["weights"].items()
        if _block(recorded, "weights").get(name, digest) != digest
    }
    changed = _differences(before, now)
    changed -= {
        name for name in STARTING_POINTS if name in _block(recorded, "weights") and name not in other_weights
    }
    if refused := sorted(changed & _options_with(config, "refuse")):
        name, was, is_now = _part(refused[0], before, now)
        raise LabError(
            f"`{name}` is {json.dumps(is_now)} and was {json.dumps(was)} so far: that is another model",
            where=str(folder),
            remedy="restore it, choose another `output_dir`, or add --resume never",
        )

    for name in sorted(other_weights - changed):
        what = f"{getattr(config, name)} does not have the weights that this run started with"
        if config.kind not in ("pretrain", "sft", "reward") or getattr(config, "frozen_base", False):
            raise LabError(
                what,
                where=str(folder),
                remedy="restore that model, choose another `output_dir`, or add --resume never",
            )
        reporter.warning(f"{what}: those of the checkpoint are used")
    for name in sorted(changed - _options_with(config, "silent")):
        plain = not any(isinstance(values.get(name), (list, dict)) for values in (before, now))
        change = f"`{name}` {before.get(name)} -> {now.get(name)}" if plain else f"`{name}` has changed"
        reporter.warning(f"{change}: {_resume_note(config, name)}")
    streams = any(source.streaming for source in config.datasets)
    workers = {before.get("dataloader_workers"), config.dataloader_workers}
    if "dataloader_workers" in changed and workers != {0, 1} and streams:  # one process reads as none does
        change = f"`dataloader_workers` {before.get('dataloader_workers')} -> {now.get('dataloader_workers')}"
        reporter.warning(f"{change}: the stream continues in another order, and some of its rows repeat")
    for name, digest in reads["data"].items():
        if _block(recorded, "data").get(name, digest) != digest:
            source, note = name.rsplit(" ", 1)[0], _resume_note(config, "datasets")
            reporter.warning(f"{source} has changed since the checkpoint: {note}")
    tasks = _block(recorded, "suite")
    if tasks and tasks != reads["suite"] and not changed & {"evaluation_suite", "evaluation_rows"}:
        changed.add("evaluation_rows")
        reporter.warning(
            f"`evaluation_suite` has other tasks or rows: {_resume_note(config, 'evaluation_rows')}"
        )
    was, is_now = recorded.get("processes", reads["processes"]), reads["processes"]
    if was != is_now:
        changed.add("processes")
        rows = config.micro_batch_size * config.accumulation_steps
        answers = ", answers in use are generated again" if isinstance(config, RolloutConfig) else ""
        reporter.warning(
            f"{was} processes -> {is_now}: an update reads {is_now * rows} rows, row positions continue by"
            f" number; random generators begin anew{answers}"
        )
    return frozenset(changed), reads


def _options_with(config: TrainingConfig, policy: str) -> set[str]:
    """Returns the options whose change has a policy when a run is resumed."""
    always = {"silent": {"schema_version"}, "refuse": {"kind"}}.get(policy, set())
    return always | {name for name, info in config.options().items() if info.resume == policy}


def _resume_note(config: TrainingConfig, name: str) -> str:
    """Returns what a changed option means for a resumed run; a method's own default keeps the shared note."""
    for cls in type(config).__mro__:
        info = cls.options().get(name) if issubclass(cls, TrainingConfig) else None
        if isinstance(info, OptionInfo) and info.resume_note:
            return info.resume_note
    return "used from here on"


def _block(values: dict[str, Any], name: str) -> dict[str, Any]:
    block = values.get(name)
    return block if isinstance(block, dict) else {}


def _refuse_parts(checkpoint: Path, written_by: object) -> None:
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
            f"start it with as many processes as before: `accelerate launch --num_processes {count}` with the"
            " same FSDP or DeepSpeed settings"
        ),
    )


def _part(name: str, before: dict[str, Any], now: dict[str, Any]) -> tuple[str, Any, Any]:
    """Returns a changed option, or the first changed part of a block, with its values before and now."""
    was, is_now = before.get(name), now.get(name)
    if isinstance(was, dict) and isinstance(is_now, dict):
        part = next((key for key in {**was, **is_now} if was.get(key) != is_now.get(key)), "")
        return f"{name}.{part}", was.get(part), is_now.get(part)
    return name, was, is_now


def _differences(before: object, now: dict[str, Any]) -> set[str]:
    if not isinstance(before, dict):
        return set()
    changed = {name for name in now if name in before and before[name] != now[name]} - {"output_dir", "name"}
    return changed - (
        {"model"} if isinstance(before.get("model"), str) else set()
    )  # a file's name, from older versions
