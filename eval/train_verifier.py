"""How the networks of ``verifier`` are trained, from trajectories, on one CPU core in about a quarter of an hour:

    python -m vidgen.tabletop.physics --count 6000 --seed 1 --output train.npz
    python -m eval.train_verifier --trajectories train.npz --output eval/weights

Bodies of every colour, material and shape are shown, held-out triples too: this is an instrument, not the model.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidgen.cli import run
from vidgen.errors import InputError
from vidgen.tabletop.captions import attributes, sample_look
from vidgen.tabletop.physics import load_trajectories
from vidgen.tabletop.render import camera_path, render
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
    Look,
    Trajectory,
)
from vidgen.tabletop.staging import DENSITY_KG_M3

from .verifier import (
    DIRECTIONS,
    FRAME_RATE_HZ,
    MAX_BODIES,
    PAIR_FRAMES,
    PICTURE,
    STRIDE,
    TRACK_FEATURES,
    CameraReader,
    MotionReader,
    StillDetector,
    Verifier,
    track_features,
)  # fmt: skip

VISIBLE_M_S = 0.6
"""Impacts that change a body's speed by less are not asked to be seen."""
CELLS = PICTURE // STRIDE


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


def visible_impacts_s(trajectory: Trajectory, look: Look) -> list[float]:
    """Moments of the impacts that change a speed visibly, of bodies whose middle is in the picture."""
    moments, struck = [], []
    for contact in trajectory.contacts:
        bodies = [index for index in (contact.body, contact.other) if index >= 0]
        masses = [DENSITY_KG_M3[trajectory.bodies[i].material] * _volume_m3(trajectory.bodies[i]) for i in bodies]
        if contact.impulse_ns / min(masses) >= VISIBLE_M_S:
            moments.append(contact.time_s)
            struck.append(bodies)
    if not moments:
        return []
    places = projected(trajectory, look, np.array(moments))[0]
    inside = ((places > 0) & (places < PICTURE)).all(-1)
    return [moment for moment, row, bodies in zip(moments, inside, struck, strict=True) if row[bodies].any()]


def _volume_m3(body: Body) -> float:
    return {"ball": 4 / 3 * np.pi, "cube": 8.0, "cylinder": 2 * np.pi}[body.shape] * body.half_size_m**3


def draw_look(rng: np.random.Generator, trajectory: Trajectory) -> Look:
    look = sample_look(rng, trajectory, "any")
    moving = rng.random() < 0.6
    return replace(look, camera=str(rng.choice(CAMERAS[1:])) if moving else "static")


def make_pairs(trajectories: list[Trajectory], count: int, seed: int) -> dict[str, np.ndarray]:
    """Pairs of stills half a second apart. pictures (P, 2, 128, 128, 3) uint8; bodies (P, 2, 3, 8) float: x, y, half
    size (pixels, 0 where there is none), upright, colour, shape, material, size; floor (P,) and camera (P,) indices."""
    rng = np.random.default_rng(seed)
    pictures = np.zeros((count, 2, PICTURE, PICTURE, 3), np.uint8)
    bodies = np.zeros((count, 2, MAX_BODIES, 8), np.float32)
    floor, camera = np.zeros(count, np.int64), np.zeros(count, np.int64)
    gap_s = PAIR_FRAMES / FRAME_RATE_HZ
    batch = 128
    # Scenes with equally many bodies together: the renderer's calls are the fuller for it.
    order = sorted(rng.integers(len(trajectories), size=count), key=lambda i: len(trajectories[i].bodies))
    for start in range(0, count, batch):
        chosen = [trajectories[i] for i in order[start : start + batch]]
        looks = [draw_look(rng, trajectory) for trajectory in chosen]
        latest_s = [(len(t.positions_m) - 1) / POSE_RATE_HZ - gap_s for t in chosen]
        starts_s = [float(rng.uniform(0, late)) for late in latest_s]
        size = slice(start, start + len(chosen))
        pictures[size] = render(
            chosen, looks, num_frames=2, height=PICTURE, width=PICTURE, frame_rate=1 / gap_s, start_times_s=starts_s,
            compiled=True,
        ).numpy()  # fmt: skip
        for row, (trajectory, look, at_s) in enumerate(zip(chosen, looks, starts_s, strict=True), start):
            places, half_sizes, upright = projected(trajectory, look, at_s + np.array([0.0, gap_s]))
            shown = slice(0, len(trajectory.bodies))
            bodies[row, :, shown, :2], bodies[row, :, shown, 2], bodies[row, :, shown, 3] = places, half_sizes, upright
            bodies[row, :, shown, 4:] = [
                (COLOURS.index(c), SHAPES.index(b.shape), MATERIALS.index(b.material), SIZES.index(b.size))
                for b, c in zip(trajectory.bodies, look.colours, strict=True)
            ]
            truth = attributes(trajectory, look)
            floor[row], camera[row] = FLOORS.index(truth["floor"]), CAMERAS.index(truth["camera"])
    return {"pictures": pictures, "bodies": bodies, "floor": floor, "camera": camera}


