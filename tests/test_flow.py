import pytest
import torch

from vidgen.errors import InputError
from vidgen.flow import (
    FlowConfig,
    draw_noise,
    draw_noise_levels,
    draw_noises,
    draw_region,
    flow_loss,
    interpolate,
    preconditioning,
    sample_sigma,
    shift_sigma,
    velocity_target,
)
from vidgen.noise import seeded_normal

VIDEO, AUDIO = (4, 5, 2, 2), (3, 9)


class Recorder(torch.nn.Module):
    """Answers 0 and keeps what it was asked."""

    def forward(self, video, audio, text, **rest):
        self.video, self.audio, self.rest = video, audio, rest
        return tuple(None if x is None else torch.zeros_like(x) for x in (video, audio))


def loss_of(model, video, audio, seeds, config, has_audio=None, focus=None):
    return flow_loss(
        model, video, audio, torch.zeros(len(video), 1, 2), has_audio=has_audio, focus=focus,
        video_times_s=torch.arange(5.0), audio_times_s=torch.arange(9.0), seeds=seeds, config=config,
    )  # fmt: skip


def test_the_path_joins_clean_and_noise_with_the_target_as_its_slope():
    clean, noise = torch.randn(2, 3, 4, dtype=torch.float64).unbind()
    sigma = torch.tensor(0.37, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.functional.jvp(lambda s: interpolate(clean, noise, s), sigma, torch.ones_like(sigma))[1]
    assert torch.allclose(slope, velocity_target(clean, noise))
    assert torch.equal(interpolate(clean, noise, torch.tensor(0.0)), clean)
    assert torch.equal(interpolate(clean, noise, torch.tensor(1.0)), noise)


@pytest.mark.parametrize("sigma", [0.0, 0.3, 0.85, 1.0])
@pytest.mark.parametrize("std", [0.2, 1.0, 4.0])
def test_preconditioning_leaves_what_is_unpredictable_from_x_alone_at_unit_variance(sigma, std):
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 200000, generator=generator, dtype=torch.float64).unbind()
    clean = clean * std
    x = interpolate(clean, noise, torch.tensor(sigma))
    scale, skip, gain = preconditioning(torch.tensor(sigma), torch.tensor(std))
    rest = (velocity_target(clean, noise) - skip * x) / gain
    assert (scale * x).std() == pytest.approx(1, rel=0.01)
    assert rest.std() == pytest.approx(1, rel=0.01)
    assert (rest * scale * x).mean() == pytest.approx(0, abs=0.01)


def test_shift_keeps_the_ends_and_composes():
    sigma = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.equal(shift_sigma(sigma, 3.0)[[0, -1]], sigma[[0, -1]])
    assert torch.allclose(shift_sigma(shift_sigma(sigma, 3.0), 2.0), shift_sigma(sigma, 6.0))
    assert torch.allclose(shift_sigma(shift_sigma(sigma, 3.0), 1 / 3), sigma)
    assert (shift_sigma(sigma, 3.0)[1:-1] > sigma[1:-1]).all()


def test_sampled_levels_are_logit_normal():
    normal = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    logits = torch.logit(sample_sigma(normal, shift=1.0, mean=0.4, std=0.7).double())
    assert logits.mean() == pytest.approx(0.4, abs=0.02)
    assert logits.std() == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("mode", ["shared", "per_modality", "per_frame", "region"])
@pytest.mark.parametrize("frames", [1, 2, 13])
def test_every_mode_leaves_something_wanted_and_draws_valid_levels(mode, frames):
    generator = torch.Generator().manual_seed(1)
    config = FlowConfig(given=0.7)
    for _ in range(200):
        video, audio = draw_noise_levels(mode, (frames, 3, 4), 20, config, generator)
        assert video.shape == ((frames, 3, 4) if mode == "region" else (frames, 1, 1))
        assert audio.shape == (20,)
        assert min(video.min(), audio.min()) >= 0
        assert max(video.max(), audio.max()) < 1
        assert (video > 0).any() or (mode == "per_modality" and (audio > 0).all())
        if mode == "shared":
            assert (video == audio[0]).all()


def test_modes_differ_as_named():
    generator = torch.Generator().manual_seed(2)
    config = FlowConfig(given=0.0, audio_shift=2.0)
    video, audio = draw_noise_levels("shared", (6, 3, 4), 8, config, generator)
    assert torch.allclose(shift_sigma(video[0].flatten(), 2.0), audio)
    video, audio = draw_noise_levels("per_modality", (6, 3, 4), 8, config, generator)
    assert len(video.unique()) == len(audio.unique()) == 1
    assert not torch.isclose(shift_sigma(video[0], 2.0), audio[0])
    video, audio = draw_noise_levels("per_frame", (6, 3, 4), 8, config, generator)
    assert len(video.unique()) == 6
    assert len(audio.unique()) == 8
    with pytest.raises(InputError):
        draw_noise_levels("per_pixel", (6, 3, 4), 8, config, generator)


