"""Shapes that clips are trained in: near each clip's own, so that nothing is stretched and little is cut off."""

from math import sqrt
from typing import NamedTuple


class Bucket(NamedTuple):
    """What the clips of a batch have in common. ``height`` and ``width`` are 0 for sound alone."""

    frames: int
    height: int
    width: int

    @property
    def is_sound(self) -> bool:
        return self.height == 0


def fitting_size(height: int, width: int, area: int, multiple: int) -> tuple[int, int]:
    """Height and width, multiples of ``multiple``, of at most about ``area`` pixels, in the shape of a picture.

    Never larger than the picture, so that nothing is made up, unless it is smaller than ``multiple``. Of the sizes
    around the exact one that whose shape is nearest, then the largest, is taken.
    """
    scale = min(1.0, sqrt(area / (height * width)))
    candidates = []
    for h in _around(height * scale / multiple, height // multiple):
        for w in _around(width * scale / multiple, width // multiple):
            stretch = (w * height) / (h * width)
            excess = max(0.0, h * w * multiple**2 / area - 1.15)
            candidates.append((excess, round(max(stretch, 1 / stretch), 3), -h * w, h * multiple, w * multiple))
    *_, fitting_height, fitting_width = min(candidates)
    return fitting_height, fitting_width


def _around(exact: float, most: int) -> set[int]:
    return {max(1, min(most, int(exact) + step)) for step in (0, 1)}


def frame_ladder(num_frames: int, step: int) -> list[int]:
    """Lengths 1 + n·``step`` from ``num_frames`` down, each about half the one before, to 1, an image."""
    groups = max(0, (num_frames - 1) // step)
    lengths = [num_frames]
    while groups > 1:
        groups //= 2
        lengths.append(1 + groups * step)
    return sorted({*lengths, 1}, reverse=True)


def fitting_frames(frames: int, num_frames: int, step: int) -> int:
    """The longest length of the ladder that a clip of ``frames`` fills."""
    return next(length for length in frame_ladder(num_frames, step) if length <= max(1, frames))
