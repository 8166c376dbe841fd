"""Rays, and the solids that they meet, as elementwise tensor code on tiles.

A tile is a rectangle of P pixels, and every function works on N of them, so a per-pixel quantity is (N, P) and a
per-tile one (N, 1). A vector is a tuple of three such tensors: the code stays elementwise and ``torch.compile`` can
fuse it. Records travel between passes as the rows of one tensor, three columns a field.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BEVEL = 0.09
"""Width of the rounded edges of cubes and cylinders, as a fraction of the half size."""

Vector = tuple[Tensor, Tensor, Tensor]


class Frame(NamedTuple):
    """Camera, light and surroundings of each tile; the fields of ``FRAME_FIELDS`` in order."""

    eye: Vector
    right: Vector
    down: Vector
    forward: Vector
    pixel: Vector
    """Size of a pixel at distance 1, and the column and row of the tile's first pixel from the picture's middle."""
    light: Vector
    sky: Vector
    zenith: Vector
    floor: Vector
    """One of three is 1: wooden, tiled, concrete."""
    floor_first: Vector
    floor_second: Vector
    floor_place: Vector
    """Offset of the floor's pattern in metres, and its angle in radians."""


class Body(NamedTuple):
    """Pose and matter of each tile's body. The rows of the rotation are the body's axes in world coordinates."""

    centre: Vector
    axis_x: Vector
    axis_y: Vector
    axis_z: Vector
    colour: Vector
    shape: Vector
    """Weights of ball, cube and cylinder."""
    opaque: Vector
    """Weights of metal, wooden and rubber; none of them is glass."""
    size: Vector
    """Half size in metres, a number that varies the grain, and 1 for glass."""


FRAME_COLUMNS = 3 * len(Frame._fields)
BODY_COLUMNS = 3 * len(Body._fields)


class Hit(NamedTuple):
    enter: Tensor
    leave: Tensor
    """Distances along the ray at which it enters and leaves the body; outside its outline only roughly so."""
    inside: Tensor
    """Signed distance in metres from the ray to the body's outline, positive where the ray hits."""


def vectors(rows: Tensor) -> list[Vector]:
    columns = [column[:, None] for column in rows.unbind(1)]
    return [(columns[i], columns[i + 1], columns[i + 2]) for i in range(0, len(columns), 3)]


def dot(a: Vector, b: Vector) -> Tensor:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def along(origin: Vector, direction: Vector, distance: Tensor) -> Vector:
    return tuple(o + distance * d for o, d in zip(origin, direction, strict=True))  # type: ignore[return-value]


def scale(a: Vector, factor: Tensor | float) -> Vector:
    return a[0] * factor, a[1] * factor, a[2] * factor


def unit(a: Vector) -> Vector:
    return scale(a, torch.rsqrt(dot(a, a) + 1e-12))