def test_given_draws_cover_foley_scoring_and_extension():
    generator = torch.Generator().manual_seed(3)
    config = FlowConfig(given=1.0)
    draws = [draw_noise_levels("per_modality", (6, 3, 4), 12, config, generator) for _ in range(40)]
    assert {(bool((v == 0).all()), bool((a == 0).all())) for v, a in draws} == {(True, False), (False, True)}
    draws = [draw_noise_levels("per_frame", (6, 3, 4), 12, config, generator) for _ in range(80)]
    assert all(0 < int((video == 0).sum()) < 6 for video, _ in draws)
    with_sound = [(video, audio) for video, audio in draws if (audio == 0).any()]
    assert with_sound
    for video, audio in with_sound:
        count = int((video == 0).sum())
        assert (video[:count] == 0).all()
        assert (audio[: 2 * count] == 0).all()
        assert (audio[2 * count :] > 0).all()


def test_regions_cover_inpainting_outpainting_and_editing_of_a_span():
    generator = torch.Generator().manual_seed(4)
    draws = [draw_region((5, 4, 6), generator) for _ in range(200)]
    assert all(wanted.any() for wanted in draws)
    spans = {tuple(wanted.any(2).any(1).tolist()) for wanted in draws}
    assert (True,) * 5 in spans
    assert len(spans) > 5
    boxed = holed = 0
    for wanted in draws:
        shown = wanted[wanted.any(2).any(1)]
        assert (shown == shown[0]).all()  # the same place in every frame of the span
        rows, columns = shown[0].any(1), shown[0].any(0)
        boxed += torch.equal(shown[0], rows[:, None] & columns)
        rows, columns = (~shown[0]).any(1), (~shown[0]).any(0)
        holed += torch.equal(~shown[0], rows[:, None] & columns)
    assert boxed > 60
    assert holed > 60
    sounds = [draw_noise_levels("region", (5, 4, 6), 8, FlowConfig(), generator)[1] for _ in range(40)]
    assert 8 < sum(bool((audio == 0).all()) for audio in sounds) < 32


def test_what_is_given_of_a_region_adds_nothing_to_the_loss():
    class Probe(torch.nn.Module):
        def forward(self, video, audio, text, *, video_sigma, **_):
            self.given = (video_sigma == 0).expand(video.shape[0], *video.shape[2:])
            self.unchanged = torch.equal(video[0][:, self.given[0]], clean[0][:, self.given[0]])
            answer = torch.zeros_like(video)
            answer[self.given.unsqueeze(1).expand_as(video)] = 1e6  # would be seen
            return answer, torch.zeros_like(audio)

    clean, audio = torch.randn(8, *VIDEO), torch.randn(8, *AUDIO)
    config, probe = FlowConfig(shared=0, per_modality=0, per_frame=0, region=1), Probe()
    times = {"video_times_s": torch.zeros(VIDEO[1]), "audio_times_s": torch.zeros(AUDIO[1])}
    loss, parts = flow_loss(probe, clean, audio, torch.zeros(8, 1, 4), seeds=range(8), config=config, **times)
    assert probe.given.any()
    assert probe.unchanged
    assert loss < 10
    assert parts["video"] < 10


def test_a_samples_draw_depends_on_its_seed_alone():
    config = FlowConfig(shared=1, per_modality=1, per_frame=1, region=1)
    first, again, other = (draw_noise(seed, VIDEO, AUDIO, config) for seed in (5, 5, 6))
    assert torch.equal(first.video, again.video)
    assert torch.equal(first.video_sigma, again.video_sigma)
    assert not torch.equal(first.video, other.video)
    both = seeded_normal([7, 8], VIDEO)
    assert torch.equal(both[1:], seeded_normal([8], VIDEO))
    assert abs(float(seeded_normal([1], (50000,)).std()) - 1) < 0.02


