import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidgen.audio_sync.codec import AudioCodec
from vidgen.audio_sync.losses import (
    CodecLossWeights,
    SpectralDiscriminator,
    codec_loss,
    discriminator_loss,
    envelope_distance,
    spectral_distances,
)
from vidgen.audio_sync.spectral import inverse_stft, stft, with_clock
from vidgen.errors import InputError

SMALL = {"encoder_channels": 16, "encoder_blocks": 1, "decoder_channels": 24, "decoder_blocks": 2}


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(0)
    return AudioCodec(**SMALL).eval()


def impact(num_samples, onset, frequencies_hz=(780.0, 1240.0, 2870.0), decay_s=0.15):
    time_s = (torch.arange(num_samples) - onset) / 24000
    ring = sum(torch.sin(2 * math.pi * f * time_s) for f in frequencies_hz)
    return (0.25 * ring * torch.exp(-time_s.clamp_min(0) / decay_s) * (time_s >= 0))[None, None]


def onset_ms(waveform):
    """The millisecond before which the energy of the loudest 5 ms is least anticipated: the largest jump in dB."""
    energy = waveform.flatten()[: waveform.numel() // 24 * 24].view(-1, 24).square().mean(1)
    level_db = 10 * torch.log10(energy + 1e-6)
    after, before = level_db.unfold(0, 5, 1).amax(1)[5:], level_db.unfold(0, 5, 1).amax(1)[:-5]
    return int((after - before).argmax()) + 5


# --- spectra ---


@pytest.mark.parametrize(("window", "hop"), [(960, 240), (480, 120), (240, 60), (480, 240), (8, 4)])
@pytest.mark.parametrize("num_frames", [1, 2, 7])
def test_inverse_stft_undoes_stft_to_the_very_edges(window, hop, num_frames):
    signal = torch.randn(2, 3, num_frames * hop)
    spectrum = stft(signal, window, hop)
    assert spectrum.shape == (2, 3, num_frames, window // 2 + 1)
    torch.testing.assert_close(inverse_stft(spectrum, window, hop), signal, atol=2e-4, rtol=0)


@pytest.mark.parametrize("window", [128, 960])
def test_stft_of_noise_has_the_noises_variance(window):
    torch.manual_seed(0)
    spectrum = stft(0.1 * torch.randn(1, 1, 480 * window), window, window // 2)
    assert spectrum[..., 2:-2, 1:-1].abs().square().mean().item() == pytest.approx(0.01, rel=0.02)


@pytest.mark.parametrize(("window", "hop"), [(960, 240), (480, 120), (480, 160)])
def test_against_the_clock_a_tone_on_a_bin_has_one_phase(window, hop):
    tone = torch.cos(2 * math.pi * 17 / window * torch.arange(20 * hop) + 0.7)
    steady = with_clock(stft(tone[None, None], window, hop), hop, sign=-1)[0, 0, 4:-4, 17]
    torch.testing.assert_close(steady.angle(), torch.full((12,), 0.7), atol=1e-3, rtol=0)


def test_clock_is_undone_by_its_opposite():
    spectrum = torch.randn(1, 2, 9, 241, dtype=torch.complex64)
    torch.testing.assert_close(with_clock(with_clock(spectrum, 120), 120, sign=-1), spectrum)


# --- codec ---


@settings(max_examples=8, deadline=None)
@given(num_samples=st.integers(1, 4000), batch=st.integers(1, 2))
def test_any_length_comes_back_exactly(codec, num_samples, batch):
    waveform = torch.rand(batch, 1, num_samples) - 0.5
    with torch.no_grad():
        posterior = codec.encode(waveform)
        assert posterior.mean.shape == (batch, 32, -(-num_samples // 960))
        decoded = codec.decode(posterior.mode(), num_samples)
        assert codec(waveform)[0].shape == decoded.shape == waveform.shape
        assert decoded.dtype == torch.float32
        assert torch.isfinite(decoded).all()


def test_padding_to_whole_latents_is_silence(codec):
    waveform = torch.randn(1, 1, 2000) * 0.1
    padded = torch.nn.functional.pad(waveform, (0, 880))
    with torch.no_grad():
        assert torch.equal(codec.encode(waveform).mean, codec.encode(padded).mean)


@pytest.mark.parametrize("cuts", [[1] * 40, [40], [3, 20, 0, 1, 16], [39, 1]])
@pytest.mark.parametrize("num_samples", [None, 38000, 700])
def test_streamed_decoding_is_whole_decoding(codec, cuts, num_samples):
    latents = torch.randn(2, 32, 40)
    chunks = [chunk for chunk in latents.split(cuts, dim=2) if chunk.shape[2]]
    with torch.no_grad():
        streamed = torch.cat(list(codec.decode_stream(chunks, num_samples)), dim=2)
        whole = codec.decode(latents, num_samples)
    torch.testing.assert_close(streamed, whole, atol=2e-5 * whole.abs().max().item(), rtol=1e-4)


def test_stream_starts_before_the_last_chunk(codec):
    arrived = []

    def chunks():
        for index in range(30):
            arrived.append(index)
            yield torch.randn(1, 32, 1)

    with torch.no_grad():
        next(codec.decode_stream(chunks()))
    assert len(arrived) == codec.context_latents + 1


def test_a_latent_is_heard_within_the_context_only(codec):
    latents = torch.randn(1, 32, 31)
    changed = latents.clone()
    changed[:, :, 15] += 1
    with torch.no_grad():
        difference = (codec.decode(changed) - codec.decode(latents)).abs().flatten()
    reach = codec.context_latents
    assert difference[: (15 - reach) * 960].max() == 0
    assert difference[(16 + reach) * 960 :].max() == 0
    assert difference[15 * 960 : 16 * 960].max() > 1e-4


@pytest.mark.parametrize("num_samples", [1, 100, 5000, 24000])
def test_silence_is_silent_before_training(codec, num_samples):
    with torch.no_grad():
        decoded = codec(torch.zeros(1, 1, num_samples))[0]
    assert decoded.abs().max() < 1e-3  # -60 dBFS


def test_a_fresh_codec_already_follows_the_loudness(codec):
    waveform = impact(24000, 9000)
    with torch.no_grad():
        decoded = codec(waveform)[0]
    level, decoded_level = (w[..., 9600:14400].square().mean().sqrt().item() for w in (waveform, decoded))
    assert 0.3 < decoded_level / level < 3
    assert decoded[..., :7500].square().mean().sqrt() < 0.02 * level
    assert abs(onset_ms(decoded) - 375) <= 15


def test_normalised_latents_round_trip(codec):
    waveform = impact(9600, 2000)
    mean, std = torch.randn(32), torch.rand(32) + 0.5
    with torch.no_grad():
        codec.set_latent_statistics(mean, std)
        latents = codec.to_latents(waveform)
        torch.testing.assert_close(codec.denormalise(latents), codec.encode(waveform).mean, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(codec.from_latents(latents, 9600), codec(waveform)[0], atol=1e-4, rtol=1e-3)
        codec.set_latent_statistics(torch.zeros(32), torch.ones(32))


@pytest.mark.parametrize("half", [False, True])
def test_saved_and_loaded_it_is_the_same(codec, tmp_path, half):
    waveform = impact(4800, 700)
    (copy.deepcopy(codec).half() if half else codec).save_pretrained(tmp_path)
    loaded = AudioCodec.from_pretrained(tmp_path).float().eval()
    with torch.no_grad():
        ours, theirs = codec(waveform)[0], loaded(waveform)[0]
    torch.testing.assert_close(theirs, ours, atol=0.02 * ours.abs().max().item() if half else 0, rtol=0)


def test_two_channels_and_other_rates():
    codec = AudioCodec(channels=2, latent_channels=8, hop_samples=1920, **SMALL).eval()
    with torch.no_grad():
        decoded, posterior = codec(torch.randn(2, 2, 5001))
    assert decoded.shape == (2, 2, 5001)
    assert posterior.mean.shape == (2, 8, 3)


def test_wrong_input_is_refused(codec):
    with pytest.raises(InputError, match="waveform"):
        codec.encode(torch.zeros(1, 2, 100))
    with pytest.raises(InputError, match="waveform"):
        codec.encode(torch.zeros(1, 1, 0))
    with pytest.raises(InputError, match="latents"):
        codec.decode(torch.zeros(1, 31, 4))
    with pytest.raises(InputError, match="1 to 3840"):
        codec.decode(torch.zeros(1, 32, 4), 3841)
    with pytest.raises(InputError, match="shape"):
        codec.set_latent_statistics(torch.zeros(31), torch.ones(31))
    with pytest.raises(InputError, match="positive"):
        codec.set_latent_statistics(torch.zeros(32), torch.zeros(32))
    with pytest.raises(InputError, match="do not fit"):
        AudioCodec(frame_samples=250)


# --- losses ---


def test_distances_are_zero_for_equal_and_finite_for_silent():
    waveform, silence = impact(6000, 1000), torch.zeros(1, 1, 6000, requires_grad=True)
    assert all(distance.item() == 0 for distance in spectral_distances(waveform, waveform))
    for target in (waveform, torch.zeros(1, 1, 6000)):
        distances = spectral_distances(silence, target)
        gradient = torch.autograd.grad(sum(distances), silence)[0]
        assert all(torch.isfinite(distance) for distance in distances)
        assert torch.isfinite(gradient).all()


def test_distances_see_level_onset_and_phase():
    waveform = impact(9600, 3000)
    for other in (0.5 * waveform, impact(9600, 3240)):
        convergence, log_magnitude, phase = spectral_distances(other, waveform)
        assert min(convergence.item(), log_magnitude.item(), phase.item()) > 0.005
    convergence, log_magnitude, phase = spectral_distances(-waveform, waveform)
    assert convergence.item() == log_magnitude.item() == 0
    assert phase.item() > 0.05


def test_envelope_distance_sees_level_and_onset_but_not_phase():
    waveform = 0.1 * torch.randn(1, 1, 24000)
    # Half the level is log 2 nats away; the Huber distance of d < 1 is d²/2.
    assert envelope_distance(0.5 * waveform, waveform).item() == pytest.approx(math.log(2) ** 2 / 2, rel=0.02)
    assert envelope_distance(-waveform, waveform).item() == 0
    hit = impact(9600, 4800)
    early, earlier = (envelope_distance(impact(9600, 4800 - shift), hit).item() for shift in (120, 240))
    assert earlier > early > 0.01


def test_gradient_reaches_every_parameter(codec):
    codec = AudioCodec(**SMALL)
    discriminator = SpectralDiscriminator(width=4)
    weights = CodecLossWeights(adversarial=0.1)
    loss, parts = codec_loss(codec, impact(4800, 1000), weights, torch.Generator().manual_seed(0), discriminator)
    loss.backward()
    for name, parameter in codec.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name
    assert {"log_magnitude", "convergence", "phase", "envelope", "kl", "adversarial", "feature_matching"} <= set(parts)
    assert not any(part.requires_grad for part in parts.values())


def test_mixed_precision_gives_the_same_loss(codec):
    waveform = impact(4800, 1000)
    with torch.no_grad():
        exact, _ = codec_loss(codec, waveform, CodecLossWeights())
        with torch.autocast("cpu", torch.bfloat16):
            rounded, _ = codec_loss(codec, waveform, CodecLossWeights())
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


def test_adversarial_weight_needs_a_discriminator(codec):
    with pytest.raises(ValueError, match="SpectralDiscriminator"):
        codec_loss(codec, torch.zeros(1, 1, 960), CodecLossWeights(adversarial=1.0))


def test_discriminator_learns_to_tell_noise_from_impacts():
    torch.manual_seed(0)
    discriminator = SpectralDiscriminator(width=4)
    optimizer = torch.optim.Adam(discriminator.parameters(), 3e-3)
    real = torch.cat([impact(2048, onset) for onset in (100, 500, 900)])
    losses = []
    for _ in range(25):
        loss, logits = discriminator_loss(discriminator, real, 0.1 * torch.randn(3, 1, 2048))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert logits["real_logit"] > logits["fake_logit"]


def test_overfitting_one_impact_keeps_its_onset():
    torch.manual_seed(0)
    codec = AudioCodec(encoder_channels=48, encoder_blocks=1, decoder_channels=96, decoder_blocks=2)
    waveform = impact(9600, 4150)
    optimizer = torch.optim.AdamW(codec.parameters(), 3e-3, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(50):
        loss, _ = codec_loss(codec, waveform, CodecLossWeights(), generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    with torch.no_grad():
        decoded = codec.eval()(waveform)[0]
    assert abs(onset_ms(decoded) - onset_ms(waveform)) <= 5
