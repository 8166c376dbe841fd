"""Light and matter of the tabletop world: the passes that shade tiles of a picture.

``torch.compile`` fuses each pass (the functions without a leading underscore) into one vectorised loop. The passes
are kept small because compile time grows faster than their length. Tiles and vectors are as in ``rays``.

Colours are linear light in [0, 1]; pictures store their square root.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .floor import floor_colour
from .rays import (
    Body,
    Frame,
    Vector,
    along,
    camera_rays,
    dot,
    fraction,
    intersect,
    minus,
    mix,
    scale,
    step,
    surface_normal,
    to_body,
    to_world,
    unit,
    vectors,
)

TILE_WIDTH, TILE_HEIGHT = 16, 8
SUN_RADIUS = 0.11
"""Tangent of the sun's half-angle: how fast shadows soften with distance."""
REFRACTIVE_INDEX = 1.33
FAR = 1e4


def sky_colour(frame: Frame, direction: Vector) -> Vector:
    """Sky with the wide glow of a lamp around the light's direction."""
    glow = dot(direction, frame.light).clamp(min=0)
    glow = glow * glow
    glow = glow * glow
    colour = mix(frame.sky, frame.zenith, step(0.0, 0.8, direction[2]))
    return tuple(c + 0.5 * glow * glow for c in colour)  # type: ignore[return-value]


def _haze(distance: Tensor) -> Tensor:
    """How much of the floor at this distance has dissolved into the sky."""
    return step(3.0, 24.0, distance)


def _nearness(body: Body, x: Tensor, y: Tensor) -> Tensor:
    """Ambient light that a body keeps from the floor at (x, y): the solid angle of a ball, weighted by cosine."""
    dx, dy, height = body.centre[0] - x, body.centre[1] - y, body.centre[2]
    squared = dx * dx + dy * dy + height * height
    reach = body.size[0] * body.size[0] * 1.25
    return (height * reach * torch.rsqrt(squared) / squared - 0.03).clamp(0, 0.9)


def look_around(table: Tensor, frame_rows: Tensor, body_rows: Tensor, origin: Vector, direction: Vector) -> Vector:
    """What a ray that the body reflects or refracts sees of the sky and of the floor, contact shadow included."""
    frame, body = Frame(*vectors(frame_rows)), Body(*vectors(body_rows))
    dz = direction[2].clamp(max=-0.004)
    distance = origin[2].clamp(min=0) / -dz
    x, y = origin[0] + distance * direction[0], origin[1] + distance * direction[1]
    flat = torch.rsqrt(direction[0] * direction[0] + direction[1] * direction[1] + 1e-6)
    floor = floor_colour(table, frame, x, y, distance * 0.04 + 0.015, (-1 / dz).clamp(max=4),
                         (direction[0] * flat, direction[1] * flat), False)  # fmt: skip
    floor = scale(floor, 1 - (0.9 - 0.5 * body.size[2]) * _nearness(body, x, y))
    floor = mix(floor, frame.sky, _haze(distance))
    return mix(floor, sky_colour(frame, direction), step(-0.02, 0.02, direction[2]))


def look_at_other(seen: Vector, other_rows: Tensor, origin: Vector, direction: Vector) -> Vector:
    """``seen`` with another body in front of it, plainly lit from above."""
    other = Body(*vectors(other_rows))
    hit = intersect(other, to_body(other, minus(origin, other.centre)), to_body(other, direction))
    cover = torch.where(hit.enter > 0, step(-0.02, 0.02, hit.inside), 0.0)
    height = ((origin[2] + hit.enter * direction[2] - other.centre[2]) / other.size[0]).clamp(-1, 1)
    return mix(seen, scale(other.colour, 0.65 + 0.35 * height), cover)


