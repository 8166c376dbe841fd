"""Decoding in spatial tiles whose seams do not show."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError


def decode_tiled(
    decode: Callable[[Tensor], Tensor], latents: Tensor, tile: tuple[int, int], overlap: int, scale: int, radius: int
) -> Tensor:
    """``decode(latents)`` computed tile by tile.

    Args:
        decode: (B, C, t, h, w) latents to (B, 3, T, h·scale, w·scale) video.
        tile: height and width of a tile in latents.
        overlap: latents that neighbouring tiles share.
        radius: latents beyond its own place that a pixel depends on.

    Where two tiles meet, up to ``radius`` latents at each one's edge are thrown away, because they miss their
    surroundings, and the rest of the shared strip goes linearly from one tile to the other. From
    ``overlap = 2 · radius`` on, only pixels that saw all that they depend on are left, and the result is that of
    ``decode`` up to rounding (1e-5).

    Raises:
        InputError: an overlap that is negative or not smaller than the tile.
    """
    if overlap < 0 or overlap >= min(tile):
        raise InputError(f"tiles of {tile[0]}×{tile[1]} latents cannot overlap by {overlap}")
    height, width = latents.shape[3:]
    rows, columns = _spans(height, tile[0], overlap), _spans(width, tile[1], overlap)
    if len(rows) == 1 and len(columns) == 1:
        return decode(latents)
    margin = min(radius, overlap // 2)
    video = total = latents.new_zeros(())
    for top, bottom in rows:
        down = _ramp(top, bottom, height, overlap, margin, scale)
        for left, right in columns:
            across = _ramp(left, right, width, overlap, margin, scale)
            part = decode(latents[:, :, :, top:bottom, left:right])
            if video.ndim == 0:
                video = part.new_zeros(*part.shape[:3], height * scale, width * scale)
                total = part.new_zeros(height * scale, width * scale)
            weight = (down[:, None] * across).to(part)
            area = (..., slice(top * scale, bottom * scale), slice(left * scale, right * scale))
            video[area] += part * weight
            total[area] += weight
    return video / total


def _spans(length: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Begin and end of tiles that cover ``length``; all as long as ``tile``, the last one shorter."""
    step = tile - overlap
    starts = range(0, max(length - overlap, 1), step)
    return [(start, min(start + tile, length)) for start in starts]


def _ramp(start: int, end: int, length: int, overlap: int, margin: int, scale: int) -> Tensor:
    """The tile's weight at each of its pixels along an axis; where just two tiles meet, they add up to 1."""
    pixels = torch.arange((end - start) * scale, dtype=torch.float64) + 0.5
    blended = max((overlap - 2 * margin) * scale, 1e-6)
    weight = torch.ones_like(pixels)
    if start > 0:
        weight = weight * ((pixels - margin * scale) / blended).clamp(0, 1)
    if end < length:
        falling = (end - start - overlap + margin) * scale
        weight = weight * (1 - ((pixels - falling) / blended).clamp(0, 1))
    return weight