def test_a_batch_of_draws_is_its_samples_draws_with_modes_as_often_as_asked_for():
    config = FlowConfig(shared=6, per_modality=1, per_frame=3, region=0, given=0, video_shift=3.0, audio_shift=2.0)
    batch = draw_noises(range(1000), VIDEO, AUDIO, config)
    for row in range(0, 1000, 97):
        alone = draw_noise(row, VIDEO, AUDIO, config)
        for name in ("video", "audio", "video_sigma", "audio_sigma"):
            assert torch.equal(getattr(batch, name)[row], getattr(alone, name))
    per_frame = (batch.video_sigma.diff(dim=1) != 0).flatten(1).any(1)
    together = torch.isclose(shift_sigma(batch.video_sigma[:, 0, 0, 0], 2 / 3), batch.audio_sigma[:, 0], atol=1e-5)
    assert per_frame.double().mean() == pytest.approx(0.3, abs=0.05)
    assert (together & ~per_frame).double().mean() == pytest.approx(0.6, abs=0.05)
    logits = torch.logit(shift_sigma(batch.video_sigma[together & ~per_frame, 0, 0, 0], 1 / 3).double())
    assert logits.mean() == pytest.approx(0, abs=0.12)
    assert logits.std() == pytest.approx(1, abs=0.1)


def test_loss_is_the_variance_for_a_model_that_answers_zero():
    video, audio = torch.zeros(64, *VIDEO), torch.zeros(64, *AUDIO)
    config = FlowConfig(shared=1, per_modality=0, per_frame=0, region=0, video_weight=2.0, audio_weight=3.0)
    loss, parts = loss_of(Recorder(), video, audio, range(64), config)
    assert parts["video"] == pytest.approx(1.0, abs=0.1)
    assert parts["audio"] == pytest.approx(1.0, abs=0.1)
    assert torch.isclose(loss, 2 * parts["video"] + 3 * parts["audio"])


def test_a_perfect_model_has_no_loss_and_is_asked_on_the_path():
    config = FlowConfig(shared=0, per_modality=0, per_frame=1, region=0, given=0.0)
    clean_video, clean_audio = torch.randn(3, *VIDEO), torch.randn(3, *AUDIO)

    class Oracle(torch.nn.Module):
        def forward(self, video, audio, text, *, video_sigma, audio_sigma, **rest):
            video_sigma, audio_sigma = video_sigma.unsqueeze(1), audio_sigma.unsqueeze(1)
            return (video - clean_video) / video_sigma, (audio - clean_audio) / audio_sigma

    loss, _ = loss_of(Oracle(), clean_video, clean_audio, [1, 2, 3], config)
    assert loss < 1e-6


def test_given_latents_are_shown_clean_and_do_not_count():
    config = FlowConfig(shared=0, per_modality=0, per_frame=1, region=0, given=1.0)
    video, audio = torch.randn(8, *VIDEO), torch.randn(8, *AUDIO)
    model = Recorder()
    loss, _ = loss_of(model, video, audio, range(8), config)
    given = model.rest["video_sigma"].expand(8, 5, 2, 2) == 0
    assert given.any()
    assert torch.equal(model.video.movedim(1, -1)[given], video.movedim(1, -1)[given])
    wrong = video.movedim(1, -1).clone()
    wrong[given] += 1e3
    assert loss_of(model, wrong.movedim(-1, 1), audio, range(8), config)[0] == loss


def test_samples_without_sound_show_noise_and_do_not_count():
    config = FlowConfig(shared=1, per_modality=1, per_frame=1, region=1)
    video, audio = torch.randn(4, *VIDEO), torch.randn(4, *AUDIO)
    has_audio = torch.tensor([True, False, True, False])
    model = Recorder()
    loss, parts = loss_of(model, video, audio, range(4), config, has_audio)
    assert (model.rest["audio_sigma"][~has_audio] == 1).all()
    changed = audio.clone()
    changed[~has_audio] = 1e3
    loss_changed, parts_changed = loss_of(model, video, changed, range(4), config, has_audio)
    assert loss_changed == loss
    assert parts_changed["audio"] == parts["audio"]
    assert loss_of(model, video, audio, range(4), config, torch.zeros(4, dtype=torch.bool))[1]["audio"] == 0


def test_latents_in_focus_count_as_often_as_asked_for():
    config = FlowConfig(shared=1, per_modality=0, per_frame=0, region=0, audio_weight=0.0, focus_weight=3.0)
    video, audio = torch.randn(6, *VIDEO), torch.randn(6, *AUDIO)
    focus = torch.rand(6, 5, 2, 2) < 0.3
    model = Recorder()
    plain, parts = loss_of(model, video, audio, range(6), config)
    sigma = model.rest["video_sigma"][:, None]
    error = ((model.video - video) / sigma).square().mean(1)  # its answer is 0, so it is wrong by the velocity
    loss, focused = loss_of(model, video, audio, range(6), config, focus=focus)
    assert plain == pytest.approx(error.mean().item(), rel=1e-4)
    assert loss == pytest.approx((error.sum() + 2 * error[focus].sum()).item() / focus.numel())
    assert focused["video"] == parts["video"]
    halves = [
        loss_of(model, video[half], audio[half], range(6)[half], config, focus=focus[half])[0].item()
        for half in (slice(0, 3), slice(3, 6))
    ]
    assert sum(halves) / 2 == pytest.approx(loss.item())  # as processes share a batch


