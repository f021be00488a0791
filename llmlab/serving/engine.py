"""The model behind a server: one thread answers one request after the other; a request that its client gave
up, waiting or being answered, takes no more time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from llmlab.chat.generation import Encoded, encode, is_chat_model, stream_encoded
from llmlab.chat.pieces import Ending, Piece
from llmlab.config.chat import ChatSettings
from llmlab.data.messages import as_messages
from llmlab.data.messages import tools as tools_of
from llmlab.data.rendering import check_parts, render
from llmlab.data.schemas import CALL_ID, PARTS_OF_A_TURN, TOOLS, InvalidRow, Messages
from llmlab.models import LabDualHeadForCausalLM
from llmlab.models.transformer.context import context_length
from llmlab.models.typed import LanguageModel
from llmlab.readable import shortened
from llmlab.serving.errors import ApiError

MOST_WAITING = 512  # requests; one more is told to come again
ROLES = {"developer": "system"}  # OpenAI's newer name

Said = Piece | Ending | BaseException


@dataclass(frozen=True)
class Asked:
    """What is answered.

    Attributes:
        encoded: the prompt.
        settings: how it is answered.
        stops: texts at which the answer ends.
        raw: whether special tokens stay in the text: a parser reads them.
    """

    encoded: Encoded
    settings: ChatSettings
    stops: Sequence[str] = ()
    raw: bool = False


@dataclass
class Engine:
    """A loaded model and the thread that answers.

    Attributes:
        model: in evaluation mode.
        tokenizer: its own.
        settings: for what a request leaves out.
    """

    model: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    settings: ChatSettings
    _worker: ThreadPoolExecutor = field(init=False)
    _answering: bool = False
    _running: set[threading.Event] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self.chats = is_chat_model(self.tokenizer)
        self.fused = isinstance(self.model, LabDualHeadForCausalLM)
        self.context = context_length(self.model)

    @property
    def busy(self) -> bool:
        """Whether the model is answering."""
        return self._answering

    def stop(self) -> None:
        """Ends what is being answered and all that waits."""
        for given_up in list(self._running):
            given_up.set()

    def turns(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, settings: ChatSettings
    ) -> Messages:
        """Returns a conversation as the template takes it, after rendering it once.

        In the main thread, where a template that never ends is stopped.

        Raises:
            ApiError: when it cannot be answered by this model.
            LabError: when the template refuses it.
        """
        if not self.chats:
            raise ApiError(400, "this is a base model without a chat template: use /v1/completions")
        try:
            turns = as_messages([_renamed(turn) for turn in messages])
            if not turns or turns[-1]["role"] not in ("user", "tool"):
                raise ApiError(400, "`messages` does not end with a message of the user or of a tool")
            if settings.system_prompt and turns[0]["role"] != "system":
                turns = [{"role": "system", "content": settings.system_prompt}, *turns]
            if tools:
                turns[0] = {**turns[0], TOOLS: tools_of(tools)}
        except InvalidRow as invalid:
            raise ApiError(400, f"`messages`: {invalid.reason}") from None
        render(self.tokenizer, turns, generate=True)
        return turns

    def conversation(self, turns: Messages, settings: ChatSettings) -> Encoded:
        """Returns a conversation as tokens.

        Raises:
            ApiError: when the template leaves a part of it out.
            LabError: when it is too long.
        """
        try:
            check_parts(self.tokenizer, turns)
        except InvalidRow as invalid:
            raise ApiError(400, f"`messages`: {invalid.reason}") from None
        prompt = render(self.tokenizer, turns, generate=True)
        return encode(self.model, self.tokenizer, prompt, settings)

    def text(self, prompt: str, settings: ChatSettings) -> Encoded:
        """Returns a text to continue as tokens.

        Raises:
            LabError: when it is empty or too long.
        """
        return encode(self.model, self.tokenizer, prompt, settings, rendered=False)

    async def answer(self, asked: Asked) -> AsyncGenerator[Piece | Ending]:
        """Yields the pieces of an answer, then how it ended; closing the iterator stops the model after the
        current token.

        Raises:
            ApiError: when too many wait already, the server is stopping, or the model fails.
        """
        if len(self._running) >= MOST_WAITING:
            raise ApiError(503, f"{MOST_WAITING} requests are waiting already: try again later")
        loop = asyncio.get_running_loop()
        said: asyncio.Queue[Said] = asyncio.Queue()
        given_up = threading.Event()

        def put(item: Said) -> None:
            loop.call_soon_threadsafe(said.put_nowait, item)

        self._running.add(given_up)
        try:
            self._worker.submit(self._work, asked, put, given_up)
            while True:
                item = await said.get()
                if isinstance(item, ApiError):
                    raise item
                if isinstance(item, BaseException):
                    raise ApiError(500, "the model failed while it answered") from item
                yield item
                if isinstance(item, Ending):
                    return
        finally:
            given_up.set()
            self._running.discard(given_up)

    def _work(self, asked: Asked, put: Callable[[Said], None], given_up: threading.Event) -> None:
        """Answers in the worker's thread."""
        self._answering = True
        try:
            pieces = stream_encoded(
                self.model,
                self.tokenizer,
                asked.encoded,
                asked.settings,
                asked.stops,
                raw=asked.raw,
                given_up=given_up,
            )
            ending = None
            while not given_up.is_set() and not ending:
                try:
                    put(next(pieces))
                except StopIteration as end:
                    ending = end.value
            pieces.close()
            put(ApiError(503, "the server is stopping") if given_up.is_set() or not ending else ending)
        except BaseException as error:  # whatever it is, the client must not wait for ever
            put(error)
        finally:
            self._answering = False


def _renamed(turn: dict[str, Any]) -> dict[str, Any]:
    """Returns a message with the role's older name.

    Raises:
        InvalidRow: when it holds something that would be left out.
    """
    known = ("role", "content", CALL_ID, *PARTS_OF_A_TURN)
    if unknown := [name for name, value in turn.items() if value and name not in known]:
        raise InvalidRow(f"a message holds `{shortened(unknown[0], 50)}`, which this server does not read")
    role = turn.get("role")
    return {**turn, "role": ROLES.get(role, role)} if isinstance(role, str) else turn
