"""From sources to what the trainers read: one function per method,
each a chain of the steps of this package.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmlab.config import DPOConfig, DualHeadConfig, PretrainConfig, RewardConfig, SFTConfig, SourceConfig
from llmlab.config.sources import shares, short_names
from llmlab.data.cache import cached, read_rows, write_tables
from llmlab.data.canonical import RowCounter, open_source
from llmlab.data.catalogue import entry, entry_like
from llmlab.data.mixture import is_held_out, mixture
from llmlab.data.packing import documents_table, pack, padding_share, row_lengths
from llmlab.data.rendering import IGNORED, render, tokenize_apart, tokenize_conversation, tokenize_pair
from llmlab.data.schemas import CONVERSATIONS, PARTS_OF_A_TURN, TOOLS, InvalidRow, Row, to_messages
from llmlab.data.sources import PIECE, fingerprint
from llmlab.data.tokens import Tokens, tokenised, tokenizer_hash
from llmlab.errors import LabError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from llmlab.data.stream import PackedStream, Reader

CHARACTERS = 8  # of a token, generously


@dataclass
class Prepared:
    """Training and validation rows, and what is known of them.

    Attributes:
        train: rows for the trainer.
        eval: held-out rows of each source by its name; empty where nothing is held out.
        facts: counts for the run record and the screen (rows, tokens, dropped ...).
        bytes_per_token: of the held-out text of each source, for bits per byte; empty where it is not plain
            text.
        notes: what happened to rows that were left out or changed, one line each.
    """

    train: Dataset | PackedStream
    eval: dict[str, Dataset]
    facts: dict[str, Any] = field(default_factory=dict)
    bytes_per_token: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def pretrain_data(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase, length: int) -> Prepared:
    """Returns packed rows of `length` tokens from the text sources.

    Raises:
        LabError: when a source has no text.
    """
    from llmlab.data.stream import PackedStream, encoder

    encode = encoder(tokenizer)
    fraction = 0.0 if config.eval_datasets else config.eval_fraction
    streamed = any(source.streaming for source in config.datasets)

    def stream(
        sources: list[SourceConfig], fraction: float, *, held_out: bool = False, endless: bool = False
    ) -> PackedStream:
        alone = len(sources) == 1
        return PackedStream(
            partial(_readers, sources, ("text",), fraction, held_out, length),
            [1.0] if alone else shares(sources),
            encode,
            length,
            packing=config.packing,
            seed=config.seed,
            stop=config.mixture_stop,
            endless=endless,
        )

    base = {
        "method": "pretrain",
        "tokenizer": tokenizer_hash(tokenizer),
        "length": length,
        "packing": config.packing,
    }
    facts: dict[str, Any] = {}
    notes: list[str] = []
    if streamed:
        train: Any = stream(config.datasets, fraction, endless=True)
        facts["rows"] = "streamed"
    else:
        drawn = [source for source in config.datasets if source.weight]
        key = {
            **base,
            "sources": [(fingerprint(s), share) for s, share in zip(drawn, shares(drawn), strict=True)],
            "fraction": fraction,
            "seed": config.seed if len(drawn) > 1 else 0,
            "stop": config.mixture_stop,
        }
        folder, made = cached(key, partial(_write_packed, stream(drawn, fraction), drawn, length))
        train = read_rows(folder / "rows.arrow")
        if train is None:
            raise LabError(
                "hold no text to train on", where="datasets", remedy="add text, or lower `eval_fraction`"
            )
        facts |= {name: made[name] for name in ("rows", "tokens", "padding")}
        notes += made["notes"]
        train = train.with_format("numpy")
    held, per_token = {}, {}
    sources = config.eval_datasets or (config.datasets if fraction else [])
    for name, source in zip(short_names(sources), sources, strict=True):
        key = {**base, "held_out": fingerprint(source), "fraction": fraction}
        alone = stream([source], fraction, held_out=not config.eval_datasets)
        folder, made = cached(key, partial(_write_packed, alone, [source], length))
        rows = read_rows(folder / "rows.arrow")
        if rows is not None:
            held[name], per_token[name] = rows.with_format("numpy"), made["bytes"] / made["tokens"]
            notes += made["notes"] if config.eval_datasets else []
    facts["eval_rows"] = sum(len(rows) for rows in held.values())
    return Prepared(train, held, facts, per_token, notes)


def sft_data(config: SFTConfig, tokenizer: PreTrainedTokenizerBase, *, apart: bool = False) -> Prepared:
    """Returns tokenised conversations with labels, packed where the config says so.

    Args:
        config: of the run.
        tokenizer: with a chat template.
        apart: for encoder-decoders, whose `input_ids` are the prompt and whose `labels` are the last answer.

    Raises:
        LabError: when a source has no conversations, or none with anything to learn within `max_length`.
    """
    make = partial(apart_tokens if apart else conversation_tokens, tokenizer, config)
    key = {
        "method": "sft",
        "tokenizer": tokenizer_hash(tokenizer),
        "loss_on": config.loss_on,
        "max_length": config.max_length,
        "overlong": config.overlong,
    }
    if apart:
        key["apart"] = True
    columns = ("input_ids", "labels")
    if any(source.streaming for source in config.datasets):
        return _streamed_sft(config, make, key)
    parts, held, notes = _load(config, CONVERSATIONS, make, key, columns)
    train = _mixed(config, [part for part, _ in parts])
    _require(train, "no row has anything to learn", notes)
    facts = {
        "train_rows": len(train),
        **_counts(parts),
        "eval_rows": sum(len(rows) for rows, _ in held.values()),
    }
    if config.packing:
        train = _packed(config, key, train, [part.key for part, _ in parts])
        held = {name: (_packed(config, key, rows, ["held out", of]), of) for name, (rows, of) in held.items()}
        facts["padding"] = round(padding_share(row_lengths(train), config.max_length), 4)
    facts["train_sequences"] = len(train)
    return Prepared(train, {name: rows for name, (rows, _) in held.items()}, facts, notes=notes)


def dpo_data(config: DPOConfig | RewardConfig, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Returns pairs as `prompt_ids`, `chosen_ids` and `rejected_ids`.

    Raises:
        LabError: when a source has no pairs.
    """
    key = {
        "method": "pairs",
        "tokenizer": tokenizer_hash(tokenizer),
        "max_length": config.max_length,
        "max_prompt_length": config.max_prompt_length,
        "overlong": config.overlong,
    }
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    parts, held, notes = _load(config, ("preference",), partial(pair_tokens, tokenizer, config), key, columns)
    train = _mixed(config, [part for part, _ in parts])
    _require(train, "no usable pairs", notes)
    facts = {
        "train_pairs": len(train),
        **_counts(parts),
        "eval_pairs": sum(len(rows) for rows, _ in held.values()),
    }
    return Prepared(train, {name: rows for name, (rows, _) in held.items()}, facts, notes=notes)


