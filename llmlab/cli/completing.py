"""What a shell completes: typer asks these functions for the words that may come next.

Each Tab starts the program, so nothing here imports torch, and configs only where their options are asked
for. A fault completes nothing: no shell has a place for its message.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

if TYPE_CHECKING:
    from llmlab.config.base import LabBaseConfig

Words = list[str | tuple[str, str]]
CONFIG_SUFFIXES = (".json", ".yaml", ".yml")
CONFIG_FOLDER, RUN_FOLDER = "model_configs", "checkpoints"
RECORD = "run.json"
DEEPEST, MOST_FILES, BEGINNING = 3, 300, 4_000  # folders below checkpoints; files; bytes that are looked at


def quietly(words: Callable[..., Words]) -> Callable[..., Words]:
    """Returns a function that completes nothing where another would fail."""

    @wraps(words)
    def completed(*given: Any, **named: Any) -> Words:
        try:
            return words(*given, **named)
        except Exception:
            return []

    return completed


def one_of(choices: str) -> Callable[[], list[str]]:
    """Returns the completion of a value that is one of `a|b|c`."""
    return lambda: choices.split("|")


def checks() -> Words:
    """Returns the checks of the selftest, with what they say."""
    from llmlab.selftest.rows import CHECKS

    return [(name, check.title) for name, check in CHECKS.items()]


def runs() -> Words:
    """Returns the runs of this folder: by name those in checkpoints/, others by their path."""
    return [*_runs(Path(RUN_FOLDER))]


def _runs(folder: Path, depth: int = 1) -> Iterator[str]:
    try:
        below = sorted(entry.path for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return
    for path in below:
        if os.path.isfile(os.path.join(path, RECORD)):
            yield os.path.basename(path) if depth == 1 else path
        if depth < DEEPEST:
            yield from _runs(Path(path), depth + 1)


def config_files(incomplete: str) -> Words:
    """Returns the configs in this folder, in model_configs/, and in the folder that is being typed."""
    folders = [""] if os.sep not in incomplete else [f"{os.path.dirname(incomplete)}/"]
    folders += [f"{CONFIG_FOLDER}/"] if folders == [""] else []
    paths = (path for folder in folders for path in _config_files(folder))
    return [path for path in paths if path.startswith(incomplete)]


def _config_files(folder: str) -> Iterator[str]:
    try:
        names = sorted(os.listdir(os.path.expanduser(folder) or "."))
    except OSError:
        return
    for name in [name for name in names if name.lower().endswith(CONFIG_SUFFIXES)][:MOST_FILES]:
        if _kind_of(Path(os.path.expanduser(folder + name))):
            yield folder + name


def _kind_of(path: Path) -> str:
    """Returns the kind that a config file or the folder of a run says, without reading it as a whole."""
    import re

    place = path / RECORD if path.is_dir() else path
    try:
        with open(place, encoding="utf-8", errors="replace") as file:
            match = re.search(r'(?:"kind"|^kind)\s*:\s*"?(\w+)', file.read(BEGINNING), re.MULTILINE)
    except OSError:
        return ""
    return match[1] if match else ""


def configs(incomplete: str) -> Words:
    """Returns the configs at hand and the folders of runs, which are resumed."""
    return [*config_files(incomplete), *(run if "/" in str(run) else f"{RUN_FOLDER}/{run}" for run in runs())]


@quietly
def kinds() -> Words:
    """Returns the kinds of config."""
    from llmlab.config.loader import KINDS

    return [(kind, cls.TITLE) for kind, cls in KINDS.items()]


@quietly
def presets() -> Words:
    """Returns the presets of the kind that stands on the line."""
    from llmlab.config.presets import METHOD_PRESETS, MODEL_PRESETS
    from llmlab.config.recipes import RECIPES

    kind = next((word for word in _words() if word in ("model", *METHOD_PRESETS)), "")
    if kind == "model":
        return [*MODEL_PRESETS]
    return [*METHOD_PRESETS.get(kind, ()), *(name for name, one in RECIPES.items() if one.kind == kind)]


@quietly
def suites() -> Words:
    """Returns the suites that ship, and the files here that hold one."""
    from llmlab.config.suites import SUITES, suite_files

    shipped: Words = [(name, suite.title) for name, suite in SUITES.items()]
    return [*shipped, *suite_files()]


@quietly
def evaluations() -> Words:
    """Returns the evaluations of this folder."""
    return sorted(path.parent.name for path in Path("evaluations").glob("*/evaluation.json"))


@quietly
def sources(incomplete: str) -> Words:
    """Returns the datasets that are known, once a letter of one is there; before it, files are completed."""
    from llmlab.data.catalogue import CATALOGUE

    return [entry.id for entry in CATALOGUE] if incomplete else []


@quietly
def changes(context: typer.Context, incomplete: str) -> Words:
    """Returns the options that `--set` changes, and behind `key=` the values that it takes."""
    cls = _changed_class(context)
    if cls is None:
        return []
    key, equals, value = incomplete.partition("=")
    if not equals:
        return [(f"{name}=", info.description) for name, info in cls.options().items() if name not in FIXED]
    return [f"{key}={word}" for word in _values(cls, key) if word.startswith(value)]


FIXED = ("kind", "schema_version")
NAMES_OF_MODELS = ("policy_checkpoint", "reference_checkpoint", "backbone", "init_from")


def _changed_class(context: typer.Context) -> type[LabBaseConfig] | None:
    """Returns whose options `--set` changes on this line."""
    match context.info_name:
        case "chat" | "generate" | "serve":
            from llmlab.config.chat import ChatSettings

            return ChatSettings
        case "inspect" | "evaluate":
            from llmlab.config.sources import SourceConfig

            return SourceConfig
        case "slurm":
            from llmlab.config.slurm import SlurmConfig

            return SlurmConfig
    from llmlab.config.loader import KINDS

    return next((KINDS[kind] for word in _words() if (kind := _kind_meant(word)) in KINDS), None)


def _words() -> list[str]:
    """Returns the words of the line; of a line that ends in `--set`, click has read no argument yet."""
    return (os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or "").split()[2:]


def _kind_meant(word: str) -> str:
    place = Path(os.path.expanduser(word))
    return _kind_of(place) or _kind_of(Path(RUN_FOLDER) / word) or word


def _values(cls: type[LabBaseConfig], name: str) -> list[str]:
    from llmlab.config.base import members

    field = cls.model_fields.get(name)
    if field is None:
        return []
    if name in NAMES_OF_MODELS:
        return ["newest", *map(str, runs())]
    words: list[str] = []
    for member in members(field.annotation):
        words += ["true", "false"] if member is bool else []
        words += [str(choice) for choice in typing.get_args(member) if typing.get_origin(member) is Literal]
    return words
