"""Generative classification: which of the label words the model finds likeliest, or says.

Accuracy, macro F1 (the mean over the labels of 2 TP / (2 TP + FP + FN); a label that is neither there nor
given counts as 0) and the confusion matrix.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llmlab.data.rendering import answer_tokens, render, tokenize_seq2seq
from llmlab.data.schemas import Row
from llmlab.data.tokenizer import text_ids
from llmlab.errors import LabError
from llmlab.evaluation.answers import answer
from llmlab.models.typed import LanguageModel

OTHER = "(other)"


@dataclass
class Classified:
    """Labels and predictions of a source.

    Attributes:
        labels: the words.
        references: number of the correct word for each row.
        predictions: number of the predicted word; `len(labels)` for none of them.
    """

    labels: list[str]
    references: list[int] = field(default_factory=list)
    predictions: list[int] = field(default_factory=list)

    @property
    def confusion(self) -> np.ndarray:
        """Rows of the correct word, columns of the predicted one, the last column for none of them; (labels,
        labels + 1).
        """
        table = np.zeros((len(self.labels), len(self.labels) + 1), int)
        np.add.at(table, (self.references, self.predictions), 1)
        return table

    @property
    def accuracy(self) -> float:
        """Share of the rows that are correct."""
        return float(np.trace(self.confusion[:, :-1]) / max(1, len(self.references)))

    @property
    def macro_f1(self) -> float:
        """Mean over the labels of their F1."""
        table = self.confusion
        hits = np.diag(table[:, :-1])
        both = table.sum(1) + table[:, :-1].sum(0)
        return float(np.mean(np.divide(2 * hits, both, out=np.zeros(len(hits)), where=both > 0)))

    @property
    def majority(self) -> float:
        """Accuracy of always giving the most frequent word."""
        return max(Counter(self.references).values(), default=0) / max(1, len(self.references))


@torch.no_grad()
def classify(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Row],
    *,
    by: str = "score",
    batch_size: int = 16,
) -> Classified:
    """Returns the labels that a model gives to canonical classification rows.

    Args:
        model: in whatever mode; evaluated without dropout.
        tokenizer: with a chat template, or without one, when prompts are continued as text.
        rows: with `prompt`, `completion` and `choices`.
        by: "score" takes the word with the highest log-probability, end of turn included; "generate" what it
            says.
        batch_size: rows at a time.
    """
    labels = list(dict.fromkeys(word for row in rows for word in row["choices"]))
    result = Classified(labels, [labels.index(row["completion"]) for row in rows], [len(labels)] * len(rows))
    if by == "generate":
        answers = answer(
            model,
            tokenizer,
            [("", row["prompt"], row["completion"]) for row in rows],
            max_new_tokens=max(len(text_ids(tokenizer, word)) for word in labels) + 2,
            batch_size=batch_size,
        )
        for index, (*_, text) in enumerate(answers.rows):
            word = next(
                (word for word in rows[index]["choices"] if word.lower() == text.strip().rstrip(".").lower()),
                None,
            )
            if word:
                result.predictions[index] = labels.index(word)
        return result
    was_training = model.training
    model.eval()
    prompts = [_prompt_ids(tokenizer, row, seq2seq=model.config.is_encoder_decoder) for row in rows]
    order = sorted(range(len(rows)), key=lambda index: (rows[index]["choices"], len(prompts[index])))
    start = 0
    while start < len(order):
        choices = rows[order[start]]["choices"]
        part = [i for i in order[start : start + batch_size] if rows[i]["choices"] == choices]
        scores = score_words(model, tokenizer, [prompts[i] for i in part], choices)
        for index, best in zip(part, scores.argmax(dim=1).tolist(), strict=True):
            result.predictions[index] = labels.index(choices[best])
        start += len(part)
    model.train(was_training)
    return result


@torch.no_grad()
def score_words(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], words: list[str]
) -> Tensor:
    """Returns log pi(word, end of turn | prompt) for each prompt and word, (prompts, words).

    The prompts are read once; each word goes on from their keys and values.
    """
    if model.config.is_encoder_decoder:
        return _score_seq2seq(model, tokenizer, prompts, words)
    longest = max(map(len, prompts))
    pad = tokenizer.pad_token_id or 0
    device = model.device
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor(
        [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device
    )
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    read = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    first = read.logits[:, -1].float().log_softmax(-1)
    scores = []
    for word in words:
        word_ids = _word_ids(tokenizer, word)
        total = first[:, word_ids[0]]
        if len(word_ids) > 1:
            tokens = torch.tensor([word_ids[:-1]] * len(prompts), device=device)
            places = positions[:, -1:] + 1 + torch.arange(len(word_ids) - 1, device=device)
            wider = torch.cat([mask, torch.ones_like(tokens)], dim=1)
            out = model(
                input_ids=tokens,
                attention_mask=wider,
                position_ids=places,
                past_key_values=copy.deepcopy(read.past_key_values),
            )
            log_probs = out.logits.float().log_softmax(-1)
            following = torch.tensor(word_ids[1:], device=device)[None, :, None].expand(len(prompts), -1, 1)
            total = total + log_probs.gather(2, following).sum(dim=(1, 2))
        scores.append(total)
    return torch.stack(scores, dim=1)


def _score_seq2seq(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], words: list[str]
) -> Tensor:
    """The same of an encoder-decoder: the encoder reads once, the decoder writes each word and its end."""
    read = tokenizer.pad({"input_ids": prompts}, padding_side="right", return_tensors="pt").to(model.device)
    mask = read["attention_mask"]
    states = model.get_encoder()(input_ids=read["input_ids"], attention_mask=mask)
    scores = []
    for word in words:
        word_ids = tokenize_seq2seq(
            tokenizer, [{"role": "user", "content": ""}, {"role": "assistant", "content": word}]
        )["labels"]
        labels = torch.tensor([word_ids] * len(prompts), device=model.device)
        logits = (
            model(encoder_outputs=states, attention_mask=mask, labels=labels).logits.float().log_softmax(-1)
        )
        scores.append(logits.gather(2, labels[..., None]).sum(dim=(1, 2)))
    return torch.stack(scores, dim=1)


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, row: Row, *, seq2seq: bool = False) -> list[int]:
    if seq2seq or tokenizer.chat_template:
        asked = render(tokenizer, row["prompt"], generate=True)
        return text_ids(tokenizer, asked, add_special_tokens=seq2seq)
    return text_ids(tokenizer, row["prompt"][-1]["content"])


def _word_ids(tokenizer: PreTrainedTokenizerBase, word: str) -> list[int]:
    """Returns the tokens that the assistant says for a word: with the template's end of turn,
    or as the next word of a text.
    """
    if not tokenizer.chat_template:
        return text_ids(tokenizer, " " + word, add_special_tokens=False)
    try:
        _, word_ids = answer_tokens(
            tokenizer, [{"role": "user", "content": "?"}], [{"role": "assistant", "content": word}]
        )
        return word_ids
    except LabError:  # a template that rewrites the prompt once it is answered
        return text_ids(tokenizer, word, add_special_tokens=False)
