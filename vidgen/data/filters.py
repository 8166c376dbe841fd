"""Which clips are worth learning from: thresholds, each of which can be set, and what is measured against them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .probing import MAX_PIXELS, Shot, Unusable, require_data

SILENT_DBFS = -60.0
ENVELOPE_HZ = 100
SUDDEN_DB = 3.0
SUDDEN_SHARE = 0.2
MIN_EVENTS = 3.0


@dataclass(frozen=True)
class Thresholds:
    """A clip that is beyond one of them is dropped, and counted by it."""

    min_duration_s: float = 1.0
    """Too short below it. Images are exempt."""
    min_luma: float = 16.0
    """Too dark below it: mean brightness, 0 to 255."""
    min_motion: float = 0.05
    """Static below it: mean change of a pixel's brightness from frame to frame, 0 to 255."""
    min_edge_px: int = 64
    """Too small below it: the shorter edge of the picture."""
    max_pixels: int = MAX_PIXELS
    """Too large above it: the picture, which is not decoded then."""
    hash_distance: float = 4.0
    """Near-duplicate of an earlier clip: their perceptual hashes differ in no more bits of 64, mean of three frames."""
    min_loudness_db: float = SILENT_DBFS
    """Mute below it: root mean square of the clip's sound, in dB of full scale."""
    min_sound: float = 0.9
    """Sound incomplete below it: the share of the clip that its sound track covers."""
    max_offset_s: float = 0.15
    """Out of sync above it: how far motion and sound are apart where that can be told (``sync_offset``)."""
    min_sync_score: float = 7.0
    """How clear that must be: the peak of the correlation in standard deviations of all others. Few clips are clear."""
    needs_sound: bool = False
    needs_caption: bool = False


def check_shot(shot: Shot, height: int, width: int, limits: Thresholds) -> None:
    """What can be told from a survey of the picture; sound alone has height 0.

    Raises:
        Unusable: corrupt, too short, too small, too dark, static.
    """
    if shot.is_corrupt:
        raise Unusable("corrupt", f"damaged between {shot.start_s:.2f} and {shot.end_s:.2f} s")
    is_image = height > 0 and shot.duration_s == 0
    if not is_image and shot.duration_s < limits.min_duration_s - 1e-6:
        raise Unusable("too short", f"{shot.duration_s:.2f} s")
    if height == 0:
        return
    if min(height, width) < limits.min_edge_px:
        raise Unusable("too small", f"{width}x{height} pixels")
    if shot.luma < limits.min_luma:
        raise Unusable("too dark", f"brightness {shot.luma:.1f}")
    if not is_image and shot.motion < limits.min_motion:
        raise Unusable("static", f"mean change {shot.motion:.3f}")


def check_sound(
    waveform: np.ndarray | None, frames: np.ndarray | None, covered: float, rates: tuple[float, int], limits: Thresholds
) -> dict[str, float | None]:
    """What can be told once a clip is decoded; returns what was measured: loudness and offset.

    Args:
        waveform: (N,), or None without a sound track.
        frames: (T, H, W, 3), or None without a picture.
        covered: share of the clip's time that its sound track covers by its time stamps.
        rates: frames and samples a second.

    Raises:
        Unusable: no sound (where it is needed), mute, sound incomplete, out of sync.
    """
    if waveform is None:
        if limits.needs_sound:
            raise Unusable("no sound")
        return {}
    level_db = float(10 * np.log10(np.mean(np.square(waveform, dtype=np.float64)) + 1e-20)) if waveform.size else -200.0
    if level_db < limits.min_loudness_db:
        raise Unusable("mute", f"{level_db:.0f} dBFS")
    if covered < limits.min_sound:
        raise Unusable("sound incomplete", f"covers {100 * covered:.0f} %")
    loudness = loudness_lufs(waveform, rates[1])
    measured: dict[str, float | None] = {
        "rms_dbfs": round(level_db, 2),
        "peak": round(float(np.abs(waveform).max()), 4),
        "loudness_lufs": None if loudness is None else round(loudness, 2),
    }
    if frames is not None and len(frames) > 1:
        offset_s, score = sync_offset(frames, rates[0], waveform, rates[1])
        measured |= {"sync_offset_s": round(offset_s, 3), "sync_score": round(score, 2)}
        if score >= limits.min_sync_score and abs(offset_s) > limits.max_offset_s:
            raise Unusable("out of sync", f"sound {offset_s:+.2f} s")
    return measured


def loudness_lufs(waveform: np.ndarray, rate_hz: int) -> float | None:
    """Integrated loudness of ITU-R BS.1770-4 of (N,) or (C, N); None below its gate (-70), or for less than 0.4 s."""
    if waveform.shape[-1] < 0.4 * rate_hz:
        return None
    value = require_data("pyloudnorm").Meter(rate_hz).integrated_loudness(waveform.T.astype(np.float64))
    return float(value) if np.isfinite(value) else None


