"""The floors: planks, tiles and concrete as a function of the place, averaged over what a pixel covers.

Patterns with edges are averaged in closed form (after Quilez, "Filtering the checkerboard pattern", 2017); noise comes
from two small textures with halved copies. So a far floor neither flickers nor needs more than one ray a pixel.
"""

from functools import lru_cache

import torch
from torch import Tensor

from .rays import Frame, Vector, fraction, mix, scale

TEXTURE_SIZE = 256
TEXTURE_LEVELS = 6


@lru_cache(maxsize=8)
def textures(device: torch.device) -> Tensor:
    """Two tileable noises, blotches then wood grain, each with halved copies, flat: mean 0, deviation 1."""
    generator = torch.Generator().manual_seed(7)
    wave = torch.fft.fftfreq(TEXTURE_SIZE, 1 / TEXTURE_SIZE)
    rows, columns = wave[:, None], wave[None, :]
    flat = []
    for stretch, power in ((1.0, 0.55), (14.0, 0.55)):
        spectrum = (1.0 + rows**2 + (stretch * columns) ** 2) ** -power
        noise = torch.fft.fft2(torch.randn(TEXTURE_SIZE, TEXTURE_SIZE, generator=generator, dtype=torch.float64))
        image = torch.fft.ifft2(noise * spectrum).real.float()
        image = (image - image.mean()) / image.std()
        for _ in range(TEXTURE_LEVELS):
            flat.append(image.flatten())
            image = torch.nn.functional.avg_pool2d(image[None], 2)[0]
    flat.append(torch.rand(64, generator=generator))
    return torch.cat(flat).to(device)


def _level_start(level: Tensor) -> Tensor:
    """Where a level begins: the sizes of the levels before it form a geometric series."""
    return (TEXTURE_SIZE * TEXTURE_SIZE * 4 - (TEXTURE_SIZE * TEXTURE_SIZE * 4 >> (2 * level))) // 3


TEXTURE_LENGTH = sum((TEXTURE_SIZE >> level) ** 2 for level in range(TEXTURE_LEVELS))


def _sample_level(table: Tensor, u: Tensor, v: Tensor, level: Tensor, start: Tensor) -> Tensor:
    """Bilinear value at (u, v), in periods of the texture."""
    mask = (TEXTURE_SIZE >> level) - 1
    size = (mask + 1).to(u.dtype)
    x, y = u * size, v * size
    left, top = x.floor(), y.floor()
    fx, fy = x - left, y - top
    start = start + _level_start(level)
    column, row = left.long() & mask, start + (top.long() & mask) * (mask + 1)
    column_next, row_next = (left.long() + 1) & mask, start + ((top.long() + 1) & mask) * (mask + 1)
    upper = torch.lerp(table[row + column], table[row + column_next], fx)
    lower = torch.lerp(table[row_next + column], table[row_next + column_next], fx)
    return torch.lerp(upper, lower, fy)


def _sample(table: Tensor, u: Tensor, v: Tensor, width: Tensor, start: Tensor, smooth: bool) -> Tensor:
    """Texture averaged over about ``width`` (in periods); ``smooth`` blends the two nearest levels."""
    level = torch.log2(width * TEXTURE_SIZE + 1e-9).clamp(0, TEXTURE_LEVELS - 1.001)
    if not smooth:
        return _sample_level(table, u, v, (level + 0.5).floor().long(), start)
    fine = level.floor()
    low = _sample_level(table, u, v, fine.long(), start)
    return torch.lerp(low, _sample_level(table, u, v, fine.long() + 1, start), level - fine)


def _lines(x: Tensor, width: Tensor, line: float) -> Tensor:
    """How much of [x - width/2, x + width/2] lies on lines of half width ``line`` around the whole numbers."""

    def integral(at: Tensor) -> Tensor:
        return at.floor() * (2 * line) + fraction(at).clamp(max=2 * line)

    return (integral(x + line + width / 2) - integral(x + line - width / 2)) / width


def _squares(x: Tensor, width: Tensor) -> Tensor:
    """The square wave of period 2, +1 then -1, averaged over ``width``."""

    def triangle(at: Tensor) -> Tensor:
        return (fraction(at / 2) - 0.5).abs()

    return (triangle(x - width / 2) - triangle(x + width / 2)) * 2 / width


def floor_colour(
    table: Tensor,
    frame: Frame,
    x: Tensor,
    y: Tensor,
    spread: Tensor,
    stretch: Tensor,
    heading: tuple[Tensor, Tensor],
    smooth: bool,
) -> Vector:
    """Albedo of the floor at (x, y), averaged over the pixel's footprint.

    ``spread`` is the footprint's width in metres across the line of sight, ``stretch`` how many times longer it is
    along it, and ``heading`` the unit vector of the line of sight on the floor.
    """
    cosine, sine = frame.floor_place[2].cos(), frame.floor_place[2].sin()
    x, y = x * cosine + y * sine + frame.floor_place[0], y * cosine - x * sine + frame.floor_place[1]
    across = (heading[0] * cosine + heading[1] * sine).abs()
    along = (heading[1] * cosine - heading[0] * sine).abs()
    width_x = (spread * (along + across * stretch)).clamp(1e-3, 4.0)
    width_y = (spread * (across + along * stretch)).clamp(1e-3, 4.0)

    wooden, tiled, _ = (weight > 0.5 for weight in frame.floor)
    texture_start = torch.where(wooden, TEXTURE_LENGTH, 0)
    noise = _sample(
        table,
        x / torch.where(wooden, 2.9, 3.1),
        y / torch.where(wooden, 0.9, 3.1),
        (width_x * width_y).sqrt() / torch.where(wooden, 1.5, 3.1),
        texture_start,
        smooth,
    )

    # Planks: each row of boards is shifted, and each board has its own tone.
    board_y = y / 0.21
    row = board_y.floor()
    shift = table[2 * TEXTURE_LENGTH + (row.long() & 63)]
    board_x = x / 1.3 + shift * 7
    board = table[2 * TEXTURE_LENGTH + ((row.long() * 23 + board_x.floor().long() * 11) & 63)]
    gaps = torch.maximum(_lines(board_y, width_y / 0.21, 0.025), _lines(board_x, width_x / 1.3, 0.005))
    board = 0.5 + (board - 0.5) * (1.25 - width_y / 0.42).clamp(0, 1)

    tile_x, tile_y = x / 0.46, y / 0.46
    checks = 0.5 + 0.5 * _squares(tile_x, width_x / 0.46) * _squares(tile_y, width_y / 0.46)
    grout = torch.maximum(_lines(tile_x, width_x / 0.46, 0.012), _lines(tile_y, width_y / 0.46, 0.012))

    blend = torch.where(wooden, board * 0.8 + noise * 0.16, torch.where(tiled, checks, 0.5 + noise * 0.24))
    tone = torch.where(
        wooden, (1 - 0.62 * gaps) * (1 + 0.06 * noise), torch.where(tiled, (1 - 0.4 * grout) * (1 + 0.035 * noise), 1.0)
    )
    return scale(mix(frame.floor_first, frame.floor_second, blend.clamp(0, 1)), tone)
