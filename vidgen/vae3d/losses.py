"""Losses of the spacetime VAE: pixels, perceived structure, flicker, rate, and an adversary."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..noise import Generator, normal
from .layers import PIXEL_CHANNELS, CausalTimeConv, FrameConv, frames_to_patches

LUMA_CHROMA = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))
"""Rows Y, Cb and Cr of ITU-R BT.601."""


@dataclass(frozen=True)
class VAELossWeights:
    """How much each term of ``vae_loss`` counts; a term of weight 0 is not computed."""

    l1: float = 1.0
    l2: float = 1.0
    perceptual: float = 0.1
    temporal: float = 0.5
    kl: float = 1e-4
    quantizer: float = 0.02
    """Of a quantizer's own loss, which takes the place of the divergence."""
    adversarial: float = 0.0
    perceptual_frames: int = 4
    """The perceptual term looks at this many frames of each clip, drawn at random."""


def perceptual_loss(images: Tensor, targets: Tensor, scales: int = 4, contrast_floor: float = 0.05) -> Tensor:
    """Distance between the responses of a fixed bank of oriented filters; nothing is learned or downloaded.

    At each scale of a pyramid, each of luma and two chroma axes is filtered with the first and second derivatives of a
    Gaussian, which span those of every orientation (Freeman & Adelson 1991, "The Design and Use of Steerable Filters").
    The responses are divided by the local contrast, as in early vision and in the normalised Laplacian pyramid distance
    (Laparra et al. 2016), so that faint texture counts as much as a hard edge; contrast well below ``contrast_floor``
    is not raised.

    Args:
        images, targets: (N, 3, H, W) in [-1, 1].

    Returns:
        The mean absolute difference, a scalar; 0 for identical pictures, and for pictures too small for a filter.
    """
    both = torch.cat([images, targets])
    planes = torch.einsum("dc,nchw->ndhw", both.new_tensor(LUMA_CHROMA), both).flatten(0, 1)[:, None]
    kernels = steerable_kernels().to(both)
    distances = [images.new_zeros(())]
    for scale in range(scales):
        if scale:
            planes = F.avg_pool2d(planes, 2)
        if min(planes.shape[-2:]) < kernels.shape[-1]:
            break
        responses = F.conv2d(planes, kernels)
        energy = F.avg_pool2d(responses.square().sum(1, keepdim=True), 3, stride=1, padding=1, count_include_pad=False)
        ours, theirs = (responses * torch.rsqrt(energy + contrast_floor**2)).chunk(2)
        distances.append((ours - theirs).abs().mean())
    return torch.stack(distances).sum() / max(len(distances) - 1, 1)


def steerable_kernels() -> Tensor:
    """(5, 1, 5, 5): derivatives x, y, xx, yy and xy of a Gaussian with deviation 1, without mean and of unit norm."""
    reach = torch.arange(-2, 3, dtype=torch.float64)
    gauss = torch.exp(-reach.square() / 2)
    gauss = gauss / gauss.sum()
    first, second = reach * gauss, (reach.square() - 1) * gauss
    second = second - second.sum() * gauss
    bank = torch.stack([y[:, None] * x for y, x in (
        (gauss, first), (first, gauss), (gauss, second), (second, gauss), (first, first)
    )])  # fmt: skip
    return F.normalize(bank.flatten(1), dim=1).view(-1, 1, 5, 5).float()


class VideoDiscriminator(nn.Module):
    """Judges patches of 16×16 pixels (with their surroundings) over a few frames: (B, 3, T, H, W) to logits
    (B, T, H/16, W/16).

    Strided 2D convolutions on frames and causal mixing over time, without normalisation over the batch; the patch
    logits follow PatchGAN (Isola et al. 2017, arXiv 1611.07004, section 3.2.2).
    """

    def __init__(self, width: int = 64):
        super().__init__()
        self.stem = FrameConv(PIXEL_CHANNELS, width)
        self.down1 = nn.Linear(4 * width, 2 * width)
        self.conv1 = FrameConv(2 * width, 2 * width)
        self.down2 = nn.Linear(4 * 2 * width, 4 * width)
        self.time = CausalTimeConv(4 * width)
        self.mix = nn.Linear(4 * width, 4 * width)
        self.head = nn.Linear(4 * width, 1)
        # Each channel starts with its own filter over time: some see the picture, some its change.
        nn.init.normal_(self.time.weight, std=0.6)

    def forward(self, video: Tensor) -> Tensor:
        x = F.leaky_relu(self.stem(frames_to_patches(video)), 0.2)
        x = F.leaky_relu(self.down1(_fold(x)), 0.2)
        x = F.leaky_relu(self.conv1(x), 0.2)
        x = F.leaky_relu(self.down2(_fold(x)), 0.2)
        x, _ = self.time(x)
        return self.head(F.leaky_relu(self.mix(x), 0.2)).squeeze(-1)


