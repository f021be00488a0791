"""Attention kernels: which of them work on this device, whether they are right, and which is the fastest.

Each computes the lab's own backbone on rows with padding, on packed rows and on plain ones, forwards and
backwards; right are the formulas in fp64 (`exact.py`), each document of a packed row by itself. As fast
counts what base training does: packed rows, forwards and backwards, in the device's own precision. PyTorch's
`scaled_dot_product_attention` (sdpa) has several kernels of its own: what each of them takes is said, which
one it takes is PyTorch's choice.

The fastest that is right becomes this device's `auto` (`llmlab.device_store`), where it is faster than the
usual one by `WORTH`. Eager is never chosen for its speed: it keeps all attention weights for the backward
pass, which no plan of memory knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils.import_utils import is_flash_attn_2_available

from llmlab.data.packing import document_bounds, takes_bounds
from llmlab.models.device import default_kernel
from llmlab.models.transformer.config import LabConfig
from llmlab.models.transformer.modeling import LabModel
from llmlab.models.typed import moved
from llmlab.selftest.exact import Exact
from llmlab.selftest.rows import Row
from llmlab.selftest.setting import Setting, autocast, ids, timed
from llmlab.selftest.tolerance import error, limit, most

KERNELS = {"sdpa": "sdpa", "eager": "eager", "flex": "flex_attention", "flash": "flash_attention_2"}
KINDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
WORTH = 0.05  # of the time; a smaller difference is chance
DOCUMENTS = (24, 1, 65, 38)  # tokens of those in a packed row of the test of exactness
TEST = LabConfig(
    vocab_size=512, d_model=128, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64, max_seq_len=128,
    initializer_range=0.08,
)  # fmt: skip
REMEDY = 'do not use `attention_backend` "{}" here: update torch and the GPU\'s driver'


@dataclass(frozen=True)
class Timing:
    """Seconds of a pass forwards and backwards, None where a kernel cannot compute it."""

    packed: float | None
    plain: float | None

    def __str__(self) -> str:
        times = (self.packed, self.plain)
        return " / ".join("-" if time is None else _milliseconds(time) for time in times)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.0f}" if seconds >= 0.1 else f"{seconds * 1e3:.3g}"


def check(setting: Setting, part: str) -> Iterator[Row]:
    """Yields a row for each kernel, one for those of sdpa, and one for what `auto` is from now on."""
    right = _right()
    standard = {p: _safely(setting, p, "eager") for p in _precisions(setting)}
    usable: dict[str, Timing] = {}
    for name, kernel in KERNELS.items():
        row, timing = _row(setting, name, kernel, right, standard)
        if row.status == "passed" and timing is not None:
            usable[name] = timing
        yield row
    yield _kinds(setting)
    yield _choice(setting, usable)


def _precisions(setting: Setting) -> tuple[str, ...]:
    return tuple(dict.fromkeys(("fp32", setting.precision)))


def why_not(setting: Setting, name: str) -> str:
    """Returns why a kernel is not tried on a device; "" where it is."""
    if name == "flex" and setting.device != "cuda":
        return "PyTorch computes its backward pass on NVIDIA GPUs alone"
    if name == "flash" and not is_flash_attn_2_available():
        return "needs the package flash-attn, and an NVIDIA GPU"
    return ""


def _model(config: LabConfig, kernel: str, device: str) -> Any:
    torch.manual_seed(0)
    model = moved(LabModel(config), device)
    model.set_attn_implementation(kernel)
    return model


def _batch(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns token ids and mask, (3, T), padded on the right and on the left; positions of a packed row."""
    rows = torch.randint(0, 512, (3, 128), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(rows)
    mask[1, 70:] = 0
    mask[2, :9] = 0  # as where answers are drawn
    positions = torch.cat([torch.arange(size) for size in DOCUMENTS])[None]
    return rows.to(device), mask.to(device), positions.to(device)


def _right() -> dict[str, Tensor]:
    """Returns what `_results` should be, each document of the packed row by itself."""
    rows, mask, _ = _batch("cpu")
    exact = Exact(_model(TEST, "eager", "cpu"))
    parts = [exact.hidden(part) for part in rows[:1].split(DOCUMENTS, dim=1)]
    found = {
        "padded rows": exact.hidden(rows, mask)[mask.bool()],
        "packed rows": torch.cat(parts, dim=1),
        "plain rows": exact.hidden(rows[:2]),
    }
    torch.stack([values.square().sum() for values in found.values()]).sum().backward()
    grown = exact.gradients()
    gradients = torch.cat([grown[name].flatten() for name in sorted(grown)])
    return {**{name: values.detach() for name, values in found.items()}, "gradients": gradients}


def _results(model: Any, device: str, precision: str) -> dict[str, Tensor]:
    """Returns hidden states where there is no padding, those of a packed row, of plain rows, and the
    gradients of all three.
    """
    rows, mask, positions = _batch(device)
    bounds = document_bounds(positions) if takes_bounds(model) else {}
    model.train()
    with autocast(device, precision):
        padded = model(rows, attention_mask=mask, use_cache=False).last_hidden_state[mask.bool()]
        plain = model(rows[:2], use_cache=False).last_hidden_state
        packed = model(rows[:1], position_ids=positions, use_cache=False, **bounds).last_hidden_state
    found = {"padded rows": padded, "packed rows": packed, "plain rows": plain}
    torch.stack([values.float().square().sum() for values in found.values()]).sum().backward()
    grown = {name: weight.grad for name, weight in model.named_parameters()}
    gradients = torch.cat([grown[name].flatten() for name in sorted(grown)])
    return {**{name: values.detach() for name, values in found.items()}, "gradients": gradients}


def _safely(setting: Setting, precision: str, kernel: str) -> dict[str, Tensor] | str:
    """Returns the results of a kernel, or why it cannot compute them."""
    if kernel == "flash_attention_2" and precision == "fp32":
        return "16 bit alone"
    try:
        return _results(_model(TEST, kernel, setting.device), setting.device, precision)
    except Exception as reason:  # compilers and kernels raise many kinds
        return _first_line(reason)


def _row(
    setting: Setting,
    name: str,
    kernel: str,
    right: dict[str, Tensor],
    standard: dict[str, dict[str, Tensor] | str],
) -> tuple[Row, Timing | None]:
    title = f"attention: {name}"
    if reason := why_not(setting, name):
        return Row(title, "not on this device", reason), None
    worst: dict[str, float] = {}
    figures: dict[str, Any] = {"errors": worst}
    for precision in _precisions(setting):
        results = _safely(setting, precision, kernel)
        if isinstance(results, str):
            if precision != setting.precision:
                continue
            usual = kernel in (default_kernel(setting.device) or "sdpa", "eager")
            what = "what `auto` usually is" if usual else "left out"
            return Row(title, "failed" if usual else "not on this device", f"{results} ({what})"), None
        for part, values in right.items():
            base = standard[precision]
            peer = error(base[part], values) if isinstance(base, dict) else 0.0
            passes = 3 if part == "gradients" else 1
            bound = most(precision, layers=TEST.n_layers, inner=TEST.d_model, passes=passes)
            off, allowed = error(results[part], values), limit(peer, bound)
            worst[precision] = max(worst.get(precision, 0.0), off)
            if not off <= allowed:
                found = (
                    f"the {part} are {off:.1e} from fp64 in {precision}; allowed are {allowed:.1e}, eager"
                    f" attention is {peer:.1e} off"
                )
                known = (
                    setting.device == "mps" and name == "sdpa"
                )  # NaN for rows with padding: `auto` avoids it
                remedy = REMEDY.format(name)
                return Row(title, "slow" if known else "failed", found, remedy, figures), None
    timing = _timing(setting, kernel)
    figures |= {"seconds": {"packed": timing.packed, "plain": timing.plain}}
    errors = ", ".join(f"{off:.1e} in {precision}" for precision, off in worst.items())
    found = f"{timing} ms packed / plain rows; at most {errors} from fp64"
    return Row(title, "passed", found, figures=figures), timing


def _shape(setting: Setting) -> tuple[LabConfig, int, int, int]:
    """Returns a backbone that is attention for the most part, rows, their tokens, and rounds."""
    if setting.quick:
        sizes, rows, length, rounds = (128, 2, 4, 2), 2, 128, 3
    elif setting.on_gpu:
        sizes, rows, length, rounds = (1024, 4, 16, 4), 4, 2048, 20
    else:
        sizes, rows, length, rounds = (512, 4, 8, 2), 2, 512, 7
    width, layers, heads, kv_heads = sizes
    config = LabConfig(
        vocab_size=512, d_model=width, n_layers=layers, n_heads=heads, n_kv_heads=kv_heads, d_ff=64,
        max_seq_len=length,
    )  # fmt: skip
    return config, rows, length, rounds


def _timing(setting: Setting, kernel: str, kind: SDPBackend | None = None) -> Timing:
    config, rows, length, rounds = _shape(setting)
    model = _model(config, kernel, setting.device).train()
    read = ids(setting, rows, length)
    quarter = torch.arange(length // 4, device=setting.device)  # four documents a row
    positions = quarter.repeat(4).repeat(rows, 1)
    bounds = document_bounds(positions) if takes_bounds(model) else {}

    def once(**given: Any) -> float | None:
        def work() -> None:
            with _only(kind), autocast(setting.device, setting.precision):
                model(read, use_cache=False, **given).last_hidden_state.sum().backward()

        try:
            return timed(setting.device, work, rounds)
        except Exception:  # no such kernel for this mask, or this device
            return None

    return Timing(once(position_ids=positions, **bounds), once())


def _only(kind: SDPBackend | None) -> AbstractContextManager[object]:
    return nullcontext() if kind is None else sdpa_kernel(kind)


def _kinds(setting: Setting) -> Row:
    """Returns what each kernel of sdpa takes."""
    kinds = KINDS if setting.device == "cuda" else {name: KINDS[name] for name in ("math", "flash")}
    if setting.device == "mps":
        return Row("attention: sdpa's own", "not on this device", "PyTorch has one kernel of sdpa here")
    times = {name: _timing(setting, "sdpa", kind) for name, kind in kinds.items()}
    said = ", ".join(f"{name} {timing}" for name, timing in times.items())
    figures = {name: {"packed": one.packed, "plain": one.plain} for name, one in times.items()}
    return Row("attention: sdpa's own", "passed", f"ms packed / plain rows: {said}", figures=figures)


def _choice(setting: Setting, usable: dict[str, Timing]) -> Row:
    usual = {"eager": "eager", None: "sdpa"}[default_kernel(setting.device)]
    times = {
        name: timing.packed
        for name, timing in usable.items()
        if timing.packed is not None and (name != "eager" or usual == "eager")
    }
    title = "attention: auto"
    if usual not in times:
        found = f"{usual}, as without a selftest, though it does not compute right: see its row"
        return Row(title, "failed", found, REMEDY.format("auto"), {"kernel": KERNELS[usual]})
    best = min(times, key=lambda name: times[name])
    chosen = best if times[best] < (1 - WORTH) * times[usual] else usual
    figures = {"kernel": KERNELS[chosen], "usual": KERNELS[usual], "seconds": times}
    if chosen == usual:
        return Row(
            title, "passed", f"{chosen}, as without a selftest: none that is right is faster", figures=figures
        )
    gain = times[usual] / times[chosen]
    found = f"{chosen} from now on for packed rows: x{gain:.2f} the speed of {usual}"
    return Row(title, "passed", found, figures=figures)


def _first_line(reason: Exception) -> str:
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    return f"cannot compute here: {type(reason).__name__}: {(lines or ['no reason given'])[0][:160]}"
