"""What several commands share: options and arguments, and how their values become configs."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmlab.cli import completing
from llmlab.cli.completing import one_of
from llmlab.errors import LabError
from llmlab.readable import visible

if TYPE_CHECKING:
    from llmlab.config import KindConfig, SourceConfig
    from llmlab.config.loading import LoadOptions
    from llmlab.config.rewards import RewardSource

KindArgument = Annotated[
    str,
    typer.Argument(
        help="Kind of config: `model`, or a method that `llmlab methods` lists.",
        autocompletion=completing.kinds,
    ),
]
CheckpointArgument = Annotated[
    str,
    typer.Argument(help="A run, a model folder, a GGUF file or a hub id.", autocompletion=completing.runs),
]
ConfigArgument = Annotated[
    Path, typer.Argument(help="A config file, JSON or YAML.", autocompletion=completing.configs)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change an option of the config.",
        autocompletion=completing.changes,
    ),
]
TrustOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="Trust this code to run: a reward `module:function`, or a model's own code."
    ),
]
# their texts are those of `llmlab.config.loading`, as a test sees to: help appears without reading configs
LoadInOption = Annotated[
    str,
    typer.Option(
        metavar="none|8bit|4bit",
        help="Quantise the weights with bitsandbytes as they are loaded.",
        autocompletion=one_of("none|8bit|4bit"),
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="auto|cuda|mps|cpu",
        help="Where the model computes.",
        autocompletion=one_of("auto|cuda|mps|cpu"),
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option(
        metavar="auto|fp32|bf16|fp16",
        help="Number format of the weights; of quantised ones, of the matrix products.",
        autocompletion=one_of("auto|fp32|bf16|fp16"),
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON.")]


def parse_changes(pairs: list[str] | None) -> dict[str, Any]:
    """Returns `key=value` pairs as a dictionary; values are JSON where they parse as such (1e3 as the whole
    number), else text.

    Raises:
        LabError: when a pair has no `=`.
    """
    changes = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals:
            raise LabError(f"`--set {pair}` has no value", remedy="write --set key=value")
        try:
            parsed = json.loads(value)
            whole = isinstance(parsed, float) and "e" in value.lower() and parsed.is_integer()
            changes[key.strip()] = int(parsed) if whole else parsed
        except (ValueError, RecursionError):  # a text, and whatever else JSON is not
            changes[key.strip()] = value
    return changes


def option_changes(cls: Any, set_: list[str] | None) -> dict[str, Any]:
    """Returns the changes of a block of options, numbers as people write them included."""
    from llmlab.config.base import as_number

    changes = parse_changes(set_)
    return {
        name: as_number(cls, name, value) if isinstance(value, str) else value
        for name, value in changes.items()
    }


def load_options(load_in: str, device: str, dtype: str) -> LoadOptions:
    """Returns how a model is loaded.

    Raises:
        LabError: when a value is none of the choices.
    """
    from llmlab.config.base import validate
    from llmlab.config.loading import LoadOptions

    return validate(LoadOptions, {"load_in": load_in, "device": device, "dtype": dtype})


def load(path: Path, set_: list[str] | None) -> KindConfig:
    """Returns the config of a file or of a run's folder, with changes; says on stderr what was migrated.

    Raises:
        LabError: when there is none, it is damaged, or a change does not validate.
    """
    from llmlab.config import apply_changes, load_config
    from llmlab.runs.folder import run_config

    config = run_config(path) if path.is_dir() else load_config(path)
    if config.migrated:
        typer.echo(visible(f"{path}: {config.migrated}"), err=True)
    return apply_changes(config, parse_changes(set_)) if set_ else config


def load_for_run(path: Path, set_: list[str] | None) -> KindConfig:
    """Returns the config of a file or of a run's folder, with `newest` replaced by the name of a run."""
    from llmlab.models.resolve import with_newest

    return with_newest(load(path, set_))


def source_config(line: str, set_: list[str] | None) -> SourceConfig:
    """Returns the source that a line names, or an object as JSON, with changes.

    Raises:
        LabError: when it is neither.
    """
    from llmlab.config import SourceConfig
    from llmlab.config.base import validate

    source = validate(SourceConfig, _object(line) if line.lstrip().startswith("{") else line)
    return (
        validate(
            SourceConfig, {**source.model_dump(exclude_unset=True), **option_changes(SourceConfig, set_)}
        )
        if set_
        else source
    )


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise LabError(
            "is no JSON object", where=text, remedy='write \'{"name": "mails.jsonl", "split": "test"}\''
        ) from None


def trust_names(names: list[str] | None) -> None:
    """Agrees to run the code of these names in this process."""
    from llmlab.trust import TRUSTED

    TRUSTED.update(names or [])


def trust_rewards(rewards: Iterable[RewardSource]) -> None:
    """Asks at a terminal for each reward that is code of one's own, until its name is typed; elsewhere, and
    with several processes, nobody is asked.

    Raises:
        LabError: when something else was typed.
    """
    from llmlab.training.rewards import refuse_untrusted, untrusted
    from llmlab.trust import TRUSTED

    rewards = list(rewards)
    if not sys.stdin.isatty() or os.environ.get("WORLD_SIZE", "1") != "1":
        return
    for name in untrusted(rewards):
        question = f"The reward {name} is code that will be imported and run. Type its name to agree:"
        typer.echo(visible(question), err=True)
        if input().strip() != name:
            break
        TRUSTED.add(name)
    refuse_untrusted(rewards)


def quiet_datasets() -> None:
    """Keeps the progress bars and notes of datasets off the screen."""
    import datasets

    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()


def print_json(data: Any) -> None:
    """Prints a result on stdout as one line of JSON: dataclasses as objects, paths as texts, a figure that is
    not finite as null.
    """
    typer.echo(json.dumps(_as_json(data)))


def _as_json(data: Any) -> Any:
    if is_dataclass(data) and not isinstance(data, type):
        return {field.name: _as_json(getattr(data, field.name)) for field in fields(data)}
    if isinstance(data, Mapping):
        return {str(key): _as_json(value) for key, value in data.items()}
    if isinstance(data, (list, tuple, set, frozenset)):
        return [_as_json(value) for value in data]
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    return data if data is None or isinstance(data, (str, int)) else str(data)


def show(shown: Any) -> None:
    """Prints what is for people, on stdout."""
    from llmlab.screen import LabConsole

    LabConsole().print(shown)
