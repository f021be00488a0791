"""Which weights a loss reaches: processes that wait for the gradient of one that is never reached would wait
for ever.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel


def may_be_unreached(model: PreTrainedModel) -> bool:
    """Returns whether a weight may be left out of a loss: one is, or the pass cannot be made
    (kernels of another device).
    """
    try:
        return bool(unreached(model))
    except Exception:
        return True


def unreached(model: PreTrainedModel) -> list[str]:
    """Returns the names of trainable weights that no output of a short pass depends on; experts without a
    token are such.

    Found by walking the graph of the pass, without a backward pass.
    """
    inputs = {name: value.to(model.device) for name, value in model.dummy_inputs.items()}
    with torch.enable_grad(), torch.random.fork_rng():
        output = model(**inputs)
    nodes = [
        value.grad_fn for value in output.values() if torch.is_tensor(value) and value.grad_fn is not None
    ]
    seen, reached = set(), set()
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(variable := getattr(node, "variable", None), nn.Parameter):
            reached.add(id(variable))
        nodes += [following for following, _ in node.next_functions if following is not None]
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in reached
    ]
