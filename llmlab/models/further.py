"""A model that is trained further: how long its rows can be, and new tokens of its vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llmlab.errors import LabError
from llmlab.models.adapters import is_adapted
from llmlab.models.transformer.context import context_length

LEARNED_POSITIONS = ("wpe", "embed_positions", "position_embeddings", "position_embedding")


def refuse_rows_beyond_positions(model: PreTrainedModel, length: int) -> None:
    """Refuses rows that are longer than a table of learned positions.

    Raises:
        LabError: with the longest that it has.
    """
    context = context_length(model)
    if context is None or length <= context:
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rsplit(".", 1)[-1] in LEARNED_POSITIONS:
            raise LabError(
                f"`max_length` {length:,} is beyond the {context:,} positions that the model has learned",
                remedy=f"use {context} or less",
            )


@torch.no_grad()
def extend_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, words: list[str], rows: int | None, where: str
) -> int:
    """Adds words to a tokenizer and rows to a model's embeddings; returns how many tokens are new.

    Rows of new tokens, and rows that no token has yet, begin as the mean of the old tokens' rows, in the
    input embedding and in the output head, tied or not (Hewitt 2021, "Initializing New Word Embeddings for
    Pretrained Language Models").

    Args:
        model: changed in place.
        tokenizer: changed in place.
        words: that become one token each.
        rows: of the embeddings afterwards; None for as many as are needed.
        where: the model, for messages.

    Raises:
        LabError: when the embeddings cannot learn, or there would be fewer rows than tokens.
    """
    if is_adapted(model) and (words or rows is not None):
        option = "added_tokens" if words else "resize_vocabulary"
        raise LabError(
            f"is an adapter, whose embeddings do not learn: `{option}` trains them",
            where=where,
            remedy=f"merge it first: `llmlab merge {where}`",
        )
    known, old = len(tokenizer), len(_weight(model.get_input_embeddings()))
    vocabulary = tokenizer.get_vocab()
    new = [word for word in words if word not in vocabulary]
    tokenizer.add_tokens(new)
    needed = len(tokenizer)
    if rows is None and needed > old and not words:
        raise LabError(
            f"has {old:,} embeddings and a tokenizer of {needed:,} tokens",
            where=where,
            remedy=f"set `resize_vocabulary` to {needed} or more",
        )
    target = max(old, needed) if rows is None else rows
    if target < needed:
        raise LabError(
            f"`resize_vocabulary` {rows} is smaller than the {needed:,} tokens of the tokenizer",
            remedy=f"use {needed} or more",
        )
    if target != old:
        model.resize_token_embeddings(target, mean_resizing=False)
    fresh = sorted({*(tokenizer.get_vocab()[word] for word in new), *range(old, target)})
    for values in _tables(model) if fresh else []:
        values[fresh] = values[: min(known, old)].float().mean(dim=0).to(values.dtype)
    return len(new)


def _tables(model: PreTrainedModel) -> list[Tensor]:
    """Returns what has a row for every token: the input embedding, the head where it is another, its bias."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [_weight(embedding)]
    if head is not None and head.weight is not tables[0]:
        tables.append(_weight(head))
    if head is not None and isinstance(bias := getattr(head, "bias", None), Tensor):
        tables.append(bias)
    return tables


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight
