"""Distances between sets, on distributions whose distance is known."""

import numpy as np
import pytest

from eval.distances import Features, frechet_distance, kernel_distance, split_floor
from vidgen.errors import InputError


def features(values, extractor="net", preprocessing="as is"):
    return Features(np.asarray(values), extractor, preprocessing)


def exactly(mean, covariance, num=50, seed=0):
    """Rows whose sample mean and covariance are exactly the given ones."""
    rows = np.random.default_rng(seed).normal(size=(num, len(mean)))
    rows -= rows.mean(0)
    rows = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T))).T
    return features(rows @ np.linalg.cholesky(covariance).T + mean)


def test_frechet_distance_of_gaussians_that_commute():
    # Diagonal covariances: |m1 - m2|² + sum (s1 - s2)².
    first = exactly(np.zeros(3), np.diag([1.0, 4.0, 9.0]), 50)
    second = exactly(np.array([1.0, 0.0, 2.0]), np.diag([4.0, 4.0, 1.0]), 70, seed=1)
    distance = frechet_distance(first, second)
    assert distance.value == pytest.approx(5 + 1 + 0 + 4, abs=1e-9)
    assert (distance.num_first, distance.num_second) == (50, 70)
    assert "n = 50, 70" in str(distance)
    assert frechet_distance(first, first).value == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_gaussians_that_do_not_commute():
    first_covariance = np.array([[2.0, 1.0], [1.0, 3.0]])
    second_covariance = np.array([[1.0, -0.5], [-0.5, 2.0]])
    # For 2×2 the trace of the root is sqrt(tr + 2 sqrt(det)) of the product.
    product = first_covariance @ second_covariance
    root_trace = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    wanted = np.trace(first_covariance + second_covariance) - 2 * root_trace
    distance = frechet_distance(exactly(np.zeros(2), first_covariance), exactly(np.zeros(2), second_covariance))
    assert distance.value == pytest.approx(wanted, abs=1e-9)


def test_frechet_distance_warns_of_fewer_clips_than_dimensions_and_is_biased_there():
    rng = np.random.default_rng(0)
    few = [features(rng.normal(size=(20, 100))) for _ in range(2)]
    with pytest.warns(UserWarning, match="20 clips in 100 dimensions"):
        biased = frechet_distance(*few).value
    many = [features(rng.normal(size=(2000, 100))) for _ in range(2)]
    assert biased > 50
    assert frechet_distance(*many).value < 10


def test_kernel_distance_is_the_sum_over_pairs():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(7, 5)), rng.normal(0.5, 2, size=(9, 5))

    def kernel(x, y):
        return (np.dot(x, y) / 5 + 1) ** 3

    wanted = sum(kernel(a, b) for i, a in enumerate(first) for j, b in enumerate(first) if i != j) / (7 * 6)
    wanted += sum(kernel(a, b) for i, a in enumerate(second) for j, b in enumerate(second) if i != j) / (9 * 8)
    wanted -= 2 * sum(kernel(a, b) for a in first for b in second) / 63
    assert kernel_distance(features(first), features(second)).value == pytest.approx(wanted, rel=1e-12)


def test_the_gaussian_kernel_has_the_median_distance_as_its_width_whatever_the_scale():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(7, 5)), rng.normal(0, 2, size=(9, 5))
    apart = [np.linalg.norm(a - b) for i, a in enumerate(first) for b in first[:i]]

    def kernel(x, y):
        return np.exp(-(np.linalg.norm(x - y) ** 2) / (2 * np.median(apart) ** 2))

    wanted = sum(kernel(a, b) for i, a in enumerate(first) for j, b in enumerate(first) if i != j) / (7 * 6)
    wanted += sum(kernel(a, b) for i, a in enumerate(second) for j, b in enumerate(second) if i != j) / (9 * 8)
    wanted -= 2 * sum(kernel(a, b) for a in first for b in second) / 63
    for scale in (1, 1e-4):
        distance = kernel_distance(features(scale * first), features(scale * second), gaussian=True)
        assert distance.value == pytest.approx(wanted, rel=1e-9)
    with pytest.raises(InputError, match="same features"):
        kernel_distance(features(np.ones((5, 3))), features(second[:, :3]), gaussian=True)


def test_kernel_distance_is_unbiased_at_small_n():
    rng = np.random.default_rng(0)
    draws = [
        kernel_distance(features(rng.normal(size=(8, 4))), features(rng.normal(size=(8, 4)))).value for _ in range(2000)
    ]
    standard_error = np.std(draws) / np.sqrt(len(draws))
    assert abs(np.mean(draws)) < 4 * standard_error
    # Counting a clip's kernel with itself would add about E[(|x|²/d + 1)³ - E k] / 8 a side.
    assert standard_error < 0.1


def test_kernel_interval_is_as_wide_as_the_spread_over_other_samples():
    rng = np.random.default_rng(0)

    def draw():
        return features(rng.normal(size=(60, 3))), features(rng.normal(0.7, 1, size=(60, 3)))

    spread = np.std([kernel_distance(*draw()).value for _ in range(200)])
    widths = []
    for _ in range(20):
        low, high = kernel_distance(*draw(), half_samples=200).interval
        widths.append((high - low) / (2 * 1.96))
    assert np.mean(widths) == pytest.approx(spread, rel=0.3)
    same = draw()
    assert kernel_distance(*same, half_samples=20, seed=3) == kernel_distance(*same, half_samples=20, seed=3)


def test_the_floor_is_near_zero_for_the_kernel_and_is_the_bias_for_frechet():
    rng = np.random.default_rng(0)
    values = features(rng.normal(size=(400, 50)))
    floor = split_floor(values, frechet_distance)
    assert floor.num_first == 200
    assert floor.value == pytest.approx(
        frechet_distance(features(rng.normal(size=(200, 50))), features(rng.normal(size=(200, 50)))).value, rel=0.3
    )
    assert abs(split_floor(values, kernel_distance).value) < 0.02


@pytest.mark.parametrize("bad", [np.full((4, 3), np.nan), np.zeros((1, 3)), np.zeros((0, 3)), np.zeros(5)])
def test_unusable_features_are_refused(bad):
    with pytest.raises(InputError):
        features(bad)


def test_what_was_made_differently_is_not_compared():
    values = np.random.default_rng(0).normal(size=(8, 3))
    for other in (
        features(values, extractor="another net"),
        features(values, preprocessing="resized"),
        features(values[:, :2]),
    ):
        for measure in (frechet_distance, kernel_distance):
            with pytest.raises(InputError, match=r"different|dimensions"):
                measure(features(values), other)
    with pytest.raises(InputError, match="four clips"):
        kernel_distance(features(values[:3]), features(values), half_samples=10)
    with pytest.raises(InputError, match="halves"):
        split_floor(features(values[:3]), kernel_distance)
