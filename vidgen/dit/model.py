"""The joint diffusion transformer: velocities of video and audio latents, denoised together under text.

One sequence [video | audio | text] with full attention in every block, so that sound and picture are decided together
(as in Stable Diffusion 3's joint attention, Esser et al. 2024, arXiv 2403.03206, section 4, but with shared weights).
Every latent token has its own noise level and its own time in seconds; what is given and what is wanted is only a
matter of the noise levels.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils import BaseOutput
from einops import rearrange
from torch import Tensor, nn

from ..errors import InputError
from ..flow import Preconditioning, preconditioning
from .blocks import JointBlock, NoiseLevelEmbedding, TextBlock, modulate, spread
from .context import Context
from .rope import audio_angles, position_angles, video_angles

VIDEO, AUDIO, TEXT = range(3)
SECONDS_PER_WORD = 0.04
"""In the text refiner, the order of the tokens is a time axis with this spacing."""


@dataclass
class JointOutput(BaseOutput):
    """Velocities of video (B, C, t, h, w) and audio (B, C_a, L), or None."""

    video: Tensor | None
    audio: Tensor | None


class TextRefiner(nn.Module):
    """Frozen text features (B, S, text_dim) to tokens (B, 1 + S, width), with the order of the words worked in.

    A learned token stands first and is never masked, so that a prompt without a single token is still something to
    attend to.
    """

    def __init__(self, text_dim: int, width: int, heads: int, layers: int, mlp_ratio: float):
        super().__init__()
        self.head_dim = width // heads
        self.norm = nn.LayerNorm(text_dim)
        self.proj = nn.Linear(text_dim, width)
        self.first_token = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = nn.ModuleList(TextBlock(width, heads, mlp_ratio) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width)

    def forward(self, text: Tensor, mask: Tensor | None) -> Tensor:
        x = self.proj(self.norm(text))
        x = torch.cat((self.first_token.to(x.dtype).expand(x.shape[0], 1, -1), x), dim=1)
        places = torch.arange(x.shape[1], device=x.device) * SECONDS_PER_WORD
        angles = position_angles(places, torch.zeros_like(places), torch.zeros_like(places), self.head_dim)
        cos, sin = angles.cos(), angles.sin()
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        return self.norm_out(x)


class OutputHead(nn.Module):
    """Modulated norm and a linear layer that starts at zero."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        self.modulation_table = nn.Parameter(torch.zeros(2 * width))
        self.proj = nn.Linear(width, channels)
        nn.init.zeros_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """(B, n, width) and level vectors (B, u, 2·width) to (B, n, channels)."""
        shift, scale = (level + self.modulation_table).chunk(2, dim=-1)
        return self.proj(modulate(x, spread(shift, x.shape[1]), spread(1 + scale, x.shape[1])))


