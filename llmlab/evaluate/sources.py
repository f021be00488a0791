"""Held-out figures of a model on any source: what is measured follows from the shape of its rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase

from llmlab.config import SourceConfig
from llmlab.data.canonical import Tally, open_source
from llmlab.data.packing import PackedCollator
from llmlab.data.render import tokenize_apart, tokenize_conversation
from llmlab.data.shapes import Row, RowFault, to_messages
from llmlab.errors import LabError
from llmlab.evaluate.classification import Classified, classify
from llmlab.evaluate.pairs import dual_head_figures, preference_accuracy
from llmlab.model import LabDualHeadForCausalLM

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
    """

    name: str
    rows: int
    figures: dict[str, float]
    classified: Classified | None = None
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Returns the figures as JSON data."""
        table = {}
        if self.classified:
            table = {"labels": self.classified.labels, "confusion": self.classified.confusion.tolist()}
        return {"source": self.name, "rows": self.rows, **self.figures, **table}


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: SourceConfig, *,
    by: str = "score", batch_size: int = 16, max_length: int = 1024,
) -> Measured:  # fmt: skip
    """Returns the figures of a model on a source.

    Classification: accuracy, macro F1 and the majority's accuracy. Text: loss and bits per byte. Conversations: loss of
    the assistant's tokens. Pairs: preference accuracy.

    Args:
        model: to measure.
        tokenizer: its own.
        source: whose rows are all measured (`max_rows` limits them).
        by: "score" or "generate", for classifications.
        batch_size: rows at a time.
        max_length: longer rows are cut.

    Raises:
        LabError: when the source cannot be read or no row is left.
    """
    opened = open_source(source, MEASURES)
    tally = Tally()
    rows = [row for _, row in islice(opened.canonical(tally), source.max_rows)]
    if not rows:
        raise LabError("has no row that can be measured", where=source.name, remedy="; ".join(tally.notes(source)))
    found = Measured(source.short(), len(rows), {}, notes=tally.notes(source))
    if all(row.get("choices") for row in rows):
        found.classified = classify(model, tokenizer, rows, by=by, batch_size=batch_size)
        result = found.classified
        found.figures = {"accuracy": result.accuracy, "macro_f1": result.macro_f1, "majority": result.majority}
    elif model.config.is_encoder_decoder and ("chosen" in rows[0] or "text" in rows[0]):
        raise LabError(
            f"holds {'pairs' if 'chosen' in rows[0] else 'plain text'}, which are measured on decoders; this model is an "
            f"encoder-decoder ({model.config.model_type})", where=source.name, remedy="give it prompts and answers, or labels",
        )  # fmt: skip
    elif "chosen" in rows[0]:
        pairs = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
        if isinstance(model, LabDualHeadForCausalLM):
            found.figures = dual_head_figures(model, tokenizer, pairs, batch_size=batch_size)
        else:
            found.figures = {"preference_accuracy": preference_accuracy(model, tokenizer, pairs, batch_size=batch_size)}
    else:
        try:
            found.figures = _losses(model, tokenizer, rows, batch_size, max_length)
        except RowFault as fault:
            raise LabError(fault.reason, where=source.name) from None
    return found


@torch.no_grad()
def _losses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[Row], batch_size: int, max_length: int
) -> dict[str, float]:
    """Returns the loss per learned token, and bits per byte of plain text."""
    apart = model.config.is_encoder_decoder
    collate = DataCollatorForSeq2Seq(tokenizer, model) if apart else PackedCollator(tokenizer.pad_token_id or 0)
    made = []
    for row in rows:
        if apart:
            made.append({name: ids[:max_length] for name, ids in tokenize_apart(tokenizer, to_messages(row)).items()})
        elif "text" in row:
            ids = [*tokenizer(row["text"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            made.append({"input_ids": ids[:max_length], "labels": ids[:max_length]})
        else:
            tokens = tokenize_conversation(tokenizer, to_messages(row), "assistant")
            made.append({name: values[:max_length] for name, values in tokens.items()})
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    made.sort(key=lambda row: len(row["input_ids"]))
    for start in range(0, len(made), batch_size):
        batch = {name: value.to(model.device) for name, value in collate(made[start : start + batch_size]).items()}
        labels = batch.pop("labels")
        logits = model(**batch, use_cache=False).logits.float()
        if not apart:  # a decoder's logits are those of the next token
            labels, logits = labels[:, 1:], logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=-100)
        total, count = total + losses.item(), count + int((labels != -100).sum())
    model.train(was_training)
    figures = {"loss": total / max(1, count)}
    if "text" in rows[0]:
        size = sum(len(tokenizer.decode(row["input_ids"], skip_special_tokens=True).encode()) for row in made)
        figures["bits_per_byte"] = total / 0.6931471805599453 / max(1, size)
    return figures
