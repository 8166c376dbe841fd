"""When sounds begin, and how far two lists of moments lie apart: the yardstick of synchrony.

Onsets are peaks of a spectral flux whose past is a running maximum (as in SuperFlux, Böck & Widmer, DAFx 2013), so
that ringing, beating and rolling noise do not count; each is then traced back to where the energy starts to rise.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

HOP_S = 0.002
WINDOW_S = 0.0107
NUM_BANDS = 12
LOWEST_HZ = 50.0
EDGE_S = 0.005
ORDER = 16
"""Of the linear prediction that removes what still rings."""


class Match(NamedTuple):
    """A one-to-one pairing of moments seen with moments heard."""

    offsets_s: np.ndarray
    """(M,) heard minus seen of each pair, in order of time: positive where the sound is late."""
    missing_s: np.ndarray
    """Seen, but not heard."""
    surplus_s: np.ndarray
    """Heard, but not seen."""


def onset_times_s(
    waveform: np.ndarray,
    sample_rate_hz: int,
    *,
    min_separation_s: float = 0.05,
    threshold_db: float = 2.2,
    floor_db: float = -40.0,
) -> np.ndarray:
    """The moments at which something begins to sound.

    Args:
        waveform: (N,) or (C, N) samples; a CPU tensor will do.
        min_separation_s: of two onsets nearer than this, the stronger one counts.
        threshold_db: mean rise over the bands that makes an onset, on top of what the surroundings fluctuate by.
        floor_db: what lies this far below the loudest moment of the clip counts as silence.

    Returns:
        (K,) float64 seconds from the first sample, ascending. What sounds from the first 5 ms on is not an onset,
        and what starts within the last 5 ms is too short to tell; a clip shorter than 22 ms has none.
    """
    signal = np.asarray(waveform, np.float64)
    signal = signal.mean(0) if signal.ndim == 2 else signal
    hop = max(1, round(HOP_S * sample_rate_hz))
    if len(signal) < 2 * WINDOW_S * sample_rate_hz:
        return np.zeros(0)
    bands = _band_powers(signal, sample_rate_hz, hop)  # (frames, bands)
    loudest = bands.sum(1).max()
    if loudest < 1e-10:
        return np.zeros(0)
    # Silence, or a steady noise: four times the power that a band has in its quieter moments.
    quiet = np.maximum(loudest * 10 ** (floor_db / 10), 4 * np.quantile(bands, 0.2, axis=0))
    rise_db = 10 * np.log10((bands + quiet) / (_past_maximum(bands, 4, 13) + quiet))
    flux = np.maximum(rise_db, 0.0).mean(1)

    reach = round(0.1 / HOP_S)
    around = np.lib.stride_tricks.sliding_window_view(np.pad(flux, reach, mode="reflect"), 2 * reach + 1)
    typical = np.median(around, 1)
    spread = np.median(np.abs(around - typical[:, None]), 1)
    height = flux - typical - 3 * spread
    chosen: list[int] = []
    for frame in np.argsort(-height, kind="stable"):
        if height[frame] < threshold_db:
            break
        if all(abs(frame - other) * HOP_S >= min_separation_s for other in chosen):
            chosen.append(int(frame))
    found_s = np.unique(np.array([_trace_back(signal, frame * hop, sample_rate_hz) for frame in chosen]))
    return found_s[found_s >= EDGE_S]


def match_onsets(
    seen_s: Sequence[float] | np.ndarray, heard_s: Sequence[float] | np.ndarray, tolerance_s: float
) -> Match:
    """Pair moments seen with moments heard, no pair further apart than ``tolerance_s``.

    Of all one-to-one pairings it is one with the most pairs and, among those, the least summed distance. Crossing
    pairs never help on a line, so a dynamic program over the two sorted lists is exact.
    """
    seen, heard = np.sort(np.asarray(seen_s, np.float64)), np.sort(np.asarray(heard_s, np.float64))
    # best[i][j]: (minus the number of pairs, summed distance) of the first i seen and the first j heard.
    best = [[(0, 0.0)] * (len(heard) + 1) for _ in range(len(seen) + 1)]
    for i in range(1, len(seen) + 1):
        for j in range(1, len(heard) + 1):
            best[i][j] = min(best[i - 1][j], best[i][j - 1])
            distance = abs(heard[j - 1] - seen[i - 1])
            if distance <= tolerance_s:
                pairs, total = best[i - 1][j - 1]
                best[i][j] = min(best[i][j], (pairs - 1, total + distance))
    pairs_ij, i, j = [], len(seen), len(heard)
    while i and j:
        if best[i][j] == best[i - 1][j]:
            i -= 1
        elif best[i][j] == best[i][j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            pairs_ij.append((i, j))
    pairs_ij.reverse()
    rows, columns = [i for i, _ in pairs_ij], [j for _, j in pairs_ij]
    return Match(heard[columns] - seen[rows], np.delete(seen, rows), np.delete(heard, columns))


def offset_s(
    seen_s: Sequence[float] | np.ndarray, heard_s: Sequence[float] | np.ndarray, tolerance_s: float = 0.2
) -> float | None:
    """Median of heard minus seen over the matched moments: positive where sound is late. None if nothing matches."""
    offsets = match_onsets(seen_s, heard_s, tolerance_s).offsets_s
    return float(np.median(offsets)) if len(offsets) else None


def _band_powers(signal: np.ndarray, sample_rate_hz: int, hop: int) -> np.ndarray:
    """(frames, NUM_BANDS) power in logarithmic bands; frame k is centred on sample k·hop."""
    window = 2 * (round(WINDOW_S * sample_rate_hz) // 2)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(signal, (window // 2, 0), mode="reflect"), window)[::hop]
    powers = np.square(np.abs(np.fft.rfft(frames * np.hanning(window + 1)[:-1])))
    resolution_hz = sample_rate_hz / window
    edges_hz = np.geomspace(LOWEST_HZ, sample_rate_hz / 2, NUM_BANDS + 1)
    edges = np.maximum(np.round(edges_hz / resolution_hz).astype(int), np.arange(NUM_BANDS + 1))  # at least a bin each
    return np.stack([powers[:, low:high].sum(1) for low, high in pairwise(edges)], 1)


def _past_maximum(bands: np.ndarray, nearest: int, furthest: int) -> np.ndarray:
    """(frames, bands) greatest value between ``furthest`` and ``nearest`` frames earlier; before frame 0 as at it."""
    padded = np.pad(bands, ((furthest, 0), (0, 0)), mode="edge")[: len(bands) + furthest - nearest]
    return np.lib.stride_tricks.sliding_window_view(padded, furthest - nearest + 1, axis=0).max(-1)


def _trace_back(signal: np.ndarray, peak: int, sample_rate_hz: int) -> float:
    """Seconds at which the energy that culminates near sample ``peak`` starts to rise.

    What still rings, or hums, from before is predictable from its own past: the energy is taken of the error of a
    linear prediction fitted to the time before the rise. Of the moments between where that energy passes a threshold
    and its top, the one counts after which it is the loudest for 3 ms in proportion to the 8 ms before: what rolls
    on, or rang irregularly, may pass the threshold early, but does not step up.
    """
    begin, turn, end = (max(0, peak + round(ms * sample_rate_hz / 1000)) for ms in (-45, -18, 6))
    after, before = round(0.003 * sample_rate_hz), round(0.008 * sample_rate_hz)
    part = signal[begin : end + after]
    error = np.convolve(part, _prediction_error_filter(part[: turn - begin], ORDER))[: len(part)]
    smooth = max(1, round(0.001 * sample_rate_hz))
    energy = np.convolve(np.square(error), np.ones(smooth))[: len(part)]
    past = energy[smooth + ORDER : turn - begin].max(initial=0.0)
    recent = energy[turn - begin : end - begin]
    top = int(np.argmax(recent))
    # A tenth of the top; where the past is nearly as loud, halfway between the two in decibels.
    threshold = min(max(0.1 * recent[top], np.sqrt(past * recent[top])), 0.7 * recent[top])
    above = np.flatnonzero(recent[: top + 1] >= threshold)
    # Back from the top; a dip of a few milliseconds is a slow oscillation, a longer one is what was there before.
    breaks = np.flatnonzero(np.diff(above) > 0.004 * sample_rate_hz)
    first = turn - begin + int(above[breaks[-1] + 1 if len(breaks) else 0])
    summed = np.concatenate([[0.0], np.cumsum(np.square(error))])
    moments = np.arange(first, min(turn - begin + top + 1, len(part) - after))
    if len(moments) and first >= before:
        louder = summed[moments + after] - summed[moments] + 1e-12
        first = int(moments[np.argmax(louder / (summed[moments] - summed[moments - before] + 1e-12))])
    return (begin + first) / sample_rate_hz


def _prediction_error_filter(past: np.ndarray, order: int) -> np.ndarray:
    """(order + 1,) taps 1, -a1, -a2, …: the autocorrelation method of linear prediction (Makhoul 1975, equation 21)."""
    if len(past) <= 2 * order:
        return np.ones(1)
    tapered = past * np.hanning(len(past))
    correlation = np.array([tapered[: len(past) - lag] @ tapered[lag:] for lag in range(order + 1)])
    if correlation[0] <= 0:
        return np.ones(1)
    lags = np.abs(np.subtract.outer(np.arange(order), np.arange(order)))
    matrix = correlation[lags] + 1e-4 * correlation[0] * np.eye(order)
    return np.concatenate([[1.0], -np.linalg.solve(matrix, correlation[1:])])
