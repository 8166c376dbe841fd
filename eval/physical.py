"""Does a clip keep to what bodies do? From the tracks of the tabletop instrument, whatever the prompt asked for.

    python -m eval.physical CLIPS

prints the figures of a folder of clips as they are, with their frames in random order, and spliced: half of one clip
and the rest of the next.

Each figure is near 0 on the generator's own clips and grows with the fault that it is named after. They are read off
one picture plane, so small values mean little.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vidgen.cli import run
from vidgen.errors import InputError
from vidgen.media import read_clip

from .networks import PICTURE
from .tracks import SURE, Finding, Track, link
from .verifier import Found, Verifier

WINDOW = 6
"""Frames that a body's looks are averaged over."""
EDGE_PX = 3.0
STILL = 0.06
"""A body that rises or falls by less than this many half sizes a frame, for three frames, is carried."""
FALL = 0.25
"""One that gets lower by more than this many half sizes a frame falls."""
HORIZON_PX = 33.0
"""Row of the horizon under the tabletop's static camera: what stands on the floor is as far below it as it is large."""
PROMINENCE = 0.35
"""A rise or fall by less than this many half sizes is no bounce."""


@dataclass(frozen=True)
class _Path:
    """A track at every frame from the first in which it was found to the last; F of them."""

    first: int
    places: np.ndarray
    """(F, 2) pixels of a picture of 128×128, gaps filled by straight lines."""
    half_sizes: np.ndarray
    """(F,) pixels, smoothed."""
    found: np.ndarray
    """(F,) bool."""

    @property
    def last(self) -> int:
        return self.first + len(self.places) - 1


def measure(verifier: Verifier, found: Found) -> dict[str, float | None]:
    """The figures of one clip, each the worst of its bodies. None where there is nothing to judge it by.

    Args:
        found: in the clip, by ``Verifier.find``.

    Returns:
        colour_drift: greatest Hellinger distance, 0 to 1, of a body's colour over six frames from that of its first
            six. One that changes at once counts as a body that vanishes and another that appears.
        size_drift: greatest change of the logarithm of its size in the picture from one six frames to the next six;
            zooming and coming nearer change it slowly.
        vanishing: share of the clip in which a body is not to be seen, though it is neither near the picture's edge
            nor near another body that may hide it. A body that multiplies counts for the time before, too.
        surplus: share of frames with something that is certainly a body, but belongs to none that lasts.
        jerk: change of the step from frame to frame over the steps themselves; about 1.7 for places in random order.
        bounce_gain: by how many of its half sizes a body rises higher than it fell from, after touching down away from
            other bodies. None if no bounce is seen.
        sinking: by how many half sizes a body gets lower than where it first touched down or rested, beyond what its
            growing in the picture explains. None where the camera moves, or nothing touches down.
        overlap: share of the sum of two half sizes by which bodies that stand equally far away reach into each other.
            None for fewer than two bodies.
    """
    return figures(found.findings, verifier.camera_motion(found.pictures) == "static")


def figures(found: list[list[Finding]], camera_static: bool) -> dict[str, float | None]:
    """``measure``, from the findings in each of T frames."""
    tracks = link(found)
    paths = [_path(track) for track in tracks]
    long = [track for track in tracks if len(track.frames) >= 2 * WINDOW]
    moving = [path for path in paths if len(path.places) >= 8]
    bounces = [_bounces(path, paths) for path in moving]
    return {
        "colour_drift": _worst([_colour_drift(track) for track in long]),
        "size_drift": _worst([_size_drift(track) for track in long]),
        "vanishing": _worst([_vanishing(path, paths, len(found)) for path in paths]) if len(found) > 1 else None,
        "surplus": _surplus(found, tracks) if len(found) > 1 else None,
        "jerk": _worst([_jerk(path) for path in moving]),
        "bounce_gain": _worst([gain for gain, _ in bounces]),
        "sinking": _worst([depth for _, depth in bounces]) if camera_static else None,
        "overlap": _worst([_overlap(one, other) for one, other in combinations(paths, 2)]),
    }