def _fold(x: Tensor) -> Tensor:
    return rearrange(x, "b t (h p) (w q) c -> b t h w (p q c)", p=2, q=2)


def vae_loss(
    vae: nn.Module,
    video: Tensor,
    weights: VAELossWeights,
    generator: Generator = None,
    discriminator: VideoDiscriminator | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """One forward pass of a ``SpacetimeVAE`` in train mode and its loss.

    Args:
        vae: the model, or what a distributed wrapper made of it.
        video: (B, 3, T, H, W) in [-1, 1].
        generator: for the posterior's noise and the choice of frames; one, or one (or a seed) for each clip.
        discriminator: needed if the adversarial weight is not 0. Its parameters gather gradients that the caller
            must drop before ``discriminator_loss``.

    Returns:
        The weighted sum to minimise, and by name the detached terms, unweighted, with ``psnr_db`` (peak 2), and
        ``reconstruction``, the detached video.

    Raises:
        ValueError: an adversarial weight without a discriminator.
    """
    if weights.adversarial and discriminator is None:
        raise ValueError("the adversarial weight is not 0: give a VideoDiscriminator")
    reconstruction, posterior = vae(video, generator)
    reconstruction = reconstruction.float()
    difference = reconstruction - video
    squared = difference.square().mean()
    terms = {"l1": difference.abs().mean(), "l2": squared}
    if getattr(weights, posterior.term):
        terms[posterior.term] = posterior.loss()
    if weights.temporal:
        # The change of the error from frame to frame: what flickers. An image has none.
        change = difference.diff(dim=2).abs()
        terms["temporal"] = change.mean() if video.shape[2] > 1 else change.sum()
    if weights.perceptual:
        frames = _draw_frames(video.shape[0], video.shape[2], weights.perceptual_frames, video.device, generator)
        terms["perceptual"] = perceptual_loss(_take(reconstruction, frames), _take(video, frames))
    if weights.adversarial and discriminator is not None:
        terms["adversarial"] = -discriminator(reconstruction).mean()
    loss = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
    parts = {name: term.detach() for name, term in terms.items()}
    parts["psnr_db"] = 10 * torch.log10(4 / squared.detach().clamp_min(1e-10))
    parts["reconstruction"] = reconstruction.detach()
    return loss, parts


def discriminator_loss(
    discriminator: nn.Module, video: Tensor, reconstruction: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The hinge loss of the discriminator (Lim & Ye 2017, arXiv 1705.02894, equation 5) on real and decoded video.

    The VAE's side of it, minus the mean logit of what it decodes, is the ``adversarial`` term of ``vae_loss``.
    """
    real, fake = discriminator(video), discriminator(reconstruction.detach())
    loss = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    return loss, {"real_logit": real.detach().mean(), "fake_logit": fake.detach().mean()}


def _draw_frames(batch: int, frames: int, wanted: int, device: torch.device, generator: Generator) -> Tensor:
    """Indices (B, min(wanted, frames)) of frames drawn without repetition."""
    order = normal((batch, frames), generator, device, stream=1).argsort(dim=1)
    return order[:, :wanted]


def _take(video: Tensor, frames: Tensor) -> Tensor:
    """Those frames (B, k) of a video (B, 3, T, H, W), as images (B·k, 3, H, W)."""
    clips = torch.arange(len(video), device=video.device)[:, None]
    return video.transpose(1, 2)[clips, frames].flatten(0, 1)
