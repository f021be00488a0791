"""What an answer is made of: text, reasoning, tool calls; told apart by transformers' own response templates.

These functions are public names of `transformers.cli.serving.utils`, which `transformers serve` uses;
`tests/contracts/test_serving.py` holds them to what is expected here.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.cli.serving.utils import (
    ReasoningText,
    ToolCall,
    build_response_parser,
    get_response_template,
    response_events_to_chunks,
)

from llmlab.models.typed import LanguageModel

HERMES = "qwen3"  # the architecture whose template transformers knows, for all that speak like it
MARKS = ("<tool_call>", "<think>")


@dataclass
class AnswerParser:
    """Tells the parts of an answer apart, as its pieces come.

    Args:
        tokenizer: of the model.
        model: that answers.
        prompt: its tokens, by whose end an opened thought is known.
        tools: that it may call.

    Attributes:
        active: whether the model's template has such parts; else every piece is text.
        calls: the tool calls so far.
    """

    tokenizer: PreTrainedTokenizerBase
    model: LanguageModel
    prompt: list[int]
    tools: list[dict[str, Any]] | None = None
    calls: int = 0
    active: bool = field(init=False)

    def __post_init__(self) -> None:
        known: Any = self.model
        template = str(self.tokenizer.chat_template or "")
        if get_response_template(self.tokenizer, known) is None and any(mark in template for mark in MARKS):
            known = SimpleNamespace(config=SimpleNamespace(model_type=HERMES))
        self._parser = build_response_parser(self.tokenizer, known, self.prompt, tools=self.tools)
        self.active = self._parser is not None
        self._before = list(self._parser.initial_events) if self._parser else []

    def deltas(self, piece: str) -> list[dict[str, Any]]:
        """Returns what a piece adds to the message, as OpenAI's server says it."""
        if not self._parser:
            return [{"content": piece}] if piece else []
        events, self._before = [*self._before, *self._parser.feed(piece)], []
        return self._told(events)

    def rest(self) -> list[dict[str, Any]]:
        """Returns what is left when the answer has ended."""
        if not self._parser:
            return []
        try:
            _, events = self._parser.finalize()
        except (ValueError, RuntimeError):  # it was cut within a tool call
            events = []
        return self._told([*self._before, *events])

    def _told(self, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [self._delta(chunk) for chunk in response_events_to_chunks(events)]

    def _delta(self, chunk: str | ToolCall) -> dict[str, Any]:
        if isinstance(chunk, ToolCall):
            call = {"name": chunk.name, "arguments": chunk.arguments}
            self.calls += 1
            return {
                "tool_calls": [
                    {
                        "index": self.calls - 1,
                        "id": secrets.token_hex(5)[:9],  # the form that the strictest templates take
                        "type": "function",
                        "function": call,
                    }
                ]
            }
        return {"reasoning_content" if isinstance(chunk, ReasoningText) else "content": str(chunk)}


def whole_message(deltas: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the message that pieces add up to."""
    message: dict[str, Any] = {"role": "assistant", "content": ""}
    for delta in deltas:
        for name, value in delta.items():
            if name == "tool_calls":
                calls = [{key: part for key, part in call.items() if key != "index"} for call in value]
                message.setdefault("tool_calls", []).extend(calls)
            else:
                message[name] = message.get(name, "") + value
    return message
