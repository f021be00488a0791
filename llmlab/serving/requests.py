"""Requests: read within bounds, validated, and for the served model alone."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TypeVar

from fastapi import Request

from llmlab.config.base import validate
from llmlab.config.chat import ChatSettings
from llmlab.config.serving import AnswerRequest
from llmlab.files import DEEPEST
from llmlab.readable import nested_deeper, shortened, type_words
from llmlab.serving.engine import Engine
from llmlab.serving.errors import ApiError

LARGEST_BODY = 10_000_000  # bytes
MOST_STOPS = 16
R = TypeVar("R", bound=AnswerRequest)


@dataclass(frozen=True)
class Served:
    """What an app needs.

    Attributes:
        engine: that answers.
        name: of the model, for clients.
        key: that requests have to bring; "" for none.
        created: when the server was started, in seconds since 1970.
    """

    engine: Engine
    name: str
    key: str = ""
    created: int = field(default_factory=lambda: int(time.time()))


def refuse_other(served: Served, name: str) -> None:
    """Refuses another model than the one that is served.

    Raises:
        ApiError: naming it.
    """
    if name != served.name:
        raise ApiError(
            404,
            f"there is no model {shortened(name, 200)!r} here; this server has {served.name!r}",
            "model_not_found",
        )


async def read(served: Served, request: Request, cls: type[R]) -> R:
    """Returns the request, validated.

    Raises:
        ApiError: when it is no JSON, names another model, or asks for what cannot be honoured.
    """
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > LARGEST_BODY:
            raise ApiError(413, f"the request has more than {LARGEST_BODY:,} bytes")
    try:
        data = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise ApiError(400, "the request is not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise ApiError(
            400, f"the request is not valid JSON ({error.msg} at line {error.lineno}, column {error.colno})"
        ) from None
    except (ValueError, RecursionError):
        raise ApiError(400, "the request is no JSON that can be read") from None
    if not isinstance(data, dict):
        raise ApiError(400, f"the request is {type_words(data)}, not a JSON object")
    if nested_deeper(data, DEEPEST):
        raise ApiError(400, f"the request is nested more than {DEEPEST} deep")
    asked = validate(cls, {name: value for name, value in data.items() if value is not None})
    if not asked.model:
        raise ApiError(400, "`model` is missing")
    refuse_other(served, asked.model)
    if asked.alignment is not None and not served.engine.fused:
        raise ApiError(400, "`alignment` is for dual heads: this model has none")
    if len(stops_of(asked)) > MOST_STOPS:
        raise ApiError(400, f"`stop` holds more than {MOST_STOPS} texts")
    return asked


def stops_of(asked: AnswerRequest) -> list[str]:
    """Returns the texts at which an answer ends."""
    return [asked.stop] if isinstance(asked.stop, str) else asked.stop or []


def settings_of(served: Served, asked: AnswerRequest) -> ChatSettings:
    """Returns how a request is answered: as it says, else as the server was started."""
    names = {"max_new_tokens": "max_tokens"}
    changes = {
        name: value
        for name in ChatSettings.model_fields
        if (value := getattr(asked, names.get(name, name), None)) is not None
    }
    return served.engine.settings.model_copy(update=changes)
