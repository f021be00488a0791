"""Text, and streamed conversations, as packed rows: for base training, and for SFT on streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmlab.config import PretrainConfig, SFTConfig, SourceConfig
from llmlab.config.sources import shares, short_names
from llmlab.data.cache import cached, read_rows, write_tables
from llmlab.data.counting import SourceCounts, told
from llmlab.data.mixture import Mix
from llmlab.data.opening import OpenSource, open_source
from llmlab.data.packing import row_lengths
from llmlab.data.pipeline import Prepared, SourceRows
from llmlab.data.reader import HEAD, Reader, Window
from llmlab.data.schemas import CONVERSATIONS
from llmlab.data.sources import PIECE, fingerprint
from llmlab.data.tokens import tokenizer_hash
from llmlab.errors import LabError

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from llmlab.data.stream import PackedStream

CHARACTERS = 8  # of a token, generously


@dataclass(frozen=True)
class PackedSources:
    """How sources become packed rows.

    Attributes:
        config: of the run.
        needed: shapes that can be used.
        encode: from documents to a table of token lists.
        length: tokens of a row.
        packing: "end_to_end" or "best_fit".
        piece: characters after which a text file may be cut between paragraphs.
    """

    config: PretrainConfig | SFTConfig
    needed: tuple[str, ...]
    encode: Callable[[Window], pa.Table]
    length: int
    packing: str
    piece: int = PIECE

    @property
    def fraction(self) -> float:
        """The share of the training sources that is held out."""
        return 0.0 if self.config.eval_datasets else self.config.eval_fraction

    def look(self) -> None:
        """Reads the first rows of the streams.

        Raises:
            LabError: when one is malformed, and its source's `bad_rows` does not drop it.
        """
        for source in self.config.datasets:
            if source.streaming and source.weight and source.bad_rows == "stop":
                self._open(source).look()

    def training(self, sources: list[SourceConfig], *, endless: bool) -> PackedStream:
        """Returns the training rows of a mixture."""
        return self._stream(sources, partial(self._readers, sources), endless=endless)

    def validation(self, key: dict[str, Any]) -> Validation:
        """Returns the validation rows of each source, stored under `key` and what they depend on.

        A streamed source gives those among its first `HEAD` rows.
        """
        result = Validation()
        own = bool(self.config.eval_datasets)
        sources = self.config.eval_datasets or (self.config.datasets if self.fraction else [])
        for name, source in zip(short_names(sources), sources, strict=True):
            whole = own and (not source.streaming or source.max_rows is not None)
            head_only = source.streaming and not whole
            readers = partial(self._readers, [source], held_out=not own, head_only=head_only)
            key_of_source = {**key, "held_out": fingerprint(source), "fraction": self.fraction}
            packed_rows = stored(key_of_source, self._stream([source], readers), [source])
            if packed_rows.rows is None:
                continue
            result.rows[name], result.facts[name] = packed_rows.rows, packed_rows.facts
            result.notes += (
                packed_rows.notes if own else [f"held-out rows: {note}" for note in packed_rows.notes]
            )
            if own:
                result.sources += packed_rows.sources
                if head_only and any(counts["read"] >= HEAD for counts in packed_rows.sources):
                    result.notes.append(f"validation reads the first {HEAD:,} rows of {source.line()}")
        return result

    def _stream(
        self, sources: list[SourceConfig], readers: Callable[[], list[Reader]], *, endless: bool = False
    ) -> PackedStream:
        from llmlab.data.stream import PackedStream

        weights = [1.0] if len(sources) == 1 else shares(sources)
        mix = Mix(weights, self.config.seed, self.config.mixture_stop, endless)
        return PackedStream(readers, mix, self.encode, self.length, packing=self.packing)

    def _readers(
        self, sources: list[SourceConfig], *, held_out: bool = False, head_only: bool = False
    ) -> list[Reader]:
        return [
            Reader(
                SourceRows(self._open(source), fraction=self.fraction, held_out=held_out),
                head_only=head_only,
            )
            for source in sources
        ]

    def _open(self, source: SourceConfig) -> OpenSource:
        # rows that are stored come as a stream, too, unless a limit has to be spread over all of them
        streaming = True if source.max_rows is None else source.streaming
        return open_source(source, self.needed, streaming=streaming, piece=self.piece)


@dataclass
class Validation:
    """Validation rows of several sources, by name.

    Attributes:
        rows: packed.
        facts: stored with them.
        notes: what was left out of them.
        sources: what became of the rows of sources that are for validation alone.
    """

    rows: dict[str, Dataset] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sources: list[SourceCounts] = field(default_factory=list)


def pretrain_data(
    config: PretrainConfig, tokenizer: PreTrainedTokenizerBase, length: int, *, begin: int | None = None
) -> Prepared:
    """Returns packed rows of `length` tokens from the text sources: `input_ids` and `seq_lengths`.

    Args:
        config: of the run.
        tokenizer: whose end-of-text token closes a document.
        length: tokens of a row.
        begin: the token that documents begin with; None for none.

    Raises:
        LabError: when a source has no text.
    """
    from llmlab.data.stream import encoder

    piece = max(PIECE, CHARACTERS * length)  # a document stays whole up to the length of a row
    packed = PackedSources(config, ("text",), encoder(tokenizer, begin=begin), length, config.packing, piece)
    key = {
        "method": "pretrain",
        "tokenizer": tokenizer_hash(tokenizer),
        "length": length,
        "packing": config.packing,
        **({} if begin is None else {"begin": begin}),
    }
    train: Dataset | PackedStream
    facts: dict[str, Any] = {"rows": "streamed"}
    notes: list[str] = []
    sources: list[SourceCounts] = []
    if any(source.streaming for source in config.datasets):
        packed.look()
        train = packed.training(config.datasets, endless=True)
    else:
        drawn = [source for source in config.datasets if source.weight]
        key_of_mixture = {
            **key,
            "sources": [(fingerprint(s), share) for s, share in zip(drawn, shares(drawn), strict=True)],
            "fraction": packed.fraction,
            "seed": config.seed if len(drawn) > 1 else 0,
            "stop": config.mixture_stop,
        }
        packed_rows = stored(key_of_mixture, packed.training(drawn, endless=False), drawn)
        if packed_rows.rows is None:
            raise LabError(
                "hold no text to train on", where="datasets", remedy="add text, or lower `eval_fraction`"
            )
        train = packed_rows.rows.with_format("numpy")
        facts = {name: packed_rows.facts[name] for name in ("rows", "tokens", "padding")}
        notes, sources = packed_rows.notes, packed_rows.sources
    eval_rows = packed.validation(key)
    return Prepared(
        train,
        {name: rows.with_format("numpy") for name, rows in eval_rows.rows.items()},
        {**facts, "eval_rows": sum(len(rows) for rows in eval_rows.rows.values())},
        {name: each["bytes"] / each["tokens"] for name, each in eval_rows.facts.items()},
        [*notes, *eval_rows.notes],
        [*sources, *eval_rows.sources],
    )


@dataclass
class Stored:
    """All rows of a stream that ends.

    Attributes:
        rows: packed; None where there are none.
        facts: `rows`, `bytes` of text, `tokens`, `padding`.
        notes: one line for each reason why rows were left out.
        sources: what became of the rows of each source.
    """

    rows: Dataset | None
    facts: dict[str, Any]
    notes: list[str]
    sources: list[SourceCounts]


def stored(key: dict[str, Any], stream: PackedStream, sources: list[SourceConfig]) -> Stored:
    """Returns all rows of a stream that ends, from the cache where they are there."""

    def build(folder: Path) -> dict[str, Any]:
        sizes = {"bytes": 0, "tokens": 0}

        def tables() -> Iterator[pa.Table]:
            for table, size in stream.tables():
                sizes["bytes"] += size
                sizes["tokens"] += int(row_lengths(table).sum())
                yield table

        rows = write_tables(tables(), folder / "rows.arrow")
        return {
            "rows": rows,
            **sizes,
            "padding": round(1 - sizes["tokens"] / max(1, rows * stream.length), 4),
            "counters": [reader.source.result().to_json() for reader in stream.readers],
        }

    folder, facts = cached(key, build)
    notes, counts = told(facts, sources)
    return Stored(read_rows(folder / "rows.arrow"), facts, notes, counts)


def document_texts(source: SourceConfig) -> Iterator[str]:
    """Yields the texts of a source, whatever its shape: what a tokenizer is trained on.

    Raises:
        LabError: when the source cannot be read.
    """
    for _, row in SourceRows.of(source, ("text", *CONVERSATIONS, "preference", "prompt_answer")):
        turns = row.get("messages") or row.get("prompt") or []
        answers = [
            row[name] for name in ("text", "completion", "chosen", "rejected", "answer") if name in row
        ]
        yield "\n".join([*(turn["content"] for turn in turns), *answers])
