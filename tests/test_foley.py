from fractions import Fraction

import numpy as np
import pytest

from vidgen.clip import ClipSpec
from vidgen.errors import InputError
from vidgen.foley import add_sound, conformed

from .test_pipeline import make_pipeline


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()  # 9 frames of 32×64 at 24 fps, 24 kHz


def film(frames, height=40, width=50, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("frames", "rate"), [(5, 16), (6, 16), (40, 24), (1, 8), (31, Fraction(30000, 1001))])
def test_sound_is_as_long_as_the_picture(pipeline, frames, rate):
    waveform, sample_rate_hz = add_sound(pipeline, film(frames), Fraction(rate), "a red ball", seed=1)
    assert sample_rate_hz == 24000
    assert waveform.shape == (round(frames / Fraction(rate) * 24000),)
    assert waveform.dtype == np.float32
    assert np.abs(waveform).max() > 0


def test_the_seed_and_what_is_seen_decide(pipeline):
    first, _ = add_sound(pipeline, film(9), Fraction(24), "a red ball", seed=1)
    again, _ = add_sound(pipeline, film(9), Fraction(24), "a red ball", seed=1)
    other_seed, _ = add_sound(pipeline, film(9), Fraction(24), "a red ball", seed=2)
    other_film, _ = add_sound(pipeline, film(9, seed=5), Fraction(24), "a red ball", seed=1)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other_seed)
    assert not np.array_equal(first, other_film)


def test_a_long_picture_goes_on_from_what_was_heard(pipeline):
    """The beginning is that of the first window alone: later windows change nothing of it."""
    whole, _ = add_sound(pipeline, film(30), Fraction(24), "a red ball", seed=1)
    first, _ = add_sound(pipeline, film(30)[:9], Fraction(24), "a red ball", seed=1)
    assert len(whole) == 30000
    known = 4 * 1000  # half a window, which the second one is given
    assert np.array_equal(whole[:known], first[:known])
    assert np.array_equal(whole[known : len(first)], first[known:])
    quarter = len(whole) // 4
    assert all(np.abs(whole[start : start + quarter]).max() > 0 for start in range(0, len(whole) - quarter, quarter))


def test_pictures_are_conformed_in_time_and_size():
    frames = np.stack([np.full((20, 40, 3), 10 * index, np.uint8) for index in range(8)])
    seen = conformed(frames, Fraction(8), ClipSpec(9, 32, 64, Fraction(24)))
    assert seen.shape == (24, 32, 64, 3)
    assert seen[:, 0, 0, 0].tolist() == np.repeat(np.arange(8) * 10, 3).tolist()
    slower = conformed(frames, Fraction(48), ClipSpec(9, 32, 64, Fraction(24)))
    assert slower[:, 0, 0, 0].tolist() == [0, 20, 40, 60]


def test_only_a_film_gets_sound(pipeline):
    with pytest.raises(InputError, match="sound is made for frames"):
        add_sound(pipeline, np.zeros((4, 8, 8, 3), np.float32), Fraction(24), "a ball")
