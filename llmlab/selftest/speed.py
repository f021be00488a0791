"""Training speed of the lab's transformer beside transformers' Qwen2: the same weights, rows, optimizer and
precision, updates in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from llmlab.models.convert import from_hf
from llmlab.models.typed import moved
from llmlab.selftest.rows import Row
from llmlab.selftest.setting import Setting, Shape, autocast, ids, synchronise
from llmlab.selftest.tolerance import UNIT
from llmlab.training.engine.memory import tune_malloc

WARM_UP = 3
SLOW = 0.9  # of transformers' speed
# of rounding, after three updates: a loss is a mean over all tokens, whose errors cancel
LOSS_UNITS = 16


def check(setting: Setting, part: str) -> Iterator[Row]:
    """Yields one row."""
    tune_malloc(sparing=False)  # as in every run; for both
    shape, rounds = _shape(setting)
    peer = moved(shape.peer(), setting.device).train()
    models: list[Any] = [moved(from_hf(peer), setting.device).train(), peer]
    pairs = [(model, torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)) for model in models]
    rows = ids(setting, shape.rows, shape.length, shape.vocabulary)
    losses = [
        [_update(model, optimizer, rows, setting) for _ in range(WARM_UP)] for model, optimizer in pairs
    ]
    times: list[list[float]] = [[], []]
    for _ in range(rounds):
        for index, (model, optimizer) in enumerate(pairs):
            synchronise(setting.device)
            began = time.perf_counter()
            _update(model, optimizer, rows, setting)
            synchronise(setting.device)
            times[index].append(time.perf_counter() - began)
    own, other = (rows.numel() / statistics.median(each) for each in times)
    weights = sum(weight.numel() for weight in peer.parameters())
    yield _row(setting, shape, weights, (own, other), losses)


def _row(
    setting: Setting, shape: Shape, weights: int, speeds: tuple[float, float], losses: list[list[float]]
) -> Row:
    own, other = speeds
    apart = max(abs(a - b) / abs(b) for a, b in zip(*losses, strict=True))
    allowed = LOSS_UNITS * UNIT[setting.precision]
    name = f"speed {setting.precision}"
    figures = {
        "parameters": weights,
        "rows": shape.rows,
        "length": shape.length,
        "tokens_per_second": own,
        "of_transformers": other,
        "ratio": own / other,
        "losses_apart": apart,
    }
    found = (
        f"{own:,.0f} tokens/s, transformers {other:,.0f} (x{own / other:.2f}): {weights / 1e6:.1f}M weights,"
        f" {shape.rows} x {shape.length} tokens"
    )
    if not apart <= allowed:
        found += f"; after {WARM_UP} updates the losses differ by {apart:.1e}, {allowed:.1e} are allowed"
        return Row(
            name, "failed", found, "training computes something else here: see the rows of parity", figures
        )
    if own < SLOW * other and not setting.quick:
        remedy = "training is right, but slower than transformers': `compile`, or another `attention_backend`"
        return Row(name, "slow", found, remedy, figures)
    return Row(name, "passed", found, figures=figures)


def _update(model: Any, optimizer: torch.optim.Optimizer, rows: Tensor, setting: Setting) -> float:
    """Does one update; returns its loss."""
    with autocast(setting.device, setting.precision):
        loss = model(input_ids=rows, labels=rows, use_cache=False).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def _shape(setting: Setting) -> tuple[Shape, int]:
    """Returns a model with its rows, and how often each is measured."""
    if setting.large():
        return Shape(1024, 16, 16, 4, 2816, 32768, 8, 1024), 10
    if setting.on_gpu and not setting.quick:
        return Shape(512, 13, 8, 2, 1408, 32768, 4, 512), 10
    if setting.quick:
        return Shape(128, 2, 4, 2, 344, 2048, 2, 128), 3
    return Shape(320, 6, 5, 1, 1024, 16384, 4, 256), 6
