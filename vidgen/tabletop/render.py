"""Pictures of the tabletop world: an analytic ray caster in batched tensor code, the same on CPU and GPU.

Cost decides the structure. The picture is cut into tiles of 16×8 pixels. Floor and sky are shaded once for a camera
that stands still and once a frame otherwise; shadows and bodies are shaded only in the tiles that their outline
touches, far bodies before near ones. Edges are smoothed by the analytic distance from a ray to the body's outline,
so one ray a pixel is enough. ``shading`` holds what happens inside a tile.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from . import shading
from .floor import textures
from .scene import CAMERAS, COLOURS, FLOORS, MATERIALS, SHAPES, Look, Trajectory
from .shading import TILE_HEIGHT, TILE_WIDTH
from .shot import UNUSED_BELOW_M, box_corners, outline, shot_rows

TILES_A_CALL = 512
TILES_A_GPU_CALL = 8192
"""A GPU wants more work in a call than the caches of a CPU hold."""
PIXELS_A_GROUP = 1 << 21
PIXELS_A_GPU_GROUP = 1 << 24
COMPILE_FROM_FRAMES = 4000
"""Of 128×128 in one call: about what compiling (most of a minute; seconds once cached on disk) must save to pay."""


class _Passes(NamedTuple):
    ground: Callable
    shadow: Callable
    surface: Callable
    sun: Callable
    around: Callable
    other: Callable
    opaque: Callable
    through: Callable
    glass: Callable
    develop: Callable


@lru_cache(maxsize=2)
def _passes(compiled: bool) -> _Passes:
    """The shading passes; compiled, each is one graph for calls of exactly as many tiles as ``_tiles_a_call`` says."""
    functions = _Passes(
        shading.shade_ground, shading.cast_shadow, shading.find_surface, shading.keep_sun, shading.look_around,
        shading.look_at_other, shading.shade_opaque, shading.pass_through, shading.shade_glass, shading.develop,
    )  # fmt: skip
    return _Passes(*(torch.compile(function, dynamic=False) for function in functions)) if compiled else functions


def _tiles_a_call(device: torch.device) -> int:
    return TILES_A_CALL if device.type == "cpu" else TILES_A_GPU_CALL


def _calls(tiles: Tensor, full: bool) -> Iterator[tuple[Tensor, int]]:
    """Row numbers of ``tiles`` a call at a time, and how many of them count; ``full`` repeats the last one to fill."""
    most = _tiles_a_call(tiles.device)
    for start in range(0, len(tiles), most):
        count = min(most, len(tiles) - start)
        rows = torch.arange(start, start + (most if full else count), device=tiles.device)
        yield rows.clamp(max=len(tiles) - 1), count


def _touched_tiles(low: Tensor, high: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Tiles in each rectangle: (which rectangle, which tile) for every pair; corners (R, 2) are in pixels."""
    columns, rows = grid
    size = torch.tensor([TILE_WIDTH, TILE_HEIGHT], device=low.device)
    limit = torch.tensor([columns, rows], device=low.device)
    first = torch.minimum((low / size).floor().long().clamp(min=0), limit)
    last = torch.minimum((high / size).floor().long() + 1, limit)
    extent = (last - first).clamp(min=0)
    counts = extent.prod(1)
    owner = torch.repeat_interleave(torch.arange(len(low), device=low.device), counts)
    place = torch.arange(len(owner), device=low.device) - (counts.cumsum(0) - counts)[owner]
    across = extent[owner, 0]
    return owner, (first[owner, 1] + place // across) * columns + first[owner, 0] + place % across


def _draw_bodies(
    draw: _Passes,
    table: Tensor,
    offsets: Tensor,
    canvas: Tensor,
    frames: Tensor,
    body: Tensor,
    others: list[Tensor],
    glass: bool,
) -> Tensor:
    """Canvas tiles (N, 4, P) with a body over each: rows of frames, bodies and the other bodies of the scene."""
    surface = draw.surface(offsets, canvas, frames, body)
    lit = torch.ones_like(surface.cover)
    for other in others:
        lit = draw.sun(lit, surface.point, frames, other)
    reflected = draw.around(table, frames, body, surface.point, surface.mirrored)
    for other in others:
        reflected = draw.other(reflected, other, surface.point, surface.mirrored)
    if not glass:
        return draw.opaque(canvas, surface, lit, reflected, frames, body)
    exit_ = draw.through(surface, body)
    seen = draw.around(table, frames, body, exit_.point, exit_.direction)
    for other in others:
        seen = draw.other(seen, other, exit_.point, exit_.direction)
    return draw.glass(canvas, surface, lit, reflected, seen, exit_.path, exit_.slope, frames, body)


def _render_group(frames: Tensor, bodies: Tensor, shared: Tensor, height: int, width: int, compiled: bool) -> Tensor:
    """(F, H, W, 3) uint8 from frame rows (F, columns) and body rows (F, slots, columns).

    ``shared`` (F,) numbers the frames such that equal numbers have the same camera and surroundings.
    """
    device, draw = frames.device, _passes(compiled)
    count, slots = bodies.shape[:2]
    columns, rows = -(-width // TILE_WIDTH), -(-height // TILE_HEIGHT)
    tiles_a_frame = columns * rows
    table = textures(device)
    pixel = torch.arange(TILE_WIDTH * TILE_HEIGHT, device=device)
    offsets = torch.stack([pixel % TILE_WIDTH, pixel // TILE_WIDTH]).float() + 0.5
    middle = torch.tensor([width / 2, height / 2], device=device)
    tile = torch.arange(tiles_a_frame, device=device)
    corner = torch.stack([tile % columns * TILE_WIDTH, tile // columns * TILE_HEIGHT], 1).float() - middle

    def tile_rows(frame: Tensor, tile: Tensor) -> Tensor:
        chosen = frames[frame]
        chosen[:, 13:15] = corner[tile]
        return chosen

    views, view = torch.unique(shared, return_inverse=True)
    first = torch.full((len(views),), count, device=device)
    first = first.scatter_reduce(0, view, torch.arange(count, device=device), "amin")
    owner, tiles = first.repeat_interleave(tiles_a_frame), tile.repeat(len(views))
    ground = torch.empty(len(owner), 4, len(pixel), device=device)
    for call, size in _calls(owner, compiled):
        ground[call[0] : call[0] + size] = draw.ground(table, offsets, tile_rows(owner[call], tiles[call]))[:size]
    canvas = ground.view(len(views), tiles_a_frame, 4, -1)[view].flatten(0, 1)

    centre, half = bodies[..., 0:3], bodies[..., 21:22]
    used = centre[..., 2] > UNUSED_BELOW_M
    quad = _shadow_corners(frames, centre, half)
    for slot in range(slots):
        owner, tiles = _touched_tiles(*outline(quad[:, slot], frames, middle, used[:, slot]), (columns, rows))
        target = owner * tiles_a_frame + tiles
        for call, size in _calls(owner, compiled):
            frame, place = owner[call], target[call]
            drawn = draw.shadow(offsets, canvas[place], tile_rows(frame, tiles[call]), bodies[frame, slot])
            canvas[place[:size]] = drawn[:size]

    box = box_corners(frames, bodies)
    order = (centre - frames[:, None, 0:3]).norm(dim=-1).argsort(1, descending=True)
    every = torch.arange(count, device=device)
    for rank in range(slots):
        slot = order[:, rank]
        owner, tiles = _touched_tiles(*outline(box[every, slot], frames, middle, used[every, slot]), (columns, rows))
        company = used.sum(1)[owner] > 1
        for glass in (False, True):
            for alone in (False, True):
                chosen = ((bodies[owner, slot[owner], 23] > 0.5) == glass) & (company != alone)
                frame_, tile_ = owner[chosen], tiles[chosen]
                for call, size in _calls(frame_, compiled):
                    frame, place = frame_[call], frame_[call] * tiles_a_frame + tile_[call]
                    own = slot[frame]
                    others = [] if alone else [bodies[frame, (own + step) % slots] for step in range(1, slots)]
                    drawn = _draw_bodies(draw, table, offsets, canvas[place], tile_rows(frame, tile_[call]),
                                         bodies[frame, own], others, glass)  # fmt: skip
                    canvas[place[:size]] = drawn[:size]

    picture = torch.empty(len(canvas), 3, len(pixel), dtype=torch.uint8, device=device)
    most = _tiles_a_call(device)
    for start in range(0, len(canvas), most):
        end = min(start + most, len(canvas))
        begin = max(0, end - most)
        picture[begin:end] = draw.develop(canvas[begin:end])
    picture = picture.view(count, rows, columns, 3, TILE_HEIGHT, TILE_WIDTH).permute(0, 1, 4, 2, 5, 3)
    return picture.reshape(count, rows * TILE_HEIGHT, columns * TILE_WIDTH, 3)[:, :height, :width]


def _shadow_corners(frames: Tensor, centre: Tensor, half: Tensor) -> Tensor:
    """(F, slots, 4, 3): the floor that a body darkens, under it and where its shadow falls, with its soft rim."""
    light = frames[:, None, 15:18]
    fall = centre[..., :2] - light[..., :2] / light[..., 2:] * centre[..., 2:]
    soft = half * 2.2 + shading.SUN_RADIUS * 1.5 * centre[..., 2:].clamp(min=0)
    under = half * 3.0
    low = torch.minimum(fall - soft, centre[..., :2] - under)
    high = torch.maximum(fall + soft, centre[..., :2] + under)
    zero = torch.zeros_like(half[..., 0])
    return torch.stack([torch.stack([x[..., 0], y[..., 1], zero], -1) for x in (low, high) for y in (low, high)], 2)


def can_compile(device: torch.device) -> bool:
    """Whether ``torch.compile`` finds the C or C++ compiler that it needs for this device."""
    return any(map(shutil.which, ("g++",) if device.type == "cpu" else ("cc", "gcc", "clang")))


def render(
    trajectories: list[Trajectory],
    looks: list[Look],
    *,
    num_frames: int,
    height: int,
    width: int,
    frame_rate: float = 24,
    start_times_s: Sequence[float] | float = 0.0,
    device: str | torch.device = "cpu",
    compiled: bool | None = None,
) -> Tensor:
    """Film each trajectory as its look says: (B, T, H, W, 3) uint8 pictures on ``device``.

    Frame i shows the moment ``start + i / frame_rate``; poses are interpolated between their 24 Hz samples and held
    after the last. ``compiled`` runs the shading through ``torch.compile`` (same pictures within rounding); None
    does so where a C++ compiler or a GPU is present and this one call is large enough to repay the compilation. Ask
    for it where many small calls follow one another, as in training.

    Raises:
        InputError: sizes that are not positive, looks that do not fit the trajectories, or an unknown name.
    """
    if len(trajectories) != len(looks) or not trajectories:
        raise InputError(f"every trajectory needs a look: got {len(trajectories)} trajectories, {len(looks)} looks")
    if num_frames < 1 or height < 1 or width < 1 or not frame_rate > 0:
        raise InputError(f"cannot render {num_frames} frames of {width}×{height} at {frame_rate} frames a second")
    starts = np.asarray(start_times_s, dtype=np.float64)
    if starts.shape not in ((), (len(looks),)):
        raise InputError(f"got {starts.size} start times for {len(looks)} clips")
    starts = np.broadcast_to(starts, len(looks))
    for trajectory, look in zip(trajectories, looks, strict=True):
        _check(trajectory, look)

    device = torch.device(device)
    total = num_frames * len(looks)
    if compiled is None:
        compiled = can_compile(device) and total * height * width >= COMPILE_FROM_FRAMES * 128 * 128
    frames, bodies = shot_rows(trajectories, looks, starts, num_frames, float(frame_rate), width, device)
    views = torch.arange(total, device=device).view(len(looks), num_frames)
    still = torch.tensor([look.camera == "static" for look in looks], device=device)
    views = torch.where(still[:, None], views[:, :1], views).flatten()

    step = max(1, (PIXELS_A_GROUP if device.type == "cpu" else PIXELS_A_GPU_GROUP) // (height * width))
    with torch.no_grad():
        pictures = torch.cat(
            [
                _render_group(frames[i : i + step], bodies[i : i + step], views[i : i + step], height, width, compiled)
                for i in range(0, total, step)
            ]
        ).view(len(looks), num_frames, height, width, 3)
    mirrored = torch.tensor([look.mirrored for look in looks], device=device)
    if mirrored.any():
        pictures[mirrored] = pictures[mirrored].flip(3)
    return pictures


def _check(trajectory: Trajectory, look: Look) -> None:
    names = [(look.camera, CAMERAS, "camera"), (trajectory.floor, FLOORS, "floor")]
    names += [(colour, COLOURS, "colour") for colour in look.colours]
    for body in trajectory.bodies:
        names += [(body.shape, SHAPES, "shape"), (body.material, MATERIALS, "material")]
    for name, known, kind in names:
        if name not in known:
            raise InputError(f"unknown {kind} {name!r}: use one of {', '.join(known)}")
    if len(look.colours) != len(trajectory.bodies):
        raise InputError(f"a look with {len(look.colours)} colours cannot dress {len(trajectory.bodies)} bodies")
