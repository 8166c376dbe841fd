"""The figures that need no network: each moves the right way when a clip is damaged in a known way."""

import sys
from fractions import Fraction

import cv2
import numpy as np
import pytest

from eval.quality import measure, measure_file
from vidgen.errors import InputError
from vidgen.media import Clip, write_video

RATE_HZ = 48000
FPS = Fraction(24)


def texture(height=96, width=128, seed=0):
    noise = np.random.default_rng(seed).uniform(0, 1, (height, width, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return (40 + 175 * (smooth - smooth.min()) / np.ptp(smooth)).astype(np.uint8)


def panning(px_per_frame=2, num_frames=12):
    """A textured plane that moves to the left at a known speed."""
    wide = texture(width=128 + px_per_frame * num_frames)
    return np.stack([wide[:, px_per_frame * k : px_per_frame * k + 128] for k in range(num_frames)])


def tone(hz=997.0, amplitude=0.5, duration_s=0.5, rate_hz=RATE_HZ):
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(round(duration_s * rate_hz)) / rate_hz)).astype(np.float32)


def clip(frames=None, waveform=None, rate_hz=RATE_HZ):
    return Clip(panning() if frames is None else frames, waveform, FPS, rate_hz)


def figures(frames):
    return measure(clip(frames))


def test_motion_is_the_known_speed():
    # 2 pixels a frame at 24 frames a second, of a shorter side of 96 pixels.
    assert figures(panning(2))["motion_sides_per_s"] == pytest.approx(2 * 24 / 96, rel=0.1)
    assert figures(panning(4))["motion_sides_per_s"] == pytest.approx(4 * 24 / 96, rel=0.1)
    large = np.stack([cv2.resize(frame, (512, 384)) for frame in panning(2)])
    assert figures(large)["motion_sides_per_s"] == pytest.approx(2 * 24 / 96, rel=0.15)
    assert figures(np.repeat(panning()[:1], 5, 0))["motion_sides_per_s"] == pytest.approx(0, abs=0.01)


def test_blur_lowers_sharpness_and_noise_raises_the_warp_error():
    plain = panning()
    clean = figures(plain)
    blurred = figures(np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in plain]))
    noise = np.random.default_rng(0).normal(0, 12, plain.shape)
    noisy = figures(np.clip(plain + noise, 0, 255).astype(np.uint8))
    assert blurred["sharpness"] < 0.25 * clean["sharpness"]
    assert noisy["sharpness"] > clean["sharpness"]
    assert clean["warp_error_levels"] < 2 < noisy["warp_error_levels"]
    assert noisy["temporal_flickering"] < clean["temporal_flickering"]
    assert blurred["motion_sides_per_s"] == pytest.approx(clean["motion_sides_per_s"], rel=0.2)


def test_shuffled_frames_are_not_explained_by_flow():
    plain = panning(3)
    clean, shuffled = figures(plain), figures(plain[np.random.default_rng(1).permutation(len(plain))])
    assert shuffled["motion_sides_per_s"] > 2 * clean["motion_sides_per_s"]
    assert shuffled["unexplained"] > clean["unexplained"] + 0.05
    assert shuffled["temporal_flickering"] < clean["temporal_flickering"]
    assert shuffled["sharpness"] == pytest.approx(clean["sharpness"])


def test_a_freeze_is_found_and_measured():
    plain = panning(num_frames=12)
    frozen = plain.copy()
    frozen[5:9] = plain[4]
    assert figures(plain)["longest_freeze_s"] == 0
    assert figures(frozen)["longest_freeze_s"] == pytest.approx(4 / 24)
    assert figures(frozen)["repeated_frames"] == pytest.approx(4 / 11)
    judder = plain[[0, 0, 2, 2, 4, 4, 6, 6]]
    assert figures(judder)["repeated_frames"] == pytest.approx(4 / 7)
    assert figures(judder)["longest_freeze_s"] == pytest.approx(1 / 24)


def test_a_small_moving_thing_is_no_freeze():
    frames = np.full((6, 128, 128, 3), 90, np.uint8)
    for k in range(6):
        frames[k, 60:66, 40 + 3 * k : 46 + 3 * k] = 200
    assert figures(frames)["repeated_frames"] == 0


