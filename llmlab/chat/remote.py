"""A conversation with a served model: `llmlab serve`, or another server of OpenAI's form."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from llmlab.chat.conversation import Conversation
from llmlab.chat.pieces import Piece
from llmlab.config.chat import ChatSettings
from llmlab.endpoint import client_of, told
from llmlab.errors import LabError

EVERYWHERE = ("temperature", "top_p", "max_new_tokens", "seed", "system_prompt")
WITH_LLMLAB = ("top_k", "repetition_penalty")  # a server of the lab takes them, too
OF_A_DUAL_HEAD = "alignment"


@dataclass(frozen=True)
class RemoteModel:
    """A model of a server.

    Attributes:
        url: of the server.
        name: of the model.
        chats: whether it is asked with messages; else it continues texts.
        honoured: the settings that it takes.
    """

    url: str
    name: str
    chats: bool
    honoured: tuple[str, ...]


class RemoteSession(Conversation):
    """A conversation with a served model.

    Args:
        url: of the server, `http://127.0.0.1:8000`; `#name` behind it names one of several models.
        settings: how it answers.

    Raises:
        LabError: when the server cannot be reached, has no such model, or a setting cannot be honoured.
    """

    def __init__(self, url: str, settings: ChatSettings):
        address, _, wanted = url.partition("#")
        address = address.rstrip("/")
        self.client = client_of(address)
        with told(address):
            self.remote = _model(address, wanted, list(self.client.models.list()))
        super().__init__(url, settings, chats=self.remote.chats)
        self.adopt(settings)

    @property
    def fused(self) -> bool:
        """Whether there is an alignment to turn."""
        return OF_A_DUAL_HEAD in self.remote.honoured

    def adopt(self, settings: ChatSettings) -> None:
        """Takes settings.

        Raises:
            LabError: when one differs from its default and the server does not take it.
        """
        default = ChatSettings()
        for name in ChatSettings.model_fields:
            if name not in self.remote.honoured and getattr(settings, name) != getattr(default, name):
                raise LabError(
                    f"`{name}` cannot be honoured by this server",
                    where=self.remote.url,
                    remedy=f"it takes {', '.join(self.remote.honoured)}",
                )
        self.settings = settings

    def shown_options(self) -> list[str]:
        """Returns the settings that `/set` lists."""
        return [name for name in ChatSettings.model_fields if name in self.remote.honoured]

    def pieces(self, said: str) -> Generator[Piece, None, object]:
        """Yields the answer piece by piece; closing the iterator lets the server stop.

        Raises:
            LabError: when the server refuses, or cannot be reached.
        """
        self.refuse_no_text(said)
        with told(self.remote.url), contextlib.ExitStack() as stack:
            stream = self._asked(said)
            stack.callback(stream.close)
            for chunk in stream:
                for choice in chunk.choices:
                    if thought := self.chats and (choice.delta.model_extra or {}).get("reasoning_content"):
                        piece = Piece(thought)
                        piece.thought = True
                        yield piece
                    if text := choice.delta.content if self.chats else choice.text:
                        yield Piece(text)
        return None

    def _asked(self, said: str) -> Any:
        settings, extra = self.settings, {}
        for name in (*WITH_LLMLAB, OF_A_DUAL_HEAD):
            if name in self.remote.honoured:
                extra[name] = getattr(settings, name)
        more: dict[str, Any] = {
            "model": self.remote.name,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_tokens": settings.max_new_tokens,
            "stream": True,
            "extra_body": extra,
        }
        if settings.seed is not None:
            more["seed"] = settings.seed
        if not self.chats:
            return self.client.completions.create(prompt=said, **more)
        system = [{"role": "system", "content": settings.system_prompt}] if settings.system_prompt else []
        messages: Any = [*system, *self.messages, {"role": "user", "content": said}]
        return self.client.chat.completions.create(messages=messages, **more)


def _model(url: str, wanted: str, models: list[Any]) -> RemoteModel:
    """Returns the model that is talked to: the wanted one, else the server's first.

    Raises:
        LabError: when there is none.
    """
    names = [model.id for model in models]
    if not names:
        raise LabError("serves no model", where=url)
    if wanted and wanted not in names:
        raise LabError(f"serves no model {wanted!r}, but {', '.join(names[:10])}", where=url)
    model = next(model for model in models if model.id == (wanted or names[0]))
    about = model.model_extra or {}
    own = model.owned_by == "llmlab"
    honoured = (
        *EVERYWHERE,
        *(WITH_LLMLAB if own else ()),
        *((OF_A_DUAL_HEAD,) if own and about.get("dual_head") is True else ()),
    )
    return RemoteModel(url, model.id, about.get("chat", True) is True if own else True, honoured)
