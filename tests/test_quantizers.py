"""Quantizers: codes and tokens, entropies, straight-through gradients, residual codebooks, and models made of them."""

import itertools
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from eval.bitrate import entropy_nats
from vidgen.audio_sync.codec import AudioCodec
from vidgen.audio_sync.losses import CodecLossWeights, codec_loss
from vidgen.bottleneck import make_bottleneck
from vidgen.errors import InputError
from vidgen.loading import load_network
from vidgen.quantizers import FSQ, LFQ, RVQ, lfq_entropies
from vidgen.vae3d.autoencoder import SpacetimeVAE
from vidgen.vae3d.losses import VAELossWeights, vae_loss

VIDEO = {"width": 32, "encoder_depth": 1, "decoder_depth": 2, "image_channels": 16}
AUDIO = {"encoder_channels": 16, "encoder_blocks": 1, "decoder_channels": 24, "decoder_blocks": 2}
DISCRETE = {
    "lfq": {"bottleneck": "lfq", "latent_channels": 8, "codebooks": 2},
    "fsq": {"bottleneck": "fsq", "latent_channels": 8, "codebooks": 2, "levels": [8, 5, 4, 3]},
    "rvq": {"bottleneck": "rvq", "latent_channels": 8, "codebooks": 3, "codebook_size": 16},
}


def fitted_rvq(rows, codebooks=4, size=16, steps=60):
    quantizer = RVQ(rows.shape[1], codebooks, size, decay=0.9)
    for _ in range(steps):
        quantizer(rows)
    return quantizer.eval()


def rough(network, **arguments):
    """A network in which nothing is zero, codebooks included."""
    torch.manual_seed(0)
    made = network(**arguments).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    if isinstance(made.to_posterior, RVQ):
        made.to_posterior.vectors.copy_(torch.randn_like(made.to_posterior.vectors))
    return made


# --- codes and tokens ---


@pytest.mark.parametrize(
    "quantizer", [LFQ(4, 1), LFQ(6, 2), FSQ(3, 1, [3, 4, 5]), FSQ(4, 2, [7, 8])], ids=["lfq", "lfq2", "fsq", "fsq2"]
)
def test_tokens_and_codes_are_one_to_one(quantizer):
    every = torch.tensor(list(itertools.product(range(quantizer.vocabulary), repeat=quantizer.codebooks)))
    latents = quantizer.from_tokens(every)
    assert len(torch.unique(latents, dim=0)) == len(every)
    # Large features on the same side are coded by the same code; FSQ squashes, so ask for its inverse.
    features = latents if isinstance(quantizer, LFQ) else unsquash(latents, quantizer)
    codes = quantizer(features)
    assert torch.equal(codes.tokens, every)
    assert torch.equal(codes.latents, latents)
    assert torch.equal(quantizer.unpack(quantizer.pack(quantizer.unpack(every))), quantizer.unpack(every))


