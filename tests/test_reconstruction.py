"""The figures of the autoencoders, on stand-ins whose losses are known."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eval import bitrate, reconstruction
from vidgen.audio_sync.codec import AudioCodec
from vidgen.errors import InputError
from vidgen.vae3d.autoencoder import SpacetimeVAE

RATE_HZ = 24000


class Dimmed:
    """A stand-in VAE: every value comes back a little lower, the second frame of each pair lower still."""

    def __init__(self, by=0.0, flicker=0.0):
        self.by, self.flicker = by, flicker

    def to_latents(self, video):
        return video

    def from_latents(self, latents):
        every_other = torch.arange(latents.shape[2]) % 2
        return latents - self.by - self.flicker * every_other[:, None, None]


class Late:
    """A stand-in codec that delays sound, and hums."""

    config = SimpleNamespace(channels=1, sample_rate_hz=RATE_HZ)

    def __init__(self, delay=0, hum=0.0):
        self.delay, self.hum = delay, hum

    def to_latents(self, waveform):
        return waveform

    def from_latents(self, latents, num_samples):
        return torch.nn.functional.pad(latents, (self.delay, 0))[..., :num_samples] + self.hum


def frames(moves=True):
    rng = np.random.default_rng(0)
    clip = rng.integers(60, 200, (1, 1, 16, 16, 3)).repeat(5, 1)
    if moves:
        clip[:, 1::2, :8] += 20
    return torch.from_numpy(clip.astype(np.uint8))


def test_psnr_follows_from_the_error():
    figures = reconstruction.picture_figures(Dimmed(by=4 / 127.5), frames())
    assert figures["psnr_db"] == pytest.approx(20 * np.log10(255 / 4), abs=0.01)
    assert figures["moving_psnr_db"] == pytest.approx(20 * np.log10(255 / 4), abs=0.01)
    assert figures["decoded_frame_difference"] == pytest.approx(figures["frame_difference"])
    assert figures["frame_difference"] == pytest.approx(10)  # half of the picture by 20 levels
    assert reconstruction.picture_figures(Dimmed(), frames())["feature_distance"] == 0
    assert reconstruction.picture_figures(Dimmed(), frames())["ssim"] == pytest.approx(1)
    assert np.isnan(reconstruction.picture_figures(Dimmed(), frames(moves=False))["moving_psnr_db"])


def test_flicker_is_what_moves_where_the_input_stands_still():
    assert reconstruction.held_frame_flicker(Dimmed(flicker=6 / 127.5), frames()) == pytest.approx(6)
    assert reconstruction.held_frame_flicker(Dimmed(by=0.1), frames()) == 0


def test_a_late_sound_has_late_onsets():
    time_s = np.arange(RATE_HZ) / RATE_HZ
    strike = np.where(time_s > 0.4, np.sin(5000 * time_s) * np.exp(-20 * np.clip(time_s - 0.4, 0, None)), 0)
    waveform = torch.from_numpy(strike.astype(np.float32))[None, None]
    figures = reconstruction.sound_figures(Late(delay=round(0.012 * RATE_HZ)), waveform, RATE_HZ)
    assert figures["onset_errors_s"] == pytest.approx([0.012], abs=0.001)
    assert (figures["lost"], figures["added"]) == (0, 0)
    gone = reconstruction.sound_figures(Late(delay=RATE_HZ), waveform, RATE_HZ)
    assert (len(gone["onset_errors_s"]), gone["lost"]) == (0, 1)
    perfect = reconstruction.sound_figures(Late(), waveform, RATE_HZ)
    assert (perfect["log_magnitude_nats"], perfect["stft_distance"]) == (0, 0)
    assert figures["stft_distance"] > 0.1


def test_silence_is_measured_in_decibels_of_full_scale():
    assert reconstruction.silence_dbfs(Late(hum=0.001), 4800) == pytest.approx(-60, abs=0.01)


def test_the_command_scores_the_shipped_autoencoders_on_a_folder_of_clips(monkeypatch, tmp_path, capsys):
    from vidgen.media import write_video

    picture = np.zeros((9, 64, 64, 3), np.uint8)
    picture[:, :32] = (200, 40, 40)
    write_video(tmp_path / "silent.mp4", picture, None, 24, RATE_HZ)
    arguments = ["--data", str(tmp_path), "--clips", "1", "--output", str(tmp_path / "figures.json")]
    monkeypatch.setattr("sys.argv", ["eval.reconstruction", *arguments])
    reconstruction.main()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert 15 < figures["psnr_db"] < 60
    assert 0.5 < figures["ssim"] < 1
    assert "onsets" not in figures
    assert "psnr db" in capsys.readouterr().out


# --- bit rates ---


def test_codebook_use_of_known_tokens():
    """Of 8 codes the first codebook uses four equally often, the second one only."""
    tokens = torch.stack([torch.arange(8) % 4, torch.full((8,), 7)])[None]
    figures = bitrate.token_figures([tokens, tokens], 8, duration_s=2.0)
    assert figures["codes_used_percent"] == pytest.approx(100 * (4 + 1) / 2 / 8)
    assert figures["perplexity"] == pytest.approx((4 + 1) / 2)
    assert figures["kbit_per_s"] == pytest.approx(2 * 16 * 3 / 2 / 1000)
    assert figures["entropy_kbit_per_s"] == pytest.approx(16 * (2 + 0) / 2 / 1000)
    assert (figures["codebooks"], figures["tokens_per_codebook"]) == (2, 16)


def test_the_rate_of_rounded_noise_is_that_of_fine_quantization():
    """A Gaussian at step s has entropy of about log2(sqrt(2 pi e)/s) bits (Gray & Neuhoff 1998)."""
    latents = [torch.randn(1, 2, 50_000, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    expected = 2 * 100_000 * np.log2(np.sqrt(2 * np.pi * np.e) / 0.25) / 1000
    assert bitrate.rounded_kbit_per_s(latents, 0.25, duration_s=1.0) == pytest.approx(expected, rel=0.01)
    step = bitrate.step_for_rate(latents, expected, duration_s=1.0)
    assert step == pytest.approx(0.25, rel=0.03)
    assert bitrate.rounded_kbit_per_s(latents, step, 1.0) <= expected
    with pytest.raises(InputError, match="cannot be reached"):
        bitrate.step_for_rate(latents, 1e6, duration_s=1.0)


def test_rounding_is_by_the_step():
    rounded = bitrate.RoundedLatents(Late(), 0.5)
    assert torch.equal(rounded.to_latents(torch.tensor([0.2, 0.3, -0.8])), torch.tensor([0.0, 0.5, -1.0]))
    assert rounded.from_latents(torch.ones(3), 2).shape == (2,)


def test_the_command_compares_kl_with_tokens_at_equal_rate(monkeypatch, tmp_path, capsys):
    from vidgen.media import write_video

    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (9, 64, 64, 3)).astype(np.uint8)
    write_video(tmp_path / "noise.mp4", picture, 0.1 * rng.standard_normal(9000).astype(np.float32), 24, RATE_HZ)
    torch.manual_seed(0)
    SpacetimeVAE(latent_channels=8, width=16, bottleneck="lfq", codebooks=2).save_pretrained(tmp_path / "vae")
    codec = AudioCodec(encoder_channels=16, decoder_channels=16, bottleneck="rvq", codebooks=3, codebook_size=16)
    codec.to_posterior.vectors.normal_()
    codec.save_pretrained(tmp_path / "codec")

    def figures(*arguments):
        shared = ["--data", tmp_path, "--output", tmp_path / "figures.json"]
        monkeypatch.setattr("sys.argv", ["eval.reconstruction", *map(str, [*shared, *arguments])])
        reconstruction.main()
        return json.loads((tmp_path / "figures.json").read_text())

    discrete = figures("--vae", tmp_path / "vae", "--codec", tmp_path / "codec")
    spec_s, positions = 49 / 24, 13 * 8 * 8
    assert discrete["video_tokens_per_codebook"] == positions
    assert discrete["video_kbit_per_s"] == pytest.approx(8 * positions / spec_s / 1000)
    assert discrete["audio_kbit_per_s"] == pytest.approx(3 * 4 * 52 / spec_s / 1000)
    assert 0 < discrete["audio_perplexity"] <= 16
    assert 0 < discrete["video_entropy_kbit_per_s"] <= discrete["video_kbit_per_s"]
    assert "video codes used percent" in capsys.readouterr().out
    rates = ("--video-kbps", discrete["video_kbit_per_s"], "--audio-kbps", discrete["audio_kbit_per_s"])
    continuous = figures(*rates)
    assert continuous["video_entropy_kbit_per_s"] == pytest.approx(discrete["video_kbit_per_s"], rel=0.05)
    assert continuous["audio_entropy_kbit_per_s"] == pytest.approx(discrete["audio_kbit_per_s"], rel=0.05)
    with pytest.raises(InputError, match="fixed"):
        figures("--vae", tmp_path / "vae", "--video-kbps", 5)
