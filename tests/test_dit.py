import pytest
import torch
from torch import nn

from vidgen.conditioning import guided_velocity
from vidgen.dit.model import JointDiT, LocalConvolutions
from vidgen.dit.rope import MAX_TIME_HZ, apply_rotary, audio_angles, video_angles
from vidgen.errors import InputError
from vidgen.flow import FlowConfig, flow_loss, preconditioning
from vidgen.noise import seeded_normal
from vidgen.solvers import euler, sigma_schedule

VIDEO_TIMES_S = torch.tensor([0.0, 0.1, 0.27])
AUDIO_TIMES_S = torch.arange(4) * 0.04 + 0.02
TINY = {
    "video_channels": 3, "audio_channels": 2, "text_dim": 8, "width": 32, "depth": 2, "heads": 2, "patch": 2,
    "text_layers": 1, "local_width": 4, "video_std": [0.5, 1.0, 3.0], "audio_std": [1.0, 2.0],
}  # fmt: skip
PLAIN = {**TINY, "local_width": 0, "video_std": None, "audio_std": None}


def tiny(**changes) -> JointDiT:
    """A tiny model in eval mode whose every part has an effect (fresh ones answer 0)."""
    torch.manual_seed(0)
    model = JointDiT(**{**TINY, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def inputs(batch=2, words=5):
    torch.manual_seed(1)
    return {
        "video": torch.randn(batch, 3, 3, 4, 2),
        "audio": torch.randn(batch, 2, 4),
        "text": torch.randn(batch, words, 8),
        "text_mask": torch.ones(batch, words, dtype=torch.bool),
        "video_sigma": torch.full((1, 1, 1, 1), 0.6),
        "audio_sigma": torch.full((1, 1), 0.6),
        "video_times_s": VIDEO_TIMES_S,
        "audio_times_s": AUDIO_TIMES_S,
    }


@torch.no_grad()
def answer(model, **changes):
    return model(**{**inputs(), **changes})


def same(first, second, atol=1e-5):
    return all(torch.allclose(a, b, atol=atol) for a, b in zip(first, second, strict=True))


# --- positions ---


def test_attention_logits_see_only_differences_of_time_and_place():
    query, key = torch.randn(2, 16).unbind()
    early, late = (video_angles(VIDEO_TIMES_S + shift, 3, 2, 16) for shift in (0.0, 1.7))
    logits = []
    for angles in (early, late):
        turned_query, turned_key = (apply_rotary(x, angles.cos(), angles.sin()) for x in (query, key))
        logits.append(turned_query @ turned_key.T)
    assert torch.allclose(*logits, atol=1e-4)
    assert logits[0].std() > 0.1


def test_video_and_audio_share_the_time_axis():
    video, audio = video_angles(VIDEO_TIMES_S, 1, 1, 64), audio_angles(VIDEO_TIMES_S, 64)
    assert torch.equal(video, audio)


def test_each_clip_of_a_batch_may_have_its_own_times():
    model, shifts = tiny(), torch.tensor([[0.0], [0.9]])
    times = {"video_times_s": VIDEO_TIMES_S + shifts, "audio_times_s": AUDIO_TIMES_S + shifts}
    together = answer(model, **times)
    for clip in range(2):
        own = {name: value[clip : clip + 1] for name, value in inputs().items() if name in ("video", "audio", "text")}
        own |= {name: value[clip] for name, value in times.items()}
        alone = answer(model, **own, text_mask=None)
        assert same(alone, [stream[clip : clip + 1] for stream in together])
    assert not same(together, answer(model), atol=1e-3)
    only_video = answer(model, video_times_s=times["video_times_s"])
    assert same([only_video[0][:1]], [answer(model)[0][:1]])


def test_neighbouring_audio_latents_are_told_apart_without_wrapping():
    fastest = audio_angles(torch.tensor([0.0, 0.04]), 64)[1].max()
    assert 1 < fastest < torch.pi
    assert fastest == pytest.approx(2 * torch.pi * MAX_TIME_HZ * 0.04)


def test_rotation_keeps_lengths_and_zero_is_the_identity():
    x = torch.randn(3, 16)
    angles = torch.randn(3, 8)
    assert torch.allclose(apply_rotary(x, angles.cos(), angles.sin()).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(apply_rotary(x, torch.ones(3, 8), torch.zeros(3, 8)), x)


# --- the network ---


def test_a_fresh_model_answers_zero_with_the_shapes_of_its_input():
    video, audio = JointDiT(**PLAIN)(**inputs())
    assert video.shape == (2, 3, 3, 4, 2)
    assert audio.shape == (2, 2, 4)
    assert (video == 0).all()
    assert (audio == 0).all()


def test_a_fresh_preconditioned_model_answers_the_linear_guess_of_every_channel_at_every_noise_level():
    given = inputs()
    video_sigma, audio_sigma = torch.rand(2, 3, 4, 2), torch.rand(2, 4)
    video, audio = JointDiT(**TINY)(**{**given, "video_sigma": video_sigma, "audio_sigma": audio_sigma})
    for velocity, noisy, sigma, std in (
        (video, given["video"], video_sigma[:, None], torch.tensor(TINY["video_std"]).view(3, 1, 1, 1)),
        (audio, given["audio"], audio_sigma[:, None], torch.tensor(TINY["audio_std"]).view(2, 1)),
    ):
        assert torch.allclose(velocity, preconditioning(sigma, std).skip * noisy, atol=1e-6)


def test_convolutions_cross_the_seams_of_patches_but_not_frames():
    local, video = LocalConvolutions(3, 8), torch.randn(1, 3, 3, 6, 4)
    moved = video.clone()
    moved[:, :, 1, 2, 1] += 1  # the corner of a patch
    change = (local.stem(moved) - local.stem(video)).abs().amax((0, 1))
    assert (change[1, :5, :4] > 0).all()
    assert (change[1, 5] == 0).all()
    assert (change[[0, 2]] == 0).all()
    nn.init.normal_(local.head_out.weight)
    stem, answer = torch.randn(2, 1, 8, 3, 6, 4).unbind()
    assert local.head(stem, answer).shape == video.shape
    assert not torch.allclose(local.head(stem, answer), local.head(stem, answer * 2))


def test_padding_has_no_influence_and_words_have():
    model, given = tiny(), inputs()
    plain = answer(model)
    padded = torch.cat((given["text"], torch.randn(2, 3, 8) * 9), dim=1)
    mask = torch.cat((given["text_mask"], torch.zeros(2, 3, dtype=torch.bool)), dim=1)
    assert same(answer(model, text=padded, text_mask=mask), plain)
    assert same(answer(model, text_mask=None), plain)
    assert not same(answer(model, text=given["text"].roll(1, dims=-1)), plain, atol=1e-3)


def test_the_order_of_the_words_matters():
    model, given = tiny(), inputs()
    assert not same(answer(model, text=given["text"].flip(1)), answer(model), atol=1e-3)


def test_a_prompt_of_nothing_but_padding_is_finite():
    for video in answer(tiny(), text_mask=torch.zeros(2, 5, dtype=torch.bool)):
        assert video.isfinite().all()


def test_samples_do_not_see_one_another():
    model, given = tiny(), inputs()
    alone = answer(model, **{key: given[key][:1] for key in ("video", "audio", "text", "text_mask")})
    assert same([stream[:1] for stream in answer(model)], alone)


def test_each_modality_hears_the_other_and_may_be_absent():
    model, given = tiny(), inputs()
    video, audio = answer(model)
    assert not torch.allclose(answer(model, audio=given["audio"] + 1)[0], video, atol=1e-3)
    assert not torch.allclose(answer(model, video=given["video"] + 1)[1], audio, atol=1e-3)
    silent, nothing = answer(model, audio=None, audio_sigma=None, audio_times_s=None)
    assert nothing is None
    assert silent.shape == video.shape
    assert not torch.allclose(silent, video, atol=1e-3)
    nothing, blind = answer(model, video=None, video_sigma=None, video_times_s=None)
    assert nothing is None
    assert blind.shape == audio.shape


def test_absent_audio_is_the_same_as_no_audio_tokens():
    model, given = tiny(), inputs()
    empty = answer(model, audio=given["audio"][:, :, :0], audio_sigma=torch.zeros(1, 1), audio_times_s=torch.zeros(0))
    assert torch.allclose(empty[0], answer(model, audio=None)[0], atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (1, 3, 1, 1), (2, 3, 1, 1), (1, 1, 4, 2), (2, 3, 4, 2)])
def test_a_constant_noise_level_may_have_any_broadcastable_shape(shape):
    model = tiny()
    plain = answer(model)
    assert same(answer(model, video_sigma=torch.full(shape, 0.6)), plain)
    assert same(answer(model, audio_sigma=torch.full((2, 4), 0.6)), plain)


def test_every_tokens_noise_level_reaches_that_token():
    """With one frame's level changed, that frame changes most; with attention cut off, it alone changes."""
    model = tiny(local_width=0)  # convolutions tell a token of its neighbours
    with torch.no_grad():
        for block in model.blocks:
            block.attn.proj.weight.zero_()
    plain_video, plain_audio = answer(model)
    sigma = torch.full((1, 3, 1, 1), 0.6)
    sigma[:, 1] = 0.1
    video, audio = answer(model, video_sigma=sigma)
    assert not torch.allclose(video[:, :, 1], plain_video[:, :, 1], atol=1e-3)
    assert torch.allclose(video[:, :, [0, 2]], plain_video[:, :, [0, 2]], atol=1e-5)
    assert torch.allclose(audio, plain_audio, atol=1e-5)

    sigma = torch.full((1, 3, 4, 2), 0.6)
    sigma[:, 2, :2] = 0.0  # the upper of the last frame's two tokens
    video, _ = answer(model, video_sigma=sigma)
    assert not torch.allclose(video[:, :, 2, :2], plain_video[:, :, 2, :2], atol=1e-3)
    assert torch.allclose(video[:, :, 2, 2:], plain_video[:, :, 2, 2:], atol=1e-5)

    sigma = torch.tensor([[0.6, 0.6, 0.6, 0.1]])
    _, audio = answer(model, audio_sigma=sigma)
    assert not torch.allclose(audio[..., 3], plain_audio[..., 3], atol=1e-3)
    assert torch.allclose(audio[..., :3], plain_audio[..., :3], atol=1e-5)


def test_every_parameter_gets_a_gradient_and_checkpointing_gives_the_same():
    model = tiny()

    def gradients():
        model.zero_grad()
        video, audio = model(**inputs())
        (video.square().sum() + audio.square().sum()).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain = gradients()
    assert all(gradient.abs().sum() > 0 for name, gradient in plain.items())
    model.train().enable_gradient_checkpointing()
    checkpointed = gradients()
    assert all(torch.allclose(checkpointed[name], plain[name], rtol=1e-3, atol=1e-4) for name in plain)


def test_bfloat16_autocast_stays_close():
    model = tiny()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = answer(model)
    for low, full in zip(rounded, answer(model), strict=True):
        assert (low.float() - full).norm() < 0.03 * full.norm()


@pytest.mark.parametrize("changes", [
    {"video": torch.zeros(2, 3, 3, 3, 2)},
    {"video": torch.zeros(2, 3, 3, 4, 1)},
    {"video": torch.zeros(2, 4, 3, 4, 2)},
    {"audio": torch.zeros(2, 3, 4)},
    {"text": torch.zeros(2, 5, 9)},
    {"text_mask": torch.ones(2, 4, dtype=torch.bool)},
    {"video_sigma": None},
    {"video_sigma": torch.zeros(2, 2, 1, 1)},
    {"audio_sigma": torch.zeros(2, 3)},
    {"video_times_s": torch.zeros(4)},
    {"audio_times_s": torch.zeros(3)},
    {"video": None, "audio": None},
])  # fmt: skip
def test_what_does_not_fit_is_named(changes):
    with pytest.raises(InputError):
        answer(tiny(), **changes)


def test_a_width_that_heads_cannot_share_is_named():
    with pytest.raises(InputError, match="width"):
        JointDiT(**{**TINY, "width": 40})


def test_saved_and_loaded_is_the_same(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    loaded = JointDiT.from_pretrained(tmp_path)
    assert dict(loaded.config)["width"] == 32
    assert same(answer(loaded), answer(model), atol=0)


# --- learning ---


def test_two_clips_are_learned_and_sampled_by_their_prompts():
    torch.manual_seed(0)
    model = JointDiT(video_channels=2, audio_channels=2, text_dim=4, width=64, depth=2, heads=2, patch=1, text_layers=1)
    video, audio = torch.randn(2, 2, 3, 2, 1), torch.randn(2, 2, 4)
    features, mask = torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    times = {"video_times_s": VIDEO_TIMES_S, "audio_times_s": AUDIO_TIMES_S}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.99))
    steps, copies = 240, 8
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, 2 * (1 - step / steps))
        loss, _ = flow_loss(
            model, video.repeat(copies, 1, 1, 1, 1), audio.repeat(copies, 1, 1), features.repeat(copies, 1, 1),
            text_mask=mask.repeat(copies, 1), **times, seeds=range(step * 2 * copies, (step + 1) * 2 * copies),
            config=FlowConfig(),
        )  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    noise = seeded_normal([91, 92], (2, 3, 2, 1)), seeded_normal([93, 94], (2, 4))
    with torch.no_grad():
        made = euler(guided_velocity(model.eval(), (features, mask), **times), noise, sigma_schedule(12))
    for stream, truth in zip(made, (video, audio), strict=True):
        error = (stream - truth).square().mean().sqrt()
        assert error < 0.12 * (truth[0] - truth[1]).square().mean().sqrt()