def dual_head_data(config: DualHeadConfig, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Returns rows of `prompt_ids`, `chosen_ids`, `chosen_labels` and `rejected_ids`, the last empty for
    answers alone.

    Raises:
        LabError: when a source has no rows that the objective learns from.
    """
    needed = ("preference",) if config.objective == "preference" else ("preference", *CONVERSATIONS)
    alone = config.objective == "sft"
    key = {
        "method": "dual head",
        "tokenizer": tokenizer_hash(tokenizer),
        "max_length": config.max_length,
        "max_prompt_length": config.max_prompt_length,
        "overlong": config.overlong,
        "alone": alone,
    }
    columns = ("prompt_ids", "chosen_ids", "chosen_labels", "rejected_ids")
    parts, held, notes = _load(config, needed, partial(answer_tokens, tokenizer, config, alone), key, columns)
    portions = None
    if config.objective == "mixed":
        paired = [bool(len(part.train)) and bool(part.train[0]["rejected_ids"]) for part, _ in parts]
        if not any(paired):
            raise LabError(
                '`objective` "mixed": no source holds pairs',
                where="datasets",
                remedy='add one, or set `objective` to "sft"',
            )
        if not all(paired):  # conversations are the answers alone, in the share that was asked for
            weights = [source.weight for source in config.datasets]
            sums = {
                kind: sum(w for w, of in zip(weights, paired, strict=True) if of is kind) or 1.0
                for kind in (True, False)
            }
            share = {True: 1 - config.sft_ratio, False: config.sft_ratio}
            portions = [share[of] * w / sums[of] for w, of in zip(weights, paired, strict=True)]
    train = _mixed(config, [part for part, _ in parts], portions)
    _require(train, "no usable rows", notes)
    if config.objective == "mixed" and portions is None:
        lone = is_held_out(np.arange(len(train)), config.sft_ratio)
        train = train.map(
            lambda row, index: {**row, "rejected_ids": []} if lone[index] else row,
            with_indices=True,
            keep_in_memory=True,
        )
    facts = {
        "train_rows": len(train),
        **_counts(parts),
        "eval_rows": sum(len(rows) for rows, _ in held.values()),
    }
    return Prepared(train, {name: rows for name, (rows, _) in held.items()}, facts, notes=notes)


def prompts_data(config: Any, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Returns `prompt` (messages) and `answer` (the right one, "" where there is none) to generate from.

    Rows of any shape that has a prompt serve: of pairs and conversations, what comes before the last answer.

    Raises:
        LabError: when a source has no prompts, or none within `max_prompt_length`.
    """
    from datasets import Dataset, concatenate_datasets

    fraction = 0.0 if config.eval_datasets else config.eval_fraction
    notes: list[str] = []

    def read(source: SourceConfig) -> list[tuple[int, dict[str, Any]]]:
        _refuse_stream(source)
        opened = open_source(source, prompt_shapes(source))
        counter = RowCounter()
        rows = []
        seen: set[str] = set()
        for number, row in opened.canonical(counter):
            if source.duplicates == "drop":
                if repr(row) in seen:
                    counter.add("the same as an earlier row", number)
                    continue
                seen.add(repr(row))
            turns = row.get("prompt") or row["messages"][:-1]
            held = [part for turn in turns for part in (*PARTS_OF_A_TURN, TOOLS) if turn.get(part)]
            if held and source.bad_rows == "stop":
                raise opened.bad_row(
                    number, f"the prompt holds `{held[0]}`: {config.kind} answers text alone"
                )
            if held:
                counter.add(f"the prompt holds `{held[0]}`", number)
            elif not turns:
                counter.add("no prompt", number)
            elif (
                len(tokenizer(render(tokenizer, turns, generate=True))["input_ids"])
                > config.max_prompt_length
            ):
                counter.add(f"prompt longer than `max_prompt_length` {config.max_prompt_length}", number)
            else:
                rows.append(
                    (number, {"prompt": turns, "answer": row.get("answer") or row.get("completion") or ""})
                )
        notes.extend(counter.notes(source))
        return rows

    parts, held = [], {}
    for name, source in zip(short_names(config.datasets), config.datasets, strict=True):
        rows = read(source)
        out = is_held_out(np.array([number for number, _ in rows], np.int64), fraction)
        parts.append([row for (_, row), aside in zip(rows, out, strict=True) if not aside])
        held[name] = [row for (_, row), aside in zip(rows, out, strict=True) if aside]
    if config.eval_datasets:
        names = short_names(config.eval_datasets)
        held = {
            name: [row for _, row in read(source)]
            for name, source in zip(names, config.eval_datasets, strict=True)
        }
    sources, rows = mixture(
        [len(part) for part in parts], shares(config.datasets), config.seed, config.mixture_stop
    )
    if len(rows) == 0:
        raise LabError(
            f"no prompts to answer: {'; '.join(notes) or 'every row is held out'}", where="datasets"
        )
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])[:-1]])
    together = concatenate_datasets([Dataset.from_list(part) for part in parts if part])
    facts = {"train_prompts": len(rows), "eval_prompts": sum(len(part) for part in held.values())}
    return Prepared(
        together.select((starts[sources] + rows).astype(np.int64)),
        {name: Dataset.from_list(part) for name, part in held.items() if part},
        facts,
        notes=notes,
    )


