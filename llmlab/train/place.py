"""Where a run goes: a new folder or an old one, which checkpoint it goes on from, and that nobody else is in it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console

from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError
from llmlab.runs.folder import RUNS, RunFolder, run_name, unused
from llmlab.runs.seal import verify
from llmlab.train.environment import is_main
from llmlab.train.stages import STAGES

LOCK, HOLDER = ".lock", ".holder.json"
# of another model: weights and optimizer of a checkpoint would not fit, or would be of something else
OF_THE_MODEL = {
    "kind", "model", "policy_checkpoint", "init_from", "adapter", "lora_r", "lora_alpha", "lora_targets", "load_in", "critic",
    "backbone", "gating_num_heads", "gating_size", "gating_layer_norm", "rm_bias",
}  # fmt: skip
SILENT = {
    "name", "output_dir", "schema_version", "save_every", "save_total_limit", "save_best_only", "log_every", "eval_every",
    "eval_steps", "sample_tokens", "report_to", "dataloader_workers", "max_skipped_steps", "out_of_memory", "device",
}  # fmt: skip
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


def place(config: TrainingConfig, job: Any, resume: str, console: Console) -> tuple[Path, Path | None, frozenset[str]]:
    """Returns the folder of the run, the checkpoint to go on from or None, and the options that were changed since.

    Raises:
        LabError: when the checkpoint is of another model, or none verifies where one was named.
    """
    if resume not in ("auto", "never"):
        given = Path(resume)
        if given.name.startswith("checkpoint-"):
            fault = verify(given)
            if fault:
                raise LabError(
                    f"cannot be resumed from: {fault}", where=resume, remedy="name another checkpoint, or the run's folder"
                )
            return given.parent, given, _changes(RunFolder(given.parent), config, console)
        checkpoint, passed = RunFolder(given).newest_sealed()
        if checkpoint is None:
            raise LabError("holds no sealed checkpoint to resume from", where=resume, remedy="; ".join(passed))
        return given, checkpoint, _changes(RunFolder(given), config, console)
    name = config.name or run_name([*job.name_parts, STAGES[config.kind].kind])
    path = Path(config.output_dir) if config.output_dir else RUNS / name
    folder = RunFolder(path)
    record = folder.record
    longer = record.get("status") == "done" and _longer(record, config)
    if resume == "auto" and record and (record.get("status") != "done" or longer):
        checkpoint, passed = folder.newest_sealed()
        for reason in passed:
            console.print(f"passed over {reason}", style="yellow")
        if not checkpoint:
            return path, None, frozenset()
        changed = _changes(folder, config, console)
        console.print(f"resuming from {checkpoint}")
        return path, checkpoint, changed
    begun = path.is_dir() and {file.name for file in path.iterdir()} <= {LOCK, HOLDER}  # killed before it wrote anything
    fresh = path if begun else unused(path)
    if fresh != path:
        console.print(f"{path} holds a finished run; this one goes to {fresh}")
    return fresh, None, frozenset()


def _longer(record: dict[str, Any], config: TrainingConfig) -> bool:
    """Returns whether a finished run is asked for again with more steps and nothing else that would make it another run."""
    changed = _differences(record, config)
    return "max_steps" in changed and config.max_steps > record["config"]["max_steps"] and changed <= {"max_steps", *SILENT}


def _changes(folder: RunFolder, config: TrainingConfig, console: Console) -> frozenset[str]:
    """Returns the options that are others than those of the run so far, and says what each change means."""
    before = folder.record.get("config", {})
    if before.get("kind", config.kind) != config.kind:
        raise LabError("holds a run of another kind", where=str(folder.path), remedy="choose another `output_dir`")
    changed = _differences(folder.record, config)
    now = config.to_json_dict()
    if refused := sorted(changed & OF_THE_MODEL):
        name = refused[0]
        raise LabError(
            f"`{name}` is {json.dumps(now.get(name))} and was {json.dumps(before.get(name))} so far: that is another model",
            where=str(folder.path), remedy="put it back, choose another `output_dir`, or add --resume never",
        )  # fmt: skip
    for name in sorted(changed - SILENT):
        if isinstance(now.get(name), (list, dict)) or isinstance(before.get(name), (list, dict)):
            told = f"`{name}` has changed"
        else:
            told = f"`{name}` {before.get(name)} -> {now.get(name)}"
        console.print(f"{told}: {WHAT_IT_MEANS.get(name, 'used from here on')}", style="yellow", highlight=False)
    return frozenset(changed)


def _differences(record: dict[str, Any], config: TrainingConfig) -> set[str]:
    before, now = record.get("config"), config.to_json_dict()
    if not isinstance(before, dict):
        return set()
    return {name for name in now if name in before and before[name] != now[name]} - {"output_dir", "name"}


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Holds a run's folder while a run is in it; the system lets go of it when its holder dies.

    Raises:
        LabError: when another process is in it.
    """
    if not is_main():
        yield
        return
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path / LOCK, blocking=False)
        lock.acquire()
    except Timeout:
        try:
            who = json.loads((path / HOLDER).read_text())
            holder = f"process {who['pid']} on {who['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            holder = "another process"
        raise LabError(
            f"{holder} is training in this folder",
            where=str(path),
            remedy="wait for it, stop it, or choose another `output_dir`",
        ) from None
    except OSError as error:
        raise LabError(f"cannot be made ({error.strerror})", where=str(path), remedy="choose another `output_dir`") from None
    try:
        with suppress(OSError):  # a full disk: the lock holds without a name
            (path / HOLDER).write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        (path / HOLDER).unlink(missing_ok=True)
        lock.release()
        if made and [file.name for file in path.iterdir()] == [LOCK]:
            (path / LOCK).unlink()
            path.rmdir()