def test_two_halves_of_a_batch_average_to_the_whole():
    config = FlowConfig(shared=1, per_modality=1, per_frame=1, region=1)
    video, audio = torch.randn(6, *VIDEO), torch.randn(6, *AUDIO)
    has_audio = torch.tensor([True, False, False, True, True, True])
    whole, _ = loss_of(Recorder(), video, audio, range(6), config, has_audio)
    halves = [
        loss_of(Recorder(), video[part], audio[part], range(6)[part], config, has_audio[part])[0]
        for part in (slice(0, 3), slice(3, 6))
    ]
    assert torch.isclose(sum(halves) / 2, whole)


@pytest.mark.parametrize("wrong", [{"shared": -1.0}, {"video_shift": 0.0}, {"given": 1.5}, {"focus_weight": 0.0},
                                   {"shared": 0.0, "per_modality": 0.0, "per_frame": 0.0, "region": 0.0}])  # fmt: skip
def test_impossible_settings_are_named(wrong):
    with pytest.raises(InputError):
        FlowConfig(**wrong)


def test_without_audio_the_picture_is_learned_as_with_it():
    video, audio = torch.randn(3, *VIDEO), torch.randn(3, *AUDIO)
    config = FlowConfig(shared=1, per_modality=0, per_frame=0, region=0, video_weight=2.0)
    alone, both = Recorder(), Recorder()
    loss, parts = loss_of(alone, video, None, [1, 2, 3], config)
    _, parts_of_both = loss_of(both, video, audio, [1, 2, 3], config)
    assert alone.audio is None
    assert alone.rest["audio_sigma"] is None
    assert torch.equal(alone.video, both.video)
    assert set(parts) == {"video"}
    assert parts["video"] == pytest.approx(float(parts_of_both["video"]))
    assert loss == pytest.approx(2 * float(parts["video"]))


def test_without_a_picture_the_sound_is_learned_and_never_given():
    audio = torch.randn(64, *AUDIO)
    config = FlowConfig(shared=0, per_modality=1, per_frame=0, given=1.0, audio_weight=3.0)
    model = Recorder()
    loss, parts = flow_loss(
        model, None, audio, torch.zeros(64, 1, 2), video_times_s=None, audio_times_s=torch.arange(float(AUDIO[1])),
        seeds=range(64), config=config,
    )  # fmt: skip
    assert model.video is None
    assert model.rest["video_sigma"] is None
    assert (model.rest["audio_sigma"] > 0).all()
    assert set(parts) == {"audio"}
    assert loss == pytest.approx(3 * float(parts["audio"]))
    with pytest.raises(InputError, match="nothing to learn"):
        flow_loss(
            model, None, None, torch.zeros(0, 1, 2), video_times_s=None, audio_times_s=None, seeds=[], config=config
        )


def test_errors_by_noise_level_add_up_to_the_whole_and_stand_where_they_belong():
    config = FlowConfig(shared=0, per_modality=1, per_frame=1)
    video, audio = torch.randn(8, *VIDEO), torch.randn(8, *AUDIO)
    has_audio = torch.tensor([True] * 6 + [False] * 2)
    model = Recorder()
    _, parts = flow_loss(
        model, video, audio, torch.zeros(8, 1, 1), has_audio=has_audio, video_times_s=torch.arange(VIDEO[1]),
        audio_times_s=torch.arange(AUDIO[1]), seeds=range(8), config=config, levels=4,
    )  # fmt: skip
    sites = model.rest["video_sigma"].expand(8, *VIDEO[1:]).flatten(1)
    for name, sigma in (("video", sites), ("audio", model.rest["audio_sigma"])):
        ranges = [f"{name}_noise_{k}_of_4" for k in (1, 2, 3, 4)]
        total, seen = (sum(float(parts[f"{key}{end}"]) for key in ranges) for end in ("", "_seen"))
        assert total / seen == pytest.approx(float(parts[name]), rel=1e-5)
        counted = sigma[sigma > 0] if name == "video" else sigma[:6][sigma[:6] > 0]
        edges = torch.tensor([0.25, 0.5, 0.75])
        here = torch.bucketize(counted, edges, right=True).bincount(minlength=4)
        assert [float(parts[f"{key}_seen"]) for key in ranges] == here.tolist()
