"""The record of an evaluation, `evaluation.json`: what of it is read again has the types that are written. No
torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from llmlab.files import read_object

RECORD = "evaluation.json"
LARGEST = 50_000_000  # bytes


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Model(_Part):
    name: str
    role: str


class _Entry(_Part):
    value: float
    low: float | None
    high: float | None
    seeds: _Seeds | None = None


class _Seeds(_Part):
    values: list[float]
    spread: float


class _Bin(_Part):
    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


class _Result(_Part):
    source: str
    model: str
    role: str
    measure: str
    rows: int
    figures: dict[str, _Entry]
    reading: dict[str, float]
    notes: list[str]
    labels: list[str] = []
    confusion: list[list[int]] = []
    reliability: list[_Bin] = []


class _Difference(_Part):
    source: str
    figure: str
    model: str
    against: str
    difference: float
    low: float | None
    high: float | None
    p: float
    words: str


class _Gate(_Part):
    passed: bool
    breaches: list[str]


class _Source(_Part):
    source: str
    model: str
    role: str
    measure: str
    rows: int
    reading: dict[str, float]
    notes: list[str]


class _Record(_Part):
    status: str
    models: list[_Model]
    started: str = ""
    seconds: float = 0.0
    asked: dict[str, Any] = {}
    sources: list[_Source] = []
    results: list[_Result] = []
    differences: list[_Difference] = []
    forgetting: list[_Difference] | None = None
    gate: _Gate | None = None


def read_record(folder: Path) -> tuple[dict[str, Any], str]:
    """Returns the record of an evaluation and what is wrong with it: (record, "") or ({}, what is wrong).

    A folder without a record gives ({}, "").
    """
    try:
        record = read_object(folder / RECORD, largest=LARGEST)
        checked = _Record.model_validate(record)
    except (FileNotFoundError, NotADirectoryError):
        return {}, ""
    except OSError as error:
        return {}, f"cannot be read ({error.strerror})"
    except ValidationError as error:
        fault = error.errors()[0]
        return {}, f"`{'.'.join(map(str, fault['loc']))}`: {fault['msg']}"
    except ValueError as error:
        return {}, str(error)
    if not checked.models:
        return {}, "names no model"
    return record, ""
