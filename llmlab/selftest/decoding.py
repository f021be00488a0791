"""Answers of the lab's transformer, by the lab's own way to draw them, beside transformers' Qwen2 and its
`generate`: the same greedy tokens, and how many a second.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from transformers import Qwen2ForCausalLM

from llmlab.chat.generation import Encoded, stream_encoded
from llmlab.config.chat import ChatSettings
from llmlab.data.tokenizer import load_tokenizer
from llmlab.models.convert import from_hf
from llmlab.models.typed import moved
from llmlab.selftest.exact import Exact
from llmlab.selftest.rows import Row
from llmlab.selftest.setting import DTYPES, Setting, Shape, ids, synchronise
from llmlab.selftest.tolerance import most

PROMPT = 24  # tokens
SLOW = 0.8  # of transformers' speed
WORDS = 256  # of the tokenizer of bytes that have a text of their own


def check(setting: Setting, part: str) -> Iterator[Row]:
    """Yields one row for the tokens, in fp32, and one for the speed, in the device's own precision."""
    shape, tokens = _shape(setting)
    peer = moved(shape.peer(deviation=0.06), setting.device).eval()
    own = moved(from_hf(peer), setting.device).eval()
    yield _tokens(setting, shape, own, peer, tokens)
    if setting.precision != "fp32":
        peer, own = (moved(model, DTYPES[setting.precision]) for model in (peer, own))
    times = []
    for answer in (_own, _theirs):
        model = own if answer is _own else peer
        answer(setting, model, 4)  # warms up
        best = min(_seconds(setting, answer, model, tokens) for _ in range(3))
        times.append(best)
    speeds = [tokens / seconds for seconds in times]
    figures = {"tokens_per_second": speeds[0], "of_transformers": speeds[1], "tokens": tokens}
    found = (
        f"{speeds[0]:,.0f} tokens/s by the lab's chat, transformers' `generate` {speeds[1]:,.0f}"
        f" (x{speeds[0] / speeds[1]:.2f}): one answer of {tokens} tokens"
    )
    name = f"decoding {setting.precision}"
    if speeds[0] < SLOW * speeds[1] and not setting.quick:
        yield Row(name, "slow", found, "answers are right, but slower than transformers'", figures)
    else:
        yield Row(name, "passed", found, figures=figures)


def _seconds(setting: Setting, answer: Any, model: Any, tokens: int) -> float:
    synchronise(setting.device)
    began = time.perf_counter()
    answer(setting, model, tokens)
    synchronise(setting.device)
    return time.perf_counter() - began


def _tokens(setting: Setting, shape: Shape, own: Any, peer: Qwen2ForCausalLM, tokens: int) -> Row:
    answers = [_own(setting, own, tokens), _theirs(setting, peer, tokens)]
    same = next((i for i, (a, b) in enumerate(zip(*answers, strict=True)) if a != b), tokens)
    figures: dict[str, Any] = {"tokens": tokens, "same": same}
    if same == tokens:
        found = f"{tokens} greedy tokens are those of transformers' `generate`"
        return Row("decoding: tokens", "passed", found, figures=figures)
    # two tokens may be as likely as one another, as far as the precision can tell
    read = torch.tensor([_prompt(setting) + answers[1][:same]])
    with torch.no_grad():
        logits = Exact(peer).logits(read)[0, -1]
    gap = float((logits[answers[0][same]] - logits[answers[1][same]]).abs() / logits.norm())
    allowed = 2 * most("fp32", layers=shape.layers, inner=shape.feed_forward)
    figures |= {"gap": gap, "limit": allowed}
    if gap <= allowed:
        found = f"{same} greedy tokens are transformers'; then two are as likely ({gap:.1e} apart in fp64)"
        return Row("decoding: tokens", "passed", found, figures=figures)
    found = (
        f"greedy token {same + 1} of {tokens} is {answers[0][same]}, that of transformers' `generate` is"
        f" {answers[1][same]}, with the same weights in fp32; in fp64 they are {gap:.1e} apart"
    )
    remedy = "answers are not to be trusted here: see the rows of parity and attention"
    return Row("decoding: tokens", "failed", found, remedy, figures)


def _prompt(setting: Setting) -> list[int]:
    return [int(token) for token in ids(setting, 1, PROMPT, WORDS)[0]]


def _own(setting: Setting, model: Any, tokens: int) -> list[int]:
    """Returns the tokens of an answer as the lab's chat draws it."""
    spoken: list[int] = []
    settings = ChatSettings(temperature=0.0, max_new_tokens=tokens, repetition_penalty=1.0)
    encoded = Encoded(_prompt(setting), tokens)
    for _ in stream_encoded(model, load_tokenizer("byte"), encoded, settings, raw=True, spoken=spoken):
        pass
    return spoken


def _theirs(setting: Setting, model: Any, tokens: int) -> list[int]:
    """Returns the tokens of an answer by `generate` alone."""
    read = torch.tensor([_prompt(setting)], device=setting.device)
    said = model.generate(
        input_ids=read,
        attention_mask=torch.ones_like(read),
        max_new_tokens=tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    return [int(token) for token in said[0, PROMPT:]]


def _shape(setting: Setting) -> tuple[Shape, int]:
    """Returns a model that knows the words of the tokenizer of bytes, and the tokens of an answer."""
    words = len(load_tokenizer("byte"))
    if setting.large():
        return Shape(1024, 16, 16, 4, 2816, words, 1, 512), 128
    if setting.quick:
        return Shape(128, 2, 4, 2, 344, words, 1, 128), 16
    return Shape(320, 8, 5, 1, 864, words, 1, 256), 64
