"""How far a result may be from the exact one, by the number format it was computed in.

Two limits, and both have to hold.

The first does not trust any implementation: a format rounds each value by a share `u` at most (its unit
roundoff). After n roundings that do not depend on one another a result is off by about sqrt(n) u (Higham and
Mary 2019, "A new approach to probabilistic rounding error analysis"); sums of K products in a matrix product
are kept in fp32, whatever the format, and add sqrt(K) of fp32's own u. Three times that is allowed. In fp32
it is far below the 2^-11 of TF32, so a device that computes in TF32 is found out.

The second is a comparison, as FlashAttention's own tests make it: against results in fp64, the error may be
at most `TIMES` that of transformers' implementation in the same format on the same device; where that is more
exact than rounding would have it, the estimate above, without its margin, is allowed.
"""

from __future__ import annotations

import math

from torch import Tensor

UNIT = {"fp32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}
TIMES = 2.0
ROUNDINGS = 12  # of the hidden states in a layer: norms, products, rotation, softmax, gate, sums
MARGIN = 3.0


def error(result: Tensor, right: Tensor) -> float:
    """Returns how far a result is from the right one, as a share of its length (the Frobenius norm)."""
    exact = right.detach().cpu().double()
    return float((result.detach().cpu().double() - exact).norm() / exact.norm())


def most(precision: str, *, layers: int, inner: int, passes: int = 1) -> float:
    """Returns the largest error that rounding explains.

    Args:
        precision: "fp32", "bf16" or "fp16".
        layers: of the model.
        inner: the longest sum of a matrix product.
        passes: 1 for results, 3 for gradients, whose backward pass takes twice as many steps.
    """
    roundings = passes * (ROUNDINGS * layers + 3)
    return MARGIN * math.sqrt(roundings) * (UNIT[precision] + math.sqrt(inner) * UNIT["fp32"])


def limit(peer: float, bound: float) -> float:
    """Returns the largest error that is allowed beside a peer's, of those that `most` explains."""
    return min(bound, max(TIMES * peer, bound / MARGIN))
