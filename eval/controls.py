"""Controls of the tabletop suite: what the scores of the same clips come to where nothing should fit.

Prompts dealt to other clips tell what is right by chance. Sounds moved around the clip tell how often a sound is in
time by chance. And with the sound moved by a known time the measured offset must follow, with a slope of 1.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .impacts import SHIFTS_S
from .tabletop import Observation, compare


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
        slope: of the change over the shift, by least squares through the origin, with low, high (95 % bootstrap over
            clips; None for one clip); within_20_ms: share of shifts followed so closely; n: shifts measured; clips;
            lost: shifts after which nothing was near enough to measure. None if no clip has an impact and a sound.
    """
    rows = [clip.shifted_s for clip in observed if len(clip.shifted_s) > 1 and clip.shifted_s[0] is not None]
    if not rows:
        return None
    shifts = np.array(SHIFTS_S)
    changes = np.array([[np.nan if value is None else value - row[0] for value in row[1:]] for row in rows])  # type: ignore[operator]
    there = ~np.isnan(changes)
    if not there.any():
        return None
    products = np.where(there, changes * shifts, 0.0).sum(1)
    squares = np.where(there, shifts**2, 0.0).sum(1)
    low = high = None
    if len(rows) > 1:
        drawn = np.random.default_rng(0).integers(len(rows), size=(resamples, len(rows)))
        slopes = products[drawn].sum(1) / np.maximum(squares[drawn].sum(1), 1e-12)
        low, high = (float(value) for value in np.quantile(slopes, (0.025, 0.975)))
    return {
        "slope": float(products.sum() / squares.sum()),
        "low": low,
        "high": high,
        "within_20_ms": float((np.abs(changes - shifts) <= 0.02)[there].mean()),
        "n": int(there.sum()),
        "clips": len(rows),
        "lost": int((~there).sum()),
    }
