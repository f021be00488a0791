"""Held-out figures of a model on any source: what is measured follows from the shape of its rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from llmlab.config import SourceConfig
from llmlab.data.packing import PackedCollator, takes_bounds
from llmlab.data.pipeline import SourceRows
from llmlab.data.rendering import IGNORE_INDEX, tokenize_conversation, tokenize_seq2seq
from llmlab.data.schemas import InvalidRow, Row, to_messages
from llmlab.data.text import encode_texts
from llmlab.errors import LabError
from llmlab.evaluation.answers import answer
from llmlab.evaluation.classification import Classified, classify
from llmlab.evaluation.pairs import dual_head_figures, preference_accuracy
from llmlab.models import LabDualHeadForCausalLM
from llmlab.models.transformer.context import context_length
from llmlab.models.typed import LanguageModel

WHOLE = 8_000_000  # characters of a text file that are measured as one document
MEASURES = ("text", "messages", "prompt_completion", "preference")


@dataclass
class Measured:
    """The figures of one source.

    Attributes:
        name: of the source.
        rows: measured.
        figures: name -> value.
        classified: labels, of a classification.
        notes: what was left out.
        reading: of texts and conversations, how they were read: `window` and `stride` in tokens, `tokens`
            there are, and the `share_read` of them.
    """

    name: str
    rows: int
    figures: dict[str, float]
    classified: Classified | None = None
    notes: list[str] = field(default_factory=list)
    reading: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the figures as JSON data."""
        table = {}
        if self.classified:
            table = {"labels": self.classified.labels, "confusion": self.classified.confusion.tolist()}
        return {"source": self.name, "rows": self.rows, **self.figures, **self.reading, **table}


def measure(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    source: SourceConfig,
    *,
    by: str = "score",
    batch_size: int = 16,
    max_length: int | None = None,
    stride: int | None = None,
) -> Measured:
    """Returns the figures of a model on a source.

    Classification: accuracy, macro F1 and the majority's accuracy. Text: loss and bits per byte, over all of
        it. Conversations: loss of the assistant's tokens, or with `by` "generate" how often the answer is the
        right one to the letter. Pairs: preference accuracy.

    Args:
        model: to measure.
        tokenizer: its own.
        source: whose rows are all measured (`max_rows` limits them).
        by: "score" or "generate", for classifications and conversations.
        batch_size: rows at a time.
        max_length: tokens of a text or conversation that are read at once, at most as many as the model's
            context; left out, 1,024. Longer conversations are cut; longer texts are read in windows of this
            length.
        stride: tokens from one window of a text to the next; left out, half a window. Every token but a
            text's first is predicted once, from at least `max_length - stride` tokens before it, or from all
            there are.

    Raises:
        LabError: when the source cannot be read, no row is left, `by` "generate" has no right answers to
            compare with, or a length is given for rows that are not read in that way.
    """
    source_rows = SourceRows.of(source, MEASURES, piece=WHOLE)
    rows = source_rows.first(source.max_rows)
    if not rows:
        raise LabError(
            "has no row that can be measured", where=source.name, remedy="; ".join(source_rows.notes())
        )
    measured = Measured(source.short(), len(rows), {}, notes=source_rows.notes())
    if kind := _read_whole(rows, by):
        refuse_lengths(max_length, stride, kind, source.name)
    elif "text" not in rows[0]:
        refuse_lengths(None, stride, "conversations", source.name)
    if all(row.get("choices") for row in rows):
        measured.classified = classify(model, tokenizer, rows, by=by, batch_size=batch_size)
        result = measured.classified
        measured.figures = {
            "accuracy": result.accuracy,
            "macro_f1": result.macro_f1,
            "majority": result.majority,
        }
    elif by == "generate":
        if "text" in rows[0] or "chosen" in rows[0]:
            raise LabError(
                f'`by` "generate": {"plain text" if "text" in rows[0] else "pairs"} have no reference answer'
                " to compare with",
                where=source.name,
                remedy="leave it out, or use prompts with answers or labels",
            )
        measured.figures = {"exact_match": _exact_match(model, tokenizer, rows, batch_size)}
    elif model.config.is_encoder_decoder and ("chosen" in rows[0] or "text" in rows[0]):
        raise LabError(
            f"holds {'pairs' if 'chosen' in rows[0] else 'plain text'}, which are measured on decoders; this"
            f" model is an encoder-decoder ({model.config.model_type})",
            where=source.name,
            remedy="give it prompts and answers, or labels",
        )
    elif "chosen" in rows[0]:
        pairs = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
        if isinstance(model, LabDualHeadForCausalLM):
            measured.figures = dual_head_figures(model, tokenizer, pairs, batch_size=batch_size)
        else:
            measured.figures = {
                "preference_accuracy": preference_accuracy(model, tokenizer, pairs, batch_size=batch_size)
            }
    else:
        try:
            measured.figures, measured.reading = _losses(
                model, tokenizer, rows, batch_size, max_length or 1024, stride
            )
        except InvalidRow as fault:
            raise LabError(fault.reason, where=source.name) from None
    return measured


