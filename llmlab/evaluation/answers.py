"""Generated answers: greedy or drawn, the same in any batch, with their log-probability."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from llmlab.data.rendering import decode_answer, render
from llmlab.models.seeded_draws import SeededDraws, seeds_of_rows
from llmlab.models.typed import LanguageModel

PURPOSE = 4  # of seeded draws: numbers that no training and no chat draws from


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: greedily at temperature 0, else each by numbers of its own row and repeat."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Answered:
    """An answer.

    Attributes:
        text: without the tokens that end it.
        log_prob: the sum over its tokens, those that end it included, at temperature 1.
        tokens: of the answer, with the one that ends it.
    """

    text: str
    log_prob: float
    tokens: int


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


def prompt_ids(model: LanguageModel, tokenizer: PreTrainedTokenizerBase, turns: Any) -> list[int]:
    """Returns the tokens of a question, a text or messages; without a chat template its last text is
    continued.
    """
    asked = [{"role": "user", "content": turns}] if isinstance(turns, str) else turns
    text = render(tokenizer, asked, generate=True) if tokenizer.chat_template else asked[-1]["content"]
    ids: list[int] = tokenizer(text, add_special_tokens=model.config.is_encoder_decoder)["input_ids"]
    return ids


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
    prompts = [prompt_ids(model, tokenizer, question) for _, question, _ in questions]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    predictions = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        answered = generate(
            model,
            tokenizer,
            [prompts[i] for i in part],
            max_new_tokens,
            Sampling(temperature),
            draws=None if temperature > 0 else [(i, 0) for i in part],
        )
        for index, one in zip(part, answered, strict=True):
            predictions[index] = one.text
    return Answers([(*row, text) for row, text in zip(questions, predictions, strict=True)])


@torch.no_grad()
def generate(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    max_new_tokens: int,
    sampling: Sampling,
    draws: Sequence[tuple[int, int]] | None = None,
) -> list[Answered]:
    """Returns the answer to each prompt.

    Args:
        model: in whatever mode; it answers without dropout.
        tokenizer: its own.
        prompts: token ids, one batch of them.
        max_new_tokens: of an answer.
        sampling: how tokens are drawn.
        draws: row and repeat of each prompt, by which it is drawn whatever else is in the batch; None draws
            by torch's global generator.
    """
    ends = model.generation_config.eos_token_id
    drawn = sampling.temperature > 0
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=drawn,
        temperature=sampling.temperature if drawn else None,
        top_p=sampling.top_p if drawn else None,
        top_k=sampling.top_k if drawn else None,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    if drawn and draws is not None:
        seeds = [seeds_of_rows(sampling.seed, PURPOSE, repeat, [row])[0] for row, repeat in draws]
        settings.watermarking_config = SeededDraws(seeds, max_new_tokens)
    was_training = model.training
    model.eval()
    ids, mask = padded_left(prompts, tokenizer.pad_token_id or 0, model.device)
    noted = _ChosenLogProbs()
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=settings,
        logits_processor=LogitsProcessorList([noted]),
    )
    model.train(was_training)
    said = out[:, 1 if model.config.is_encoder_decoder else ids.shape[1] :]
    log_probs = noted.of(out)[:, : said.shape[1]].double().cpu()
    ending = {ends} if isinstance(ends, int) else set(ends or ())
    answered = []
    for said_ids, values in zip(said.tolist(), log_probs, strict=True):
        count = next((place + 1 for place, token in enumerate(said_ids) if token in ending), len(said_ids))
        text = decode_answer(tokenizer, said_ids, ends).strip()
        answered.append(Answered(text, float(values[:count].sum()), count))
    return answered


def padded_left(prompts: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns the tokens of prompts and their attention mask, (B, T), so that all end at the last place."""
    longest = max(map(len, prompts))
    ids = [[pad] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


class _ChosenLogProbs(LogitsProcessor):
    """Notes the log-probability of each token that was taken, before temperature and top-p, with the logits
    of one step in memory.
    """

    def __init__(self) -> None:
        self._taken: list[Tensor] = []
        self._last: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the scores as they are."""
        self._note(input_ids[:, -1])
        self._last = scores.float().log_softmax(dim=-1)
        return scores

    def of(self, sequences: Tensor) -> Tensor:
        """Returns log pi of every generated token, (B, T), once the last one is known."""
        self._note(sequences[:, -1])
        self._last = None
        return torch.stack(self._taken, dim=1)

    def _note(self, tokens: Tensor) -> None:
        if self._last is not None:
            self._taken.append(self._last.gather(1, tokens[:, None].to(self._last.device))[:, 0])