class LocalConvolutions(nn.Module):
    """What neighbouring latents of a frame have to do with one another, so that no seam shows where patches meet.

    Convolutions over each frame's latents before the transformer, and over what it answers, with the former as a skip
    connection. The last one starts at zero.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.stem_in = nn.Conv2d(channels, width, 3, padding=1)
        self.stem_out = nn.Conv2d(width, width, 3, padding=1)
        self.head_in = nn.Conv2d(2 * width, width, 3, padding=1)
        self.head_out = nn.Conv2d(width, channels, 3, padding=1)
        for parameter in self.head_out.parameters():
            nn.init.zeros_(parameter)

    def stem(self, video: Tensor) -> Tensor:
        """Latents (B, C, t, h, w) to features (B, width, t, h, w)."""
        features = self.stem_out(F.silu(self.stem_in(_as_frames(video))))
        return _as_clips(features, video)

    def head(self, stem: Tensor, answer: Tensor) -> Tensor:
        """The stem's features and the transformer's, both (B, width, t, h, w), to latents (B, C, t, h, w)."""
        features = _as_frames(torch.cat((stem, answer.to(stem.dtype)), dim=1))
        return _as_clips(self.head_out(F.silu(self.head_in(features))), stem)


class JointDiT(ModelMixin, ConfigMixin, AttentionMixin, PeftAdapterMixin):
    """Predicts the velocity (noise − clean) of video and audio latents; see ``vidgen.flow`` for the path.

    Args:
        video_channels, audio_channels: channels of the two autoencoders' latents.
        text_dim: channels of the frozen text encoder's features.
        width, depth, heads: of the joint transformer; width is a multiple of 8·heads.
        patch: edge of the square of video latents that makes one token.
        mlp_ratio: hidden width of the feed-forward layers over width.
        text_layers: blocks of the text refiner.
        local_width: channels of convolutions over each frame's latents around the transformer; 0 leaves them out.
        video_std, audio_std: the standard deviation of each channel of the clean latents. With them the network has to
            answer only what a linear guess of the velocity leaves open (``flow.preconditioning``).
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("JointBlock", "TextBlock")
    _repeated_blocks = ("JointBlock",)
    _skip_layerwise_casting_patterns = ("video_in", "audio_in", "level", "norm", "head")
    context: Context | None = None
    """The processes that tokens are shared out over, by ``context.share_tokens``; each is given whole clips."""

    @register_to_config
    def __init__(
        self,
        video_channels: int = 24,
        audio_channels: int = 32,
        text_dim: int = 256,
        width: int = 256,
        depth: int = 8,
        heads: int = 4,
        patch: int = 2,
        mlp_ratio: float = 4.0,
        text_layers: int = 2,
        local_width: int = 0,
        video_std: list[float] | None = None,
        audio_std: list[float] | None = None,
    ):
        super().__init__()
        if width % (8 * heads):
            raise InputError(f"width {width} is not a multiple of 8 × {heads} heads")
        self.patch, self.head_dim = patch, width // heads
        for name, std, channels in (("video", video_std, video_channels), ("audio", audio_std, audio_channels)):
            if std is not None and (len(std) != channels or min(std) <= 0):
                raise InputError(f"{name}_std is one positive number for each of {channels} channels")
        self.local = LocalConvolutions(video_channels, local_width) if local_width else None
        self.video_in = nn.Linear((video_channels + local_width) * patch**2, width)
        self.audio_in = nn.Linear(audio_channels, width)
        self.text_refiner = TextRefiner(text_dim, width, heads, text_layers, mlp_ratio)
        self.level_embedding = NoiseLevelEmbedding(width)
        self.level_modulation = nn.Linear(width, 6 * width)
        self.level_output = nn.Linear(width, 2 * width)
        self.blocks = nn.ModuleList(JointBlock(width, heads, mlp_ratio, modalities=3) for _ in range(depth))
        self.video_head = OutputHead(width, (video_channels + local_width) * patch**2)
        self.audio_head = OutputHead(width, audio_channels)
        self.gradient_checkpointing = False
        for layer in (self.level_modulation, self.level_output):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self,
        video: Tensor | None,
        audio: Tensor | None,
        text: Tensor,
        *,
        text_mask: Tensor | None = None,
        video_sigma: Tensor | None = None,
        audio_sigma: Tensor | None = None,
        video_times_s: Tensor | None = None,
        audio_times_s: Tensor | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Velocities of the same shapes as ``video`` and ``audio``; None for a modality that is None.

        Args:
            video: noisy latents (B, C, t, h, w), or None.
            audio: noisy latents (B, C_a, L), or None.
            text: frozen text features (B, S, text_dim).
            text_mask: bool (B, S), false at padding; None where there is none.
            video_sigma: noise levels in [0, 1], broadcastable to (B, t, h, w); a token of several latents is told their
                mean.
            audio_sigma: noise levels in [0, 1], broadcastable to (B, L).
            video_times_s, audio_times_s: (t,) and (L,) in seconds, from ``ClipSpec``; or (B, t) and (B, L).
            return_dict: True returns a ``JointOutput``, as diffusers' networks do.

        Raises:
            InputError: both modalities are None, a noise level or the times are missing, or a shape does not fit.
        """
        if video is None and audio is None:
            raise InputError("both video and audio are None: there is nothing to denoise")
        text_tokens, mask = self._text_tokens(text, text_mask)
        batch = text_tokens.shape[0]
        tokens, angles, levels = [], [], []  # of video, audio and text, in this order; only of those present
        if video is not None:
            sigma, times_s = self._check_video(video, video_sigma, video_times_s)
            video_scaling = self._scaling(sigma[:, None], self.config.video_std, video)
            scaled = video if video_scaling is None else video * video_scaling.scale
            features = scaled if self.local is None else torch.cat((scaled, self.local.stem(scaled)), dim=1)
            tokens.append(self.video_in(self._patchify(features)))
            rows, columns = video.shape[3] // self.patch, video.shape[4] // self.patch
            angles.append(video_angles(times_s, rows, columns, self.head_dim))
            levels.append(self._token_levels(sigma, video))
        if audio is not None:
            sigma, times_s = self._check_audio(audio, audio_sigma, audio_times_s)
            audio_scaling = self._scaling(sigma[:, None], self.config.audio_std, audio)
            scaled = audio if audio_scaling is None else audio * audio_scaling.scale
            tokens.append(self.audio_in(scaled.transpose(1, 2)))
            angles.append(audio_angles(times_s, self.head_dim))
            levels.append(sigma.expand(batch, -1))
        tokens.append(text_tokens)
        angles.append(angles[0].new_zeros(text_tokens.shape[1], self.head_dim // 2))
        if any(part.ndim == 3 for part in angles):
            angles = [part.expand(batch, -1, -1) for part in angles]

        sizes = [part.shape[1] for part in tokens]
        if mask is not None:
            mask = F.pad(mask, (sum(sizes[:-1]), 0), value=True)[:, None, None]
        embedded = [F.silu(self.level_embedding(level)) for level in levels]
        modulations = [self.level_modulation(vectors) for vectors in embedded]
        modulations.append(torch.zeros_like(modulations[0][:, :1]))  # text has no noise level
        for vectors in modulations:
            # Scales and gates count from 1, so that no modulation changes nothing.
            vectors.unflatten(-1, (2, 3, -1))[..., 1:, :] += 1
        outputs = [self.level_output(vectors) for vectors in embedded]
        whole = sizes
        if self.context is not None:
            mask = self.context.mask(mask, whole, text.device)
            modulations, outputs = (self.context.of_tokens(vectors, whole) for vectors in (modulations, outputs))
            tokens = [self.context.part(part) for part in tokens]
            angles = [self.context.part(part, dim=-2) for part in angles]
            sizes = [part.shape[1] for part in tokens]
        x = torch.cat(tokens, dim=1)
        all_angles = torch.cat(angles, dim=-2)
        cos, sin = all_angles.cos(), all_angles.sin()
        kinds = [kind for kind, part in ((VIDEO, video), (AUDIO, audio), (TEXT, text)) if part is not None]
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = self._gradient_checkpointing_func(block, x, modulations, kinds, sizes, cos, sin, mask)
            else:
                x = block(x, modulations, kinds, sizes, cos, sin, mask)

        heads = [head for head, part in ((self.video_head, video), (self.audio_head, audio)) if part is not None]
        answers = [head(part, level) for head, part, level in zip(heads, x.split(sizes, dim=1), outputs, strict=False)]
        if self.context is not None:
            answers = [self.context.whole(part, size) for part, size in zip(answers, whole, strict=False)]
        video_velocity = audio_velocity = None
        if video is not None:
            video_velocity = self._unpatchify(answers[0], video)
            if self.local is not None:
                split = (video.shape[1], self.config.local_width)
                _, stem = features.split(split, dim=1)
                video_velocity, answer = video_velocity.split(split, dim=1)
                video_velocity = video_velocity + self.local.head(stem, answer)
            if video_scaling is not None:
                video_velocity = video_scaling.skip * video + video_scaling.gain * video_velocity
        if audio is not None:
            audio_velocity = answers[-1].transpose(1, 2)
            if audio_scaling is not None:
                audio_velocity = audio_scaling.skip * audio + audio_scaling.gain * audio_velocity
        if return_dict:
            return JointOutput(video_velocity, audio_velocity)  # type: ignore[return-value]
        return video_velocity, audio_velocity

    def _text_tokens(self, text: Tensor, text_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Refined tokens (B, 1 + S, width) and their mask (B, 1 + S)."""
        if text.ndim != 3 or text.shape[2] != self.config.text_dim:
            raise InputError(f"text features are (B, S, {self.config.text_dim}), not {tuple(text.shape)}")
        if text_mask is None:
            return self.text_refiner(text, None), None
        if text_mask.shape != text.shape[:2]:
            raise InputError(f"text mask {tuple(text_mask.shape)} does not fit features {tuple(text.shape)}")
        mask = F.pad(text_mask.bool(), (1, 0), value=True)
        return self.text_refiner(text, mask[:, None, None]), mask

    def _check_video(self, video: Tensor, sigma: Tensor | None, times_s: Tensor | None) -> tuple[Tensor, Tensor]:
        if video.ndim != 5 or video.shape[1] != self.config.video_channels:
            raise InputError(f"video latents are (B, {self.config.video_channels}, t, h, w), not {tuple(video.shape)}")
        if video.shape[3] % self.patch or video.shape[4] % self.patch:
            raise InputError(
                f"video latents of {video.shape[3]}×{video.shape[4]} cannot be cut into patches of {self.patch}: "
                f"give a height and width that are multiples of {self.patch} latents"
            )
        if sigma is None or times_s is None:
            raise InputError("video latents need video_sigma and video_times_s")
        if sigma.ndim != 4 or any(size not in (1, full) for size, full in zip(sigma.shape, _sites(video), strict=True)):
            raise InputError(f"video_sigma {tuple(sigma.shape)} does not broadcast to (B, t, h, w) = {_sites(video)}")
        if times_s.shape not in (video.shape[2:3], video.shape[0:3:2]):
            raise InputError(f"{video.shape[2]} latent frames need as many video_times_s, not {tuple(times_s.shape)}")
        return sigma, times_s

    def _check_audio(self, audio: Tensor, sigma: Tensor | None, times_s: Tensor | None) -> tuple[Tensor, Tensor]:
        if audio.ndim != 3 or audio.shape[1] != self.config.audio_channels:
            raise InputError(f"audio latents are (B, {self.config.audio_channels}, L), not {tuple(audio.shape)}")
        if sigma is None or times_s is None:
            raise InputError("audio latents need audio_sigma and audio_times_s")
        if sigma.ndim != 2 or any(size not in (1, full) for size, full in zip(sigma.shape, _sites(audio), strict=True)):
            raise InputError(f"audio_sigma {tuple(sigma.shape)} does not broadcast to (B, L) = {_sites(audio)}")
        if times_s.shape not in (audio.shape[2:3], audio.shape[0:3:2]):
            raise InputError(f"{audio.shape[2]} audio latents need as many audio_times_s, not {tuple(times_s.shape)}")
        return sigma, times_s

    def _token_levels(self, sigma: Tensor, video: Tensor) -> Tensor:
        """Noise levels (B, u) of the video: u is 1, or one a latent frame, or one a token, whichever is enough."""
        batch, frames, height, width = _sites(video)
        if sigma.shape[2:] == (1, 1):
            return sigma.flatten(1).expand(batch, -1)
        means = F.avg_pool2d(sigma.expand(batch, frames, height, width).float(), self.patch)
        return means.flatten(1)

    @staticmethod
    def _scaling(sigma: Tensor, std: list[float] | None, latents: Tensor) -> Preconditioning | None:
        if std is None:
            return None
        per_channel = _on_device(tuple(std), latents.device).view(-1, *[1] * (latents.ndim - 2))
        return Preconditioning(*(part.to(latents.dtype) for part in preconditioning(sigma.float(), per_channel)))

    def _patchify(self, video: Tensor) -> Tensor:
        """(B, C, t, h, w) to (B, t·h·w / patch², C·patch²)."""
        p = self.patch
        return rearrange(video, "b c t (h p) (w q) -> b (t h w) (c p q)", p=p, q=p)

    def _unpatchify(self, tokens: Tensor, video: Tensor) -> Tensor:
        p, (_, frames, height, _) = self.patch, _sites(video)
        return rearrange(
            tokens, "b (t h w) (c p q) -> b c t (h p) (w q)", t=frames, h=height // p, p=p, q=p
        )  # fmt: skip


@lru_cache(maxsize=16)
def _on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Copied there once: a copy from ordinary memory in every call would wait for all work queued on a GPU."""
    with torch.inference_mode(False):  # what one sampling run leaves here must also do for training
        return torch.tensor(values, device=device)


def _as_frames(video: Tensor) -> Tensor:
    return rearrange(video, "b c t h w -> (b t) c h w")


def _as_clips(frames: Tensor, video: Tensor) -> Tensor:
    return rearrange(frames, "(b t) c h w -> b c t h w", b=video.shape[0])


def _sites(latents: Tensor) -> tuple[int, ...]:
    """The shape of latents without their channels."""
    return (latents.shape[0], *latents.shape[2:])
