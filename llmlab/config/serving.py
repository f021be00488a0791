"""What a server is started with, and what a request of the OpenAI form may hold.

A field of a request that this server cannot honour takes only the value that asks for nothing (`n` 1,
`logprobs` false): another one is refused, never left out in silence.
"""

from __future__ import annotations

from typing import Any, Literal

from llmlab.config.base import LabBaseConfig
from llmlab.config.options import option


class ServeOptions(LabBaseConfig):
    """Where `serve` listens, and what answers."""

    host: str = option(
        "127.0.0.1",
        "Host",
        "Address it listens on; another than this machine's own needs an API key.",
    )
    port: int = option(8000, "Port", "Port it listens on; 0 takes a free one.", ge=0, le=65535)
    name: str = option("", "Name", "What clients call the model; left out, its name as given.")
    engine: Literal["auto", "transformers", "vllm"] = option(
        "auto",
        "Engine",
        "What computes the answers.",
        choices={
            "auto": "vLLM where it is installed and knows the model, else transformers",
            "transformers": "every model of the lab, one request after the other",
            "vllm": "models of transformers' own architectures, many requests at once",
        },
    )


class AnswerRequest(LabBaseConfig):
    """What both kinds of requests share; what is left out is as `serve` was started with."""

    model: str = option("", "Model", "As `/v1/models` names it.")
    temperature: float | None = option(None, "Temperature", "0 always takes the likeliest token.", ge=0)
    top_p: float | None = option(
        None, "Top-p", "Sample among the likeliest tokens that make up this probability.", gt=0, le=1
    )
    max_tokens: int | None = option(
        None,
        "Max tokens",
        "Tokens of the answer, at most.",
        unit="tokens",
        aliases=["max_completion_tokens"],
        ge=1,
    )
    stop: str | list[str] | None = option(
        None, "Stop", "Texts at which the answer ends; they are no part of it.", typical="at most 16"
    )
    seed: int | None = option(None, "Seed", "Makes the answer repeatable.", ge=0)
    stream: bool = option(False, "Stream", "Send the answer piece by piece.")
    stream_options: dict[Literal["include_usage"], bool] | None = option(
        None, "Stream options", "`include_usage`: a last piece with the numbers of tokens."
    )
    top_k: int | None = option(None, "Top-k", "Not of OpenAI's: sample among this many tokens.", ge=0)
    repetition_penalty: float | None = option(
        None, "Repetition penalty", "Not of OpenAI's: above 1 discourages what was said already.", gt=0
    )
    alignment: float | None = option(
        None, "Alignment", "Not of OpenAI's: of a dual head, 0 is the plain backbone.", ge=0, le=100
    )
    user: str | None = option(None, "User", "Who asks; it changes nothing.")
    n: Literal[1] = option(1, "Answers", "Only 1.")
    logprobs: Literal[False, 0] = option(False, "Log-probabilities", "Only false.")
    frequency_penalty: float = option(0.0, "Frequency penalty", "Only 0.", ge=0, le=0)
    presence_penalty: float = option(0.0, "Presence penalty", "Only 0.", ge=0, le=0)


class ChatRequest(AnswerRequest):
    """A conversation to answer: `/v1/chat/completions`."""

    messages: list[dict[str, Any]] = option(
        list, "Messages", "The conversation; the last message is the user's or a tool's."
    )
    tools: list[dict[str, Any]] | None = option(None, "Tools", "Functions that the model may call.")
    tool_choice: Literal["auto", "none"] | None = option(
        None, "Tool choice", "`auto`, or `none`: as if there were no tools."
    )
    parallel_tool_calls: Literal[True] = option(True, "Parallel tool calls", "Only true.")
    response_format: dict[Literal["type"], Literal["text"]] | None = option(
        None, "Response format", 'Only {"type": "text"}.'
    )


class CompletionRequest(AnswerRequest):
    """A text to continue: `/v1/completions`."""

    prompt: str | list[str] = option("", "Prompt", "The text, or several of them.")
    echo: Literal[False] = option(False, "Echo", "Only false.")
    best_of: Literal[1] = option(1, "Best of", "Only 1.")
