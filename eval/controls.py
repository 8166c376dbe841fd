"""Controls of the tabletop suite: what the scores of the same clips come to where nothing should fit.

Prompts dealt to other clips tell what is right by chance. Sounds moved around the clip tell how often a sound is in
time by chance. And with the sound moved by a known time the measured offset must follow, with a slope of 1.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .impacts import SHIFTS_S
from .tabletop import Observation, compare

NO_WIDTH = 1e-6
"""Two slopes that differ by less differ by rounding."""


def shuffled_prompts(observed: Sequence[Observation], asked: Sequence[dict], rounds: int = 10) -> list[dict]:
    """Control: every clip compared with other clips' prompts. What stays right is right by chance."""
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(rounds if len(asked) > 1 else 0):
        turn = int(rng.integers(1, len(asked)))
        order = rng.permutation(len(asked))  # a random cycle: no clip keeps its own prompt
        for index, clip in enumerate(order):
            scores.append(compare(observed[clip], asked[order[(index + turn) % len(asked)]]))
    return scores


def moved_sounds(observed: Sequence[Observation], asked: Sequence[dict], steps: int = 7) -> list[dict]:
    """Control: every clip with its own sound moved around the clip by an eighth of its length, two eighths, …"""
    scores = []
    for step in range(1, steps + 1):
        for clip, attributes in zip(observed, asked, strict=True):
            moved = np.sort((clip.heard_s + clip.duration_s * step / (steps + 1)) % clip.duration_s)
            scores.append(compare(replace(clip, heard_s=moved), attributes))
    return scores


def follow(observed: Sequence[Observation], resamples: int = 2000) -> dict | None:
    """By how much the measured offset changes with the time that the sound is moved by.

    Returns:
        slope: of the change over the shift, through the origin, by least absolute deviations: where a pattern of sounds
            fits in two places, the offset may jump from one to the other, which within_20_ms counts; low, high: 95 %
            bootstrap over clips, None for one clip, and where it has no width: a median of which more than half follow
            exactly says nothing of the rest; within_20_ms: share of shifts followed so closely; n: shifts measured;
            clips; lost: shifts after which nothing was near enough to measure. None if no clip has an impact and a
            sound.
    """
    rows = [clip.shifted_s for clip in observed if len(clip.shifted_s) > 1 and clip.shifted_s[0] is not None]
    if not rows:
        return None
    shifts = np.array(SHIFTS_S)
    changes = np.array([[np.nan if value is None else value - row[0] for value in row[1:]] for row in rows])  # type: ignore[operator]
    there = ~np.isnan(changes)
    if not there.any():
        return None
    slopes, weights = np.where(there, changes / shifts, 0.0), there * np.abs(shifts)
    low = high = None
    if len(rows) > 1:
        drawn = np.random.default_rng(0).integers(len(rows), size=(resamples, len(rows)))
        estimates = _weighted_medians(slopes[drawn].reshape(resamples, -1), weights[drawn].reshape(resamples, -1))
        low, high = (float(value) for value in np.quantile(estimates, (0.025, 0.975)))
        if high - low < NO_WIDTH:
            low = high = None
    return {
        "slope": float(_weighted_medians(slopes.reshape(1, -1), weights.reshape(1, -1))[0]),
        "low": low,
        "high": high,
        "within_20_ms": float((np.abs(changes - shifts) <= 0.02)[there].mean()),
        "n": int(there.sum()),
        "clips": len(rows),
        "lost": int((~there).sum()),
    }


def _weighted_medians(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,) of rows (R, N): for slopes y / x with weights abs(x) the least absolute deviations' slope of y over x."""
    order = np.argsort(values, axis=1)
    ranked, heavy = np.take_along_axis(values, order, 1), np.take_along_axis(weights, order, 1).cumsum(1)
    middle = (heavy >= heavy[:, -1:] / 2).argmax(1)
    return ranked[np.arange(len(ranked)), middle]
