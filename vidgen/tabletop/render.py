"""Pictures of the tabletop world: an analytic ray caster in batched tensor code, the same on CPU and GPU.

Cost decides the structure. The picture is cut into tiles of 16×8 pixels. Floor and sky are shaded once for a camera
that stands still and once a frame otherwise; shadows and bodies are shaded only in the tiles that their outline
touches, far bodies before near ones. Edges are smoothed by the analytic distance from a ray to the body's outline,
so one ray a pixel is enough. ``shading`` holds what happens inside a tile.
"""

import math
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
from .rays import BODY_COLUMNS
from .scene import CAMERAS, COLOURS, FLOORS, MATERIALS, POSE_RATE_HZ, SHAPES, Look, Trajectory
from .shading import TILE_HEIGHT, TILE_WIDTH

COLOURS_RGB = {
    "red": (208, 32, 30),
    "green": (44, 168, 56),
    "blue": (36, 74, 214),
    "yellow": (238, 196, 26),
    "purple": (146, 52, 190),
    "orange": (240, 122, 18),
    "cyan": (24, 186, 202),
    "white": (232, 232, 228),
}
"""8-bit picture values of each colour in full light."""
SKIES_RGB = ((205, 195, 182), (148, 152, 166), (176, 190, 186), (190, 198, 210), (200, 188, 190), (168, 180, 198))
FLOORS_RGB = {
    "wooden": (((168, 118, 66), (214, 172, 112)), ((150, 98, 56), (200, 150, 98)), ((186, 148, 98), (226, 194, 146))),
    "tiled": (
        ((186, 158, 146), (224, 218, 206)),
        ((160, 164, 170), (222, 222, 216)),
        ((138, 146, 142), (214, 214, 208)),
    ),
    "concrete": (
        ((112, 112, 114), (160, 160, 160)),
        ((128, 124, 118), (178, 172, 164)),
        ((104, 110, 112), (156, 160, 160)),
    ),
}

BASE_EYE_M = (0.0, -3.15, 1.25)
BASE_TARGET_M = (0.0, 0.0, 0.64)
BASE_HALF_WIDTH_M = 1.27
"""What the camera sees to each side at the distance of its target; the same upward and downward in a square picture."""
NEAREST_M = 0.15
UNUSED_BELOW_M = -100.0
TILES_A_CALL = 512
TILES_A_GPU_CALL = 8192
"""A GPU wants more work in a call than the caches of a CPU hold."""
PIXELS_A_GROUP = 1 << 21
PIXELS_A_GPU_GROUP = 1 << 24
COMPILE_FROM_FRAMES = 4000
"""Of 128×128 in one call: about what compiling (most of a minute; seconds once cached on disk) must save to pay."""


class CameraPath(NamedTuple):
    """Where the camera is at each of F frames, before mirroring."""

    eye_m: np.ndarray
    """(F, 3)"""
    axes: np.ndarray
    """(F, 3, 3): rows are right, down and forward in world coordinates."""
    half_width: np.ndarray
    """(F,): tangent of half the horizontal (and, in a square picture, vertical) angle of view."""


def camera_path(look: Look, times_s: np.ndarray, duration_s: float) -> CameraPath:
    """The camera of ``look`` at times (F,) of a trajectory that lasts ``duration_s``.

    Moves are steady and centred on the trajectory's middle, where the view is about that of the static camera. Left
    and right are the camera's: when it pans left the picture's content moves right.
    """
    rng = np.random.default_rng((look.seed, 1))
    yaw, height, distance, side = rng.uniform(-1, 1, 4) * (math.radians(5), 0.10, 0.04, 0.03)
    centred = (times_s - duration_s / 2) * min(1.0, 4.0 / max(duration_s, 1e-6))
    sign = -1.0 if look.camera.endswith(("left", "in")) else 1.0
    orbit = np.full_like(centred, yaw)
    pan = np.zeros_like(centred)
    half_width = np.full_like(centred, BASE_HALF_WIDTH_M)
    move = look.camera.split()[0]
    if move == "orbits":
        orbit = orbit + sign * math.radians(11) * centred
    elif move == "zooms":
        half_width = half_width * 1.1 * np.exp(sign * 0.13 * centred)
    elif move == "pans":
        pan = sign * math.radians(4.5) * centred
        half_width = half_width * 1.1
    target = np.array(BASE_TARGET_M) + np.array([side, 0.0, 0.0])
    arm = (np.array(BASE_EYE_M) - target) * (1 + distance) + np.array([0.0, 0.0, height])
    cosine, sine = np.cos(orbit), np.sin(orbit)
    eye = np.stack([arm[0] * cosine - arm[1] * sine, arm[0] * sine + arm[1] * cosine, np.full_like(orbit, arm[2])], 1)
    forward = -eye / np.linalg.norm(eye, axis=1, keepdims=True)
    cosine, sine = np.cos(pan), np.sin(pan)
    forward = np.stack(
        [forward[:, 0] * cosine + forward[:, 1] * sine, forward[:, 1] * cosine - forward[:, 0] * sine, forward[:, 2]], 1
    )
    right = np.stack([forward[:, 1], -forward[:, 0], np.zeros_like(pan)], 1)
    right = right / np.linalg.norm(right, axis=1, keepdims=True)
    down = np.cross(forward, right)
    return CameraPath(eye + target, np.stack([right, down, forward], 1), half_width / np.linalg.norm(arm))