def conversation_tokens(
    tokenizer: PreTrainedTokenizerBase, config: SFTConfig | DualHeadConfig, row: Row
) -> dict[str, Any]:
    """Returns `input_ids` and `labels` of a canonical row, at most `max_length` of each, and whether it was
    `cut`.

    Raises:
        InvalidRow: when it is too long and to be dropped, or has nothing to learn within `max_length`.
    """
    made = tokenize_conversation(tokenizer, to_messages(row), config.loss_on)
    cut = len(made["input_ids"]) > config.max_length
    if cut and config.overlong == "drop":
        raise InvalidRow(f"longer than `max_length` {config.max_length}")
    labels = made["labels"][: config.max_length]
    if all(label == IGNORED for label in labels[1:]):
        raise InvalidRow(f"nothing to learn within `max_length` {config.max_length}")
    return {"input_ids": made["input_ids"][: config.max_length], "labels": labels, "cut": cut}


def apart_tokens(tokenizer: PreTrainedTokenizerBase, config: SFTConfig, row: Row) -> dict[str, Any]:
    """Returns `input_ids` and `labels` of a row for an encoder-decoder, at most `max_length` each, and
    whether it was `cut`.

    Raises:
        InvalidRow: when it is too long and to be dropped, or does not end with an answer.
    """
    turns = to_messages(row)
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise InvalidRow("does not end with an answer")
    made = tokenize_apart(tokenizer, turns)
    cut = max(map(len, made.values())) > config.max_length
    if cut and config.overlong == "drop":
        raise InvalidRow(f"longer than `max_length` {config.max_length}")
    return {**{name: ids[: config.max_length] for name, ids in made.items()}, "cut": cut}


