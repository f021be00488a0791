"""Configs of TRL, LLaMA-Factory and axolotl, converted to ours. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmlab.config.base import KindConfig, validate
from llmlab.config.convert import axolotl, llamafactory, trl
from llmlab.config.convert.rules import Draft, Left, Rule, Unfit
from llmlab.config.loader import MAX_BYTES, is_yaml, kind_class
from llmlab.config.training import TrainingConfig
from llmlab.errors import LabError
from llmlab.files import BadFile, read_json


@dataclass(frozen=True)
class Tool:
    """A tool whose configs are read.

    Attributes:
        title: its name.
        signs: options that no other tool has.
        rules: option -> what becomes of it.
        defaults: kind ("" for all) -> what the tool takes where a file says nothing.
        special: converts what takes more than a rule.
        kind_of: the kind of config that a file is, where the file says it.
    """

    title: str
    signs: tuple[str, ...]
    rules: Mapping[str, Rule]
    defaults: Mapping[str, Mapping[str, Any]]
    special: Callable[[Draft], None]
    kind_of: Callable[[dict[str, Any]], str]


@dataclass(frozen=True)
class Conversion:
    """What became of a config.

    Attributes:
        tool: whose it is.
        config: ours.
        converted: options of the tool -> options of ours.
        needless: options -> why they need none here.
        left: options that have no counterpart.
        defaults: what the tool takes by default and is written out, since ours differ.
    """

    tool: str
    config: KindConfig
    converted: dict[str, str]
    needless: dict[str, str]
    left: list[Left]
    defaults: dict[str, Any]


def _trl_kind(data: dict[str, Any]) -> str:
    found = next((kind for kind, signs in trl.SIGNS if any(name in data for name in signs)), None)
    if found is None:
        raise LabError(
            "TRL's file does not say which method it is for: `trl sft`, `trl dpo` ... says it",
            remedy="add --kind sft (or dpo, reward, grpo)",
        )
    return found


TOOLS = {
    "trl": Tool(
        "TRL",
        ("dataset_name", "dataset_train_split", "use_peft", "lora_target_modules", "max_completion_length"),
        trl.RULES,
        trl.DEFAULTS,
        trl.special,
        _trl_kind,
    ),
    "llamafactory": Tool(
        "LLaMA-Factory",
        ("stage", "finetuning_type", "cutoff_len", "template", "lora_rank", "lora_target"),
        llamafactory.RULES,
        llamafactory.DEFAULTS,
        llamafactory.special,
        llamafactory.kind_of,
    ),
    "axolotl": Tool(
        "axolotl",
        ("base_model", "micro_batch_size", "sequence_len", "val_set_size", "sample_packing", "num_epochs"),
        axolotl.RULES,
        axolotl.DEFAULTS,
        axolotl.special,
        axolotl.kind_of,
    ),
}


def recognised(data: Mapping[str, Any]) -> str:
    """Returns the tool of a config, by the options that only it has.

    Raises:
        LabError: when it is none of them, or as much one as another.
    """
    counts = {name: sum(sign in data for sign in tool.signs) for name, tool in TOOLS.items()}
    best = max(counts, key=lambda name: counts[name])
    if not counts[best] and "model_name_or_path" in data:
        return "trl"  # a file of transformers' options alone
    if not counts[best] or list(counts.values()).count(counts[best]) > 1:
        raise LabError(
            "is not recognised as a config of another tool", remedy=f"add --from {'|'.join(TOOLS)}"
        )
    return best


def convert_file(path: Path, tool: str = "", kind: str = "") -> Conversion:
    """Converts a config of another tool.

    Args:
        path: YAML or JSON.
        tool: whose it is; "" recognises it.
        kind: of the result; "" where the file says it.

    Raises:
        LabError: when the file cannot be read, is of no tool that is known, or what it says is no valid
            config here; what is missing is named.
    """
    data = _read(path)
    if "kind" in data and "schema_version" in data:
        raise LabError("is a config of llmlab already", where=str(path))
    try:
        return convert(data, tool or recognised(data), kind)
    except LabError as error:
        raise error.at(str(path)) from None


def convert(data: dict[str, Any], tool: str, kind: str = "") -> Conversion:
    """Converts the options of another tool.

    Raises:
        LabError: as `convert_file`.
    """
    if tool not in TOOLS:
        raise LabError(f"`--from` {tool!r} is not known", remedy=f"use one of {', '.join(TOOLS)}")
    source = TOOLS[tool]
    cls = kind_class(kind or source.kind_of(data))
    if not issubclass(cls, TrainingConfig):
        raise LabError(f"`--kind` {kind} is no method")
    defaults = {**source.defaults.get("", {}), **source.defaults.get(cls.KIND, {})}
    missing = {name: value for name, value in defaults.items() if data.get(name) is None}
    draft = Draft({**missing, **data, **missing}, cls, defaults=dict(missing))
    try:
        source.special(draft)
    except Unfit as reason:
        raise LabError(str(reason)) from None
    except (AttributeError, TypeError, ValueError):
        raise LabError(
            "holds a value of another type than this tool reads", remedy="check lists and numbers"
        ) from None
    draft.apply(source.rules)
    _require(draft, source.title)
    if "max_prompt_length" in cls.model_fields and (longest := draft.options.get("max_length")):
        draft.options.setdefault("max_prompt_length", max(1, longest // 2))  # the tools have none
    try:
        config = validate(cls, {"kind": cls.KIND, **draft.options})
    except LabError as error:
        raise LabError(error.what, where=f"converted from {source.title}", remedy=error.remedy) from None
    used = {name: value for name, value in draft.defaults.items() if value is not None}
    ours = {name: option for name, option in draft.converted.items() if name not in used}
    needless = {name: why for name, why in draft.needless.items() if name not in used}
    return Conversion(source.title, config, ours, needless, draft.left, used)


def _require(draft: Draft, tool: str) -> None:
    """Refuses a file without what the lab would fill in with something else."""
    wanted = {
        draft.start: "the model that is trained",
        "datasets": "the data",
    }
    missing = [f"`{option}` ({what})" for option, what in wanted.items() if not draft.options.get(option)]
    unnamed = [one for one in draft.options.get("datasets", []) if not one.get("name")]
    if missing or unnamed:
        what = " and ".join(missing) or "the name of a dataset"
        raise LabError(f"{what} is missing", where=f"converted from {tool}", remedy="add it to the file")


def _read(path: Path) -> dict[str, Any]:
    try:
        if is_yaml(path):
            from llmlab.config.yaml_file import read_yaml

            data = read_yaml(path).data
        else:
            data = read_json(path, largest=MAX_BYTES)
    except FileNotFoundError:
        raise LabError("there is no such file", where=str(path)) from None
    except BadFile as error:
        raise LabError(str(error), where=str(path)) from None
    except OSError as error:
        raise LabError(f"cannot be read ({error.strerror})", where=str(path)) from None
    if not isinstance(data, dict):
        raise LabError(
            "holds no options", where=str(path), remedy="name a config of TRL, LLaMA-Factory or axolotl"
        )
    return data
