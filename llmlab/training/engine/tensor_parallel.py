"""Layers that several processes compute together: each has some of the heads, of the inner units and of the
vocabulary, and all have the same rows (Shoeybi et al. 2019, "Megatron-LM", section 3).

The work is transformers' (`DistributedConfig`), by the plan that a model's class declares.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig

from llmlab.errors import LabError

DIVIDED_BY_HEADS = ("k_proj", "qkv_proj", "query_key_value")


def divide_layers(model: PreTrainedModel, size: int, device: str) -> None:
    """Leaves each process its part of every layer; all have to call this, with the same weights.

    Args:
        model: whole, as it was built or loaded.
        size: processes that share a layer: all of the job.
        device: "cpu", "cuda" ...

    Raises:
        LabError: when the model cannot be divided so.
    """
    _refuse(model, size)
    for name in tied(model):  # each is divided as a weight of its own, and tied again
        owner, _, weight = name.rpartition(".")
        module = model.get_submodule(owner)
        setattr(module, weight, nn.Parameter(getattr(module, weight).detach()))
    cls = type(model)
    config, _, mesh = cls.prepare_distribute_model(DistributedConfig(tp_size=size))
    cls.maybe_distribute_model(model, config, mesh)
    model.tie_weights()
    nn.Module.to(model, device)


@contextmanager
def optimizer_saved_here(model: object, args: Any) -> Iterator[None]:
    """Within it a trainer can be made of a divided model: transformers refuses to save its optimizer, which
    the lab saves itself.
    """
    if not getattr(model, "is_distributed_loading_by_transformers", False):
        yield
        return
    args.save_only_model = True
    try:
        yield
    finally:
        args.save_only_model = False


@contextmanager
def as_plain(model: nn.Module) -> Iterator[None]:
    """Within it the model's config says nothing of the division: it is written to plain folders."""
    config: Any = getattr(model, "config", None)
    divided = getattr(config, "distributed_config", None)
    if divided is None:
        yield
        return
    config.distributed_config = None
    try:
        yield
    finally:
        config.distributed_config = divided


def tied(model: PreTrainedModel) -> list[str]:
    """Returns the weights that are the same as another one."""
    names = dict(model.named_parameters(remove_duplicate=False))
    return [name for name in model.all_tied_weights_keys if name in names]


def _refuse(model: PreTrainedModel, size: int) -> None:
    option = f"`tensor_parallel` {size}"
    name = type(model).__name__
    plan = model.tp_plan or {}
    if not plan:
        raise LabError(
            f"{option}: {name} declares no plan by which its layers can be divided",
            remedy='set `tensor_parallel` to 1, and `parallel` to "fsdp2" to divide its weights',
        )
    config = model.config.get_text_config()
    heads = {"n_heads": config.num_attention_heads}
    if any(key.rsplit(".", 1)[-1] in DIVIDED_BY_HEADS for key in plan):
        heads["key/value heads"] = getattr(config, "num_key_value_heads", None) or heads["n_heads"]
    for what, count in heads.items():
        if count % size:
            what = what.replace("n_heads", "heads")
            raise LabError(
                f"{option}: the {count} {what} of the model cannot be divided over {size} processes",
                remedy=f"set it to {' or '.join(map(str, _divisors(*heads.values())))}",
            )
    if getattr(config, "positional_encoding", "") == "alibi":
        raise LabError(
            f"{option}: alibi's bias is one of all heads, and each process has some of them",
            remedy="set `tensor_parallel` to 1",
        )
    if drops(model):
        raise LabError(
            f"{option}: the model drops units at random, and the processes would drop different ones",
            remedy="use a model without dropout, or set `tensor_parallel` to 1",
        )


def drops(model: nn.Module) -> bool:
    """Returns whether a model drops units at random while it learns."""
    config = getattr(model, "config", None)
    said = [getattr(config, name, 0) or 0 for name in ("dropout", "attention_dropout", "hidden_dropout")]
    return any(said) or any(module.p for module in model.modules() if isinstance(module, nn.Dropout))


def _divisors(*counts: int) -> list[int]:
    return [size for size in range(1, min(counts) + 1) if not any(count % size for count in counts)]
