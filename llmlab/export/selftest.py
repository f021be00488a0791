"""The test of an export: another program reads it, in a process of its own, and must give the same answers.

Compared are the tokens of texts, the rendered conversation, greedy continuations, and the logits behind them.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from llmlab.data.rendering import render
from llmlab.data.tokenizer import text_ids
from llmlab.errors import LabError
from llmlab.export.source import Source
from llmlab.models.transformer.context import context_length

READERS = Path(__file__).parent / "readers"
NEW_TOKENS = 16  # of each greedy continuation
MOST_LIKELY = 1000  # tokens whose log-probabilities llama.cpp is asked for at each position
LEAST = -20.0  # a log-probability below is rounding
TEXTS = (
    "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse,",
    "What is 17 + 25? The answer is",
    "def add(a, b):\n    return a + b\n\n\nprint(add(2, 1000))  # 1002\n",
    "Grüße aus Zürich, добрый день, こんにちは, 🙂 and \t tabs.\n\n  Two spaces; it's 3.14!",
)
CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "What is 12 + 7?"}],
    [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "Another one, please."},
    ],
)


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what the model that is exported makes of it.

    Attributes:
        text: of the prompt.
        special: whether the tokenizer adds its own tokens to it.
        messages: of the conversation that it renders; None of a plain text.
        ids: its tokens.
        tokens: of the greedy continuation.
        ended: whether the last of them ends an answer.
        logits: at the positions before each of these, (n, V); of a reward model its score, (1, 1).
    """

    text: str
    special: bool
    messages: list[dict[str, str]] | None
    ids: list[int]
    tokens: list[int]
    logits: Tensor
    ended: bool = False


@dataclass(frozen=True)
class Outcome:
    """What a self-test measured.

    Attributes:
        prompts: how many were compared.
        difference: largest, of the logits (of log-probabilities where the reader gives no logits).
        agreement: share of the positions at which both programs hold the same token for the likeliest.
        divergence: mean Kullback-Leibler divergence of the reader's distributions, in nats.
        same_answers: share of the prompts with the same greedy continuation, its end included; one that parts
            where two tokens are as likely counts.
    """

    prompts: int
    difference: float
    agreement: float
    divergence: float
    same_answers: float = 1.0


@torch.no_grad()
def expected(source: Source, texts: tuple[str, ...] = TEXTS) -> list[Prompt]:
    """Returns the prompts of the test with the answers of the model that is exported."""
    limit = (context_length(source.model) or 1 << 20) - NEW_TOKENS
    plain = [(text, True, None) for text in texts]
    conversations = CONVERSATIONS if source.chats else ()
    chats = [(render(source.tokenizer, chat, generate=True), False, chat) for chat in conversations]
    prompts = []
    for text, special, messages in [*plain, *chats]:
        ids = text_ids(source.tokenizer, text, add_special_tokens=special)
        if len(ids) <= limit:
            prompts.append(_answered(source, Prompt(text, special, messages, ids, [], torch.zeros(1, 1))))
    if not prompts:
        raise LabError(
            f"reads {limit + NEW_TOKENS} tokens: too few for the prompts of the self-test", where=source.name
        )
    return prompts


def _answered(source: Source, prompt: Prompt) -> Prompt:
    model: Any = source.model
    inputs = torch.tensor([prompt.ids])
    tokens: list[int] = []
    if source.use == "score":
        logits = model(inputs, attention_mask=torch.ones_like(inputs)).logits
    else:
        answer = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
        tokens = answer[0, inputs.shape[1] :].tolist()
        logits = model(answer, attention_mask=torch.ones_like(answer)).logits[0, inputs.shape[1] - 1 : -1]
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ended = bool(tokens) and tokens[-1] in (ends if isinstance(ends, list) else [ends])
    return replace(prompt, tokens=tokens, logits=logits.float(), ended=ended)


@dataclass(frozen=True)
class Written:
    """An export that is to be read.

    Attributes:
        place: the folder, or the GGUF file.
        source: the model as it was exported.
        prompts: with that model's answers.
        own_code: whether its modelling code lies beside the weights.
    """

    place: Path
    source: Source
    prompts: list[Prompt]
    own_code: bool = False


def read_by_transformers(*exports: Written) -> list[Outcome]:
    """Returns how transformers alone reads exported folders, all of them in one process.

    Raises:
        LabError: when it cannot, or tokenises, renders or answers otherwise.
    """
    with tempfile.TemporaryDirectory() as work:
        jobs = [
            {
                "own_code": written.own_code,
                "dtype": str(written.source.model.dtype).removeprefix("torch."),
                "use": written.source.use,
                "values": f"{work}/{index}.safetensors",
            }
            for index, written in enumerate(exports)
        ]
        answers = _ask("transformers_reader", jobs, exports, Path(work))
        values = [load_file(f"{work}/{index}.safetensors") for index in range(len(exports))]
    return [_compare_logits(*all_of) for all_of in zip(exports, answers, values, strict=True)]


def _compare_logits(written: Written, answers: list[dict[str, Any]], values: dict[str, Tensor]) -> Outcome:
    _same_text(written.prompts, answers, "transformers")
    difference, same, positions, divergence = 0.0, 0, 0, 0.0
    for index, (prompt, answer) in enumerate(zip(written.prompts, answers, strict=True)):
        read = values[str(index)]
        if written.source.use == "write":  # of prompt and continuation: before each token of the latter
            read = read[-len(prompt.tokens) - 1 : -1]
            if answer["tokens"] != prompt.tokens and not tied(prompt, answer["tokens"]):
                raise _differs("its greedy answers", "transformers", prompt)
        difference = max(difference, (read - prompt.logits).abs().max().item())
        positions += len(read)
        same += int((read.argmax(-1) == prompt.logits.argmax(-1)).sum())
        log_probs = prompt.logits.log_softmax(-1)
        divergence += (log_probs.exp() * (log_probs - read.log_softmax(-1))).sum().item()
    return Outcome(len(written.prompts), difference, same / positions, divergence / positions)


