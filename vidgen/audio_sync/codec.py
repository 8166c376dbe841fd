"""Audio codec: waveform <-> continuous latents at 25 Hz, by way of spectra, so that it is fast on a CPU.

The heavy layers work at 100 and 25 frames a second, never at 24,000: the encoder reads short-time spectra, the
decoder writes one and ends in an inverse STFT, as Vocos does (Siuzdak 2023, arXiv 2306.00814). Two things let it learn
within minutes. A fixed linear code of the log-spectrum makes a fresh model a working vocoder, so that the network has
only the residual and the phases to learn. And phases are told against a clock that runs on from frame to frame, one
turn of the lowest bin a latent or less, so that a steady tone has a nearly steady phase.

All layers are convolutions of finite reach or act on single frames, so that a part of the latents, with some context,
decodes as the whole does.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from ..bottleneck import Posterior, make_bottleneck
from ..errors import InputError
from ..loading import offloadable
from ..noise import Generator
from ..quantizers import Codes
from .spectral import compressed, inverse_stft, stft, with_clock

QUARTERS = 4
"""Short analysis windows start this often a frame."""
QUIETEST_INPUT = 3e-5
"""What the encoder's log-magnitudes cannot tell from silence."""
LOWEST_LEVEL, HIGHEST_LEVEL = -11.0, 4.0
"""Bounds of the decoder's log-magnitudes, in nats."""
CODE_CENTRE, CODE_SCALE = -7.2, 2.0
"""A latent of one in the linear code is CODE_SCALE nats; all zeros are CODE_CENTRE nats."""
INITIAL_LOGVAR = -5.0
TIME_FINENESS = 2.0
"""How much sooner the linear code runs out of detail in time than in frequency."""


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then an MLP on each frame (Liu et al. 2022, arXiv 2201.03545, figure 4).

    (B, C, T) -> (B, C, T). The norm acts on one frame alone, which keeps the reach finite.
    """

    def __init__(self, channels: int, kernel_size: int, expansion: int, layer_scale: float = 0.3):
        super().__init__()
        self.depthwise = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, expansion * channels)
        self.contract = nn.Linear(expansion * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.depthwise(x).transpose(1, 2))
        hidden = self.contract(nn.functional.gelu(self.expand(hidden), approximate="tanh"))
        return x + (self.scale * hidden).transpose(1, 2)


class FrameLinear(nn.Module):
    """Layer norm and a linear map on each frame: (B, C, T) -> (B, C', T)."""

    def __init__(self, in_channels: int, out_channels: int, normalise: bool = True):
        super().__init__()
        self.norm = nn.LayerNorm(in_channels) if normalise else nn.Identity()
        self.linear = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.norm(x.transpose(1, 2))).transpose(1, 2)


