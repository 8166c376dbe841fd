"""Regions and likenesses of a video, loops and moves of the camera: masks over the same transformer."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from vidgen import media
from vidgen.conditioning import encode_given
from vidgen.errors import InputError
from vidgen.generation import GenerationConfig
from vidgen.given import Given
from vidgen.loop import looped_spec
from vidgen.material import read_given
from vidgen.pipeline import VidGenPipeline

from .test_given import LONGEST, SPEC, calls, make, noise, pipeline, smooth_frames, to_video  # noqa: F401


def corner_mask(rows=20, columns=10):
    """Marks the upper left corner, of which no edge is one of a latent."""
    mask = np.zeros((1, SPEC.height, SPEC.width), bool)
    mask[:, :rows, :columns] = True
    return mask


def levels_of(call, spec=SPEC):
    return call["video_sigma"].expand(1, spec.latent_frames, spec.latent_height, spec.latent_width)[0]


@torch.no_grad()
def test_a_region_is_made_anew_and_nothing_else(pipeline, calls):  # noqa: F811
    video = smooth_frames(17)
    latents = pipeline.vae.to_latents(to_video(video))
    output = make(pipeline, Given(video=video, mask=corner_mask()), output_type="latent")
    wanted = torch.zeros(5, 2, 4, dtype=torch.bool)
    wanted[:, :2, :1] = True  # latents of 16 pixels, wholly or partly marked
    for call in calls:
        levels = levels_of(call)
        assert torch.equal(levels > 0, wanted)
        assert len(levels[wanted].unique()) == 1
        torch.testing.assert_close(call["video"][0][:, ~wanted], latents[0][:, ~wanted], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.frames[0][:, ~wanted], latents[0][:, ~wanted], atol=1e-4, rtol=1e-4)
    assert (output.frames[0][:, wanted] - latents[0][:, wanted]).abs().mean() > 0.1


@torch.no_grad()
def test_a_region_in_a_span_of_time(pipeline, calls):  # noqa: F811
    rate = float(SPEC.frame_rate)
    given = Given(video=smooth_frames(17), mask=corner_mask(), replaced_video=((5 / rate, 9 / rate),))
    make(pipeline, given, output_type="latent")
    wanted = torch.zeros(5, 2, 4, dtype=torch.bool)
    wanted[2, :2, :1] = True  # frames 5 to 8
    assert torch.equal(levels_of(calls[0]) > 0, wanted)


@torch.no_grad()
def test_a_likeness_starts_from_what_is_there_under_so_much_noise(pipeline, calls):  # noqa: F811
    video, sound = smooth_frames(17), noise(SPEC.num_samples)
    whole = ((0.0, SPEC.duration_s),)
    given = Given(video=video, waveform=sound, replaced_video=whole, replaced_audio=whole, strength=0.3)
    clean = encode_given(replace(given, replaced_video=(), replaced_audio=(), strength=1.0), SPEC, pipeline.vae,
                         pipeline.codec)  # fmt: skip
    make(pipeline, None, output_type="latent")
    from_noise = calls[0]
    calls.clear()
    make(pipeline, given, output_type="latent")
    for name, latents in (("video", clean.video), ("audio", clean.audio)):
        expected = 0.7 * latents + 0.3 * from_noise[name][:1]
        torch.testing.assert_close(calls[0][name][:1], expected, atol=1e-4, rtol=1e-4)
        assert calls[0][f"{name}_sigma"].max() == pytest.approx(0.3 * float(from_noise[f"{name}_sigma"].max()))


@torch.no_grad()
def test_a_likeness_without_sound_makes_the_sound_from_noise(pipeline, calls):  # noqa: F811
    given = Given(video=smooth_frames(17), replaced_video=((0.0, SPEC.duration_s),), strength=0.3)
    make(pipeline, given, output_type="latent")
    assert calls[0]["video_sigma"].max() == pytest.approx(0.3)
    assert calls[0]["audio_sigma"].max() == 1


@torch.no_grad()
@pytest.mark.parametrize("with_picture", [False, True])
def test_a_loop_goes_on_with_its_first_frame(pipeline, calls, with_picture):  # noqa: F811
    picture = smooth_frames(1, seed=5)[0]
    given = Given(keyframes={0: picture}) if with_picture else None
    output = pipeline("a red ball", given=given, num_frames=17, loop=True, generator=torch.Generator().manual_seed(0),
                      output_type="latent")  # fmt: skip
    assert output.frames.shape[2] == SPEC.latent_frames
    assert output.audio.shape[2] == SPEC.audio_latents
    first_alone = [call for call in calls if call["video"].shape[2] == 1]
    assert len(first_alone) == (0 if with_picture else 2)
    whole = [call for call in calls if call["video"].shape[2] == 6]
    for call in whole:
        assert (call["video_sigma"].flatten() == 0).tolist() == [True, False, False, False, False, True]
    shown = pipeline.vae.decode(pipeline.vae.denormalise(output.frames[:, :, :1]))
    held = pipeline.vae.to_latents(shown.expand(-1, -1, 5, -1, -1))[:, :, 1]
    torch.testing.assert_close(whole[0]["video"][:1, :, -1], held, atol=1e-4, rtol=1e-4)
    if with_picture:
        torch.testing.assert_close(output.frames[:, :, 0], pipeline.vae.to_latents(to_video(picture[None]))[:, :, 0],
                                   atol=1e-4, rtol=1e-4)  # fmt: skip


def test_a_clip_too_short_for_a_loop():
    with pytest.raises(InputError, match="too short"):
        looped_spec(replace(SPEC, num_frames=5))


WRONG = [
    (Given(mask=corner_mask()), "needs the video"),
    (Given(video=smooth_frames(17), mask=corner_mask()[:, :16]), "16, 64"),
    (Given(video=smooth_frames(17), mask=corner_mask(rows=0)), "marks nothing"),
    (Given(video=smooth_frames(17), strength=0.0), "strength"),
    (Given(video=smooth_frames(9), strength=0.5), "fills the clip"),
    (Given(keyframes={0: smooth_frames(1)[0]}, strength=0.5), "strength"),
]


@pytest.mark.parametrize(("given", "reason"), WRONG, ids=[reason for _, reason in WRONG])
def test_edits_that_do_not_fit(given, reason):
    with pytest.raises(InputError, match=reason):
        given.check(SPEC)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("edits")
    media.write_video(folder / "clip.mp4", smooth_frames(14), 0.3 * noise(14000), 24, crf=1)
    media.write_video(folder / "wide.mp4", smooth_frames(5, height=64, width=160), None, 24)
    Image.fromarray(np.where(corner_mask()[0], 255, 0).astype(np.uint8)).save(folder / "mask.png")
    wide = np.zeros((64, 160), np.uint8)
    wide[32:, 96:] = 255
    Image.fromarray(wide).save(folder / "wide.png")
    cameras = {"zooms-in": "the camera zooms in"}
    GenerationConfig(num_frames=17, height=32, width=64, cameras=cameras).save(folder)
    return folder


def test_a_mask_is_cropped_as_its_video_is(files):
    """64×160 is cut to 64×128 in the middle, and halved."""
    given, _, _ = read_given(SPEC, LONGEST, video=files / "wide.mp4", mask=files / "wide.png")
    mask = given.mask[0]
    assert mask.shape == (32, 64)
    assert mask[17:, 41:].all()
    assert not mask[:15].any()
    assert not mask[:, :39].any()


def test_a_mask_for_each_frame_of_a_clip_in_memory():
    """Frames of the mask go where those of the clip go, here at half the rate."""
    clip = media.Clip(smooth_frames(18), None, Fraction(48), 24000)
    masks = np.zeros((18, 32, 64), bool)
    masks[10:12, :16, :16] = True  # frame 5 of the clip at 24 frames a second
    given, spec, _ = read_given(SPEC, LONGEST, video=clip, mask=masks)
    assert spec.num_frames == 9
    sites = given.video_mask(spec)
    wanted = np.zeros((3, 2, 4), bool)
    wanted[2, 0, 0] = True
    assert np.array_equal(sites, ~wanted)
    with pytest.raises(InputError, match="one for each frame"):
        read_given(SPEC, LONGEST, video=clip, mask=masks[:5])
    with pytest.raises(InputError, match="does not fit the video"):
        read_given(SPEC, LONGEST, video=clip, mask=masks[:, :16])


BAD_FLAGS = [
    ("--mask mask.png", "need --video"),
    ("--strength 0.5", "need --video"),
    ("--video clip.mp4 --strength 1.5", "--strength lies above 0"),
    ("--video clip.mp4 --strength 0", "--strength lies above 0"),
    ("--video clip.mp4 --strength 0.5 --image mask.png", "no other picture"),
    ("--video clip.mp4 --mask mask.png --only audio", "--only audio"),
    ("--video clip.mp4 --mask mask.png --extend 1", "not both"),
    ("--video clip.mp4 --mask mask.png --duration 1", "--duration"),
    ("--video clip.mp4 --mask wide.png", "160×64 does not fit clip.mp4, which has 64×32"),
    ("--video clip.mp4 --mask clip.mp4", "cannot be read as a picture"),
    ("--loop --last-image mask.png", "--loop"),
    ("--loop --video clip.mp4 --strength 0.5", "--loop"),
    ("--camera flies", "this model knows zooms-in"),
]


@pytest.mark.parametrize(("flags", "reason"), BAD_FLAGS, ids=[flags for flags, _ in BAD_FLAGS])
def test_bad_flags_are_one_clear_line(files, flags, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(files)
    with pytest.raises(InputError, match=reason) as caught:
        sample.main(["--prompt", "a red ball", "--model", ".", "--output", str(tmp_path), *flags.split()])
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_sample_edits_loops_and_moves_the_camera(pipeline, files, tmp_path, monkeypatch, calls):  # noqa: F811
    monkeypatch.setattr(VidGenPipeline, "from_pretrained", lambda *_args, **_settings: pipeline)
    monkeypatch.setattr(pipeline, "generation", replace(pipeline.generation, cameras={"zooms-in": "the camera zooms"}))
    asked = []
    encode = pipeline.encode_text
    monkeypatch.setattr(pipeline, "encode_text", lambda prompts: (asked.extend(prompts), encode(prompts))[1])
    monkeypatch.chdir(files)

    def run(flags):
        calls.clear()
        path = tmp_path / "out.mp4"
        sample.main(["--prompt", "a red ball", "--model", ".", "--seed", "1", "--output", str(path), *flags.split()])
        return media.read_clip(path)

    clip = run("--video clip.mp4 --mask mask.png")
    assert len(clip.frames) == 14
    assert (calls[0]["video_sigma"] == 0).any()
    assert (calls[0]["video_sigma"] > 0).any()
    assert (calls[0]["audio_sigma"] == 0).all()
    run("--video clip.mp4 --strength 0.5 --only video")
    assert (calls[0]["video_sigma"] == 0.5).all()
    assert (calls[0]["audio_sigma"] == 0).all()
    asked.clear()
    clip = run("--loop --camera zooms-in")
    assert len(clip.frames) == 17
    assert asked[0] == "a red ball, the camera zooms"