def _worst(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return max(there) if there else None


def _path(track: Track) -> _Path:
    frames = np.array(track.frames)
    time = np.arange(frames[0], frames[-1] + 1)
    places, sizes = np.stack(track.places), np.concatenate([reading["extent"] for reading in track.readings])
    filled = np.stack([np.interp(time, frames, column) for column in (*places.T, sizes)], 1)
    return _Path(int(frames[0]), filled[:, :2], _running_median(filled[:, 2], 5), np.isin(time, frames))


def _running_median(values: np.ndarray, width: int) -> np.ndarray:
    padded = np.pad(values, width // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, width), -1)


def _colour_drift(track: Track) -> float:
    odds = np.stack([reading["colour"] for reading in track.readings])  # (F, words) log-probabilities
    starts = range(0, len(odds) - WINDOW + 1, WINDOW)
    looks = np.exp(np.stack([np.median(odds[start : start + WINDOW], 0) for start in starts]))
    looks /= looks.sum(1, keepdims=True)
    alike = np.sqrt(looks * looks[0]).sum(1).min()
    return float(np.sqrt(max(0.0, 1 - alike)))


def _size_drift(track: Track) -> float:
    sizes = np.log(np.concatenate([reading["extent"] for reading in track.readings]))
    starts = range(0, len(sizes) - WINDOW + 1, WINDOW)
    means = np.array([np.median(sizes[start : start + WINDOW]) for start in starts])
    return float(np.abs(np.diff(means)).max())


def _vanishing(path: _Path, paths: list[_Path], num_frames: int) -> float:
    """Share of frames in which a body is missing for no reason."""
    # What was never seen beside it did not hide it: it took its place.
    company = [other for other in paths if other is not path and _frames(other) & _frames(path)]
    missing = 0
    for frame in range(num_frames):
        index = min(max(frame - path.first, 0), len(path.places) - 1)
        if path.first <= frame <= path.last and path.found[index]:
            continue
        place, half = path.places[index], path.half_sizes[index]
        if (place < half + EDGE_PX).any() or (place > PICTURE - half - EDGE_PX).any():
            continue
        hidden = False
        for other in company:
            if other.first <= frame <= other.last:
                at = frame - other.first
                hidden |= float(np.linalg.norm(other.places[at] - place)) < 1.2 * (other.half_sizes[at] + half)
        missing += not hidden
    return missing / num_frames


def _frames(path: _Path) -> set[int]:
    return set((np.flatnonzero(path.found) + path.first).tolist())


def _surplus(found: list[list[Finding]], tracks: list[Track]) -> float:
    present = np.zeros(len(found), int)
    for track in tracks:
        present[track.frames] += 1
    certain = np.array([sum(score >= SURE for _, score, _ in findings) for findings in found])
    return float((certain > present).mean())


def _jerk(path: _Path) -> float:
    steps = np.diff(path.places, axis=0)
    bends = np.linalg.norm(np.diff(steps, axis=0), axis=1)
    return float(bends.sum() / (np.linalg.norm(steps, axis=1).sum() + 0.5 * len(steps)))


def _bounces(path: _Path, paths: list[_Path]) -> tuple[float | None, float | None]:
    """How much higher than before a body bounced, and how far it sank below where it touched down, in half sizes."""
    half_size = float(np.median(path.half_sizes))
    height = -_running_median(path.places[:, 1], 3) / half_size
    turns = _turns(height)
    gain: float | None = None
    for (before, _), (low, kind), (after, _) in zip(turns, turns[1:], turns[2:], strict=False):
        if kind < 0 and not _near_another(path, low, paths):
            gain = max(gain or 0.0, float(height[after] - height[before]))
    change = np.diff(height)
    # It touches down where it turns, or comes to rest, after its first fall; without one it lay there from the start.
    falls = np.flatnonzero(-change > FALL)
    start = int(falls[0]) if len(falls) else 0
    lows = [at for at, kind in turns[:-1] if kind < 0 and at > start]
    if len(turns) > 1 and turns[-1][1] < 0 and -change[turns[-2][0] : turns[-1][0]].min() > 1.5 * STILL:
        lows.append(turns[-1][0])  # nothing rises after the last turn, but it came down faster than a body sinks
    still = np.flatnonzero(np.convolve(np.abs(change[start:]) < STILL, np.ones(3), "valid") > 2.5) + start
    if not lows and not len(still):
        return gain, None
    ground = min([*lows[:1], *still[:1].tolist()])
    if _near_another(path, ground, paths):  # it may have come to rest on that, for a while
        return gain, None
    if len(height) < ground + WINDOW:
        return gain, None
    # Between two frames a bounce gets lower than in either, so the lowest of them is the ground. Sunk is what ends
    # lower, not what was misread in one frame.
    level = min(height[ground], *(-path.places[lows, 1] / half_size)) if lows else height[ground]
    # What comes nearer on the floor gets lower, too, but larger by the same factor, counted from the horizon.
    nearer = np.median(path.half_sizes[-WINDOW:]) / np.median(path.half_sizes[max(0, ground - 2) : ground + 3])
    below_horizon = max(0.0, -level - HORIZON_PX / half_size)
    expected = below_horizon * max(0.0, float(nearer) - 1)
    return gain, float(max(0.0, level - np.median(height[-WINDOW:]) - expected))


def _turns(height: np.ndarray) -> list[tuple[int, int]]:
    """Frames of highest (+1) and lowest (-1) points in turn, each ``PROMINENCE`` from the next; the ends count."""
    turns: list[tuple[int, int]] = []
    low = high = 0
    rising: bool | None = None
    for frame, value in enumerate(height):
        if value > height[high]:
            high = frame
        if value < height[low]:
            low = frame
        if rising is not False and height[high] - value >= PROMINENCE:
            turns.append((high, 1))
            low, rising = frame, False
        elif rising is not True and value - height[low] >= PROMINENCE:
            turns.append((low, -1))
            high, rising = frame, True
    if rising is not None:
        turns.append((high, 1) if rising else (low, -1))
    return turns


def _near_another(path: _Path, index: int, paths: list[_Path]) -> bool:
    frame = path.first + index
    for other in paths:
        if other is not path and other.first <= frame <= other.last:
            at = frame - other.first
            apart = float(np.linalg.norm(other.places[at] - path.places[index]))
            if apart < 1.6 * (other.half_sizes[at] + path.half_sizes[index]):
                return True
    return False


def _overlap(one: _Path, other: _Path) -> float | None:
    """How far two bodies reach into each other, where they stand equally far away."""
    first, last = max(one.first, other.first), min(one.last, other.last)
    if last - first < 2:
        return None
    a, b = (slice(first - path.first, last + 1 - path.first) for path in (one, other))
    way, reach = other.places[b] - one.places[a], one.half_sizes[a] + other.half_sizes[b]
    feet = np.abs(way[:, 1] + other.half_sizes[b] - one.half_sizes[a])
    level = (feet < 0.12 * reach) & one.found[a] & other.found[b]
    over = np.where(level, 1 - np.linalg.norm(way, axis=1) / reach, 0.0)
    return float(max(0.0, _running_median(over, 3).max()))


def shuffled(found: Found, seed: int) -> Found:
    """The same clip with its frames in random order."""
    order = np.random.default_rng(seed).permutation(len(found.findings))
    return Found(found.pictures[torch.from_numpy(order)], [found.findings[frame] for frame in order], found.floor)


def spliced(first: Found, second: Found) -> Found:
    """The first half of a clip, and what another shows after as many frames."""
    cut = len(first.findings) // 2
    pictures = torch.cat([first.pictures[:cut], second.pictures[cut:]])
    return Found(pictures, first.findings[:cut] + second.findings[cut:], first.floor)


def table(columns: dict[str, Sequence[dict[str, float | None]]]) -> str:
    """Mean and 95th percentile of each figure over the clips that have it, and their number, for a terminal."""
    lines = [f"{'mean (95th percentile), n':25}" + "".join(f"{name:>26}" for name in columns)]
    for figure in next(iter(columns.values()))[0]:
        cells = []
        for clips in columns.values():
            values = [value for clip in clips if (value := clip[figure]) is not None]
            told = f"{np.mean(values):.3f} ({np.quantile(values, 0.95):.3f}), {len(values)}" if values else "-"
            cells.append(f"{told:>26}")
        lines.append(f"{figure:25}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    from .distribution import clip_files

    parser = argparse.ArgumentParser(prog="python -m eval.physical", description=__doc__.split("\n")[0])
    parser.add_argument("clips", type=Path, help="a folder of clips")
    parser.add_argument("--limit", type=int, help="the first so many")
    parser.add_argument("--seed", type=int, default=0, help="of the random order")
    args = parser.parse_args()
    if args.limit is not None and args.limit < 1:
        raise InputError("--limit must be at least 1")
    verifier, found = Verifier.load(), []
    for path in tqdm(clip_files(args.clips)[: args.limit], desc="clips", disable=None):
        clip = read_clip(path, with_sound=False)
        found.append(verifier.find(clip.frames, float(clip.frame_rate)))
    whole = {
        "as they are": found,
        "shuffled": [shuffled(one, args.seed + index) for index, one in enumerate(found)],
        "spliced": [spliced(*pair) for pair in zip(found, found[1:] + found[:1], strict=True)],
    }
    print(table({name: [measure(verifier, one) for one in clips] for name, clips in whole.items()}))


if __name__ == "__main__":
    run(main)
