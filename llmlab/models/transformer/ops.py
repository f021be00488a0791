"""Hand-written backward passes for the four places where autograd's own cost time or memory.

Each is a plain formula with its derivative; `benchmarks/speed.py` measures what they bring:
- `linear_cross_entropy`: logits of a whole batch never exist at once; the gradient is made in the forward
  pass, a slice of tokens at a time (the idea of Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary
  Language Models");
- `swiglu`: silu(gate) * up in pieces that stay in the cache, silu(gate) recomputed in the backward pass;
- `rms_norm`: Zhang & Sennrich 2019, eq. 4, with one saved scale per token;
- `rotate`: Su et al. 2021, eq. 34, whose derivative is the rotation by the opposite angle.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional as F

from llmlab.models.slices import slice_rows

IGNORE_INDEX = -100
# fp16 has no numbers below 6e-8 and few below 6e-5, where the gradients of a mean over thousands of tokens
# are: this share of a token's own gradient is kept until the loss scale has come
FP16_SHARE = 1 / 64
CACHE_ELEMENTS = 1 << 17  # rows worked on together: 512 KB in fp32


@dataclass(frozen=True)
class _Vocabulary:
    """The part of the vocabulary whose logits a process computes (Shoeybi et al. 2019, section 3).

    Attributes:
        first: id of its first token.
        size: tokens of it.
        widest: tokens of the largest part: all processes have to make slices of as many rows.
        group: processes that have the other parts; None for the whole vocabulary.
    """

    first: int
    size: int
    widest: int
    group: Any = None

    @classmethod
    def of(cls, weight: DTensor) -> _Vocabulary:
        """Returns the part that goes with this process's rows of an output head."""
        mesh = weight.device_mesh
        each = -(-weight.shape[0] // mesh.size())
        return cls(each * mesh.get_local_rank(), weight.to_local().shape[0], each, mesh.get_group())

    def has(self, index: Tensor) -> Tensor | None:
        """Returns which of the tokens are in this part; None for all."""
        if self.group is None:
            return None
        return (index >= self.first) & (index < self.first + self.size)

    def highest(self, values: Tensor) -> Tensor:
        """Returns the largest of the values of all parts."""
        if self.group is not None:
            dist.all_reduce(values, dist.ReduceOp.MAX, self.group)
        return values

    def total(self, values: Tensor) -> Tensor:
        """Returns the sum of the values of all parts."""
        if self.group is not None:
            dist.all_reduce(values, dist.ReduceOp.SUM, self.group)
        return values


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, count: Tensor, part_of: _Vocabulary
    ) -> Tensor:
        """hidden (N, D), weight (V, D), labels (N,), count (): returns the summed loss divided by count."""
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        tokens, vocab = hidden.shape[0], weight.shape[0]
        device_type = hidden.device.type
        amp = torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
        h, w = (hidden.to(amp), weight.to(amp)) if amp else (hidden, weight)
        grad_hidden = torch.empty_like(h) if needs_hidden else None
        grad_weight = torch.empty_like(w, dtype=torch.float32) if needs_weight else None
        size = min(tokens, slice_rows(part_of.widest, gpu=device_type != "cpu"))
        losses = torch.empty(tokens, dtype=torch.float32, device=hidden.device)
        buffer = torch.empty(size, vocab, dtype=w.dtype, device=hidden.device)
        scale = (labels != IGNORE_INDEX) / count  # weight of each token in the mean, (N,)
        # what it is in the gradients that are made here; in fp16 the rest of it comes in the backward pass
        early = (labels != IGNORE_INDEX) * FP16_SHARE if w.dtype == torch.float16 else scale
        index = labels.clamp(min=0)
        own = part_of.has(index)  # (N,): whose logit is here
        if own is not None:
            index = (index - part_of.first).clamp(0, vocab - 1)
        minus_one = torch.full((tokens, 1), -1.0, device=hidden.device)
        if own is not None:
            minus_one *= own.unsqueeze(1)
        with torch.autocast(device_type, enabled=False):
            for start in range(0, tokens, size):
                part = slice(start, start + size)
                h_part, target = h[part], index[part].unsqueeze(1)
                logits = torch.mm(h_part, w.t(), out=buffer[: h_part.shape[0]]).float()  # (n, V)
                target_logit = logits.gather(1, target)
                if own is not None:
                    target_logit = part_of.total(target_logit * own[part].unsqueeze(1))
                highest = part_of.highest(logits.amax(dim=1, keepdim=True))
                exps = logits.sub_(highest).exp_()
                total = part_of.total(exps.sum(dim=1, keepdim=True))
                losses[part] = (total.log() + highest - target_logit).squeeze(1)
                if not (needs_hidden or needs_weight):
                    continue
                grad_logits = (
                    exps.div_(total).scatter_add_(1, target, minus_one[part]).to(w.dtype)
                )  # softmax - one_hot
                factor = early[part].unsqueeze(1)
                if grad_hidden is not None:
                    torch.mm(grad_logits, w, out=grad_hidden[part]).mul_(factor)
                if grad_weight is not None:
                    scaled = (h_part * factor).to(w.dtype)
                    if w.dtype != torch.float32:  # products of half-precision slices are summed in fp32
                        product = (grad_logits.t() @ scaled).float()
                        grad_weight = product if start == 0 else grad_weight.add_(product)
                    elif start == 0:
                        torch.mm(grad_logits.t(), scaled, out=grad_weight)
                    else:
                        grad_weight.addmm_(grad_logits.t(), scaled)
        if grad_hidden is not None:
            part_of.total(grad_hidden)
        loss = torch.dot(losses, scale.float())
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.late = 1 / (FP16_SHARE * count) if w.dtype == torch.float16 else None
        ctx.dtypes = hidden.dtype, weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        if ctx.late is not None:
            grad_loss = grad_loss * ctx.late
            grad_hidden = grad_hidden if grad_hidden is None else grad_hidden.to(hidden_dtype)
        whole = grad_loss.device.type == "cpu" and grad_loss == 1  # a look that costs nothing only on the CPU
        if grad_hidden is not None:
            grad_hidden = (grad_hidden if whole else grad_hidden * grad_loss).to(hidden_dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight if whole else grad_weight * grad_loss).to(weight_dtype)
        return grad_hidden, grad_weight, None, None, None


