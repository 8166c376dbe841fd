"""What a shot of the tabletop world shows: the camera's path, the numbers of each frame and body that ``render`` draws
from, and where the bodies are in the picture."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .rays import BODY_COLUMNS
from .scene import FLOORS, MATERIALS, POSE_RATE_HZ, SHAPES, Look, Trajectory

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


def shot_rows(
    trajectories: list[Trajectory],
    looks: list[Look],
    starts_s: Sequence[float] | np.ndarray,
    num_frames: int,
    frame_rate: float,
    width: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """The rows of frames and of bodies of clips, one after the other, as the shading passes take them."""
    slots = max(len(trajectory.bodies) for trajectory in trajectories)
    frames, bodies = [], []
    for trajectory, look, start_s in zip(trajectories, looks, starts_s, strict=True):
        times_s = start_s + np.arange(num_frames) / frame_rate
        frames.append(_frame_rows(trajectory, look, times_s, width))
        bodies.append(_body_rows(trajectory, look, times_s, slots))
    both = (torch.from_numpy(np.concatenate(rows)).float().to(device) for rows in (frames, bodies))
    return tuple(both)  # type: ignore[return-value]


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
    frames, bodies = shot_rows(trajectories, looks, start_times_s, num_frames, frame_rate, width, torch.device("cpu"))
    middle = torch.tensor([width / 2, height / 2])
    corners, used = box_corners(frames, bodies), bodies[..., 2] > UNUSED_BELOW_M
    sides = [torch.cat(outline(corners[:, n], frames, middle, used[:, n]), 1) for n in range(bodies.shape[1])]
    found = torch.stack(sides, 1).view(len(looks), num_frames, -1, 4)
    for clip, look in zip(found, looks, strict=True):
        if look.mirrored:
            seen = clip[..., 2] >= clip[..., 0]
            clip[seen] = clip[seen][:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([width, 0, width, 0])
    return found.numpy()


def outline(points: Tensor, frames: Tensor, middle: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel rectangle (low, high), each (R, 2), around world points (R, K, 3); empty where not ``used`` or not seen."""
    axes = frames[:, 3:12].unflatten(1, (3, 3))
    seen = torch.einsum("rij,rkj->rki", axes, points - frames[:, None, 0:3])
    pixels = seen[..., :2] / seen[..., 2:].clamp(min=NEAREST_M) / frames[:, None, 12:13] + middle
    visible = (used & (seen[..., 2] > NEAREST_M).any(1))[:, None]
    return torch.where(visible, pixels.amin(1) - 1, 0.0), torch.where(visible, pixels.amax(1) + 1, -1.0)


def box_corners(frames: Tensor, bodies: Tensor) -> Tensor:
    """(F, slots, 8, 3): of a box around each body; a ball's is turned to the camera, where it is the tightest."""
    signs = (-1.0, 1.0)
    cube = torch.tensor([[x, y, z] for x in signs for y in signs for z in signs], device=frames.device)
    turned = frames[:, None, 3:12].expand(-1, bodies.shape[1], -1)
    axes = torch.where(bodies[..., 15:16] > 0.5, turned, bodies[..., 3:12]).unflatten(2, (3, 3))
    return bodies[..., None, 0:3] + (cube @ axes) * bodies[..., None, 21:22]