def unsquash(latents, quantizer):
    levels = torch.tensor(quantizer.levels * quantizer.codebooks)
    half, offset = (levels - 1) * 1.001 / 2, 0.5 * (levels % 2 == 0)
    return torch.atanh((latents * (levels // 2) + offset) / half) - torch.atanh(offset / half)


def test_the_first_channel_is_the_lowest_digit():
    assert LFQ(4, 1)(torch.tensor([[1.0, -1, -1, 1]])).tokens.tolist() == [[1 + 8]]
    assert LFQ(4, 2)(torch.tensor([[1.0, -1, -1, 1]])).tokens.tolist() == [[1, 2]]
    assert FSQ(2, 1, [3, 5])(torch.tensor([[9.0, -9.0]])).tokens.tolist() == [[2]]
    assert FSQ(2, 1, [3, 5])(torch.tensor([[-9.0, 9.0]])).tokens.tolist() == [[4 * 3]]


def test_fsq_reaches_every_level_and_zero_is_one():
    features = torch.linspace(-8, 8, 2001)[:, None]
    for levels in range(3, 10):
        quantizer = FSQ(1, 1, [levels])
        codes = quantizer(features)
        assert torch.equal(torch.unique(codes.tokens), torch.arange(levels))
        assert codes.latents.abs().max() <= 1
        assert codes.own_loss == 0
        assert quantizer(torch.zeros(1, 1)).latents == 0
    assert torch.equal(torch.unique(FSQ(1, 1, [5])(features).latents), torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]))


@pytest.mark.parametrize("name", DISCRETE)
def test_mixed_precision_changes_no_token(name):
    arguments = {key: value for key, value in DISCRETE[name].items() if key != "bottleneck"}
    quantizer = make_bottleneck(name, **arguments).eval()
    features = torch.randn(2, 8, 50).bfloat16()
    if name == "rvq":
        quantizer.vectors.normal_()
    exact = quantizer(features.float())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = quantizer(features)
    assert torch.equal(rounded.tokens, exact.tokens)
    assert rounded.latents.dtype == torch.bfloat16


# --- gradients and entropies ---


def test_lfq_passes_the_gradient_straight_through():
    features = torch.randn(3, 4, 5, requires_grad=True)
    weights = torch.randn(3, 4, 5)
    (gradient,) = torch.autograd.grad((weights * LFQ(4, 1)(features).latents).sum(), features)
    assert torch.equal(gradient, weights)


def test_fsq_passes_the_gradient_of_the_squashing():
    features = torch.randn(3, 1, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(FSQ(1, 1, [5])(features).latents.sum(), features)
    expected = 2 * 1.001 * (1 - torch.tanh(features.detach()) ** 2) / 2
    torch.testing.assert_close(gradient, expected)


def test_entropies_of_known_distributions():
    certain, unsure = 50.0, 0.0
    all_codes = certain * torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)))
    position, use = lfq_entropies(all_codes, 3)
    assert position.item() == pytest.approx(0, abs=1e-6)
    assert use.item() == pytest.approx(math.log(2))
    position, use = lfq_entropies(all_codes[:1].expand(8, -1), 3)
    assert (position.item(), use.item()) == pytest.approx((0, 0), abs=1e-6)
    position, use = lfq_entropies(torch.full((8, 3), unsure), 3)
    assert (position.item(), use.item()) == pytest.approx((math.log(2), math.log(2)))
    # Two codes of which each bit is used equally: joint use sees it, single bits would not.
    opposite = certain * torch.tensor([[1.0, 1, 1], [-1, -1, -1]])
    assert lfq_entropies(opposite, 3)[1].item() == pytest.approx(math.log(2) / 3)
    assert lfq_entropies(opposite, 1)[1].item() == pytest.approx(math.log(2))


def test_use_is_the_entropy_of_the_average_softmax_over_codes():
    """Against the definition: softmax over all codes of minus the squared distance, averaged, in MAGVIT-v2's terms."""
    features = torch.randn(40, 5, dtype=torch.float64)
    codes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=5)), dtype=torch.float64)
    chances = torch.softmax(-(features[:, None] - codes).square().sum(-1), dim=1)
    each = -(chances * chances.log()).sum(1).mean() / 5
    average = chances.mean(0)
    position, use = lfq_entropies(4 * features, 5)
    torch.testing.assert_close(position, each)
    torch.testing.assert_close(use, -(average * average.log()).sum() / 5)