def mix(a: Vector, b: Vector, weight: Tensor) -> Vector:
    return tuple(x + (y - x) * weight for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def step(low: float, high: float, x: Tensor) -> Tensor:
    """Smooth step from 0 at ``low`` to 1 at ``high``."""
    x = ((x - low) * (1.0 / (high - low))).clamp(0, 1)
    return x * x * (3 - 2 * x)


def minus(a: Vector, b: Vector) -> Vector:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


def fraction(x: Tensor) -> Tensor:
    return x - x.floor()


def to_body(body: Body, v: Vector) -> Vector:
    return dot(body.axis_x, v), dot(body.axis_y, v), dot(body.axis_z, v)


def to_world(body: Body, v: Vector) -> Vector:
    return tuple(body.axis_x[i] * v[0] + body.axis_y[i] * v[1] + body.axis_z[i] * v[2] for i in range(3))  # type: ignore


def camera_rays(frame: Frame, offsets: Tensor) -> Vector:
    """(N, P) unit directions of the rays through the tiles' pixel centres; ``offsets`` (2, P) in pixels."""
    size, column, row = frame.pixel
    right, down = (column + offsets[0]) * size, (row + offsets[1]) * size
    ray = tuple(frame.forward[i] + frame.right[i] * right + frame.down[i] * down for i in range(3))
    return unit(ray)  # type: ignore[arg-type]


def intersect(body: Body, origin: Vector, direction: Vector) -> Hit:
    """Where a ray (in the body's own coordinates, unit direction) meets its ball, cube or cylinder.

    A convex body is an intersection of slabs, and the ray is inside from the last entry to the first exit. How much
    later it leaves one slab than it enters another, over the length of that number's gradient with respect to the
    ray's origin, is the distance from the ray to the edge that both share in the outline: the gradient of an entry at
    normal n is -n / (n·direction). The outline is the intersection of the half planes of all such pairs.
    """
    half = body.size[0]
    ox, oy, oz = origin
    dx, dy, dz = (torch.where(d.abs() < 1e-5, 1e-5, d) for d in direction)

    middle = dot(origin, direction)
    off_centre = dot(origin, origin) - middle * middle
    ball_root = (half * half - off_centre).clamp(min=0).sqrt()
    ball_inside = half - off_centre.clamp(min=1e-12).sqrt()

    mx, my, mz = 1 / dx, 1 / dy, 1 / dz
    kx, ky, kz = mx.abs() * half, my.abs() * half, mz.abs() * half
    nx, ny, nz = mx * ox, my * oy, mz * oz
    in_x, in_y, cap_in = -nx - kx, -ny - ky, -nz - kz
    out_x, out_y, cap_out = kx - nx, ky - ny, kz - nz
    cap_slope = mz * mz
    cube_in = torch.maximum(torch.maximum(in_x, in_y), cap_in)
    cube_out = torch.minimum(torch.minimum(out_x, out_y), cap_out)
    cube_inside = torch.minimum(
        torch.minimum(
            torch.minimum(out_x - in_y, out_y - in_x) * torch.rsqrt(mx * mx + my * my),
            torch.minimum(out_y - cap_in, cap_out - in_y) * torch.rsqrt(my * my + cap_slope),
        ),
        torch.minimum(out_x - cap_in, cap_out - in_x) * torch.rsqrt(mx * mx + cap_slope),
    )

    a = dx * dx + dy * dy
    b = ox * dx + oy * dy
    miss = (ox * dy - oy * dx) * torch.rsqrt(a)
    root_squared = (a * (half * half - miss * miss)).clamp(min=1e-9)
    root = root_squared.sqrt()
    side_in, side_out = (-b - root) / a, (-b + root) / a
    # Near a tangent the side's gradient is unbounded; ``half - |miss|`` is exact there, so the bound costs nothing.
    slope = half * half / torch.maximum(root_squared, 0.1 * a * half * half) + cap_slope
    tube_in, tube_out = torch.maximum(side_in, cap_in), torch.minimum(side_out, cap_out)
    tube_inside = torch.minimum(side_out - cap_in, cap_out - side_in) * torch.rsqrt(slope)
    tube_inside = torch.minimum(tube_inside, half - miss.abs())

    ball, cube, _ = (weight > 0.5 for weight in body.shape)
    enter = torch.where(ball, -middle - ball_root, torch.where(cube, cube_in, tube_in))
    leave = torch.where(ball, ball_root - middle, torch.where(cube, cube_out, tube_out))
    inside = torch.where(ball, ball_inside, torch.where(cube, cube_inside, tube_inside))
    return Hit(torch.minimum(torch.maximum(enter, -middle - 1.74 * half), 1.74 * half - middle), leave, inside)


def surface_normal(body: Body, point: Vector) -> Vector:
    """Outward normal, in the body's coordinates, at a point of its surface (in half sizes); edges are rounded."""
    x, y, z = point
    ball, cube, _ = (weight > 0.5 for weight in body.shape)
    wx, wy, wz = (((p.abs() - (1 - BEVEL)) / BEVEL).clamp(0.001, 1) * p.sign() for p in point)
    radius = (x * x + y * y).sqrt() + 1e-6
    tube = ((radius - (1 - BEVEL)) / BEVEL).clamp(0.001, 1) / radius
    return unit(
        (
            torch.where(ball, x, torch.where(cube, wx, x * tube)),
            torch.where(ball, y, torch.where(cube, wy, y * tube)),
            torch.where(ball, z, wz),
        )
    )
