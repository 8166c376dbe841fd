"""Means with 95 % intervals over other prompts of the same kind, and differences of two models on the same prompts.

Clips of one prompt resemble one another, so prompts are what a bootstrap draws, with all their clips (the cluster
bootstrap; Efron's percentile interval).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean (or a difference of means) with its 95 % interval, None for fewer than two prompts."""

    value: float
    low: float | None
    high: float | None
    n: int
    """Clips behind it; of a difference, those of the first model."""
    prompts: int


def clustered_mean(
    values: Sequence[float | None], prompts: Sequence[Hashable], resamples: int = RESAMPLES, seed: int = 0
) -> Estimate | None:
    """Mean over clips; None where no clip has a value (a value of None is no value)."""
    sums, counts = _totals(values, prompts)
    keys = list(sums)
    if not keys:
        return None
    total, number = np.array([sums[key] for key in keys]), np.array([counts[key] for key in keys])
    low = high = None
    if len(keys) > 1:
        drawn = _draws(len(keys), resamples, seed)
        low, high = _interval((drawn @ total) / (drawn @ number))
    return Estimate(float(total.sum() / number.sum()), low, high, int(number.sum()), len(keys))


def paired_difference(
    first: tuple[Sequence[float | None], Sequence[Hashable]],
    second: tuple[Sequence[float | None], Sequence[Hashable]],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate | None:
    """Second mean minus first, over the prompts for which both have a value; each draw takes the same prompts of both.

    Args:
        first, second: values and the prompts of these.
    """
    (first_sums, first_counts), (second_sums, second_counts) = _totals(*first), _totals(*second)
    keys = [key for key in first_sums if key in second_sums]
    if not keys:
        return None
    sums = [np.array([side[key] for key in keys]) for side in (first_sums, second_sums)]
    counts = [np.array([side[key] for key in keys]) for side in (first_counts, second_counts)]
    means = [total.sum() / number.sum() for total, number in zip(sums, counts, strict=True)]
    low = high = None
    if len(keys) > 1:
        drawn = _draws(len(keys), resamples, seed)
        spread = [(drawn @ total) / (drawn @ number) for total, number in zip(sums, counts, strict=True)]
        low, high = _interval(spread[1] - spread[0])
    return Estimate(float(means[1] - means[0]), low, high, int(counts[0].sum()), len(keys))


def _totals(
    values: Sequence[float | None], prompts: Sequence[Hashable]
) -> tuple[dict[Hashable, float], dict[Hashable, int]]:
    sums: dict[Hashable, float] = {}
    counts: dict[Hashable, int] = {}
    for value, prompt in zip(values, prompts, strict=True):
        if value is not None:
            sums[prompt] = sums.get(prompt, 0.0) + value
            counts[prompt] = counts.get(prompt, 0) + 1
    return sums, counts


def _draws(clusters: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, clusters): how often each cluster is drawn."""
    return np.random.default_rng(seed).multinomial(clusters, np.full(clusters, 1 / clusters), size=resamples)


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
