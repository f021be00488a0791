"""Conversations as tokens with labels, for SFT: stored or streamed, packed or not, of decoders and
encoder-decoders.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmlab.config import DualHeadConfig, SFTConfig
from llmlab.config.sources import shares
from llmlab.data.cache import cached, read_rows, write_tables
from llmlab.data.packed_text import PackedSources
from llmlab.data.packing import documents_table, pack, padding_share, row_lengths
from llmlab.data.pipeline import Prepared
from llmlab.data.rendering import (
    IGNORE_INDEX,
    RefusedByTemplate,
    learned_answers,
    tokenize_conversation,
    tokenize_seq2seq,
)
from llmlab.data.schemas import CONVERSATIONS, InvalidRow, Row, to_messages
from llmlab.data.tokens import require_rows, tokenise_sources, tokenizer_hash
from llmlab.errors import LabError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from llmlab.data.reader import Window

COLUMNS = ("input_ids", "labels")
UNLEARNED = "an earlier answer is read and not learned, since the chat template leaves out its thoughts"


def sft_data(config: SFTConfig, tokenizer: PreTrainedTokenizerBase, *, seq2seq: bool = False) -> Prepared:
    """Returns conversations as `input_ids` and `labels`, packed (then with `seq_lengths`) where the config
    says so.

    Args:
        config: of the run.
        tokenizer: with a chat template.
        seq2seq: for encoder-decoders: `input_ids` are the prompt, `labels` are the last answer.

    Raises:
        LabError: when a source has no conversations, or none with anything to learn within `max_length`.
    """
    make = partial(seq2seq_tokens if seq2seq else conversation_tokens, tokenizer, config)
    key: dict[str, Any] = {
        "method": "sft",
        "tokenizer": tokenizer_hash(tokenizer),
        "loss_on": config.loss_on,
        "max_length": config.max_length,
        "overlong": config.on_overflow,
        "thoughts": "of the last turns",  # where a template leaves out those of earlier ones
    }
    if seq2seq:
        key["seq2seq"] = True
    if any(source.streaming for source in config.datasets):
        return _streamed(config, make, key)
    tokens = tokenise_sources(config, CONVERSATIONS, make, key, COLUMNS)
    train = tokens.mixed()
    require_rows(train, "no row has anything to learn", tokens.notes)
    facts: dict[str, Any] = {
        "train_rows": len(train),
        **tokens.counts(),
        "eval_rows": sum(len(rows) for rows in tokens.held_out.values()),
    }
    held_out = tokens.held_out
    if config.packing:
        train = _packed(config, key, train, [part.key for part in tokens.parts])
        held_out = {
            name: _packed(config, key, rows, ["held out", tokens.held_out_keys[name]])
            for name, rows in held_out.items()
        }
        facts["padding"] = round(padding_share(row_lengths(train), config.max_length), 4)
    facts["train_sequences"] = len(train)
    return Prepared(train, held_out, facts, notes=tokens.notes, sources=tokens.sources)


def conversation_tokens(
    tokenizer: PreTrainedTokenizerBase, config: SFTConfig | DualHeadConfig, row: Row
) -> dict[str, Any]:
    """Returns `input_ids` and `labels` of a canonical row, at most `max_length` of each, whether it was
    `cut`, and a `note` where an answer is not learned.

    Raises:
        InvalidRow: when it is too long and to be dropped, or has nothing to learn within `max_length`.
    """
    messages = to_messages(row)
    tokens = tokenize_conversation(tokenizer, messages, config.loss_on)
    answers = sum(turn["role"] == "assistant" for turn in messages)
    alone = config.loss_on == "assistant" and learned_answers(tokens["labels"]) < answers
    cut = len(tokens["input_ids"]) > config.max_length
    if cut and config.on_overflow == "drop":
        raise InvalidRow(f"longer than `max_length` {config.max_length}")
    labels = tokens["labels"][: config.max_length]
    if all(label == IGNORE_INDEX for label in labels[1:]):
        raise InvalidRow(f"nothing to learn within `max_length` {config.max_length}")
    return {
        "input_ids": tokens["input_ids"][: config.max_length],
        "labels": labels,
        "cut": cut,
        "note": UNLEARNED if alone else "",
    }


def seq2seq_tokens(tokenizer: PreTrainedTokenizerBase, config: SFTConfig, row: Row) -> dict[str, Any]:
    """Returns `input_ids` and `labels` of a row for an encoder-decoder, at most `max_length` each, and
    whether it was `cut`.

    Raises:
        InvalidRow: when it is too long and to be dropped, or does not end with an answer.
    """
    turns = to_messages(row)
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise InvalidRow("does not end with an answer")
    tokens = tokenize_seq2seq(tokenizer, turns)
    cut = max(map(len, tokens.values())) > config.max_length
    if cut and config.on_overflow == "drop":
        raise InvalidRow(f"longer than `max_length` {config.max_length}")
    return {**{name: ids[: config.max_length] for name, ids in tokens.items()}, "cut": cut}


def _streamed(config: SFTConfig, make: Callable[[Row], dict[str, Any]], key: dict[str, Any]) -> Prepared:
    """Conversations tokenised and packed as they arrive; the head of each stream is held out."""
    if not config.packing:
        raise LabError(
            "a streamed source needs `packing`",
            where="datasets",
            remedy='set "packing" to true, or "streaming" to false',
        )

    def encode(documents: Window) -> pa.Table:
        encoded = []
        for document in documents:
            try:
                encoded.append(make(document.row))
            except InvalidRow as invalid:
                document.drop(invalid)
            except RefusedByTemplate as refusal:
                document.drop(InvalidRow(refusal.what, malformed=True))
        return documents_table({name: [np.array(row[name], np.int32) for row in encoded] for name in COLUMNS})

    packed = PackedSources(config, CONVERSATIONS, encode, config.max_length, "best_fit")
    packed.look()
    held_out = packed.validation(key)
    facts = {"train_rows": "streamed", "eval_rows": sum(len(rows) for rows in held_out.rows.values())}
    train = packed.training(config.datasets, endless=True)
    return Prepared(train, held_out.rows, facts, notes=held_out.notes, sources=held_out.sources)


def _packed(config: SFTConfig, key: dict[str, Any], rows: Dataset, parts: list[str]) -> Dataset:
    def build(folder: Path) -> dict[str, Any]:
        table = pack(rows.with_format("arrow")[:], config.max_length, "best_fit")
        write_tables([table], folder / "rows.arrow")
        return {}

    mixed = {
        "parts": parts,
        "shares": shares(config.datasets),
        "seed": config.seed,
        "stop": config.mixture_stop,
        "rows": len(rows),
    }
    folder, _ = cached({**key, "packed": mixed}, build)
    return read_rows(folder / "rows.arrow")
