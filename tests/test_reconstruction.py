"""The figures of the autoencoders, on stand-ins whose losses are known."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eval import reconstruction

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
