"""What can be said of any clip without a network: motion, steadiness, sharpness, loudness, clipping, silence.

Every figure is a float, or None where the clip gives no ground for one (no sound, one frame, too short a sound).
None of them is a known benchmark's score but ``temporal_flickering``, which is VBench's (Huang et al. 2024,
arXiv 2311.17982, before normalisation).
"""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np

from vidgen.data.filters import loudness_lufs
from vidgen.errors import InputError
from vidgen.media import Clip, read_clip

from .motion import Motion, frame_luma, optical_flow, require
from .sync import Alignment, alignment, onset_sync

REPEATED_LEVELS = 1.0
"""A frame repeats the one before if no 8×8 block's mean changes by as many of 255 levels: a codec changes less."""
BLACK_LEVEL = 32
"""A frame is black if 98 % of its pixels are darker than this (of 255)."""
SILENT_DBFS = -60.0
CLIPPED_RUN = 3
"""As many samples at full scale in a row are clipped; single ones may be peaks."""


def measure(clip: Clip) -> dict[str, float | None]:
    """All figures of a clip: ``picture``, ``sound``, and between the two ``onset_sync`` and ``sync_contrast``.

    sync_contrast: how much more the motion changes where sounds begin than with the sounds moved: score - shifted of
        ``sync.alignment``. About 0 where sound and motion have nothing to do with one another.

    Raises:
        InputError: no frame, or a sound with values that are not finite.
        InputError: the packages of the ``eval`` extra are missing.
    """
    motion = _motion(clip.frames)
    return {
        **picture(clip.frames, clip.frame_rate, motion),
        **sound(clip),
        "onset_sync": None if motion is None else onset_sync(clip, motion),
        "sync_contrast": _contrast(None if motion is None else alignment(clip, motion)),
    }


def _contrast(found: Alignment | None) -> float | None:
    return None if found is None else found.score - found.shifted


def measure_file(path: str | Path, clip: Clip | None = None) -> dict[str, float | None]:
    """All figures of a file; the mismatch of durations is that of its streams, which reading evens out.

    Args:
        clip: what ``read_clip`` gave of the file, if it has been read.

    Raises:
        InputError: the file cannot be read.
    """
    figures = measure(clip or read_clip(path))
    with av.open(str(path)) as container:
        picture_s, sound_s = (
            next((float(s.duration * s.time_base) for s in streams if s.duration and s.time_base), None)
            for streams in (container.streams.video, container.streams.audio)
        )
    if picture_s is not None and sound_s is not None:
        figures["duration_mismatch_s"] = sound_s - picture_s
    return figures


def _motion(frames: np.ndarray) -> Motion | None:
    if frames.ndim != 4 or not len(frames) or frames.dtype != np.uint8:
        raise InputError(f"frames must be (T, H, W, 3) uint8 with T at least 1, not {frames.shape} {frames.dtype}")
    return optical_flow(frame_luma(frames)) if len(frames) > 1 else None


