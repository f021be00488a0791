"""The order in which a run reads stored rows, known before the first of them is read.

The order of an epoch follows from the seed, the epoch's number and the rows alone: no global generator is
drawn from, so a resumed run, a run of several processes and whatever only wants to know which rows will be
read see the same one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl.trainer.utils import RepeatSampler


class SeededOrder(torch.utils.data.Sampler[int]):
    """A new random order in every epoch; that of accelerate's `SeedableRandomSampler`, told in advance.

    Args:
        rows: how many there are.
        seed: of the order.
    """

    def __init__(self, rows: int, seed: int):
        self.rows, self.seed, self.epoch = rows, seed, 0

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        """Yields the indices of the epoch that was set."""
        return iter(self.order(self.epoch))

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch whose indices come next; the trainer does before each."""
        self.epoch = epoch

    def order(self, epoch: int) -> list[int]:
        """Returns the indices of all rows in the order of an epoch."""
        return torch.randperm(self.rows, generator=self._generator(epoch)).tolist()

    def first(self, count: int) -> list[int]:
        """Returns the indices of the rows that a run from the start reads first, each once:
        at most `count` of them.
        """
        return self.order(0)[:count] if count < self.rows else list(range(self.rows))

    def _generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed + epoch)


class LengthGrouped(SeededOrder):
    """Rows of similar length together.

    Args:
        lengths: tokens of each row.
        batch: rows of an update, which are of similar length.
        seed: of the order.
    """

    def __init__(self, lengths: list[int], batch: int, seed: int):
        super().__init__(len(lengths), seed)
        self.lengths, self.batch = lengths, batch

    def order(self, epoch: int) -> list[int]:
        """Returns the indices of all rows in the order of an epoch."""
        order: list[int] = get_length_grouped_indices(
            self.lengths, self.batch, generator=self._generator(epoch)
        )
        return order


class RolloutOrder(SeededOrder):
    """Prompts for PPO: every epoch reads each once, in batches that come again for every update on their
    answers.

    The last batch of an epoch is filled up with the epoch's first prompts.

    Args:
        rows: how many prompts there are.
        batch: prompts that all processes together answer at a time.
        updates: on each batch of answers.
        seed: of the order.
    """

    def __init__(self, rows: int, batch: int, updates: int, seed: int):
        super().__init__(rows, seed)
        self.batch, self.updates = batch, updates

    def __len__(self) -> int:
        return math.ceil(self.rows / self.batch) * self.batch * self.updates

    def __iter__(self) -> Iterator[int]:
        """Yields the indices of the epoch that was set."""
        order = self.order(self.epoch)
        for start in range(0, self.rows, self.batch):
            batch = [order[place % self.rows] for place in range(start, start + self.batch)]
            for _ in range(self.updates):
                yield from batch


class RepeatedOrder(RepeatSampler):
    """TRL's order of prompts for GRPO, each repeated for its answers and updates.

    TRL's own draws one epoch after the other from a generator: a run resumed in a later epoch would begin
    with the first. And it leaves out the prompts that fill no batch: here the last batch of an epoch is
    filled up with the epoch's first prompts.
    """

    def __len__(self) -> int:
        batches = math.ceil(self.num_samples / self.batch_size)
        return batches * self.batch_size * self.mini_repeat_count * self.repeat_count

    def __iter__(self) -> Iterator[int]:
        """Yields the indices of the epoch that was set."""
        order = torch.randperm(self.num_samples, generator=self.generator).tolist()
        for start in range(0, self.num_samples, self.batch_size):
            batch = [order[place % self.num_samples] for place in range(start, start + self.batch_size)]
            for _ in range(self.repeat_count):
                for index in batch:
                    yield from [index] * self.mini_repeat_count

    @classmethod
    def of(cls, sampler: RepeatSampler) -> RepeatedOrder:
        """Returns the order of one of TRL's samplers."""
        return cls(
            sampler.data_source,
            sampler.mini_repeat_count,
            sampler.batch_size,
            sampler.repeat_count,
            sampler.shuffle,
            sampler.seed,
        )

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch whose indices come next; the trainer does before each."""
        self.generator.manual_seed((self.seed or 0) + epoch)
