"""What is known of a model that goes out: its files, its architecture, and the runs that it came from."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmlab.config.base import KindConfig
from llmlab.config.loader import parse_config
from llmlab.config.rollouts import RolloutConfig
from llmlab.config.sources import SourceConfig
from llmlab.config.training import TrainingConfig
from llmlab.data.catalogue import Entry, entry
from llmlab.errors import LabError
from llmlab.models.headers import tensor_sizes
from llmlab.runs.figures import RESULT_FIGURES
from llmlab.runs.folder import MODELS, RunFolder, find_model, read_json
from llmlab.runs.lineage import lineage
from llmlab.runs.manifest import MANIFEST

Form = Literal["native", "code", "lab", "adapter", "gguf"]
BUNDLED = "backbone"  # the folder of a dual head's backbone in an exported folder
LAB_TYPES = ("llmlab", "llmlab_dual_head")
HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
CHECKPOINT = re.compile(r"checkpoint-\d+")
# files beside a model, and their entries that name the model it was made of
CAME_FROM = ((MANIFEST, "merged_from"), ("export.json", "exported"))


@dataclass(frozen=True)
class Stage:
    """One run of a model's lineage.

    Attributes:
        run: its folder.
        record: what its `run.json` says.
        config: its options; None where an other version wrote them.
    """

    run: Path
    record: dict[str, Any]
    config: KindConfig | None

    @property
    def kind(self) -> str:
        """The kind of its config, "?" where it does not say."""
        return str((self.record.get("config") or {}).get("kind", "?"))

    @property
    def title(self) -> str:
        """What it did, in words."""
        return self.config.TITLE if self.config else self.kind

    @property
    def sources(self) -> list[SourceConfig]:
        """What it learned from."""
        return self.config.datasets if isinstance(self.config, TrainingConfig) else []

    @property
    def figures(self) -> dict[str, tuple[float | None, float]]:
        """Held-out figures, each before (where that was measured) and after; the loss of a method that learns
        from rewards is none: it is 0 where the policy is what it was at the last update.
        """
        metrics = self.record.get("metrics") or {}
        without = ("eval_loss",) if isinstance(self.config, RolloutConfig) else ()
        return {
            name.removeprefix("eval_"): (metrics.get(f"before_{name}"), metrics[name])
            for name in RESULT_FIGURES
            if name.startswith("eval_") and name not in without and metrics.get(name) is not None
        }


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model.

    Attributes:
        name: of the run, the folder or the file.
        where: its folder, or a GGUF file.
        form: "native" (transformers knows its architecture), "code" (it brings its code), "lab" (only this
            program knows it), "adapter" or "gguf".
        config: of the model, or of the adapter.
        base: the model that an adapter belongs to, "" for whole models.
        scores: whether it scores answers rather than writes them.
        chats: whether it has a chat template.
        stages: runs that it came from, oldest first.
        origin: what the oldest of them began with: a hub id, a folder, a file; "" where it began from nothing
            or no run is known.
    """

    name: str
    where: Path
    form: Form
    config: dict[str, Any]
    base: str
    scores: bool
    chats: bool
    stages: tuple[Stage, ...]
    origin: str

    @property
    def architecture(self) -> str:
        """transformers' name of its architecture, "" where it is not known."""
        return str(self.config.get("model_type") or "")

    @property
    def hub_base(self) -> str:
        """The hub id of the model that it was made from, "" where it has none."""
        return next((name for name in (self.base, self.origin) if is_hub_id(name)), "")

    def parameters(self) -> int | None:
        """Returns how many numbers its weights have; None for a GGUF file."""
        if self.where.is_file():
            return None
        try:
            sizes = tensor_sizes(self.where)
        except (OSError, ValueError):
            return None
        total = 0
        for size in sizes.values():
            count = 1
            for length in size:
                count *= length
            total += count
        return total or None


def is_hub_id(name: str) -> bool:
    """Returns whether a name can only be that of a repository on the hub."""
    return bool(HUB_ID.fullmatch(name)) and not Path(name).exists()


def model_facts(name: str) -> ModelFacts:
    """Returns what is known of a model on this machine.

    Raises:
        LabError: when there is no such model, or it is on the hub only.
    """
    where = Path(find_model(name))
    if not where.exists():
        raise LabError(
            "is not on this machine", where=name, remedy="name a run, a model folder or a GGUF file"
        )
    run = _run_of(where)
    stages, origin = _history(run) if run else ((), "")
    display = run.name if run else where.stem if where.is_file() else where.resolve().name
    if where.is_file():
        return ModelFacts(display, where, "gguf", {}, "", False, True, stages, origin)
    adapter, config = read_json(where / "adapter_config.json"), read_json(where / "config.json")
    classes = config.get("architectures")
    names = [str(one) for one in classes] if isinstance(classes, list) else []
    base = str(adapter.get("base_model_name_or_path") or config.get("backbone") or "")
    return ModelFacts(
        name=display,
        where=where,
        form=_form(adapter, config),
        config=adapter or config,
        base="" if base == BUNDLED and (where / BUNDLED).is_dir() else base,
        scores=adapter.get("task_type") == "SEQ_CLS"
        or any(one.endswith("ForSequenceClassification") for one in names),
        chats=_has_template(where),
        stages=stages,
        origin=origin,
    )


def known_source(source: SourceConfig) -> Entry | None:
    """Returns the catalogue's entry of a source, None for one that it does not have."""
    return entry(source.name, source.subset)


def public_name(value: str) -> str:
    """Returns how a path is named to others: without the folders of this machine. Other texts stay."""
    if not (os.path.isabs(value) or value.startswith("~")) or "\n" in value:
        return value
    path = Path(value)
    if path.is_relative_to(here := Path.cwd()):
        return path.relative_to(here).as_posix()
    return Path(*path.parts[-2:]).as_posix() if path.name in MODELS else path.name


def public(data: Any) -> Any:
    """Returns JSON data with every path in it named to others."""
    if isinstance(data, dict):
        return {key: public(value) for key, value in data.items()}
    if isinstance(data, list):
        return [public(value) for value in data]
    return public_name(data) if isinstance(data, str) else data


def _form(adapter: dict[str, Any], config: dict[str, Any]) -> Form:
    if adapter:
        return "adapter"
    if config.get("auto_map"):
        return "code"
    return "lab" if config.get("model_type") in LAB_TYPES else "native"


def _has_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    return bool(read_json(folder / "tokenizer_config.json").get("chat_template"))


def _run_of(where: Path) -> Path | None:
    """Returns the run that a model came from: it lies in it, or its manifest names what it was made of."""
    folder = where if where.is_dir() else where.parent
    for file, entry_name in CAME_FROM:
        source = read_json(folder / file).get(entry_name)
        if isinstance(source, str) and (run := _named_run(source)):
            return run
    return _run_around(folder)


def _named_run(name: str) -> Path | None:
    try:
        return _run_around(Path(find_model(name)))
    except LabError:  # it was removed since, or the name was given in another folder
        return None


def _run_around(folder: Path) -> Path | None:
    if RunFolder(folder).record:
        return folder
    inside = folder.name in MODELS or CHECKPOINT.fullmatch(folder.name)
    run = folder.resolve().parent
    return run if inside and RunFolder(run).record else None


def _history(run: Path) -> tuple[tuple[Stage, ...], str]:
    stages, origin = [], ""
    for name in lineage(run):
        record = RunFolder(Path(name)).record
        if not record:
            origin = name
            break
        try:
            config = parse_config(record.get("config"))
        except LabError:  # of a version with other options
            config = None
        stages.append(Stage(Path(name), record, config))
    return tuple(reversed(stages)), origin