def picture(frames: np.ndarray, frame_rate: Fraction, motion: Motion | None) -> dict[str, float | None]:
    """Figures of frames (T, H, W, 3) uint8 and their optical flow, None for a single frame.

    motion_sides_per_s: mean over frame pairs of the fastest 5 % of the optical flow, in shorter sides of the frame a
        second (what VBench's dynamic degree thresholds, with DIS for RAFT).
    warp_error_levels: mean absolute difference, of 255, between a frame and the next one warped back along the flow,
        where forward and backward flow agree (Lai et al. 2018, arXiv 1808.00449, equation 11).
    unexplained: share of pixels where the two flows disagree: occlusion in a sound clip, chaos in a shuffled one.
    temporal_flickering: 1 - mean absolute difference of neighbouring frames / 255, VBench's.
    brightness_flicker_levels: mean absolute second difference of the frames' mean luma, of 255: a fade has none.
    repeated_frames: share of frames that repeat the one before. longest_freeze_s: the longest run of such.
    black_frames: share of black frames.
    sharpness: variance of the Laplacian of luma, mean over the frames; blur lowers it, but noise raises it.
    """
    cv2 = require("cv2")
    luma = frame_luma(frames)
    figures: dict[str, float | None] = {
        "black_frames": float(((luma < BLACK_LEVEL).mean((1, 2)) >= 0.98).mean()),
        "sharpness": float(np.mean([cv2.Laplacian(frame, cv2.CV_64F).var() for frame in luma])),
    }
    of_pairs = ["motion_sides_per_s", "warp_error_levels", "unexplained", "temporal_flickering"]
    figures |= dict.fromkeys([*of_pairs, "brightness_flicker_levels", "repeated_frames", "longest_freeze_s"])
    if motion is None:
        return figures
    repeats = [_repeats(*pair) for pair in pairwise(luma)]
    longest = max((len(run) for run in "".join("x" if again else " " for again in repeats).split()), default=0)
    changes = [cv2.absdiff(*pair).mean() for pair in pairwise(frames)]
    figures |= {
        "temporal_flickering": float(1 - np.mean(changes) / 255),
        "repeated_frames": float(np.mean(repeats)),
        "longest_freeze_s": float(longest / frame_rate),
    }
    if len(frames) > 2:
        figures["brightness_flicker_levels"] = float(np.abs(np.diff(luma.mean((1, 2)), 2)).mean())
    fastest = [np.sort(speed.ravel())[-max(1, speed.size // 20) :].mean() for speed in motion.speeds_px()]
    side_px = min(motion.luma.shape[1:])
    figures["motion_sides_per_s"] = float(np.mean(fastest) * frame_rate / side_px)
    errors = [
        _warp_error(*step) for step in zip(motion.luma, motion.luma[1:], motion.forward, motion.back, strict=False)
    ]
    figures["unexplained"] = float(np.mean([lost for _, lost in errors]))
    known = [error for error, _ in errors if error is not None]
    figures["warp_error_levels"] = float(np.mean(known)) if known else None
    return figures


def _warp_error(
    first: np.ndarray, second: np.ndarray, forward: np.ndarray, back: np.ndarray
) -> tuple[float | None, float]:
    """Mean absolute difference where the flows agree, None if nowhere; and the share of pixels where they do not."""
    cv2 = require("cv2")
    height, width = first.shape
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    to_x, to_y = x + forward[..., 0], y + forward[..., 1]
    warped = cv2.remap(second, to_x, to_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    returned = cv2.remap(back, to_x, to_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    # The occlusion test of Sundaram et al. 2010, equation 5.
    drift = np.square(forward + returned).sum(-1)
    agree = drift <= 0.01 * (np.square(forward).sum(-1) + np.square(returned).sum(-1)) + 0.5
    agree &= (to_x >= 0) & (to_x <= width - 1) & (to_y >= 0) & (to_y <= height - 1)
    difference = np.abs(warped.astype(np.float32) - first)
    return (float(difference[agree].mean()) if agree.any() else None), float(1 - agree.mean())


def _repeats(first: np.ndarray, second: np.ndarray) -> bool:
    cv2 = require("cv2")
    size = (max(1, first.shape[1] // 8), max(1, first.shape[0] // 8))
    blocks = [cv2.resize(frame.astype(np.float32), size, interpolation=cv2.INTER_AREA) for frame in (first, second)]
    return bool(np.abs(blocks[0] - blocks[1]).max() < REPEATED_LEVELS)


def sound(clip: Clip) -> dict[str, float | None]:
    """Figures of the clip's waveform, (N,) or (C, N); all None without one.

    loudness_lufs: integrated loudness of ITU-R BS.1770-4, None below its gate (-70 LUFS) or for less than 0.4 s.
    true_peak_dbtp: that recommendation's Annex 2, at 192 kHz or more; None for digital silence.
    clipped_samples: share of samples at full scale, in runs of three and more.
    silence: share of 20 ms stretches below -60 dBFS.
    bandwidth_hz: below it lies 99 % of the energy; None for digital silence.
    duration_mismatch_s: sound minus picture.
    """
    names = ("loudness_lufs", "true_peak_dbtp", "clipped_samples", "silence", "bandwidth_hz", "duration_mismatch_s")
    figures: dict[str, float | None] = dict.fromkeys(names)
    if clip.waveform is None or not np.size(clip.waveform):
        return figures
    waveform = np.atleast_2d(np.asarray(clip.waveform, np.float64))
    if not np.isfinite(waveform).all():
        raise InputError("the sound holds values that are not finite numbers")
    rate_hz, num_samples = clip.sample_rate_hz, waveform.shape[1]
    window = min(num_samples, max(1, round(0.02 * rate_hz)))
    stretches = waveform[:, : num_samples // window * window].reshape(len(waveform), -1, window)
    loud = np.square(stretches).mean((0, 2)) > 10 ** (SILENT_DBFS / 10)
    figures |= {
        "clipped_samples": _clipped(waveform),
        "silence": float(1 - loud.mean()),
        "duration_mismatch_s": float(num_samples / rate_hz - len(clip.frames) / clip.frame_rate),
    }
    peak = _true_peak(waveform, rate_hz)
    if peak <= 0:
        return figures
    figures |= {"true_peak_dbtp": float(20 * np.log10(peak)), "bandwidth_hz": _bandwidth_hz(waveform, rate_hz)}
    require("pyloudnorm")
    figures["loudness_lufs"] = loudness_lufs(waveform, rate_hz)
    return figures


def _true_peak(waveform: np.ndarray, rate_hz: int) -> float:
    signal = require("scipy.signal")
    factor = max(1, -(-192000 // rate_hz))
    return float(np.abs(signal.resample_poly(waveform, factor, 1, axis=1)).max())


def _clipped(waveform: np.ndarray) -> float:
    """At full scale: within half a step of 8 bits, as decoders and resamplers blur the ceiling."""
    full = np.abs(waveform) >= 1 - 2**-9
    edges = np.diff(np.pad(full, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    lengths = np.nonzero(edges.ravel() == -1)[0] - np.nonzero(edges.ravel() == 1)[0]
    return float(lengths[lengths >= CLIPPED_RUN].sum() / waveform.size)


def _bandwidth_hz(waveform: np.ndarray, rate_hz: int) -> float:
    frequencies_hz, power = require("scipy.signal").welch(waveform, rate_hz, nperseg=min(2048, waveform.shape[1]))
    cumulative = np.cumsum(power.sum(0))
    return float(frequencies_hz[np.searchsorted(cumulative, 0.99 * cumulative[-1])])