def worn(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] with the faults that generated and compressed ones have."""

    def chance() -> float:
        return float(torch.rand((), generator=generator))

    batch, size = len(pictures), pictures.shape[-2:]
    if chance() < 0.3:
        sigma = 0.4 + 1.2 * chance()
        taps = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * sigma**2))
        taps = (taps / taps.sum()).expand(3, 1, 1, 7)
        pictures = F.conv2d(F.pad(pictures, (3, 3, 3, 3), mode="replicate"), taps, groups=3)
        pictures = F.conv2d(pictures, taps.transpose(2, 3), groups=3)
    elif chance() < 0.4:
        smaller = F.interpolate(pictures, scale_factor=0.35 + 0.5 * chance(), mode="area")
        pictures = F.interpolate(smaller, size=size, mode="bilinear")
    gains = 1 + 0.06 * torch.randn(batch, 3, 1, 1, generator=generator)
    levels = 0.02 * torch.randn(batch, 3, 1, 1, generator=generator)
    pictures = pictures * gains + levels
    if chance() < 0.4:
        pictures = pictures + 0.03 * chance() * torch.randn(pictures.shape, generator=generator)
    return pictures.clamp(0, 1)


def still_loss(maps: dict[str, Tensor], bodies: Tensor, floor: Tensor) -> Tensor:
    """Loss of the detector's maps given bodies (B, 3, 8) as in ``make_pairs`` and floor (B,)."""
    middles = (torch.arange(CELLS) + 0.5) * STRIDE
    x, y = bodies[..., 0, None, None], bodies[..., 1, None, None]  # (B, 3, 1, 1)
    inside = (bodies[..., 2] > 0) & (bodies[..., :2] > 0).all(-1) & (bodies[..., :2] < PICTURE).all(-1)
    square = ((x - middles) ** 2 + (y - middles[:, None]) ** 2) / STRIDE**2  # (B, 3, H, W)
    square = torch.where(inside[..., None, None], square, 1e4)
    near, owner = square.min(1)
    target = torch.exp(-near / (2 * 0.6**2))
    centre = (((x - middles).abs() <= STRIDE / 2) & ((y - middles[:, None]).abs() <= STRIDE / 2)).logical_and(
        inside[..., None, None]
    )
    centre = centre.any(1)
    logits = maps["heat"][:, 0]
    # The focal loss of "Objects as Points", equation 1, with alpha 2 and beta 4.
    hit = (1 - logits.sigmoid()) ** 2 * F.logsigmoid(logits)
    miss = (1 - target) ** 4 * logits.sigmoid() ** 2 * F.logsigmoid(-logits)
    count = centre.sum().clamp(min=1)
    loss = -torch.where(centre, hit, miss).sum() / count

    weight = torch.where(near < 2.3, torch.exp(-near / 2), 0.0)  # the cells around a centre learn to tell as well
    total = weight.sum().clamp(min=1)
    told = torch.gather(bodies, 1, owner.flatten(1)[..., None].expand(-1, -1, 8)).unflatten(1, (CELLS, CELLS))
    middle = torch.stack([middles.expand(CELLS, CELLS), middles[:, None].expand(CELLS, CELLS)], -1)
    place = (told[..., :2] - middle) / STRIDE
    apart = F.smooth_l1_loss(maps["place"].permute(0, 2, 3, 1), place, beta=0.1, reduction="none").sum(-1)
    extent = torch.log(told[..., 2].clamp(min=1) / 16)
    apart = apart + F.smooth_l1_loss(maps["extent"][:, 0], extent, beta=0.1, reduction="none")
    stands = F.binary_cross_entropy_with_logits(maps["upright"][:, 0], (told[..., 3] > 0.7).float(), reduction="none")
    apart = apart + 0.5 * stands * (told[..., 5] == SHAPES.index("cylinder"))
    for column, name in enumerate(("colour", "shape", "material", "size"), 4):
        apart = apart + F.cross_entropy(maps[name], told[..., column].long(), reduction="none")
    return loss + (weight * apart).sum() / total + 0.5 * F.cross_entropy(maps["floor"], floor)


