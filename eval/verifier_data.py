"""What the tabletop instrument learns from: pictures and tracks of which the truth is known."""

import shutil
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidgen.tabletop.captions import attributes, sample_look
from vidgen.tabletop.render import COMPILE_FROM_FRAMES, render
from vidgen.tabletop.scene import (
    ACTIONS,
    CAMERAS,
    COLOURS,
    FLOORS,
    MATERIALS,
    POSE_RATE_HZ,
    SHAPES,
    SIZES,
    Body,
    Contact,
    Look,
    Trajectory,
)
from vidgen.tabletop.shot import camera_path
from vidgen.tabletop.staging import DENSITY_KG_M3

from .networks import CROP, DIRECTIONS, FRAME_RATE_HZ, MAX_BODIES, PAIR_FRAMES, PICTURE, SMALL, TRACK_FEATURES, WIDE
from .tracks import track_features

RENDERED_AT_ONCE = 256
VISIBLE_M_S = {True: 0.6, False: 0.25}
"""Impacts that change a body's speed by less are not asked to be seen; on the floor, and between bodies."""
TURN_PX = 1.0
"""... nor those after which a body goes on as it came but for less than this, in pixels of 128 a frame."""
SHOTS, SHOT_RATE_HZ, WIDE_AT_ONCE = 16, 8, 64
WEAK = 0.3
"""Blows of less than this share of ``VISIBLE_M_S`` are none to the network that tells impacts; of more, up to what is
asked for, either answer is right."""
JITTER = 4
"""Pixels by which a body's centre may be missed when it is cut out."""
TOLD = ("x", "y", "half_size", "upright", "colour", "shape", "material")
"""What is known of a body in a picture: pixels, 0 to 1, and indices of words."""


