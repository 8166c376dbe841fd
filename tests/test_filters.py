"""What clips are measured by: cuts, hashes, loudness, sync."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from tests.films import RATE_HZ, flashes_and_clicks, moving, raw_film, tone
from vidgen.data.conform import CUT_MARGIN_S, encode_flac
from vidgen.data.filters import NearDuplicates, loudness_lufs, sync_offset
from vidgen.data.probing import even_parts, perceptual_hash, survey_video
from vidgen.media import read_clip, read_sound, write_video


def bits(first, second):
    return (first ^ second).bit_count()


def test_a_film_is_cut_exactly_where_its_scene_changes(tmp_path):
    films = [moving(length, seed=seed) for seed, length in ((1, 30), (2, 17), (3, 25))]
    path = write_video(tmp_path / "cuts.mp4", np.concatenate(films), None, Fraction(24))
    shots = survey_video(path, max_duration_s=10).shots
    assert [shot.start_s for shot in shots] == pytest.approx([0, 30 / 24, 47 / 24], abs=1e-4)
    assert shots[-1].end_s == pytest.approx(3.0, abs=1e-3)
    # Read at another rate, no picture is of the next scene.
    second = shots[1]
    frames = int(np.ceil((second.duration_s - CUT_MARGIN_S) * 30))
    clip = read_clip(path, frame_rate=30, start_s=second.start_s, max_frames=frames)
    assert len(clip.frames) == frames == 22
    for picture, expected in ((clip.frames[0], films[1][0]), (clip.frames[-1], films[1][-1])):
        assert np.abs(picture.astype(int) - expected).mean() < 6


def test_a_long_shot_becomes_even_parts_that_leave_nothing_out(tmp_path):
    path = write_video(tmp_path / "long.mp4", moving(60, seed=1), None, Fraction(24))
    shots = survey_video(path, max_duration_s=0.9).shots
    assert len(shots) == 3
    assert all(0.7 < shot.duration_s <= 0.9 for shot in shots)
    assert [shot.end_s for shot in shots[:-1]] == [shot.start_s for shot in shots[1:]]
    assert even_parts(2.5, 1.0) == pytest.approx([0, 2.5 / 3, 5 / 3, 2.5])
    assert even_parts(1.0, 1.0) == [0, 1.0]


def test_variable_rates_keep_their_times(tmp_path):
    times_ms = [0, 40, 200, 240, 700, 740, 1100]
    path = raw_film(tmp_path / "v.mkv", moving(7), options={"bf": "0"}, times_ms=times_ms)
    survey = survey_video(path, max_duration_s=10)
    assert survey.notes == ["variable frame rate"]
    assert survey.shots[0].end_s == pytest.approx(1.14, abs=0.01)


def test_hashes_know_a_picture_again_and_tell_others_apart():
    picture = np.random.default_rng(3).uniform(0, 255, (9, 16)).astype(np.float32)
    big = np.asarray(Image.fromarray(picture).resize((160, 90), Image.Resampling.BICUBIC))
    small = np.asarray(Image.fromarray(big).resize((100, 56), Image.Resampling.BOX))
    noisy = big * 0.8 + 20 + np.random.default_rng(4).normal(0, 4, big.shape)
    known = perceptual_hash(big)
    assert bits(known, perceptual_hash(small)) <= 3
    assert bits(known, perceptual_hash(noisy)) <= 3
    assert bits(known, perceptual_hash(big[:, ::-1])) > 15
    seen = NearDuplicates(4)
    seen.add("a", (known, known, known))
    assert seen.find((known, known ^ 0b1111, known ^ 0b11111111)) == "a"  # 4 in the mean
    assert seen.find((known, known ^ 0b11111, known ^ 0b11111111)) is None
    assert seen.find((known,)) is None  # an image is no clip
    for number in range(2000):
        seen.add(str(number), (number * 0x9E3779B97F4A7C15 % 2**64,) * 3)
    assert seen.find((known,) * 3) == "a"
    assert NearDuplicates(-1).find(()) is None


@pytest.mark.parametrize("late_s", [-0.4, 0.0, 0.3])
def test_a_shift_between_flashes_and_clicks_is_found(late_s):
    for seed in range(3):
        frames, waveform = flashes_and_clicks(late_s, seed)
        offset_s, score = sync_offset(frames, 24, waveform, RATE_HZ)
        assert offset_s == pytest.approx(late_s, abs=0.05)
        assert score > 5


def test_what_has_nothing_sudden_has_no_clear_shift():
    rng = np.random.default_rng(0)
    for waveform in (tone(3.0), rng.normal(0, 0.1, 72000).astype(np.float32), np.zeros(72000, np.float32)):
        assert sync_offset(moving(72), 24, waveform, RATE_HZ)[1] < 5
    late = np.concatenate([np.zeros(2400, np.float32), tone(2.9)])  # one beginning is no ground for a claim
    assert sync_offset(moving(72), 24, late, RATE_HZ) == (0.0, 0.0)
    frames, waveform = flashes_and_clicks(0.3, duration_s=1.5)
    assert sync_offset(frames, 24, waveform, RATE_HZ) == (0.0, 0.0)  # too short to tell
    _, waveform = flashes_and_clicks(0.0)
    assert sync_offset(np.full((72, 64, 64, 3), 9, np.uint8), 24, waveform, RATE_HZ) == (0.0, 0.0)


def test_loudness_is_that_of_the_standard():
    """BS.1770: a sine of 997 Hz at full scale in one channel reads -3.01 LKFS."""
    assert loudness_lufs(tone(2.0, 997.0, 1.0), RATE_HZ) == pytest.approx(-3.01, abs=0.1)
    assert loudness_lufs(tone(2.0, 997.0, 0.1), RATE_HZ) == pytest.approx(-23.01, abs=0.1)
    assert loudness_lufs(tone(0.1), RATE_HZ) is None
    assert loudness_lufs(np.zeros(48000, np.float32), RATE_HZ) is None


def test_flac_keeps_every_sample(tmp_path):
    waveform = np.random.default_rng(0).uniform(-0.9, 0.9, 30000).astype(np.float32)
    data = encode_flac(waveform, RATE_HZ)
    assert np.abs(read_sound(data, RATE_HZ, 9.0) - waveform).max() < 2 / 32768
    part = read_sound(data, RATE_HZ, 0.5, 0.25)
    assert np.abs(part - waveform[6000:18000]).max() < 2 / 32768
