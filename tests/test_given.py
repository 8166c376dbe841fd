"""Material of the user's own comes back as given, and the rest is made, on a tiny random model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vidgen.clip import ClipSpec
from vidgen.conditioning import encode_given
from vidgen.errors import InputError
from vidgen.given import Given
from vidgen.pipeline import VidGenPipeline

from .test_pipeline import make_pipeline, seeded

SPEC = ClipSpec(num_frames=17, height=32, width=64)
LONGEST = replace(SPEC, num_frames=34)
HOP = SPEC.compression.samples
ONE_LEVEL = 1  # of 255: decoding in another length may round another way


@pytest.fixture(scope="module")
def pipeline() -> VidGenPipeline:
    """Fresh layers hide mistakes: those over time pass a frame on unchanged, those of the network put out zero."""
    pipe = make_pipeline()
    torch.manual_seed(1)
    for parameter in pipe.vae.parameters():
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 2 and len(parameter) == 3 else 0.02))
    pipe.vae.set_latent_statistics(torch.full((24,), 0.3), torch.full((24,), 1.7))
    pipe.codec.set_latent_statistics(torch.full((32,), -0.2), torch.full((32,), 0.6))
    return pipe


@pytest.fixture
def calls(pipeline):
    """What the network was called with: keyword arguments, and ``video`` and ``audio`` among them."""
    seen: list[dict] = []

    def remember(_module, args, kwargs):
        seen.append(kwargs | {"video": args[0], "audio": args[1]})

    handle = pipeline.transformer.register_forward_pre_hook(remember, with_kwargs=True)
    yield seen
    handle.remove()


def smooth_frames(count, seed=0, height=32, width=64):
    """A moving pattern; every frame differs from the others."""
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    t, y, x = np.meshgrid(np.arange(count), np.arange(height), np.arange(width), indexing="ij")
    channels = [np.sin(x / 9 + t / 3 + p) * np.cos(y / 7 - t / 5 + 2 * p) for p in phase]
    return (127.5 + 120 * np.stack(channels, axis=-1)).round().astype(np.uint8)


def noise(num_samples, seed=0):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, num_samples).astype(np.float32)


def to_video(frames):
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def to_bytes(video):
    return ((video[0].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 3, 0).numpy().astype(int)


def make(pipeline, given, num_frames=17, **settings):
    return pipeline("a red ball", given=given, num_frames=num_frames, generator=seeded(0), **settings)


@torch.no_grad()
def assert_given(pipeline, calls, given, places, latents, audio_places=(), spec=SPEC):
    """The network sees ``latents`` at ``places`` with noise level 0 in every call, noise elsewhere, and so it ends."""
    calls.clear()
    output = make(pipeline, given, spec.num_frames, output_type="latent")
    assert len(calls) == 2
    for call in calls:
        levels = call["video_sigma"].expand(1, spec.latent_frames, 1, 1).flatten()
        torch.testing.assert_close(call["video"][:1, :, places], latents, atol=1e-4, rtol=1e-4)
        assert torch.equal(call["video"][0], call["video"][1]), "both prompts of the guidance see the same"
        assert torch.equal(call["video"][:1, :, places], output.frames[:, :, places]), "not moved by the solver"
        expected = torch.full_like(levels, float(levels.max()))
        expected[places] = 0
        assert torch.equal(levels, expected)
        heard = call["audio_sigma"].expand(1, spec.audio_latents)[0]
        assert (heard == 0).nonzero().flatten().tolist() == list(audio_places)
    free = [place for place in range(spec.latent_frames) if place not in places]
    nothing = make(pipeline, None, spec.num_frames, output_type="latent")
    assert len(calls) == 4
    first = calls[2]["video"][:, :, free]
    assert torch.equal(calls[0]["video"][:, :, free], first), "what is wanted starts from the same noise"
    if free:
        assert not torch.allclose(output.frames[:, :, free], nothing.frames[:, :, free], atol=1e-3)
    return output


@torch.no_grad()
def test_a_first_picture(pipeline, calls):
    picture = smooth_frames(1)
    latents = pipeline.vae.to_latents(to_video(picture))
    assert_given(pipeline, calls, Given(keyframes={0: picture[0]}), [0], latents)
    output = make(pipeline, Given(keyframes={0: picture[0]}))
    own = to_bytes(pipeline.vae.from_latents(latents))[0]
    assert np.abs(output.frames[0, 0] - own).max() <= ONE_LEVEL
    assert np.abs(make(pipeline, None).frames[0, 0] - own).mean() > 10 * ONE_LEVEL


@pytest.mark.parametrize(("frame", "place"), [(1, 1), (4, 1), (5, 2), (16, 4)])
@torch.no_grad()
def test_a_keyframe_is_a_held_picture(pipeline, calls, frame, place):
    picture = smooth_frames(1, seed=frame)
    held = pipeline.vae.to_latents(to_video(picture.repeat(5, axis=0)))
    given = Given(keyframes={frame: picture[0]})
    output = assert_given(pipeline, calls, given, [place], held[:, :, 1:])
    own = to_bytes(pipeline.vae.from_latents(output.frames))
    assert np.abs(make(pipeline, given).frames[0] - own).max() <= ONE_LEVEL


@torch.no_grad()
def test_pictures_at_both_ends_keep_their_places(pipeline, calls):
    first, last = smooth_frames(1, seed=1), smooth_frames(1, seed=2)
    latents = [pipeline.vae.to_latents(to_video(picture.repeat(5, axis=0))) for picture in (first, last)]
    expected = torch.cat([latents[0][:, :, :1], latents[1][:, :, 1:]], dim=2)
    spec = replace(SPEC, num_frames=15)  # its last latent frame is not full
    given = Given(keyframes={14: last[0], 0: first[0]})
    assert_given(pipeline, calls, given, [0, 4], expected, spec=spec)


@torch.no_grad()
def test_going_on_after_a_clip_keeps_it(pipeline, calls):
    frames, sound = smooth_frames(11), noise(11000)
    given = Given(video=frames, waveform=sound)
    latents = pipeline.vae.to_latents(to_video(frames[:9]))  # frames 9 and 10 do not fill a latent frame
    assert_given(pipeline, calls, given, [0, 1, 2], latents, range(11000 // HOP))
    output = make(pipeline, given)
    own = to_bytes(pipeline.vae.from_latents(latents))
    assert np.abs(output.frames[0, :9] - own).max() <= ONE_LEVEL
    assert np.array_equal(output.audio[0, :11000], sound)
    assert np.abs(output.audio[0, 11000:]).max() > 0


@torch.no_grad()
def test_leading_up_to_a_clip_keeps_it(pipeline, calls):
    frames, sound = smooth_frames(8), noise(8000)
    given = Given(video=frames, waveform=sound, start_frame=9)
    latents = pipeline.vae.to_latents(to_video(np.concatenate([frames[:1], frames])))[:, :, 1:]
    assert_given(pipeline, calls, given, [3, 4], latents, range(-(-9000 // HOP), SPEC.audio_latents))
    output = make(pipeline, given)
    # The decoder knows the frames before: what is given is decoded as it is after those that were made.
    made = make(pipeline, given, output_type="latent").frames
    torch.testing.assert_close(made[:, :, 3:], latents, atol=1e-4, rtol=1e-4)
    assert np.abs(output.frames[0] - to_bytes(pipeline.vae.from_latents(made))).max() <= ONE_LEVEL
    assert np.array_equal(output.audio[0, 9000:], sound)
    assert output.audio.shape == (1, 17000)
    unaligned = replace(given, start_frame=10, video=frames[:7])
    assert unaligned.video_mask(SPEC).flatten().tolist() == [False] * 4 + [True]
    conditioning = encode_given(unaligned, SPEC, pipeline.vae, pipeline.codec)
    expected = pipeline.vae.to_latents(to_video(np.concatenate([frames[[0, 0]], frames[:7]])))[:, :, 2]
    torch.testing.assert_close(conditioning.video[:, :, 4], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_replaced_span_is_made_anew_and_nothing_else(pipeline, calls):
    frames, sound = smooth_frames(17), noise(17000)
    span = (6.5 / 24, 9 / 24)  # frames 6 to 8: in latent frame 2 (frames 5 to 8)
    latents = pipeline.vae.to_latents(to_video(frames))
    kept = [0, 1, 3, 4]
    given = Given(video=frames, waveform=sound, replaced_video=(span,), replaced_audio=(span,))
    heard = [place for place in range(SPEC.audio_latents) if (place + 1) * HOP <= 6500 or place * HOP >= 9000]
    latent_output = assert_given(pipeline, calls, given, kept, latents[:, :, kept], heard)
    assert not torch.allclose(latent_output.frames[:, :, 2], latents[:, :, 2], atol=0.1)

    output, own = make(pipeline, given), to_bytes(pipeline.vae.from_latents(latents))
    assert np.abs(output.frames[0, :5] - own[:5]).max() <= ONE_LEVEL
    assert np.abs(output.frames[0, 5:9] - own[5:9]).mean() > 10 * ONE_LEVEL
    assert np.array_equal(output.audio[0, :6500], sound[:6500])
    assert np.array_equal(output.audio[0, 9000:], sound[9000:])
    assert np.abs(output.audio[0, 6500:9000] - sound[6500:9000]).mean() > 0.1

    only_sound = make(pipeline, replace(given, replaced_video=()))
    assert np.array_equal(only_sound.frames[0], frames)
    assert not np.array_equal(only_sound.audio[0, 6500:9000], sound[6500:9000])
    only_picture = make(pipeline, replace(given, replaced_audio=()))
    assert np.array_equal(only_picture.audio[0], sound)
    assert np.abs(only_picture.frames[0, 5:9] - own[5:9]).mean() > 10 * ONE_LEVEL


@torch.no_grad()
def test_a_sound_for_a_picture_and_a_picture_for_a_sound(pipeline, calls):
    frames, sound = smooth_frames(15), noise(15000)
    spec = replace(SPEC, num_frames=15)
    padded = to_video(np.concatenate([frames, frames[-1:], frames[-1:]]))
    latents = pipeline.vae.to_latents(padded)
    assert_given(pipeline, calls, Given(video=frames), range(5), latents, spec=spec)
    assert np.array_equal(make(pipeline, Given(video=frames), 15).frames[0], frames), "no detour through the VAE"
    tensor = make(pipeline, Given(video=frames), 15, output_type="pt").frames
    assert torch.equal(tensor, to_video(frames))
    nearly = make(pipeline, Given(video=frames[:13]), 15).frames[0, :13]
    own = to_bytes(pipeline.vae.from_latents(latents))[:13]
    assert np.abs(nearly - own).max() <= ONE_LEVEL
    assert not np.array_equal(nearly, frames[:13])
    calls.clear()
    output = make(pipeline, Given(waveform=sound), 15)
    assert np.array_equal(output.audio[0], sound)
    clean = pipeline.codec.to_latents(torch.from_numpy(sound)[None, None])
    for call in calls:
        torch.testing.assert_close(call["audio"][:1], clean)
        assert (call["audio_sigma"] == 0).all()
        assert (call["video_sigma"] > 0).all()
    assert not np.array_equal(make(pipeline, Given(waveform=-sound), 15).frames, output.frames)


def test_without_sound(pipeline, calls):
    given = Given(keyframes={0: smooth_frames(1)[0]})
    output = make(pipeline, given, with_audio=False)
    assert output.audio is None
    assert all(call["audio"] is None and call["audio_sigma"] is None for call in calls)
    assert not np.array_equal(output.frames[0, 8:], make(pipeline, None, with_audio=False).frames[0, 8:])


def test_a_batch_shares_the_material_and_a_tensor_holds_the_same_sound(pipeline):
    frames, sound = smooth_frames(9), noise(9000)
    given = Given(video=frames, waveform=sound)
    output = pipeline(["a red ball", "a blue cube"], given=given, num_frames=17, output_type="pt")
    assert torch.equal(output.audio[:, :9000], torch.from_numpy(sound).expand(2, -1))
    torch.testing.assert_close(output.frames[0, :, :9], output.frames[1, :, :9], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(output.frames[0, :, 9:], output.frames[1, :, 9:], atol=1e-2)


def test_given_and_made_sound_meet_without_a_step():
    time_s = np.arange(SPEC.num_samples) / SPEC.sample_rate_hz
    sound = (0.5 * np.sin(2 * np.pi * 100 * time_s)).astype(np.float32)
    made = np.full((2, SPEC.num_samples), -0.5, np.float32)
    given = Given(waveform=sound, replaced_audio=((0.2027, 0.3041),))
    back = given.put_back(made, SPEC)
    start, end = round(0.2027 * 24000), round(0.3041 * 24000)
    assert np.array_equal(back[1, :start], sound[:start])
    assert np.array_equal(back[1, end:], sound[end:])
    assert np.array_equal(back[1, start + 120 : end - 120], made[1, start + 120 : end - 120])
    largest_step = np.abs(np.diff(sound)).max() + 1 / 120
    assert np.abs(np.diff(back)).max() <= largest_step
    assert np.abs(np.diff(np.where(given.samples_mask(SPEC), sound, made))).max() > 5 * largest_step
    assert Given().put_back(made, SPEC) is made


WRONG_MATERIAL = [
    (Given(keyframes={17: smooth_frames(1)[0]}), "0 to 16"),
    (Given(keyframes={5: smooth_frames(1)[0], 8: smooth_frames(1)[0]}), "keyframe 8"),
    (Given(keyframes={0: smooth_frames(1)[0]}, video=smooth_frames(5)), "keyframe 0"),
    (Given(keyframes={0: smooth_frames(1, width=32)[0]}), "uint8"),
    (Given(video=smooth_frames(5).astype(np.float32)), "uint8"),
    (Given(video=smooth_frames(17), replaced_video=((0.5, 0.8),)), "0.5-0.8"),
    (Given(waveform=noise(9000), start_frame=17), "frame 17"),
    (Given(waveform=noise(9000)[None]), "sound"),
    (Given(waveform=noise(18001)), "longer than the clip"),
    (Given(waveform=noise(12000), start_frame=8), "longer than the clip"),
    (Given(waveform=np.full(9000, np.nan, np.float32)), "between -1 and 1"),
    (Given(waveform=3 * noise(9000)), "between -1 and 1"),
    (Given(waveform=(9000 * noise(9000)).astype(np.int16)), "floats"),
    (Given(waveform=[0.0] * 9000), "numpy"),
    (Given(video=[*smooth_frames(5)]), "numpy"),
    (Given(video=smooth_frames(5)[:0]), "T, H, W"),
    (Given(video=smooth_frames(1)[0]), "T, H, W"),
    (Given(keyframes={0: Image.new("RGB", (64, 32))}), "numpy"),
    (Given(keyframes={1.5: smooth_frames(1)[0]}), "number of frame"),
    (Given(video=smooth_frames(17), replaced_video=(0.1, 0.3)), "pairs of seconds"),
    ({"video": smooth_frames(17)}, "vidgen.given.Given"),
]


@pytest.mark.parametrize(("given", "reason"), WRONG_MATERIAL, ids=[reason for _, reason in WRONG_MATERIAL])
def test_material_that_does_not_fit(pipeline, given, reason):
    with pytest.raises(InputError, match=reason):
        make(pipeline, given)


def test_sound_may_reach_a_frame_beyond_the_clip(pipeline):
    """Rates that do not divide one another leave up to half a frame."""
    sound = noise(18000)
    assert np.array_equal(make(pipeline, Given(waveform=sound)).audio[0], sound[:17000])


def test_a_loop_takes_no_end(pipeline):
    for settings in ({"last_image": smooth_frames(1)[0]}, {"given": Given(video=smooth_frames(17))}):
        with pytest.raises(InputError, match="a loop ends with its first frame"):
            make(pipeline, **{"given": None} | settings, loop=True)
