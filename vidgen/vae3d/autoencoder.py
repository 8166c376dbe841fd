"""The spacetime VAE: video (B, 3, T, H, W) to latents (B, C, t, h, w) and back, causal in time.

Nearly all of the work is done at the resolution of the latents by matrix products; only a few 3×3 convolutions with
few channels run at a quarter of the picture's resolution and the full frame rate, and nothing runs on full resolution
but the reordering of patches. Beside the network runs a fixed linear code (a 3D cosine transform) that makes a fresh
model a working, if blurred, codec, so that the network has only the residual to learn, as in DC-AE (Chen et al. 2024,
arXiv 2410.10733, section 3.2). The convention of 1 + n·4 frames, causal, is MAGVIT-v2's (Yu et al. 2023,
arXiv 2310.05737, section 3.2).
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from ..bottleneck import Posterior, make_bottleneck
from ..errors import InputError
from ..loading import offloadable
from ..noise import Generator
from ..quantizers import Codes
from .layers import (
    PATCH,
    PIXEL_CHANNELS,
    CosineCode,
    FrameConv,
    ImageBlock,
    TrunkBlock,
    frames_to_patches,
    group,
    patches_to_frames,
    ungroup,
)  # fmt: skip
from .tiling import decode_tiled

INITIAL_LOGVAR = -7.0
"""The posterior's noise starts small beside the cosine code, whose coefficients are about 1."""


class Encoder(nn.Module):
    """Video (B, 3, T, H, W) to features (B, ``feature_channels``, t, h, w), of which the first ``latent_channels``
    start as the cosine code and the rest (log-variances, for a KL bottleneck) as a constant."""

    def __init__(
        self, latent_channels: int, feature_channels: int, width: int, depth: int, image_channels: int,
        image_depth: int, frames: int, edge: int,
    ):  # fmt: skip
        super().__init__()
        self.frames, self.edge = frames, edge // PATCH
        self.stem = FrameConv(PIXEL_CHANNELS, image_channels)
        self.images = nn.Sequential(*(ImageBlock(image_channels) for _ in range(image_depth)))
        self.patchify = nn.Linear(frames * self.edge**2 * image_channels, width)
        self.blocks = nn.ModuleList(TrunkBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, feature_channels)
        self.cosine_code = CosineCode(latent_channels, frames, edge)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, INITIAL_LOGVAR)
        nn.init.zeros_(self.head.bias.data[:latent_channels])

    def forward(self, video: Tensor) -> Tensor:
        patches = frames_to_patches(video)
        x = self.patchify(group(self.images(self.stem(patches)), self.frames, self.edge))
        for block in self.blocks:
            x, _ = block(x)
        features = self.head(self.norm(x))
        code = self.cosine_code.encode(group(patches, self.frames, self.edge))
        return (features + F.pad(code, (0, features.shape[-1] - code.shape[-1]))).permute(0, 4, 1, 2, 3)


