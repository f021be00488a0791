"""A run on disk: its folder, its record (`run.json`), its metrics (`metrics.jsonl`),
and finding runs again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab.errors import LabError
from llmlab.files import in_home, read_object, write_text_atomically
from llmlab.runs import evaluations
from llmlab.runs.checkpoint import Checkpoint
from llmlab.runs.figures import is_of_suite
from llmlab.runs.index import run_rows
from llmlab.runs.lock import HOLDER, LOCK, was_killed
from llmlab.runs.manifest import MANIFEST, verify
from llmlab.runs.record import RECORD, read_record
from llmlab.trust import redact

if TYPE_CHECKING:
    from llmlab.config import KindConfig

RUNS = Path("checkpoints")
METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"
LOG = "run.log"  # what the screen said, as text
RUN_CONFIG = (  # in a checkpoint: the options that its steps were trained with, and what they read
    "run_config.json"
)
FREE_BYTES = 64 << 20  # a run folder needs at least this much room to be begun
MODELS = ("best", "final")
# what a kill leaves behind: files and folders that were being written, and models that were being replaced
LEFTOVERS = re.compile(
    r"\.(run\.json|metrics\.jsonl|samples\.jsonl)\..+|\.(best|final)-(\d+|old)|\.saving|\.old-checkpoint-\d+"
)
SET_ASIDE = "set-aside-"


@dataclass
class RunFolder:
    """The folder of one run."""

    path: Path

    @classmethod
    def create(cls, path: Path, record: dict[str, Any], *, needed_bytes: int = 0) -> RunFolder:
        """Makes the folder and its record.

        Raises:
            LabError: when it cannot be written or the disk has no room for what the run will write.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(path).free
        except OSError as error:
            raise LabError(
                f"cannot be created ({error.strerror})", where=str(path), remedy="choose another `output_dir`"
            ) from None
        needed = max(FREE_BYTES, needed_bytes)
        if free < needed:
            _remove_if_empty(path)
            raise LabError(
                f"the disk has {free / 1e9:.1f} GB free and this run writes about {needed / 1e9:.1f} GB",
                where=str(path),
                remedy="free space, choose another `output_dir`, or lower `save_total_limit`",
            )
        folder = cls(path)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        before = {
            name: value for name, value in folder.record.items() if name not in ("error", "back_to", "result")
        }
        folder._write({**before, **record, "status": "running", "started": started})
        return folder

    @property
    def record(self) -> dict[str, Any]:
        """The content of `run.json`; empty when there is none, or one that is damaged."""
        return read_record(self.path)[0]

    @property
    def damage(self) -> str:
        """What is wrong with `run.json`, in words; "" when it is right or not there."""
        return read_record(self.path)[1]

    @property
    def status(self) -> str:
        """How the run stands, as its record says: "running", "done" ...; "killed" where a running one has no
        process, "damaged" when the record is, "?" without one.
        """
        record, damage = read_record(self.path)
        status = record.get("status") or "?"
        return "damaged" if damage else "killed" if status == "running" and was_killed(self.path) else status

    def update(self, **changes: Any) -> None:
        """Changes entries of `run.json`."""
        self._write({**self.record, **changes})

    def _write(self, record: dict[str, Any]) -> None:
        write_text_atomically(self.path / RECORD, json.dumps(record, indent=2, default=str) + "\n")

    def is_blank(self) -> bool:
        """Returns whether nothing is in it, or only what a run left that was killed before its record was
        written.
        """
        if not self.path.is_dir():
            return not self.path.exists()
        return all(
            file.name in (LOCK, HOLDER) or LEFTOVERS.fullmatch(file.name) for file in self.path.iterdir()
        )

    def remove_leftovers(self) -> None:
        """Removes what kills left behind; restores a model whose replacement was interrupted."""
        for name in MODELS:
            if not (self.path / name).exists():
                whole = [path for path in sorted(self.path.glob(f".{name}-*")) if verify(path) == ""]
                if whole:  # the new one, which has a number, before the old one
                    whole[0].rename(self.path / name)
        for path in self.path.iterdir():
            if LEFTOVERS.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def had_checkpoints(self) -> bool:
        """Returns whether a checkpoint was ever written here, by the folders, the record, and steps behind
        the first one (the figures of its own step are logged while it is not there yet).
        """
        record = self.record
        if self.checkpoints() or record.get("sealed"):
            return True
        config = record.get("config")
        every = config.get("save_every") if isinstance(config, dict) else None
        return isinstance(every, int) and any(line["step"] > every for line in self.metrics())

    def move_aside_after(self, step: int) -> list[str]:
        """Moves checkpoints and models of later steps to a folder of their own, with a copy of metrics and
        samples.

        While they are moved the record holds `back_to`, the step to return to: if the run is killed
        meanwhile, the restart does not resume from a later step. A finished run is marked as running again.

        Returns:
            The names of what was moved, and last the folder that it is in; nothing when there was none.
        """
        later = [checkpoint.path for checkpoint in self.checkpoints() if checkpoint.step > step]
        later += [path for name in MODELS if (path := self.path / name).is_dir() and _step_of(path) > step]
        if not later:
            return []
        number = 1
        while (target := self.path / f"{SET_ASIDE}{number}").exists():
            number += 1
        self.update(back_to=step, status="running", result=None)
        target.mkdir()
        for name in (METRICS, SAMPLES):
            if (self.path / name).exists():
                shutil.copy2(self.path / name, target / name)
        for path in later:
            path.rename(target / path.name)
        evaluations.leave_after(self.path, step, to=target)
        return [*(path.name for path in later), str(target)]

    def log(self, figures: dict[str, Any]) -> None:
        """Appends one line to `metrics.jsonl`, whole or not at all."""
        self._append(METRICS, figures)

    def metrics(self) -> list[dict[str, Any]]:
        """Returns every logged line; a last line cut off by a kill is left out."""
        return self._lines(METRICS)

    def log_sample(self, sample: dict[str, Any]) -> None:
        """Appends one line to `samples.jsonl`, whole or not at all."""
        self._append(SAMPLES, sample)

    def samples(self) -> list[dict[str, Any]]:
        """Returns step, prompt and answer of every sample that was taken while it learned."""
        return self._lines(SAMPLES)

    def truncate_after(self, step: int) -> None:
        """Drops metrics and samples of later steps, which a resumed run writes again;
        all of them for a step below 0.
        """
        for name in (METRICS, SAMPLES):
            if (self.path / name).exists():
                remaining = [line for line in self._lines(name) if line["step"] <= step]
                write_text_atomically(
                    self.path / name, "".join(json.dumps(line) + "\n" for line in remaining)
                )

    def drop_validation(self, step: int, *, suite: bool | None = None) -> None:
        """Drops the held-out figures of a step, where they are measured again.

        Args:
            step: of the run.
            suite: whether only those of a suite are dropped, or only the others; None for all.
        """

        def is_dropped(line: dict[str, Any]) -> bool:
            held_out = any(key.startswith("eval_") for key in line)
            return line["step"] == step and held_out and suite in (None, any(map(is_of_suite, line)))

        remaining = [line for line in self.metrics() if not is_dropped(line)]
        if (self.path / METRICS).exists():
            write_text_atomically(self.path / METRICS, "".join(json.dumps(line) + "\n" for line in remaining))

    def _append(self, name: str, line: dict[str, Any]) -> None:
        path = self.path / name
        before = path.stat().st_size if path.exists() else 0
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(redact(json.dumps(line)) + "\n")
        except OSError:
            os.truncate(path, before)
            raise

    def _lines(self, name: str) -> list[dict[str, Any]]:
        try:
            lines = (self.path / name).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
        entries = []
        for line in lines:
            try:
                entries.append(json.loads(line))
            except (ValueError, RecursionError):
                continue
        return [line for line in entries if isinstance(line, dict) and isinstance(line.get("step"), int)]

    def checkpoints(self) -> list[Checkpoint]:
        """Returns the checkpoints, newest first; their manifests are not looked at."""
        return Checkpoint.all_in(self.path)

    def latest_valid_checkpoint(self, up_to: int | None = None) -> tuple[Checkpoint | None, list[str]]:
        """Returns the newest checkpoint, of a step up to the given one, whose manifest verifies,
        and what is wrong with each newer one.
        """
        faults: list[str] = []
        for checkpoint in self.checkpoints():
            if up_to is not None and checkpoint.step > up_to:
                continue
            fault = checkpoint.fault()
            if not fault:
                return checkpoint, faults
            faults.append(f"{checkpoint.name}: {fault}")
        return None, faults

    def result(self) -> Path | None:
        """Returns the model folder that this run stands for: `final`, else `best`, as its record says, else
        the newest complete checkpoint of a run that was stopped.
        """
        for name in [self.record.get("result"), "best", "final"]:
            folder = self.path / name if name else self.path
            if name and any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
                return folder
        return next((one.path for one in self.checkpoints() if (one.path / MANIFEST).is_file()), None)


