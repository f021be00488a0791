"""Attention kernels: which of them work on this device, whether they are right, and which is the fastest.

Each computes the lab's own backbone on rows with padding, on packed rows and on plain ones, forwards and
backwards; right are the formulas in fp64 (`exact.py`), each document of a packed row by itself. As fast
counts what base training does: packed rows, forwards and backwards, in the device's own precision. PyTorch's
`scaled_dot_product_attention` (sdpa) has several kernels of its own, some for plain rows only: each of them
is tried, which one is taken in a run is PyTorch's choice.

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
from llmlab.selftest.rows import Row, Status
from llmlab.selftest.setting import Setting, autocast, ids, timed
from llmlab.selftest.tolerance import error, limit, most

KERNELS = {"sdpa": "sdpa", "eager": "eager", "flex": "flex_attention", "flash": "flash_attention_2"}
KINDS = {  # of sdpa
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
WORTH = 0.05  # of the time; a smaller difference is chance
DOCUMENTS = (24, 1, 65, 38)  # tokens of those in a packed row of the test of exactness
PARTS = ("padded", "packed", "plain")  # rows
TEST = LabConfig(
    vocab_size=512, d_model=128, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=64, max_seq_len=128,
    initializer_range=0.08,
)  # fmt: skip
REMEDY = "do not use it here: update torch and the GPU's driver"


@dataclass(frozen=True)
class Candidate:
    """A way to compute attention.

    Attributes:
        name: of `attention_backend`, or of a kernel of sdpa.
        kernel: transformers' name.
        kind: the one of sdpa that is to be used; None for PyTorch's choice.
    """

    name: str
    kernel: str
    kind: SDPBackend | None = None

    @property
    def title(self) -> str:
        """Name of its row."""
        return f"attention: {self.name}" if self.kind is None else f"sdpa: {self.name}"

    def chosen(self) -> AbstractContextManager[object]:
        """Returns the context in which it is used."""
        return nullcontext() if self.kind is None else sdpa_kernel(self.kind)

    def model(self, config: LabConfig, device: str) -> Any:
        """Returns a backbone that computes with it, the same every time."""
        torch.manual_seed(0)
        if self.kernel == "flex_attention":
            torch.compiler.reset()  # after eight shapes PyTorch would stop compiling, and be slow
        model = moved(LabModel(config), device)
        model.set_attn_implementation(self.kernel)
        return model.train()

    def why_not(self, device: str) -> str:
        """Returns why it is not tried on a device; "" where it is."""
        if self.name == "flex" and device != "cuda":
            return "PyTorch computes its backward pass on NVIDIA GPUs alone"
        if self.kernel == "flash_attention_2" and not is_flash_attn_2_available():
            return "needs the package flash-attn, and an NVIDIA GPU"
        return ""


@dataclass(frozen=True)
class Result:
    """Hidden states where there is no padding, and all gradients as one vector, of one kind of rows."""

    states: Tensor
    gradients: Tensor


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
    """Yields a row for each kernel, one for each of those of sdpa, and one for what `auto` is from now on."""
    right = _right()
    formats = tuple(dict.fromkeys(("fp32", setting.precision)))
    eager = Candidate("eager", "eager")
    standard = {name: _results(setting, eager, name)[0] for name in formats}
    usable: dict[str, Timing] = {}
    for candidate in _candidates(setting):
        row, timing = _row(setting, candidate, right, standard)
        if row.status == "passed" and timing is not None and candidate.kind is None:
            usable[candidate.name] = timing
        yield row
    yield _choice(setting, usable)


def _candidates(setting: Setting) -> Iterator[Candidate]:
    yield from (Candidate(name, kernel) for name, kernel in KERNELS.items())
    kinds = {"cuda": KINDS, "cpu": {name: KINDS[name] for name in ("math", "flash")}}.get(setting.device, {})
    yield from (Candidate(name, "sdpa", kind) for name, kind in kinds.items())


def _batch(device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Returns token ids and mask, (3, T), padded on the right and on the left; positions of a packed row."""
    rows = torch.randint(0, 512, (3, 128), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(rows)
    mask[1, 70:] = 0
    mask[2, :9] = 0  # as where answers are drawn
    positions = torch.cat([torch.arange(size) for size in DOCUMENTS])[None]
    return rows.to(device), mask.to(device), positions.to(device)


def _right() -> dict[str, Result]:
    """Returns what `_results` should be, each document of the packed row by itself."""
    rows, mask, _ = _batch("cpu")
    model = Candidate("eager", "eager").model(TEST, "cpu")
    found = {}
    for part in PARTS:
        exact = Exact(model)
        if part == "packed":
            alone = [exact.hidden(document) for document in rows[:1].split(DOCUMENTS, dim=1)]
            states = torch.cat(alone, dim=1)
        else:
            states = exact.hidden(rows, mask)[mask.bool()] if part == "padded" else exact.hidden(rows[:2])
        states.square().sum().backward()
        grown = exact.gradients()
        gradients = torch.cat([grown[name].flatten() for name in sorted(grown)])
        found[part] = Result(states.detach(), gradients)
    return found


def _results(
    setting: Setting, candidate: Candidate, precision: str
) -> tuple[dict[str, Result], dict[str, str]]:
    """Returns what a kernel computes of each kind of rows, and why it cannot compute the others."""
    found, reasons = {}, {}
    if candidate.kernel == "flash_attention_2" and precision == "fp32":
        return {}, dict.fromkeys(PARTS, "it computes in 16 bit alone")
    for part in PARTS:
        try:
            found[part] = _result(setting, candidate, precision, part)
        except Exception as reason:  # compilers and kernels raise many kinds
            lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
            reasons[part] = f"{type(reason).__name__}: {(lines or ['no reason given'])[0][:160]}"
    return found, reasons


def _result(setting: Setting, candidate: Candidate, precision: str, part: str) -> Result:
    model = candidate.model(TEST, setting.device)
    rows, mask, positions = _batch(setting.device)
    bounds = document_bounds(positions) if takes_bounds(model) else {}
    with candidate.chosen(), autocast(setting.device, precision):
        if part == "padded":
            states = model(rows, attention_mask=mask, use_cache=False).last_hidden_state[mask.bool()]
        elif part == "packed":
            states = model(rows[:1], position_ids=positions, use_cache=False, **bounds).last_hidden_state
        else:
            states = model(rows[:2], use_cache=False).last_hidden_state
        states.float().square().sum().backward()
    grown = {name: weight.grad for name, weight in model.named_parameters()}
    return Result(states.detach(), torch.cat([grown[name].flatten() for name in sorted(grown)]))


def _row(
    setting: Setting, candidate: Candidate, right: dict[str, Result], standard: dict[str, dict[str, Result]]
) -> tuple[Row, Timing | None]:
    title = candidate.title
    if reason := candidate.why_not(setting.device):
        return Row(title, "not on this device", reason), None
    worst: dict[str, float] = {}
    cannot: dict[str, str] = {}
    for precision in standard:
        if candidate.name == "flex" and precision != setting.precision:
            continue  # it is compiled anew for each format, shape and mask
        results, reasons = _results(setting, candidate, precision)
        if precision == setting.precision:
            cannot = reasons
        for part, result in results.items():
            off, wrong = _judged(precision, part, result, right[part], standard[precision].get(part))
            worst[precision] = max(worst.get(precision, 0.0), off)
            if wrong:  # on MPS sdpa gives NaN for rows with padding, and `auto` avoids it
                known = setting.device == "mps" and candidate.name == "sdpa"
                status: Status = "slow" if known else "failed"
                return Row(title, status, wrong, REMEDY, {"errors": worst}), None
    needed = candidate.kernel == (default_kernel(setting.device) or "sdpa") and candidate.kind is None
    if len(cannot) == len(PARTS) or (cannot and candidate.kind is None):
        found = f"cannot compute {' and '.join(cannot)} rows here: {next(iter(cannot.values()))}"
        return Row(title, "failed" if needed else "not on this device", found, REMEDY if needed else ""), None
    timing = _timing(setting, candidate)
    figures = {"errors": worst, "seconds": {"packed": timing.packed, "plain": timing.plain}, "cannot": cannot}
    errors = ", ".join(f"{off:.1e} in {precision}" for precision, off in worst.items())
    found = f"{timing} ms packed / plain rows; at most {errors} from fp64"
    found += f"; no {' and '.join(cannot)} rows" if cannot else ""
    return Row(title, "passed", found, figures=figures), timing


def _judged(
    precision: str, part: str, result: Result, right: Result, standard: Result | None
) -> tuple[float, str]:
    """Returns the largest error of some rows, and what is wrong with them; "" for nothing."""
    worst = 0.0
    for what, passes in (("states", 1), ("gradients", 3)):
        values = getattr(right, what)
        peer = error(getattr(standard, what), values) if standard else 0.0
        bound = most(precision, layers=TEST.n_layers, inner=TEST.d_model, passes=passes)
        off, allowed = error(getattr(result, what), values), limit(peer, bound)
        if not off <= allowed:
            return off, (
                f"{part} rows: {what} are {off:.1e} from fp64 in {precision}; allowed are {allowed:.1e},"
                f" eager attention is {peer:.1e} off"
            )
        worst = max(worst, off)
    return worst, ""


def _shape(setting: Setting) -> tuple[LabConfig, int, int, int]:
    """Returns a backbone that is attention for the most part, rows, their tokens, and rounds."""
    if setting.quick:
        sizes, rows, length, rounds = (128, 2, 4, 2), 2, 128, 3
    elif setting.on_gpu:
        rows, length = (4, 2048) if setting.large() else (2, 1024)
        sizes, rounds = (1024, 4, 16, 4), 20
    else:
        sizes, rows, length, rounds = (512, 4, 8, 2), 2, 512, 5
    width, layers, heads, kv_heads = sizes
    config = LabConfig(
        vocab_size=512, d_model=width, n_layers=layers, n_heads=heads, n_kv_heads=kv_heads, d_ff=64,
        max_seq_len=length,
    )  # fmt: skip
    return config, rows, length, rounds


def _timing(setting: Setting, candidate: Candidate) -> Timing:
    config, rows, length, rounds = _shape(setting)
    model = candidate.model(config, setting.device)
    read = ids(setting, rows, length)
    quarter = torch.arange(length // 4, device=setting.device)  # four documents a row
    positions = quarter.repeat(4).repeat(rows, 1)
    bounds = document_bounds(positions) if takes_bounds(model) else {}

    def once(**given: Any) -> float | None:
        def work() -> None:
            with candidate.chosen(), autocast(setting.device, setting.precision):
                model(read, use_cache=False, **given).last_hidden_state.sum().backward()

        try:
            return timed(setting.device, work, rounds)
        except Exception:  # no such kernel for this mask, or too little memory
            return None

    return Timing(once(position_ids=positions, **bounds), once())


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
        return Row(title, "failed", found, REMEDY, {"kernel": KERNELS[usual]})
    best = min(times, key=lambda name: times[name])
    chosen = best if times[best] < (1 - WORTH) * times[usual] else usual
    figures = {"kernel": KERNELS[chosen], "usual": KERNELS[usual], "seconds": times}
    if chosen == usual:
        return Row(
            title, "passed", f"{chosen}, as without a selftest: none that is right is faster", figures=figures
        )
    gain = times[usual] / times[chosen]
    when = "would be it" if setting.quick else "from now on"
    found = f"{chosen} {when} for packed rows: x{gain:.2f} the speed of {usual}"
    return Row(title, "passed", found, figures=figures)