def keep_sun(lit: Tensor, point: Vector, frame_rows: Tensor, other_rows: Tensor) -> Tensor:
    """``lit`` (how much of the sun reaches a point), less what another body keeps away."""
    frame, other = Frame(*vectors(frame_rows)), Body(*vectors(other_rows))
    hit = intersect(other, to_body(other, minus(point, other.centre)), to_body(other, frame.light))
    dark = step(-1.0, 1.0, hit.inside / (SUN_RADIUS * hit.enter.clamp(min=0) + 0.012))
    return lit * (1 - dark * (1 - 0.6 * other.size[2]) * (hit.leave > 0.01) * (hit.enter > -0.02))


def shade_ground(table: Tensor, offsets: Tensor, frame_rows: Tensor) -> Tensor:
    """Open floor and sky: (N, 4, P), red, green, blue and the distance to the floor."""
    frame = Frame(*vectors(frame_rows))
    ray = camera_rays(frame, offsets)
    dz = ray[2].clamp(max=-0.004)
    distance = frame.eye[2] / -dz
    x, y = frame.eye[0] + distance * ray[0], frame.eye[1] + distance * ray[1]
    flat = torch.rsqrt(ray[0] * ray[0] + ray[1] * ray[1] + 1e-6)
    floor = floor_colour(table, frame, x, y, distance * frame.pixel[0], -1 / dz, (ray[0] * flat, ray[1] * flat), True)
    sky = mix(frame.sky, frame.zenith, step(0.0, 0.8, ray[2]))
    colour = mix(floor, sky, _haze(distance))
    return torch.stack((*colour, torch.where(ray[2] < 0, distance, FAR)), 1)


def cast_shadow(offsets: Tensor, canvas: Tensor, frame_rows: Tensor, body_rows: Tensor) -> Tensor:
    """The canvas (N, 4, P) with the floor darkened where the body keeps sun and sky away; glass lets colour through."""
    frame, body = Frame(*vectors(frame_rows)), Body(*vectors(body_rows))
    ray = camera_rays(frame, offsets)
    dz = ray[2].clamp(max=-0.004)
    distance = frame.eye[2] / -dz
    point = frame.eye[0] + distance * ray[0], frame.eye[1] + distance * ray[1], torch.zeros_like(distance)
    hit = intersect(body, to_body(body, minus(point, body.centre)), to_body(body, frame.light))
    penumbra = SUN_RADIUS * hit.enter.clamp(min=0) + 0.012
    shade = step(-1.0, 1.0, hit.inside / penumbra) * (hit.leave > 0)
    # A body much smaller than its penumbra covers only part of the sun.
    shade = shade * (1.3 * body.size[0] / penumbra).clamp(max=1)
    glass = body.size[2]
    near = _nearness(body, point[0], point[1]) * (1 - 0.5 * glass)
    keep = 1 - _haze(distance)
    lit = torch.where(ray[2] < 0, keep, 0.0)
    # Through glass the middle of the shadow is bright, as a lens gathers light there.
    through = glass * (0.45 + 0.5 * step(0.0, 0.9, hit.inside / body.size[0]))
    out = []
    for channel in range(3):
        sun = 1 - shade * (1 - through * body.colour[channel]) * 0.72
        out.append(canvas[:, channel] * (1 - lit * (1 - sun * (1 - 0.85 * near))))
    return torch.stack((*out, canvas[:, 3]), 1)


def _wood_grain(body: Body, point: Vector) -> Tensor:
    """Brightness of growth rings around a tree's axis that runs beside and aslant the body's own, about 0.45 to 1."""
    x, y, z = point
    phase = body.size[1]
    x, y = x + 0.35 + 0.28 * z + 0.12 * (2.3 * z + phase).sin(), y - 0.2 + 0.10 * (3.1 * z + 2 * phase).sin()
    radius = (x * x * 1.3 + y * y).sqrt() + 0.05 * (5 * y + 3 * x + phase).sin()
    rings = fraction(radius * 3.4 + 0.2 * phase)
    # Slow darkening through the year's growth, then an abrupt start of the next; the step is kept a little soft.
    ring = rings * rings * (1 - step(0.86, 1.0, rings))
    fibre = (38 * x + 9 * (y * 2 + phase).sin()).sin() * (31 * y).sin()
    return 1.0 - 0.62 * ring + 0.05 * fibre


