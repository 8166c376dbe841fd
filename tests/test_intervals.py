"""Cluster bootstrap against what is known of it."""

import numpy as np
import pytest

from eval.intervals import clustered_mean, paired_difference


def test_the_interval_is_that_of_independent_prompts_however_many_clips_each_has():
    rng = np.random.default_rng(0)
    of_prompts = rng.normal(size=100)
    alone = clustered_mean(of_prompts.tolist(), range(100))
    copied = clustered_mean(np.repeat(of_prompts, 5).tolist(), np.repeat(np.arange(100), 5).tolist())
    # Five copies say no more than one: the half width stays 1.96 s / sqrt(100).
    half = 1.96 * of_prompts.std() / 10
    for estimate in (alone, copied):
        assert estimate.value == pytest.approx(of_prompts.mean())
        assert (estimate.high - estimate.low) / 2 == pytest.approx(half, rel=0.1)
    assert (copied.n, copied.prompts) == (500, 100)
    independent = clustered_mean(np.repeat(of_prompts, 5).tolist(), range(500))
    assert independent.high - independent.low < 0.5 * (copied.high - copied.low)


def test_clips_without_a_value_are_left_out_and_counted_out():
    estimate = clustered_mean([1.0, None, 3.0, None], ["a", "a", "b", "c"])
    assert (estimate.value, estimate.n, estimate.prompts) == (2.0, 2, 2)
    assert clustered_mean([None], ["a"]) is None
    assert clustered_mean([2.0, 4.0], ["a", "a"]).low is None
    assert clustered_mean([1.0, 2.0, 5.0], "abc") == clustered_mean([1.0, 2.0, 5.0], "abc")


def test_pairs_cancel_what_the_prompts_have_in_common():
    rng = np.random.default_rng(0)
    hardness = rng.normal(0, 5, size=80)
    first, second = hardness + rng.normal(0, 0.1, 80), hardness + 0.5 + rng.normal(0, 0.1, 80)
    pair = paired_difference((first.tolist(), range(80)), (second.tolist(), range(80)))
    assert pair.value == pytest.approx(float(np.mean(second - first)))
    assert pair.high - pair.low == pytest.approx(2 * 1.96 * np.std(second - first) / np.sqrt(80), rel=0.15)
    assert 0.4 < pair.low < pair.high < 0.6


def test_prompts_of_one_side_are_no_pairs():
    pair = paired_difference(([1.0, 2.0, None], "abc"), ([5.0, 7.0, 9.0], "bdc"))
    assert (pair.value, pair.prompts, pair.low) == (3.0, 1, None)
    assert paired_difference(([1.0], "a"), ([1.0], "b")) is None
