"""How much a model reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def context_length(model: PreTrainedModel) -> int | None:
    """Returns how many tokens a model reads at once by its own config, or None where it names no end."""
    text_config = model.config.get_text_config()
    length = getattr(text_config, "max_position_embeddings", None) or getattr(
        text_config, "max_seq_len", None
    )
    return length if isinstance(length, int) and length > 1 else None