def run_config(folder: Path) -> KindConfig:
    """Returns the config of a run, to be gone on with in this folder, wherever it was when it began.

    Raises:
        LabError: when the folder holds no run, or its record is damaged.
    """
    from llmlab.config import apply_changes, parse_config  # which the list of runs does without

    run = RunFolder(folder)
    record = run.record
    if run.damage:
        raise LabError(
            f"the record of this run is damaged: {RECORD} {run.damage}",
            where=str(folder),
            remedy="run its config file",
        )
    if "config" not in record:
        raise LabError("holds no run", where=str(folder), remedy="name a config file or a run folder")
    config = parse_config(record["config"], where=str(folder))
    return config if config.kind == "model" else apply_changes(config, {"output_dir": str(folder)})


def run_name(parts: list[str]) -> str:
    """Returns a folder name from parts and the time, as `tiny_moby-dick_base_1121-0532`."""
    clean = [re.sub(r"[^\w.+-]+", "-", part).strip("-").lower() for part in parts if part]
    return "_".join([*clean, datetime.now().strftime("%m%d-%H%M")])


def all_runs(root: Path = RUNS) -> list[RunFolder]:
    """Returns every run below a folder, newest first."""
    return [RunFolder(row.path) for row in run_rows(root)]


def find_model(name: str, *, tokenizer: bool = False) -> str:
    """Returns the folder or file to load a checkpoint from: a run's result, a model folder, a GGUF file, or a
    hub id.

    With `tokenizer` a folder that holds only a tokenizer will do.

    Raises:
        LabError: when a local path holds no model.
    """
    path = in_home(name)
    if path.is_file():
        if path.suffix == ".gguf":
            return str(path)
        raise LabError(
            "is a file, not a checkpoint folder",
            where=name,
            remedy="name a run, a model folder or a .gguf file",
        )
    if path.is_dir():
        kinds = ("config.json", "adapter_config.json", *(["tokenizer_config.json"] if tokenizer else []))
        if any((path / kind).is_file() for kind in kinds):
            return str(path)
        result = RunFolder(path).result()
        if result:
            return str(result)
        if (path / RECORD).is_file():
            raise LabError(
                "is a run without a finished model",
                where=name,
                remedy="resume it with `llmlab run` or name another",
            )
        raise LabError(
            "is not a checkpoint: it has neither config.json nor run.json", where=name, remedy=_known_models()
        )
    if (RUNS / name).is_dir() and "/" not in name:
        return find_model(str(RUNS / name))
    if (
        path.is_symlink()
        or name.startswith((".", "/", "~", "checkpoints"))
        or name.count("/") > 1
        or name.endswith(".gguf")
    ):
        raise LabError("there is no such checkpoint", where=name, remedy=_known_models())
    return name


def _known_models() -> str:
    names = [str(run.path) for run in all_runs() if run.result()]
    return f"there are {', '.join(names[:5])}" if names else "train one first: `llmlab quickstart`"


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; empty where there is none."""
    try:
        return read_object(path)
    except (OSError, ValueError):
        return {}


def _step_of(model: Path) -> int:
    """Returns the step that a model's manifest names, -1 where none is named."""
    step = read_json(model / MANIFEST).get("step")
    return step if isinstance(step, int) else -1


def _remove_if_empty(path: Path) -> None:
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
