"""How much a model reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def context_length(model: PreTrainedModel) -> int | None:
    """Returns how many tokens a model reads at once by its own config, or None where it names no end."""
    about = model.config.get_text_config()
    found = getattr(about, "max_position_embeddings", None) or getattr(about, "max_seq_len", None)
    return found if isinstance(found, int) and found > 1 else None
