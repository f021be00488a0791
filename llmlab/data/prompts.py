"""Prompts to answer, for PPO, GRPO and comparisons of answers: rows of any shape that has a prompt serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llmlab.config import SourceConfig
from llmlab.config.rollouts import RolloutConfig
from llmlab.config.sources import shares, short_names
from llmlab.data.catalogue import entry, entry_like
from llmlab.data.counting import SourceCounts
from llmlab.data.mixture import mixture
from llmlab.data.pipeline import Prepared, SourceRows, refuse_stream, split
from llmlab.data.rendering import render
from llmlab.data.schemas import CONVERSATIONS, PARTS_OF_A_TURN, TOOLS, InvalidRow, Messages, Row
from llmlab.errors import LabError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = dict[str, Any]


def prompts_data(config: RolloutConfig, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Returns `prompt` (messages) and `answer` (the right one, "" where there is none) to generate from.

    Of pairs and conversations, the prompt is what comes before the last answer.

    Raises:
        LabError: when a source has no prompts, or none within `max_prompt_length`.
    """
    from datasets import Dataset, concatenate_datasets

    fraction = 0.0 if config.eval_datasets else config.eval_fraction
    parts = [_read(config, tokenizer, source, fraction) for source in config.datasets]
    others = [_read(config, tokenizer, source, 0.0) for source in config.eval_datasets]
    if others:
        names = short_names(config.eval_datasets)
        held_out = {name: part.train for name, part in zip(names, others, strict=True)}
    else:
        held_out = {n: part.held_out for n, part in zip(short_names(config.datasets), parts, strict=True)}
    notes = [note for part in (*parts, *others) for note in part.notes]
    sizes = [len(part.train) for part in parts]
    sources, rows = mixture(sizes, shares(config.datasets), config.seed, config.mixture_stop)
    if len(rows) == 0:
        raise LabError(
            f"no prompts to answer: {'; '.join(notes) or 'every row is held_out out'}", where="datasets"
        )
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    together = concatenate_datasets([Dataset.from_list(part.train) for part in parts if part.train])
    return Prepared(
        together.select((starts[sources] + rows).astype(np.int64)),
        {name: Dataset.from_list(part) for name, part in held_out.items() if part},
        {"train_prompts": len(rows), "eval_prompts": sum(len(part) for part in held_out.values())},
        notes=notes,
        sources=[part.counts for part in (*parts, *others)],
    )


@dataclass
class _Prompts:
    """The prompts of a source."""

    train: list[Prompt]
    held_out: list[Prompt]
    notes: list[str]
    counts: SourceCounts


def _read(
    config: RolloutConfig, tokenizer: PreTrainedTokenizerBase, source: SourceConfig, fraction: float
) -> _Prompts:
    refuse_stream(source)
    rows = SourceRows.of(source, prompt_shapes(source))
    train: list[Prompt] = []
    held_out: list[Prompt] = []
    for number, row in rows:
        try:
            prompt = _prompt(config, tokenizer, row)
        except InvalidRow as invalid:
            rows.drop(number, invalid)
            continue
        if split(np.array([number]), fraction)[0]:
            rows.counter.held_out += 1
            held_out.append(prompt)
        else:
            train.append(prompt)
    return _Prompts(train, held_out, rows.notes(), rows.result().of(source))


def prompt_shapes(source: SourceConfig) -> tuple[str, ...]:
    """Returns the shapes to take prompts from: the bare right answers where the catalogue knows them,
    not whole solutions.
    """
    dataset = entry_like(source.like) if source.like else entry(source.name, source.subset)
    by_hand = source.format != "auto" or source.columns or source.prompt
    if dataset and not by_hand and any(each.shape == "prompt_answer" for each in dataset.mappings):
        return ("prompt_answer",)
    return ("prompt_answer", *CONVERSATIONS, "preference", "prompt")


def prompt_of(row: Row) -> Messages:
    """Returns the turns before the last answer of a canonical row."""
    turns: Messages = row.get("prompt") or row["messages"][:-1]
    return turns


def _prompt(config: RolloutConfig, tokenizer: PreTrainedTokenizerBase, row: Row) -> Prompt:
    """Returns a row's prompt and its right answer.

    Raises:
        InvalidRow: when there is no prompt, it is too long, or it holds more than text.
    """
    turns = prompt_of(row)
    unused_parts = [part for turn in turns for part in (*PARTS_OF_A_TURN, TOOLS) if turn.get(part)]
    if unused_parts:
        reason = f"the prompt holds `{unused_parts[0]}`: {config.kind} answers text alone"
        raise InvalidRow(reason, malformed=True)
    if not turns:
        raise InvalidRow("no prompt")
    if len(tokenizer(render(tokenizer, turns, generate=True))["input_ids"]) > config.max_prompt_length:
        raise InvalidRow(f"prompt longer than `max_prompt_length` {config.max_prompt_length}")
    return {"prompt": turns, "answer": row.get("answer") or row.get("completion") or ""}
