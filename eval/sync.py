"""Does sound begin where the picture moves fast? After AV-Align (Yariv et al. 2023, arXiv 2309.16429), not equal to it.

It needs no weights and knows no objects. Where sound comes with a peak of speed it tells sounds in time from shifted
ones; where it comes with a sudden stop it does not: on clips of the tabletop world, whose impacts end a motion, shifted
sounds score the same. Always read it beside the value that the same clips give with their sounds shifted.
"""

import numpy as np

from vidgen.audio_sync.onsets import match_onsets, onset_times_s
from vidgen.errors import InputError
from vidgen.media import Clip

from .motion import Motion, frame_luma, optical_flow


def motion_peaks_s(motion: Motion, frame_rate: float) -> np.ndarray:
    """Moments (K,) at which the mean speed of the picture is greater than before and after, in seconds.

    Flow k, between frames k and k + 1, is seen complete when frame k + 1 is shown. A peak counts if it exceeds
    both its neighbours (a plateau counts once) and the mean speed by a tenth, so that the ripple of a steady motion
    does not.
    """
    speed = motion.speeds_px().mean((1, 2))
    if not len(speed) or speed.max() <= 0:
        return np.zeros(0)
    around = np.concatenate([[0.0], speed, [0.0]])
    peaks = (around[1:-1] > around[:-2]) & (around[1:-1] >= around[2:]) & (speed > 1.1 * speed.mean())
    return (np.flatnonzero(peaks) + 1) / float(frame_rate)


def onset_sync(clip: Clip, motion: Motion | None = None) -> float | None:
    """Intersection over union of onsets heard and motion peaks seen; a pair is at most one frame apart. In [0, 1].

    AV-Align takes its onsets from librosa and lets every onset look for a peak by itself. Here onsets are those of
    ``onset_times_s`` and pairs are one to one, so that a burst of onsets at one peak is not rewarded twice.

    Args:
        motion: the clip's flow, if it has been computed.

    Returns:
        None where there is neither an onset nor a peak, no sound, or fewer than three frames.

    Raises:
        InputError: the sound holds values that are not finite.
    """
    if clip.waveform is None or not np.size(clip.waveform) or len(clip.frames) < 3:
        return None
    if not np.isfinite(clip.waveform).all():
        raise InputError("the sound holds values that are not finite numbers")
    motion = motion or optical_flow(frame_luma(clip.frames))
    seen = motion_peaks_s(motion, float(clip.frame_rate))
    heard = onset_times_s(clip.waveform, clip.sample_rate_hz)
    match = match_onsets(seen, heard, 1 / float(clip.frame_rate) + 1e-9)
    union = len(match.offsets_s) + len(match.missing_s) + len(match.surplus_s)
    return len(match.offsets_s) / union if union else None
