"""How true a decoded clip is to its original, by the measures that others report: SSIM, LPIPS, STFT distance."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from vidgen.errors import InputError

from .feature_networks import LPIPS
from .fetch import weights_path

STFT_RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
"""Transform, hop and window in samples."""


def ssim(frames: Tensor, targets: Tensor) -> float:
    """Structural similarity of luma, mean over the frames (Wang et al. 2004, equation 13; a Gaussian window of 11).

    Args:
        frames, targets: (T, H, W, 3) uint8, at least 11 pixels a side. Luma is Rec. 601's.

    Raises:
        InputError: the sizes differ or are too small.
    """
    if frames.shape != targets.shape or min(frames.shape[1:3]) < 11:
        raise InputError(f"SSIM compares frames of one size from 11 pixels on, not {frames.shape} and {targets.shape}")
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)
    x, y = (side.double() @ weights for side in (frames, targets))
    bell = torch.exp(-torch.arange(-5, 6, dtype=torch.float64).square() / (2 * 1.5**2))
    bell = bell / bell.sum()

    def smooth(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image[:, None], bell[None, None, :, None]), bell[None, None, None])[:, 0]

    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float((similarity / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))).mean())


@lru_cache(maxsize=1)
def lpips_network() -> LPIPS | None:
    """The fetched network, or None where its weights are not at hand."""
    try:
        path = weights_path("lpips")
    except InputError:
        return None
    network = LPIPS()
    network.load_state_dict(load_file(path))
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def lpips(network: LPIPS, frames: Tensor, targets: Tensor) -> float:
    """Mean over the frames (T, H, W, 3) uint8, a few at a time; not smaller than 32 pixels a side."""
    distances = []
    for ours, theirs in zip(frames.split(8), targets.split(8), strict=True):
        distances.append(network(*(side.movedim(-1, 1).float() / 127.5 - 1 for side in (ours, theirs))))
    return float(torch.cat(distances).mean())


def stft_distance(decoded: Tensor, waveform: Tensor) -> float | None:
    """Multi-resolution STFT distance (Yamamoto et al. 2019, arXiv 1910.11480, equations 5 to 7), by its resolutions.

    Args:
        decoded, waveform: (..., N), N at least 1024.

    Returns:
        None for a silent original, of which the spectral convergence is not defined.
    """
    if decoded.shape != waveform.shape or waveform.shape[-1] < 1024:
        raise InputError(f"STFTs compare sounds of one length from 1024 samples on: {decoded.shape}, {waveform.shape}")
    if not waveform.any():
        return None
    total = 0.0
    for transform, hop, window in STFT_RESOLUTIONS:
        ours, theirs = (
            torch.stft(
                side.reshape(-1, side.shape[-1]).float(),
                transform,
                hop,
                window,
                torch.hann_window(window),
                return_complex=True,
            )
            .abs()
            .clamp(min=1e-7)
            for side in (decoded, waveform)
        )
        total += float((ours - theirs).norm() / theirs.norm() + (ours.log() - theirs.log()).abs().mean())
    return total / len(STFT_RESOLUTIONS)
