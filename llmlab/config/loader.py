"""Configs on disk: one loader that tells the kinds apart by `kind`, migrates old versions,
and writes atomically.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llmlab.config.base import SCHEMA_VERSION, KindConfig, LabBaseConfig, as_number, as_typed, validate
from llmlab.config.dpo import DPOConfig
from llmlab.config.dual_head import DualHeadConfig
from llmlab.config.evaluation import EvaluationConfig
from llmlab.config.grpo import GRPOConfig
from llmlab.config.model import ModelConfig
from llmlab.config.ppo import PPOConfig
from llmlab.config.pretrain import PretrainConfig
from llmlab.config.reward import RewardConfig
from llmlab.config.sft import SFTConfig
from llmlab.errors import LabError
from llmlab.files import BadFile, read_json, write_text_atomically
from llmlab.readable import nested_deeper

if TYPE_CHECKING:
    from llmlab.config.yaml_file import YamlData

KINDS: dict[str, type[KindConfig]] = {
    cls.KIND: cls
    for cls in (
        ModelConfig,
        PretrainConfig,
        SFTConfig,
        RewardConfig,
        DPOConfig,
        GRPOConfig,
        PPOConfig,
        DualHeadConfig,
        EvaluationConfig,
    )
}
K = TypeVar("K", bound=KindConfig)
MAX_BYTES = 1_000_000  # no config is longer; what is longer is not a config
FAULTY = re.compile(r"(?:unknown option )?`([^`]+)`")  # how a fault names its option
MAX_DEPTH = 12  # lists and objects inside one another
# version -> from the JSON data of that version to that of the next, and what was changed, in words
MIGRATIONS: dict[int, Callable[[dict[str, Any]], tuple[dict[str, Any], list[str]]]] = {}


def kind_class(kind: Any) -> type[KindConfig]:
    """Returns the config class of a kind.

    Raises:
        LabError: when there is no such kind.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(str(kind), KINDS, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(KINDS)}"
        raise LabError(f"`kind` {kind!r} is not a kind of config", remedy=remedy)
    return KINDS[kind]


def parse_config(data: Any, where: str = "") -> KindConfig:
    """Returns the validated config of JSON data.

    Raises:
        LabError: when it is no object, has no known kind, comes from a newer version, or does not validate.
    """
    if not isinstance(data, dict):
        raise LabError("a config is a JSON object", where=where, remedy="`llmlab new KIND` writes one")
    if nested_deeper(data, MAX_DEPTH):
        raise LabError(f"is nested more than {MAX_DEPTH} deep, which no config is", where=where)
    if "kind" not in data:
        raise LabError("`kind` is missing", where=where, remedy=f"add one of {', '.join(KINDS)}")
    version = data.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or (version != SCHEMA_VERSION and version not in MIGRATIONS):
        raise LabError(
            f"`schema_version` {version!r} is not known here (this is {SCHEMA_VERSION})",
            where=where,
            remedy=(
                "update llmlab"
                if isinstance(version, int) and version > SCHEMA_VERSION
                else f"write {SCHEMA_VERSION}"
            ),
        )
    changed: list[str] = []
    for old in range(version, SCHEMA_VERSION):
        data, notes = MIGRATIONS[old](dict(data))
        changed += notes
    if not isinstance(data["kind"], str):
        raise LabError(
            f"`kind` is {str(data['kind'])[:60]!r}, not a text",
            where=where,
            remedy=f"one of {', '.join(KINDS)}",
        )
    try:
        config = validate(kind_class(data["kind"]), {**data, "schema_version": SCHEMA_VERSION})
    except LabError as error:
        raise error.at(where) if where else error from None
    if version < SCHEMA_VERSION:
        config._migrated = (
            f"schema {version} was read as schema {SCHEMA_VERSION}:"
            f" {'; '.join(changed) or 'nothing had to change'}"
        )
    return config


def is_yaml(path: Path) -> bool:
    """Returns whether a file is YAML by its name."""
    return path.suffix.lower() in (".yaml", ".yml")


