"""Generative classification: how likely a model finds each of the label words behind a prompt."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llmlab.data.rendering import answer_tokens, render, tokenize_seq2seq
from llmlab.data.schemas import Row
from llmlab.data.tokenizer import text_ids
from llmlab.errors import LabError
from llmlab.evaluation.answers import padded_left
from llmlab.models.typed import LanguageModel


@torch.no_grad()
def score_words(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], words: list[str]
) -> Tensor:
    """Returns log pi(word, end of turn | prompt) for each prompt and word, (prompts, words).

    The prompts are read once; each word continues from their keys and values.
    """
    if model.config.is_encoder_decoder:
        return _score_seq2seq(model, tokenizer, prompts, words)
    device = model.device
    ids, mask = padded_left(prompts, tokenizer.pad_token_id or 0, device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    read = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    first = read.logits[:, -1].float().log_softmax(-1)
    scores = []
    for word in words:
        word_ids = label_ids(tokenizer, word)
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


def label_prompt_ids(tokenizer: PreTrainedTokenizerBase, row: Row, *, seq2seq: bool = False) -> list[int]:
    """Returns the tokens of a question behind which a label is scored."""
    if seq2seq or tokenizer.chat_template:
        asked = render(tokenizer, row["prompt"], generate=True)
        return text_ids(tokenizer, asked, add_special_tokens=seq2seq)
    return text_ids(tokenizer, row["prompt"][-1]["content"])


def label_ids(tokenizer: PreTrainedTokenizerBase, word: str) -> list[int]:
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
