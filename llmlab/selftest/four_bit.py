"""Weights in 4 bit as QLoRA loads them: multiplied right, and as near to the originals as nf4 is.

The weights that bitsandbytes gives back are put into the formulas in fp64; the lab's model and Qwen2, both
loaded in 4 bit, are compared with them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from llmlab.config import SFTConfig
from llmlab.data.tokenizer import load_tokenizer
from llmlab.models.convert import from_hf
from llmlab.models.load import load_model
from llmlab.models.policy import loading_kwargs
from llmlab.selftest.exact import Exact
from llmlab.selftest.parity import Batch
from llmlab.selftest.rows import Row
from llmlab.selftest.setting import SMALL, Setting, small_peer
from llmlab.selftest.tolerance import error, limit, most

# nf4 with blocks of 64 is 9 % off weights that are normally distributed (Dettmers et al. 2023); what the
# second quantisation, of the blocks' scales, adds is below a tenth of that
OFF = 0.12
REMEDY = "do not train with QLoRA or `load_in` here: update bitsandbytes, and the GPU's driver"


def check(setting: Setting, part: str) -> Iterator[Row]:
    """Yields one row."""
    if importlib.util.find_spec("bitsandbytes") is None:
        yield Row("4 bit", "not on this device", "the package bitsandbytes is not installed")
        return
    if setting.device == "mps":
        yield Row("4 bit", "not on this device", "QLoRA is for NVIDIA GPUs and processors")
        return
    peer, batch = small_peer(), Batch.of(setting)
    own, other = (
        _quantised(model, setting, name) for model, name in ((from_hf(peer), "own"), (peer, "peer"))
    )
    right, off = _right(peer, own, batch.on("cpu"))
    one = batch.ids[:1, :1]  # as while answers are drawn, which has a kernel of its own
    errors, weights = [], setting.precision
    for model in (own, other):
        with torch.no_grad():
            logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits[batch.mask.bool()]
            alone = model(input_ids=one).logits[0]
        errors.append(max(error(logits, right), error(alone, right[:1])))
    # the kernel makes the weights anew in the format it computes in: a rounding more of each
    bound = 1.5 * most(weights, layers=SMALL.layers, inner=SMALL.feed_forward)
    allowed = limit(errors[1], bound)
    figures = {"error": errors[0], "of_transformers": errors[1], "limit": allowed, "weights_off": off}
    if not errors[0] <= allowed or not off <= OFF:
        what = (
            f"the logits are {errors[0]:.1e} from the same weights in fp64; allowed are {allowed:.1e},"
            f" transformers' Qwen2 in 4 bit is {errors[1]:.1e} off"
            if off <= OFF
            else f"the weights are {off:.1%} off the original ones; nf4 has 9 %, and {OFF:.0%} are allowed"
        )
        yield Row(f"4 bit {weights}", "failed", what, REMEDY, figures)
        return
    found = (
        f"logits {errors[0]:.1e} from the same 4-bit weights in fp64, transformers {errors[1]:.1e}; weights"
        f" {off:.1%} from the original ones, as nf4 is"
    )
    yield Row(f"4 bit {weights}", "passed", found, figures=figures)


def _quantised(model: Any, setting: Setting, name: str) -> Any:
    """Returns a model as a QLoRA run loads it."""
    folder = setting.folder / f"four-bit-{name}"
    model.save_pretrained(folder)
    load_tokenizer("byte").save_pretrained(folder)
    config = SFTConfig(adapter="qlora", policy_checkpoint=str(folder), device=setting.device)
    loaded, _ = load_model(str(folder), **loading_kwargs(config, setting.device, setting.precision))
    return loaded.eval()


def _right(peer: nn.Module, quantised: Any, batch: Batch) -> tuple[Tensor, float]:
    """Returns the logits of the weights that are really there, in fp64, and how far these are from the
    originals.
    """
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Linear4bit

    exact = Exact(peer)
    off, length = 0.0, 0.0
    for name, module in quantised.named_modules():
        if isinstance(module, Linear4bit):
            state: Any = module.weight
            values = dequantize_4bit(state.data, state.quant_state).cpu().double()
            original = exact.weights[f"{name.removeprefix('model.')}.weight"].data
            off += float((values.reshape(original.shape) - original).square().sum())
            length += float(original.square().sum())
            original.copy_(values.reshape(original.shape))
    if not length:
        raise RuntimeError("no layer was loaded in 4 bit")
    with torch.no_grad():
        return exact.logits(batch.ids, batch.mask)[batch.mask.bool()], (off / length) ** 0.5
