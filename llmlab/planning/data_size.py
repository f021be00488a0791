"""How many rows a run trains on, about, before its data is prepared. No torch."""

from __future__ import annotations

import math

from llmlab.config import PretrainConfig, SFTConfig
from llmlab.config.rollouts import RolloutConfig
from llmlab.config.sources import shares
from llmlab.config.training import TrainingConfig
from llmlab.data.preview import tokenizer_of
from llmlab.data.size import SourceSize, source_size
from llmlab.data.tokenizer import ensure_chat_template, load_tokenizer
from llmlab.errors import LabError
from llmlab.planning.duration import DataSize
from llmlab.planning.work import row_tokens

UNLIMITED = 1 << 40


def data_size(
    config: TrainingConfig, shapes: tuple[str, ...], *, bytes_a_token: float = 0.0
) -> DataSize | None:
    """Returns the rows and tokens that a run trains on, about; None where a source is a stream or not on this
    machine, or where the tokenizer is not and rows are packed.

    Args:
        config: of the run.
        shapes: of rows that its method learns from.
        bytes_a_token: that tokens are reckoned with where the tokenizer is not here; 0 reckons with none.
    """
    try:
        name = tokenizer_of(config)
        tokenizer = load_tokenizer(name) if name else None
        if tokenizer is not None:
            ensure_chat_template(tokenizer)
        sizes = [source_size(source, shapes, tokenizer) for source in config.datasets]
    except (LabError, OSError):  # told where the sources are looked at
        return None
    known = [size for size in sizes if size is not None]
    if tokenizer is None and bytes_a_token:
        known = [size.divided(bytes_a_token) for size in known]
    counted = tokenizer is not None or bool(bytes_a_token)
    if len(known) < len(sizes) or (packs(config) and not counted):
        return None
    return amount(config, known, counted=counted)


def amount(config: TrainingConfig, sizes: list[SourceSize], *, counted: bool) -> DataSize:
    """Returns the rows and tokens of a mixture of sources, without what is held out."""
    longest = row_tokens(config) or UNLIMITED
    text = isinstance(config, PretrainConfig)
    kept = 1.0 if config.eval_datasets else 1 - config.eval_fraction
    packed = packs(config)
    together = 1 if packed or getattr(config, "padding_free", False) else config.micro_batch_size
    tokens = [size.tokens(UNLIMITED if text else longest, together) * kept for size in sizes]
    rows = [total / longest for total in tokens] if packed else [size.rows * kept for size in sizes]
    parts = zip(rows, shares(config.datasets), strict=True)
    ends = min if config.mixture_stop == "first_exhausted" else max
    count = max(1, math.ceil(ends(number / share for number, share in parts)))
    if packed:
        return DataSize(count, float(count * longest))
    mean = sum(tokens) / max(1, sum(rows))
    answers = isinstance(config, RolloutConfig)  # whose length nobody knows
    return DataSize(count, None if answers or not counted else mean * count)


def packs(config: TrainingConfig) -> bool:
    """Returns whether rows of a run are filled with as many texts as they hold."""
    return isinstance(config, PretrainConfig) or (isinstance(config, SFTConfig) and config.packing)
