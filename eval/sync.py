"""Does sound begin where the motion changes? After AV-Align (Yariv et al. 2023, arXiv 2309.16429), not equal to it.

Neither measure needs weights or knows objects. AV-Align looks for peaks of speed, but an impact *ends* a motion: here
what counts is how suddenly the flow along a point's path changes, which is great at a start, a stop and a turn alike.
``onset_sync`` pairs single moments and is strict; ``alignment`` compares a clip's sounds with the same sounds moved in
time, and so brings its own control.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vidgen.audio_sync.onsets import match_onsets, onset_times_s
from vidgen.errors import InputError
from vidgen.media import Clip

from .motion import Motion, frame_luma, optical_flow, require

STRONGEST_SHARE = 0.02
"""A change of motion is judged by the fiftieth of the picture where it is greatest: bodies are small."""
PEAK_OVER_MEAN = 3.0
"""A change is a moment of its own if it is so many times the clip's mean change."""
LAGS_S = tuple(round(0.02 * k, 2) for k in range(-24, 25))
NEAR_S = 0.08
"""Lags no greater than this are no control: a change of motion takes some frames."""


@dataclass(frozen=True)
class Alignment:
    """How much the motion changes where sounds begin, with the sounds moved by each of ``LAGS_S`` (positive: later).

    1 is the greatest change of the clip.
    """

    curve: np.ndarray
    """(len(LAGS_S),) in [0, 1]."""

    @property
    def score(self) -> float:
        """With the sounds where they are."""
        return float(self.curve[LAGS_S.index(0.0)])

    @property
    def shifted(self) -> float:
        """The control: mean over lags beyond ``NEAR_S``. Sounds that have nothing to do with the motion score so."""
        return float(self.curve[[abs(lag) > NEAR_S for lag in LAGS_S]].mean())


def motion_changes(motion: Motion) -> np.ndarray:
    """(T - 2,) pixels a frame²: entry k is the change of motion at frame k + 1, in the part of the picture that
    changes most; the flow after frame k + 1 minus the flow before it, along the path of each point."""
    cv2 = require("cv2")
    height, width = motion.luma.shape[1:]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    strongest = max(1, round(STRONGEST_SHARE * height * width))
    changes = []
    for before, after in zip(motion.forward, motion.forward[1:], strict=False):
        to_x, to_y = x + before[..., 0], y + before[..., 1]
        followed = cv2.remap(after, to_x, to_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        change = np.linalg.norm(followed - before, axis=-1).ravel()
        changes.append(np.partition(change, -strongest)[-strongest:].mean())
    return np.array(changes, np.float64)


def change_times_s(motion: Motion, frame_rate: float) -> np.ndarray:
    """Moments (K,) at which the motion changes more than before, after and most of the time, in seconds.

    What happens between two frames changes the motion at both: a moment is the centroid of the peak and its neighbours.
    """
    changes = motion_changes(motion)
    if not len(changes) or changes.max() <= 0:
        return np.zeros(0)
    around = np.concatenate([[0.0], changes, [0.0]])
    peaks = (around[1:-1] > around[:-2]) & (around[1:-1] >= around[2:]) & (changes > PEAK_OVER_MEAN * changes.mean())
    places = np.flatnonzero(peaks)
    weights = np.stack([around[places], around[places + 1], around[places + 2]])
    return (places + 1 + (weights[2] - weights[0]) / weights.sum(0)) / float(frame_rate)


def onset_sync(clip: Clip, motion: Motion | None = None) -> float | None:
    """Intersection over union of onsets heard and changes of motion seen; a pair is at most one frame apart. In [0, 1].

    AV-Align takes its onsets from librosa, its peaks from the speed, and lets every onset look for a peak by itself.
    Here onsets are those of ``onset_times_s`` and pairs are one to one, so that a burst of onsets at one peak is not
    rewarded twice.

    Args:
        motion: the clip's flow, if it has been computed.

    Returns:
        None where there is neither an onset nor a change, no sound, or fewer than three frames.

    Raises:
        InputError: the sound holds values that are not finite.
    """
    heard = _heard_s(clip)
    if heard is None:
        return None
    motion = motion or optical_flow(frame_luma(clip.frames))
    seen = change_times_s(motion, float(clip.frame_rate))
    match = match_onsets(seen, heard, 1 / float(clip.frame_rate) + 1e-9)
    union = len(match.offsets_s) + len(match.missing_s) + len(match.surplus_s)
    return len(match.offsets_s) / union if union else None


def alignment(clip: Clip, motion: Motion | None = None) -> Alignment | None:
    """How much the motion changes where sounds begin, beside the same with the sounds moved.

    Args:
        motion: the clip's flow, if it has been computed.

    Returns:
        None without an onset, without any change of motion, or with fewer than three frames.

    Raises:
        InputError: the sound holds values that are not finite.
    """
    heard = _heard_s(clip)
    if heard is None or not len(heard):
        return None
    changes = motion_changes(motion or optical_flow(frame_luma(clip.frames)))
    if not len(changes) or changes.max() <= 0:
        return None
    frame_s = 1 / float(clip.frame_rate)
    times_s = (np.arange(len(changes)) + 1) * frame_s
    moved = heard + np.array(LAGS_S)[:, None]
    # Half a frame to either side, as a moment between frames changes the motion at both; outside the clip is none.
    near = [
        np.interp(moved + reach, times_s, changes / changes.max(), left=0.0, right=0.0)
        for reach in (-frame_s / 2, 0.0, frame_s / 2)
    ]
    return Alignment(np.max(near, axis=0).mean(1))


def common_offset_s(alignments: Sequence[Alignment | None]) -> float | None:
    """By how much the sounds of many clips are late, all alike: the centre of their mean curve's summit (above half its
    height over the median), in seconds. None without any.

    One clip seldom tells it, as motion changes at other moments, too; those differ from clip to clip.
    """
    curves = [found.curve for found in alignments if found is not None]
    if not curves:
        return None
    mean = np.mean(curves, axis=0)
    top, half = int(mean.argmax()), (mean.max() + np.median(mean)) / 2
    low = high = top
    while low > 0 and mean[low - 1] > half:
        low -= 1
    while high < len(mean) - 1 and mean[high + 1] > half:
        high += 1
    return float(-np.average(LAGS_S[low : high + 1], weights=mean[low : high + 1] - half))


def _heard_s(clip: Clip) -> np.ndarray | None:
    if clip.waveform is None or not np.size(clip.waveform) or len(clip.frames) < 3:
        return None
    if not np.isfinite(clip.waveform).all():
        raise InputError("the sound holds values that are not finite numbers")
    return onset_times_s(clip.waveform, clip.sample_rate_hz)
