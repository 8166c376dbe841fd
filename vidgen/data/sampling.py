"""Which clip comes when: endless shuffled batches that depend on the seed and the position alone.

A dataset of this project takes a batch of keys ``(index, draw)`` and returns a whole batch; ``draw`` counts samples
from the start of training, so everything random about a sample follows from (seed, draw). Resuming is starting at a
later batch, and two processes see exactly the samples that one process with twice the batch would see, unless each
reads shards of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from ..noise import seeded_uniform

STEPS_AT_ONCE = 1024
"""Batches whose choices are drawn together."""
EVEN_SHARE = 0.8
"""What a process must hold of each kind of clip, against that which holds most, for shards of its own."""


@dataclass(frozen=True)
class Layout:
    """What the clips of a dataset have to do with one another, as a number for each of N clips.

    Clips of one group have one shape and may share a batch. Those of one source are drawn as often as its weight says,
    all together. Those of one shard lie in one file, which one process should read.
    """

    groups: np.ndarray
    sources: np.ndarray
    shards: np.ndarray
    weights: tuple[float, ...] | None = None
    """Of the sources; None draws every clip as often as any other."""

    @classmethod
    def plain(cls, length: int) -> "Layout":
        """One group, source and shard."""
        zeros = np.zeros(length, np.int64)
        return cls(zeros, zeros, zeros)

    @classmethod
    def of(cls, dataset: Any) -> "Layout":
        """That of a dataset that has one, else the plain one."""
        return getattr(dataset, "layout", None) or cls.plain(len(dataset))


class KeyedBatches(Sampler[list[tuple[int, int]]]):
    """Yield lists of ``batch_size`` keys for one of ``world_size`` processes, without end.

    Every clip comes once an epoch, in an order drawn anew for each epoch; batches run across epoch borders. With a
    layout of several groups or sources, each batch is of one group, the same in all processes, drawn as often as its
    clips are; each sample's source is drawn by its weight; and the clips of one group and source have epochs of
    their own. Each process draws from its own shards only, where these share out the clips of every group and source
    about evenly (``EVEN_SHARE``); else all draw from everything, as otherwise clips of short shards would come more
    often than others.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        start_batch: int = 0,
        rank: int = 0,
        world_size: int = 1,
        layout: Layout | None = None,
    ) -> None:
        if length < 1:
            raise ValueError("there are no clips to draw from")
        self.batch_size, self.seed = batch_size, seed
        self.start_batch, self.rank, self.world_size = start_batch, rank, world_size
        layout = layout or Layout.plain(length)
        pairs, cell_of = np.unique(np.stack([layout.groups, layout.sources], axis=1), axis=0, return_inverse=True)
        cell_of = cell_of.ravel()
        rank_of = np.unique(layout.shards, return_inverse=True)[1].ravel() % world_size
        held = np.bincount(rank_of * len(pairs) + cell_of, minlength=world_size * len(pairs)).reshape(world_size, -1)
        self.has_own_shards = world_size > 1 and bool((held.min(0) >= EVEN_SHARE * held.max(0)).all())
        own = rank_of == rank if self.has_own_shards else np.ones(length, bool)
        in_source = np.bincount(layout.sources)
        weights = in_source if layout.weights is None else np.array(layout.weights)
        self.cells: list[np.ndarray] = []
        """Indices of the clips of one group and source, of this process only."""
        self.group_of_cell: list[int] = []
        shares = []
        for cell, (group, source) in enumerate(pairs):
            self.cells.append(np.flatnonzero((cell_of == cell) & own))
            self.group_of_cell.append(int(group))
            shares.append(weights[source] * held[:, cell].sum() / in_source[source])
        self.shares = np.array(shares, float)
        self.base = int(np.random.default_rng((seed, 2)).integers(2**61))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        counts = np.zeros(len(self.cells), np.int64)
        for start in range(0, self.start_batch, STEPS_AT_ONCE):
            chosen = self._choose(start, min(STEPS_AT_ONCE, self.start_batch - start))
            counts += np.bincount(chosen.ravel(), minlength=len(counts))
        orders: dict[int, tuple[int, np.ndarray]] = {}
        step = self.start_batch
        # A process with its own shards counts only its own samples; else all count everybody's and take their part.
        first = 0 if self.has_own_shards else self.rank * self.batch_size
        while True:
            for cells in self._choose(step, STEPS_AT_ONCE):
                draw = (step * self.world_size + self.rank) * self.batch_size - first
                keys = []
                for place, cell in enumerate(cells):
                    members = self.cells[cell]
                    epoch, turn = divmod(int(counts[cell]), len(members))
                    counts[cell] += 1
                    if not first <= place < first + self.batch_size:
                        continue
                    if orders.get(cell, (-1,))[0] != epoch:
                        seeds = (self.seed, epoch, int(cell)) if cell else (self.seed, epoch)
                        orders[cell] = (epoch, np.random.default_rng(seeds).permutation(members))
                    keys.append((int(orders[cell][1][turn]), draw + place))
                yield keys
                step += 1

    def _choose(self, start: int, steps: int) -> np.ndarray:
        """The cell of each sample (steps, samples) of some steps."""
        samples = self.batch_size * (1 if self.has_own_shards else self.world_size)
        if len(self.cells) == 1:
            return np.zeros((steps, samples), np.int64)
        groups = np.unique(self.group_of_cell)
        member = np.array(self.group_of_cell)[None] == groups[:, None]  # (groups, cells)
        # The group is the same in all processes.
        steps_drawn = self.base + np.arange(start, start + steps)
        group = _pick(member @ self.shares, seeded_uniform(steps_drawn.tolist(), 1, stream=1)[0][:, 0].numpy())
        first_draws = np.arange(start, start + steps) * self.world_size * self.batch_size
        if self.has_own_shards:
            first_draws += self.rank * self.batch_size
        draws = self.base + first_draws[:, None] + np.arange(samples)
        places = seeded_uniform(draws.ravel().tolist(), 1, stream=2)[0].numpy().reshape(draws.shape)
        chosen = np.zeros(draws.shape, np.int64)
        for number in range(len(groups)):
            rows = group == number
            chosen[rows] = _pick(member[number] * self.shares, places[rows])
        return chosen


def _pick(weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Indices, drawn by weight."""
    edges = np.cumsum(weights)
    picked = np.searchsorted(edges, uniform * edges[-1], side="right")
    return np.minimum(picked, np.flatnonzero(weights)[-1])


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
