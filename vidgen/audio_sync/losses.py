"""Losses of the audio codec: spectra at many resolutions, phase, rate, and an adversary."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..noise import Generator
from .spectral import stft

WINDOWS_SAMPLES = (128, 256, 512, 1024, 2048)
QUIETEST = 3e-4
"""Spectral magnitude (of ``stft``) below which differences stop to count; white noise has it at -70 dBFS."""
PHASE_POWER = 0.3
ENVELOPE_WINDOW_SAMPLES = 48


@dataclass(frozen=True)
class CodecLossWeights:
    """How much each term of ``codec_loss`` counts; a term of weight 0 is not computed."""

    log_magnitude: float = 1.0
    convergence: float = 0.5
    phase: float = 5.0
    envelope: float = 2.0
    kl: float = 1e-3
    quantizer: float = 0.25
    """Of a quantizer's own loss, which takes the place of the divergence."""
    adversarial: float = 0.0
    feature_matching: float = 2.0
    """Relative to the adversarial term, without which it is not computed."""


def spectral_distances(decoded: Tensor, waveform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How far two waveforms (B, C, N) are apart, averaged over STFTs with windows of 128 to 2048 samples.

    Returns three scalars.
        convergence: Parallel WaveGAN (Yamamoto et al. 2019, arXiv 1910.11480), equation 5, its norms taken over the
            whole batch, so that a silent clip divides by nothing small.
        log_magnitude: that paper's equation 6, in nats, with the two changes that much silence asks for. Magnitudes
            have ``QUIETEST`` added in quadrature, so that inaudible differences cost nothing. And small errors count
            quadratically (Huber, bend at 1): the median, which the plain distance looks for, is silence wherever
            sounds are rare, and a codec that has fallen silent gets hardly a gradient.
        phase: mean absolute difference of the complex spectra, magnitudes raised to ``PHASE_POWER``. The other two do
            not see phase, this term does, so that it is learned without an adversary.
    """
    missing = -waveform.shape[-1] % max(WINDOWS_SAMPLES)
    decoded, waveform = F.pad(decoded, (0, missing)), F.pad(waveform, (0, missing))
    terms = []
    for window_samples in WINDOWS_SAMPLES:
        ours, our_power, our_log = _analyse(decoded, window_samples)
        theirs, their_power, their_log = _analyse(waveform, window_samples)
        difference = (our_power + 1e-12).sqrt() - (their_power + 1e-12).sqrt()
        convergence = difference.norm() / (their_power + QUIETEST**2).sum().sqrt()
        terms.append(torch.stack([convergence, F.smooth_l1_loss(our_log, their_log), F.l1_loss(ours, theirs)]))
    convergence, log_magnitude, phase = torch.stack(terms).mean(0)
    return convergence, log_magnitude, phase


def envelope_distance(decoded: Tensor, waveform: Tensor) -> Tensor:
    """How far the loudness of two waveforms (B, C, N) is apart from millisecond to millisecond, a scalar in nats.

    The root mean square of 2 ms (at 24 kHz) is taken each millisecond and compared as ``log_magnitude`` is. The few
    milliseconds of an attack hardly count in the spectral terms; without this one decoded impacts begin softly, too
    early.
    """
    window = ENVELOPE_WINDOW_SAMPLES
    powers = (
        F.avg_pool1d(F.pad(signal.float(), (window // 2, window // 2)).square(), window, window // 2)
        for signal in (decoded, waveform)
    )
    ours, theirs = (0.5 * torch.log(power + QUIETEST**2) for power in powers)
    return F.smooth_l1_loss(ours, theirs)


def _analyse(waveform: Tensor, window_samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compressed complex spectrum (its last axis real and imaginary part), power and log-magnitude: (B, C, T, F)."""
    parts = torch.view_as_real(stft(waveform, window_samples, window_samples // 2))
    power = parts.square().sum(-1)
    log_magnitude = 0.5 * torch.log(power + QUIETEST**2)
    return parts * torch.exp((PHASE_POWER - 1) * log_magnitude)[..., None], power, log_magnitude


class SpectralDiscriminator(nn.Module):
    """Judges time-frequency patches of STFTs at several resolutions: (B, C, N) to a list of (logits, features).

    2D convolutions on real and imaginary parts, as in EnCodec (Défossez et al. 2022, arXiv 2210.13438, section 3.4).
    Frequency is strided down, time is not, so that every stretch of time is judged on its own.
    """

    def __init__(self, channels: int = 1, width: int = 16, windows_samples: tuple[int, ...] = (256, 512, 1024)):
        super().__init__()
        self.windows_samples = windows_samples
        widths = [2 * channels, width, 2 * width, 2 * width, 2 * width]
        self.stacks = nn.ModuleList(
            nn.ModuleList(
                nn.Conv2d(before, after, (3, 7), stride=(1, 3), padding=(1, 3)) for before, after in pairwise(widths)
            )
            for _ in windows_samples
        )
        self.heads = nn.ModuleList(nn.Conv2d(widths[-1], 1, 3, padding=1) for _ in windows_samples)

    def forward(self, waveform: Tensor) -> list[tuple[Tensor, list[Tensor]]]:
        waveform = F.pad(waveform, (0, -waveform.shape[-1] % max(self.windows_samples)))
        judged = []
        for window_samples, stack, head in zip(self.windows_samples, self.stacks, self.heads, strict=True):
            spectrum, _, _ = _analyse(waveform, window_samples)
            hidden = spectrum.permute(0, 1, 4, 2, 3).flatten(1, 2)
            features = []
            for layer in stack:  # type: ignore[attr-defined]
                hidden = F.leaky_relu(layer(hidden), 0.2)
                features.append(hidden)
            judged.append((head(hidden), features))
        return judged


def codec_loss(
    codec: nn.Module,
    waveform: Tensor,
    weights: CodecLossWeights,
    generator: Generator = None,
    discriminator: nn.Module | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One forward pass of an ``AudioCodec`` in train mode and its loss.

    Args:
        codec: the model, or what a distributed wrapper made of it.
        waveform: (B, C, N) in [-1, 1].
        generator: for the posterior's noise; one, or one (or a seed) for each clip.
        discriminator: needed if the adversarial weight is not 0. Its parameters gather gradients that the caller
            must drop before ``discriminator_loss``.

    Returns:
        The weighted sum to minimise, and by name the detached terms, unweighted, with ``reconstruction``, the
        detached waveform.

    Raises:
        ValueError: an adversarial weight without a discriminator.
    """
    if weights.adversarial and discriminator is None:
        raise ValueError("the adversarial weight is not 0: give a SpectralDiscriminator")
    reconstruction, posterior = codec(waveform, generator)
    convergence, log_magnitude, phase = spectral_distances(reconstruction, waveform)
    terms = {"log_magnitude": log_magnitude, "convergence": convergence, "phase": phase}
    if weights.envelope:
        terms["envelope"] = envelope_distance(reconstruction, waveform)
    factors = {name: getattr(weights, name) for name in terms}
    if own_weight := getattr(weights, posterior.term):
        terms[posterior.term], factors[posterior.term] = posterior.loss(), own_weight
    if weights.adversarial and discriminator is not None:
        ours = discriminator(reconstruction)
        terms["adversarial"] = -torch.stack([logits.mean() for logits, _ in ours]).mean()
        factors["adversarial"] = weights.adversarial
        if weights.feature_matching:
            with torch.no_grad():
                theirs = discriminator(waveform)
            terms["feature_matching"] = torch.stack([
                F.l1_loss(our, their) / (their.abs().mean() + 1e-4)
                for (_, our_features), (_, their_features) in zip(ours, theirs, strict=True)
                for our, their in zip(our_features, their_features, strict=True)
            ]).mean()  # fmt: skip
            factors["feature_matching"] = weights.adversarial * weights.feature_matching
    loss = torch.stack([factors[name] * term for name, term in terms.items()]).sum()
    parts = {name: term.detach() for name, term in terms.items()}
    parts["reconstruction"] = reconstruction.detach()
    return loss, parts


def discriminator_loss(
    discriminator: nn.Module, waveform: Tensor, reconstruction: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The hinge loss of the discriminator (Lim & Ye 2017, arXiv 1705.02894, equation 5) on real and decoded sound.

    The codec's side of it, minus the mean logit of what it decodes, is the ``adversarial`` term of ``codec_loss``.
    """
    real = [logits for logits, _ in discriminator(waveform)]
    fake = [logits for logits, _ in discriminator(reconstruction.detach())]
    losses = [0.5 * (F.relu(1 - r).mean() + F.relu(1 + f).mean()) for r, f in zip(real, fake, strict=True)]
    mean_logits = [torch.stack([logits.detach().mean() for logits in side]).mean() for side in (real, fake)]
    return torch.stack(losses).mean(), {"real_logit": mean_logits[0], "fake_logit": mean_logits[1]}
