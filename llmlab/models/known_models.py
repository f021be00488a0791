"""Models whose shape ships with the package (`known_models.toml`), so that a plan can be made before one is
downloaded. No torch.
"""

from __future__ import annotations

import difflib
import functools
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmlab.models.shapes import CheckpointShape, shape_of_config

FILE = Path(__file__).with_name("known_models.toml")


@dataclass(frozen=True)
class KnownModel:
    """A model on the hub.

    Attributes:
        id: on the hub.
        also: ids of models of the same shape.
        parameters: as they were published, rounded: "8.03B".
        source: the page of its config.
        config: the fields of its `config.json` that the shape follows from.
    """

    id: str
    parameters: str
    source: str
    config: dict[str, Any]
    also: list[str] = field(default_factory=list)


@functools.cache
def known_models() -> dict[str, KnownModel]:
    """Returns the known models by hub id, in lower case; those of one shape are one record."""
    models = [KnownModel(**entry) for entry in _table()["model"]]
    return {name.lower(): model for model in models for name in (model.id, *model.also)}


def has_experts(name: str) -> str:
    """Returns the architecture of a known mixture of experts; "" where the name is none."""
    for entry in _table()["experts"]:
        if name.lower() in (one.lower() for one in entry["ids"]):
            return str(entry["model_type"])
    return ""


@functools.cache
def _table() -> dict[str, list[dict[str, Any]]]:
    with open(FILE, "rb") as file:
        return tomllib.load(file)


@functools.cache
def known_shape(name: str) -> CheckpointShape | None:
    """Returns the shape of a known model; None where the name is none."""
    model = known_models().get(name.lower())
    return shape_of_config(model.config, name) if model else None


def nearest_known(name: str, count: int = 3) -> list[str]:
    """Returns the known models whose names are most like this one."""
    ids = {key: key for key in known_models()} | {key.split("/")[-1]: key for key in known_models()}
    named = difflib.get_close_matches(name.lower(), ids, n=2 * count, cutoff=0.5)
    proper = {one.lower(): one for model in known_models().values() for one in (model.id, *model.also)}
    return list(dict.fromkeys(proper[ids[match]] for match in named))[:count]
