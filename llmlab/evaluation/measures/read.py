"""Measures of how likely a model finds what it reads: labels, texts, conversations, pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from llmlab.data.packing import PackedCollator, takes_bounds
from llmlab.data.rendering import IGNORE_INDEX, decode, tokenize_conversation, tokenize_seq2seq
from llmlab.data.schemas import InvalidRow, to_messages
from llmlab.data.text import encode_texts
from llmlab.errors import LabError
from llmlab.evaluation.classification import label_ids, label_prompt_ids, score_words
from llmlab.evaluation.items import Item, TaskRow
from llmlab.evaluation.measures.base import Answer, Measure, Prepared
from llmlab.evaluation.pairs import score_pairs, tokenized_pair
from llmlab.models.transformer.context import context_length
from llmlab.models.typed import LanguageModel


class Labels(Measure):
    """Which of the label words is the likeliest."""

    name = "label"

    def prepare(self, rows: Sequence[TaskRow]) -> Prepared:
        """Returns an item a row."""
        seq2seq = self.model.config.is_encoder_decoder
        words = {word: label_ids(self.tokenizer, word) for one in rows for word in one.row["choices"]}
        items = []
        for one in rows:
            choices = list(one.row["choices"])
            ids = label_prompt_ids(self.tokenizer, one.row, seq2seq=seq2seq)
            items.append(
                Item(
                    one.number,
                    0,
                    one.group,
                    (ids, *(words[word] for word in choices)),
                    one.row["prompt"],
                    one.row["completion"],
                    {"choices": choices},
                )
            )
        return Prepared(items, {})

    def order(self, item: Item) -> Any:
        """Returns the words, then the length: the rows of a batch have the same words."""
        return item.settings["choices"], item.length

    def batches(self, items: Sequence[Item], batch_size: int) -> Iterator[list[Item]]:
        """Yields batches whose rows have the same words."""
        for batch in super().batches(items, batch_size):
            while batch:
                choices = batch[0].settings["choices"]
                same = [item for item in batch if item.settings["choices"] == choices]
                yield same
                batch = batch[len(same) :]

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """Returns the likeliest word of each row, and the log-probabilities of all of them."""
        words = items[0].settings["choices"]
        scores = score_words(self.model, self.tokenizer, [list(item.ids[0]) for item in items], words)
        answers = []
        for item, values in zip(items, scores.double().cpu().tolist(), strict=True):
            best = max(range(len(words)), key=values.__getitem__)
            answers.append(
                {
                    "answer": words[best],
                    "score": float(words[best] == item.reference),
                    "log_prob": values[best],
                    "tokens": len(item.ids[1 + best]),
                    "log_probs": dict(zip(words, values, strict=True)),
                }
            )
        return answers


class Texts(Measure):
    """The loss of plain text, all of it, in windows; every token but the first is predicted once."""

    name = "text"

    def prepare(self, rows: Sequence[TaskRow]) -> Prepared:
        """Returns an item a window."""
        limit = self.task.max_length or 1024
        window = min(limit, context_length(self.model) or limit)
        stride = self.task.stride or max(1, window // 2)
        if window < 2 or not 0 < stride < window:
            raise LabError(
                f"`stride` {stride} is not between 1 and {window - 1}", remedy="it is shorter than a window"
            )
        items, tokens = [], 0
        encoded = encode_texts(self.tokenizer, [one.row["text"] for one in rows])
        for one, ids in zip(rows, encoded, strict=True):
            whole = [*ids.tolist(), self.tokenizer.eos_token_id]
            tokens += len(whole)
            size = len(one.row["text"].encode())
            for number, (part, done) in enumerate(sliding_windows(whole, window, stride)):
                predicted = len(part) - max(1, done)  # the first token of a text is not predicted
                more = {"bytes": size * predicted / max(1, len(whole) - 1), "first": done}
                items.append(Item(one.number, number, one.group, (part,), "", None, {"from": done}, more))
        reading = {"window": window, "stride": stride, "tokens": tokens, "share_read": 1.0}
        return Prepared(items, reading)

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """Returns the log-probability of each window's own tokens, and what they say."""
        rows = [
            {
                "input_ids": item.ids[0],
                "labels": [IGNORE_INDEX] * item.more["first"] + list(item.ids[0][item.more["first"] :]),
            }
            for item in items
        ]
        answers = _log_probs(self.model, self.tokenizer, rows)
        for item, one in zip(items, answers, strict=True):
            own = list(item.ids[0][item.more["first"] :])
            one |= {"answer": decode(self.tokenizer, own), "bytes": item.more["bytes"]}
        return answers


