"""All that is known of one run, as data: for `runs show`, for its report, and for what is said at its end."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmlab.config import KindConfig, parse_config
from llmlab.config.base import LabBaseConfig
from llmlab.errors import LabError
from llmlab.runs.curves import Point, curves, evaluating, tokens_read
from llmlab.runs.evaluations import intervals
from llmlab.runs.figures import RESULT_FIGURES
from llmlab.runs.folder import MODELS, RUNS, RunFolder
from llmlab.runs.index import run_rows
from llmlab.runs.lineage import lineage
from llmlab.runs.manifest import MANIFEST
from llmlab.runs.record import RECORD
from llmlab.runs.summary import summarize
from llmlab.runs.tags import tags_of

# options that say what a config is or where it goes, not what is done
PLACES = ("kind", "schema_version", "name", "output_dir")
TRACKERS = ("tensorboard", "trackio", "wandb")


@dataclass(frozen=True)
class Change:
    """An option that is not what it is by default."""

    option: str
    value: Any
    default: Any


@dataclass(frozen=True)
class Ancestor:
    """A run or a model that a run came from.

    Attributes:
        name: of its folder, file or hub id.
        kind: of the run, "" where it is no run of the lab.
        status: of the run, "" where it is none.
        figures: at its end.
    """

    name: str
    kind: str = ""
    status: str = ""
    figures: dict[str, float] | None = None


@dataclass(frozen=True)
class Part:
    """A folder of a run.

    Attributes:
        name: of the folder.
        size: bytes.
        complete: whether it has a manifest; its files are not looked at.
    """

    name: str
    size: int
    complete: bool


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a run; None where they are not known.

    Attributes:
        measured: of the place.
        predicted: by the plan, before anything was loaded.
        place: what was measured: "GPU" (what torch had allocated there) or "process" (all that was
            resident).
    """

    measured: int | None = None
    predicted: int | None = None
    place: str = ""

    @classmethod
    def of(cls, record: dict[str, Any]) -> Memory:
        """Returns the memory that a run's record tells of."""
        told = (record.get("summary") or {}).get("memory")
        told = told if isinstance(told, dict) else {}
        measured, predicted = (
            int(value) if isinstance(value := told.get(name), (int, float)) and 0 < value < 1e18 else None
            for name in ("measured", "predicted")
        )
        return cls(measured, predicted, str(told.get("place") or ""))


@dataclass(frozen=True)
class RunDetails:
    """All that is known of a run.

    Attributes:
        path: of its folder.
        status: as its record says.
        kind: of its config, "?" where the record does not say.
        record: its `run.json`.
        config: its options, None where another version wrote them.
        changes: options that are others than the defaults.
        curves: points (step, value) of every figure.
        figures: held-out figures as (before, after); None where it was not measured before.
        intervals: 95 % intervals of the figures of its suite, by name and step.
        evaluating: seconds that the evaluations on its suite took.
        samples: "before" and "after": step, prompt, answer.
        tokens: that training read, padding included.
        memory: at its peak.
        lineage: what it came from, oldest first, itself last.
        parts: checkpoints and models.
        size: bytes of all its files.
        tags: that a person gave it.
        trackers: where its figures were reported, and the command that shows them.
    """

    path: Path
    status: str
    kind: str
    record: dict[str, Any]
    config: KindConfig | None
    changes: tuple[Change, ...]
    curves: dict[str, list[Point]]
    figures: dict[str, tuple[float | None, float]]
    intervals: dict[str, dict[int, tuple[float, float]]]
    evaluating: float
    samples: dict[str, dict[str, Any]]
    tokens: int
    memory: Memory
    lineage: tuple[Ancestor, ...]
    parts: tuple[Part, ...]
    size: int
    tags: tuple[str, ...]
    trackers: dict[str, str]

    def interval(self, name: str, step: int | None = None) -> tuple[float, float] | None:
        """Returns the 95 % interval of a figure at a step, or at its last one; None where there is none."""
        points = self.curves.get(name)
        if not points:
            return None
        return self.intervals.get(name, {}).get(points[-1][0] if step is None else step)

    def to_json(self) -> dict[str, Any]:
        """Returns it as JSON data: the record, and what is known beside it."""
        names = ["changes", "curves", "intervals", "evaluating", "samples", "tokens", "memory", "lineage"]
        names += ["parts", "size", "tags"]
        data = asdict(self)
        figures = {name: {"before": before, "after": after} for name, (before, after) in self.figures.items()}
        record = {name: value for name, value in self.record.items() if name != "summary"}
        return {
            "run": str(self.path),
            "status": self.status,
            "kind": self.kind,
            "figures": figures,
            **{name: data[name] for name in names},
            "trackers": self.trackers,
            "record": record,
        }


def find_run(name: str) -> RunFolder:
    """Returns the run that a name stands for: a folder, a model folder or a checkpoint in it, or the name of
    one in `checkpoints/`, without the folders around it where no other is called so.

    Raises:
        LabError: when there is none, or several.
    """
    for path in (Path(name), RUNS / name):
        for folder in (path, path.parent if path.name in MODELS or "checkpoint-" in path.name else path):
            if (folder / RECORD).is_file():
                return RunFolder(folder)
    called = [row.path for row in run_rows(RUNS) if row.path.name == name]
    if len(called) == 1:
        return RunFolder(called[0])
    if called:
        names = ", ".join(str(path.relative_to(RUNS)) for path in called)
        raise LabError("is the name of several runs", where=name, remedy=f"say which: {names}")
    raise LabError("there is no such run", where=name, remedy="`llmlab runs` lists them")


