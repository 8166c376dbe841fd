"""The tabletop world's vocabulary and the records that its parts hand to one another.

A ``Trajectory`` is what physics decides (shapes, materials, sizes, floor, motion, contacts); a ``Look`` is what may
be drawn anew each time a trajectory is shown (colours, light, camera, mirror image). Sound depends on the trajectory
alone, except that a mirror image is mirrored in words and picture.

World frame: metres, z up, the floor is the plane z = 0, the camera looks along +y from negative y, +x is to the
right in the picture. Quaternions are (w, x, y, z).
"""

import zlib
from dataclasses import dataclass, field

import numpy as np

SHAPES = ("ball", "cube", "cylinder")
MATERIALS = ("metal", "wooden", "glass", "rubber")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
SIZES = ("small", "big")
FLOORS = ("wooden", "tiled", "concrete")
CAMERAS = ("static", "orbits left", "orbits right", "zooms in", "zooms out", "pans left", "pans right")
ACTIONS = ("rests", "drops", "is tossed", "rolls", "slides", "hits", "knocks")
"""``rests``: nothing moves, silence. ``hits``: body 0 runs into body 1. ``knocks``: body 0 knocks body 1 off body 2."""

HALF_SIZE_M = {"small": 0.21, "big": 0.33}
"""Radius of a ball, half the edge of a cube, radius and half-height of a cylinder."""

POSE_RATE_HZ = 24
"""Poses are stored at this rate; contacts are exact in time, whatever the rate."""


def is_held_out(colour: str, material: str, shape: str) -> bool:
    """Whether the triple is kept from training, to test composition on."""
    return zlib.crc32(f"{colour} {material} {shape}".encode()) % 10 == 0


@dataclass(frozen=True)
class Body:
    shape: str
    material: str
    size: str

    @property
    def half_size_m(self) -> float:
        return HALF_SIZE_M[self.size]


@dataclass(frozen=True)
class Contact:
    """One impact: a body meets the floor (``other`` = -1) or another body."""

    time_s: float
    body: int
    other: int
    impulse_ns: float
    """Newton seconds."""


@dataclass(frozen=True)
class Trajectory:
    """What physics decides. Array shapes: poses P = 1 + floor(duration · POSE_RATE_HZ), bodies N."""

    bodies: tuple[Body, ...]
    floor: str
    action: str
    direction: str
    """``left`` or ``right``: where body 0 comes from (tossed, rolls, slides, hits, knocks); empty for the rest."""
    positions_m: np.ndarray
    """(P, N, 3) float32, centres."""
    rotations: np.ndarray
    """(P, N, 4) float32 unit quaternions (w, x, y, z)."""
    contacts: tuple[Contact, ...] = ()
    rolling: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """(P, N) float32: speed in m/s at which the body rolls on a support; 0 when it does not."""
    sliding: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """(P, N) float32: slip speed in m/s at the body's support contact; 0 when it does not slide."""


@dataclass(frozen=True)
class Look:
    """What may change from one showing of a trajectory to the next."""

    colours: tuple[str, ...]
    camera: str = "static"
    mirrored: bool = False
    """Show the mirror image: x and left/right swap, in the picture and in the words (camera words included)."""
    seed: int = 0
    """Draws light direction, sky tint, floor texture offset and camera jitter."""
