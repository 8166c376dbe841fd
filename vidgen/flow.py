"""Rectified flow: the path from clean latents to noise, the draw of noise levels, and the loss.

x_σ = (1 − σ)·x_0 + σ·ε and its velocity ε − x_0 (Liu et al. 2022, arXiv 2209.03003, equation 1; Lipman et al. 2022,
arXiv 2210.02747, section 4.1, whose time runs the other way); σ = 0 is clean, σ = 1 is noise. Every latent has its own
σ: where it is 0 the value is given and nothing is to be learned there, so one loss trains every task.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError
from .noise import seeded_normal, seeded_uniform, to_device

MODES = ("shared", "per_modality", "per_frame", "region")


@dataclass(frozen=True)
class FlowConfig:
    """How noise levels are drawn and losses weighed.

    ``shared``, ``per_modality``, ``per_frame`` and ``region`` are relative frequencies of the modes of
    ``draw_noise_levels``.
    """

    video_shift: float = 1.0
    audio_shift: float = 1.0
    video_weight: float = 1.0
    audio_weight: float = 1.0
    focus_weight: float = 1.0
    """How many times a video latent in focus counts, which makes the video's share of the loss larger, too."""
    logit_mean: float = 0.0
    logit_std: float = 1.0
    shared: float = 0.9
    per_modality: float = 0.05
    per_frame: float = 0.03
    region: float = 0.02
    given: float = 0.5
    """How often in the modes ``per_modality`` and ``per_frame`` a modality or some frames are given clean."""

    def __post_init__(self) -> None:
        if min(self.frequencies) < 0 or sum(self.frequencies) <= 0:
            raise InputError(f"{', '.join(MODES)} are frequencies: none negative, not all zero")
        if self.video_shift <= 0 or self.audio_shift <= 0:
            raise InputError("a noise level shift must be positive")
        if not 0 <= self.given <= 1:
            raise InputError(f"given is a probability, not {self.given}")
        if self.focus_weight <= 0:
            raise InputError(f"focus_weight is positive, not {self.focus_weight}")

    @property
    def frequencies(self) -> tuple[float, ...]:
        """Of ``MODES``, in their order."""
        return (self.shared, self.per_modality, self.per_frame, self.region)


class Preconditioning(NamedTuple):
    """A velocity is ``skip``·x + ``gain``·(what the network answers to ``scale``·x)."""

    scale: Tensor
    skip: Tensor
    gain: Tensor


@dataclass(frozen=True)
class NoiseDraw:
    """What training samples get: noise of the latents' shapes, and noise levels.

    Those of the video are (t, 1, 1), or (t, h, w) where regions have their own; those of the audio (L,). A batch has
    (B, …).
    """

    video: Tensor
    audio: Tensor
    video_sigma: Tensor
    audio_sigma: Tensor