class Decoder(nn.Module):
    """Latents (B, C, t, h, w) to video (B, 3, T, H, W), not clamped."""

    def __init__(
        self, latent_channels: int, width: int, depth: int, image_channels: int, image_depth: int, frames: int,
        edge: int,
    ):  # fmt: skip
        super().__init__()
        self.frames, self.edge = frames, edge // PATCH
        self.stem = nn.Linear(latent_channels, width)
        self.blocks = nn.ModuleList(TrunkBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.unpatchify = nn.Linear(width, frames * self.edge**2 * image_channels)
        self.images = nn.Sequential(*(ImageBlock(image_channels) for _ in range(image_depth)))
        self.norm_out = nn.LayerNorm(image_channels)
        self.head = FrameConv(image_channels, PIXEL_CHANNELS)
        self.cosine_code = CosineCode(latent_channels, frames, edge)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(self, latents: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        """Decode, going on from ``state`` (what each block keeps of the past) if there was an earlier chunk."""
        latents = latents.permute(0, 2, 3, 4, 1)
        first = state is None
        x, kept = self.stem(latents), []
        for index, block in enumerate(self.blocks):
            x, past = block(x, None if state is None else state[index])
            kept.append(past)
        x = self.images(ungroup(self.unpatchify(self.norm(x)), self.frames, self.edge, first))
        patches = self.head(self.norm_out(x))
        return patches_to_frames(
            patches + ungroup(self.cosine_code.decode(latents), self.frames, self.edge, first)
        ), kept


class SpacetimeVAE(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers' own bases disagree
    """Causal video autoencoder: T = 1 + ``temporal_compression``·n frames become 1 + n latent frames.

    The first frame is coded alone, so an image is a one-frame video. Video is float in [-1, 1].

    Args:
        latent_channels: channels C of the latents.
        temporal_compression: frames that one latent frame stands for (the first stands for one).
        spatial_compression: edge in pixels of the square that one latent stands for, a multiple of 4.
        width, encoder_depth, decoder_depth: channels and number of the trunk's blocks, at latent resolution.
        image_channels, image_depth: channels and number of residual blocks at 1/4 resolution and full frame rate.
        bottleneck, codebooks, codebook_size, levels: see ``vidgen.bottleneck.make_bottleneck``.
    """

    _no_split_modules = ("TrunkBlock", "ImageBlock")  # type: ignore[assignment]
    latents_mean: Tensor
    latents_std: Tensor

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 24,
        temporal_compression: int = 4,
        spatial_compression: int = 16,
        width: int = 256,
        encoder_depth: int = 3,
        decoder_depth: int = 4,
        image_channels: int = 48,
        image_depth: int = 1,
        bottleneck: str = "kl",
        codebooks: int = 4,
        codebook_size: int = 1024,
        levels: list[int] | None = None,
    ):
        super().__init__()
        if spatial_compression % PATCH or spatial_compression < PATCH or temporal_compression < 1:
            raise InputError(
                f"cannot compress {spatial_compression}× in space and {temporal_compression}× in time: give a "
                f"multiple of {PATCH} and a positive number"
            )
        self.to_posterior = make_bottleneck(bottleneck, latent_channels, codebooks, codebook_size, levels)
        sizes = (image_channels, image_depth, temporal_compression, spatial_compression)
        features = self.to_posterior.feature_channels
        self.encoder = Encoder(latent_channels, features, width, encoder_depth, *sizes)
        self.decoder = Decoder(latent_channels, width, decoder_depth, *sizes)
        self.register_buffer("latents_mean", torch.zeros(latent_channels))
        self.register_buffer("latents_std", torch.ones(latent_channels))

    def forward(
        self, video: Tensor, generator: Generator = None, return_dict: bool = False
    ) -> tuple[Tensor, Posterior | Codes]:
        """Encode, draw from the posterior (in eval mode: take its mode) and decode: (reconstruction, posterior).

        With ``return_dict`` a ``DecoderOutput`` of the reconstruction, as diffusers' networks return.
        """
        posterior = self.encode(video)
        latents = posterior.sample(generator) if self.training else posterior.mode()
        if return_dict:
            return DecoderOutput(self.decode(latents))  # type: ignore[return-value]
        return self.decode(latents), posterior

    @offloadable
    def encode(self, video: Tensor) -> Posterior | Codes:
        """Video (B, 3, T, H, W) in [-1, 1] to the posterior over latents (B, C, t, h, w), not normalised.

        Raises:
            InputError: T is not 1 + n·temporal_compression, or H or W no multiple of spatial_compression.
        """
        self._check_video(video)
        return self.to_posterior(self.encoder(video))

    @offloadable
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, t, h, w), not normalised, to video (B, 3, T, H, W), in [-1, 1] but for overshoot.

        Raises:
            InputError: the latents have another shape.
        """
        self._check_latents(latents)
        return self.decoder(latents)[0]

    def encode_tokens(self, video: Tensor) -> Tensor:
        """Video (B, 3, T, H, W) to int64 tokens (B, codebooks, t, h, w), each below ``to_posterior.vocabulary``.

        Raises:
            InputError: as ``encode``, or the bottleneck is no quantizer.
        """
        return self.encode(video).tokens

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens (B, codebooks, t, h, w) to video: ``decode`` of the latents that they stand for.

        Raises:
            InputError: tokens of another shape, kind or range, or the bottleneck is no quantizer.
        """
        return self.decode(self.to_posterior.from_tokens(tokens).to(self.dtype))

    @offloadable
    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Decode consecutive chunks (B, C, any t, h, w) of a clip's latents as they arrive.

        What comes out, joined along time, is ``decode`` of the joined chunks.

        Raises:
            InputError: a chunk has the wrong shape, or another batch, height or width than the first.
        """
        state: list[Tensor] | None = None
        size: tuple[int, ...] | None = None
        for chunk in chunks:
            self._check_latents(chunk)
            chunk_size = (chunk.shape[0], *chunk.shape[3:])
            if size is not None and chunk_size != size:
                raise InputError(f"chunk with (batch, height, width) {chunk_size} after chunks with {size}")
            size = chunk_size
            video, state = self.decoder(chunk, state)
            yield video

    def decode_tiled(self, latents: Tensor, tile: tuple[int, int] = (32, 32), overlap: int = 8) -> Tensor:
        """``decode`` in overlapping tiles of (height, width) latents, to bound memory; see ``tiling.decode_tiled``.

        Equal to ``decode`` up to rounding where ``overlap`` is at least ``2 · receptive_radius``; below that, seams
        are blended linearly.

        Raises:
            InputError: the latents have the wrong shape, or the overlap is negative or not smaller than the tile.
        """
        self._check_latents(latents)
        scale = self.config["spatial_compression"]
        return decode_tiled(self.decode, latents, tile, overlap, scale, self.receptive_radius)

    @property
    def receptive_radius(self) -> int:
        """How many latents beyond its own place a decoded pixel depends on, in height and width."""
        pixels = PATCH * (2 * self.config["image_depth"] + 1)
        return self.config["decoder_depth"] + -(-pixels // self.config["spatial_compression"])

    @offloadable
    def to_latents(self, video: Tensor) -> Tensor:
        """Video to normalised latents (about zero mean and unit variance a channel): what the DiT works on."""
        mean, std = self._statistics()
        return (self.encode(video).mode() - mean) / std

    def from_latents(self, latents: Tensor) -> Tensor:
        """Normalised latents to video: the reverse of ``to_latents``."""
        return self.decode(self.denormalise(latents))

    @offloadable
    def denormalise(self, latents: Tensor) -> Tensor:
        """Normalised latents to those that ``decode``, ``decode_stream`` and ``decode_tiled`` take."""
        mean, std = self._statistics()
        return latents * std + mean

    @torch.no_grad()
    def set_latent_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set what ``to_latents`` subtracts and divides by, each of shape (C,).

        Raises:
            InputError: wrong shape, or a deviation that is not positive and finite.
        """
        shape = self.latents_mean.shape
        if mean.shape != shape or std.shape != shape:
            raise InputError(
                f"latent statistics need shape {tuple(shape)}, not {tuple(mean.shape)}, {tuple(std.shape)}"
            )
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all() and (std > 0).all()):
            raise InputError("latent statistics must be finite, the deviations positive")
        self.latents_mean.copy_(mean)
        self.latents_std.copy_(std)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        return self.latents_mean.view(-1, 1, 1, 1), self.latents_std.view(-1, 1, 1, 1)

    def _check_video(self, video: Tensor) -> None:
        group, edge = self.config["temporal_compression"], self.config["spatial_compression"]
        if video.ndim != 5 or video.shape[1] != 3:
            raise InputError(f"a video tensor is (batch, 3, frames, height, width), not {tuple(video.shape)}")
        frames, height, width = video.shape[2:]
        if frames < 1 or (frames - 1) % group:
            raise InputError(
                f"{frames} frames cannot be encoded: give 1 + {group}·n frames (see ClipSpec.padded_frames)"
            )
        if height < edge or width < edge or height % edge or width % edge:
            raise InputError(f"frames of {height}×{width} cannot be encoded: both must be multiples of {edge}")

    def _check_latents(self, latents: Tensor) -> None:
        channels = self.config["latent_channels"]
        if latents.ndim != 5 or latents.shape[1] != channels or 0 in latents.shape[2:]:
            raise InputError(
                f"latents are (batch, {channels}, frames, height, width), none empty, not {tuple(latents.shape)}"
            )
