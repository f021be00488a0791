"""How a model answers in chat and `generate`; every option can be changed in the chat with `/set`."""

from __future__ import annotations

from llmlab.config.base import LabBaseConfig
from llmlab.config.options import option


class ChatSettings(LabBaseConfig):
    """Sampling and conversation settings."""

    temperature: float = option(
        0.7, "Temperature", "0 always takes the likeliest token.", typical="0 to 1.2", ge=0
    )
    top_p: float = option(
        0.9, "Top-p", "Sample among the likeliest tokens that make up this probability.", gt=0, le=1
    )
    top_k: int = option(0, "Top-k", "Sample among this many likeliest tokens; 0 for all.", ge=0)
    max_new_tokens: int = option(256, "Max new tokens", "Tokens of one answer, at most.", unit="tokens", ge=1)
    repetition_penalty: float = option(
        1.0, "Repetition penalty", "Above 1 discourages what was said already.", gt=0
    )
    seed: int | None = option(None, "Seed", "Makes answers repeatable; left out, each is drawn anew.", ge=0)
    system_prompt: str | None = option(
        None, "System prompt", "What the model is told before the conversation."
    )
    alignment: float = option(
        1.0,
        "Alignment",
        "Of a dual head: 0 is the plain backbone, 1 as learned, more goes further.",
        typical="0 to 2",
        ge=0,
        le=100,
    )
    show_alpha: bool = option(
        False, "Show alpha", "Of a dual head: colours each token by how much of it the reward head said."
    )


class BatchOptions(LabBaseConfig):
    """How `generate --input` answers a file of prompts."""

    batch_size: int = option(
        0,
        "Batch size",
        "Prompts at a time; 0 takes as many as fit the free memory.",
        unit="rows",
        ge=0,
        le=4096,
    )
    column: str = option("completion", "Column", "Where the answer stands in a row of the output.")
