"""The interface: `/v1/models`, `/v1/chat/completions`, `/v1/completions`, `/health`, in OpenAI's form.

Nothing of a request or an answer is printed or kept. Another model than the one that was loaded is never
loaded, whatever a request names.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from llmlab.chat.pieces import Ending, Piece
from llmlab.config.serving import ChatRequest, CompletionRequest
from llmlab.errors import LabError
from llmlab.serving.engine import Asked, Engine
from llmlab.serving.errors import ApiError, refused
from llmlab.serving.gate import HEALTH, Gate
from llmlab.serving.parsing import AnswerParser, whole_message
from llmlab.serving.requests import Served, read, refuse_other, settings_of, stops_of

MOST_PROMPTS = 64
T = TypeVar("T")


def create_app(served: Served) -> FastAPI:
    """Returns the app."""
    app = FastAPI(openapi_url=None)
    app.add_middleware(Gate, key=served.key)

    @app.exception_handler(ApiError)
    async def _api_error(request: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status)

    @app.exception_handler(LabError)
    async def _lab_error(request: Request, error: LabError) -> Response:
        return await _api_error(request, refused(error))

    @app.exception_handler(HTTPException)
    async def _http_error(request: Request, error: HTTPException) -> Response:
        message = {404: "there is no such address here", 405: "this address takes another method"}
        return await _api_error(
            request, ApiError(error.status_code, message.get(error.status_code, str(error.detail)))
        )

    @app.get(HEALTH)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_about(served)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        refuse_other(served, name)
        return _about(served)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await _chat(served, request)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await _completions(served, request)

    return app


def _about(served: Served) -> dict[str, Any]:
    """Returns the served model in OpenAI's form, and what the lab's own chat wants to know."""
    engine = served.engine
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "llmlab",
        "chat": engine.chats,
        "dual_head": engine.fused,
        "context": engine.context,
    }


async def _chat(served: Served, request: Request) -> Response:
    asked = await read(served, request, ChatRequest)
    settings = settings_of(served, asked)
    tools = None if asked.tool_choice == "none" else asked.tools
    engine = served.engine
    turns = engine.turns(asked.messages, tools, settings)
    encoded = await asyncio.to_thread(engine.conversation, turns, settings)
    parser = AnswerParser(engine.tokenizer, engine.model, encoded.ids, tools)
    said = engine.answer(Asked(encoded, settings, stops_of(asked), raw=parser.active))
    about = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": served.name}
    if asked.stream:
        about["object"] = "chat.completion.chunk"
        return _streamed(_chat_chunks(said, parser, about, asked))
    deltas, ending = await _unless_gone(request, _collected(said, parser))
    choice = {
        "index": 0,
        "message": whole_message(deltas),
        "logprobs": None,
        "finish_reason": _reason(ending, parser),
    }
    return JSONResponse(
        {**about, "object": "chat.completion", "choices": [choice], "usage": _usage([ending])}
    )


async def _chat_chunks(
    said: AsyncGenerator[Piece | Ending], parser: AnswerParser, about: dict[str, Any], asked: ChatRequest
) -> AsyncIterator[dict[str, Any]]:
    def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {**about, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

    yield chunk({"role": "assistant", "content": ""})
    async with contextlib.aclosing(said):
        async for item in said:
            for delta in parser.rest() if isinstance(item, Ending) else parser.deltas(item):
                yield chunk(delta)
            if isinstance(item, Ending):
                yield chunk({}, _reason(item, parser))
                if (asked.stream_options or {}).get("include_usage"):
                    yield {**about, "choices": [], "usage": _usage([item])}


async def _collected(
    said: AsyncGenerator[Piece | Ending], parser: AnswerParser | None = None
) -> tuple[list[dict[str, Any]], Ending]:
    """Returns all of an answer and how it ended."""
    deltas: list[dict[str, Any]] = []
    async with contextlib.aclosing(said):
        async for item in said:
            if isinstance(item, Ending):
                return [*deltas, *(parser.rest() if parser else [])], item
            deltas += parser.deltas(item) if parser else [{"content": item}]
    raise ApiError(500, "the model failed while it answered")


async def _completions(served: Served, request: Request) -> Response:
    asked = await read(served, request, CompletionRequest)
    settings = settings_of(served, asked)
    prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    if not 1 <= len(prompts) <= MOST_PROMPTS:
        raise ApiError(400, f"`prompt` holds {len(prompts)} texts: between 1 and {MOST_PROMPTS} are answered")
    engine = served.engine
    encoded = [await asyncio.to_thread(engine.text, prompt, settings) for prompt in prompts]
    asked_for = [Asked(one, settings, stops_of(asked)) for one in encoded]
    about = {
        "id": f"cmpl-{secrets.token_hex(12)}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": served.name,
    }
    if asked.stream:
        return _streamed(_completion_chunks(engine, asked_for, about, asked))
    choices, endings = [], []
    for index, one in enumerate(asked_for):
        deltas, ending = await _unless_gone(request, _collected(engine.answer(one)))
        text = "".join(delta["content"] for delta in deltas)
        choices.append({"index": index, "text": text, "logprobs": None, "finish_reason": ending.reason})
        endings.append(ending)
    return JSONResponse({**about, "choices": choices, "usage": _usage(endings)})


async def _completion_chunks(
    engine: Engine, asked_for: list[Asked], about: dict[str, Any], asked: CompletionRequest
) -> AsyncIterator[dict[str, Any]]:
    endings = []
    for index, one in enumerate(asked_for):
        async with contextlib.aclosing(engine.answer(one)) as said:
            async for item in said:
                text, reason = str(item), None
                if isinstance(item, Ending):
                    text, reason = "", item.reason
                    endings.append(item)
                choice = {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
                yield {**about, "choices": [choice]}
    if (asked.stream_options or {}).get("include_usage"):
        yield {**about, "choices": [], "usage": _usage(endings)}


def _streamed(chunks: AsyncIterator[dict[str, Any]]) -> StreamingResponse:
    """Returns a response of server-sent events; an error in the middle is one of them."""

    async def events() -> AsyncIterator[str]:
        try:
            async for chunk in chunks:
                yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
        except ApiError as error:
            yield f"data: {json.dumps(error.body())}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})


async def _unless_gone(request: Request, answer: Coroutine[Any, Any, T]) -> T:
    """Returns an answer; where the client goes away meanwhile, its generation is stopped.

    Raises:
        ApiError: when the client is gone, or as the answer does.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    answering, watching = asyncio.create_task(answer), asyncio.create_task(gone())
    try:
        await asyncio.wait([answering, watching], return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ApiError(499, "the client is gone")
        return await answering
    finally:
        answering.cancel()
        watching.cancel()
        await asyncio.gather(answering, watching, return_exceptions=True)


def _reason(ending: Ending, parser: AnswerParser) -> str:
    return "tool_calls" if parser.calls else ending.reason


def _usage(endings: list[Ending]) -> dict[str, int]:
    prompt = sum(ending.prompt_tokens for ending in endings)
    answer = sum(ending.tokens for ending in endings)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
