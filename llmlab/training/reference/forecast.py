"""What the two phases of a DPO run will need, as far as it is known without loading a model. No torch."""

from __future__ import annotations

import math
import struct
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from llmlab.config import DPOConfig
from llmlab.errors import LabError
from llmlab.models.headers import tensor_sizes
from llmlab.runs.folder import find_model
from llmlab.training.reference.cache import caches

BYTES_PER_PAIR = 40
LOOKED_AT = 500  # pairs whose lengths are taken for the estimate
CHARACTERS_PER_TOKEN = 4.0
# bytes of a weight, its scales included; of one that learns: itself, its gradient and AdamW's two moments
BYTES_PER_WEIGHT = {"none": 4.0, "8bit": 1.1, "4bit": 0.55}
BYTES_PER_LEARNED = 16.0
ADAPTER = 0.2  # bytes of an adapter's share, gradients and moments, for each weight of its base
REACHED = 1 / 3  # of the speed of a matrix product that a model reaches


@dataclass(frozen=True)
class LiveReference:
    """A reference that is evaluated in every step; `beside` the policy in memory, or the policy without its
    adapter.
    """

    beside: bool


@dataclass(frozen=True)
class Filling:
    """What filling the cache takes: tokens of a pair, FLOPs in all, seconds on this processor."""

    tokens_per_pair: float
    flops: float
    seconds: float


@dataclass(frozen=True)
class SequentialReference:
    """A reference that is asked before the training, and freed.

    Attributes:
        reference: bytes of its weights; None where it is not on this machine.
        policy: bytes of the policy's weights, gradients and optimizer; None likewise.
        pairs: that are asked for; 0 where it is not known.
        cache: bytes that they take in the cache.
        cache_dir: where they go.
        filling: None where pairs or weights are not known.
        known: caches of this reference: how many pairs, and the name of the folder.
    """

    reference: float | None
    policy: float | None
    pairs: int
    cache: int
    cache_dir: str
    filling: Filling | None
    known: tuple[tuple[int, str], ...]


def reference_forecast(config: DPOConfig) -> LiveReference | SequentialReference:
    """Returns what the reference of a run needs."""
    if config.reference == "live":
        return LiveReference(beside=config.adapter == "none" or bool(config.reference_checkpoint))
    name = config.reference_checkpoint or config.policy_checkpoint
    weights = _parameters(name)
    pairs, tokens = _pairs(config)
    pairs = min(pairs, config.max_steps * config.batch_size)  # of one process; held-out pairs beside them
    width = BYTES_PER_WEIGHT[config.quantised if config.adapter != "none" else "none"]
    learned = BYTES_PER_LEARNED if config.adapter == "none" else width + ADAPTER
    filling = None
    if weights and pairs:
        flops = 2 * weights * pairs * tokens
        filling = Filling(tokens, flops, flops / _speed())
    return SequentialReference(
        reference=weights * width if weights else None,
        policy=weights * learned if weights else None,
        pairs=pairs,
        cache=pairs * BYTES_PER_PAIR,
        cache_dir=config.cache_dir,
        filling=filling,
        known=tuple(
            (len(cache), cache.folder.name)
            for cache in caches(Path(config.cache_dir))
            if str(cache.description.get("name")) == str(name)
        ),
    )


def _parameters(name: str) -> float:
    """Returns the weights of a local checkpoint, 0 where it is not here."""
    try:
        where = Path(find_model(name))
    except LabError:
        return 0
    if where.is_file():
        return where.stat().st_size * 7.0 / 4  # GGUF, about 4.5 bits a weight
    try:
        return float(sum(math.prod(shape) for shape in tensor_sizes(where).values()))
    except (OSError, ValueError, KeyError, TypeError, struct.error):  # damaged, which its loading tells
        return 0


def _pairs(config: DPOConfig) -> tuple[int, float]:
    """Returns the number of local pairs and the tokens of one, prompt twice,
    estimated from its characters.
    """
    from llmlab.data.local import local_files
    from llmlab.data.opening import open_source
    from llmlab.data.pipeline import SourceRows

    count, characters, looked = 0, 0.0, 0
    for source in [*config.datasets, *config.eval_datasets]:
        if not local_files(source.name, source.split):
            continue
        opened = open_source(source, ("preference",))
        count += len(opened.rows)
        for _, row in islice(SourceRows(opened), LOOKED_AT):
            prompt = sum(len(turn["content"]) for turn in row["prompt"])
            characters += 2 * prompt + len(row["chosen"]) + len(row["rejected"])
            looked += 1
    mean = characters / looked / CHARACTERS_PER_TOKEN if looked else 0.0
    return count, min(mean + 20, 2.0 * config.max_length)


def _speed() -> float:
    """Returns the FLOPs per second that a model reaches here, from those of a matrix product."""
    import numpy as np

    a = np.ones((768, 768), np.float32)
    a @ a
    began = time.perf_counter()
    for _ in range(6):
        a @ a
    return REACHED * 6 * 2 * 768**3 / (time.perf_counter() - began)
