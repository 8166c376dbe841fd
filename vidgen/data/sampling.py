"""Which clip comes when: endless shuffled batches that depend on the seed and the position alone.

A dataset of this project takes a batch of keys ``(index, draw)`` and returns a whole batch; ``draw`` counts samples
from the start of training, so everything random about a sample follows from (seed, draw). Resuming is starting at a
later batch, and two processes see exactly the samples that one process with twice the batch would see.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler


class KeyedBatches(Sampler[list[tuple[int, int]]]):
    """Yield lists of ``batch_size`` keys for one of ``world_size`` processes, without end.

    Every clip comes once an epoch, in an order drawn anew for each epoch; batches run across epoch borders.
    """

    def __init__(
        self, length: int, batch_size: int, *, seed: int, start_batch: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if length < 1:
            raise ValueError("there are no clips to draw from")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self.start_batch, self.rank, self.world_size = start_batch, rank, world_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.arange(0)
        position = (self.start_batch * self.world_size + self.rank) * self.batch_size
        while True:
            keys = []
            for draw in range(position, position + self.batch_size):
                if draw // self.length != epoch:
                    epoch = draw // self.length
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
                keys.append((int(order[draw % self.length]), draw))
            yield keys
            position += self.batch_size * self.world_size


class SeededBatches(Dataset):
    """A dataset whose batches also carry ``seeds``: one integer a sample, from (seed, draw), for the sample's noise."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __getitem__(self, keys: list[tuple[int, int]]) -> dict[str, Any]:
        seeds = [int(np.random.default_rng((self.seed, draw, 1)).integers(2**62)) for _, draw in keys]
        return {**self.dataset[keys], "seeds": seeds}


def held_back_keys(dataset: Dataset, count: int) -> list[tuple[int, int]]:
    """Keys of samples that are the same in every sheet, with draws far beyond those that training reaches."""
    return [(n % len(dataset), 2**40 + n) for n in range(count)]  # type: ignore[arg-type]
