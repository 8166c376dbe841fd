"""Does sound begin where the motion changes? After AV-Align (Yariv et al. 2023, arXiv 2309.16429), not equal to it.

Neither measure needs weights or knows objects. AV-Align looks for peaks of speed, but an impact *ends* a motion: here
what counts is how suddenly the flow along a point's path changes, which is great at a start, a stop and a turn alike.
``onset_sync`` pairs single moments and is strict; ``alignment`` compares a clip's sounds with the same sounds moved in
time, and so brings its own control. Both, and by how much the sounds of a folder's clips are late, all alike:

    python -m eval.sync CLIPS
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vidgen.audio_sync.onsets import match_onsets, onset_times_s
from vidgen.cli import run
from vidgen.errors import InputError
from vidgen.media import Clip, read_clip

from .motion import Motion, frame_luma, optical_flow, require

STRONGEST_SHARE = 0.02
"""A change of motion is judged by the fiftieth of the picture where it is greatest: bodies are small."""
PEAK_OVER_MEAN = 3.0
"""A change is a moment of its own if it is so many times the clip's mean change."""
LAGS_S = tuple(round(0.02 * k, 2) for k in range(-24, 25))
SHOWN_SHIFTS_S = (0.0, -0.32, -0.16, -0.08, 0.08, 0.16, 0.32)
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


def change_times_s(changes: np.ndarray, frame_rate: float) -> np.ndarray:
    """Moments (K,) at which the motion changes more than before, after and most of the time, in seconds.

    Args:
        changes: as ``motion_changes`` returns them.

    What happens between two frames changes the motion at both: a moment is the centroid of the peak and its neighbours.
    """
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
    changes = motion_changes(motion or optical_flow(frame_luma(clip.frames)))
    return _shared(change_times_s(changes, float(clip.frame_rate)), heard, float(clip.frame_rate))


def _shared(seen: np.ndarray, heard: np.ndarray, frame_rate: float) -> float | None:
    match = match_onsets(seen, heard, 1 / frame_rate + 1e-9)
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
    return _aligned(motion_changes(motion or optical_flow(frame_luma(clip.frames))), heard, float(clip.frame_rate))


def _aligned(changes: np.ndarray, heard: np.ndarray, frame_rate: float) -> Alignment | None:
    if not len(changes) or changes.max() <= 0 or not len(heard):
        return None
    frame_s = 1 / frame_rate
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


def folder_table(files: Sequence[Path]) -> str:
    """For a terminal: both measures of all clips, as they are and with their sounds moved, and the common offset.

    Raises:
        InputError: no clip has both a sound that begins and a motion that changes.
    """
    readings: list[tuple[np.ndarray, np.ndarray, float]] = []
    for path in tqdm(files, desc="looked at and listened to", unit="clip", disable=None):
        clip = read_clip(path)
        heard = _heard_s(clip)
        if heard is not None:
            changes = motion_changes(optical_flow(frame_luma(clip.frames)))
            readings.append((changes, heard, float(clip.frame_rate)))
    lines = [f"{'sounds moved by':>16}{'onset sync':>12}{'n':>5}{'alignment':>11}{'n':>5}"]
    true: list[Alignment] = []
    for shift_s in SHOWN_SHIFTS_S:
        pairs = [_shared(change_times_s(changes, rate), heard + shift_s, rate) for changes, heard, rate in readings]
        shares = [pair for pair in pairs if pair is not None]
        found = [_aligned(changes, heard + shift_s, rate) for changes, heard, rate in readings]
        known = [each for each in found if each is not None]
        if not known:
            raise InputError(f"none of {len(files)} clips has both a sound that begins and a motion that changes")
        true = true or known
        share, score = np.mean(shares), np.mean([each.score for each in known])
        lines.append(f"{1000 * shift_s:13.0f} ms{share:12.3f}{len(shares):5}{score:11.3f}{len(known):5}")
    better = np.mean([each.score > each.shifted for each in true])
    lines.append(f"alignment greater than with the sound moved: {100 * better:.0f} % of clips")
    lines.append(f"sounds are late by {1000 * (common_offset_s(true) or 0.0):.0f} ms, all clips taken together")
    return "\n".join(lines)


def main() -> None:
    from .distribution import clip_files

    parser = argparse.ArgumentParser(prog="python -m eval.sync", description=__doc__.split("\n")[0])
    parser.add_argument("clips", type=Path, help="folder of clips")
    parser.add_argument("--limit", type=int, help="no more than so many clips")
    args = parser.parse_args()
    if args.limit is not None and args.limit < 1:
        raise InputError("--limit must be at least 1")
    print(folder_table(clip_files(args.clips)[: args.limit]))


if __name__ == "__main__":
    run(main)
