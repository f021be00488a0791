"""What one of several devices holds under each engine. No torch.

What is divided over N devices follows Rajbhandari et al. 2020 (ZeRO): optimizer states and gradients
(ZeRO-2), weights as well (ZeRO-3, FSDP2). What an engine adds (`exchange`) was read in torch 2.13, accelerate
1.15 and DeepSpeed 0.19, and measured: `benchmarks/memory_devices.py` does it again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from llmlab.config.hardware import Engine
from llmlab.planning.step import Held, Needs, Passing, TrainingMemory

EngineInEffect = Engine | Literal["none", "tensor"]
# weights that ZeRO-3 may keep gathered at once; DeepSpeed's own default of stage3_max_live_parameters
LIVE_WEIGHTS = 1e9


@dataclass(frozen=True)
class Standing:
    """Bytes of one device that stay from update to update.

    Attributes:
        weights: as TrainingMemory.weights.
        gradients: as they are kept between micro-batches.
        optimizer: its state, with the fp32 weights that DeepSpeed keeps beside those it computes with.
        at_update: bytes of gradients more than `gradients` while the optimizer works.
        host: bytes that are in the machine's memory instead.
    """

    weights: float
    gradients: float
    optimizer: float
    at_update: float = 0.0
    host: float = 0.0


@dataclass(frozen=True)
class Exchange:
    """Bytes that an engine needs beside its share, at the three moments at which most can be alive.

    Attributes:
        loss: while the loss is computed.
        backward: in the backward pass of a layer.
        end: when the last gradients are handed over, with no activations left.
    """

    loss: float = 0.0
    backward: float = 0.0
    end: float = 0.0


@dataclass(frozen=True)
class DeviceMemory:
    """What one process of a run takes.

    Attributes:
        device: its parts on its device.
        host: bytes in the machine's memory that CPU offload puts there.
    """

    device: TrainingMemory
    host: float = 0.0


def on_a_device(needs: Needs, engine: EngineInEffect, devices: int, *, offload: bool = False) -> DeviceMemory:
    """Returns what one of several devices holds.

    Args:
        needs: of the run on one device.
        engine: how they share it.
        devices: processes of the whole job.
        offload: whether what is divided is kept in the machine's memory; `ddp` has nothing to divide.
    """
    standing = STANDING[engine](needs.held, devices, offload)
    memory = _at_the_peak(standing, EXCHANGE[engine](needs.held), needs.passing)
    spare = memory.gradients + memory.activations + memory.logits + memory.exchange
    memory = replace(memory, cache=max(0.0, needs.answers - spare), runtime=needs.runtime)
    # what the C library cannot use again grows with what passes, not with what stands
    memory = replace(memory, fragments=needs.fragments * memory.activations + needs.empty)
    return DeviceMemory(memory, standing.host)


def _at_the_peak(standing: Standing, exchange: Exchange, passing: Passing) -> TrainingMemory:
    """Returns what is alive when most is: at the loss, in the backward pass of a layer, or at the update."""
    activations = passing.activations
    moments = (
        (activations, passing.logits, exchange.loss),
        (activations + passing.made_anew, 0.0, exchange.backward),
    )
    passed = max(moments, key=sum)
    gradients = standing.gradients
    at_end = gradients + standing.at_update + exchange.end
    if not passing.accumulates:  # gradients come as activations go
        gradients = max(0.0, gradients - sum(passed[:2]))
    if at_end > gradients + sum(passed):
        passed, gradients = (0.0, 0.0, exchange.end), standing.gradients + standing.at_update
    activations, logits, added = passed
    return TrainingMemory(standing.weights, gradients, standing.optimizer, activations, logits, added)


def _whole(held: Held, devices: int, offload: bool) -> Standing:
    return Standing(held.weights, held.gradients, held.optimizer)


def _fsdp2(held: Held, devices: int, offload: bool) -> Standing:
    """Weights, gradients and states divided; a layer is copied to half precision when it is gathered."""
    weights = (4 * held.trained + held.frozen + held.reference) / devices
    gradients, optimizer = held.gradients / devices, held.optimizer / devices
    if offload:
        return Standing(held.fixed, 0.0, 0.0, host=weights + gradients + optimizer)
    return Standing(weights + held.fixed, gradients, optimizer)


def _tensor(held: Held, devices: int, offload: bool) -> Standing:
    """Weights of layers, embeddings and head divided, over those that share a layer and the groups of them;
    norms, which are whole, do not count.
    """
    weights = (4 * held.trained + held.frozen + held.reference) / devices
    return Standing(weights + held.fixed, held.gradients / devices, held.optimizer / devices)


def _zero2(held: Held, devices: int, offload: bool) -> Standing:
    """Weights whole, in the precision of the products; fp32 ones, gradients and states divided.

    Gradients are summed in fp32, and copied into one flat tensor at the update.
    """
    weights = held.wide * held.trained + held.frozen + held.fixed + held.reference
    own, gradients = (4 * held.trained + held.optimizer) / devices, 4 * held.trained / devices
    flat = 4 * held.trained / devices
    if offload:
        return Standing(weights, 0.0, 0.0, host=own + flat)
    return Standing(weights, gradients, own, at_update=flat)


def _zero3(held: Held, devices: int, offload: bool) -> Standing:
    """All divided: weights in the precision of the products and in fp32, gradients in fp32, states."""
    computed = (held.wide * held.trained + held.frozen) / devices
    reference = held.reference / devices
    own, gradients = (4 * held.trained + held.optimizer) / devices, 4 * held.trained / devices
    flat = 4 * held.trained / devices
    if offload:
        return Standing(held.fixed + reference, 0.0, 0.0, host=computed + own + gradients + flat)
    return Standing(computed + reference + held.fixed, gradients, own, at_update=flat)


def _no_exchange(held: Held) -> Exchange:
    return Exchange()


def _buckets(held: Held) -> Exchange:
    """DDP keeps a second copy of all gradients, in buckets of 25 MB that are sent while others are made."""
    return Exchange(held.gradients, held.gradients, held.gradients)


def _gathered(held: Held) -> Exchange:
    """FSDP2: the layer that is computed, the next one under way, and the gradients that are handed over.

    accelerate makes a unit of every layer and one of the head, which stays gathered from its forward to its
    backward pass. A tied embedding belongs to that unit, which so stays from the first token to the last
    gradient, with its whole gradient.
    """
    block, ends = held.block, held.embedding
    learns = 1.0 if held.ends_train else 0.0
    handed = 2 * block if held.trained * held.wide > held.embedding and held.ends_train else 0.0
    at_loss = ends + (block if held.tied else ends)
    in_layer = 2 * block + handed + ((1 + learns) * ends if held.tied else learns * ends)
    return Exchange(at_loss, in_layer, (1 + 2 * learns) * ends + (block if handed else 0.0))


def _zero2_buckets(held: Held) -> Exchange:
    """Gradients of a layer beside the bucket that they are sent in."""
    gradients = held.block if held.ends_train else 0.0
    return Exchange(0.0, 2 * gradients, 2 * (held.embedding if held.ends_train else 0.0))


def _zero3_gathered(held: Held) -> Exchange:
    """Weights that are gathered and not yet given up, and the bucket of gradients."""
    whole = held.wide * held.trained + held.frozen
    live = min(whole, held.wide * LIVE_WEIGHTS)
    sent = _zero2_buckets(held)
    return Exchange(live, live + sent.backward, held.embedding + sent.end)


STANDING = {
    "none": _whole,
    "ddp": _whole,
    "fsdp2": _fsdp2,
    "tensor": _tensor,
    "zero2": _zero2,
    "zero3": _zero3,
}
EXCHANGE = {
    "none": _no_exchange,
    "ddp": _buckets,
    "fsdp2": _gathered,
    "tensor": _no_exchange,
    "zero2": _zero2_buckets,
    "zero3": _zero3_gathered,
}
