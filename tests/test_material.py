"""Material in memory is read as the same material in a file is."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from vidgen.clip import ClipSpec
from vidgen.errors import InputError
from vidgen.material import read_given
from vidgen.media import Clip, write_video

SPEC = ClipSpec(num_frames=17, height=32, width=64)
LONGEST = replace(SPEC, num_frames=34)
STEP = 6  # of 255, between frames: more than the coder is wrong by


def numbered(count):
    """Frame k has level 6·k everywhere."""
    levels = (STEP * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, 48, 64, 3)).copy()


def numbers(frames):
    return np.rint(frames.mean(axis=(1, 2, 3)) / STEP).astype(int).tolist()


def tone(num_samples, rate_hz):
    """Rising, so that a shift in time shows."""
    time_s = np.arange(num_samples) / rate_hz
    return (0.4 * np.sin(2 * np.pi * (200 + 300 * time_s) * time_s)).astype(np.float32)


@pytest.mark.parametrize("rate", [Fraction(24), Fraction(30), Fraction(25, 2), Fraction(30000, 1001)])
@pytest.mark.parametrize("task", [{"extend_s": 0.5}, {"extend_s": -0.5}, {"only": "audio"}, {"replaced": (0.2, 0.4)}])
def test_memory_and_file_give_the_same(tmp_path, rate, task):
    count = 40
    clip = Clip(numbered(count), tone(round(count / rate * 48000), 48000), rate, 48000)
    write_video(tmp_path / "clip.mp4", clip.frames, clip.waveform, rate, 48000, crf=4)
    (held, held_spec, held_notes), (read, read_spec, read_notes) = (
        read_given(SPEC, LONGEST, video=source, **task) for source in (clip, tmp_path / "clip.mp4")
    )
    assert held_spec == read_spec
    assert numbers(held.video) == numbers(read.video)
    assert [line.split(": ")[1] for line in held_notes] == [line.split(": ")[1] for line in read_notes]
    assert (held.waveform is None) == (read.waveform is None)
    assert held.start_frame == read.start_frame
    if held.waveform is not None:
        assert len(held.waveform) == len(read.waveform)
        inner = slice(500, -500)
        assert np.corrcoef(held.waveform[inner], read.waveform[inner])[0, 1] > 0.99


def test_a_waveform_in_memory():
    given, spec, notes = read_given(SPEC, LONGEST, audio=(tone(24000, 48000), 48000))
    assert (spec.num_frames, notes) == (12, [])
    assert np.corrcoef(given.waveform[100:-100], tone(12000, 24000)[100:-100])[0, 1] > 0.99
    with pytest.raises(InputError, match=r"the sound: lasts longer than a clip of this model can, 1\.42 s"):
        read_given(SPEC, LONGEST, audio=(tone(240000, 48000), 48000))
    given, spec, notes = read_given(SPEC, LONGEST, audio=(tone(240000, 48000), 48000), has_duration=True)
    assert (spec, len(given.waveform)) == (SPEC, SPEC.num_samples)
    assert "first 0.708 s" in notes[0]