def test_lfqs_own_loss_alone_fills_the_codebook():
    torch.manual_seed(0)
    quantizer, encoder, signal = LFQ(4, 1), torch.nn.Linear(8, 4), torch.randn(256, 8)
    torch.nn.init.constant_(encoder.bias, 0.8)  # so that nearly everything is the same code

    def perplexity():
        return math.exp(entropy_nats(torch.unique(quantizer(encoder(signal)).tokens, return_counts=True)[1]))

    before = perplexity()
    optimizer = torch.optim.Adam(encoder.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        quantizer(encoder(signal)).loss().backward()
        optimizer.step()
    assert before < 3
    assert perplexity() > 14


# --- residual codebooks ---


def test_each_codebook_leaves_less_over():
    torch.manual_seed(0)
    rows = torch.randn(512, 6)
    quantizer = fitted_rvq(rows)
    tokens = quantizer(rows).tokens
    errors = [(rows - quantizer.from_tokens(tokens[:, :count])).square().mean().item() for count in range(1, 5)]
    assert errors[0] < 0.75
    assert all(later < 0.8 * earlier for earlier, later in itertools.pairwise(errors))
    assert quantizer(rows).own_loss.item() == pytest.approx(sum(errors) / 4)


def test_codebooks_find_clusters_from_nothing():
    torch.manual_seed(0)
    centres = 3 * torch.randn(8, 5)
    rows = (centres[:, None] + 0.01 * torch.randn(8, 30, 5)).flatten(0, 1)
    quantizer = fitted_rvq(rows, codebooks=1, size=16)
    assert torch.cdist(centres, quantizer.vectors[0]).min(1).values.max() < 0.05


def test_codebooks_follow_means_and_keep_still_in_eval_mode():
    quantizer = RVQ(1, 1, 2, decay=0.9)
    quantizer.vectors[0] = torch.tensor([[0.0], [10.0]])
    quantizer.uses[0] = torch.tensor([4.0, 4.0])
    quantizer(torch.tensor([[1.0], [1.0], [9.0], [12.0]]))
    # (0.9·4·old + 0.1·sum) / (0.9·4 + 0.1·count)
    torch.testing.assert_close(quantizer.vectors[0, :, 0], torch.tensor([0.2 / 3.8, (36 + 2.1) / 3.8]))
    before = quantizer.vectors.clone()
    quantizer.eval()(torch.randn(50, 1))
    assert torch.equal(quantizer.vectors, before)


def test_dead_codes_move_to_what_is_coded_worst():
    quantizer = RVQ(1, 1, 4)
    quantizer.vectors[0] = torch.tensor([[0.0], [1.0], [2.0], [100.0]])
    quantizer.uses[0] = torch.tensor([2.0, 2.0, 2.0, 0.0])
    rows = torch.tensor([[0.0], [1.0], [2.0], [2.1], [0.1], [-5.0], [1.0], [0.0]])
    assert quantizer(rows).tokens[5] == 3
    assert quantizer.vectors[0, 3].item() == pytest.approx(-5)
    assert quantizer.uses[0, 3] > 1


def _quantize_a_share(rank, folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=2)
    rows = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)).chunk(2)[rank]
    for name, quantizer in (("begun", begun_rvq()), ("fresh", RVQ(3, 2, 8))):
        for _ in range(5):
            quantizer(rows)
        save_file(quantizer.state_dict(), folder / f"{name}-{rank}.safetensors")
    torch.distributed.destroy_process_group()


def begun_rvq():
    quantizer = RVQ(3, 2, 8)
    quantizer.vectors.copy_(torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(1)))
    quantizer.uses.fill_(50.0)  # so that none dies
    return quantizer


def test_two_processes_keep_the_codebooks_of_one_with_all_rows(tmp_path):
    torch.multiprocessing.spawn(_quantize_a_share, (tmp_path,), nprocs=2)
    for name in ("begun", "fresh"):
        first, second = (load_file(tmp_path / f"{name}-{rank}.safetensors") for rank in (0, 1))
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert (first["uses"] > 0).sum() > 8
    alone = begun_rvq()
    for _ in range(5):
        alone(torch.randn(64, 3, generator=torch.Generator().manual_seed(0)))
    begun = load_file(tmp_path / "begun-0.safetensors")
    torch.testing.assert_close(begun["vectors"], alone.vectors)
    torch.testing.assert_close(begun["uses"], alone.uses)