def pair_tokens(
    tokenizer: PreTrainedTokenizerBase, config: DPOConfig | RewardConfig | DualHeadConfig, row: Row
) -> dict[str, Any]:
    """Returns `prompt_ids`, `chosen_ids` and `rejected_ids` of a canonical pair, and whether it was `cut`.

    Raises:
        InvalidRow: when it is too long and to be dropped, or nothing is left that tells the answers apart.
    """
    pair = (row["prompt"], row["chosen"], row["rejected"])
    made = tokenize_pair(tokenizer, *pair, config.max_length, config.max_prompt_length)
    cut = made.pop("cut")
    if cut and config.overlong == "drop":
        raise InvalidRow(f"longer than `max_length` {config.max_length}")
    if made["chosen_ids"] == made["rejected_ids"]:
        raise InvalidRow(
            f"equal answers within `max_length` {config.max_length}" if cut else "equal answers in tokens"
        )
    return {**made, "cut": cut}


def answer_tokens(
    tokenizer: PreTrainedTokenizerBase, config: DualHeadConfig, alone: bool, row: Row
) -> dict[str, Any]:
    """Returns a canonical pair or conversation as the dual head reads it: a conversation has all its turns in
    `chosen_ids`.

    Args:
        tokenizer: with a chat template.
        config: of the run.
        alone: whether a pair's rejected answer is left out.
        row: canonical.

    Raises:
        InvalidRow: when it cannot be used.
    """
    if "chosen" in row:
        made = pair_tokens(tokenizer, config, row)
        made["chosen_labels"] = list(made["chosen_ids"])
        return {**made, "rejected_ids": []} if alone else made
    made = conversation_tokens(tokenizer, config, row)
    return {
        "prompt_ids": [],
        "chosen_ids": made["input_ids"],
        "chosen_labels": made["labels"],
        "rejected_ids": [],
        "cut": made["cut"],
    }


