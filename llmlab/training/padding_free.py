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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llmlab.data.packing import document_bounds, takes_bounds
from llmlab.data.rendering import IGNORE_INDEX
from llmlab.models.log_probs import score_labels

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


@dataclass(frozen=True)
class PackedRows:
    """Where the tokens of a batch, padded on the right, stand when its sequences share rows.

    Attributes:
        sequence: of each token, (tokens,): its row in the padded batch.
        column: its place in the sequence.
        row: its row among the packed ones.
        place: its column there.
        padded: rows and columns of the batch.
        packed: rows and columns of the packed one.
    """

    sequence: Tensor
    column: Tensor
    row: Tensor
    place: Tensor
    padded: tuple[int, int]
    packed: tuple[int, int]

    @classmethod
    def of(cls, mask: Tensor) -> PackedRows | None:
        """Returns the packed rows of a batch by its mask (B, T), 0 at padding; None if none can be saved."""
        (batch, width), device = mask.shape, mask.device
        lengths = mask.sum(dim=1).tolist()
        places = rows_of(lengths, max(lengths))
        rows = max(row for row, _ in places) + 1
        if rows == batch and max(lengths) == width:
            return None
        real = mask.bool()
        sequence = torch.arange(batch, device=device)[:, None].expand(batch, width)[real]
        column = torch.arange(width, device=device).expand(batch, width)[real]
        starts = torch.tensor(places, device=device)
        row, place = starts[sequence, 0], starts[sequence, 1] + column
        return cls(sequence, column, row, place, (batch, width), (rows, max(lengths)))

    def pack(self, values: Tensor, fill: int) -> Tensor:
        """Returns values of tokens, (B, T), in packed rows."""
        packed = values.new_full(self.packed, fill)
        packed[self.row, self.place] = values[self.sequence, self.column]
        return packed

    def labels(self, labels: Tensor) -> Tensor:
        """Returns labels in packed rows, without those of first tokens, which follow from nothing."""
        first = torch.arange(labels.size(1), device=labels.device) == 0
        return self.pack(labels.masked_fill(first, IGNORE_INDEX), IGNORE_INDEX)

    def positions(self) -> Tensor:
        """Returns the positions of packed rows, which restart at every sequence."""
        positions = self.column.new_full(self.packed, -1)
        positions[self.row, self.place] = self.column
        gap = positions < 0  # what no sequence fills at the end of a row is a document of its own
        return torch.where(gap, gap.cumsum(dim=1) - 1, positions)

    def unpack(self, values: Tensor) -> Tensor:
        """Returns the figures of packed labels where the padded batch has them, (B, T - 1): that of the label
        at `column` stands one place before it.
        """
        batch, width = self.padded
        inner = self.column > 0
        back = values.new_zeros(batch, width - 1)
        back[self.sequence[inner], self.column[inner] - 1] = values[self.row[inner], self.place[inner] - 1]
        return back


def packed_log_probs(model: nn.Module, input_ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
    """Returns log pi of the labels of a batch, (B, T - 1), its sequences computed side by side in rows.

    Args:
        model: with an adapter or without.
        input_ids: padded on the right, (B, T).
        mask: 0 at padding.
        labels: -100 where nothing is asked for.
    """
    rows = PackedRows.of(mask)
    if rows is None:
        return score_labels(model, input_ids, labels, attention_mask=mask)
    inputs = {"position_ids": rows.positions()}
    if takes_bounds(model):
        inputs |= document_bounds(inputs["position_ids"])
    return rows.unpack(score_labels(model, rows.pack(input_ids, 0), rows.labels(labels), **inputs))


@contextmanager
def answers_alone() -> Iterator[None]:
    """Lets TRL's fused head score the labelled tokens alone; without Triton it scores prompts and padding as
    well.

    So its trainers compute what `models.log_probs` does, by which a cached reference was computed.
    """
    from trl.trainer import utils  # here: TRL takes seconds to import

    trl_utils: Any = utils
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
    rows = PackedRows.of(mask)
    if rows is None:
        return padded_forward(input_ids=ids, labels=labels, fused_lm_head=True, **kwargs)
    kwargs.pop("attention_mask")
    positions = rows.positions()
    if bounds:
        kwargs |= document_bounds(positions)
    out = padded_forward(
        input_ids=rows.pack(ids, 0),
        labels=rows.labels(labels),
        position_ids=positions,
        fused_lm_head=True,
        **kwargs,
    )
    for name in FIGURES:
        values = getattr(out, name, None)
        if values is not None:
            setattr(out, name, rows.unpack(values))
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
