"""How the networks of ``verifier`` are trained, from trajectories, on one CPU core in about ten minutes:

    python -m vidgen.tabletop.physics --count 6000 --seed 1 --output train.npz
    python -m eval.train_verifier --trajectories train.npz --output eval/weights

Bodies of every colour, material and shape are shown, held-out triples too: this is an instrument, not the model. The
shipped weights were then trained on with ``--seed 1 --only locator motion`` and ``--seed 1 --only body --rounds 0.5``.
What impacts are seen by is trained anew, and in one round, by ``--only place impact --anew --seed 5``, the other
networks staying as they are. The shipped ``place`` came from 1,500 steps of it on 900 scenes, the shipped ``impact``
from three rounds on made-up tracks and 700 more steps with 320 films.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidgen.cli import run
from vidgen.errors import InputError
from vidgen.tabletop.physics import load_trajectories
from vidgen.tabletop.scene import SHAPES, Trajectory

from .films import film, read_tracks
from .networks import (
    CELLS,
    CROP,
    LOOKS,
    MAX_BODIES,
    PICTURE,
    SMALL,
    WIDE,
    BodyReader,
    CameraReader,
    ImpactReader,
    Locator,
    MotionReader,
    PlaceReader,
)
from .verifier import Verifier
from .verifier_data import JITTER, TOLD, make_pairs, make_tracks, make_wide, worn

PARTS = ["camera", "locator", "body", "place", "motion", "impact"]
MIRRORED = [1, 3]
"""Features of a track (``tracks.track_features``) that change their sign in a mirror: x, and the step along x."""
BATCH = 64
FEWEST = 64
"""Scenes, and examples of each kind: no step may lack rows."""


def map_loss(maps: dict[str, Tensor], bodies: Tensor, floor: Tensor) -> Tensor:
    """Loss of the locator's maps, given bodies (B, 3, 7) as ``TOLD`` and floor (B,)."""
    cell = PICTURE / CELLS
    middles = (torch.arange(CELLS) + 0.5) * cell
    x, y = bodies[..., 0, None, None], bodies[..., 1, None, None]  # (B, 3, 1, 1)
    inside = (bodies[..., 2] > 0) & (bodies[..., :2] > 0).all(-1) & (bodies[..., :2] < PICTURE).all(-1)
    across, down = (x - middles) / cell, (y - middles[:, None]) / cell
    square = torch.where(inside[..., None, None], across**2 + down**2, 1e4)  # (B, 3, 16, 16)
    near, owner = square.min(1)
    target = torch.exp(-near / (2 * 0.6**2))
    centre = ((across.abs() <= 0.5) & (down.abs() <= 0.5) & inside[..., None, None]).any(1)
    logits = maps["heat"][:, 0]
    # The focal loss of "Objects as Points", equation 1, with alpha 2 and beta 4.
    hit = (1 - logits.sigmoid()) ** 2 * F.logsigmoid(logits)
    miss = (1 - target) ** 4 * logits.sigmoid() ** 2 * F.logsigmoid(-logits)
    loss = -torch.where(centre, hit, miss).sum() / centre.sum().clamp(min=1)
    weight = torch.where(near < 2.3, torch.exp(-near / 2), 0.0)  # the cells around a centre learn to tell as well
    shape = (-1, -1, CELLS, CELLS)
    places = torch.stack([part.expand(shape).gather(1, owner[:, None])[:, 0] for part in (across, down)], 1)
    apart = F.smooth_l1_loss(maps["place"], places, beta=0.1, reduction="none").sum(1)
    loss = loss + (weight * apart).sum() / weight.sum().clamp(min=1)
    return loss + 0.5 * F.cross_entropy(maps["floor"], floor)


