"""A LoRA adapter on the lab's transformer: its answers, its gradients, and the same weights merged.

Right are the formulas in fp64 with W + scale B A in place of W (Hu et al. 2021, eq. 3); the gradients of A
and B follow from that of the merged weight, G: scale B^T G and scale G A^T.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from llmlab.config import SFTConfig
from llmlab.models.adapters import add_adapter
from llmlab.models.convert import from_hf
from llmlab.models.typed import moved
from llmlab.selftest.exact import Exact
from llmlab.selftest.parity import REMEDY, Batch
from llmlab.selftest.rows import Row
from llmlab.selftest.setting import SMALL, Setting, autocast, small_peer
from llmlab.selftest.tolerance import error, limit, most

CONFIG = SFTConfig(adapter="lora", lora_r=8, lora_alpha=16, lora_dropout=0.0, lora_targets="all-linear")
SCALE = CONFIG.lora_alpha / CONFIG.lora_r
EXTRA = 1.5  # matrix products of an adapter beside those of its layer


def check(setting: Setting, part: str) -> Iterator[Row]:
    """Yields a row for fp32, and one for the device's own precision."""
    peer = small_peer()
    batch = Batch.of(setting)
    own, other = _adapted(from_hf(peer), setting.device), _adapted(small_peer(), setting.device)
    pairs = _pairs(own)
    right = _right(Exact(peer), pairs, batch.on("cpu"))
    for precision in dict.fromkeys(("fp32", setting.precision)):
        results = [_results(model, batch, setting.device, precision) for model in (own, other)]
        yield _row(precision, right, *results)


def _adapted(model: Any, device: str) -> Any:
    """Returns a model with an adapter that changes something, the same every time."""
    adapted = add_adapter(model, CONFIG)
    generator = torch.Generator().manual_seed(2)
    for name, weight in sorted(adapted.named_parameters()):
        if "lora_" in name:
            values = torch.randn(weight.shape, generator=generator) * 0.05
            weight.data.copy_(values)
    return moved(adapted, device)


def _pairs(adapted: Any) -> dict[str, dict[str, Tensor]]:
    """Returns A (r, in) and B (out, r) of each matrix, by the name of its layer."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            layer, side = name.removeprefix("base_model.model.model.").split(".lora_")
            pairs.setdefault(layer, {})[side[0]] = weight.detach().double().cpu()
    return pairs


def _right(exact: Exact, pairs: dict[str, dict[str, Tensor]], batch: Batch) -> dict[str, Tensor]:
    with torch.no_grad():
        for layer, pair in pairs.items():
            exact.weights[f"{layer}.weight"] += SCALE * pair["B"] @ pair["A"]
    exact.loss(batch.ids, batch.mask, batch.labels).backward()
    gradients, whole = [], exact.gradients()
    for layer in sorted(pairs):
        grown, pair = whole[f"{layer}.weight"], pairs[layer]
        gradients += [(SCALE * pair["B"].T @ grown).flatten(), (SCALE * grown @ pair["A"].T).flatten()]
    with torch.no_grad():
        logits = exact.logits(batch.ids, batch.mask)[batch.mask.bool()]
    return {"logits": logits, "gradients": torch.cat(gradients), "merged": logits}


def _results(model: Any, batch: Batch, device: str, precision: str) -> dict[str, Tensor]:
    model.train()
    with autocast(device, precision):
        loss = model(
            input_ids=batch.ids, attention_mask=batch.mask, labels=batch.labels, use_cache=False
        ).loss
    loss.backward()
    grown = {name: weight.grad for name, weight in model.named_parameters() if "lora_" in name}
    layers = sorted({name.split(".lora_")[0] for name in grown})
    names = [f"{layer}.lora_{side}.default.weight" for layer in layers for side in "AB"]
    gradients = torch.cat([grown[name].flatten() for name in names])
    model.zero_grad()
    model.eval()
    with torch.no_grad(), autocast(device, precision):
        logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits[batch.mask.bool()]
        model.merge_adapter()
        merged = model(input_ids=batch.ids, attention_mask=batch.mask).logits[batch.mask.bool()]
        model.unmerge_adapter()
    return {"logits": logits, "gradients": gradients, "merged": merged}


def _row(precision: str, right: dict[str, Tensor], own: dict[str, Tensor], peer: dict[str, Tensor]) -> Row:
    errors = {name: error(own[name], values) for name, values in right.items()}
    peers = {name: error(peer[name], values) for name, values in right.items()}
    limits = {}
    for name in right:
        passes = 3 if name == "gradients" else 1
        bound = EXTRA * most(precision, layers=SMALL.layers, inner=SMALL.feed_forward, passes=passes)
        limits[name] = limit(peers[name], bound)
    figures = {"errors": errors, "of_transformers": peers, "limits": limits}
    wrong = next((name for name in errors if not errors[name] <= limits[name]), "")
    if wrong:
        found = (
            f"the {wrong} of the lab's transformer with a LoRA adapter are {errors[wrong]:.1e} from fp64;"
            f" allowed are {limits[wrong]:.1e}, Qwen2 with the same adapter is {peers[wrong]:.1e} off"
        )
        return Row(f"LoRA {precision}", "failed", found, REMEDY, figures)
    found = (
        f"logits {errors['logits']:.1e}, merged {errors['merged']:.1e}, gradients {errors['gradients']:.1e}"
        f" from fp64; Qwen2 with the same adapter {peers['logits']:.1e}, {peers['merged']:.1e},"
        f" {peers['gradients']:.1e}"
    )
    return Row(f"LoRA {precision}", "passed", found, figures=figures)
