"""From messages to tokens: the chat template, and which tokens the assistant says."""

from __future__ import annotations

import signal
import threading
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from llmlab.errors import LabError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
SECONDS = 5.0  # for one conversation
LENGTH, TIMES_LONGER = 100_000, 20  # characters that a template may add, and how often it may repeat what it was given
OTHER_TEMPLATE = 'set `chat_template` to "chatml", or take another copy of the model'
Messages = list[dict[str, str]]


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, generate: bool = False) -> str:
    """Returns the conversation as text; with `generate`, up to where the assistant's next answer begins.

    A template is a program that came with a model: it runs in the library's sandbox, here with an end to time and length.

    Raises:
        LabError: when it fails, takes too long, or says far more than it was given.
    """
    try:
        with at_most(SECONDS):
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
    except TooLong:
        raise LabError(f"this chat template ran for {SECONDS:g} s and was stopped", remedy=OTHER_TEMPLATE) from None
    except (TemplateError, MemoryError, OverflowError, RecursionError, TypeError, ValueError, AttributeError) as error:
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise LabError(f"this chat template cannot render the conversation ({text})", remedy=OTHER_TEMPLATE) from None
    given = sum(len(str(value)) for message in messages for value in message.values())
    if len(text) > LENGTH + TIMES_LONGER * given:
        raise LabError(f"this chat template made {len(text):,} characters of {given:,}", remedy=OTHER_TEMPLATE)
    return text


class TooLong(Exception):
    """A template went on for too long."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises `TooLong` after so long, where the system has a timer to interrupt with: in the main thread of a process."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def assistant_spans(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> tuple[str, list[tuple[int, int]]]:
    """Returns the rendered conversation and the character spans of what the assistant says, its end token included.

    Raises:
        LabError: when the template renders a conversation differently once it goes on, so that no span is certain.
    """
    text = render(tokenizer, messages)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, until = render(tokenizer, messages[:index], generate=True), render(tokenizer, messages[: index + 1])
        if not until.startswith(before) or not text.startswith(until):
            raise LabError(
                "this chat template rewrites earlier turns, so the assistant's tokens cannot be told apart",
                remedy='set `chat_template` to "chatml" or `loss_on` to "all"',
            )
        spans.append((len(before), len(until.rstrip("\n"))))
    return text, spans


def tokenize_conversation(tokenizer: PreTrainedTokenizerBase, messages: Messages, loss_on: str) -> dict[str, list[int]]:
    """Returns `input_ids` and `labels` of a conversation; labels are -100 on what is not learned."""
    if loss_on == "all":
        text, spans = render(tokenizer, messages), None
    else:
        text, spans = assistant_spans(tokenizer, messages)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=spans is not None)
    ids = encoded["input_ids"]
    if spans is None:
        return {"input_ids": ids, "labels": list(ids)}
    labels = [IGNORED] * len(ids)
    starts = [start for start, _ in encoded["offset_mapping"]]
    for begin, end in spans:
        for position in range(bisect_left(starts, begin), bisect_left(starts, end)):
            labels[position] = ids[position]
    return {"input_ids": ids, "labels": labels}


def tokenize_apart(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> dict[str, list[int]]:
    """Returns what an encoder-decoder reads, `input_ids`, and what it learns to write, the last answer, `labels`."""
    read = tokenizer(render(tokenizer, messages[:-1], generate=True))["input_ids"]
    said = tokenizer(text_target=messages[-1]["content"])["input_ids"]
    if not said or said[-1] != tokenizer.eos_token_id:
        said = [*said, tokenizer.eos_token_id]
    return {"input_ids": read, "labels": said}


def tokenize_pair(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Messages,
    chosen: str,
    rejected: str,
    max_length: int,
    max_prompt_length: int,
) -> dict[str, Any]:
    """Returns `prompt_ids`, `chosen_ids` and `rejected_ids`, and whether something was `cut`.

    The answers carry the template's end of a turn. A prompt that is too long loses its beginning, an answer its end.
    """
    before = render(tokenizer, prompt, generate=True)
    whole_prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
    prompt_ids = whole_prompt[-max_prompt_length:]
    pair: dict[str, Any] = {"prompt_ids": prompt_ids, "cut": len(whole_prompt) > max_prompt_length}
    for name, answer in (("chosen_ids", chosen), ("rejected_ids", rejected)):
        whole = render(tokenizer, [*prompt, {"role": "assistant", "content": answer}])
        if not whole.startswith(before):
            raise LabError(
                "this chat template rewrites the prompt once it is answered", remedy='set `chat_template` to "chatml"'
            )
        said = whole[len(before) :].rstrip("\n")
        ids = tokenizer(said, add_special_tokens=False)["input_ids"]
        pair[name] = ids[: max_length - len(prompt_ids)]
        pair["cut"] |= len(ids) > len(pair[name])
    return pair
