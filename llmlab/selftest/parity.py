"""The lab's transformer against transformers' Qwen2 with the same weights, in every precision of the device.

Both are compared with the formulas in fp64 (`exact.py`): rows with padding (logits, loss, gradients), and
packed rows, whose documents are computed one by one there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmlab.models.convert import from_hf
from llmlab.models.typed import moved
from llmlab.selftest.exact import Exact
from llmlab.selftest.rows import Row
from llmlab.selftest.setting import SMALL, Setting, autocast, ids, small_peer
from llmlab.selftest.tolerance import error, limit, most

LOSS_SCALE = 2.0**16  # that training in fp16 begins with
UPDATE = 2**17  # labels of a large update, whose gradients are small
DOCUMENTS = (5, 1, 19, 15)  # tokens of those in a packed row
REMEDY = (
    "results here are not to be trusted: update the GPU's driver and torch, unset"
    " TORCH_ALLOW_TF32_CUBLAS_OVERRIDE; try the same with --device cpu"
)


@dataclass(frozen=True)
class Batch:
    """What both models read: rows with padding on the right, and one row of several documents."""

    ids: Tensor
    mask: Tensor
    labels: Tensor
    packed: Tensor
    positions: Tensor

    @classmethod
    def of(cls, setting: Setting) -> Batch:
        """Returns the batch on the device."""
        rows = ids(setting, SMALL.rows, SMALL.length)
        mask = torch.ones_like(rows)
        for row, size in enumerate((SMALL.length, SMALL.length // 2, SMALL.length - 7)):
            mask[row, size:] = 0
        positions = torch.cat([torch.arange(size) for size in DOCUMENTS])[None].to(setting.device)
        return cls(rows, mask, rows.masked_fill(mask == 0, -100), rows[:1], positions)

    def on(self, device: str) -> Batch:
        """Returns the same on another device."""
        parts = (self.ids, self.mask, self.labels, self.packed, self.positions)
        return Batch(*(part.to(device) for part in parts))


def check(setting: Setting, part: str) -> Iterator[Row]:
    """Yields a row for each precision."""
    peer = moved(small_peer(), setting.device)
    own = moved(from_hf(peer), setting.device)
    batch = Batch.of(setting)
    right = right_results(Exact(peer), batch.on("cpu"))
    for precision in setting.precisions():
        results = [_results(model, batch, setting.device, precision) for model in (own, peer)]
        yield _row(precision, right, *results)


def right_results(exact: Exact, batch: Batch) -> dict[str, Tensor]:
    """Returns what `_results` should be; each document of the packed row alone."""
    count = int((batch.labels[:, 1:] != -100).sum())
    loss = exact.loss(batch.ids, batch.mask, batch.labels) * count / UPDATE
    loss.backward()
    gradients = exact.gradients()
    with torch.no_grad():
        logits = exact.logits(batch.ids, batch.mask)[batch.mask.bool()]
        alone = [exact.logits(document) for document in batch.packed.split(DOCUMENTS, dim=1)]
    return {
        "logits": logits,
        "loss": loss,
        "gradients": torch.cat([gradients[name].flatten() for name in sorted(gradients)]),
        "packed rows": torch.cat(alone, dim=1),
    }


def _results(model: Any, batch: Batch, device: str, precision: str) -> dict[str, Tensor]:
    """Returns logits where there is no padding, (tokens, V); those of the packed row, (1, T, V); the loss;
    all gradients as one vector.
    """
    scale = LOSS_SCALE if precision == "fp16" else 1.0
    with autocast(device, precision):
        with torch.no_grad():
            model.eval()
            logits = model(batch.ids, attention_mask=batch.mask).logits[batch.mask.bool()]
            together = model(batch.packed, position_ids=batch.positions, use_cache=False).logits
        model.train()
        kwargs = {"attention_mask": batch.mask, "labels": batch.labels, "use_cache": False}
        loss = model(batch.ids, **kwargs, num_items_in_batch=torch.tensor(UPDATE, device=device)).loss
    (loss * scale).backward()
    grown = {name.removeprefix("model."): weight.grad / scale for name, weight in model.named_parameters()}
    model.zero_grad()
    gradients = torch.cat([grown[name].flatten() for name in sorted(grown)])
    return {"logits": logits, "loss": loss, "gradients": gradients, "packed rows": together}


def _row(precision: str, right: dict[str, Tensor], own: dict[str, Tensor], peer: dict[str, Tensor]) -> Row:
    errors, peers, limits = {}, {}, {}
    for name, values in right.items():
        passes = 3 if name == "gradients" else 1
        bound = most(precision, layers=SMALL.layers, inner=SMALL.feed_forward, passes=passes)
        errors[name], peers[name] = error(own[name], values), error(peer[name], values)
        # losses and gradients of a sum may cancel: the bound alone counts for a single number
        limits[name] = bound if name == "loss" else limit(peers[name], bound)
    wrong = [name for name in errors if not errors[name] <= limits[name]]
    figures = {"errors": errors, "of_transformers": peers, "limits": limits}
    if not wrong:
        found = (
            f"logits {errors['logits']:.1e}, packed rows {errors['packed rows']:.1e}, gradients"
            f" {errors['gradients']:.1e} from fp64; transformers {peers['logits']:.1e},"
            f" {peers['packed rows']:.1e}, {peers['gradients']:.1e}"
        )
        return Row(f"parity {precision}", "passed", found, figures=figures)
    name = wrong[0]
    found = (
        f"the {name} of the lab's transformer are {errors[name]:.1e} from the formulas in fp64;"
        f" allowed are {limits[name]:.1e}, transformers itself is {peers[name]:.1e} off"
    )
    return Row(f"parity {precision}", "failed", found, REMEDY, figures)
