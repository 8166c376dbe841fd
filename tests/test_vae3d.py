"""The spacetime VAE: causality, streaming, tiling, the cosine code, the losses, and that it learns."""

import pytest
import torch

from vidgen.bottleneck import KLBottleneck, Posterior, make_bottleneck
from vidgen.clip import ClipSpec
from vidgen.vae3d.autoencoder import SpacetimeVAE
from vidgen.vae3d.layers import CosineCode, frames_to_patches, group, patches_to_frames, ungroup
from vidgen.vae3d.losses import (
    VAELossWeights,
    VideoDiscriminator,
    discriminator_loss,
    perceptual_loss,
    steerable_kernels,
    vae_loss,
)
from vidgen.vae3d.tiling import decode_tiled

SMALL = {"latent_channels": 8, "width": 32, "encoder_depth": 2, "decoder_depth": 2, "image_channels": 16}


def rough_vae(seed: int = 0, **sizes) -> SpacetimeVAE:
    """A small model in which nothing is zero, so that every path counts."""
    torch.manual_seed(seed)
    vae = SpacetimeVAE(**{**SMALL, **sizes}).eval()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return vae


def moving_shapes(clips: int, frames: int, size: int, seed: int = 0) -> torch.Tensor:
    """Discs and squares that cross a gradient, (B, 3, T, H, W) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    video = torch.empty(clips, 3, frames, size, size)
    for clip in video:
        colours = torch.rand(2, 3, 1, 1, generator=generator) * 2 - 1
        start, velocity = torch.rand(2, 2, generator=generator) - 0.5
        radius = 0.25 + 0.25 * torch.rand((), generator=generator)
        square = torch.rand((), generator=generator) < 0.5
        for frame in range(frames):
            dx, dy = x - start[0] - 0.2 * velocity[0] * frame, y - start[1] - 0.2 * velocity[1] * frame
            distance = torch.maximum(dx.abs(), dy.abs()) if square else torch.hypot(dx, dy)
            inside = torch.sigmoid((radius - distance) * 30)
            clip[:, frame] = colours[0] * (1 - 0.3 * y) * 0.7 * (1 - inside) + colours[1] * inside
    return video


@pytest.mark.parametrize("frames", [1, 5, 17])
def test_shapes_follow_the_clock(frames):
    vae = rough_vae()
    spec = ClipSpec(num_frames=frames, height=32, width=48)
    video = torch.rand(2, 3, frames, 32, 48) * 2 - 1
    posterior = vae.encode(video)
    assert posterior.mean.shape == (2, 8, spec.latent_frames, spec.latent_height, spec.latent_width)
    assert vae.decode(posterior.mean).shape == video.shape


@pytest.mark.parametrize(("temporal", "spatial"), [(1, 8), (2, 4), (8, 32)])
def test_other_compressions(temporal, spatial):
    vae = rough_vae(temporal_compression=temporal, spatial_compression=spatial)
    video = torch.rand(1, 3, 1 + 2 * temporal, 32, 64)
    latents = vae.encode(video).mode()
    assert latents.shape == (1, 8, 3, 32 // spatial, 64 // spatial)
    assert vae.decode(latents).shape == video.shape


@pytest.mark.parametrize("cut", [1, 5, 9, 13])
def test_encoder_is_causal(cut):
    vae = rough_vae()
    video = torch.rand(1, 3, 17, 32, 32) * 2 - 1
    changed = video.clone()
    changed[:, :, cut:] = torch.rand_like(changed[:, :, cut:])
    first, second = vae.encode(video), vae.encode(changed)
    kept = 1 + (cut - 1) // 4
    for a, b in ((first.mean, second.mean), (first.logvar, second.logvar)):
        torch.testing.assert_close(a[:, :, :kept], b[:, :, :kept], rtol=0, atol=1e-6)
        assert (a[:, :, kept] - b[:, :, kept]).abs().max() > 1e-3


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_decoder_is_causal(cut):
    vae = rough_vae()
    latents = torch.randn(1, 8, 5, 2, 2)
    changed = latents.clone()
    changed[:, :, cut:] = torch.randn_like(changed[:, :, cut:])
    first, second = vae.decode(latents), vae.decode(changed)
    kept = 1 + 4 * (cut - 1)
    torch.testing.assert_close(first[:, :, :kept], second[:, :, :kept], rtol=0, atol=1e-5)
    assert (first[:, :, kept] - second[:, :, kept]).abs().max() > 1e-3


def test_an_image_is_a_one_frame_video():
    vae = rough_vae()
    video = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    torch.testing.assert_close(vae.encode(video).mean[:, :, :1], vae.encode(video[:, :, :1]).mean, rtol=0, atol=1e-6)


def test_a_still_clip_has_the_code_of_its_picture():
    vae = rough_vae()
    image = torch.rand(1, 3, 1, 32, 32) * 2 - 1
    still = vae.encode(image.expand(-1, -1, 9, -1, -1)).mean
    torch.testing.assert_close(still, still[:, :, :1].expand_as(still), rtol=0, atol=1e-5)


@pytest.mark.parametrize("lengths", [[5], [1, 4], [2, 1, 2], [1, 1, 1, 1, 1]])
def test_streamed_decoding_equals_whole(lengths):
    vae = rough_vae()
    latents = torch.randn(2, 8, 5, 2, 3)
    parts = list(vae.decode_stream(iter(latents.split(lengths, dim=2))))
    assert [part.shape[2] for part in parts] == [4 * length - 3 * (not index) for index, length in enumerate(lengths)]
    torch.testing.assert_close(torch.cat(parts, dim=2), vae.decode(latents), rtol=0, atol=1e-5)


def test_stream_yields_before_the_next_chunk_is_asked_for():
    asked = []

    def chunks():
        for index in range(3):
            asked.append(index)
            yield torch.zeros(1, 8, 1, 2, 2)

    stream = rough_vae().decode_stream(chunks())
    assert next(stream).shape[2] == 1
    assert asked == [0]


def test_stream_refuses_chunks_of_another_size():
    chunks = [torch.zeros(1, 8, 1, 2, 2), torch.zeros(1, 8, 1, 2, 3)]
    with pytest.raises(ValueError, match="chunk"):
        list(rough_vae().decode_stream(chunks))


@pytest.mark.parametrize("size", [(9, 13), (16, 8), (5, 21)])
def test_tiled_decoding_equals_whole_at_full_overlap(size):
    vae = rough_vae()
    overlap = 2 * vae.receptive_radius
    latents = torch.randn(1, 8, 2, *size)
    tiled = vae.decode_tiled(latents, tile=(overlap + 2, overlap + 3), overlap=overlap)
    torch.testing.assert_close(tiled, vae.decode(latents), rtol=0, atol=1e-5)


@pytest.mark.parametrize("overlap", [0, 1, 3, 20])
def test_tile_weights_add_up_to_one(overlap):
    """Decoding that only enlarges: any blend of equal pictures is the picture."""
    latents = torch.randn(1, 3, 2, 40, 37, dtype=torch.float64)

    def enlarge(x):
        return x.repeat_interleave(4, 3).repeat_interleave(4, 4)

    tiled = decode_tiled(enlarge, latents, (24, 22), overlap, 4, 3)
    torch.testing.assert_close(tiled, enlarge(latents))


def test_tiles_cannot_overlap_wholly():
    vae = rough_vae()
    for overlap in (-1, 4):
        with pytest.raises(ValueError, match="overlap"):
            vae.decode_tiled(torch.zeros(1, 8, 1, 9, 9), tile=(4, 6), overlap=overlap)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 4, 32, 32), "4 frames"),
        ((1, 3, 0, 32, 32), "0 frames"),
        ((1, 3, 5, 30, 32), "30×32"),
        ((1, 3, 5, 32, 8), "32×8"),
        ((1, 1, 5, 32, 32), "video tensor"),
        ((3, 5, 32, 32), "video tensor"),
    ],
)
def test_wrong_videos_are_named(shape, message):
    with pytest.raises(ValueError, match=message):
        rough_vae().encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 7, 1, 2, 2), (8, 1, 2, 2), (1, 8, 0, 2, 2)])
def test_wrong_latents_are_named(shape):
    with pytest.raises(ValueError, match="latents are"):
        rough_vae().decode(torch.zeros(shape))


def test_wrong_configurations_are_named():
    with pytest.raises(ValueError, match="compress"):
        SpacetimeVAE(**SMALL, spatial_compression=10)
    with pytest.raises(ValueError, match="bottleneck"):
        SpacetimeVAE(**SMALL, bottleneck="vq")


def test_grouping_is_lossless():
    video = torch.randn(2, 3, 9, 32, 16)
    patches = frames_to_patches(video)
    torch.testing.assert_close(patches_to_frames(patches), video)
    torch.testing.assert_close(ungroup(group(patches, 4, 2), 4, 2), patches)


@pytest.mark.parametrize("components", [1, 24, 768])
def test_cosine_code_is_a_projection(components):
    code = CosineCode(components, frames=4, edge=8)
    coefficients = torch.randn(5, components)
    torch.testing.assert_close(code.encode(code.decode(coefficients)), coefficients, rtol=1e-4, atol=1e-4)
    if components == 4 * 8 * 8 * 3:
        groups = torch.randn(5, components)
        torch.testing.assert_close(code.decode(code.encode(groups)), groups, rtol=1e-3, atol=1e-4)


def test_a_fresh_model_is_the_cosine_codec():
    vae = SpacetimeVAE().eval()
    video = moving_shapes(2, 5, 64)
    reconstruction, posterior = vae(video)
    assert 10 * torch.log10(4 / (reconstruction - video).square().mean()) > 20
    # Neither drowned in the posterior's noise nor far above the prior.
    spread = posterior.mean.std((0, 2, 3, 4))
    assert spread.max() < 3
    assert spread.median() > 2 * torch.exp(0.5 * posterior.logvar).max()
    flat = torch.full((1, 3, 5, 32, 32), 0.3)
    torch.testing.assert_close(vae(flat)[0], flat, rtol=0, atol=1e-5)


def test_latent_statistics_normalise():
    vae = rough_vae()
    video = torch.rand(4, 3, 5, 32, 32) * 2 - 1
    latents = vae.encode(video).mode()
    vae.set_latent_statistics(latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4)))
    normal = vae.to_latents(video)
    torch.testing.assert_close(normal.mean((0, 2, 3, 4)), torch.zeros(8), rtol=0, atol=1e-4)
    torch.testing.assert_close(normal.std((0, 2, 3, 4)), torch.ones(8), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(vae.from_latents(normal), vae.decode(latents), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="shape"):
        vae.set_latent_statistics(torch.zeros(7), torch.ones(7))
    with pytest.raises(ValueError, match="positive"):
        vae.set_latent_statistics(torch.zeros(8), torch.zeros(8))


def test_save_and_load_give_the_same_model(tmp_path):
    vae = rough_vae()
    vae.set_latent_statistics(torch.randn(8), torch.rand(8) + 0.5)
    vae.save_pretrained(tmp_path)
    loaded = SpacetimeVAE.from_pretrained(tmp_path)
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    assert torch.equal(loaded.to_latents(video), vae.to_latents(video))
    assert torch.equal(loaded.decoder.cosine_code.waves, vae.decoder.cosine_code.waves)


def test_posterior_kl_and_samples():
    standard = Posterior(torch.zeros(2, 3), torch.zeros(2, 3))
    assert standard.kl() == 0
    shifted = Posterior(torch.full((2, 3), 2.0), torch.full((2, 3), -1.0))
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(2.0, torch.tensor(-0.5).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    torch.testing.assert_close(shifted.kl(), expected)
    wide = Posterior(torch.full((100_000,), 2.0), torch.full((100_000,), -1.0))
    draw = wide.sample(torch.Generator().manual_seed(0))
    assert abs(draw.mean() - 2) < 0.01
    assert abs(draw.var() - torch.tensor(-1.0).exp()) < 0.01
    assert torch.equal(draw, wide.sample(torch.Generator().manual_seed(0)))
    assert torch.equal(wide.mode(), wide.mean)


def test_bottleneck_splits_and_bounds():
    bottleneck = make_bottleneck("kl", 3)
    assert isinstance(bottleneck, KLBottleneck)
    posterior = bottleneck(torch.full((1, bottleneck.feature_channels, 2), 1e4))
    assert posterior.mean.shape == (1, 3, 2)
    assert torch.isfinite(posterior.logvar.exp()).all()


def test_steerable_kernels_are_derivatives():
    kernels = steerable_kernels()[:, 0]
    torch.testing.assert_close(kernels.sum((1, 2)), torch.zeros(5), rtol=0, atol=1e-6)
    ramp = torch.arange(5.0).expand(5, 5)
    responses = (kernels * ramp).sum((1, 2))
    assert responses[0] > 1
    torch.testing.assert_close(responses[1:], torch.zeros(4), rtol=0, atol=1e-6)


def test_perceptual_loss_sees_blur_more_than_brightness():
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert perceptual_loss(image, image) == 0
    blurred = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    offset = image + (blurred - image).square().mean().sqrt()
    assert perceptual_loss(blurred, image) > 20 * perceptual_loss(offset, image)
    assert perceptual_loss(image[..., :4], image[..., 4:8]) == 0


def test_perceptual_loss_sees_faint_texture():
    """The same relative damage costs about the same, whatever the contrast."""
    texture = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    strong = perceptual_loss(0.5 * texture, 0 * texture)
    faint = perceptual_loss(0.1 * texture, 0 * texture)
    assert 0.5 < faint / strong < 1


def test_temporal_loss_is_zero_for_a_constant_error():
    class Offset(torch.nn.Module):
        def forward(self, video, generator):
            return video + 0.1, Posterior(torch.zeros(1), torch.zeros(1))

    video = torch.rand(2, 3, 5, 32, 32)
    _, parts = vae_loss(Offset(), video, VAELossWeights())
    torch.testing.assert_close(parts["l1"], torch.tensor(0.1))
    torch.testing.assert_close(parts["psnr_db"], torch.tensor(26.0206))
    assert parts["temporal"] < 1e-6
    assert parts["kl"] == 0


def test_loss_is_reproducible_and_complete():
    vae = rough_vae().train()
    discriminator = VideoDiscriminator(width=8)
    video = moving_shapes(2, 5, 32)
    weights = VAELossWeights(adversarial=0.1)
    runs = [vae_loss(vae, video, weights, torch.Generator().manual_seed(3), discriminator) for _ in range(2)]
    assert torch.equal(runs[0][0], runs[1][0])
    loss, parts = runs[0]
    terms = ("l1", "l2", "perceptual", "temporal", "kl", "adversarial")
    torch.testing.assert_close(loss.detach(), sum(getattr(weights, name) * parts[name] for name in terms))
    loss.backward()
    assert all(parameter.grad is not None for parameter in vae.parameters())
    image_loss, image_parts = vae_loss(vae, video[:, :, :1], VAELossWeights())
    assert image_parts["temporal"] == 0
    assert torch.isfinite(image_loss)
    with pytest.raises(ValueError, match="VideoDiscriminator"):
        vae_loss(vae, video, weights)


def test_discriminator_learns_to_tell_noise_and_flicker():
    torch.manual_seed(0)
    discriminator = VideoDiscriminator(width=16)
    real = moving_shapes(4, 5, 32)
    assert discriminator(real).shape == (4, 5, 2, 2)
    fake = real.clone()
    fake[:, :, 1::2] *= 0.7
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=2e-3)
    for _ in range(60):
        loss, parts = discriminator_loss(discriminator, real, fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.4
    assert parts["real_logit"] > parts["fake_logit"]


def test_training_raises_psnr():
    """A minute model learns the detail that the cosine code lacks."""
    torch.manual_seed(0)
    vae = SpacetimeVAE(width=64, encoder_depth=1, decoder_depth=1, image_channels=24)
    video = moving_shapes(4, 5, 32)

    @torch.no_grad()
    def psnr_db() -> float:
        vae.eval()
        return float(10 * torch.log10(4 / (vae(video)[0] - video).square().mean()))

    before = psnr_db()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(0)
    vae.train()
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 20, (150 - step) / 50)
        loss, _ = vae_loss(vae, video, VAELossWeights(perceptual=0.0), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert psnr_db() > max(25, before + 2)
