"""How far two sets of clips lie apart in a feature space: kernel distance first, Fréchet distance with its n.

The Fréchet distance between two samples of the *same* distribution is far from zero (some hundreds in 400 dimensions at
n = 32) and falls with n; the kernel distance is unbiased at any n. So no value travels without the number of clips, and
features of different extractors or preprocessing are not compared.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vidgen.errors import InputError

BLOCK_ROWS = 1024


@dataclass(frozen=True)
class Features:
    """``values`` (n, d) float64, a row a clip (or frame), and what they were computed with.

    Raises:
        InputError: fewer than two rows, or values that are not finite.
    """

    values: np.ndarray
    extractor: str
    """Name and checksum of the network."""
    preprocessing: str

    def __post_init__(self) -> None:
        values = np.asarray(self.values, np.float64)
        if values.ndim != 2 or len(values) < 2 or not values.shape[1]:
            raise InputError(f"a distance needs two clips or more on each side, as features (n, d), not {values.shape}")
        bad = int((~np.isfinite(values)).any(1).sum())
        if bad:
            raise InputError(f"the features of {bad} of {len(values)} clips hold values that are not finite numbers")
        object.__setattr__(self, "values", values)

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, chosen: np.ndarray) -> "Features":
        """Some of the clips, by index."""
        return Features(self.values[chosen], self.extractor, self.preprocessing)


@dataclass(frozen=True)
class Distance:
    """A distance, and the numbers of clips without which it says nothing."""

    name: str
    value: float
    num_first: int
    num_second: int
    interval: tuple[float, float] | None = None
    """95 %, over other clips of the same two kinds."""

    def __str__(self) -> str:
        spread = "" if self.interval is None else " [{:.4g}, {:.4g}]".format(*self.interval)
        return f"{self.name} {self.value:.4g}{spread} (n = {self.num_first}, {self.num_second})"


def frechet_distance(first: Features, second: Features) -> Distance:
    """Squared Fréchet distance of the Gaussians with the samples' means and covariances (Heusel et al. 2017, eq. 6).

    With A'A and B'B the covariances, tr sqrt(A'A B'B) is the sum of the singular values of AB': no root of a matrix
    that may be singular is needed.

    Raises:
        InputError: the two differ in extractor, preprocessing or dimensions.

    Warns:
        fewer clips than dimensions on a side: the bias then exceeds most differences that one would want to see.
    """
    _check_comparable(first, second)
    dimensions = first.values.shape[1]
    fewest = min(len(first), len(second))
    if fewest < dimensions:
        warnings.warn(
            f"the Fréchet distance of {fewest} clips in {dimensions} dimensions is mostly bias; use a kernel one",
            stacklevel=2,
        )
    means = [side.values.mean(0) for side in (first, second)]
    roots: list[np.ndarray] = [
        np.asarray(np.linalg.qr((side.values - mean) / np.sqrt(len(side) - 1), mode="r"))
        for side, mean in zip((first, second), means, strict=True)
    ]
    cross = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    spread = sum(np.square(root).sum() for root in roots)
    value = float(np.square(means[0] - means[1]).sum() + spread - 2 * cross)
    return Distance("Fréchet distance", max(value, 0.0), len(first), len(second))


def kernel_distance(
    first: Features, second: Features, half_samples: int = 0, seed: int = 0, gaussian: bool = False
) -> Distance:
    """Squared maximum mean discrepancy, unbiased, with the kernel (x·y / d + 1)³ (KID: Bińkowski et al. 2018, eq. 4).

    It may be slightly negative when the two are alike.

    Args:
        gaussian: take exp(-|x - y|² / 2b²) instead, b the median distance between rows of ``first``, as KAD does
            (Chung et al. 2025, arXiv 2502.15602): it does not depend on the scale of the features, where the
            polynomial compares nothing but means if they are small.
        half_samples: if positive, so many random halves of each side give a 95 % interval. The spread of halves drawn
            without replacement estimates that of the whole (a bootstrap would draw a clip twice, and a clip is too
            much like itself).

    Raises:
        InputError: the two differ in extractor, preprocessing or dimensions, an interval is wanted of fewer than
            four clips, or most rows of ``first`` are the same, so that no bandwidth can be had.
    """
    _check_comparable(first, second)
    bandwidth = _median_distance(first.values) if gaussian else None
    within_first, within_second = (_kernel(side.values, side.values, bandwidth) for side in (first, second))
    across = _kernel(first.values, second.values, bandwidth)
    value = _discrepancy(within_first, within_second, across)
    interval = None
    if half_samples > 0:
        if min(len(first), len(second)) < 4:
            raise InputError("an interval of a kernel distance needs four clips or more on each side")
        rng = np.random.default_rng(seed)
        others = []
        for _ in range(half_samples):
            rows, columns = (rng.permutation(len(side))[: len(side) // 2] for side in (first, second))
            others.append(
                _discrepancy(
                    within_first[np.ix_(rows, rows)],
                    within_second[np.ix_(columns, columns)],
                    across[np.ix_(rows, columns)],
                )
            )
        low, high = np.quantile(others, (0.025, 0.975))
        interval = (float(low), float(high))
    return Distance("kernel distance", value, len(first), len(second), interval)


def split_floor(
    features: Features, measure: Callable[[Features, Features], Distance], splits: int = 10, seed: int = 0
) -> Distance:
    """What ``measure`` gives between random halves of one set, on average: no model can be told to be nearer than that.

    Mind that a half has half the clips; a Fréchet distance is to be read against a model's at the same n.

    Raises:
        InputError: fewer than four clips.
    """
    if len(features) < 4:
        raise InputError(f"{len(features)} clips cannot be split into halves of two or more")
    rng = np.random.default_rng(seed)
    half = len(features) // 2
    values, name = [], ""
    for _ in range(splits):
        order = rng.permutation(len(features))
        distance = measure(features.rows(order[:half]), features.rows(order[half : 2 * half]))
        values.append(distance.value)
        name = distance.name
    return Distance(f"{name} between halves", float(np.mean(values)), half, half)


def _check_comparable(first: Features, second: Features) -> None:
    for what in ("extractor", "preprocessing"):
        ours, theirs = getattr(first, what), getattr(second, what)
        if ours != theirs:
            raise InputError(f"features of different {what} cannot be compared: {ours!r} and {theirs!r}")
    if first.values.shape[1] != second.values.shape[1]:
        raise InputError(f"features of {first.values.shape[1]} and {second.values.shape[1]} dimensions do not compare")


def _kernel(first: np.ndarray, second: np.ndarray, bandwidth: float | None) -> np.ndarray:
    """(n, d), (m, d) -> (n, m), rows in blocks to bound what is held besides; polynomial without a bandwidth."""
    kernel = np.empty((len(first), len(second)))
    for start in range(0, len(first), BLOCK_ROWS):
        rows = first[start : start + BLOCK_ROWS]
        if bandwidth is None:
            kernel[start : start + BLOCK_ROWS] = (rows @ second.T / first.shape[1] + 1) ** 3
        else:
            kernel[start : start + BLOCK_ROWS] = np.exp(-_squared_distances(rows, second) / (2 * bandwidth**2))
    return kernel


def _squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    squares = np.square(first).sum(1)[:, None] + np.square(second).sum(1) - 2 * first @ second.T
    return np.maximum(squares, 0)


def _median_distance(values: np.ndarray) -> float:
    upper = np.triu_indices(len(values), 1)
    median = float(np.sqrt(np.median(_squared_distances(values, values)[upper])))
    if median <= 1e-9 * max(1.0, float(np.abs(values).max())):
        raise InputError("most clips of the first side have the same features: there is nothing to compare with")
    return median


def _discrepancy(within_first: np.ndarray, within_second: np.ndarray, across: np.ndarray) -> float:
    """The U-statistic: pairs of a clip with itself are left out."""
    means = [(side.sum() - np.trace(side)) / (len(side) * (len(side) - 1)) for side in (within_first, within_second)]
    return float(sum(means) - 2 * across.mean())