class Surface(NamedTuple):
    """Where the camera's rays meet a body."""

    cover: Tensor
    """How much of the pixel the body covers, 0 to 1."""
    enter: Tensor
    place: Vector
    """In the body's coordinates, in half sizes."""
    point: Vector
    ray: Vector
    normal: Vector
    """In world coordinates, as the two before it."""
    mirrored: Vector


def find_surface(offsets: Tensor, canvas: Tensor, frame_rows: Tensor, body_rows: Tensor) -> Surface:
    """Meet the body with the camera's rays; what stands nearer on the canvas (N, 4, P) hides it."""
    frame, body = Frame(*vectors(frame_rows)), Body(*vectors(body_rows))
    ray = camera_rays(frame, offsets)
    eye_inside, ray_inside = to_body(body, minus(frame.eye, body.centre)), to_body(body, ray)
    hit = intersect(body, eye_inside, ray_inside)
    cover = (hit.inside / (frame.pixel[0] * hit.enter.clamp(min=0.1)) + 0.5).clamp(0, 1)
    cover = cover * (((canvas[:, 3] - hit.enter) / 0.02 + 0.5).clamp(0, 1)) * (hit.enter > 0)
    place = scale(along(eye_inside, ray_inside, hit.enter), 1 / body.size[0])
    normal = to_world(body, surface_normal(body, place))
    # Flat metal is made a little convex, or its faces would each mirror one spot and look like paint.
    bent = unit(along(normal, to_world(body, place), 0.24 * body.opaque[0]))
    mirrored = along(ray, bent, -2 * dot(bent, ray))
    return Surface(cover, hit.enter, place, along(frame.eye, ray, hit.enter), ray, normal, mirrored)


def _fresnel(surface: Surface) -> tuple[Tensor, Tensor, Tensor]:
    """Cosine of the angle of view, and the second and fifth power of 1 less that cosine (Schlick 1994, eq. 15)."""
    facing = -dot(surface.normal, surface.ray)
    slant = 1 - facing.clamp(0.12, 1)
    squared = slant * slant
    return facing, squared, squared * squared * slant


def _glints(frame: Frame, surface: Surface, lit: Tensor) -> tuple[Tensor, Tensor]:
    """The sun's image and the glow around it on a polished surface."""
    glint = dot(surface.mirrored, frame.light).clamp(min=0)
    squared = glint * glint
    return step(0.955, 0.985, glint) * lit, squared * squared * squared * squared * lit


def _cover(canvas: Tensor, surface: Surface, colour: list[Tensor]) -> Tensor:
    behind = canvas.unbind(1)
    blended = [b + (c.clamp(0, 1) - b) * surface.cover for b, c in zip(behind[:3], colour, strict=True)]
    return torch.stack((*blended, torch.where(surface.cover > 0.5, surface.enter, behind[3])), 1)


def shade_opaque(
    canvas: Tensor, surface: Surface, lit: Tensor, reflected: Vector, frame_rows: Tensor, body_rows: Tensor
) -> Tensor:
    """The canvas with a body of metal, wood or rubber over it."""
    frame, body = Frame(*vectors(frame_rows)), Body(*vectors(body_rows))
    facing, slant, fresnel = _fresnel(surface)
    sharp, glow = _glints(frame, surface, lit)
    metal, wooden, rubber = body.opaque
    normal_z = surface.normal[2]
    open_sky = 0.5 + 0.5 * normal_z
    grounded = 0.45 + 0.55 * step(0.0, 1.0, surface.point[2] / body.size[0] + normal_z * 0.5)
    diffuse = dot(surface.normal, frame.light).clamp(min=0) * lit * 0.78
    grain = 1 - wooden + wooden * _wood_grain(body, surface.place)
    sheen = wooden * 0.10 * glow + rubber * 0.05 * slant
    gloss = metal * (1.0 - 0.1 * facing)
    colour = []
    for channel in range(3):
        floor = 0.5 * (frame.floor_first[channel] + frame.floor_second[channel])
        ambient = (0.8 * floor * (1 - open_sky) + (0.25 + 0.35 * frame.sky[channel]) * open_sky) * grounded
        matte = body.colour[channel] * grain * (diffuse + ambient) * (1 - metal) + sheen
        tint = body.colour[channel] * (1 - fresnel) + fresnel
        mirror = reflected[channel] * (tint * gloss + wooden * (0.03 + 0.4 * fresnel))
        colour.append(matte + mirror + metal * (1.5 * sharp + 0.5 * glow * tint + 0.10 * tint * diffuse))
    return _cover(canvas, surface, colour)