def document_texts(source: SourceConfig) -> Iterator[str]:
    """Yields the texts of a source, whatever its shape: what a tokenizer is trained on.

    Raises:
        LabError: when the source cannot be read.
    """
    opened = open_source(source, ("text", *CONVERSATIONS, "preference", "prompt_answer"))
    for _, row in opened.canonical(RowCounter()):
        turns = row.get("messages") or row.get("prompt") or []
        said = [row[name] for name in ("text", "completion", "chosen", "rejected", "answer") if name in row]
        yield "\n".join([*(turn["content"] for turn in turns), *said])


def _readers(
    sources: list[SourceConfig], needed: tuple[str, ...], fraction: float, held_out: bool, length: int = 0
) -> list[Reader]:
    from llmlab.data.stream import Reader

    piece = max(PIECE, CHARACTERS * length)  # a document stays whole up to the length of a row

    def opened(source: SourceConfig) -> Any:
        return open_source(
            source, needed, streaming=True if source.max_rows is None else source.streaming, piece=piece
        )

    return [Reader(opened(source), fraction, held_out=held_out) for source in sources]


def _write_packed(
    stream: PackedStream, sources: list[SourceConfig], length: int, folder: Path
) -> dict[str, Any]:
    """Writes all rows of a stream and returns what is known of them."""
    sizes = [0, 0]
    encode = stream.encode

    def counted(texts: list[str]) -> pa.Table:
        sizes[0] += sum(len(text.encode()) for text in texts if isinstance(text, str))
        return encode(texts)

    def tables() -> Iterator[pa.Table]:
        for table in stream.tables():
            sizes[1] += int(row_lengths(table).sum())
            yield table

    stream.encode = counted
    rows = write_tables(tables(), folder / "rows.arrow")
    stream.encode = encode
    notes = [
        note
        for counter, source in zip(stream.counters, sources, strict=True)
        for note in counter.notes(source)
    ]
    padding = round(1 - sizes[1] / max(1, rows * length), 4)
    return {"rows": rows, "bytes": sizes[0], "tokens": sizes[1], "padding": padding, "notes": notes}


def _load(
    config: Any,
    needed: tuple[str, ...],
    make: Callable[[Row], dict[str, Any]],
    key: dict[str, Any],
    columns: tuple[str, ...],
) -> tuple[list[tuple[Tokens, str]], dict[str, tuple[Dataset, str]], list[str]]:
    """Returns the stored sources as tokens with their names, the held-out rows by name with their key,
    and the notes.
    """
    for source in [*config.datasets, *config.eval_datasets]:
        _refuse_stream(source)
    fraction = 0.0 if config.eval_datasets else config.eval_fraction
    parts = [tokenised(source, needed, make, key, fraction, columns) for source in config.datasets]
    names = short_names(config.datasets)
    held = {name: (part.held_out, part.key) for name, part in zip(names, parts, strict=True)}
    notes = [note for part in parts for note in part.notes]
    if config.eval_datasets:
        others = [tokenised(source, needed, make, key, 0.0, columns) for source in config.eval_datasets]
        held = {
            name: (part.train, part.key)
            for name, part in zip(short_names(config.eval_datasets), others, strict=True)
        }
        notes += [note for part in others for note in part.notes]
    return (
        list(zip(parts, names, strict=True)),
        {name: found for name, found in held.items() if len(found[0])},
        notes,
    )


def _counts(parts: list[tuple[Tokens, str]]) -> dict[str, int]:
    return {
        "train_dropped": sum(part.dropped for part, _ in parts),
        "train_cut": sum(part.cut for part, _ in parts),
    }