def projected(trajectory: Trajectory, look: Look, times_s: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where bodies are in the picture: places (F, N, 2) and half sizes (F, N) in pixels, uprightness (F, N) 0 to 1."""
    duration_s = (len(trajectory.positions_m) - 1) / POSE_RATE_HZ
    path = camera_path(look, times_s, duration_s)
    at = np.clip(times_s * POSE_RATE_HZ, 0, len(trajectory.positions_m) - 1)
    before = np.floor(at).astype(int)
    after = np.minimum(before + 1, len(trajectory.positions_m) - 1)
    weight = (at - before)[:, None, None]
    centres = trajectory.positions_m[before] * (1 - weight) + trajectory.positions_m[after] * weight
    seen = np.einsum("fij,fnj->fni", path.axes, centres - path.eye_m[:, None])
    pixels = PICTURE / 2 / (seen[..., 2] * path.half_width[:, None])
    places = seen[..., :2] * pixels[..., None] + PICTURE / 2
    if look.mirrored:
        places[..., 0] = PICTURE - places[..., 0]
    _, x, y, _ = np.moveaxis(trajectory.rotations[before], -1, 0)
    half_m = np.array([body.half_size_m for body in trajectory.bodies])
    return places, pixels * half_m, np.abs(1 - 2 * (x * x + y * y))


def blows(trajectory: Trajectory, contact: Contact) -> dict[int, float]:
    """By how much an impact changes the speed of each body in it, over what is asked to be seen (``VISIBLE_M_S``)."""
    struck = {}
    for index in (contact.body, contact.other):
        if index >= 0:
            body = trajectory.bodies[index]
            mass_kg = DENSITY_KG_M3[body.material] * _volume_m3(body)
            struck[index] = contact.impulse_ns / mass_kg / VISIBLE_M_S[contact.other < 0]
    return struck


def visible_blows(trajectory: Trajectory, contact: Contact, path: np.ndarray, at: float) -> dict[int, float]:
    """``blows``, but less than 1, which is not asked to be seen, of bodies out of the picture or without a turn.

    A body turns if its step from frame to frame after the blow is another one than before it, by ``TURN_PX`` or more:
    of a bounce that gravity undoes within a frame, or of one that tips a body over its edge, the picture shows nothing.

    Args:
        path: (F, N, 2) pixels: where the N bodies are in each frame.
        at: the blow's place between the frames.
    """
    frame = int(np.floor(at))
    if not 1 <= frame < len(path) - 2:  # no step before it, or none after it
        return {body: min(strength, 0.99) for body, strength in blows(trajectory, contact).items()}
    steps = np.diff(path[frame - 1 : frame + 3], axis=0)  # before, across, after
    turns = np.linalg.norm(steps[2] - steps[0], axis=-1) >= TURN_PX
    here = path[frame] + (at - frame) * steps[1]
    shown = turns & np.all((here > 0) & (here < PICTURE), axis=-1)
    struck = blows(trajectory, contact).items()
    return {body: strength if shown[body] else min(strength, 0.99) for body, strength in struck}


def visible_impacts_s(trajectory: Trajectory, look: Look) -> list[float]:
    """Moments of the impacts that can be seen, see ``visible_blows``."""
    path = projected(trajectory, look, np.arange(len(trajectory.positions_m)) / FRAME_RATE_HZ)[0]
    return [
        contact.time_s
        for contact in trajectory.contacts
        if max(visible_blows(trajectory, contact, path, contact.time_s * FRAME_RATE_HZ).values()) >= 1
    ]


def mark_blow(impacts: np.ndarray, weights: np.ndarray, at: float, strength: float) -> None:
    """Enter a blow at frame ``at`` into the row of a body's track: impacts (T,), 0 to 1, and how much that matters."""
    from_it = np.abs(np.arange(len(impacts)) - at)
    if strength >= 1:
        impacts[:] = np.maximum(impacts, np.exp(-(from_it**2) / (2 * 0.7**2)))
    elif strength >= WEAK:
        weights[from_it < 1.6] = 0.0


def _volume_m3(body: Body) -> float:
    return {"ball": 4 / 3 * np.pi, "cube": 8.0, "cylinder": 2 * np.pi}[body.shape] * body.half_size_m**3


def draw_look(rng: np.random.Generator, trajectory: Trajectory) -> Look:
    look = sample_look(rng, trajectory, "any")
    moving = rng.random() < 0.6
    return replace(look, camera=str(rng.choice(CAMERAS[1:])) if moving else "static")


def make_pairs(trajectories: list[Trajectory], count: int, seed: int) -> dict[str, np.ndarray]:
    """P pairs of stills half a second apart, and the C bodies in them close up.

    Returns:
        pictures: (P, 2, 64, 64, 3) uint8.
        bodies: (P, 2, 3, 7) float32, as ``TOLD``; a half size of 0 where there is none.
        floor, camera: (P,) indices.
        pieces: (C, 56, 56, 3) uint8, centred on a body to the nearest pixel.
        told: (C, 7) float32, as ``TOLD``, places relative to the middle of the piece.
    """
    rng = np.random.default_rng(seed)
    pictures = np.zeros((count, 2, SMALL, SMALL, 3), np.uint8)
    bodies = np.zeros((count, 2, MAX_BODIES, len(TOLD)), np.float32)
    floor, camera = np.zeros(count, np.int64), np.zeros(count, np.int64)
    pieces, told = [], []
    compiled = 2 * count >= COMPILE_FROM_FRAMES and shutil.which("g++") is not None
    gap_s, reach = PAIR_FRAMES / FRAME_RATE_HZ, CROP // 2 + JITTER
    # Scenes with equally many bodies together: the renderer's calls are the fuller for it.
    order = sorted(rng.integers(len(trajectories), size=count).tolist(), key=lambda i: len(trajectories[i].bodies))
    for start in range(0, count, RENDERED_AT_ONCE):
        chosen = [trajectories[i] for i in order[start : start + RENDERED_AT_ONCE]]
        looks = [draw_look(rng, trajectory) for trajectory in chosen]
        latest_s = [(len(t.positions_m) - 1) / POSE_RATE_HZ - gap_s for t in chosen]
        starts_s = [float(rng.uniform(0, late)) for late in latest_s]
        large = render(
            chosen, looks, num_frames=2, height=PICTURE, width=PICTURE, frame_rate=1 / gap_s, start_times_s=starts_s,
            compiled=compiled,
        ).numpy()  # fmt: skip
        small = large.reshape(len(chosen), 2, SMALL, PICTURE // SMALL, SMALL, PICTURE // SMALL, 3).mean((3, 5))
        pictures[start : start + len(chosen)] = np.rint(small)
        padded = np.pad(large, ((0, 0), (0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
        for row, (trajectory, look, at_s) in enumerate(zip(chosen, looks, starts_s, strict=True)):
            truth = attributes(trajectory, look)
            floor[start + row], camera[start + row] = FLOORS.index(truth["floor"]), CAMERAS.index(truth["camera"])
            places, half_sizes, upright = projected(trajectory, look, at_s + np.array([0.0, gap_s]))
            for body, solid in enumerate(trajectory.bodies):
                words = [COLOURS.index(look.colours[body]), SHAPES.index(solid.shape), MATERIALS.index(solid.material)]
                for shot in range(2):
                    x, y = places[shot, body]
                    facts = [x, y, half_sizes[shot, body], upright[shot, body], *words]
                    bodies[start + row, shot, body] = facts
                    if 0 < x < PICTURE and 0 < y < PICTURE:
                        column, line = round(x), round(y)
                        piece = padded[row, shot, line : line + 2 * reach, column : column + 2 * reach]
                        pieces.append(piece.copy())
                        told.append([x - column, y - line, *facts[2:]])
    return {
        "pictures": pictures,
        "bodies": bodies,
        "floor": floor,
        "camera": camera,
        "pieces": np.stack(pieces),
        "told": np.array(told, np.float32),
    }


def make_wide(trajectories: list[Trajectory], count: int, seed: int) -> dict[str, np.ndarray]:
    """What ``PlaceReader`` learns from: the bodies of ``count`` scenes, at ``SHOTS`` moments each.

    Returns:
        pieces: (C, 48, 48, 3) uint8, drawn at half size, each around a body to the nearest pixel of these.
        told: (C, 3) float32: the body's (x, y) from the middle of the piece, and half its size, in pixels of 128.
    """
    rng = np.random.default_rng(seed)
    reach = WIDE // 4 + JITTER
    pieces, told = [], []
    order = sorted(rng.integers(len(trajectories), size=count).tolist(), key=lambda i: len(trajectories[i].bodies))
    for first in range(0, count, WIDE_AT_ONCE):
        chosen = [trajectories[i] for i in order[first : first + WIDE_AT_ONCE]]
        looks = [sample_look(rng, trajectory, "any") for trajectory in chosen]
        starts_s = [float(rng.uniform(0, 1 / SHOT_RATE_HZ)) for _ in chosen]
        pictures = render(
            chosen, looks, num_frames=SHOTS, height=SMALL, width=SMALL, frame_rate=SHOT_RATE_HZ, start_times_s=starts_s,
            compiled=False,
        ).numpy()  # fmt: skip
        padded = np.pad(pictures, ((0, 0), (0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
        for row, (trajectory, look, at_s) in enumerate(zip(chosen, looks, starts_s, strict=True)):
            places, half_sizes, _ = projected(trajectory, look, at_s + np.arange(SHOTS) / SHOT_RATE_HZ)
            for shot, body in np.ndindex(half_sizes.shape):
                x, y = places[shot, body]
                if 0 < x < PICTURE and 0 < y < PICTURE:
                    column, line = round(x / 2), round(y / 2)
                    pieces.append(padded[row, shot, line : line + 2 * reach, column : column + 2 * reach].copy())
                    told.append([x - 2 * column, y - 2 * line, half_sizes[shot, body]])
    return {"pieces": np.stack(pieces), "told": np.array(told, np.float32)}


def worn(pictures: Tensor, generator: torch.Generator, scale: float = 1.0) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] with the faults that generated and compressed ones have; blur by ``scale``."""

    def chance() -> float:
        return float(torch.rand((), generator=generator))

    batch, size = len(pictures), pictures.shape[-2:]
    if chance() < 0.3:
        sigma = (0.4 + 1.2 * chance()) * scale
        taps = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * sigma**2))
        taps = (taps / taps.sum()).expand(3, 1, 1, 7)
        pictures = F.conv2d(F.pad(pictures, (3, 3, 3, 3), mode="replicate"), taps, groups=3)
        pictures = F.conv2d(pictures, taps.transpose(2, 3), groups=3)
    elif chance() < 0.4:
        smaller = F.interpolate(pictures, scale_factor=1 - (0.15 + 0.5 * chance()) * scale, mode="area")
        pictures = F.interpolate(smaller, size=size, mode="bilinear")
    gains = 1 + 0.06 * torch.randn(batch, 3, 1, 1, generator=generator)
    levels = 0.02 * torch.randn(batch, 3, 1, 1, generator=generator)
    pictures = pictures * gains + levels
    if chance() < 0.4:
        pictures = pictures + 0.03 * chance() * torch.randn(pictures.shape, generator=generator)
    return pictures.clamp(0, 1)


def make_tracks(trajectories: list[Trajectory], count: int, num_frames: int, seed: int) -> dict[str, Tensor]:
    """True tracks of N clips, with a detector's faults.

    Returns:
        features: (N, 3, TRACK_FEATURES, T), the bodies in random rows.
        impacts: (N, 3, T) from 0 to 1: is the body in this row struck?
        weights: (N, 3, T): how much that matters; 0 around blows too weak to be asked for, where either is right.
        action, direction, main: (N,) indices, -1 where there is no direction; main is the row of body 0.
        size: (N, 3) indices, -1 where there is no body.
    """
    rng = np.random.default_rng(seed)
    features = np.zeros((count, MAX_BODIES, TRACK_FEATURES, num_frames), np.float32)
    impacts = np.zeros((count, MAX_BODIES, num_frames), np.float32)
    weights = np.ones_like(impacts)
    action, direction, main = (np.full(count, -1) for _ in range(3))
    size = np.full((count, MAX_BODIES), -1)
    frames = np.arange(num_frames)
    for clip in range(count):
        trajectory = trajectories[clip % len(trajectories)]
        look = draw_look(rng, trajectory)
        places, half_sizes, upright = projected(trajectory, look, frames / FRAME_RATE_HZ)
        noise_px = rng.choice((0.05, 0.1, 0.2, 0.4, 0.8))
        wobble = rng.choice((0.02, 0.05, 0.1))
        missing = rng.choice((0.0, 0.02, 0.1))
        rows = rng.permutation(MAX_BODIES)[: len(trajectory.bodies)]
        for body, row in enumerate(rows):
            slow = rng.standard_normal((2, len(frames[::8])))
            drift = np.stack(
                [np.interp(frames, frames[::8], values) for values in slow], 1
            )  # errors that change slowly
            at = places[:, body] + noise_px * rng.standard_normal((num_frames, 2)) + rng.choice((0.2, 0.5)) * drift
            # A body's centre is mistaken by up to a tenth of its half size, otherwise in every posture.
            turned = trajectory.rotations[np.minimum(frames, len(trajectory.rotations) - 1), body]
            posture = (turned[:, :, None] * turned[:, None]).reshape(num_frames, 16)
            at += wobble * half_sizes[:, body, None] * (posture @ rng.standard_normal((16, 2)))
            margin = rng.uniform(0, 5)
            found = ((at > margin) & (at < PICTURE - margin)).all(1) & (rng.random(num_frames) >= missing)
            if rng.random() < 0.1:
                gap = rng.integers(num_frames)
                found[gap : gap + rng.integers(2, 6)] = False
            if found.sum() < 2:
                continue
            extents = half_sizes[:, body] * np.exp(0.05 * rng.standard_normal(num_frames))
            odds = 5 * np.eye(3)[SHAPES.index(trajectory.bodies[body].shape)] + rng.standard_normal(3)
            shape = np.exp(odds) / np.exp(odds).sum()
            stands = np.clip((upright[:, body] > 0.7) + 0.15 * rng.standard_normal(num_frames), 0, 1)
            if trajectory.bodies[body].shape != "cylinder":
                stands = rng.random() * np.ones(num_frames)
            size[clip, row] = SIZES.index(trajectory.bodies[body].size)
            listed = frames[found]
            features[clip, row] = track_features(
                listed.tolist(), at[found], extents[found], np.broadcast_to(shape, (len(listed), 3)), stands[found],
                num_frames,
            )  # fmt: skip
        for contact in trajectory.contacts:
            at = contact.time_s * FRAME_RATE_HZ
            for body, strength in visible_blows(trajectory, contact, places, at).items():
                mark_blow(impacts[clip, rows[body]], weights[clip, rows[body]], at, strength)
        weights[clip] = np.maximum(weights[clip], impacts[clip])
        truth = attributes(trajectory, look)
        action[clip], main[clip] = ACTIONS.index(truth["action"]), rows[0]
        if truth["direction"]:
            direction[clip] = DIRECTIONS.index(truth["direction"])
    arrays = {"features": features, "impacts": impacts, "weights": weights, "action": action, "direction": direction,
              "main": main, "size": size}  # fmt: skip
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