def _read_whole(rows: list[Row], by: str) -> str:
    """Returns what rows are that are read as they stand, whatever their length;
    "" for texts and scored conversations.
    """
    if all(row.get("choices") for row in rows):
        return "classifications"
    return "pairs" if "chosen" in rows[0] else "prompts that are answered" if by == "generate" else ""


def refuse_lengths(max_length: int | None, stride: int | None, kind: str, where: str) -> None:
    """Refuses lengths for rows that are not read in that way.

    Raises:
        LabError: where one is given.
    """
    for name, value, of in (
        ("max-length", max_length, "texts and conversations"),
        ("stride", stride, "texts"),
    ):
        if value is not None:
            raise LabError(
                f"`--{name}` applies to {of}; these are {kind}", where=where, remedy="leave it out"
            )


def sliding_windows(ids: Sequence[int], window: int, stride: int) -> Iterator[dict[str, list[int]]]:
    """Yields `input_ids` and `labels` of windows over a text;
    labels are -100 on what an earlier window has predicted.
    """
    start = done = 0
    while True:
        end = min(start + window, len(ids))
        yield {
            "input_ids": list(ids[start:end]),
            "labels": [IGNORE_INDEX] * (done - start) + list(ids[done:end]),
        }
        if end == len(ids):
            return
        start, done = start + stride, end


def _exact_match(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], batch_size: int
) -> float:
    talks = [to_messages(row) for row in rows]
    longest = max(
        len(tokenizer(talk[-1]["content"], add_special_tokens=False)["input_ids"]) for talk in talks
    )
    asked = [("", talk[:-1], talk[-1]["content"].strip()) for talk in talks]
    return answer(model, tokenizer, asked, batch_size=batch_size, max_new_tokens=longest + 2).accuracy


@torch.no_grad()
def _losses(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    batch_size: int,
    max_length: int,
    stride: int | None,
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns the loss per learned token and the bits per byte of plain text, and how the rows were read."""
    seq2seq, texts = model.config.is_encoder_decoder, "text" in rows[0]
    packed = PackedCollator(tokenizer.pad_token_id or 0, bounds=takes_bounds(model))
    collate = DataCollatorForSeq2Seq(tokenizer, model) if seq2seq else packed
    window = min(max_length, context_length(model) or max_length)
    if texts and (window < 2 or not 0 < (stride or max(1, window // 2)) < window):
        raise LabError(
            f"`stride` {stride} is not between 1 and {window - 1}", remedy="it is shorter than a window"
        )
    stride = stride or max(1, window // 2)
    windows: list[dict[str, list[int]]] = []
    tokens = 0
    if texts:
        for ids in encode_texts(tokenizer, [row["text"] for row in rows]):
            tokens += len(ids) + 1
            windows += sliding_windows([*ids.tolist(), tokenizer.eos_token_id], window, stride)
    else:
        for row in rows:
            turns = to_messages(row)
            whole = (
                tokenize_seq2seq(tokenizer, turns)
                if seq2seq
                else tokenize_conversation(tokenizer, turns, "assistant")
            )
            tokens += len(whole["labels"])
            windows.append({name: values[:window] for name, values in whole.items()})
    read = tokens if texts else sum(len(row["labels"]) for row in windows)
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    windows.sort(key=lambda row: len(row["input_ids"]))
    for start in range(0, len(windows), batch_size):
        batch = {
            name: value.to(model.device) if torch.is_tensor(value) else value
            for name, value in collate(windows[start : start + batch_size]).items()
        }
        labels = batch.pop("labels")
        if seq2seq:
            logits = model(**batch, labels=labels, use_cache=False).logits.float()
        else:  # a decoder's logits are those of the next token
            logits = model(**batch, use_cache=False).logits[:, :-1].float()
            labels = labels[:, 1:]
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=-100
        )
        total, count = total + losses.item(), count + int((labels != -100).sum())
    model.train(was_training)
    figures = {"loss": total / max(1, count)}
    reading = {"window": window, "stride": stride, "tokens": tokens, "share_read": read / max(1, tokens)}
    if texts:
        figures["bits_per_byte"] = (
            total / math.log(2) / max(1, sum(len(row["text"].encode()) for row in rows))
        )
    else:
        del reading["stride"]
    return figures, reading