def test_the_gradient_passes_codebooks_and_commits():
    features = torch.randn(2, 3, 7, requires_grad=True)
    quantizer = RVQ(3, 2, 4).eval()
    quantizer.vectors.normal_()
    codes = quantizer(features)
    (gradient,) = torch.autograd.grad(codes.latents.sum(), features)
    assert torch.equal(gradient, torch.ones_like(features))
    (pull,) = torch.autograd.grad(codes.loss(), features)
    after = [features - quantizer.from_tokens(codes.tokens[:, :count]) for count in (1, 2)]
    torch.testing.assert_close(pull, sum(after).detach() / features.numel())


def test_quantizer_dropout_keeps_the_first_codebooks_of_half_of_the_samples():
    torch.manual_seed(0)
    quantizer = RVQ(3, 4, 8).eval()
    quantizer.vectors.normal_()
    codes = quantizer(torch.randn(400, 3, 2))
    drawn = codes.sample(torch.Generator().manual_seed(1))
    assert torch.equal(drawn, codes.sample(torch.Generator().manual_seed(1)))
    cut = torch.stack([quantizer.from_tokens(codes.tokens[:, :count]) for count in (1, 2, 3, 4)])
    kept = (cut - drawn).abs().flatten(2).amax(2).argmin(0) + 1
    torch.testing.assert_close(cut[kept - 1, torch.arange(400)], drawn)
    shares = torch.bincount(kept, minlength=5)[1:] / 400
    torch.testing.assert_close(shares, torch.tensor([0.125, 0.125, 0.125, 0.625]), rtol=0, atol=0.06)
    own = [torch.Generator().manual_seed(seed) for seed in range(400)]
    alone = quantizer(torch.zeros(1, 3, 2)).sample([torch.Generator().manual_seed(0)])
    assert codes.sample(own).shape == drawn.shape
    assert alone.shape == (1, 3, 2)


# --- the autoencoders ---


@pytest.mark.parametrize("name", DISCRETE)
def test_video_becomes_tokens_and_tokens_video(name, tmp_path):
    vae = rough(SpacetimeVAE, **VIDEO, **DISCRETE[name])
    video = torch.rand(2, 3, 9, 32, 48) * 2 - 1
    tokens = vae.encode_tokens(video)
    assert tokens.shape == (2, DISCRETE[name]["codebooks"], 3, 2, 3)
    assert tokens.dtype == torch.int64
    assert len(torch.unique(tokens)) > 4
    decoded = vae.decode_tokens(tokens)
    assert torch.equal(decoded, vae.decode(vae.encode(video).mode()))
    assert torch.equal(decoded, vae(video)[0])
    vae.save_pretrained(tmp_path)
    loaded = load_network(SpacetimeVAE, tmp_path)
    assert dict(loaded.config)["bottleneck"] == name
    assert torch.equal(loaded.encode_tokens(video), tokens)
    assert torch.equal(SpacetimeVAE.from_pretrained(tmp_path).eval().decode_tokens(tokens), decoded)


@pytest.mark.parametrize("name", DISCRETE)
def test_tokens_of_the_past_do_not_depend_on_the_future(name):
    vae = rough(SpacetimeVAE, **VIDEO, **DISCRETE[name])
    video = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    changed = video.clone()
    changed[:, :, 5:] *= -1
    first, second = vae.encode_tokens(video), vae.encode_tokens(changed)
    assert torch.equal(first[:, :, :2], second[:, :, :2])
    assert not torch.equal(first[:, :, 2], second[:, :, 2])


@pytest.mark.parametrize("name", DISCRETE)
def test_sound_becomes_tokens_and_tokens_sound(name, tmp_path):
    codec = rough(AudioCodec, **AUDIO, **DISCRETE[name], hop_samples=1920)
    waveform = 0.3 * torch.randn(2, 1, 6000)
    tokens = codec.encode_tokens(waveform)
    assert tokens.shape == (2, DISCRETE[name]["codebooks"], 4)  # 12.5 a second
    assert torch.equal(codec.decode_tokens(tokens, 6000), codec(waveform)[0])
    codec.save_pretrained(tmp_path)
    loaded = load_network(AudioCodec, tmp_path)
    assert torch.equal(loaded.decode_tokens(tokens), codec.decode_tokens(tokens))
    if name == "rvq":
        assert loaded.decode_tokens(tokens[:, :1]).shape == (2, 1, 7680)


