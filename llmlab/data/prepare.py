"""From sources to what the trainers read: one function per method, each a chain of the steps of this package."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmlab.config import DPOConfig, PretrainConfig, SFTConfig, SourceConfig
from llmlab.data.cache import cached
from llmlab.data.packing import pack_stream
from llmlab.data.render import tokenize_conversation, tokenize_pair
from llmlab.data.shapes import shape_of, to_messages, to_pair
from llmlab.data.sources import PIECE, fingerprint, load_rows
from llmlab.errors import LabError

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset
    from transformers import PreTrainedTokenizerBase

STREAM_EVAL_ROWS = 500  # documents at the head of a stream that are held out


@dataclass
class Prepared:
    """Training and validation rows, and what is known of them.

    Attributes:
        train: rows for the trainer.
        eval: held-out rows, or None.
        facts: counts for the run record and the screen (rows, tokens, dropped ...).
        bytes_per_token: of the held-out text, for bits per byte; None where it is not plain text.
    """

    train: Dataset | IterableDataset
    eval: Dataset | None
    facts: dict[str, Any] = field(default_factory=dict)
    bytes_per_token: float | None = None


def pretrain_data(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase, length: int) -> Prepared:
    """Returns packed rows of `length` tokens from the text sources.

    Raises:
        LabError: when a source has no text, or too little for one row.
    """
    sources = [(source, load_rows(source)) for source in config.datasets]
    held_out = [(source, load_rows(source)) for source in config.eval_datasets]
    if any(source.streaming for source, _ in sources):
        return _streamed(config, sources, held_out, tokenizer, length)
    key = {
        "method": "pretrain",
        "sources": [(fingerprint(source, rows), source.weight) for source, rows in sources],
        "eval": [fingerprint(source, rows) for source, rows in held_out],
        "fraction": 0 if held_out else config.eval_fraction,
        "tokenizer": tokenizer_hash(tokenizer),
        "length": length,
        "seed": config.seed,
    }

    def build() -> DatasetDict:
        from datasets import DatasetDict

        documents = _mix([(s, _pieces(s, rows)) for s, rows in sources], config.seed)
        if held_out:
            train, evaluation = documents, _mix([(s, _pieces(s, rows)) for s, rows in held_out], config.seed)
        else:
            train, evaluation = split(documents, config.eval_fraction, config.seed)
        made = {"train": _packed(train, tokenizer, length)}
        if evaluation is not None:
            made["eval"] = _packed(evaluation, tokenizer, length)
        return DatasetDict(made)

    data = cached(key, build)
    train, evaluation = data["train"], data.get("eval")
    if len(train) == 0:
        raise LabError(
            f"the text is shorter than one row of {length} tokens",
            where="datasets",
            remedy="add text or lower `max_seq_len`",
        )
    if evaluation is not None and len(evaluation) == 0:
        evaluation = None
    facts = {
        "rows": len(train),
        "tokens": len(train) * length,
        "eval_rows": len(evaluation) if evaluation is not None else 0,
    }
    ratio = evaluation["bytes"] if evaluation is not None else None
    per_token = sum(ratio[:]) / (len(ratio) * length) if ratio is not None else None
    drop = [c for c in train.column_names if c == "bytes"]
    train = train.remove_columns(drop)
    evaluation = evaluation.remove_columns(drop) if evaluation is not None else None
    return Prepared(train.with_format("numpy"), evaluation.with_format("numpy") if evaluation else None, facts, per_token)


def sft_data(config: SFTConfig, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Returns tokenised conversations with labels, packed where the config says so.

    Raises:
        LabError: when a source has no conversations, or none with anything to learn within `max_length`.
    """
    from trl import pack_dataset

    def tokenise(row: dict[str, Any]) -> dict[str, Any]:
        made = tokenize_conversation(tokenizer, to_messages(row), config.loss_on)
        return {
            "input_ids": made["input_ids"][: config.max_length],
            "labels": made["labels"][: config.max_length],
            "cut": len(made["input_ids"]) > config.max_length,
        }

    def build() -> DatasetDict:
        return _tokenised(config, tokenise, ("messages", "prompt_completion"))

    template = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()
    extra = {"template": template, "loss_on": config.loss_on, "max_length": config.max_length}
    data = cached(_key(config, tokenizer, extra), build)
    facts: dict[str, Any] = {}
    made = {}
    for name, rows in data.items():
        learned = rows.filter(lambda labels: any(label != -100 for label in labels[1:]), input_columns="labels")
        facts[f"{name}_rows"] = len(learned)
        facts[f"{name}_dropped"] = len(rows) - len(learned)
        facts[f"{name}_cut"] = sum(rows["cut"][:])
        learned = learned.remove_columns("cut")
        if config.packing and len(learned):
            learned = pack_dataset(learned.shuffle(seed=config.seed), config.max_length, "bfd")
        made[name] = learned
    if facts["train_rows"] == 0:
        raise LabError("no row has anything to learn", where="datasets", remedy="raise `max_length` or look at the rows")
    facts["train_sequences"] = len(made["train"])
    return Prepared(made["train"], _or_none(made.get("eval")), facts)