class AudioCodec(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers' own bases disagree
    """Waveform (B, channels, N) in [-1, 1] <-> latents (B, latent_channels, ceil(N / hop_samples)).

    Latent j stands for the samples [hop_samples·j, hop_samples·(j + 1)); it is heard somewhat beyond them, within
    ``context_latents`` latents on both sides.

    Args:
        channels: audio channels, coded jointly.
        latent_channels: values per latent.
        sample_rate_hz: what the codec is trained for; only carried along.
        hop_samples: samples per latent; also the encoder's long window.
        frame_samples: hop of the spectral frames on which most layers work.
        synthesis_window_samples, synthesis_hop_samples: the decoder's inverse STFT. A shorter window places onsets
            better, a longer one resolves pitch better.
        encoder_channels, encoder_blocks: width and number of the encoder's blocks at the frame rate.
        decoder_channels, decoder_blocks: the same for the decoder.
        latent_blocks: blocks at the latent rate in each of the two.
        kernel_size, latent_kernel_size: odd lengths of the depthwise convolutions at the two rates.
        expansion: hidden width of a block over its width.
        bottleneck, codebooks, codebook_size, levels: see ``vidgen.bottleneck.make_bottleneck``.

    Raises:
        InputError: sizes that do not divide one another.
    """

    _no_split_modules = ("ConvNeXtBlock",)  # type: ignore[assignment]
    latents_mean: Tensor
    latents_std: Tensor
    code_analysis: Tensor
    code_synthesis: Tensor

    @register_to_config
    def __init__(
        self,
        channels: int = 1,
        latent_channels: int = 32,
        sample_rate_hz: int = 24000,
        hop_samples: int = 960,
        frame_samples: int = 240,
        synthesis_window_samples: int = 480,
        synthesis_hop_samples: int = 120,
        encoder_channels: int = 192,
        encoder_blocks: int = 3,
        decoder_channels: int = 256,
        decoder_blocks: int = 5,
        latent_blocks: int = 1,
        kernel_size: int = 7,
        latent_kernel_size: int = 3,
        expansion: int = 2,
        bottleneck: str = "kl",
        codebooks: int = 8,
        codebook_size: int = 1024,
        levels: list[int] | None = None,
    ):
        super().__init__()
        sizes = (hop_samples, frame_samples, synthesis_window_samples, synthesis_hop_samples)
        if (
            min(sizes) < 2
            or hop_samples % frame_samples
            or frame_samples % (2 * QUARTERS)
            or frame_samples % synthesis_hop_samples
            or hop_samples % synthesis_window_samples
            or synthesis_window_samples % (2 * synthesis_hop_samples)
        ):
            raise InputError(
                f"hop, frame, synthesis window and synthesis hop of {sizes} samples do not fit: frame and window must "
                f"divide the hop, the synthesis hop must divide the frame and half the window, {2 * QUARTERS} the frame"
            )
        self.latent_frames = hop_samples // frame_samples
        self.frame_spectra = frame_samples // synthesis_hop_samples
        self.synthesis_bins = synthesis_window_samples // 2 + 1

        def blocks(width: int, count: int, kernel: int) -> nn.Sequential:
            return nn.Sequential(*(ConvNeXtBlock(width, kernel, expansion) for _ in range(count)))

        short_bins = frame_samples // 2 + 1
        self.to_posterior = make_bottleneck(bottleneck, latent_channels, codebooks, codebook_size, levels)
        self.encoder = nn.Sequential(
            FrameLinear(
                channels * (2 * (hop_samples // 2 + 1) + QUARTERS * short_bins), encoder_channels, normalise=False
            ),
            blocks(encoder_channels, encoder_blocks, kernel_size),
        )
        to_features = FrameLinear(decoder_channels, self.to_posterior.feature_channels)
        self.merge = nn.Sequential(
            FrameLinear(self.latent_frames * encoder_channels, decoder_channels),
            blocks(decoder_channels, latent_blocks, latent_kernel_size),
            to_features,
        )
        self.split = nn.Sequential(
            nn.Conv1d(latent_channels, decoder_channels, latent_kernel_size, padding=latent_kernel_size // 2),
            blocks(decoder_channels, latent_blocks, latent_kernel_size),
            FrameLinear(decoder_channels, self.latent_frames * decoder_channels),
        )
        head = FrameLinear(decoder_channels, 3 * channels * self.frame_spectra * self.synthesis_bins)
        self.decoder = nn.Sequential(blocks(decoder_channels, decoder_blocks, kernel_size), head)

        # Derived from the config, so not stored with the weights.
        analysis = loudness_basis(latent_channels, QUARTERS * self.latent_frames, short_bins, sample_rate_hz)
        synthesis = loudness_basis(
            latent_channels, hop_samples // synthesis_hop_samples, self.synthesis_bins, sample_rate_hz
        )
        self.register_buffer("code_analysis", torch.linalg.pinv(analysis.flatten(1)), persistent=False)
        self.register_buffer("code_synthesis", synthesis.flatten(1), persistent=False)
        self.register_buffer("latents_mean", torch.zeros(latent_channels))
        self.register_buffer("latents_std", torch.ones(latent_channels))
        # A fresh codec is the linear code with a fixed, random phase in each bin: a rough but audible vocoder.
        with torch.no_grad():
            to_features.linear.weight.mul_(0.1)
            to_features.linear.bias.zero_()
            to_features.linear.bias[latent_channels:] = INITIAL_LOGVAR
            head.linear.weight.mul_(0.3)
            head.linear.bias.normal_(std=0.5**0.5)
            head.linear.bias.unflatten(0, (3, -1))[0] = 0.0

        latent_reach = (latent_blocks + 1) * (latent_kernel_size // 2)
        frame_reach = decoder_blocks * (kernel_size // 2) + math.ceil(synthesis_window_samples / frame_samples)
        self.context_latents = latent_reach + math.ceil(frame_reach / self.latent_frames)

    def forward(
        self, waveform: Tensor, generator: Generator = None, return_dict: bool = False
    ) -> tuple[Tensor, Posterior | Codes]:
        """Encode, draw from the posterior (in eval mode: take its mode) and decode: (reconstruction, posterior).

        With ``return_dict`` a ``DecoderOutput`` of the reconstruction, as diffusers' networks return.
        """
        posterior = self.encode(waveform)
        latents = posterior.sample(generator) if self.training else posterior.mode()
        reconstruction = self.decode(latents, waveform.shape[2])
        if return_dict:
            return DecoderOutput(reconstruction)  # type: ignore[return-value]
        return reconstruction, posterior

    @offloadable
    def encode(self, waveform: Tensor) -> Posterior | Codes:
        """Waveform (B, channels, N), N >= 1, to the posterior over (B, latent_channels, ceil(N / hop_samples)).

        The waveform is extended with silence to whole latents. A long window tells the encoder pitch and phase,
        short ones tell it where a sound begins.

        Raises:
            InputError: a waveform of another shape.
        """
        channels, hop, frame = self.config["channels"], self.config["hop_samples"], self.config["frame_samples"]
        if waveform.ndim != 3 or waveform.shape[1] != channels or waveform.shape[2] < 1:
            raise InputError(
                f"a waveform tensor is (batch, {channels}, samples), at least one, not {tuple(waveform.shape)}"
            )
        waveform = nn.functional.pad(waveform, (0, -waveform.shape[2] % hop))
        long = compressed(with_clock(stft(waveform, hop, frame), frame, sign=-1))
        short = torch.log(stft(waveform, frame, frame // QUARTERS).abs() + QUIETEST_INPUT)
        short = (short - CODE_CENTRE) / CODE_SCALE
        features = torch.cat([
            rearrange(long, "b c t f part -> b (c f part) t"),
            rearrange(short, "b c (t quarter) f -> b (c quarter f) t", quarter=QUARTERS) / 2,
        ], dim=1)  # fmt: skip
        hidden = rearrange(self.encoder(features.to(self.dtype)), "b c (l t) -> b (c t) l", t=self.latent_frames)
        steps = QUARTERS * self.latent_frames
        code = rearrange(short.mean(1), "b (l t) f -> b l (t f)", t=steps) @ self.code_analysis.float()
        output = self.merge(hidden)
        code = nn.functional.pad(code.transpose(1, 2), (0, 0, 0, output.shape[1] - code.shape[2]))
        return self.to_posterior(output + code.to(output.dtype))

    @offloadable
    def decode(self, latents: Tensor, num_samples: int | None = None) -> Tensor:
        """Latents (B, latent_channels, L), not normalised, to a float32 waveform (B, channels, num_samples).

        Args:
            num_samples: at most L·hop_samples, which is also the default.

        Raises:
            InputError: latents of another shape, or more samples than they stand for.
        """
        self._check_latents(latents)
        available = latents.shape[2] * self.config["hop_samples"]
        num_samples = available if num_samples is None else num_samples
        if not 0 < num_samples <= available:
            raise InputError(f"{latents.shape[2]} audio latents hold 1 to {available} samples, not {num_samples}")
        hidden = rearrange(self.split(latents), "b (c t) l -> b c (l t)", t=self.latent_frames)
        level, real, imaginary = rearrange(
            self.decoder(hidden).float(),
            "b (part c k f) t -> part b c (t k) f",
            part=3,
            c=self.config["channels"],
            k=self.frame_spectra,
        )
        code = latents.float().transpose(1, 2) @ self.code_synthesis.float()
        code = CODE_CENTRE + CODE_SCALE * rearrange(code, "b l (t f) -> b 1 (l t) f", f=self.synthesis_bins)
        # Softly bounded from below: far down in silence the gradient would vanish and never come back.
        level = LOWEST_LEVEL + nn.functional.softplus(code + level - LOWEST_LEVEL)
        magnitude = torch.exp(level.clamp(max=HIGHEST_LEVEL))
        spectrum = with_clock(
            torch.complex(magnitude * real, magnitude * imaginary), self.config["synthesis_hop_samples"]
        )
        waveform = inverse_stft(spectrum, self.config["synthesis_window_samples"], self.config["synthesis_hop_samples"])
        return waveform[..., :num_samples]

    def encode_tokens(self, waveform: Tensor) -> Tensor:
        """Waveform (B, channels, N) to int64 tokens (B, codebooks, ceil(N / hop_samples)), each below
        ``to_posterior.vocabulary``.

        Raises:
            InputError: as ``encode``, or the bottleneck is no quantizer.
        """
        return self.encode(waveform).tokens

    def decode_tokens(self, tokens: Tensor, num_samples: int | None = None) -> Tensor:
        """Tokens (B, codebooks, L) to a waveform: ``decode`` of the latents that they stand for.

        RVQ's first codebooks alone will do, for a lower bit rate.

        Raises:
            InputError: tokens of another shape, kind or range, too many samples, or the bottleneck is no quantizer.
        """
        return self.decode(self.to_posterior.from_tokens(tokens).to(self.dtype), num_samples)

    @offloadable
    def decode_stream(self, chunks: Iterable[Tensor], num_samples: int | None = None) -> Iterator[Tensor]:
        """Decode consecutive chunks (B, latent_channels, any length) of a clip's latents as they arrive.

        What comes out, joined along time, is ``decode`` of the joined chunks, to rounding. Each stretch is held back
        until ``context_latents`` more latents are known, because those are heard in it.

        Args:
            num_samples: where to end, at most what all chunks stand for; by default there.

        Raises:
            InputError: a chunk of another shape.
        """
        context, hop = self.context_latents, self.config["hop_samples"]
        held: Tensor | None = None
        done = 0  # so many latents at the front of ``held`` are decoded already and stay as context
        left = math.inf if num_samples is None else num_samples

        def stretch(latents: Tensor, start: int, stop: int) -> Tensor:
            waveform = self.decode(latents)[..., start * hop : stop * hop]
            return waveform[..., : int(min(left, waveform.shape[2]))]

        for chunk in chunks:
            self._check_latents(chunk)
            held = chunk if held is None else torch.cat([held, chunk], dim=2)
            ready = held.shape[2] - context
            if ready > done and left > 0:
                waveform = stretch(held, done, ready)
                left -= waveform.shape[2]
                yield waveform
                first = max(0, ready - context)
                held, done = held[:, :, first:], ready - first
        if held is not None and left > 0:
            yield stretch(held, done, held.shape[2])

    @offloadable
    def to_latents(self, waveform: Tensor) -> Tensor:
        """Waveform to normalised latents (about zero mean and unit variance a channel): what the DiT works on."""
        return (self.encode(waveform).mode() - self.latents_mean[:, None]) / self.latents_std[:, None]

    def from_latents(self, latents: Tensor, num_samples: int | None = None) -> Tensor:
        """Normalised latents to a waveform: the reverse of ``to_latents``."""
        return self.decode(self.denormalise(latents), num_samples)

    @offloadable
    def denormalise(self, latents: Tensor) -> Tensor:
        """Normalised latents to those that ``decode`` and ``decode_stream`` take."""
        return latents * self.latents_std[:, None] + self.latents_mean[:, None]

    @torch.no_grad()
    def set_latent_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set what ``to_latents`` subtracts and divides by, each of shape (latent_channels,).

        Raises:
            InputError: wrong shape, or a deviation that is not positive and finite.
        """
        shape = self.latents_mean.shape
        if mean.shape != shape or std.shape != shape:
            found = f"{tuple(mean.shape)}, {tuple(std.shape)}"
            raise InputError(f"latent statistics need shape {tuple(shape)}, not {found}")
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all() and (std > 0).all()):
            raise InputError("latent statistics must be finite, the deviations positive")
        self.latents_mean.copy_(mean)
        self.latents_std.copy_(std)

    def _check_latents(self, latents: Tensor) -> None:
        channels = self.config["latent_channels"]
        if latents.ndim != 3 or latents.shape[1] != channels or latents.shape[2] < 1:
            raise InputError(f"latents are (batch, {channels}, length), none empty, not {tuple(latents.shape)}")


def loudness_basis(num_components: int, steps: int, bins: int, sample_rate_hz: int) -> Tensor:
    """(num_components, steps, bins): smooth functions on a grid of time steps and frequency bins, in [-1, 1].

    They are products of a cosine over time and one over the mel scale (O'Shaughnessy's formula), ordered by how fine
    they are; the first is constant. The finer, the smaller: as fine detail is small in sounds too, all components
    come to similar size. On grids of different size the same functions are sampled.
    """
    # In float32 also where a network is built in half precision, as loaders do that set torch's default type.
    time = (torch.arange(steps, dtype=torch.float32) + 0.5) / steps
    mel = torch.log1p(torch.linspace(0, sample_rate_hz / 2, bins, dtype=torch.float32) / 700)
    mel = mel / mel[-1]
    orders = sorted((math.hypot(TIME_FINENESS * p, q), p, q) for p in range(steps // 2) for q in range(num_components))
    return torch.stack([
        torch.outer(torch.cos(math.pi * p * time), torch.cos(math.pi * q * mel)) / (1 + fineness)
        for fineness, p, q in orders[:num_components]
    ])  # fmt: skip
