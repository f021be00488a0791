"""From messages to tokens: the chat template, and which tokens the assistant says."""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from llmlab.data.schemas import PARTS_OF_A_TURN, THOUGHTS, TOOLS, InvalidRow, Messages
from llmlab.data.template_bounds import TooMuch
from llmlab.data.templates import SECONDS, TooLong, apply_template
from llmlab.errors import LabError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE_INDEX = -100
OTHER_TEMPLATE = 'set `chat_template` to "chatml", or take another copy of the model'
PROBE = "Wqvxz"  # an answer that no template says by itself


class RefusedByTemplate(LabError):
    """A conversation that the chat template itself says it does not take: its roles, several calls ..."""


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, generate: bool = False) -> str:
    """Returns the conversation as text; with `generate`, up to where the assistant's next answer begins.

    The tools of the conversation are those of its first turn.

    Raises:
        LabError: when it fails, takes too long, or says far more than it was given.
    """
    tools = messages[0].get(TOOLS) if messages else None
    if tools:
        messages = [_without(messages[0], TOOLS), *messages[1:]]
    try:
        return apply_template(tokenizer, messages, tools, generate=generate)
    except TooLong:
        raise LabError(
            f"this chat template ran for {SECONDS:g} s and was stopped", remedy=OTHER_TEMPLATE
        ) from None
    except TooMuch as error:
        raise LabError(f"this chat template was stopped: {error}", remedy=OTHER_TEMPLATE) from None
    except Exception as error:  # a template is a program of others: it can raise anything
        if type(error) is TemplateError:  # by `raise_exception`
            raise RefusedByTemplate(f"the chat template refuses it: {error}") from None
        text = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise LabError(
            f"this chat template cannot render the conversation ({text})", remedy=OTHER_TEMPLATE
        ) from None


def check_parts(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> None:
    """Refuses a conversation with parts that the chat template leaves out: it is rendered with each of them
    and without. Thoughts have to be there when their turn is the last: of earlier turns many templates leave
    them out.

    Raises:
        InvalidRow: naming the part and its turn.
    """
    present = [
        (index, part)
        for index, turn in enumerate(messages)
        for part in (*PARTS_OF_A_TURN, TOOLS)
        if turn.get(part)
    ]
    if not present:
        return
    whole = render(tokenizer, messages)
    for index, part in present:
        value = messages[index][part]
        until = messages[: index + 1] if part in THOUGHTS else messages
        bare = [*until[:index], _without(messages[index], part), *until[index + 1 :]]
        with_it = whole if until is messages else render(tokenizer, until)
        if render(tokenizer, bare) == with_it and not (part == "name" and value in whole):
            where = "the conversation" if part == TOOLS else f"turn {index + 1}"
            raise InvalidRow(f"the chat template leaves out the `{part}` of {where}", malformed=True)


def _without(turn: dict[str, Any], part: str) -> dict[str, Any]:
    return {name: value for name, value in turn.items() if name != part}


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Returns the id of the token that the chat template puts after an assistant's answer, or None where it
    puts none.

    The last turn decides. A template that closes only earlier turns (GLM) ends an answer with what opens the
    next turn.
    """
    return _turn_end(tokenizer, str(tokenizer.chat_template)) if tokenizer.chat_template else None


@lru_cache(maxsize=16)
def _turn_end(tokenizer: PreTrainedTokenizerBase, template: str) -> int | None:
    added = tokenizer.added_tokens_decoder
    asked, answer = {"role": "user", "content": "Question"}, {"role": "assistant", "content": PROBE}
    for messages in ([asked, answer], [asked, answer, asked]):
        try:
            _, probe, after = render(tokenizer, messages).rpartition(PROBE)
        except LabError:  # told where a conversation is rendered
            return None
        for token in tokenizer(after, add_special_tokens=False)["input_ids"] if probe else []:
            if token in added:
                return int(token)
            if decode(tokenizer, [token]).strip():
                break
    return None


def turn_ends(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the ids of the tokens that end an answer: the chat template's own,
    then the tokenizer's end of text.
    """
    ends = [turn_end(tokenizer), tokenizer.eos_token_id]
    return list(dict.fromkeys(end for end in ends if end is not None))


def decode_answer(tokenizer: PreTrainedTokenizerBase, ids: list[int], ends: int | list[int] | None) -> str:
    """Returns the text of an answer without the tokens that end it,
    whether or not the tokenizer calls them special.
    """
    closing = {ends} if isinstance(ends, int) else set(ends or ())
    return decode(tokenizer, [token for token in ids if token not in closing], skip_special_tokens=True)


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int], *, skip_special_tokens: bool = False) -> str:
    """Returns the text of a list of tokens."""
    return str(tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))