def sync_offset(
    frames: np.ndarray, frame_rate: float, waveform: np.ndarray, rate_hz: int, reach_s: float = 1.0
) -> tuple[float, float]:
    """By how much the sound is late (seconds), and how clear that is.

    Sudden changes of the picture are correlated with sudden rises of the sound, both at ``ENVELOPE_HZ``, over all
    shifts up to ``reach_s``. Clicks, hits and steps have a clear peak; music, steady noise and most speech have none.

    Args:
        frames: (T, H, W, 3) uint8.
        waveform: (N,).

    Returns:
        The shift of the highest correlation and its height, in standard deviations of the others. A height of 0 means
        that nothing can be said: a clip of less than twice the reach, or fewer than ``MIN_EVENTS`` seen or heard.
    """
    reach, hop = round(reach_s * ENVELOPE_HZ), rate_hz // ENVELOPE_HZ
    levels = np.square(waveform[: len(waveform) // hop * hop].astype(np.float64)).reshape(-1, hop).mean(1)
    length = min(int(len(frames) / frame_rate * ENVELOPE_HZ), len(levels))
    if length < 2 * reach or levels.max() <= 0:
        return 0.0, 0.0
    # A rise counts by its ratio: a blow out of silence more than the swelling of what sounds already.
    decibels = 10 * np.log10(np.maximum(levels[:length], levels.max() * 1e-5))
    heard = np.maximum(np.diff(decibels, prepend=decibels[0]) - SUDDEN_DB, 0)
    step = max(1, min(frames.shape[1:3]) // 64)
    small = frames[:, ::step, ::step].astype(np.float32).mean(axis=-1)
    change = np.abs(np.diff(small, axis=0)).mean((1, 2))
    rises = np.maximum(np.diff(change, prepend=change[0]) - SUDDEN_SHARE * np.median(change), 0)
    seen = np.zeros(length)
    # The change between frames k and k + 1 is seen when frame k + 1 is shown.
    moments = np.round((np.arange(len(rises)) + 1) / frame_rate * ENVELOPE_HZ).astype(int)
    np.add.at(seen, np.minimum(moments, length - 1), rises)
    edge = ENVELOPE_HZ // 10  # where tracks begin and end, encoders leave marks of their own
    for part in (heard, seen):
        part[:edge] = part[-edge:] = 0
        # How many rises there are, each counted by its share: 1 / sum of the squared shares.
        if part.sum() ** 2 < MIN_EVENTS * np.square(part).sum() or not part.any():
            return 0.0, 0.0
    heard, seen = (_smoothed(part) for part in (heard, seen))
    correlation = np.fft.irfft(np.fft.rfft(heard, 2 * length) * np.conj(np.fft.rfft(seen, 2 * length)), 2 * length)
    shifts = np.arange(-reach, reach + 1)
    values = correlation[shifts]
    best = int(values.argmax())
    others = values[np.abs(shifts - shifts[best]) > 8]
    spread = float(others.std())
    if spread <= 1e-12:
        return 0.0, 0.0
    return float(shifts[best] / ENVELOPE_HZ), float((values[best] - others.mean()) / spread)


def _smoothed(signal: np.ndarray) -> np.ndarray:
    kernel = np.hanning(9)
    smooth = np.convolve(signal, kernel / kernel.sum(), mode="same")
    return smooth - smooth.mean()


class NearDuplicates:
    """The perceptual hashes of the clips so far, to be asked for one that is nearly the same."""

    def __init__(self, distance: float) -> None:
        self.distance = distance
        self.keys: dict[int, list[str]] = {}
        self.hashes: dict[int, np.ndarray] = {}
        self.sizes: dict[int, int] = {}

    def find(self, hashes: Sequence[int]) -> str | None:
        """The key of the nearest clip within the distance; clips and images are compared among themselves."""
        kind = len(hashes)
        if not kind or not self.sizes.get(kind) or self.distance < 0:
            return None
        known = self.hashes[kind][: self.sizes[kind]]
        bits = np.bitwise_count(known ^ np.array(hashes, np.uint64)).mean(1)
        nearest = int(bits.argmin())
        return self.keys[kind][nearest] if bits[nearest] <= self.distance else None

    def add(self, key: str, hashes: Sequence[int]) -> None:
        kind = len(hashes)
        if not kind:
            return
        size = self.sizes.get(kind, 0)
        known = self.hashes.setdefault(kind, np.zeros((1024, kind), np.uint64))
        if size == len(known):
            known = self.hashes[kind] = np.concatenate([known, np.zeros_like(known)])
        known[size] = np.array(hashes, np.uint64)
        self.keys.setdefault(kind, []).append(key)
        self.sizes[kind] = size + 1
