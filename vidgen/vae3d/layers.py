"""Building blocks of the spacetime VAE. Trunk tensors are channels-last: (B, T, H, W, C).

With channels last a pointwise layer is one matrix product, which is what CPUs and GPUs do best, and a view of the same
memory is what ``conv2d`` calls ``channels_last``, so no block copies its input to change the layout.
"""

from itertools import product
from math import cos, pi, sqrt

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

PATCH = 4
"""Edge in pixels of the squares that the outermost, full-frame-rate stage works on."""

PIXEL_CHANNELS = 3 * PATCH * PATCH


def frames_to_patches(video: Tensor) -> Tensor:
    """(B, 3, T, H, W) to (B, T, H/4, W/4, 48), channels-last, without loss."""
    return rearrange(video, "b c t (h p) (w q) -> b t h w (c p q)", p=PATCH, q=PATCH)


def patches_to_frames(patches: Tensor) -> Tensor:
    """The inverse of ``frames_to_patches``."""
    return rearrange(patches, "b t h w (c p q) -> b c t (h p) (w q)", p=PATCH, q=PATCH)


class FrameConv(nn.Conv2d):
    """A 2D convolution on every frame of a channels-last tensor (B, T, H, W, C)."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, groups: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        images = x.flatten(0, 1).permute(0, 3, 1, 2)
        return super().forward(images).permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


class CausalTimeConv(nn.Module):
    """Depthwise convolution over time that sees the present and the past only.

    A sum of shifted copies: far faster on a CPU than ``conv3d`` with a (k, 1, 1) kernel. Before the first frame there
    are copies of it, as if the clip had begun with a still.
    """

    def __init__(self, channels: int, kernel_size: int = 3):
        super().__init__()
        weight = torch.zeros(kernel_size, channels)
        weight[-1] = 1.0
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Filter (B, T, H, W, C), going on from ``past``, the (B, k-1, H, W, C) that the previous call returned."""
        taps, frames = len(self.weight), x.shape[1]
        if past is None:
            past = x[:, :1].expand(-1, taps - 1, -1, -1, -1)
        padded = torch.cat([past, x], dim=1)
        y = padded[:, taps - 1 :] * self.weight[-1]
        for tap in range(taps - 1):
            y = y + padded[:, tap : tap + frames] * self.weight[tap]
        return y, padded[:, frames:]


class TrunkBlock(nn.Module):
    """Depthwise 3×3 in space, causal depthwise 3 in time, then an MLP: a ConvNeXt block (Liu et al. 2022,
    arXiv 2201.03545, figure 4) with an axis more. Layer scale starts small, so a new stack is nearly the identity."""

    def __init__(self, width: int, expansion: int = 4, layer_scale: float = 0.1):
        super().__init__()
        self.space = FrameConv(width, width, groups=width)
        self.time = CausalTimeConv(width)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, expansion * width)
        self.contract = nn.Linear(expansion * width, width)
        self.scale = nn.Parameter(torch.full((width,), layer_scale))

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, past = self.time(self.space(x), past)
        y = self.contract(F.gelu(self.expand(self.norm(y)), approximate="tanh"))
        return x + self.scale * y, past


class ImageBlock(nn.Module):
    """Two dense 3×3 convolutions on single frames with a residual; the second starts at zero."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.conv1 = FrameConv(channels, channels)
        self.conv2 = FrameConv(channels, channels)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(self.norm(x))))


def group(x: Tensor, frames: int, edge: int) -> Tensor:
    """Gather ``frames`` × ``edge`` × ``edge`` neighbours into one vector, without loss.

    (B, 1 + n·frames, H·edge, W·edge, C) to (B, 1 + n, H, W, frames·edge·edge·C). The first frame fills its group with
    copies of itself, so a still picture and a still clip have the same code and no weight is particular to either.
    """
    x = torch.cat([x[:, :1].expand(-1, frames - 1, -1, -1, -1), x], dim=1)
    return rearrange(x, "b (t f) (h p) (w q) c -> b t h w (f p q c)", f=frames, p=edge, q=edge)


def ungroup(x: Tensor, frames: int, edge: int, first: bool = True) -> Tensor:
    """The inverse of ``group``: of the first group only the last frame is kept. When a stream goes on
    (``first=False``) all frames are."""
    x = rearrange(x, "b t h w (f p q c) -> b (t f) (h p) (w q) c", f=frames, p=edge, q=edge)
    return x[:, frames - 1 :] if first else x


class CosineCode(nn.Module):
    """A fixed linear code of grouped patches: the lowest components of a 3D cosine transform.

    Components are ordered by frequency, as JPEG's zigzag scan does (ITU-T T.81, figure A.6), over y, x, time and colour
    (luma, then two chroma axes). The gains bring the coefficients near unit variance: over patches of
    pictures with sharp edges they fall with about the square of the frequency.

    Args:
        num_components: number K of coefficients.
        frames, edge: size of a group in frames and pixels.

    Raises:
        ValueError: more components than there are values in a group.
    """

    waves: Tensor
    gains: Tensor

    def __init__(self, num_components: int, frames: int, edge: int):
        super().__init__()
        if num_components > 3 * frames * edge * edge:
            raise ValueError(f"a group of {frames}×{edge}×{edge} pixels has no {num_components} components")
        components = sorted(product(range(edge), range(edge), range(frames), range(3)), key=_frequency)
        colour = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
        colour = F.normalize(colour, dim=1) * sqrt(3)
        waves = []
        for y, x, t, c in components[:num_components]:
            wave = torch.einsum("f,y,x,c->fyxc", _cosine(t, frames), _cosine(y, edge), _cosine(x, edge), colour[c])
            waves.append(rearrange(wave, "f (y p) (x q) c -> (f y x c p q)", p=PATCH, q=PATCH))
        gains = [4.0 * (1 + y + x + t) ** 2 for y, x, t, _ in components[:num_components]]
        # Saved with the weights: diffusers builds a model without data before it loads one.
        self.register_buffer("waves", torch.stack(waves))
        self.register_buffer("gains", torch.tensor(gains))

    def encode(self, groups: Tensor) -> Tensor:
        """(…, frames · edge/4 · edge/4 · 48), laid out as by ``group`` of ``frames_to_patches``, to (…, K)."""
        return F.linear(groups, self.waves) * (self.gains / self.waves.shape[1])

    def decode(self, coefficients: Tensor) -> Tensor:
        """(…, K) to groups; ``encode`` of them gives the coefficients back."""
        return (coefficients / self.gains) @ self.waves


def _frequency(component: tuple[int, int, int, int]) -> int:
    y, x, t, c = component
    return y + x + 2 * t + (2 if c else 0)


def _cosine(frequency: int, length: int) -> Tensor:
    """A wave of the orthogonal DCT-II with mean square 1."""
    gain = 1.0 if frequency == 0 else sqrt(2)
    return torch.tensor([gain * cos(pi * frequency * (2 * index + 1) / (2 * length)) for index in range(length)])