def _closed_at(tokenizer: PreTrainedTokenizerBase, text: str, start: int) -> tuple[int, bool]:
    """Returns where the answer in `text[start:]` ends, the token that ends it included,
    and whether there is such a token.
    """
    end = turn_end(tokenizer)
    mark = decode(tokenizer, [end]).strip() if end is not None else ""
    place = text.rfind(mark, start) if mark else -1
    return (place + len(mark), True) if place >= 0 else (len(text.rstrip("\n")), False)


def _end_token(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns what ends an answer that the template leaves open: the model has to learn to stop."""
    return turn_ends(tokenizer)[:1]


def assistant_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Messages
) -> tuple[str, list[tuple[int, int]]]:
    """Returns the rendered conversation and the character spans of what the assistant says and is to learn,
    the token that ends it included.

    An answer is learned where the conversation has it as it was when it was said. Of an earlier turn many
    templates leave out the thoughts (Qwen 3): an answer without them is not what is to be learned, so that it
    is read alone. Where there were none to leave out, it is learned as it stands. What a template puts behind
    the whole conversation (Phi-3's end of text) is part of no turn.

    Raises:
        LabError: when an answer does not follow what the template lets the assistant begin with, so that no
            span is certain.
    """
    text = render(tokenizer, messages)
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, until = (
            render(tokenizer, messages[:index], generate=True),
            render(tokenizer, messages[: index + 1]),
        )
        end, _ = _closed_at(tokenizer, until, len(before))
        if not until.startswith(before):
            raise LabError(
                "this chat template begins an answer otherwise than it lets the assistant begin, so the"
                " assistant's tokens cannot be told apart",
                remedy='set `chat_template` to "chatml" or `loss_on` to "all"',
            )
        if text[:end] == until[:end]:
            spans.append((len(before), end))
        elif span := _as_it_stands(tokenizer, text, before, message):
            spans.append(span)
    return text, spans


def _as_it_stands(
    tokenizer: PreTrainedTokenizerBase, text: str, before: str, turn: dict[str, Any]
) -> tuple[int, int] | None:
    """Returns the span of an answer that the conversation has otherwise than when it was said; None where its
    thoughts are gone, or its place is not certain.
    """
    end = turn_end(tokenizer)
    mark = decode(tokenizer, [end]).strip() if end is not None else ""
    if any(turn.get(part) for part in THOUGHTS) or "</think>" in turn["content"]:
        return None
    place = text.find(mark, len(before)) if mark and text.startswith(before) else -1
    said = text[len(before) : place]
    calls = [call["function"]["name"] for call in turn.get("tool_calls") or []]
    whole = place >= 0 and turn["content"].strip() in said and all(name in said for name in calls)
    return (len(before), place + len(mark)) if whole else None


def tokenize_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, loss_on: str
) -> dict[str, list[int]]:
    """Returns `input_ids` and `labels` of a conversation; labels are -100 on what is not learned.

    Where the template closes the last answer with no token, one follows it: the model has to learn to stop.
    """
    check_parts(tokenizer, messages)
    if loss_on == "all":
        text, spans = render(tokenizer, messages), None
    else:
        text, spans = assistant_spans(tokenizer, messages)
    leaves_open, end = False, len(text)
    if messages[-1]["role"] == "assistant":
        last = spans[-1][0] if spans else len(render(tokenizer, messages[:-1], generate=True))
        end, closed = _closed_at(tokenizer, text, last)
        leaves_open = not closed
    encoded = tokenizer(
        text[:end] if leaves_open else text,
        add_special_tokens=False,
        return_offsets_mapping=spans is not None,
    )
    ids = encoded["input_ids"]
    closing = _end_token(tokenizer) if leaves_open and ids[-1] not in tokenizer.all_special_ids else []
    if spans is None:
        return {"input_ids": [*ids, *closing], "labels": [*ids, *closing]}
    labels = [IGNORE_INDEX] * len(ids)
    starts = [start for start, _ in encoded["offset_mapping"]]
    for begin, end in spans:
        for position in range(bisect_left(starts, begin), bisect_left(starts, end)):
            labels[position] = ids[position]
    return {"input_ids": [*ids, *closing], "labels": [*labels, *closing]}


def learned_answers(labels: list[int]) -> int:
    """Returns how many answers of a conversation are learned: between two of them something else is read."""
    before = [IGNORE_INDEX, *labels[:-1]]
    return sum(label != IGNORE_INDEX == last for label, last in zip(labels, before, strict=True))


def answer_tokens(
    tokenizer: PreTrainedTokenizerBase, prompt: Messages, answer: Messages
) -> tuple[str, list[int]]:
    """Returns the prompt as text and the tokens of the answer that follows it, the end of the turn included.

    Raises:
        LabError: when the template renders the prompt differently once it is answered.
    """
    check_parts(tokenizer, [*prompt, *answer])
    before, whole = render(tokenizer, prompt, generate=True), render(tokenizer, [*prompt, *answer])
    if not whole.startswith(before):
        raise LabError(
            "this chat template rewrites the prompt once it is answered",
            remedy='set `chat_template` to "chatml"',
        )
    end, closed = _closed_at(tokenizer, whole, len(before))
    ids = tokenizer(whole[len(before) : end], add_special_tokens=False)["input_ids"]
    leaves_open = not closed and not (ids and ids[-1] in tokenizer.all_special_ids)
    return before, [*ids, *(_end_token(tokenizer) if leaves_open else [])]


def tokenize_seq2seq(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> dict[str, list[int]]:
    """Returns what an encoder-decoder reads, `input_ids`, and what it learns to write, the last answer,
    `labels`.
    """
    check_parts(tokenizer, messages)
    read = tokenizer(render(tokenizer, messages[:-1], generate=True))["input_ids"]
    answer_ids = tokenizer(text_target=messages[-1]["content"])["input_ids"]
    if not answer_ids or answer_ids[-1] != tokenizer.eos_token_id:
        answer_ids = [*answer_ids, tokenizer.eos_token_id]
    return {"input_ids": read, "labels": answer_ids}


def tokenize_pair(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Messages,
    chosen: str,
    rejected: str,
    max_length: int,
    max_prompt_length: int,
) -> dict[str, Any]:
    """Returns `prompt_ids`, `chosen_ids` and `rejected_ids`, and whether something was `cut`.

    The answers carry the template's end of a turn. A prompt that is too long loses its beginning, an answer
    its end.
    """
    pair: dict[str, Any] = {"cut": False}
    for name, answer in (("chosen_ids", chosen), ("rejected_ids", rejected)):
        before, ids = answer_tokens(tokenizer, prompt, [{"role": "assistant", "content": answer}])
        if "prompt_ids" not in pair:
            whole_prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
            pair["prompt_ids"] = whole_prompt[-max_prompt_length:]
            pair["cut"] = len(whole_prompt) > max_prompt_length
        pair[name] = ids[: max_length - len(pair["prompt_ids"])]
        pair["cut"] |= len(ids) > len(pair[name])
    return pair