def body_loss(said: dict[str, Tensor], told: Tensor) -> Tensor:
    """Loss of what is said of bodies close up, given (B, 7) as ``TOLD``, places relative to the piece's middle."""
    columns = {name: told[:, index] for index, name in enumerate(TOLD)}
    loss = F.smooth_l1_loss(said["shift"], told[:, :2] / 16, beta=0.05)
    loss = loss + F.smooth_l1_loss(said["extent"][:, 0], torch.log(columns["half_size"] / 16), beta=0.05)
    stands = (columns["upright"] > 0.7).float()
    stands = F.binary_cross_entropy_with_logits(said["upright"][:, 0], stands, reduction="none")
    loss = loss + 0.5 * (stands * (columns["shape"] == SHAPES.index("cylinder"))).mean()
    return loss + sum(F.cross_entropy(said[name], columns[name].long()) for name in LOOKS)


def place_loss(said: Tensor, told: Tensor) -> Tensor:
    """Loss of where middles are said to be (B, 3), as ``PlaceReader`` says it, given (B, 3) in pixels."""
    truth = torch.cat([told[:, :2] / 16, torch.log(told[:, 2:] / 16)], 1)
    return 10 * F.smooth_l1_loss(said, truth, beta=0.02)


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


def batches(count: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Rows for one step after another, every row once in a round, without end.

    Raises:
        InputError: fewer rows than a step takes.
    """
    if count < size:
        raise InputError(f"{count} examples are too few for steps of {size}")
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(count)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


def locator_losses(network: Locator, pairs: dict[str, np.ndarray], batch: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pictures = pairs["pictures"].reshape(-1, SMALL, SMALL, 3)
    bodies = pairs["bodies"].reshape(-1, MAX_BODIES, len(TOLD))
    for step, rows in enumerate(batches(len(pictures), batch, seed)):
        shown, told = torch.from_numpy(pictures[rows]), torch.from_numpy(bodies[rows])
        if step % 2:
            shown = shown.flip(2)
            told[..., 0] = PICTURE - told[..., 0]
        shown = worn(shown.permute(0, 3, 1, 2).float() / 255, generator, 0.5)
        maps = network(shown.contiguous(memory_format=torch.channels_last))
        yield map_loss(maps, told, torch.from_numpy(pairs["floor"][rows // 2]))


def body_losses(network: BodyReader, pairs: dict[str, np.ndarray], batch: int, seed: int) -> Iterator[Tensor]:
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    for step, rows in enumerate(batches(len(pairs["pieces"]), batch, seed)):
        moved = rng.integers(-JITTER, JITTER + 1, (batch, 2))
        corners = (moved + JITTER).tolist()
        shown = np.stack([
            pairs["pieces"][row, y : y + CROP, x : x + CROP] for row, (x, y) in zip(rows, corners, strict=True)
        ])  # fmt: skip
        told = torch.from_numpy(pairs["told"][rows])
        told[:, :2] -= torch.from_numpy(moved)
        pieces = torch.from_numpy(shown)
        if step % 2:
            pieces = pieces.flip(2)
            told[:, 0] *= -1
        pieces = worn(pieces.permute(0, 3, 1, 2).float() / 255, generator)
        yield body_loss(network(pieces.contiguous(memory_format=torch.channels_last)), told)


def place_losses(network: PlaceReader, wide: dict[str, np.ndarray], batch: int, seed: int) -> Iterator[Tensor]:
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    for step, rows in enumerate(batches(len(wide["pieces"]), batch, seed)):
        moved = rng.integers(-JITTER, JITTER + 1, (batch, 2))
        corners = (moved + JITTER).tolist()
        shown = np.stack([
            wide["pieces"][row, y : y + WIDE // 2, x : x + WIDE // 2] for row, (x, y) in zip(rows, corners, strict=True)
        ])  # fmt: skip
        told = torch.from_numpy(wide["told"][rows])
        told[:, :2] -= 2 * torch.from_numpy(moved)
        pieces = torch.from_numpy(shown)
        if step % 2:
            pieces = pieces.flip(2)
            told[:, 0] *= -1
        pieces = worn(pieces.permute(0, 3, 1, 2).float() / 255, generator, 0.5)
        yield place_loss(network(pieces.contiguous(memory_format=torch.channels_last)), told)


@torch.no_grad()
def camera_fits(pairs: dict[str, np.ndarray], seed: int) -> Tensor:
    """(P, shifts, 8, 8) of all pairs, half of them worn."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, len(pairs["pictures"]), 64):
        shown = torch.from_numpy(pairs["pictures"][start : start + 64]).permute(0, 1, 4, 2, 3).float() / 255
        if start // 64 % 2:
            shown = worn(shown.flatten(0, 1), generator, 0.5).unflatten(0, (-1, 2))
        parts.append(CameraReader.fits(shown).half())
    return torch.cat(parts)


def camera_losses(network: CameraReader, fits: Tensor, camera: np.ndarray, batch: int, seed: int) -> Iterator[Tensor]:
    for rows in batches(len(fits), batch, seed):
        yield F.cross_entropy(network(fits[rows].float()), torch.from_numpy(camera[rows]))


def motion_loss(told: dict[str, Tensor], truth: dict[str, Tensor]) -> Tensor:
    there = truth["features"].abs().amax((2, 3)) > 0
    seen = there.gather(1, truth["main"][:, None])[:, 0]  # a body that acts out of view cannot be found
    main = torch.where(seen, truth["main"], -1)
    loss = F.cross_entropy(told["action"], truth["action"])
    loss = loss + 0.5 * F.cross_entropy(told["direction"], truth["direction"], ignore_index=-1)
    loss = loss + 0.5 * F.cross_entropy(told["main"], main, ignore_index=-1)
    return loss + 0.5 * F.cross_entropy(told["size"].flatten(0, 1), truth["size"].flatten(), ignore_index=-1)


def impact_loss(logits: Tensor, truth: dict[str, Tensor]) -> Tensor:
    """Cross entropy of (B, K, T) logits over the frames that matter of the bodies that were found."""
    weights = truth["weights"] * (truth["features"].abs().amax((2, 3)) > 0)[..., None]
    rare = torch.tensor(3.0)  # few frames hold an impact
    loss = F.binary_cross_entropy_with_logits(logits, truth["impacts"], weights, pos_weight=rare, reduction="sum")
    return 10 * loss / weights.sum()


def motion_losses(network: MotionReader, tracks: dict[str, Tensor], batch: int, seed: int) -> Iterator[Tensor]:
    for rows in batches(len(tracks["features"]), batch, seed):
        truth = {name: tensor[rows] for name, tensor in tracks.items()}
        yield motion_loss(network(truth["features"]), truth)


def impact_losses(
    network: ImpactReader, made: dict[str, Tensor], read: dict[str, Tensor], batch: int, seed: int
) -> Iterator[Tensor]:
    """Half of a batch are tracks made up with faults (many), half such as the instrument itself reads off films (few,
    but with its own faults: where bodies enter, hide each other, turn over), every other time in a mirror."""
    halves = (batches(len(tracks["features"]), batch // 2, seed) for tracks in (made, read))
    for step, rows in enumerate(zip(*halves, strict=True)):
        truth = {
            name: torch.cat([made[name][rows[0]], read[name][rows[1]]]) for name in ("features", "impacts", "weights")
        }
        if step % 2:
            truth["features"][:, :, MIRRORED] *= -1
        yield impact_loss(network(truth["features"]), truth)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.train_verifier", description=__doc__.split("\n")[0])
    parser.add_argument("--trajectories", type=Path, required=True, help="as vidgen.tabletop.physics writes them")
    parser.add_argument("--output", type=Path, required=True, help="folder of the weights")
    parser.add_argument("--pairs", type=int, default=10000, help="pairs of stills to render")
    parser.add_argument("--wide", type=int, default=1800, help="clips to render for the places of bodies")
    parser.add_argument("--tracks", type=int, default=30000, help="clips whose tracks are made up")
    parser.add_argument("--films", type=int, default=640, help="clips whose tracks are read off films")
    parser.add_argument("--rounds", type=float, default=1.0, help="how long to train, in times the usual")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="keep the rendered stills in this folder and use them again")
    parser.add_argument("--only", choices=PARTS, nargs="+", help="train these networks on, keep the others as they are")
    parser.add_argument("--anew", action="store_true", help="with --only: train them from the beginning")
    args = parser.parse_args()
    if min(args.pairs, args.tracks, args.wide, args.films) < FEWEST or args.rounds <= 0:
        raise InputError(f"--pairs, --tracks, --wide and --films must be at least {FEWEST}, and --rounds positive")
    trajectories = load_trajectories(args.trajectories)
    if len(trajectories) < FEWEST:
        raise InputError(f"{args.trajectories} holds {len(trajectories)} scenes; at least {FEWEST} are learnt from")
    torch.manual_seed(args.seed)
    verifier = Verifier.load(args.output) if args.only else Verifier()
    parts = args.only or PARTS
    for name in parts if args.anew else ():
        torch.manual_seed(args.seed)
        setattr(verifier, name, type(getattr(verifier, name))(verifier.widths[name]))
    pairs = {}
    if set(parts) & {"camera", "locator", "body"}:
        pairs = cached_pairs(trajectories, args.pairs, args.seed, args.cache)

    def fit(name: str, network: nn.Module, examples: float, learning_rate: float, losses: Iterator[Tensor]) -> None:
        if name in ("locator", "body", "place"):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        train(network, max(10, int(args.rounds * examples / BATCH)), learning_rate, losses, name)
        verifier.save(args.output)

    if "camera" in parts:
        losses = camera_losses(verifier.camera, camera_fits(pairs, args.seed), pairs["camera"], BATCH, args.seed)
        fit("camera", verifier.camera, 8 * args.pairs, 2e-3, losses)
    if "locator" in parts:
        losses = locator_losses(verifier.locator, pairs, BATCH, args.seed)
        fit("locator", verifier.locator, 6 * args.pairs, 4e-3, losses)
    if "body" in parts:
        losses = body_losses(verifier.body, pairs, BATCH, args.seed)
        fit("body", verifier.body, 5 * len(pairs["pieces"]), 3e-3, losses)
    if "place" in parts:
        wide = make_wide(trajectories, args.wide, args.seed)
        fit(
            "place", verifier.place, 6 * len(wide["pieces"]), 4e-3, place_losses(verifier.place, wide, BATCH, args.seed)
        )
    if set(parts) & {"motion", "impact"}:
        tracks = make_tracks(trajectories, args.tracks, 49, args.seed)
    if "motion" in parts:
        fit("motion", verifier.motion, 6 * args.tracks, 2e-3, motion_losses(verifier.motion, tracks, BATCH, args.seed))
    if "impact" in parts:
        films = filmed_tracks(verifier, trajectories[: args.films], args.seed, args.cache)
        losses = impact_losses(verifier.impact, tracks, films, BATCH, args.seed)
        fit("impact", verifier.impact, 6 * args.tracks, 3e-3, losses)


def filmed_tracks(
    verifier: Verifier, trajectories: list[Trajectory], seed: int, folder: Path | None
) -> dict[str, Tensor]:
    """``films.read_tracks`` of the scenes, whose films are kept in ``folder`` and taken from there."""
    with TemporaryDirectory() as temporary:
        kept = Path(temporary) if folder is None else folder / f"films-{seed}"
        return read_tracks(verifier, film(trajectories, len(trajectories), kept, seed))


def cached_pairs(trajectories: list[Trajectory], count: int, seed: int, folder: Path | None) -> dict[str, np.ndarray]:
    """``make_pairs``, from ``folder`` where it holds them."""
    path = None if folder is None else folder / f"pairs-{count}-{seed}.npz"
    if path is not None and path.exists():
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    pairs = make_pairs(trajectories, count, seed)
    print(f"{count} pairs, {len(pairs['pieces'])} bodies close up: {time.process_time():.0f} CPU s", flush=True)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **pairs)  # type: ignore[arg-type]
    return pairs


if __name__ == "__main__":
    run(main)