def train(network: nn.Module, steps: int, learning_rate: float, losses: Iterator[Tensor], name: str) -> None:
    """AdamW with a one-cycle schedule over ``losses``, each made when it is asked for."""
    optimiser = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps, pct_start=0.15)
    network.train()
    began_s, mean = time.process_time(), 0.0
    for step in range(steps):
        loss = next(losses)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        mean += (float(loss.detach()) - mean) / min(step + 1, 50)
        if step % 50 == 49 or step == steps - 1:
            print(f"{name} {step + 1}/{steps} loss {mean:.3f}, {time.process_time() - began_s:.0f} CPU s", flush=True)
    network.eval()


def still_losses(network: StillDetector, pairs: dict[str, np.ndarray], batch: int, seed: int) -> Iterator[Tensor]:
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    pictures, bodies = pairs["pictures"].reshape(-1, PICTURE, PICTURE, 3), pairs["bodies"].reshape(-1, MAX_BODIES, 8)
    while True:
        order = rng.permutation(len(pictures))
        for start in range(0, len(order) - batch + 1, batch):
            rows = np.sort(order[start : start + batch])
            told = torch.from_numpy(bodies[rows])
            shown = torch.from_numpy(pictures[rows])
            if rng.random() < 0.5:
                shown = shown.flip(2)
                told[..., 0] = PICTURE - told[..., 0]
            shown = worn(shown.permute(0, 3, 1, 2).float() / 255, generator)
            maps = network(shown.contiguous(memory_format=torch.channels_last))
            yield still_loss(maps, told, torch.from_numpy(pairs["floor"][rows // 2]))


def camera_losses(network: CameraReader, pairs: dict[str, np.ndarray], batch: int, seed: int) -> Iterator[Tensor]:
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    while True:
        order = rng.permutation(len(pairs["camera"]))
        for start in range(0, len(order) - batch + 1, batch):
            rows = np.sort(order[start : start + batch])
            shown = torch.from_numpy(pairs["pictures"][rows]).permute(0, 1, 4, 2, 3).float() / 255
            shown = worn(shown.flatten(0, 1), generator).unflatten(0, (-1, 2))
            yield F.cross_entropy(network(shown), torch.from_numpy(pairs["camera"][rows]))


def make_tracks(trajectories: list[Trajectory], count: int, num_frames: int, seed: int) -> dict[str, Tensor]:
    """True tracks with a detector's faults. features (N, 3, TRACK_FEATURES, T), impacts (N, T) from 0 to 1, and the
    indices action, direction (-1 where there is none) and main (N,), the row of body 0."""
    rng = np.random.default_rng(seed)
    features = np.zeros((count, MAX_BODIES, TRACK_FEATURES, num_frames), np.float32)
    impacts = np.zeros((count, num_frames), np.float32)
    action, direction, main = (np.full(count, -1) for _ in range(3))
    frames = np.arange(num_frames)
    for clip in range(count):
        trajectory = trajectories[clip % len(trajectories)]
        look = draw_look(rng, trajectory)
        places, half_sizes, upright = projected(trajectory, look, frames / FRAME_RATE_HZ)
        noise_px = rng.choice((0.2, 0.4, 0.9))
        missing = rng.choice((0.0, 0.02, 0.1))
        rows = rng.permutation(MAX_BODIES)[: len(trajectory.bodies)]
        for body, row in enumerate(rows):
            at = places[:, body] + noise_px * rng.standard_normal((num_frames, 2))
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
            listed = frames[found]
            features[clip, row] = track_features(
                listed.tolist(), at[found], extents[found], np.broadcast_to(shape, (len(listed), 3)), stands[found],
                num_frames,
            )  # fmt: skip
        for moment_s in visible_impacts_s(trajectory, look):
            bump = np.exp(-((frames - moment_s * FRAME_RATE_HZ) ** 2) / (2 * 0.7**2))
            impacts[clip] = np.maximum(impacts[clip], bump)
        truth = attributes(trajectory, look)
        action[clip], main[clip] = ACTIONS.index(truth["action"]), rows[0]
        if truth["direction"]:
            direction[clip] = DIRECTIONS.index(truth["direction"])
    arrays = {"features": features, "impacts": impacts, "action": action, "direction": direction, "main": main}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def motion_loss(told: dict[str, Tensor], truth: dict[str, Tensor]) -> Tensor:
    there = truth["features"].abs().amax((2, 3)) > 0
    seen = there.gather(1, truth["main"][:, None])[:, 0]  # a body that acts out of view cannot be found
    main = torch.where(seen, truth["main"], -1)
    loss = F.cross_entropy(told["action"], truth["action"])
    loss = loss + 0.5 * F.cross_entropy(told["direction"], truth["direction"], ignore_index=-1)
    loss = loss + 0.5 * F.cross_entropy(told["main"], main, ignore_index=-1)
    return loss + 4 * F.binary_cross_entropy_with_logits(told["impact"], truth["impacts"])


def motion_losses(network: MotionReader, tracks: dict[str, Tensor], batch: int, seed: int) -> Iterator[Tensor]:
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(tracks["features"]))
        for start in range(0, len(order) - batch + 1, batch):
            rows = torch.from_numpy(order[start : start + batch])
            truth = {name: tensor[rows] for name, tensor in tracks.items()}
            yield motion_loss(network(truth["features"]), truth)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.train_verifier", description=__doc__.split("\n")[0])
    parser.add_argument("--trajectories", type=Path, required=True, help="as vidgen.tabletop.physics writes them")
    parser.add_argument("--output", type=Path, required=True, help="folder of the weights")
    parser.add_argument("--pairs", type=int, default=10000, help="pairs of stills to render")
    parser.add_argument("--pictures", type=int, default=72000, help="stills that the detector is shown")
    parser.add_argument("--tracks", type=int, default=24000, help="clips whose tracks are made")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="keep the rendered stills in this folder (1 GB) and use them again")
    parser.add_argument("--only", choices=("detector", "motion", "camera"), help="keep the others as they are")
    args = parser.parse_args()
    if min(args.pairs, args.pictures, args.tracks) < 64:
        raise InputError("--pairs, --pictures and --tracks must be at least 64")
    trajectories = load_trajectories(args.trajectories)
    torch.manual_seed(args.seed)
    verifier = Verifier.load(args.output) if args.only else Verifier()
    parts = [args.only] if args.only else ["motion", "camera", "detector"]
    if "motion" in parts:
        tracks = make_tracks(trajectories, args.tracks, 49, args.seed)
        losses = motion_losses(verifier.motion, tracks, 64, args.seed)
        train(verifier.motion, 4 * args.tracks // 64, 2e-3, losses, "motion")
        verifier.save(args.output)
    if {"camera", "detector"} & set(parts):
        pairs = cached_pairs(trajectories, args.pairs, args.seed, args.cache)
    if "camera" in parts:
        losses = camera_losses(verifier.camera, pairs, 64, args.seed)
        train(verifier.camera, 5 * args.pairs // 64, 2e-3, losses, "camera")
        verifier.save(args.output)
    if "detector" in parts:
        verifier.detector.to(memory_format=torch.channels_last)
        losses = still_losses(verifier.detector, pairs, 48, args.seed)
        train(verifier.detector, args.pictures // 48, 3e-3, losses, "detector")
        verifier.save(args.output)


def cached_pairs(trajectories: list[Trajectory], count: int, seed: int, folder: Path | None) -> dict[str, np.ndarray]:
    names = ("pictures", "bodies", "floor", "camera")
    if folder is None:
        return make_pairs(trajectories, count, seed)
    paths = {name: folder / f"{name}-{count}-{seed}.npy" for name in names}
    if not all(path.exists() for path in paths.values()):
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in make_pairs(trajectories, count, seed).items():
            np.save(paths[name], array)
    return {name: np.load(path, mmap_mode="r" if name == "pictures" else None) for name, path in paths.items()}


if __name__ == "__main__":
    run(main)
