"""Rotary positions: time in seconds, which video and audio share, and place in the picture.

RoPE (Su et al. 2021, arXiv 2104.09864, equation 34) over three axes: half of the rotated pairs turn with time, a
quarter each with y and x. Attention between latents then sees differences of positions only. Text tokens, and the axes
that a token does not have, are not turned, which gives latents an absolute place and time in the eyes of the text.
"""

import math

import torch
from torch import Tensor

MAX_TIME_HZ = 10.0
"""The fastest time frequency: below 12.5 Hz, so that audio latents 40 ms apart stay under half a turn."""
MIN_TIME_HZ = 1 / 16
SHORTEST_PERIOD_TOKENS = 4.0
LONGEST_PERIOD_TOKENS = 128.0


def _frequencies(highest: float, lowest: float, count: int, device: torch.device) -> Tensor:
    """``count`` angular frequencies from ``highest`` to ``lowest`` (in turns per unit), evenly spaced in logarithm."""
    steps = torch.linspace(0, 1, count, device=device, dtype=torch.float32)
    return 2 * math.pi * highest * (lowest / highest) ** steps


def position_angles(times_s: Tensor, y: Tensor, x: Tensor, head_dim: int) -> Tensor:
    """Angles (…, N, head_dim / 2) of N tokens at ``times_s`` seconds and ``y``, ``x`` tokens from the picture's centre.

    Raises:
        ValueError: ``head_dim`` is not a multiple of 8.
    """
    if head_dim % 8:
        raise ValueError(f"a head of {head_dim} channels cannot be shared out over time, y and x: give a multiple of 8")
    quarter = head_dim // 8
    time_frequencies = _frequencies(MAX_TIME_HZ, MIN_TIME_HZ, 2 * quarter, times_s.device)
    space_frequencies = _frequencies(1 / SHORTEST_PERIOD_TOKENS, 1 / LONGEST_PERIOD_TOKENS, quarter, times_s.device)
    axes = ((times_s, time_frequencies), (y, space_frequencies), (x, space_frequencies))
    return torch.cat([position.float()[..., None] * frequencies for position, frequencies in axes], dim=-1)


def video_angles(times_s: Tensor, height: int, width: int, head_dim: int) -> Tensor:
    """Angles (…, t·height·width, head_dim / 2) of video tokens in (t, y, x) order; ``times_s`` (…, t) in seconds."""
    y = torch.arange(height, device=times_s.device) - (height - 1) / 2
    x = torch.arange(width, device=times_s.device) - (width - 1) / 2
    grid = (*times_s.shape, height, width)
    at_s, rows, columns = (place.expand(grid).flatten(-3) for place in (times_s[..., None, None], y[:, None], x))
    return position_angles(at_s, rows, columns, head_dim)


def audio_angles(times_s: Tensor, head_dim: int) -> Tensor:
    """Angles (…, L, head_dim / 2) of audio tokens at ``times_s`` (…, L): they have no place in the picture."""
    nowhere = torch.zeros_like(times_s)
    return position_angles(times_s, nowhere, nowhere, head_dim)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + D/2}) of ``x`` (…, D) by angles given as ``cos`` and ``sin`` (…, D/2)."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.addcmul(first * cos, second, -sin), torch.addcmul(second * cos, first, sin)
    return torch.cat(turned, dim=-1)
