"""Which material a clip sounds of: ridge regression on the spectrum of its sound and on how it decays.

A struck body's material shows in where its modes lie and in how fast they fade (Klatzky, Pai & Krotkov, "Perception of
Material from Contact Sounds", 2000). ``train_sound`` is how the weights came about.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vidgen.errors import InputError
from vidgen.files import replacing
from vidgen.tabletop.scene import MATERIALS

from .motion import require

WEIGHTS = Path(__file__).resolve().parent / "weights" / "sound.safetensors"
RATE_HZ = 24000
MIN_SAMPLE_RATE_HZ = 16000
"""Below it materials do not differ enough."""
WINDOW, HOP = 1024, 240
BANDS_HZ = np.geomspace(50, 11000, 37)
LATER = (0.03, 0.07, 0.14)
"""Seconds after a blow at which what is left of it is measured."""
DEEPEST_DB = 45.0
"""What lies further below the loudest is not told from silence."""
SILENT_PEAK = 0.02
"""What stays below this is silence; a codec's noise does."""
PENALTY = 3.0


def features(waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray | None:
    """What a sound is like, whatever its loudness.

    Args:
        waveform: (N,) or (C, N) samples in [-1, 1].

    Returns:
        (FEATURES,) float64 decibels: the mean spectrum, the spectrum of the loudest blow, and by how much each of a
        dozen bands has faded at three moments after it. None for silence and for less than 50 ms.

    Raises:
        InputError: samples that are not finite, or a sample rate below 16 kHz, which cuts off what glass rings with.
    """
    signal = np.atleast_2d(np.asarray(waveform, np.float64)).mean(0)
    if not np.isfinite(signal).all():
        raise InputError("the sound holds values that are not finite numbers")
    if sample_rate_hz < MIN_SAMPLE_RATE_HZ:
        raise InputError(f"material is not heard at {sample_rate_hz} Hz: give {MIN_SAMPLE_RATE_HZ} or more")
    if sample_rate_hz != RATE_HZ:
        signal = require("scipy.signal").resample_poly(signal, RATE_HZ, sample_rate_hz)
    if len(signal) < 2 * WINDOW or np.abs(signal).max(initial=0.0) < SILENT_PEAK:
        return None
    bands = _bands(signal)  # (frames, bands)
    loudness = bands.sum(1)
    # The loudest rise is the blow; a window sees it one half of its length ahead.
    ahead = WINDOW // (2 * HOP)
    before = np.concatenate([np.full(ahead, loudness[0]), loudness[:-ahead]])
    blow = int(np.argmax(loudness - before))
    struck = bands[blow : blow + 3].mean(0)
    wide = bands.reshape(len(bands), -1, 3).sum(2)
    top = wide[blow : blow + 3].max(0)
    left = []
    for later_s in LATER:
        at = min(blow + round(later_s * RATE_HZ / HOP) + ahead, len(bands) - 1)
        left.append(_decibels(wide[at], top, DEEPEST_DB))
    parts = [_decibels(part, part.max(), DEEPEST_DB) for part in (bands.mean(0), struck)]
    return np.concatenate([*parts, *left])


FEATURES = (len(BANDS_HZ) - 1) * 3


def _bands(signal: np.ndarray) -> np.ndarray:
    """(frames, 36) power in logarithmic bands; a band narrower than a bin gets its share of it."""
    frames = np.lib.stride_tricks.sliding_window_view(signal, WINDOW)[::HOP] * np.hanning(WINDOW)
    summed = np.cumsum(np.square(np.abs(np.fft.rfft(frames))), axis=1)
    edges = BANDS_HZ / (RATE_HZ / WINDOW)
    at = np.stack([np.interp(edges, np.arange(summed.shape[1]) + 0.5, row) for row in summed])
    return np.stack([at[:, high] - at[:, low] for low, high in pairwise(range(len(edges)))], 1)


def _decibels(power: np.ndarray, reference: np.ndarray, deepest_db: float) -> np.ndarray:
    return np.maximum(10 * np.log10((power + 1e-15) / (reference + 1e-15)), -deepest_db)


@dataclass(frozen=True)
class SoundReader:
    """Linear scores of standardised features: (features - mean) / scale @ weights + bias."""

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    """(FEATURES, 4), a column for each of ``MATERIALS``."""
    bias: np.ndarray

    def material(self, waveform: np.ndarray | None, sample_rate_hz: int) -> str | None:
        """The material that a clip sounds of; None without sound, or for silence.

        Of several bodies of different materials it names the one that sounds most, so it is a verdict on clips of one
        body only.

        Raises:
            InputError: see ``features``.
        """
        if waveform is None or not np.size(waveform):
            return None
        row = features(waveform, sample_rate_hz)
        if row is None:
            return None
        return MATERIALS[int(np.argmax((row - self.mean) / self.scale @ self.weights + self.bias))]

    def save(self, path: Path = WEIGHTS) -> None:
        """Write the four arrays, in single precision."""
        arrays = {name: np.ascontiguousarray(value, np.float32) for name, value in vars(self).items()}
        with replacing(path) as temporary:
            save_file(arrays, temporary)

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> "SoundReader":
        """The trained instrument.

        Raises:
            InputError: the file is missing or damaged.
        """
        try:
            arrays = load_file(path)
            reader = cls(**arrays)
        except FileNotFoundError as error:
            raise InputError(f"{path} is missing: train it with eval.train_sound") from error
        except (SafetensorError, TypeError) as error:
            raise InputError(f"{path}: damaged or of another version ({error})") from error
        if reader.weights.shape != (FEATURES, len(MATERIALS)):
            raise InputError(f"{path}: holds weights {reader.weights.shape}, not {(FEATURES, len(MATERIALS))}")
        return reader


def fit(rows: np.ndarray, materials: np.ndarray) -> SoundReader:
    """Ridge regression (Hoerl & Kennard 1970) of one-hot materials (N,) indices on rows (N, FEATURES)."""
    mean, scale = rows.mean(0), rows.std(0) + 1e-3
    x = (rows - mean) / scale
    wanted = np.eye(len(MATERIALS))[materials]
    bias = wanted.mean(0)
    weights = np.linalg.solve(x.T @ x + PENALTY * np.eye(FEATURES), x.T @ (wanted - bias))
    return SoundReader(mean, scale, weights, bias)