def load_config(path: str | Path) -> KindConfig:
    """Reads a config file, JSON or by its name YAML.

    Raises:
        LabError: when the file is missing, unreadable, neither JSON nor YAML (with the line) or not a
            valid config.
    """
    path = Path(path)
    try:
        if is_yaml(path):
            from llmlab.config.yaml_file import read_yaml  # PyYAML costs time, and most configs are JSON

            return _parse_yaml_config(read_yaml(path), str(path))
        data = read_json(path, largest=MAX_BYTES)
    except FileNotFoundError:
        raise LabError(
            "there is no such config file", where=str(path), remedy="`llmlab new KIND -o FILE` writes one"
        ) from None
    except BadFile as error:
        remedy = (
            "it may be truncated or mistyped there"
            if "is not valid" in str(error)
            else "`llmlab new KIND` writes a config"
        )
        raise LabError(str(error), where=str(path), remedy=remedy) from None
    except OSError as error:
        raise LabError(f"cannot be read ({error.strerror})", where=str(path)) from None
    return parse_config(data, where=str(path))


def _parse_yaml_config(read: YamlData, where: str) -> KindConfig:
    """Returns the validated config of YAML data; what is wrong is said with its line."""
    data = read.data
    cls = KINDS.get(str(data.get("kind"))) if isinstance(data, dict) else None
    try:
        return parse_config(as_typed(cls, data) if cls else data)
    except LabError as error:
        faults = [(FAULTY.match(line), line) for line in error.what.splitlines()]
        numbered = [(read.lines.get(match[1]) if match else None, line) for match, line in faults]
        if len(numbered) == 1 and numbered[0][0]:
            place, what = f"{where}, line {numbered[0][0]}", error.what
        else:
            place = where
            what = "\n".join(f"line {number}: {line}" if number else line for number, line in numbered)
        raise LabError(what, where=place, remedy=error.remedy) from None


def save_config(config: LabBaseConfig, path: str | Path) -> Path:
    """Writes a config as JSON, or as YAML by the file's name, whole or not at all, and returns its path.

    Raises:
        LabError: when the folder cannot be written.
    """
    path = Path(path)
    data = config.to_json_dict()
    if is_yaml(path):
        from llmlab.config.yaml_file import dump_yaml

        text = dump_yaml(data)
    else:
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    write_text_atomically(path, text)
    return path


def apply_changes(config: K, changes: dict[str, Any]) -> K:
    """Returns the config with options replaced; `a.b` names an option of a nested block.

    Values that no longer apply after the change fall back to their defaults; a changed option that does not
    apply is an error.

    Raises:
        LabError: when an option is unknown or the result does not validate.
    """
    cls = type(config)
    set_options = {
        "kind",
        "schema_version",
        *config.model_fields_set,
    }  # defaults may follow from other options: warm-up from steps
    data = {name: value for name, value in config.to_json_dict().items() if name in set_options}
    aliases = {alias: name for name, info in cls.options().items() for alias in info.aliases}
    for key, value in changes.items():
        *parents, last = key.split(".")
        target = data
        block: LabBaseConfig = config
        for parent in parents:
            inner = getattr(block, parent, None)
            if not isinstance(inner, LabBaseConfig):
                raise LabError(f"unknown option `{key}`", remedy=f"`{parent}` has no options of its own")
            target, block = target[parent], inner
        last = last if parents else aliases.get(last, last)
        kind = last
        if last == "eval_steps" and not parents:  # the older way to say it
            target.pop(kind := "eval_rows", None)
        target[last] = as_number(type(block), kind, value) if isinstance(value, str) else value
    changed = {aliases.get(key, key) for key in changes}
    draft = {
        **{name: field.get_default(call_default_factory=True) for name, field in cls.model_fields.items()},
        **data,
    }
    for name, info in cls.options().items():
        met = all(draft.get(other) in values for other, values in info.applies_when.items())
        if not met and name not in changed:
            data.pop(name, None)
    return validate(cls, data)


def schema(kind: str) -> dict[str, Any]:
    """Returns the JSON Schema of a kind, for editors."""
    json_schema = kind_class(kind).model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **json_schema}
