"""Impacts seen and heard: which of them can be asked for, how well they are told, and the offset of the two.

Two blows can follow each other so fast that they are one event to the eye or to the ear, and a blow can be drowned by
what still sounds. So the truth about a clip is a list of groups of moments, each to be found once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vidgen.audio_sync.onsets import match_onsets
from vidgen.tabletop.scene import Look, Trajectory
from vidgen.tabletop.sound import synthesise

from .networks import FRAME_RATE_HZ
from .verifier_data import blows, visible_impacts_s

FRAME_S = 1 / FRAME_RATE_HZ
SEEN_APART_S = 2 * FRAME_S
"""Blows nearer than this to the one before are one event in the picture: no frame between them shows the rebound."""
HEARD_APART_S = 0.05
"""... and in the sound: the least separation that ``onset_times_s`` keeps."""
HEARD_WITHIN_S = 0.005
LOUDNESS_S = 0.010
"""A blow is audible if it is louder, over this time, than what sounds anyway."""
SHIFTS_S = (-0.16, -0.08, -0.04, 0.04, 0.08, 0.16)
"""By how much sounds are moved to see whether the offset follows."""
REACH_S = 1.0
"""How far off a pattern of sounds is looked for: half a clip, so that a sound moved by ``SHIFTS_S`` is still found."""
PAIR_WITHIN_S = 0.045
"""ITU-R BT.1359: what is out of step by less is not noticed."""


@dataclass(frozen=True)
class Tally:
    """How well events were told. Add two by ``+``."""

    asked: int = 0
    found: int = 0
    """Groups of which a moment was told within the tolerance."""
    told: int = 0
    true: int = 0
    """Told moments with a blow, of whatever strength, within the tolerance."""
    errors_s: tuple[float, ...] = ()
    """For each group the distance of the nearest told moment from the nearest of its blows; none where none was told.
    """

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.asked + other.asked, self.found + other.found, self.told + other.told, self.true + other.true,
            self.errors_s + other.errors_s,
        )  # fmt: skip


def grouped(moments_s: Sequence[float], apart_s: float) -> list[list[float]]:
    """Ascending moments in groups, each moment less than ``apart_s`` after the one before it in its group."""
    groups: list[list[float]] = []
    for moment in sorted(moments_s):
        if groups and moment - groups[-1][-1] < apart_s:
            groups[-1].append(moment)
        else:
            groups.append([moment])
    return groups


def visible_groups(trajectory: Trajectory, look: Look, start_s: float, duration_s: float) -> list[list[float]]:
    """Blows to be seen in a stretch of a scene, in seconds from its start; see ``verifier_data.visible_impacts_s``.

    A group is of blows that change a body's speed enough, and counts if one of them can be seen and the stretch holds
    a step from frame to frame before and one after that one.
    """
    visible = [moment - start_s for moment in visible_impacts_s(trajectory, look)]
    strong = [
        contact.time_s - start_s for contact in trajectory.contacts if max(blows(trajectory, contact).values()) >= 1
    ]
    last_s = duration_s - FRAME_S  # when the last frame is shown
    asked = {moment for moment in visible if FRAME_S <= moment <= last_s - FRAME_S}
    groups = grouped([moment for moment in strong if 0 <= moment < duration_s], SEEN_APART_S)
    return [group for group in groups if asked.intersection(group)]


def audible_groups(
    trajectory: Trajectory, start_s: float, duration_s: float, seed: int, sample_rate_hz: int = 24000
) -> list[list[float]]:
    """Blows to be heard in a stretch of a scene, in seconds from its start.

    A group counts if one of its blows alone is louder in its first 10 ms than all that sounds there without it: the
    scene is synthesised with and without each blow, nothing after it having happened. Blows in the first and last
    ``LOUDNESS_S`` are left out, as ``onset_times_s`` leaves them out.

    Args:
        seed: of the sound, as ``synthesise`` takes it.
    """
    contacts = sorted(trajectory.contacts, key=lambda contact: contact.time_s)
    length = round(duration_s * sample_rate_hz)
    loud: dict[float, bool] = {}
    without = None
    for index, contact in enumerate(contacts):
        moment = contact.time_s - start_s
        if moment >= duration_s:
            break
        sounds: list[np.ndarray] = [without] if without is not None else []
        for known in range(index + len(sounds), index + 2):
            part = replace(trajectory, contacts=tuple(contacts[:known]))
            sounds.append(
                synthesise(part, num_samples=length, sample_rate_hz=sample_rate_hz, start_s=start_s, seed=seed)
            )
        begin = round(moment * sample_rate_hz)
        stretch = slice(max(0, begin), begin + round(LOUDNESS_S * sample_rate_hz))
        alone, other = sounds[1][stretch] - sounds[0][stretch], sounds[0][stretch]
        if LOUDNESS_S <= moment < duration_s - LOUDNESS_S:
            loud[moment] = loud.get(moment, False) or bool(np.square(alone).sum() > np.square(other).sum())
        without = sounds[1]
    return [group for group in grouped(list(loud), HEARD_APART_S) if any(loud[moment] for moment in group)]


def tally(groups: Sequence[Sequence[float]], blows_s: Sequence[float], told_s: np.ndarray, tolerance_s: float) -> Tally:
    """What of ``groups`` was told in ``told_s`` (K,), and what of that is true, given all blows there are."""
    errors = [min(float(np.abs(told_s - moment).min()) for moment in group) for group in groups] if len(told_s) else []
    true = sum(bool(len(blows_s)) and np.abs(np.asarray(blows_s) - told).min() <= tolerance_s for told in told_s)
    return Tally(len(groups), sum(e <= tolerance_s for e in errors), len(told_s), int(true), tuple(errors))


def shifted(waveform: np.ndarray, samples: int) -> np.ndarray:
    """A waveform (…, N) moved to later by so many samples (to earlier if negative), with silence before or after it."""
    moved = np.zeros_like(waveform)
    if abs(samples) < waveform.shape[-1]:
        if samples >= 0:
            moved[..., samples:] = waveform[..., : waveform.shape[-1] - samples]
        else:
            moved[..., :samples] = waveform[..., -samples:]
    return moved


def onset_levels(waveform: np.ndarray, sample_rate_hz: int, heard_s: np.ndarray) -> np.ndarray:
    """(K,) root mean square of a waveform (N,) or (C, N) over the 20 ms after each of the onsets (K,)."""
    signal = np.atleast_2d(np.asarray(waveform, np.float64)).mean(0)
    starts = np.round(np.asarray(heard_s) * sample_rate_hz).astype(int)
    stretches = [signal[start : start + round(0.02 * sample_rate_hz)] for start in starts]
    return np.array([np.sqrt(np.mean(np.square(part))) if len(part) else 0.0 for part in stretches])


def pattern_offset_s(
    seen_s: np.ndarray, heard_s: np.ndarray, levels: np.ndarray | None = None, reach_s: float = REACH_S
) -> float | None:
    """By how much the sounds are late as a whole: the shift under which the two lists of moments fit best.

    Unlike the distance to the nearest sound it follows a sound that has been moved past the next impact. Among the
    shifts up to ``reach_s`` that bring some pair together it is the one whose pairs (one to one, within 45 ms) are the
    most, a loud sound counting more than a faint one, and the closest; then the median over those pairs.

    Args:
        levels: (K,) loudness of the sounds, in any unit; None: all alike.

    Returns:
        Seconds, positive where sound is late; None where there is no impact, no sound, or none within reach.
    """
    seen, heard = np.sort(np.asarray(seen_s, float)), np.asarray(heard_s, float)
    if not len(seen) or not len(heard):
        return None
    order = np.argsort(heard)
    heard = heard[order]
    weights = np.ones(len(heard)) if levels is None else np.sqrt(np.asarray(levels, float)[order])
    weights = weights / max(weights.max(), 1e-12)
    shifts = np.subtract.outer(heard, seen).ravel()
    best, offset = 0.0, None
    for shift in shifts[np.abs(shifts) <= reach_s]:
        match = match_onsets(seen + shift, heard, PAIR_WITHIN_S)
        unmatched = np.isin(heard, match.surplus_s)
        score = weights[~unmatched].sum() - 0.5 * np.abs(match.offsets_s).sum() / PAIR_WITHIN_S - 1e-3 * abs(shift)
        if score > best:
            best, offset = score, float(shift + np.median(match.offsets_s))
    return offset
