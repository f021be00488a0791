"""Chat templates with an end: a template is a program that came with a model, and whatever it does is
bounded.

transformers renders templates in jinja's sandbox, which keeps them from the machine but not from its time and
memory. Here what they make is bounded (`template_bounds`), and what is left, loops, is ended by a timer of
processor time.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from llmlab.data.bounded_jinja import bounded_environment
from llmlab.data.template_bounds import TooMuch, allowing

if TYPE_CHECKING:
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase

SECONDS = 1.0  # of the processor, for one conversation; on an idle machine it takes a few thousandths
LONGEST_TEMPLATE = 100_000  # characters; the longest in use have 30,000


class TooLong(BaseException):  # jinja tries things and goes on when they fail with an Exception
    """A template went on for too long."""


def apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: Any, *, generate: bool
) -> str:
    """Returns what `tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)` does, within
    bounds.

    Args:
        tokenizer: with a chat template.
        messages: the conversation.
        tools: JSON schemas, or None.
        generate: whether the text ends where the assistant's next answer begins.

    Raises:
        TooLong: after `SECONDS`.
        TooMuch: when it would make a larger text or value than `LENGTH` + `TIMES_LONGER` x what it was given.
        Exception: whatever the template raises.
    """
    from transformers.utils.chat_template_utils import _alias_reasoning_fields, _plain_template_data

    variables = {"messages": _plain_template_data(messages), "tools": _plain_template_data(tools)}
    with allowing(variables), at_most(SECONDS):
        template = _compiled(tokenizer.get_chat_template(None, tools))
        cleaned = [
            {key: value for key, value in turn.items() if value is not None} for turn in variables["messages"]
        ]
        return template.render(
            **{
                **tokenizer.special_tokens_map,
                "messages": _alias_reasoning_fields(cleaned),
                "tools": variables["tools"],
                "documents": None,
                "add_generation_prompt": generate,
            },
        )


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises `TooLong` after so much time of the processor, where the system has a timer to interrupt with:
    in the main thread of a process.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    if len(template) > LONGEST_TEMPLATE:
        raise TooMuch(f"it has {len(template):,} characters, more than {LONGEST_TEMPLATE:,}")
    return bounded_environment().from_string(template)
