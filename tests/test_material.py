"""Material in memory is read as the same material in a file is; and places of a video that are made anew."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from vidgen.clip import ClipSpec
from vidgen.conditioning import encode_given
from vidgen.errors import InputError
from vidgen.given import Given
from vidgen.material import read_given
from vidgen.media import Clip, write_video

from .test_pipeline import make_pipeline, seeded

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
    given, spec, notes = read_given(SPEC, LONGEST, audio=(tone(240000, 48000), 48000))
    assert spec.num_frames == 34
    assert "first 1.42 s" in notes[0]


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


def remade(*places, frames=1):
    """Places are (frame, row, column) of single pixels."""
    mask = np.zeros((frames, 32, 64), bool)
    for place in places:
        mask[place] = True
    return mask


def test_one_pixel_frees_its_token_in_its_latent_frame(pipeline):
    video = np.zeros((17, 32, 64, 3), np.uint8)
    free = np.zeros((5, 2, 4), bool)
    given = Given(video=video, remade=remade((6, 31, 32), frames=17))  # the second half, frames 5 to 8
    free[2, :, 2:] = True
    conditioning = encode_given(given, SPEC, pipeline.vae, pipeline.codec, token=2)
    assert np.array_equal(~conditioning.video_given[0].numpy(), free)
    single = encode_given(given, SPEC, pipeline.vae, pipeline.codec, token=1)
    assert (~single.video_given).nonzero().tolist() == [[0, 2, 1, 2]]
    for_all = encode_given(replace(given, remade=remade((0, 0, 0))), SPEC, pipeline.vae, pipeline.codec, token=2)
    assert torch.equal(~for_all.video_given[0, :, 0], torch.tensor([[True, True, False, False]] * 5))
    none = encode_given(replace(given, remade=remade()), SPEC, pipeline.vae, pipeline.codec, token=2)
    plain = encode_given(Given(video=video), SPEC, pipeline.vae, pipeline.codec)
    assert torch.equal(none.video, plain.video)
    assert none.video_given.all()


def test_what_is_not_remade_stays_and_the_rest_starts_from_noise(pipeline):
    video = np.random.default_rng(0).integers(0, 255, (17, 32, 64, 3), np.uint8)
    given = Given(video=video, remade=remade((0, 5, 40)))
    clean = encode_given(Given(video=video), SPEC, pipeline.vae, pipeline.codec).video
    settings = {"num_frames": 17, "generator": seeded(0), "output_type": "latent"}
    made = pipeline("a red ball", given=given, **settings).frames
    torch.testing.assert_close(made[..., :2], clean[..., :2], atol=1e-4, rtol=1e-4)
    assert ((made - clean)[..., 2:].abs() > 1e-2).float().mean() > 0.9


def test_a_keyframe_in_a_replaced_span_is_no_place_of_the_video(pipeline):
    video = np.zeros((17, 32, 64, 3), np.uint8)
    given = Given(video=video, keyframes={6: video[0]}, replaced_video=((5 / 24, 9 / 24),), remade=remade((0, 0, 0)))
    mask = given.remade_mask(SPEC, token=2)
    assert mask[:, 0, 0].tolist() == [True, True, False, True, True]


@pytest.mark.parametrize(
    "mask", [np.zeros((2, 32, 64), bool), np.zeros((1, 16, 64), bool), np.zeros((1, 32, 64), np.uint8)]
)
def test_a_mask_that_does_not_fit(mask):
    with pytest.raises(InputError, match="mask"):
        Given(video=np.zeros((17, 32, 64, 3), np.uint8), remade=mask).check(SPEC)
    with pytest.raises(InputError, match="mask"):
        Given(remade=mask).check(SPEC)


def test_a_mask_follows_its_video_in_time_and_space():
    video = Clip(numbered(34), None, Fraction(48), 48000)
    mask = np.zeros((34, 96, 64), bool)
    mask[10:20, 32:64] = True  # the middle third of a picture that is cropped to it
    given, spec, _ = read_given(SPEC, LONGEST, video=video, remade=mask)
    assert (spec.num_frames, given.remade.shape) == (17, (17, 32, 64))
    assert given.remade.all(axis=(1, 2)).nonzero()[0].tolist() == [5, 6, 7, 8, 9]
    assert given.remade.any(axis=(1, 2)).nonzero()[0].tolist() == [5, 6, 7, 8, 9]
