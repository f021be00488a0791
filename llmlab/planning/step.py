"""What a training step takes, as records: what stands in memory, what passes, and what is alive when most is.
No torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

RECOMPUTED = 1.5  # layers' worth alive with checkpointing: a layer made anew, and part of its gradients


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one training step on one device, by part.

    Attributes:
        weights: of the model, frozen ones included; of a reference where it is alive beside it.
        gradients: of what trains.
        optimizer: its state.
        activations: kept for the backward pass.
        logits: over the vocabulary, with what their loss needs.
        exchange: what an engine of several devices adds: buckets of gradients, gathered layers.
        cache: keys and values of the answers of a rollout, as far as they exceed what training on them takes.
        runtime: Python and the libraries, where they share the device's memory.
        fragments: freed and kept by the C library.
    """

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    exchange: float = 0
    cache: float = 0
    runtime: float = 0
    fragments: float = 0

    @property
    def total(self) -> float:
        """All parts together, in bytes."""
        return sum(self.parts().values())

    @property
    def allocated(self) -> float:
        """What torch allocates: all but the libraries and fragments."""
        return self.total - self.runtime - self.fragments

    def parts(self) -> dict[str, float]:
        """Returns bytes by the name of the part."""
        return {field.name: asdict(self)[field.name] for field in fields(self)}


@dataclass(frozen=True)
class Held:
    """What a run holds from update to update, all of it together, however many devices share it.

    Attributes:
        trained: weights that learn, kept in fp32.
        states: fp32 values that the optimizer keeps for each of them.
        frozen: bytes of a frozen base that can be divided.
        fixed: bytes that every device holds whole: 4-bit and 8-bit weights, reward models.
        reference: bytes of a frozen second model.
        copies: bytes of the half-precision copies of the trained weights that autocast keeps on one device.
        wide: bytes of a value in the matrix products, 2 or 4.
        block: bytes of the weights of a layer, as they are computed with.
        embedding: bytes of the embedding, as it is computed with.
        tied: whether the head is the embedding.
        ends_train: whether embedding and head learn.
    """

    trained: float
    states: float
    wide: int
    frozen: float = 0.0
    fixed: float = 0.0
    reference: float = 0.0
    copies: float = 0.0
    block: float = 0.0
    embedding: float = 0.0
    tied: bool = True
    ends_train: bool = True

    @property
    def weights(self) -> float:
        """Bytes of all weights on one device."""
        return 4 * self.trained + self.frozen + self.fixed + self.reference + self.copies

    @property
    def gradients(self) -> float:
        """Bytes of the gradients, in fp32."""
        return 4 * self.trained

    @property
    def optimizer(self) -> float:
        """Bytes of the optimizer's state."""
        return 4 * self.trained * self.states


@dataclass(frozen=True)
class Passing:
    """What a micro-batch of a step makes and gives up again, on one device.

    Attributes:
        layer: bytes that a layer keeps for its backward pass.
        layers: how many layers there are.
        between: bytes of the hidden states that one layer hands to the next.
        beside: bytes that are kept once, whatever the layers do.
        logits: bytes that the loss takes.
        checkpointing: whether layers are made anew in the backward pass.
        accumulates: whether gradients of earlier micro-batches are there already.
    """

    layer: float
    layers: int
    between: float
    beside: float
    logits: float
    checkpointing: bool
    accumulates: bool

    @property
    def activations(self) -> float:
        """Bytes that are kept when the backward pass begins."""
        return self.beside + (self.between if self.checkpointing else self.layer) * self.layers

    @property
    def made_anew(self) -> float:
        """Bytes of the layer that is made anew."""
        return RECOMPUTED * self.layer if self.checkpointing else 0.0


@dataclass(frozen=True)
class Needs:
    """All that is known of a run's memory before it is divided over devices.

    Attributes:
        held: from update to update.
        passing: of a micro-batch.
        answers: bytes of keys and values while a rollout generates.
        runtime: bytes of Python and the libraries, where they share the device's memory.
        fragments: bytes that the C library keeps for each byte of activations.
        empty: bytes of fragments beside those.
        on_gpu: whether the device has a memory of its own.
    """

    held: Held
    passing: Passing
    answers: float = 0.0
    runtime: float = 0.0
    fragments: float = 0.0
    empty: float = 0.0
    on_gpu: bool = False
