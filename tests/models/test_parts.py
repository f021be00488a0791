"""Each part against an independent formula,
each hand-written backward pass against autograd and finite differences.
"""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from llmlab.models.transformer.feed_forward import FEED_FORWARDS
from llmlab.models.transformer.norms import NORMS
from llmlab.models.transformer.ops import linear_cross_entropy, rms_norm, rotate, swiglu
from llmlab.models.transformer.positions import Sinusoidal, alibi_slopes
from tests.conftest import small_config, small_model


def test_alibi_slopes_are_the_papers():
    assert alibi_slopes(8) == [1 / 2**i for i in range(1, 9)]
    twelve = alibi_slopes(12)  # 8 heads as for 8, then every second slope of 16
    assert twelve[:8] == alibi_slopes(8) and np.allclose(twelve[8:], [2 ** (-0.5 * i) for i in (1, 3, 5, 7)])


def test_alibi_attention_by_loops():
    model = small_model(positional_encoding="alibi", n_layers=1, attention_type="mha")
    attention, hidden = model.model.layers[0].self_attn, torch.randn(1, 6, 32)
    with torch.no_grad():
        q, k, v = (getattr(attention, f"{n}_proj")(hidden)[0].view(6, 4, 8) for n in "qkv")
        expected = torch.zeros(6, 4, 8)
        for head, slope in enumerate(alibi_slopes(4)):
            for i in range(6):
                scores = torch.stack(
                    [q[i, head] @ k[j, head] / math.sqrt(8) - slope * (i - j) for j in range(i + 1)]
                )
                expected[i, head] = sum(p * v[j, head] for j, p in enumerate(scores.softmax(0)))
        distance = torch.arange(6)[:, None] - torch.arange(6)
        bias = model.model.positions(hidden, torch.arange(6)[None], distance).position_bias
        own, _ = attention(hidden, None, position_bias=bias)
    torch.testing.assert_close(own[0], attention.o_proj(expected.view(6, 32)), atol=1e-6, rtol=1e-5)


def test_sinusoidal_waves_by_loops():
    positions = Sinusoidal(small_config(d_model=12, n_heads=2))
    waves = positions.waves(torch.arange(200)[None])[0].numpy()
    for pos in (0, 1, 17, 199):
        for i in range(6):
            angle = pos / 10000 ** (2 * i / 12)
            assert waves[pos, 2 * i] == pytest.approx(math.sin(angle), abs=2e-5)
            assert waves[pos, 2 * i + 1] == pytest.approx(math.cos(angle), abs=2e-5)


def test_layernorm_by_its_formula():
    norm, x = NORMS["layernorm"](small_config(norm_eps=1e-3)), np.random.default_rng(0).normal(size=(5, 32))
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    expected = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-3)
    expected = expected * norm.weight.detach().numpy() + norm.bias.detach().numpy()
    np.testing.assert_allclose(
        norm(torch.tensor(x, dtype=torch.float32)).detach().numpy(), expected, atol=1e-5
    )


PLAIN = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
}


@pytest.mark.parametrize("name", FEED_FORWARDS)
def test_feed_forward_by_its_formula(name):
    part, x = FEED_FORWARDS[name](small_config()), torch.randn(7, 32)
    weights = {key: value.detach().numpy().astype(np.float64) for key, value in part.state_dict().items()}
    up = x.numpy() @ weights["up_proj.weight"].T
    inner = (
        PLAIN["silu"](x.numpy() @ weights["gate_proj.weight"].T) * up if name == "swiglu" else PLAIN[name](up)
    )
    np.testing.assert_allclose(part(x).detach().numpy(), inner @ weights["down_proj.weight"].T, atol=1e-5)


def plain_cross_entropy(hidden, weight, labels, count=None):
    logits = (hidden @ weight.T)[:, :-1].flatten(0, 1)
    total = F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=-100, reduction="sum")
    return total / (count if count is not None else (labels[:, 1:] != -100).sum())


@pytest.mark.parametrize("count", [None, 7])
@pytest.mark.parametrize("rows", [512, 64])  # all at once; in three slices
def test_linear_cross_entropy_and_its_gradients(count, rows, monkeypatch):
    monkeypatch.setattr("llmlab.models.transformer.ops.slice_rows", lambda vocabulary, gpu: rows)
    hidden, weight = torch.randn(3, 50, 16, requires_grad=True), torch.randn(31, 16, requires_grad=True)
    labels = torch.randint(0, 31, (3, 50))
    labels[0, :20] = -100
    own = linear_cross_entropy(hidden, weight, labels, count)
    plain = plain_cross_entropy(hidden, weight, labels, count)
    torch.testing.assert_close(own, plain, atol=1e-5, rtol=1e-5)
    for own_grad, grad in zip(
        torch.autograd.grad(3 * own, (hidden, weight)),
        torch.autograd.grad(3 * plain, (hidden, weight)),
        strict=True,
    ):
        torch.testing.assert_close(own_grad, grad, atol=1e-5, rtol=1e-4)


