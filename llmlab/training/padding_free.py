"""Padding-free forward passes: the sequences of a padded batch are laid side by side in rows of the longest
one's width.

TRL's trainers ask a model for per-token figures of a padded batch; here the model sees packed rows (positions
restart, attention stays within each sequence) and the figures are put back where the padded batch has them.
Rows rather than one long row: attention costs the square of a row's width unless a kernel for varying lengths
is there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmlab.data.packing import document_bounds, takes_bounds

FIGURES = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")


def rows_of(lengths: list[int], width: int) -> list[tuple[int, int]]:
    """Returns row and first column of each sequence: first-fit decreasing into rows of `width` tokens."""
    room: list[int] = []
    places = [(0, 0)] * len(lengths)
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((r for r, left in enumerate(room) if left >= lengths[index]), len(room))
        if row == len(room):
            room.append(width)
        places[index] = (row, width - room[row])
        room[row] -= lengths[index]
    return places


@contextmanager
def answers_alone() -> Iterator[None]:
    """Lets TRL's fused head score the labelled tokens alone; without Triton it scores prompts and padding as
    well.

    Both training and the reference's own phase compute within it, so that they take the same path.
    """
    import trl.trainer.utils as trl_utils  # here: TRL takes seconds to import

    before = trl_utils._use_triton
    trl_utils._use_triton = lambda device: True
    try:
        yield
    finally:
        trl_utils._use_triton = before


def make_padding_free(model: Any) -> None:
    """Lets `model(..., labels=, fused_lm_head=True)` compute on packed rows; all other calls stay as they
    are.

    The model must have TRL's fused head already, and batches must be padded on the right.
    """
    padded_forward = model.forward

    @functools.wraps(padded_forward)
    def forward(*args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask")
        if not fused_lm_head or mask is None or args or kwargs.get("labels") is None:
            return padded_forward(*args, **({"fused_lm_head": True} if fused_lm_head else {}), **kwargs)
        return _packed_forward(padded_forward, mask, takes_bounds(model), **kwargs)

    model.forward = forward


def _packed_forward(padded_forward: Any, mask: Tensor, bounds: bool, **kwargs: Any) -> Any:
    ids, labels = kwargs.pop("input_ids"), kwargs.pop("labels")
    kwargs.pop("attention_mask")
    batch, width = ids.shape
    lengths = mask.sum(dim=1).tolist()
    places = rows_of(lengths, max(lengths))
    if max(row for row, _ in places) + 1 == batch and max(lengths) == width:
        return padded_forward(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True, **kwargs)
    device = ids.device
    sequence = torch.arange(batch, device=device)[:, None].expand(batch, width)[mask.bool()]
    column = torch.arange(width, device=device).expand(batch, width)[mask.bool()]
    starts = torch.tensor(places, device=device)
    row, place = starts[sequence, 0], starts[sequence, 1] + column

    def packed(values: Tensor, fill: int) -> Tensor:
        made = values.new_full((int(starts[:, 0].max()) + 1, max(lengths)), fill)
        made[row, place] = values[sequence, column]
        return made

    positions = ids.new_full((int(starts[:, 0].max()) + 1, max(lengths)), -1)
    positions[row, place] = column
    gap = positions < 0  # what no sequence fills at the end of a row is a document of its own
    positions = torch.where(gap, gap.cumsum(dim=1) - 1, positions)
    labels = labels.masked_fill(
        torch.arange(width, device=device)[None] == 0, -100
    )  # a first token follows from nothing here
    if bounds:
        kwargs |= document_bounds(positions)
    out = padded_forward(
        input_ids=packed(ids, 0),
        labels=packed(labels, -100),
        position_ids=positions,
        fused_lm_head=True,
        **kwargs,
    )
    inner = column > 0  # figures of the label at `column` stand one place before it
    for name in FIGURES:
        values = getattr(out, name, None)
        if values is not None:
            back = values.new_zeros(batch, width - 1)
            back[sequence[inner], column[inner] - 1] = values[row[inner], place[inner] - 1]
            setattr(out, name, back)
    return out


@torch.no_grad()
def packing_leaks(model: PreTrainedModel) -> bool:
    """Returns whether a document's logits change with the document packed before it:
    tried on the model itself, in two rows.
    """
    was_training = model.training
    model.eval()
    size = min(model.config.get_text_config().vocab_size, 50)
    document = torch.arange(1, 9, device=model.device) % size
    logits = []
    for shift in (0, 5):
        ids = torch.cat([(document + shift) % size, document]).repeat(2, 1)  # (2, 16)
        positions = torch.arange(8, device=model.device).repeat(2).repeat(2, 1)
        bounds = document_bounds(positions) if takes_bounds(model) else {}
        logits.append(
            model(input_ids=ids, position_ids=positions, use_cache=False, **bounds).logits[:, 8:].float()
        )
    model.train(was_training)
    return not torch.allclose(logits[0], logits[1], atol=1e-3, rtol=1e-3)
