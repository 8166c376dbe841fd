from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidgen.clip import MAX_DURATION_S, ClipSpec, Compression
from vidgen.errors import InputError

RATES = [Fraction(24), Fraction(24000, 1001), Fraction(25), Fraction(30), Fraction(30000, 1001), Fraction(8)]


def test_the_shipped_clip():
    spec = ClipSpec()
    assert (spec.latent_frames, spec.latent_height, spec.latent_width) == (13, 8, 8)
    assert (spec.num_samples, spec.audio_latents) == (49000, 52)
    assert spec.duration_s == pytest.approx(49 / 24)
    assert spec.padded_frames == 49


@given(num_frames=st.integers(1, 2000), frame_rate=st.sampled_from(RATES))
def test_latents_cover_the_clip_and_no_more_than_they_must(num_frames, frame_rate):
    spec = ClipSpec(num_frames=num_frames, frame_rate=frame_rate)
    assert 0 <= spec.padded_frames - num_frames < spec.compression.frames
    assert (spec.padded_frames - 1) % spec.compression.frames == 0
    assert 0 <= spec.audio_latents * spec.compression.samples - spec.num_samples < spec.compression.samples
    assert abs(spec.num_samples / spec.sample_rate_hz - spec.duration_s) <= 0.5 / spec.sample_rate_hz


@given(num_frames=st.integers(1, 500), frame_rate=st.sampled_from(RATES))
def test_token_times_rise_and_lie_inside_the_clip(num_frames, frame_rate):
    spec = ClipSpec(num_frames=num_frames, frame_rate=frame_rate)
    for times, count in (
        (spec.video_latent_times_s(), spec.latent_frames),
        (spec.audio_latent_times_s(), spec.audio_latents),
    ):
        assert len(times) == count
        assert all(earlier < later for earlier, later in pairwise(times))
        assert times[0] >= 0
        assert times[-1] < spec.padded_frames / frame_rate + spec.compression.samples / spec.sample_rate_hz


def test_token_times_are_the_middles():
    spec = ClipSpec(num_frames=9, frame_rate=Fraction(10))
    assert spec.video_latent_times_s() == pytest.approx([0.0, 0.25, 0.65])
    assert spec.audio_latent_times_s()[:3] == pytest.approx([0.02, 0.06, 0.10])


def test_a_longer_clip_begins_like_a_shorter_one():
    short, long = ClipSpec(num_frames=17), ClipSpec(num_frames=65)
    assert long.video_latent_times_s()[: short.latent_frames] == short.video_latent_times_s()
    assert long.audio_latent_times_s()[: short.audio_latents] == short.audio_latent_times_s()


@given(duration_s=st.floats(0.01, MAX_DURATION_S), frame_rate=st.sampled_from(RATES))
def test_from_duration_is_right_to_half_a_frame(duration_s, frame_rate):
    if round(duration_s * frame_rate) < 1:
        with pytest.raises(InputError, match="less than a frame"):
            ClipSpec.from_duration(duration_s, frame_rate)
        return
    spec = ClipSpec.from_duration(duration_s, frame_rate)
    if spec.num_frames > 1:
        assert abs(spec.duration_s - duration_s) <= 0.5 / float(frame_rate) + 1e-9


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_frames": 0},
        {"height": 0},
        {"height": 100},
        {"width": -16},
        {"frame_rate": Fraction(0)},
        {"sample_rate_hz": 0},
        {"height": 48, "compression": Compression(pixels=32)},
    ],
)
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(InputError):
        ClipSpec(**wrong)


def test_a_refused_size_names_the_nearest_good_ones():
    with pytest.raises(InputError, match="try 96 or 112"):
        ClipSpec(height=100)


@pytest.mark.parametrize("duration_s", [0, -1, MAX_DURATION_S + 1, float("nan"), float("inf")])
def test_impossible_durations_are_refused(duration_s):
    with pytest.raises(InputError, match="duration"):
        ClipSpec.from_duration(duration_s)


@pytest.mark.parametrize("frame_rate", [0, -24, 1000])
def test_impossible_rates_are_refused(frame_rate):
    with pytest.raises(InputError, match="frame rate"):
        ClipSpec.from_duration(2, frame_rate)
