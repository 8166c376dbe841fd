"""Onsets heard against motion seen: a square that hops, a ball that stops, clips of the tabletop world."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from eval.motion import frame_luma, optical_flow
from eval.sync import LAGS_S, alignment, change_times_s, common_offset_s, main, motion_changes, onset_sync
from vidgen.errors import InputError
from vidgen.media import Clip, write_video

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


def stopping(stop_s, speed_px_s=110, num_frames=40):
    """A ball with a soft pattern that falls at a steady speed and stops at a moment that need not be a frame's."""
    y, x = np.mgrid[:192, :96].astype(float)
    ground = 60 + 20 * np.sin(x / 7) * np.sin(y / 9)
    frames = []
    for index in range(num_frames):
        down, right = y - 16 - speed_px_s * min(index / FPS, stop_s), x - 48
        cover = np.clip(11.5 - np.hypot(down, right), 0, 1)
        ball = 180 + 50 * np.sin(right / 3) * np.cos(down / 3)
        frames.append(ground + cover * (ball - ground))
    return np.stack(frames).round().astype(np.uint8)[..., None].repeat(3, 3)


def test_the_motion_changes_when_the_square_hops():
    changes = motion_changes(optical_flow(frame_luma(hopping())))
    # It moves from one frame to the next: the flow changes at both, and the moment lies between them.
    np.testing.assert_allclose(change_times_s(changes, FPS), (np.array(HOPS) - 0.5) / FPS, atol=0.2 / FPS)
    still = motion_changes(optical_flow(frame_luma(hopping(hops=()))))
    assert len(still) == 38
    assert len(change_times_s(still, FPS)) == 0
    assert len(change_times_s(motion_changes(optical_flow(frame_luma(hopping()[:2]))), FPS)) == 0


@pytest.mark.parametrize("stop_s", [0.75, 0.77, 0.81])
def test_the_stop_of_a_steady_fall_is_its_one_change(stop_s):
    times = change_times_s(motion_changes(optical_flow(frame_luma(stopping(stop_s)))), FPS)
    assert len(times) == 1
    assert times[0] == pytest.approx(stop_s, abs=0.75 / FPS)


def test_a_click_at_the_stop_is_in_sync_and_a_shifted_one_by_as_much_as_it_is_shifted():
    frames = stopping(0.77)
    motion = optical_flow(frame_luma(frames))
    in_time = alignment(clip([0.77], frames), motion)
    assert onset_sync(clip([0.77], frames), motion) == 1
    assert in_time.score > 0.9
    assert in_time.shifted < 0.35  # the edges of what moves steadily change the flow a little
    shifts_s = np.array([-0.32, -0.16, -0.08, 0.08, 0.16, 0.32])
    found = [alignment(clip([0.77 + shift_s], frames), motion) for shift_s in shifts_s]
    assert all(moved.score < 0.6 for moved in found)
    assert all(onset_sync(clip([0.77 + shift_s], frames), motion) == 0 for shift_s in shifts_s)
    offsets_s = [common_offset_s([moved]) - common_offset_s([in_time]) for moved in found]
    np.testing.assert_allclose(offsets_s, shifts_s, atol=0.01)


def test_sounds_of_tabletop_clips_are_told_from_shifted_ones():
    """By both measures, over scenes of one body, simulated and drawn here, with their own sounds."""
    pytest.importorskip("mujoco")
    from vidgen.clip import ClipSpec
    from vidgen.tabletop.physics import simulate_many
    from vidgen.tabletop.source import TabletopClips

    spec = ClipSpec(height=96, width=96)
    batch = TabletopClips(simulate_many(10, seed=5, action="drops"), spec, "any", 3)[
        [(index, 0) for index in range(10)]
    ]
    scores, synced, found = {}, {}, {}
    clips = [
        Clip(frames, sound, spec.frame_rate, spec.sample_rate_hz)
        for frames, (sound,) in zip(batch["video"].numpy(), batch["audio"].numpy(), strict=True)
        # A sound that is there from the start would begin where the shifted one sets in.
        if np.abs(sound[:2400]).max() < 0.01 < np.abs(sound).max()
    ]
    motions = [optical_flow(frame_luma(each.frames)) for each in clips]
    for shift_s in (0.0, -0.16, 0.16):
        moved = [replace(each, waveform=shifted(each.waveform, shift_s)) for each in clips]
        found[shift_s] = [alignment(*pair) for pair in zip(moved, motions, strict=True)]
        scores[shift_s] = np.mean([each.score for each in found[shift_s] if each])
        values = [onset_sync(*pair) for pair in zip(moved, motions, strict=True)]
        synced[shift_s] = np.mean([value for value in values if value is not None])
    true = [each for each in found[0.0] if each]
    assert len(true) >= 6
    assert np.mean([each.score > each.shifted for each in true]) >= 0.8
    assert scores[0.0] > 1.5 * max(scores[-0.16], scores[0.16])
    assert synced[0.0] > 2 * max(synced[-0.16], synced[0.16])
    assert abs(common_offset_s(found[0.0])) < 0.02
    for shift_s in (-0.16, 0.16):
        assert common_offset_s(found[shift_s]) == pytest.approx(shift_s, abs=0.04)


def shifted(waveform, shift_s):
    """Moved in time, silence moving in."""
    samples = round(abs(shift_s) * RATE_HZ)
    silence = np.zeros(samples, np.float32)
    return (
        np.concatenate([silence, waveform])[: len(waveform)] if shift_s > 0 else np.append(waveform[samples:], silence)
    )


def test_sound_at_the_hops_scores_one_and_a_shifted_sound_none():
    in_time = [(hop - 0.5) / FPS for hop in HOPS]
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
    for poor in (clip([]), clip([0.5], frames=hopping(hops=())), clip([0.5], frames=hopping()[:2])):
        assert alignment(poor) is None
    assert common_offset_s([None]) is None
    assert LAGS_S.index(0.0) == len(LAGS_S) // 2
    with pytest.raises(InputError, match="finite"):
        onset_sync(Clip(hopping(), np.full(2000, np.nan, np.float32), Fraction(FPS), RATE_HZ))


def test_a_folders_clips_tell_by_how_much_their_sounds_are_late(tmp_path, monkeypatch, capsys):
    for index, stop_s in enumerate((0.5, 0.75, 0.95)):
        write_video(tmp_path / f"{index}.mp4", stopping(stop_s), clicks([stop_s + 0.12]), FPS, RATE_HZ)
    monkeypatch.setattr("sys.argv", ["eval.sync", str(tmp_path)])
    main()
    told = capsys.readouterr().out.splitlines()
    assert float(told[-1].split()[4]) == pytest.approx(120, abs=20)
    rows = {int(line.split()[0]): float(line.split()[2]) for line in told[1:8]}
    assert rows[0] == rows[160] == 0  # 120 ms late, and 280
    assert max(rows, key=rows.get) in (-80, -160)
    (tmp_path / "silent").mkdir()
    write_video(tmp_path / "silent" / "a.mp4", stopping(0.5), None, FPS)
    monkeypatch.setattr("sys.argv", ["eval.sync", str(tmp_path / "silent")])
    with pytest.raises(InputError, match="none of 1 clips"):
        main()