def read_by_llama_cpp(*exports: Written) -> list[Outcome]:
    """Returns how llama.cpp reads GGUF files, all of them in one process.

    Raises:
        LabError: when it cannot, or tokenises or renders otherwise.
    """
    with tempfile.TemporaryDirectory() as work:
        answers = _ask("llama_cpp_reader", [{"most_likely": MOST_LIKELY}] * len(exports), exports, Path(work))
    return [_compare_log_probs(written.prompts, read) for written, read in zip(exports, answers, strict=True)]


def _compare_log_probs(prompts: list[Prompt], answers: list[dict[str, Any]]) -> Outcome:
    _same_text(prompts, answers, "llama.cpp")
    difference, same, positions, divergence, alike = 0.0, 0, 0, 0.0, 0
    for prompt, answer in zip(prompts, answers, strict=True):
        alike += _same_answer(prompt, answer["tokens"])
        for ours_of_all, read in zip(prompt.logits.log_softmax(-1), answer["log_probs"], strict=True):
            if not read:
                continue
            likely = torch.tensor([token for token, _ in read])
            theirs, ours = torch.tensor([value for _, value in read]), ours_of_all[likely]
            difference = max(difference, (theirs - ours)[theirs > LEAST].abs().max().item())
            divergence += (ours.exp() * (ours - theirs)).sum().item()
            positions += 1
            same += read[0][0] == ours_of_all.argmax().item()
    if not positions:
        raise LabError("llama.cpp gave no probabilities", exit_code=1)
    return Outcome(
        len(prompts), difference, same / positions, max(0.0, divergence / positions), alike / len(prompts)
    )


def _same_answer(prompt: Prompt, tokens: list[int]) -> bool:
    """Returns whether a greedy answer is the expected one and stops where that stops."""
    ours = prompt.tokens[:-1] if prompt.ended else prompt.tokens
    theirs = tokens[: len(ours)] if prompt.ended and tokens[len(ours) :] == prompt.tokens[-1:] else tokens
    return theirs == ours or (theirs[: len(ours)] != ours and tied(prompt, theirs, tolerance=0.02))


def tied(prompt: Prompt, tokens: list[int], tolerance: float = 1e-3) -> bool:
    """Returns whether another greedy answer is as good: where they part, both tokens are as likely."""
    for position, (ours, theirs) in enumerate(zip(prompt.tokens, tokens, strict=False)):
        if ours != theirs:
            row = prompt.logits[position]
            return abs(row[ours] - row[theirs]).item() <= tolerance
    return len(prompt.tokens) == len(tokens)


def _same_text(prompts: list[Prompt], answers: list[dict[str, Any]], reader: str) -> None:
    for prompt, answer in zip(prompts, answers, strict=True):
        if answer["ids"] != prompt.ids:
            raise _differs("its tokens of a text", reader, prompt)
        if prompt.messages and answer["rendered"] != prompt.text:
            raise _differs("its rendering of a conversation", reader, prompt)


def _differs(what: str, reader: str, prompt: Prompt) -> LabError:
    return LabError(
        f"the self-test failed: read by {reader}, {what} differ (prompt {prompt.text[:60]!r});"
        " nothing was written",
        exit_code=1,
    )


def _ask(
    reader: str, jobs: list[dict[str, Any]], exports: tuple[Written, ...], work: Path
) -> list[list[dict[str, Any]]]:
    """Runs a reader on exports and returns its answers to the prompts of each."""
    asked = []
    for index, (job, written) in enumerate(zip(jobs, exports, strict=True)):
        prompts = [
            {name: getattr(prompt, name) for name in ("text", "special", "messages", "ids", "tokens")}
            for prompt in written.prompts
        ]
        common = {
            "folder": str(written.place),
            "prompts": prompts,
            "new_tokens": NEW_TOKENS,
            "compared": NEW_TOKENS + 1,
            "threads": torch.get_num_threads(),
            "answers": f"{work}/{index}.json",
        }
        asked.append({**common, **job})
    run_reader(reader, asked, work)
    return [json.loads((work / f"{index}.json").read_text(encoding="utf-8")) for index in range(len(exports))]


def run_reader(name: str, jobs: list[dict[str, Any]], work: Path) -> None:
    """Runs one of the readers as a process of its own, offline.

    Raises:
        LabError: with its last words, when it fails.
    """
    (work / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(work / "modules"),
        "TQDM_DISABLE": "1",
    }
    outcome = subprocess.run(
        [sys.executable, "-I", str(READERS / f"{name}.py"), str(work / "jobs.json")],
        capture_output=True,
        text=True,
        errors="replace",
        env=environment,
        check=False,
    )
    if outcome.returncode == 0:
        return
    said = outcome.stderr.strip().splitlines() or [f"exit code {outcome.returncode}"]
    log = [line.partition(" E ")[2] for line in said if re.match(r"[\d.]+ E ", line)]  # llama.cpp's errors
    refused = [line.removeprefix("REFUSED ") for line in said if line.startswith("REFUSED ")]
    if refused:
        raise LabError(refused[0], where=str(jobs[0]["name"]))
    program = {"llama_cpp_reader": "llama.cpp", "gguf_converter": "llama.cpp's converter"}
    reason = (log or said[-1:])[0][:300]
    raise LabError(
        f"{program.get(name, 'transformers')} cannot read it ({reason}); nothing was written",
        where=str(jobs[0]["folder"]),
        exit_code=1,
    )