def _linear(rgb: Sequence[float]) -> np.ndarray:
    return (np.asarray(rgb) / 255.0) ** 2


def _frame_rows(trajectory: Trajectory, look: Look, times_s: np.ndarray, width: int) -> np.ndarray:
    """(F, FRAME_COLUMNS): camera, light and surroundings in the order of ``shading.Frame``."""
    duration_s = (len(trajectory.positions_m) - 1) / POSE_RATE_HZ
    path = camera_path(look, times_s, duration_s)
    rng = np.random.default_rng((look.seed, 2))
    azimuth, elevation = math.radians(rng.uniform(20, 85) * rng.choice((-1, 1))), math.radians(rng.uniform(46, 58))
    light = (math.sin(azimuth) * math.cos(elevation), -math.cos(azimuth) * math.cos(elevation), math.sin(elevation))
    sky = _linear(SKIES_RGB[rng.integers(len(SKIES_RGB))]) * rng.uniform(0.92, 1.06)
    zenith = sky * rng.uniform(0.95, 1.1, 3)
    tones = FLOORS_RGB[trajectory.floor]
    first, second = (_linear(tone) * rng.uniform(0.96, 1.04, 3) for tone in tones[rng.integers(len(tones))])
    place = (*rng.uniform(0, 8, 2), math.radians(rng.uniform(-12, 12)))
    still = [light, sky, zenith, np.eye(3)[FLOORS.index(trajectory.floor)], first, second, place]
    pixel = np.stack([path.half_width * 2 / width, np.zeros_like(times_s), np.zeros_like(times_s)], 1)
    return np.concatenate(
        [path.eye_m, path.axes.reshape(-1, 9), pixel, np.broadcast_to(np.concatenate(still), (len(times_s), 21))], 1
    )


def _body_rows(trajectory: Trajectory, look: Look, times_s: np.ndarray, slots: int) -> np.ndarray:
    """(F, slots, BODY_COLUMNS) in the order of ``shading.Body``; unused slots hold a speck far below the floor."""
    at = np.clip(times_s * POSE_RATE_HZ, 0, len(trajectory.positions_m) - 1)
    before = np.floor(at).astype(int)
    after = np.minimum(before + 1, len(trajectory.positions_m) - 1)
    weight = (at - before)[:, None, None]
    centre = trajectory.positions_m[before] * (1 - weight) + trajectory.positions_m[after] * weight
    start, end = (trajectory.rotations[index].astype(np.float64) for index in (before, after))
    end = np.where((start * end).sum(-1, keepdims=True) < 0, -end, end)
    turn = start * (1 - weight) + end * weight
    w, x, y, z = np.moveaxis(turn / np.linalg.norm(turn, axis=-1, keepdims=True), -1, 0)
    axes = np.stack([
        1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y),
        2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x),
        2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y),
    ], -1)  # fmt: skip

    rows = np.zeros((len(times_s), slots, BODY_COLUMNS))
    rows[..., 2], rows[..., 3:12], rows[..., 15], rows[..., 21] = 10 * UNUSED_BELOW_M, np.eye(3).ravel(), 1, 1e-3
    opaque = [name for name in MATERIALS if name != "glass"]
    for index, (body, colour) in enumerate(zip(trajectory.bodies, look.colours, strict=True)):
        rows[:, index, 0:3], rows[:, index, 3:12] = centre[:, index], axes[:, index]
        rows[:, index, 12:15] = _linear(COLOURS_RGB[colour])
        rows[:, index, 15:18] = np.eye(3)[SHAPES.index(body.shape)]
        rows[:, index, 18:21] = [body.material == name for name in opaque]
        rows[:, index, 21:24] = body.half_size_m, (look.seed * 0.37 + index) % 6.28, body.material == "glass"
    return rows


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


