"""Exact-match accuracy: greedy answers to questions that have one right answer."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from llmlab.data.rendering import decode_answer, render
from llmlab.models.typed import LanguageModel


@dataclass
class Answers:
    """What a model answered.

    Attributes:
        rows: (task, question, right answer, given answer).
    """

    rows: list[tuple[str, str, str, str]] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """Share of answers that are right to the letter, surrounding space aside."""
        return sum(reference == prediction for _, _, reference, prediction in self.rows) / max(
            1, len(self.rows)
        )

    def by_task(self) -> dict[str, float]:
        """Returns the accuracy of each task."""
        groups: dict[str, list[bool]] = defaultdict(list)
        for task, _, reference, prediction in self.rows:
            groups[task].append(reference == prediction)
        return {task: sum(hits) / len(hits) for task, hits in groups.items()}


@torch.no_grad()
def answer(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: list[tuple[str, Any, str]],
    *,
    batch_size: int = 64,
    max_new_tokens: int = 16,
    temperature: float = 0.0,
) -> Answers:
    """Returns the model's answers to (task, question, answer) rows; temperature 0 is greedy.

    A question is a text or the messages of a prompt; a model without a chat template continues its last text.
    Questions are batched by length and padded on the left, so that padding changes no answer.
    """
    ends = model.generation_config.eos_token_id
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature or None,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    asked = [[{"role": "user", "content": q}] if isinstance(q, str) else q for _, q, _ in questions]
    chats, seq2seq = bool(tokenizer.chat_template), model.config.is_encoder_decoder
    prompts = [render(tokenizer, turns, generate=True) if chats else turns[-1]["content"] for turns in asked]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    was_training, side = model.training, tokenizer.padding_side
    model.eval()
    tokenizer.padding_side = "left"
    predictions = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        batch = tokenizer(
            [prompts[i] for i in part], return_tensors="pt", padding=True, add_special_tokens=seq2seq
        ).to(model.device)
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
        out = model.generate(**inputs, generation_config=settings)
        out = out[:, 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1] :]
        for index, ids in zip(part, out.tolist(), strict=True):
            predictions[index] = decode_answer(tokenizer, ids, ends).strip()
    tokenizer.padding_side = side
    model.train(was_training)
    return Answers([(*row, text) for row, text in zip(questions, predictions, strict=True)])