def run_details(run: RunFolder) -> RunDetails:
    """Returns all that is known of a run.

    Raises:
        LabError: when its record is damaged.
    """
    record = run.record
    if run.damage:
        raise LabError(f"{RECORD} {run.damage}", where=str(run.path), remedy="restore it from a copy")
    lines = run.metrics()
    every = curves(lines)
    config = _config(record)
    summary = summarize(run)
    return RunDetails(
        path=run.path,
        status=run.status,
        kind=(record.get("config") or {}).get("kind") or "?",
        record=record,
        config=config,
        changes=changes(config) if config else (),
        curves=every,
        figures=figures(record, every),
        intervals=intervals(run.path),
        evaluating=evaluating(lines),
        samples=summary["samples"],
        tokens=tokens_read(lines),
        memory=Memory.of(record),
        lineage=_ancestors(run),
        parts=tuple(_part(path) for path in _folders(run)),
        size=size_of(run.path),
        tags=tags_of(run.path),
        trackers=trackers(run.path, record),
    )


def figures(record: dict[str, Any], every: dict[str, list[Point]]) -> dict[str, tuple[float | None, float]]:
    """Returns the held-out figures of a run as (before, after), those that sum it up first.

    A finished run has them in its record; of another one they are the first and the last that were logged.
    A loss of a method that learns from rewards is none.
    """
    ends = {name: (points[0], points[-1]) for name, points in every.items() if name.startswith("eval_")}
    metrics = record.get("metrics") or {}
    pairs: dict[str, tuple[float | None, float]] = {}
    for name, (first, last) in ends.items():
        before = first[1] if first[0] == 0 else None
        pairs[name] = (before, last[1])
    for name, value in metrics.items():
        if name.startswith("eval_") and value is not None:
            pairs.setdefault(name, (metrics.get(f"before_{name}"), float(value)))
    if "eval_reward" in pairs:
        pairs.pop("eval_loss", None)
    order = {name: place for place, name in enumerate(RESULT_FIGURES)}
    return dict(sorted(pairs.items(), key=lambda pair: order.get(pair[0], len(order))))


def changes(config: KindConfig) -> tuple[Change, ...]:
    """Returns the options of a config that are others than the defaults of its kind."""
    changed = []
    for name, value in config.to_json_dict().items():
        if name in PLACES:
            continue
        default = plain(type(config).model_fields[name].get_default(call_default_factory=True))
        if value != default:
            changed.append(Change(name, value, default))
    return tuple(changed)


def plain(value: Any) -> Any:
    """Returns an option's value as JSON data."""
    if isinstance(value, LabBaseConfig):
        return value.to_json_dict()
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str, dict)) else None


def size_of(folder: Path) -> int:
    """Returns the bytes of all files in a folder; links count nothing."""
    files = (path for path in folder.rglob("*") if not path.is_symlink())
    return sum(path.stat().st_size for path in files if path.is_file())


def trackers(run: Path, record: dict[str, Any]) -> dict[str, str]:
    """Returns where a run's figures were reported, and the command that shows them."""
    asked = (record.get("config") or {}).get("report_to")
    asked = asked if isinstance(asked, list) else []
    shown = {}
    if (run / "tensorboard").is_dir():
        shown["tensorboard"] = f"tensorboard --logdir {run / 'tensorboard'}"
    if "trackio" in asked:
        project = record.get("trackio_project")
        shown["trackio"] = f"trackio show --project {project}" if project else "trackio show"
    if "wandb" in asked:
        address = record.get("wandb_url")
        shown["wandb"] = str(address) if address else "https://wandb.ai/home"
    return shown


def _config(record: dict[str, Any]) -> KindConfig | None:
    try:
        return parse_config(record.get("config"))
    except LabError:  # of a version with other options
        return None


def _ancestors(run: RunFolder) -> tuple[Ancestor, ...]:
    found = []
    for name in reversed(lineage(run.path)):
        record = RunFolder(Path(name)).record
        if not record:
            found.append(Ancestor(name))
            continue
        metrics = record.get("metrics") or {}
        ended = {key: metrics[key] for key in RESULT_FIGURES if metrics.get(key) is not None}
        kind = str((record.get("config") or {}).get("kind", "?"))
        found.append(Ancestor(name, kind, str(record.get("status") or "?"), ended))
    return tuple(found)


def _folders(run: RunFolder) -> list[Path]:
    models = [run.path / name for name in MODELS if (run.path / name).is_dir()]
    return [*models, *(one.path for one in run.checkpoints())]


def _part(path: Path) -> Part:
    return Part(path.name, size_of(path), (path / MANIFEST).is_file())


def as_json(data: dict[str, Any]) -> str:
    """Returns JSON data as one line; what is no JSON (a path) as its text."""
    return json.dumps(data, default=str)
