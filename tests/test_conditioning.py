from dataclasses import replace

import pytest
import torch

from vidgen.conditioning import Conditioning, given_frames, guided_velocity, stack_texts
from vidgen.errors import InputError
from vidgen.solvers import euler, euler_ancestral, heun, sigma_schedule

TIMES = {"video_times_s": torch.arange(3.0), "audio_times_s": torch.arange(4.0)}
SIGMA = (torch.tensor(0.5), torch.tensor(0.25))


class Model(torch.nn.Module):
    """Velocity: the mean of the prompt's features, plus the noise level of each token; counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, video, audio, text, *, text_mask, video_sigma, audio_sigma, **times):
        self.calls.append(len(text))
        words = (text * text_mask[..., None]).sum((1, 2)) / text_mask.sum(1)
        moved = (
            None if video is None else torch.zeros_like(video) + words.view(-1, 1, 1, 1, 1) + video_sigma.unsqueeze(1)
        )
        heard = None if audio is None else torch.zeros_like(audio) + words.view(-1, 1, 1) + audio_sigma.unsqueeze(1)
        return moved, heard


def text(value, length):
    return torch.full((2, length, 1), value), torch.ones(2, length, dtype=torch.bool)


def streams():
    return torch.randn(2, 5, 3, 2, 2), torch.randn(2, 6, 4)


def first_frame_given():
    latents = torch.randn(2, 5, 1, 2, 2)
    clean, given = given_frames(latents, [0], 3)
    return latents, Conditioning(video=clean, video_given=given)


def test_guidance_goes_beyond_the_prompt_for_each_modality_by_its_own_scale():
    model = Model()
    velocity = guided_velocity(model, text(3.0, 2), text(1.0, 4), video_guidance=5.0, audio_guidance=0.5, **TIMES)
    video, audio = velocity(streams(), SIGMA)
    assert torch.allclose(video, torch.full_like(video, 1 + 5 * (3 - 1) + 0.5))
    assert torch.allclose(audio, torch.full_like(audio, 1 + 0.5 * (3 - 1) + 0.25))
    assert model.calls == [4]


def test_without_guidance_the_negative_prompt_is_not_computed():
    model = Model()
    video, _ = guided_velocity(model, text(3.0, 2), text(1.0, 4), **TIMES)(streams(), SIGMA)
    assert model.calls == [2]
    assert torch.allclose(video, torch.full_like(video, 3.5))


def test_guidance_needs_a_negative_prompt():
    with pytest.raises(InputError, match="negative"):
        guided_velocity(Model(), text(3.0, 2), video_guidance=2.0)


def test_modality_guidance_goes_beyond_what_each_stream_is_beside_pure_noise():
    noise = streams()

    class Paired(Model):
        """Each stream is told the noise level of the other."""

        def forward(self, video, audio, text, *, video_sigma, audio_sigma, **rest):
            if audio is not None and (audio_sigma == 1).all():
                assert torch.equal(audio, noise[1])
            if video is not None and (video_sigma == 1).all():
                assert torch.equal(video, noise[0])
            moved, heard = super().forward(video, audio, text, video_sigma=video_sigma, audio_sigma=audio_sigma, **rest)
            if moved is None or heard is None:
                return moved, heard
            return moved + 10 * audio_sigma.view(1, -1, 1, 1, 1), heard + 100 * video_sigma.view(1, -1, 1)

    model = Paired()
    scales = {"video_guidance": 5.0, "audio_guidance": 0.5, "modality_scale": 3.0}
    call = guided_velocity(model, text(3.0, 2), text(1.0, 4), **scales, **TIMES, noise=noise)
    video, audio = call(streams(), SIGMA)
    assert torch.allclose(video, torch.full_like(video, 1 + 5 * (3 - 1) + 0.5 + 2.5 + 2 * 10 * (0.25 - 1)))
    assert torch.allclose(audio, torch.full_like(audio, 1 + 0.5 * (3 - 1) + 0.25 + 50 + 2 * 100 * (0.5 - 1)))
    assert model.calls == [4, 2, 2]  # beside noise under the prompt only
    silent = guided_velocity(model, text(3.0, 2), modality_scale=3.0, **TIMES)((streams()[0], None), SIGMA)
    assert torch.allclose(silent[0], torch.full_like(silent[0], 3.5))


@pytest.mark.parametrize("absent", [0, 1])
def test_either_modality_may_be_absent(absent):
    x = tuple(None if index == absent else stream for index, stream in enumerate(streams()))
    out = guided_velocity(Model(), text(3.0, 2), text(1.0, 2), video_guidance=2.0, **TIMES)(x, SIGMA)
    assert out[absent] is None
    assert out[1 - absent] is not None


def test_modality_guidance_needs_the_noise():
    with pytest.raises(InputError, match="noise"):
        guided_velocity(Model(), text(3.0, 2), modality_scale=2.0, **TIMES)(streams(), SIGMA)


def test_each_clip_of_a_batch_may_be_given_something_else_under_guidance():
    clean, _ = streams()
    given = torch.zeros(2, 3, 1, 1, dtype=torch.bool)
    given[0, 0] = given[1, 2] = True
    conditioning = Conditioning(video=clean, video_given=given)
    model = Model()
    velocity = guided_velocity(
        model, text(3.0, 2), text(1.0, 2), video_guidance=5.0, conditioning=conditioning, **TIMES
    )
    video, _ = velocity(streams(), SIGMA)
    assert (video[0, :, 0] == 0).all()
    assert (video[1, :, 2] == 0).all()
    assert torch.allclose(video[0, :, 1:], torch.full_like(video[0, :, 1:], 1 + 5 * (3 - 1) + 0.5))


@pytest.mark.parametrize("solver", [euler, heun, euler_ancestral])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_given_latents_come_out_bit_for_bit_and_the_rest_moves(solver, guidance):
    latents, conditioning = first_frame_given()
    noise = streams()
    velocity = guided_velocity(
        Model(), text(3.0, 2), text(1.0, 2), video_guidance=guidance, conditioning=conditioning, **TIMES
    )

    def put_back(step, clean, x):
        return conditioning.kept(x)

    video, audio = solver(velocity, conditioning.start(noise), sigma_schedule(3), put_back)
    assert torch.equal(video[:, :, :1], latents)
    assert not torch.isclose(video[:, :, 1:], noise[0][:, :, 1:]).any()
    assert not torch.isclose(audio, noise[1]).any()


def test_the_model_is_told_that_given_tokens_are_clean():
    _, conditioning = first_frame_given()
    assert conditioning.video_sigma(torch.tensor(0.7)).flatten().tolist() == pytest.approx([0, 0.7, 0.7])
    assert conditioning.audio_sigma(torch.tensor(0.7)).shape == (1, 1)
    nothing = Conditioning()
    assert nothing.video_sigma(torch.tensor(0.7)).shape == (1, 1, 1, 1)


@pytest.mark.parametrize("most", [0.4, 1.0])
def test_what_is_given_may_be_shown_under_some_noise_and_comes_out_clean(most):
    latents, conditioning = first_frame_given()
    conditioning = replace(conditioning, given_noise=most)
    noise, seen = streams(), []

    class Watched(Model):
        def forward(self, video, audio, text, **rest):
            seen.append((video[:2], audio[:2], rest["video_sigma"].flatten().tolist(), rest["audio_sigma"]))
            return super().forward(video, audio, text, **rest)

    velocity = guided_velocity(
        Watched(), text(3.0, 2), text(1.0, 2), video_guidance=3.0, conditioning=conditioning, noise=noise, **TIMES
    )
    schedule = sigma_schedule(4)
    video, _ = euler(velocity, conditioning.start(noise), schedule)
    assert torch.equal(video[:, :, :1], latents)
    for (shown, _, video_sigma, audio_sigma), level in zip(seen, schedule.tolist(), strict=False):
        assert video_sigma == pytest.approx([min(most, level), level, level])
        assert audio_sigma.flatten().tolist() == pytest.approx([level])
        expected = (1 - min(most, level)) * latents + min(most, level) * noise[0][:, :, :1]
        torch.testing.assert_close(shown[:, :, :1], expected)
    assert torch.equal(seen[0][1], noise[1]), "nothing is given of the sound"


def test_frames_are_put_in_their_places_counted_from_either_end():
    latents = torch.randn(1, 2, 2, 3)
    clean, given = given_frames(latents, [1, -1], 5)
    assert torch.equal(clean[:, :, [1, 4]], latents)
    assert given.flatten().tolist() == [False, True, False, False, True]
    assert (clean[:, :, [0, 2, 3]] == 0).all()


@pytest.mark.parametrize("indices", [[0], [0, 0], [0, -5], [0, 5], [-6, 1]])
def test_impossible_places_are_named(indices):
    with pytest.raises(InputError, match="latent"):
        given_frames(torch.randn(1, 2, 2, 3), indices, 5)


@pytest.mark.parametrize("wrong", [
    {"video": torch.zeros(1, 2, 3, 4, 4)},
    {"audio_given": torch.ones(1, 4, dtype=torch.bool)},
    {"audio": torch.zeros(1, 2, 4), "audio_given": torch.ones(1, 4)},
    {"audio": torch.zeros(1, 2, 4), "audio_given": torch.ones(1, 3, dtype=torch.bool)},
])  # fmt: skip
def test_masks_that_do_not_fit_are_named(wrong):
    with pytest.raises(InputError, match="given"):
        Conditioning(**wrong)


def test_the_shorter_prompts_are_padded_and_masked():
    features, mask = stack_texts(text(3.0, 2), text(1.0, 4))
    assert features.shape == (4, 4, 1)
    assert mask.sum(1).tolist() == [2, 2, 4, 4]
    assert (features[:2, 2:] == 0).all()