@torch.compiler.disable  # a compiled model calls it as it is: its slices already reuse their memory
def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, count: Tensor | None = None
) -> Tensor:
    """Returns the cross-entropy of `hidden @ weight.T` against the next tokens, without holding all logits.

    Args:
        hidden: hidden states, (B, T, D).
        weight: output head, (V, D); its rows may be divided over processes that have the same hidden states.
        labels: token ids, (B, T), -100 where nothing is to be learned; position t is compared with label t +
            1.
        count: what the summed loss is divided by; left out, the number of labels that count.

    Returns:
        A scalar in nats per token. It can be differentiated once.
    """
    shifted = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX).reshape(-1).to(hidden.device)
    if count is None:
        count = (shifted != IGNORE_INDEX).sum()
    count = torch.as_tensor(count, dtype=torch.float32, device=hidden.device)
    flat = hidden.reshape(-1, hidden.shape[-1])
    vocabulary = _Vocabulary(0, weight.shape[0], weight.shape[0])
    if isinstance(weight, DTensor):
        vocabulary = _Vocabulary.of(weight)
        weight = weight.to_local(grad_placements=[Shard(0)])
    return cast(Tensor, _LinearCrossEntropy.apply(flat, weight, shifted, count, vocabulary))


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = torch.rsqrt(norm.square_().div_(x.shape[-1]).add_(eps))  # (..., 1)
        ctx.save_for_backward(x, weight, scale)
        normed = (wide * scale).to(x.dtype)
        return normed.mul_(weight) if weight.dtype == x.dtype else normed * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        normed = x.float() * scale
        grad_wide = grad.float()
        product = grad_wide * normed
        grad_weight = product.flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        weight = weight.float()
        mean = (product @ weight).unsqueeze(-1).div_(x.shape[-1])  # mean of grad * weight * normed, (..., 1)
        grad_x = torch.addcmul(grad_wide * weight, normed, mean, value=-1).mul_(scale)
        return grad_x.to(x.dtype), grad_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Returns x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in fp32,
    in the dtype of x.
    """
    if torch.compiler.is_compiling():  # the compiler fuses the plain formula itself
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight
    return cast(Tensor, _RMSNorm.apply(x, weight, eps))


def _rows_in_cache(x: Tensor) -> list[slice]:
    """Returns slices of rows that stay in a processor's cache; on accelerators everything at once."""
    rows = x.shape[0] if x.device.type != "cpu" else max(1, CACHE_ELEMENTS // x.shape[1])
    return [slice(start, start + rows) for start in range(0, x.shape[0], rows)]


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        flat_gate, flat_up = gate.flatten(0, -2), up.flatten(0, -2)
        out = torch.empty_like(flat_gate)
        for rows in _rows_in_cache(flat_gate):
            torch.mul(F.silu(flat_gate[rows]), flat_up[rows], out=out[rows])
        return out.view_as(gate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        flat_gate, flat_up, flat_grad = gate.flatten(0, -2), up.flatten(0, -2), grad.flatten(0, -2)
        grad_gate, grad_up = torch.empty_like(flat_gate), torch.empty_like(flat_gate)
        for rows in _rows_in_cache(flat_gate):
            torch.mul(F.silu(flat_gate[rows]), flat_grad[rows], out=grad_up[rows])
            product = flat_grad[rows] * flat_up[rows]
            torch.ops.aten.silu_backward.grad_input(product, flat_gate[rows], grad_input=grad_gate[rows])
        return grad_gate.view_as(gate), grad_up.view_as(up)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """Returns silu(gate) * up, all of one shape (..., D); silu(gate) is not kept for the backward pass."""
    if torch.compiler.is_compiling():
        return F.silu(gate) * up
    return cast(Tensor, _SwiGLU.apply(gate, up))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, T, D) with cos and sin (B, 1, T, D / 2): rotates the pairs (i, i + D / 2)."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out = torch.empty_like(x)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    return out


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, -sin), None, None


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Returns x (B, H, T, D) rotated by the angles whose cos and sin are (B, 1, T, D / 2),
    in the dtype of x.
    """
    if torch.compiler.is_compiling():
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return cast(Tensor, _Rotate.apply(x, cos, sin))