class Conversations(Measure):
    """The loss of what the assistant says."""

    name = "conversation"

    def prepare(self, rows: Sequence[TaskRow]) -> Prepared:
        """Returns an item a conversation, cut at the window."""
        limit = self.task.max_length or 1024
        window = min(limit, context_length(self.model) or limit)
        items, tokens, read = [], 0, 0
        for one in rows:
            turns = to_messages(one.row)
            try:
                if self.model.config.is_encoder_decoder:
                    whole: Any = tokenize_seq2seq(self.tokenizer, turns)
                else:
                    whole = tokenize_conversation(self.tokenizer, turns, "assistant")
            except InvalidRow as fault:
                raise LabError(fault.reason, where=self.task.source.name) from None
            tokens += len(whole["labels"])
            ids, labels = whole["input_ids"][:window], whole["labels"][:window]
            read += len(labels)
            items.append(Item(one.number, 0, one.group, (ids, labels), turns[:-1], turns[-1]["content"]))
        return Prepared(items, {"window": window, "tokens": tokens, "share_read": read / max(1, tokens)})

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """Returns the log-probability of the assistant's tokens of each conversation."""
        rows = [{"input_ids": list(item.ids[0]), "labels": list(item.ids[1])} for item in items]
        answers = _log_probs(self.model, self.tokenizer, rows)
        return [{**one, "answer": item.reference} for item, one in zip(items, answers, strict=True)]


class Pairs(Measure):
    """Whether the chosen answer of a pair is likelier than the rejected one."""

    name = "preference"

    def prepare(self, rows: Sequence[TaskRow]) -> Prepared:
        """Returns an item a pair."""
        items = []
        for one in rows:
            pair = (one.row["prompt"], one.row["chosen"], one.row["rejected"])
            ids = tokenized_pair(self.tokenizer, pair)
            parts = (ids["prompt_ids"], ids["chosen_ids"], ids["rejected_ids"])
            more = {"rejected": pair[2]}
            items.append(Item(one.number, 0, one.group, parts, pair[0], pair[1], {}, more))
        return Prepared(items, {})

    def answer(self, items: Sequence[Item]) -> list[Answer]:
        """Returns which answer of each pair is the likelier one."""
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        rows = [dict(zip(names, map(list, item.ids), strict=True)) for item in items]
        answers = []
        for item, one in zip(items, score_pairs(self.model, self.tokenizer, rows), strict=True):
            better = one["score"] == 1.0
            answers.append({"answer": item.reference if better else item.more["rejected"], **one})
        return answers


def sliding_windows(ids: Sequence[int], window: int, stride: int) -> Iterator[tuple[list[int], int]]:
    """Yields windows over a text, and how many of their first tokens an earlier window has predicted."""
    start = done = 0
    while True:
        end = min(start + window, len(ids))
        yield list(ids[start:end]), done - start
        if end == len(ids):
            return
        start, done = start + stride, end


@torch.no_grad()
def _log_probs(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]
) -> list[Answer]:
    """Returns the sum of log pi over the labels of each row, and their number."""
    seq2seq = model.config.is_encoder_decoder
    packed = PackedCollator(tokenizer.pad_token_id or 0, bounds=takes_bounds(model))
    collate: Any = DataCollatorForSeq2Seq(tokenizer, model) if seq2seq else packed
    batch = {
        name: value.to(model.device) if torch.is_tensor(value) else value
        for name, value in collate(rows).items()
    }
    labels = batch.pop("labels")
    if seq2seq:
        logits = model(**batch, labels=labels, use_cache=False).logits.float()
    else:  # a decoder's logits are those of the next token
        logits = model(**batch, use_cache=False).logits[:, :-1].float()
        labels = labels[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), labels, reduction="none", ignore_index=IGNORE_INDEX
    )
    sums = losses.double().sum(dim=1).tolist()
    counts = (labels != IGNORE_INDEX).sum(dim=1).tolist()
    return [{"score": None, "log_prob": -nats, "tokens": n} for nats, n in zip(sums, counts, strict=True)]
