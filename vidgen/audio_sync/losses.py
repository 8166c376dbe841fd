"""What the audio codec is trained on: spectra at many resolutions, phase, the bottleneck, and an optional critic."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from .codec import AudioCodec
from .spectral import compressed, stft

LOSS_WINDOWS_SAMPLES = (128, 256, 512, 1024, 2048)
LOUDNESS_FLOOR = 3e-4
import os
OV=2
BETA=float(os.environ.get("BETA","1"))


@dataclass(frozen=True)
class CodecLossWeights:
    """Weights of the terms of ``codec_loss``; a weight of zero skips its term."""

    log_magnitude: float = 1.0
    convergence: float = 0.5
    phase: float = 2.0
    kl: float = 1e-3
    adversarial: float = 0.0
    feature_matching: float = 0.0


def spectral_distances(decoded: Tensor, waveform: Tensor, floor: float = LOUDNESS_FLOOR) -> tuple[Tensor, Tensor, Tensor]:
    """Multi-resolution STFT distances of two waveforms (B, C, N), averaged over windows of 128 to 2048 samples.

    Returns three scalars:
        spectral convergence and log-magnitude distance in nats, Parallel WaveGAN (arXiv 1910.11480), equations 6
        and 5. Two changes let silence weigh sensibly: the log has a floor added (-70 dBFS for noise), so that
        inaudible differences cost nothing, and the divisor of the convergence never falls below that floor's norm.
        phase: L1 distance of complex spectra with magnitudes compressed to the power 0.3. Unlike the other two it
        sees phase, so that onsets and the cycles of ringing tones are learnt without a critic.
    """
    convergence, log_magnitude, phase = [], [], []
    missing = -waveform.shape[-1] % (max(LOSS_WINDOWS_SAMPLES) // 2)
    decoded, waveform = F.pad(decoded, (0, missing)), F.pad(waveform, (0, missing))
    for window_samples in LOSS_WINDOWS_SAMPLES:
        ours, ours_power, ours_log = _analyse(decoded, window_samples, floor)
        theirs, theirs_power, theirs_log = _analyse(waveform, window_samples, floor)
        difference = (ours_power + 1e-12).sqrt() - theirs_power.sqrt()
        convergence.append(difference.norm() / (theirs_power + floor**2).sum().sqrt())
        d = ours_log - theirs_log
        log_magnitude.append(F.smooth_l1_loss(d,torch.zeros_like(d),beta=BETA))
        phase.append(F.l1_loss(ours, theirs))
    return torch.stack(convergence).mean(), torch.stack(log_magnitude).mean(), torch.stack(phase).mean()


def _analyse(waveform: Tensor, window_samples: int, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Compressed complex spectrum (last axis 2), power and log-magnitude, each (B, C, T, F)."""
    parts = torch.view_as_real(stft(waveform, window_samples, window_samples // OV))
    power = parts.square().sum(-1)
    log = 0.5 * torch.log(power + floor**2)
    return parts * torch.exp(-0.7 * log)[..., None], power, log