def test_a_few_steps_lower_the_loss_of_each():
    torch.manual_seed(0)
    video = torch.nn.functional.interpolate(torch.rand(4, 3, 3, 4, 4), (5, 32, 32), mode="trilinear") * 2 - 1
    waveform = 0.2 * torch.sin(torch.arange(4800) * torch.tensor([[0.05], [0.11], [0.2]]))[:, None]
    for name, arguments in DISCRETE.items():
        for network, sizes, loss, weights, batch in (
            (SpacetimeVAE, VIDEO, vae_loss, VAELossWeights(), video),
            (AudioCodec, AUDIO, codec_loss, CodecLossWeights(), waveform),
        ):
            model = network(**sizes, **arguments).train()
            optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
            losses = []
            for step in range(25):
                value, parts = loss(model, batch, weights, torch.Generator().manual_seed(step))
                optimizer.zero_grad()
                value.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                losses.append(value.item())
                assert "kl" not in parts
                assert parts["quantizer"] >= 0
            assert sum(losses[-3:]) < 0.9 * sum(losses[:3]), (name, network, losses)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vq", 8), "lfq, fsq and rvq"),
        (("lfq", 8, 3), "8 latent channels cannot be shared out among 3"),
        (("lfq", 48, 1), "more codebooks"),
        (("lfq", 8, 0), "at least 1"),
        (("rvq", 8, 0), "at least 1"),
        (("rvq", 8, 2, 1), "1 codes"),
        (("fsq", 8, 2, 0, [8, 5]), "give 4 numbers"),
        (("fsq", 2, 1, 0, [8, 2]), "from 3 to 1000"),
        (("fsq", 2, 1, 0, [8, 1001]), "from 3 to 1000"),
    ],
)
def test_wrong_bottlenecks_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        make_bottleneck(*arguments)


def test_wrong_tokens_are_named():
    vae = rough(SpacetimeVAE, **VIDEO, **DISCRETE["lfq"])
    for tokens in (torch.zeros(1, 3, 1, 2, 2).long(), torch.zeros(1, 2, 1, 2, 2), torch.zeros(3).long()):
        with pytest.raises(InputError, match="tokens are integers"):
            vae.decode_tokens(tokens)
    for wrong in (-1, 16):
        with pytest.raises(InputError, match="0 to 15"):
            vae.decode_tokens(torch.full((1, 2, 1, 2, 2), wrong))
    with pytest.raises(InputError, match="latents are"):
        vae.decode_tokens(torch.zeros(1, 2, 2, 2).long())
    continuous = SpacetimeVAE(**VIDEO)
    with pytest.raises(InputError, match="bottleneck=lfq"):
        continuous.encode_tokens(torch.zeros(1, 3, 1, 32, 32))
    with pytest.raises(InputError, match="bottleneck=lfq"):
        continuous.decode_tokens(torch.zeros(1, 4, 1, 2, 2).long())


def test_uses_are_counted_in_full_precision_whatever_the_rest_is_cast_to():
    quantizer = RVQ(2, 1, 2, decay=0.0)
    many = torch.zeros(3000, 2)
    many[:7] = 10.0
    quantizer(many)
    quantizer(many.bfloat16())  # as under autocast
    assert sorted(quantizer.uses[0].tolist()) == [7.0, 2993.0]
    quantizer.uses[0, 0] = 100_001.0  # beyond half precision
    stored = quantizer.half()
    assert stored.vectors.dtype == torch.float16
    assert stored.uses[0, 0] == 100_001.0
    assert stored.to("meta").uses.is_meta