class Exit(NamedTuple):
    """Where light seen through glass entered it, on the far side."""

    point: Vector
    direction: Vector
    """Of the ray after it has left the glass, in world coordinates as the point."""
    path: Tensor
    """Way through the glass in half sizes."""
    slope: Tensor
    """0 where the ray leaves straight through the far surface, 1 where it grazes it."""


def _refract(direction: Vector, normal: Vector, ratio: float) -> Vector:
    """Snell's law for unit vectors, ``normal`` against the ray; past the critical angle the ray grazes."""
    cosine = -dot(direction, normal)
    root = (1 - ratio * ratio * (1 - cosine * cosine)).clamp(min=0.0).sqrt()
    return unit(along(scale(direction, ratio), normal, ratio * cosine - root))


def pass_through(surface: Surface, body_rows: Tensor) -> Exit:
    """Follow the camera's rays through a solid of glass, refracted on both sides."""
    body = Body(*vectors(body_rows))
    half = body.size[0]
    inner = to_body(body, _refract(surface.ray, surface.normal, 1 / REFRACTIVE_INDEX))
    start = scale(surface.place, half)
    path = intersect(body, start, inner).leave.clamp(min=0)
    end = along(start, inner, path)
    normal = surface_normal(body, scale(end, 1 / half))
    out = to_world(body, _refract(inner, scale(normal, -1.0), REFRACTIVE_INDEX))
    world = to_world(body, end)
    point = world[0] + body.centre[0], world[1] + body.centre[1], world[2] + body.centre[2]
    return Exit(point, out, path / half, 1 - dot(inner, normal).clamp(0, 1))


def shade_glass(
    canvas: Tensor,
    surface: Surface,
    lit: Tensor,
    reflected: Vector,
    through: Vector,
    path: Tensor,
    slope: Tensor,
    frame_rows: Tensor,
    body_rows: Tensor,
) -> Tensor:
    """The canvas with a body of coloured glass over it: light absorbed on its way, mirrored at the rim."""
    frame, body = Frame(*vectors(frame_rows)), Body(*vectors(body_rows))
    facing, _, fresnel = _fresnel(surface)
    sharp, glow = _glints(frame, surface, lit)
    rim = step(0.55, 1.0, 1 - facing)
    mirror = 0.05 + 0.9 * fresnel
    depth = 0.55 + 0.35 * path
    colour = []
    for channel in range(3):
        tint = body.colour[channel]
        inner = (through[channel] * 0.85 + 0.15) * tint.clamp(min=0.004) ** depth
        inner = inner * (1 - 0.35 * slope * slope) + 0.10 * tint * slope
        outer = reflected[channel] * mirror + 0.16 * rim * (0.5 + 0.5 * tint)
        colour.append(inner * (1 - mirror) + outer + 1.4 * sharp + 0.12 * glow)
    return _cover(canvas, surface, colour)


def develop(canvas: Tensor) -> Tensor:
    """Linear light (N, 4, P) to 8-bit picture values (N, 3, P)."""
    return (canvas[:, :3].clamp(0, 1).sqrt() * 255 + 0.5).to(torch.uint8)
