"""Short-time Fourier analysis and synthesis on one frame grid: frame k is centred on sample (k + 1/2)·hop.

With N = T·hop samples there are exactly T frames, so that a frame, and with it a latent, owns its own stretch of
samples (the "same" padding of Vocos, arXiv 2306.00814, section 3.3). Everything is computed in float32.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def stft(waveform: Tensor, window_samples: int, hop_samples: int) -> Tensor:
    """Hann-windowed spectra of a real signal.

    They are scaled so that white noise of variance s² has E|X|² = s² in every bin but the first and the last,
    whatever the window: one floor then means one loudness at every resolution.

    Args:
        waveform: (..., N), N a multiple of ``hop_samples``; what lies outside counts as zero.
        window_samples: length of window and transform; even, no shorter than the hop.
        hop_samples: distance of neighbouring frames; even.

    Returns:
        complex64 (..., T, F), T = N / hop_samples, F = window_samples / 2 + 1.
    """
    window = torch.hann_window(window_samples, device=waveform.device)
    margin = (window_samples - hop_samples) // 2
    frames = F.pad(waveform.float(), (margin, margin)).unfold(-1, window_samples, hop_samples)
    return torch.fft.rfft(frames * (window / window.square().sum().sqrt()))


def inverse_stft(spectrum: Tensor, window_samples: int, hop_samples: int) -> Tensor:
    """The signal whose ``stft`` is nearest to ``spectrum`` in least squares (Griffin & Lim 1984, equation 6).

    Dividing by the overlap-added squared window, which is smaller where frames are missing, keeps both ends at
    their right level.

    Args:
        spectrum: complex (B, C, T, window_samples / 2 + 1), the window a multiple of the hop.

    Returns:
        float32 (B, C, T·hop_samples).
    """
    batch, channels, num_frames, _ = spectrum.shape
    window = torch.hann_window(window_samples, device=spectrum.device)
    scale = window.square().sum().sqrt()
    frames = torch.fft.irfft(spectrum, n=window_samples) * (window * scale)
    summed = _overlap_add(frames.flatten(0, 1), hop_samples)
    envelope = _overlap_add(window.square().expand(1, num_frames, window_samples), hop_samples)
    margin = (window_samples - hop_samples) // 2
    inner = slice(margin, margin + num_frames * hop_samples)
    return (summed[:, inner] / envelope[:, inner]).unflatten(0, (batch, channels))


def _overlap_add(frames: Tensor, hop_samples: int) -> Tensor:
    """(B, T, W) -> (B, (T - 1)·hop + W); the window a multiple of the hop."""
    overlap = frames.shape[-1] // hop_samples
    parts = frames.unflatten(-1, (overlap, hop_samples))
    total = sum(F.pad(parts[:, :, i], (0, 0, i, overlap - 1 - i)) for i in range(overlap))
    assert isinstance(total, Tensor)
    return total.flatten(1)


def with_clock(spectrum: Tensor, hop_samples: int, sign: int = 1) -> Tensor:
    """Add (``sign`` 1) or take away (-1) the phase that every bin's own frequency has run up to at each frame's centre.

    What ``stft`` returns has its phases relative to the frame's first sample. Taken against a clock that starts at
    sample 0 of the signal instead, the phase of a steady tone moves from frame to frame only as far as the tone is
    off the bin's frequency. The clock is periodic in the window's length.

    Args:
        spectrum: complex (..., T, F) of even window 2·(F - 1), on the frame grid of ``stft``.
    """
    window_samples = 2 * (spectrum.shape[-1] - 1)
    first = (hop_samples - window_samples) // 2
    starts = first + hop_samples * torch.arange(spectrum.shape[-2], device=spectrum.device)
    bins = torch.arange(spectrum.shape[-1], device=spectrum.device)
    turns = (starts[:, None] * bins % window_samples).float() / window_samples
    return spectrum * torch.polar(torch.ones_like(turns), 2 * math.pi * sign * turns)


def compressed(spectrum: Tensor, power: float = 0.3, floor: float = 1e-4) -> Tensor:
    """Real and imaginary part with the magnitude raised to ``power``: quiet and loud bins come to similar size.

    Below ``floor`` the map is linear, so that its slope stays bounded at zero.

    Returns:
        float32, one more axis of 2 at the end.
    """
    parts = torch.view_as_real(spectrum)
    return parts * (parts.square().sum(-1, keepdim=True) + floor**2) ** ((power - 1) / 2)