def interpolate(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The point of the path at ``sigma``, broadcastable to ``x0``. Exactly ``x0`` at 0 and ``noise`` at 1."""
    return (1 - sigma) * x0 + sigma * noise


def velocity_target(x0: Tensor, noise: Tensor) -> Tensor:
    """dx/dσ along the path: the same everywhere on it."""
    return noise - x0


def preconditioning(sigma: Tensor, std: Tensor) -> Preconditioning:
    """What a network is shown and has to answer, for clean values of mean 0 and standard deviation ``std``.

    Karras et al. 2022 (arXiv 2206.00364, section 5) for the straight path: ``skip``·x is the best linear guess of the
    velocity from x alone, so the noise need not pass through the network; what it is shown and what is left to
    answer have variance 1 at every noise level. For Gaussian values the guess is exact and an answer of 0 is right.

    Args:
        sigma, std: broadcastable to one another; std positive.
    """
    variance = sigma**2 + ((1 - sigma) * std) ** 2
    skip = (sigma - (1 - sigma) * std**2) / variance
    return Preconditioning(variance.rsqrt(), skip, std * variance.rsqrt())


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Move noise levels towards 1 (``shift`` > 1) or 0; 0 and 1 stay (Esser et al. 2024, arXiv 2403.03206, eq. 23)."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def sample_sigma(normal: Tensor, *, shift: float = 1.0, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Noise levels from standard normal draws: logit-normal (arXiv 2403.03206, equation 19), then shifted."""
    return shift_sigma(torch.sigmoid(mean + std * normal), shift)


def draw_noise_levels(
    mode: str, video_sites: Sequence[int], audio_latents: int, config: FlowConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Noise levels of the video latents, (t, 1, 1) or (t, h, w), and (L,) of the audio latents of one sample.

    Args:
        video_sites: (t, h, w).

    Modes:
        ``shared``: one draw for the whole clip (shifted for each modality as configured).
        ``per_modality``: one draw each. With probability ``config.given`` one of the two is given instead: sound for
            a picture, or a picture for a sound.
        ``per_frame``: a draw for each latent (Chen et al. 2024, arXiv 2407.01392), or, with probability
            ``config.given``, one draw each for the modalities, while some frames are given: the beginning of the
            clip, in half the cases with its sound, or any frames. At least one frame is always wanted.
        ``region``: one draw each for the modalities, while the picture is given outside of a rectangle, or inside of
            it, and in half the cases before and after a span of frames too; in half the cases with its sound.

    Raises:
        InputError: an unknown mode.
    """
    frames = video_sites[0]

    def uniform() -> float:
        return float(torch.rand((), generator=generator))

    def levels(count: int, shift: float) -> Tensor:
        normal = torch.randn(count, generator=generator)
        return sample_sigma(normal, shift=shift, mean=config.logit_mean, std=config.logit_std)

    if mode not in MODES:
        raise InputError(f"noise levels are drawn {', '.join(MODES)}, not {mode!r}")
    if mode == "shared":
        normal = torch.randn(1, generator=generator)
        video, audio = (
            sample_sigma(normal, shift=shift, mean=config.logit_mean, std=config.logit_std)
            for shift in (config.video_shift, config.audio_shift)
        )
        return video.repeat(frames).view(-1, 1, 1), audio.repeat(audio_latents)
    some_given = uniform() < config.given
    if mode == "per_frame" and not some_given:
        return levels(frames, config.video_shift).view(-1, 1, 1), levels(audio_latents, config.audio_shift)
    video = levels(1, config.video_shift).repeat(frames).view(-1, 1, 1)
    audio = levels(1, config.audio_shift).repeat(audio_latents)
    if mode == "per_modality" and some_given:
        (video if audio_latents and (not frames or uniform() < 0.5) else audio).zero_()
    elif mode == "per_frame" and frames > 1:
        count = 1 + int(uniform() * (frames - 1))
        if uniform() < 0.5:
            video[:count] = 0
            if uniform() < 0.5:
                audio[: audio_latents * count // frames] = 0
        else:
            video[torch.randperm(frames, generator=generator)[:count]] = 0
    elif mode == "region" and frames:
        video = video * draw_region(video_sites, generator)
        if uniform() < 0.5:
            audio.zero_()
    return video, audio


def draw_region(sites: Sequence[int], generator: torch.Generator) -> Tensor:
    """Bool (t, h, w), true at the latents that are wanted: at least one. See ``draw_noise_levels``, ``region``."""

    def span(size: int) -> slice:
        first, last = sorted(int(place) for place in torch.randint(size, (2,), generator=generator))
        return slice(first, last + 1)

    inside, in_span = torch.rand(2, generator=generator) < 0.5
    wanted = torch.zeros(*sites, dtype=torch.bool)
    wanted[:, span(sites[1]), span(sites[2])] = True
    if not inside and not wanted.all():
        wanted = ~wanted
    if in_span:
        kept = torch.zeros(sites[0], dtype=torch.bool)
        kept[span(sites[0])] = True
        wanted &= kept[:, None, None]
    return wanted


def draw_noise(seed: int, video_shape: Sequence[int], audio_shape: Sequence[int], config: FlowConfig) -> NoiseDraw:
    """Everything random about one training sample: ``draw_noises`` for a single seed, without the batch's axis."""
    drawn = draw_noises([seed], video_shape, audio_shape, config)
    return NoiseDraw(drawn.video[0], drawn.audio[0], drawn.video_sigma[0], drawn.audio_sigma[0])


def draw_noises(
    seeds: Sequence[int],
    video_shape: Sequence[int],
    audio_shape: Sequence[int],
    config: FlowConfig,
    device: torch.device | str = "cpu",
) -> NoiseDraw:
    """Everything random about training samples, each from its own seed: the same on any device and in any batch.

    Noise is drawn on ``device``, the few numbers that noise levels are made of on the CPU.

    Args:
        video_shape: (C, t, h, w).
        audio_shape: (C_a, L).
    """
    sites, audio_latents = video_shape[1:], audio_shape[1]
    normal = seeded_normal(seeds, (1,), stream=2)
    video_sigma, audio_sigma = (
        sample_sigma(normal, shift=shift, mean=config.logit_mean, std=config.logit_std).repeat(1, count)
        for shift, count in ((config.video_shift, sites[0]), (config.audio_shift, audio_latents))
    )
    video_sigma = video_sigma[..., None, None]
    # Most samples have one level; only the others are worth a generator of their own.
    frequencies = torch.tensor(config.frequencies, dtype=torch.float64)
    place = seeded_uniform(seeds, 1, stream=3)[0][:, 0] * frequencies.sum()
    for row, mode in enumerate(torch.searchsorted(frequencies.cumsum(0), place).tolist()):
        if mode:
            generator = torch.Generator().manual_seed(seeds[row])
            levels, audio_sigma[row] = draw_noise_levels(MODES[mode], sites, audio_latents, config, generator)
            if levels.shape[1:] != (1, 1) and video_sigma.shape[2:] == (1, 1):
                video_sigma = video_sigma.repeat(1, 1, *sites[1:])
            video_sigma[row] = levels
    return NoiseDraw(
        seeded_normal(seeds, video_shape, device, stream=0),
        seeded_normal(seeds, audio_shape, device, stream=1),
        to_device(video_sigma, device),
        to_device(audio_sigma, device),
    )


def flow_loss(
    model: nn.Module,
    video: Tensor | None,
    audio: Tensor | None,
    text: Tensor,
    *,
    text_mask: Tensor | None = None,
    has_audio: Tensor | None = None,
    focus: Tensor | None = None,
    video_times_s: Tensor | None,
    audio_times_s: Tensor | None,
    seeds: Sequence[int],
    config: FlowConfig,
    levels: int = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Flow-matching loss (arXiv 2210.02747, equation 23) of a batch, and its parts.

    Latents that are given (σ = 0), and the audio of samples that have none, add nothing to the loss. The sums are
    divided by the size of the whole batch, so that a batch shared out over processes has the same gradient.

    Args:
        model: a ``JointDiT`` or anything that is called like it.
        video, audio: clean normalised latents (B, C, t, h, w) and (B, C_a, L); of a modality that is None nothing is
            learned.
        text, text_mask: features (B, S, D) and bool (B, S).
        has_audio: bool (B,); None if every sample has sound. The audio latents of a sample without are not looked at.
        focus: bool (B, t, h, w), which video latents show what the text is about (``config.focus_weight``); or None.
        video_times_s, audio_times_s: (t,) and (L,), or (B, t) and (B, L).
        seeds: one a sample.
        levels: into how many equal ranges of noise levels to break the errors down.

    Returns:
        The weighted loss, and the detached mean squared errors ``video`` and ``audio`` over what counted. With
        ``levels`` = n also, for k = 1 … n, ``video_noise_k_of_n``, the sum of the errors at noise levels in the k-th
        range, and ``video_noise_k_of_n_seen``, how many they were; of audio the same.
    """
    given = video if video is not None else audio
    if given is None:
        raise InputError("neither video nor audio: there is nothing to learn from")
    video_shape = (0, 0, 0, 0) if video is None else video.shape[1:]
    audio_shape = (0, 0) if audio is None else audio.shape[1:]
    draw = draw_noises(seeds, video_shape, audio_shape, config, given.device)
    noisy_video, video_sigma = None, None
    if video is not None:
        video_noise, video_sigma = draw.video.to(video), draw.video_sigma.to(video)
        noisy_video = interpolate(video, video_noise, video_sigma[:, None])
    noisy_audio, audio_sigma = None, None
    if audio is not None:
        audio_noise, audio_sigma = draw.audio.to(audio), draw.audio_sigma.to(audio)
        audio_counts = audio_sigma > 0
        if has_audio is not None:
            # A clip without sound shows the model pure noise: what is unknown looks as at the start of sampling.
            silent = ~has_audio[:, None]
            audio_sigma = audio_sigma.masked_fill(silent, 1.0)
            audio_counts = audio_counts & ~silent
        noisy_audio = interpolate(audio, audio_noise, audio_sigma[:, None])

    video_velocity, audio_velocity = model(
        noisy_video,
        noisy_audio,
        text,
        text_mask=text_mask,
        video_sigma=video_sigma,
        audio_sigma=audio_sigma,
        video_times_s=video_times_s,
        audio_times_s=audio_times_s,
    )
    errors = {}
    if video is not None and video_sigma is not None:
        video_error = (video_velocity.float() - velocity_target(video, video_noise)).square().mean(1)
        sigma = video_sigma.expand_as(video_error)
        errors["video"] = (video_error, sigma, sigma > 0, config.video_weight)
    if audio is not None and audio_sigma is not None:
        audio_error = (audio_velocity.float() - velocity_target(audio, audio_noise)).square().mean(1)
        errors["audio"] = (audio_error, audio_sigma, audio_counts, config.audio_weight)
    loss, parts = given.new_zeros(()), {}
    for name, (error, sigma, counts, weight) in errors.items():
        error = error.where(counts, 0)
        if name == "video" and focus is not None:
            loss = loss + weight * (error * torch.where(focus.bool(), config.focus_weight, 1.0)).mean()
        else:
            loss = loss + weight * error.mean()
        parts[name] = error.detach().sum() / counts.sum().clamp(min=1)
        if levels:
            parts |= _by_level(name, error.detach().flatten(1), sigma.flatten(1), counts.flatten(1), levels)
    return loss, parts


def _by_level(name: str, error: Tensor, sigma: Tensor, counts: Tensor, levels: int) -> dict[str, Tensor]:
    """Sums and counts of errors (B, n), which are 0 where they do not count, by their noise levels (B, n)."""
    place = (sigma * levels).long().clamp(max=levels - 1)
    here = F.one_hot(place, levels).to(error) * counts[..., None]
    sums, seen = (error[..., None] * here).sum((0, 1)), here.sum((0, 1))
    parts: dict[str, Tensor] = {}
    for k in range(levels):
        key = f"{name}_noise_{k + 1}_of_{levels}"
        parts |= {key: sums[k], f"{key}_seen": seen[k]}
    return parts