def _streamed_sft(config: SFTConfig, make: Callable[[Row], dict[str, Any]], key: dict[str, Any]) -> Prepared:
    """Conversations tokenised and packed as they arrive; the head of each stream is held out."""
    from llmlab.data.stream import PackedStream

    if not config.packing:
        raise LabError(
            "a streamed source needs `packing`",
            where="datasets",
            remedy='set "packing" to true, or "streaming" to false',
        )
    left_out: Counter[str] = Counter()

    def encode(rows: list[Row]) -> pa.Table:
        made = []
        for row in rows:
            try:
                made.append(make(row))
            except InvalidRow as fault:
                left_out[fault.reason] += 1
        return documents_table(
            {name: [np.array(row[name], np.int32) for row in made] for name in ("input_ids", "labels")}
        )

    def stream(
        sources: list[SourceConfig], fraction: float, *, held_out: bool, endless: bool
    ) -> PackedStream:
        return PackedStream(
            partial(_readers, sources, CONVERSATIONS, fraction, held_out),
            shares(sources) if endless else [1.0],
            encode,
            config.max_length,
            packing="best_fit",
            seed=config.seed,
            stop=config.mixture_stop,
            endless=endless,
        )

    fraction = 0.0 if config.eval_datasets else config.eval_fraction
    held = {}
    sources = config.eval_datasets or (config.datasets if fraction else [])
    for name, source in zip(short_names(sources), sources, strict=True):
        alone = stream([source], fraction, held_out=not config.eval_datasets, endless=False)
        folder, _ = cached(
            {**key, "held_out": fingerprint(source), "fraction": fraction},
            partial(_write_packed, alone, [source], config.max_length),
        )
        if (rows := read_rows(folder / "rows.arrow")) is not None:
            held[name] = rows
    facts = {"train_rows": "streamed", "eval_rows": sum(len(rows) for rows in held.values())}
    left_out.clear()  # of the held-out rows, which the training rows do not count
    train = stream(config.datasets, fraction, held_out=False, endless=True)
    train.left_out = left_out
    return Prepared(train, held, facts)


def prompt_shapes(source: SourceConfig) -> tuple[str, ...]:
    """Returns the shapes to take prompts from: the bare right answers where the catalogue knows them,
    not whole solutions.
    """
    known = entry_like(source.like) if source.like else entry(source.name, source.subset)
    by_hand = source.format != "auto" or source.columns or source.prompt
    if known and not by_hand and any(each.shape == "prompt_answer" for each in known.mappings):
        return ("prompt_answer",)
    return ("prompt_answer", *CONVERSATIONS, "preference", "prompt")


def _refuse_stream(source: SourceConfig) -> None:
    if source.streaming:
        raise LabError(
            "cannot be streamed for this method", where=source.name, remedy="set `streaming` to false"
        )


def _mixed(config: Any, parts: list[Tokens], portions: list[float] | None = None) -> Dataset:
    """One pass over the sources, each with its share: that of its weight, or `portions`."""
    from datasets import concatenate_datasets

    sizes = [len(part.train) for part in parts]
    sources, rows = mixture(sizes, portions or shares(config.datasets), config.seed, config.mixture_stop)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    together = concatenate_datasets([part.train for part in parts])
    return together.select((starts[sources] + rows).astype(np.int64))


def _require(rows: Dataset, text: str, notes: list[str]) -> None:
    if len(rows) == 0:
        why = "; ".join(notes) or "every row is held out"
        raise LabError(
            f"{text}: {why}",
            where="datasets",
            remedy="raise `max_length` or look at the rows: `llmlab data inspect`",
        )


def _packed(config: SFTConfig, key: dict[str, Any], rows: Dataset, parts: list[str]) -> Dataset:
    def build(folder: Path) -> dict[str, Any]:
        write_tables(
            [pack(rows.with_format("arrow")[:], config.max_length, "best_fit")], folder / "rows.arrow"
        )
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