def dpo_data(config: DPOConfig, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Returns pairs as `prompt_ids`, `chosen_ids` and `rejected_ids`.

    Raises:
        LabError: when a source has no pairs.
    """

    def tokenise(row: dict[str, Any]) -> dict[str, Any]:
        pair = to_pair(row)
        if pair is None:
            return {"prompt_ids": [], "chosen_ids": [], "rejected_ids": []}
        return tokenize_pair(tokenizer, *pair, config.max_length, config.max_prompt_length)

    def build() -> DatasetDict:
        return _tokenised(config, tokenise, ("preference",))

    template = hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()
    extra = {"template": template, "max_length": config.max_length, "max_prompt_length": config.max_prompt_length}
    data = cached(_key(config, tokenizer, extra), build)
    facts: dict[str, Any] = {}
    made = {}
    for name, rows in data.items():
        usable = rows.filter(
            lambda chosen, rejected: chosen != rejected and bool(chosen), input_columns=["chosen_ids", "rejected_ids"]
        )
        facts[f"{name}_pairs"], facts[f"{name}_dropped"] = len(usable), len(rows) - len(usable)
        made[name] = usable
    if facts["train_pairs"] == 0:
        raise LabError("no usable pairs (equal, empty, or without a common prompt)", where="datasets")
    return Prepared(made["train"], _or_none(made.get("eval")), facts)


def split(rows: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset | None]:
    """Returns rows for training and a held-out share of them, drawn by the seed; at least one row when the share is not 0.

    Raises:
        LabError: when there is a single row.
    """
    if fraction == 0:
        return rows, None
    if len(rows) < 2:
        raise LabError(
            f"{len(rows)} document is too few to hold some out",
            where="datasets",
            remedy="set `eval_fraction` to 0 or add data",
        )
    held = max(1, round(len(rows) * fraction))
    order = rows.shuffle(seed=seed)
    return order.select(range(held, len(rows))), order.select(range(held))


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a hash of the whole tokenizer: vocabulary, merges, pre-tokenisation."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(text.encode()).hexdigest()


def document_texts(source: SourceConfig) -> Iterator[str]:
    """Yields the texts of a source: what a tokenizer is trained on.

    Raises:
        LabError: when the source has no `text` rows or conversations.
    """
    rows = load_rows(source)
    for row in rows:
        yield (row["text"] if "text" in row else "\n".join(str(value) for value in row.values() if isinstance(value, str)))


def _or_none(rows: Dataset | None) -> Dataset | None:
    return rows if rows is not None and len(rows) else None


def _workers(rows: int) -> int | None:
    return min(8, os.cpu_count() or 1) if rows > 20_000 else None


def _key(config: SFTConfig | DPOConfig, tokenizer: PreTrainedTokenizerBase, extra: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": config.KIND,
        "sources": [(fingerprint(s, load_rows(s)), s.weight, s.format) for s in config.datasets],
        "eval": [(fingerprint(s, load_rows(s)), s.format) for s in config.eval_datasets],
        "fraction": 0 if config.eval_datasets else config.eval_fraction,
        "tokenizer": tokenizer_hash(tokenizer),
        "seed": config.seed,
        **extra,
    }


def _tokenised(config: SFTConfig | DPOConfig, tokenise: Any, needed: tuple[str, ...]) -> DatasetDict:
    from datasets import DatasetDict

    def rows_of(sources: list[SourceConfig]) -> Dataset:
        parts = []
        for source in sources:
            if source.streaming:
                raise LabError(
                    "cannot be streamed for this method",
                    where=source.name,
                    remedy="set `streaming` to false or limit `max_rows`",
                )
            rows = load_rows(source)
            shape_of(rows.column_names, rows[0], source.format, needed, source.name)
            parts.append((source, rows.map(tokenise, remove_columns=rows.column_names, num_proc=_workers(len(rows)))))
        return _mix(parts, config.seed)

    train = rows_of(config.datasets)
    if config.eval_datasets:
        return DatasetDict({"train": train, "eval": rows_of(config.eval_datasets)})
    train, evaluation = split(train, config.eval_fraction, config.seed)
    return DatasetDict({"train": train, **({"eval": evaluation} if evaluation is not None else {})})


def _mix(parts: list[tuple[SourceConfig, Any]], seed: int) -> Any:
    from datasets import interleave_datasets

    if len(parts) == 1:
        return parts[0][1]
    total = sum(source.weight for source, _ in parts)
    return interleave_datasets(
        [rows for _, rows in parts],
        probabilities=[source.weight / total for source, _ in parts],
        seed=seed,
        stopping_strategy="first_exhausted",
    )


def _pieces(source: SourceConfig, rows: Any) -> Any:
    """Returns the documents of a source as a `text` column, long ones cut between paragraphs."""
    columns = rows.column_names or list(next(iter(rows)))
    shape_of(columns, next(iter(rows)), source.format, ("text",), source.name)

    def cut(batch: dict[str, list[str]]) -> dict[str, list[str]]:
        return {"text": [piece for text in batch["text"] if text and text.strip() for piece in cut_text(text)]}

    return rows.map(cut, batched=True, remove_columns=columns)


def cut_text(text: str, size: int = PIECE) -> list[str]:
    """Returns a text in pieces of about `size` characters, cut after empty lines; joined they are the text again."""
    pieces, start = [], 0
    while len(text) - start > size:
        end = text.find("\n\n", start + size)
        if end < 0:
            break
        pieces.append(text[start : end + 2])
        start = end + 2
    return [*pieces, text[start:]] if start < len(text) else pieces


def _token_documents(rows: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    for row in rows:
        ids = row["input_ids"] if "input_ids" in row else tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        yield [*ids, tokenizer.eos_token_id]


def _packed(documents: Dataset, tokenizer: PreTrainedTokenizerBase, length: int) -> Dataset:
    from datasets import Dataset, Features, List, Value

    def tokenise(batch: dict[str, list[str]]) -> dict[str, list]:
        return {"input_ids": tokenizer(batch["text"], add_special_tokens=False)["input_ids"],
                "size": [len(text.encode()) for text in batch["text"]]}  # fmt: skip

    tokens = documents.map(tokenise, batched=True, remove_columns=documents.column_names, num_proc=_workers(len(documents)))
    count = sum(len(ids) for ids in tokens["input_ids"]) + len(tokens)
    per_token = sum(tokens["size"][:]) / max(1, count)

    def rows() -> Iterator[dict[str, Any]]:
        for row in pack_stream(_token_documents(tokens, tokenizer), length):
            yield {**row, "bytes": per_token * length}

    ints = List(Value("int32"))
    features = Features({"input_ids": ints, "position_ids": ints, "bytes": Value("float32")})
    made = list(rows()) if count < 2_000_000 else None
    if made is not None:
        return (
            Dataset.from_list(made, features=features)
            if made
            else Dataset.from_dict({k: [] for k in features}, features=features)
        )
    return Dataset.from_generator(rows, features=features)


def _streamed(
    config: PretrainConfig, sources: list, held_out: list, tokenizer: PreTrainedTokenizerBase, length: int
) -> Prepared:
    """Rows packed as they arrive; the first documents of the stream are held out when there is no validation dataset."""
    from datasets import Dataset, IterableDataset

    streams = []
    for source, rows in sources:
        streams.append((source, _pieces(source, rows if source.streaming else rows.to_iterable_dataset())))
    documents = _mix(streams, config.seed)
    if held_out:
        evaluation = _mix([(s, _pieces(s, rows)) for s, rows in held_out], config.seed)
        evaluation = Dataset.from_list(list(evaluation))
    elif config.eval_fraction:
        evaluation = Dataset.from_list(list(documents.take(STREAM_EVAL_ROWS)))
        documents = documents.skip(STREAM_EVAL_ROWS)
    else:
        evaluation = None

    def train_rows() -> Iterator[dict[str, Any]]:
        yield from pack_stream(_token_documents(documents, tokenizer), length)

    packed = _or_none(_packed(evaluation, tokenizer, length)) if evaluation is not None else None
    per_token = packed[0]["bytes"] / length if packed is not None else None
    if packed is not None:
        packed = packed.remove_columns("bytes").with_format("numpy")
    facts = {"rows": "streamed", "eval_rows": len(packed) if packed is not None else 0}
    return Prepared(IterableDataset.from_generator(train_rows), packed, facts, per_token)
