"""Chance that follows from a sample's own seed: the same in any batch, in any process and on any device.

Bits come from SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number generators", section 4), a hash of a
counter, so a whole batch is drawn at once where it is needed; normal values from pairs of uniform ones (Box & Muller
1958). Computed in float64, so that logarithms that differ in the last bit among devices round to the same float32.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

Generator = torch.Generator | list[torch.Generator] | Sequence[int] | None
"""What chance is drawn from: a generator, one for each sample, or one seed for each sample."""

GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
MULTIPLIERS = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)))
HALF_BITS = 32


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the CPU on its way to ``device``: through pinned memory, so that no queued work is waited for."""
    device = torch.device(device)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def seeded_uniform(
    seeds: Sequence[int], count: int, device: torch.device | str = "cpu", stream: int = 0
) -> tuple[Tensor, Tensor]:
    """Two independent float64 tensors (len(seeds), count), uniform in (0, 1).

    Args:
        seeds: 0 to 2**63 - 1; row i depends on seed i alone, and its beginning not on ``count``.
        stream: different streams of one seed are independent.
    """
    start = _mixed(_mixed(to_device(torch.tensor(list(seeds), dtype=torch.int64), device)) + stream * 2 + 1)
    bits = _mixed(start[:, None] + torch.arange(1, count + 1, device=start.device) * GOLDEN)
    low = (1 << HALF_BITS) - 1
    first, second = (half.double().add_(0.5).mul_(2.0**-HALF_BITS) for half in ((bits >> HALF_BITS) & low, bits & low))
    return first, second


def seeded_normal(
    seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu", stream: int = 0
) -> Tensor:
    """Standard normal float32 noise (len(seeds), *shape), each sample from its own seed (``seeded_uniform``)."""
    count = math.prod(shape)
    drawn_on = "cpu" if torch.device(device).type == "mps" else device  # which has no float64
    radius, angle = seeded_uniform(seeds, (count + 1) // 2, drawn_on, stream)
    radius, angle = radius.log_().mul_(-2).sqrt_(), angle.mul_(2 * math.pi)
    pairs = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return pairs[:, :count].float().view(len(radius), *shape).to(device)


def normal(
    shape: Sequence[int],
    generator: Generator,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    stream: int = 0,
) -> Tensor:
    """Standard normal noise of ``shape`` (B, …) from whatever chance is to be drawn from.

    Args:
        stream: told apart only where seeds are given; a generator goes on by itself.
    """
    if isinstance(generator, Sequence) and generator and isinstance(generator[0], int):
        return seeded_normal(generator, shape[1:], device, stream).to(dtype)  # type: ignore[arg-type]
    return randn_tensor(tuple(shape), generator=generator, device=device, dtype=dtype)


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finishing hash on int64, whose products wrap around as unsigned ones do."""
    for shift, multiplier in MULTIPLIERS:
        x = (x ^ _shifted(x, shift)) * multiplier
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; that of signed integers repeats the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def on_device(batch: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    """A batch with all its tensors there."""
    return {key: to_device(value, device) if isinstance(value, Tensor) else value for key, value in batch.items()}
