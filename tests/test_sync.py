"""Onsets heard against motion seen, on a square that hops at known moments."""

from fractions import Fraction

import numpy as np
import pytest

from eval.motion import frame_luma, optical_flow
from eval.sync import motion_peaks_s, onset_sync
from vidgen.errors import InputError
from vidgen.media import Clip

RATE_HZ = 24000
FPS = 24
HOPS = (8, 20, 31)
"""Frames at which the square is first seen in its next place."""


def hopping(hops=HOPS, num_frames=40):
    rng = np.random.default_rng(0)
    square = rng.integers(120, 255, (24, 24, 3))
    frames = np.full((num_frames, 96, 96, 3), 60, np.uint8)
    for index in range(num_frames):
        left = 8 + 5 * sum(index >= hop for hop in hops)
        frames[index, 36:60, left : left + 24] = square
    return frames


def clicks(times_s, num_frames=40):
    waveform = np.zeros(round(num_frames / FPS * RATE_HZ), np.float32)
    for time_s in times_s:
        start = round(time_s * RATE_HZ)
        ringing = np.arange(len(waveform) - start) / RATE_HZ
        waveform[start:] += 0.5 * np.sin(2 * np.pi * 1500 * ringing) * np.exp(-60 * ringing)
    return waveform


def clip(times_s, frames=None):
    return Clip(hopping() if frames is None else frames, clicks(times_s), Fraction(FPS), RATE_HZ)


def test_motion_peaks_are_when_the_square_has_hopped():
    motion = optical_flow(frame_luma(hopping()))
    np.testing.assert_allclose(motion_peaks_s(motion, FPS), np.array(HOPS) / FPS)
    assert len(motion_peaks_s(optical_flow(frame_luma(hopping(hops=()))), FPS)) == 0


def test_sound_at_the_hops_scores_one_and_a_shifted_sound_none():
    in_time = [hop / FPS for hop in HOPS]
    assert onset_sync(clip(in_time)) == 1
    assert onset_sync(clip([time_s + 0.03 for time_s in in_time])) == 1  # within a frame
    for shift_s in (-0.16, -0.08, 0.08, 0.16):
        assert onset_sync(clip([time_s + shift_s for time_s in in_time])) == 0


def test_missing_and_surplus_sounds_count_against_it():
    in_time = [hop / FPS for hop in HOPS]
    assert onset_sync(clip(in_time[:2])) == pytest.approx(2 / 3)
    assert onset_sync(clip([*in_time, 1.5])) == pytest.approx(3 / 4)
    assert onset_sync(clip([])) == 0
    assert onset_sync(clip([0.5], frames=hopping(hops=()))) == 0


def test_what_gives_no_ground_is_none_and_bad_sound_is_refused():
    assert onset_sync(clip([], frames=hopping(hops=()))) is None
    assert onset_sync(clip([0.5], frames=hopping()[:2])) is None
    assert onset_sync(Clip(hopping(), None, Fraction(FPS), RATE_HZ)) is None
    with pytest.raises(InputError, match="finite"):
        onset_sync(Clip(hopping(), np.full(2000, np.nan, np.float32), Fraction(FPS), RATE_HZ))