def test_linear_cross_entropy_by_finite_differences():
    hidden, weight = torch.randn(1, 5, 4), torch.randn(6, 4).requires_grad_()
    labels = torch.randint(0, 6, (1, 5))
    (gradient,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, labels), weight)
    step = 1e-2
    for i, j in [(0, 0), (2, 3), (5, 1)]:
        moved = [weight.detach().clone() for _ in range(2)]
        moved[0][i, j] += step
        moved[1][i, j] -= step
        slope = (
            linear_cross_entropy(hidden, moved[0], labels) - linear_cross_entropy(hidden, moved[1], labels)
        ) / (2 * step)
        assert gradient[i, j].item() == pytest.approx(slope.item(), abs=2e-3)


def test_loss_of_large_logits_is_finite():
    hidden = torch.full((1, 3, 2), 300.0, requires_grad=True)
    weight = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    loss = linear_cross_entropy(hidden, weight, torch.ones(1, 3, dtype=torch.long))
    loss.backward()
    assert loss.item() == pytest.approx(1200.0) and hidden.grad.isfinite().all()


def test_half_precision_head_agrees_with_fp32():
    hidden, weight = torch.randn(2, 40, 16), torch.randn(64, 16)
    labels = torch.randint(0, 64, (2, 40))
    halves = hidden.bfloat16().requires_grad_(), weight.bfloat16().requires_grad_()
    loss = linear_cross_entropy(*halves, labels)
    loss.backward()
    exact = [t.detach().float().requires_grad_() for t in halves]
    plain = plain_cross_entropy(*exact, labels)
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-2)
    for own, full in zip(halves, exact, strict=True):
        assert (own.grad.float() - full.grad).norm() / full.grad.norm() < 0.02


def test_small_gradients_of_a_large_update_do_not_vanish_in_fp16():
    """The loss scale comes in the backward pass, behind the products in fp16."""
    hidden, weight = torch.randn(2, 40, 16), torch.randn(64, 16)
    labels, count, scale = torch.randint(0, 64, (2, 40)), torch.tensor(2**17), 2.0**16
    pairs = [[part.clone().requires_grad_() for part in (hidden, weight)] for _ in range(2)]
    with torch.autocast("cpu", torch.float16):
        loss = linear_cross_entropy(*pairs[0], labels, count)
    (loss * scale).backward()
    exact = plain_cross_entropy(*pairs[1], labels) * (39 * 2) / count
    exact.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-3)
    for own, full in zip(*pairs, strict=True):
        assert (own.grad / scale - full.grad).norm() / full.grad.norm() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_and_its_gradients(dtype):
    x = torch.randn(4, 9, 16).to(dtype).requires_grad_()
    weight = torch.randn(16).to(dtype).requires_grad_()
    wide = x.float()
    plain = (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(dtype) * weight
    own = rms_norm(x, weight, 1e-5)
    grad = torch.randn(4, 9, 16).to(dtype)
    tolerance = dict(atol=1e-5, rtol=1e-5) if dtype == torch.float32 else dict(atol=8e-2, rtol=3e-2)
    torch.testing.assert_close(own, plain, **tolerance)
    for a, b in zip(
        torch.autograd.grad(own, (x, weight), grad),
        torch.autograd.grad(plain, (x, weight), grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **tolerance)


def test_swiglu_and_its_gradients(monkeypatch):
    monkeypatch.setattr("llmlab.models.transformer.ops.CACHE_ELEMENTS", 40)  # several pieces
    gate, up = (torch.randn(3, 11, 16, requires_grad=True) for _ in range(2))
    own, plain, grad = swiglu(gate, up), F.silu(gate) * up, torch.randn(3, 11, 16)
    torch.testing.assert_close(own, plain)
    for a, b in zip(
        torch.autograd.grad(own, (gate, up), grad), torch.autograd.grad(plain, (gate, up), grad), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_rotation_is_multiplication_of_complex_numbers():
    x, angles = torch.randn(2, 3, 5, 8, requires_grad=True), torch.randn(2, 1, 5, 4)
    own = rotate(x, angles.cos(), angles.sin())
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)
    plain = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(own, plain, atol=1e-6, rtol=1e-5)
    grad = torch.randn_like(own)
    torch.testing.assert_close(
        *(torch.autograd.grad(y, x, grad)[0] for y in (own, plain)), atol=1e-6, rtol=1e-5
    )