def _outline(points: Tensor, frames: Tensor, middle: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel rectangle (low, high), each (R, 2), around world points (R, K, 3); empty where not ``used`` or not seen."""
    axes = frames[:, 3:12].unflatten(1, (3, 3))
    seen = torch.einsum("rij,rkj->rki", axes, points - frames[:, None, 0:3])
    pixels = seen[..., :2] / seen[..., 2:].clamp(min=NEAREST_M) / frames[:, None, 12:13] + middle
    visible = (used & (seen[..., 2] > NEAREST_M).any(1))[:, None]
    return torch.where(visible, pixels.amin(1) - 1, 0.0), torch.where(visible, pixels.amax(1) + 1, -1.0)


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
        owner, tiles = _touched_tiles(*_outline(quad[:, slot], frames, middle, used[:, slot]), (columns, rows))
        target = owner * tiles_a_frame + tiles
        for call, size in _calls(owner, compiled):
            frame, place = owner[call], target[call]
            drawn = draw.shadow(offsets, canvas[place], tile_rows(frame, tiles[call]), bodies[frame, slot])
            canvas[place[:size]] = drawn[:size]

    box = _box_corners(frames, bodies)
    order = (centre - frames[:, None, 0:3]).norm(dim=-1).argsort(1, descending=True)
    every = torch.arange(count, device=device)
    for rank in range(slots):
        slot = order[:, rank]
        owner, tiles = _touched_tiles(*_outline(box[every, slot], frames, middle, used[every, slot]), (columns, rows))
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


def _box_corners(frames: Tensor, bodies: Tensor) -> Tensor:
    """(F, slots, 8, 3): of a box around each body; a ball's is turned to the camera, where it is the tightest."""
    signs = (-1.0, 1.0)
    cube = torch.tensor([[x, y, z] for x in signs for y in signs for z in signs], device=frames.device)
    turned = frames[:, None, 3:12].expand(-1, bodies.shape[1], -1)
    axes = torch.where(bodies[..., 15:16] > 0.5, turned, bodies[..., 3:12]).unflatten(2, (3, 3))
    return bodies[..., None, 0:3] + (cube @ axes) * bodies[..., None, 21:22]


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
    frames, bodies = _rows(trajectories, looks, starts, num_frames, float(frame_rate), width, device)
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


def body_rectangles(
    trajectories: list[Trajectory],
    looks: list[Look],
    *,
    num_frames: int,
    height: int,
    width: int,
    frame_rate: float = 24,
    start_times_s: Sequence[float],
) -> np.ndarray:
    """Where the bodies are in the pictures of ``render``: (B, T, slots, 4) left, top, right, bottom in pixels.

    A rectangle holds its body with a pixel to spare and may reach beyond the picture; that of an unused slot, or of a
    body behind the camera, has its right left of its left.
    """
    frames, bodies = _rows(trajectories, looks, start_times_s, num_frames, frame_rate, width, torch.device("cpu"))
    middle = torch.tensor([width / 2, height / 2])
    corners, used = _box_corners(frames, bodies), bodies[..., 2] > UNUSED_BELOW_M
    sides = [torch.cat(_outline(corners[:, n], frames, middle, used[:, n]), 1) for n in range(bodies.shape[1])]
    found = torch.stack(sides, 1).view(len(looks), num_frames, -1, 4)
    for clip, look in zip(found, looks, strict=True):
        if look.mirrored:
            seen = clip[..., 2] >= clip[..., 0]
            clip[seen] = clip[seen][:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([width, 0, width, 0])
    return found.numpy()


def _rows(
    trajectories: list[Trajectory],
    looks: list[Look],
    starts_s: Sequence[float] | np.ndarray,
    num_frames: int,
    frame_rate: float,
    width: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """``_frame_rows`` and ``_body_rows`` of clips, one after the other, as the shading passes take them."""
    slots = max(len(trajectory.bodies) for trajectory in trajectories)
    frames, bodies = [], []
    for trajectory, look, start_s in zip(trajectories, looks, starts_s, strict=True):
        times_s = start_s + np.arange(num_frames) / frame_rate
        frames.append(_frame_rows(trajectory, look, times_s, width))
        bodies.append(_body_rows(trajectory, look, times_s, slots))
    both = (torch.from_numpy(np.concatenate(rows)).float().to(device) for rows in (frames, bodies))
    return tuple(both)  # type: ignore[return-value]


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