def test_flicker_is_told_from_a_fade_and_is_vbenchs_figure():
    still = np.repeat(texture()[None] // 2, 8, 0)
    fade = np.stack([frame + 4 * k for k, frame in enumerate(still)]).astype(np.uint8)
    flicker = np.stack([frame + 10 * (k % 2) for k, frame in enumerate(still)]).astype(np.uint8)
    assert figures(fade)["brightness_flicker_levels"] == pytest.approx(0, abs=0.01)
    assert figures(flicker)["brightness_flicker_levels"] == pytest.approx(20, abs=0.1)
    assert figures(flicker)["temporal_flickering"] == pytest.approx(1 - 10 / 255)
    assert figures(still)["temporal_flickering"] == 1


def test_black_frames():
    frames = panning(num_frames=8)
    frames[:2] = 5
    assert figures(frames)["black_frames"] == pytest.approx(2 / 8)
    assert figures(frames[2:])["black_frames"] == 0


def test_loudness_of_a_reference_tone():
    # BS.1770: a 997 Hz sine at 0 dBFS in one channel reads -3.01 LUFS.
    measured = measure(clip(waveform=tone(amplitude=1.0, duration_s=2)))["loudness_lufs"]
    assert measured == pytest.approx(-3.01, abs=0.05)
    quieter = measure(clip(waveform=tone(amplitude=0.1, duration_s=2)))["loudness_lufs"]
    assert quieter == pytest.approx(measured - 20, abs=0.01)
    stereo = np.stack([tone(amplitude=0.1, duration_s=2)] * 2)
    assert measure(clip(waveform=stereo))["loudness_lufs"] == pytest.approx(quieter + 3.01, abs=0.01)
    resampled = measure(clip(waveform=tone(amplitude=0.1, duration_s=2, rate_hz=24000), rate_hz=24000))
    assert resampled["loudness_lufs"] == pytest.approx(quieter, abs=0.1)


def test_true_peak_lies_between_the_samples():
    # A quarter of the sampling rate, 45 degrees off: every sample is at -3 dB of the true peak.
    between = np.sin(np.pi / 2 * np.arange(RATE_HZ) + np.pi / 4).astype(np.float32)
    assert 20 * np.log10(np.abs(between).max()) == pytest.approx(-3.01, abs=0.01)
    assert measure(clip(waveform=between * np.hanning(RATE_HZ)))["true_peak_dbtp"] == pytest.approx(0, abs=0.1)


def test_clipping_and_bandwidth():
    clean = measure(clip(waveform=tone(amplitude=0.9)))
    clipped = measure(clip(waveform=np.clip(2 * tone(amplitude=1.0), -1, 1)))
    assert clean["clipped_samples"] == 0
    assert clipped["clipped_samples"] == pytest.approx(2 / 3, abs=0.02)  # |sin| above a half
    assert clean["bandwidth_hz"] == pytest.approx(997, abs=50)
    noise = np.random.default_rng(0).normal(0, 0.1, RATE_HZ).astype(np.float32)
    assert measure(clip(waveform=noise))["bandwidth_hz"] == pytest.approx(0.99 * RATE_HZ / 2, rel=0.02)


def test_silence_and_a_late_or_short_sound():
    half = np.concatenate([tone(duration_s=0.25), np.zeros(RATE_HZ // 4, np.float32)])
    figures = measure(clip(waveform=half))
    assert figures["silence"] == pytest.approx(0.5, abs=0.05)
    assert figures["duration_mismatch_s"] == pytest.approx(0)
    assert measure(clip(waveform=half[: RATE_HZ // 4]))["duration_mismatch_s"] == pytest.approx(-0.25)
    shifted = np.concatenate([np.zeros(RATE_HZ // 10, np.float32), tone()])[: RATE_HZ // 2]
    assert measure(clip(waveform=shifted))["silence"] == pytest.approx(0.2, abs=0.05)


def test_a_shifted_sound_is_out_of_sync():
    frames = np.repeat(panning(4, num_frames=2)[:1], 24, 0)
    frames[12:] = panning(4, num_frames=2)[1]  # a jump, first seen after half a second
    click = np.zeros(RATE_HZ, np.float32)
    click[RATE_HZ // 2 : RATE_HZ // 2 + 2400] = tone(duration_s=0.05) * np.linspace(1, 0, 2400)
    in_time, late = measure(clip(frames, click)), measure(clip(frames, np.roll(click, RATE_HZ // 8)))
    assert (in_time["onset_sync"], late["onset_sync"]) == (1, 0)
    assert in_time["sync_contrast"] > 0.8
    assert late["sync_contrast"] < 0
    assert measure(clip(frames))["sync_contrast"] is None


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r'cv2 is missing: pip install -e "\.\[eval\]"'):
        measure(clip())


def test_what_cannot_be_measured_is_none():
    assert all(value is None for name, value in measure(clip()).items() if name in ("loudness_lufs", "silence"))
    silent = measure(clip(waveform=np.zeros(RATE_HZ, np.float32)))
    assert (silent["silence"], silent["clipped_samples"]) == (1, 0)
    assert silent["loudness_lufs"] is silent["true_peak_dbtp"] is silent["bandwidth_hz"] is None
    assert measure(clip(waveform=tone(duration_s=0.2)))["loudness_lufs"] is None
    still = measure(clip(panning()[:1]))
    assert still["motion_sides_per_s"] is still["temporal_flickering"] is None
    assert still["sharpness"] > 0


def test_bad_input_is_refused():
    with pytest.raises(InputError, match="finite"):
        measure(clip(waveform=np.array([0, np.nan, 0], np.float32)))
    with pytest.raises(InputError, match="at least 1"):
        measure(clip(np.zeros((0, 8, 8, 3), np.uint8)))


def test_a_file_is_measured_by_its_streams(tmp_path):
    path = write_video(tmp_path / "clip.mp4", panning(), tone(duration_s=0.5), FPS, RATE_HZ)
    figures = measure_file(path)
    assert abs(figures["duration_mismatch_s"]) < 1024 / RATE_HZ
    assert figures["repeated_frames"] == 0
    frozen = write_video(tmp_path / "frozen.mp4", np.repeat(panning()[:1], 12, 0), None, FPS)
    assert measure_file(frozen)["repeated_frames"] == 1
    assert measure_file(frozen)["duration_mismatch_s"] is None
