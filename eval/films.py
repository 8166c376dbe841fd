"""Films of scenes of which the truth is known, written as mp4 and read back as a model's clips are.

The instrument learns from them where bodies really are and when they are struck, with the faults that its own eyes
have (``eval.train_verifier``); on others its accuracy is measured (``eval.accuracy``).
"""

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vidgen.clip import ClipSpec
from vidgen.errors import InputError
from vidgen.media import read_clip, read_metadata, write_video
from vidgen.tabletop.captions import sample_look
from vidgen.tabletop.scene import Look, Trajectory
from vidgen.tabletop.source import TabletopClips

from .networks import FRAME_RATE_HZ, MAX_BODIES
from .tracks import Track, link, track_rows
from .verifier import Verifier
from .verifier_data import mark_blow, projected, visible_blows
from .workers import spread

FILMED_AT_ONCE = 32


class Film(NamedTuple):
    trajectory: Trajectory
    look: Look
    caption: str
    truth: dict
    """As ``TabletopClips`` tells it."""
    path: Path


def film(trajectories: Sequence[Trajectory], count: int, folder: Path, seed: int, workers: int = 1) -> list[Film]:
    """``count`` clips of the scenes as mp4 files, with looks drawn anew, each with the truth about it in its tags.

    Raises:
        InputError: there are no scenes, or the folder holds clips of others.
    """
    if not trajectories:
        raise InputError("there are no scenes to film")
    order = np.random.default_rng(seed).permutation(len(trajectories)).tolist()
    keys = [(order[index % len(order)], index // len(order)) for index in range(count)]
    paths = [folder / f"real-{index:04d}.mp4" for index in range(count)]
    missing = [pair for pair in zip(keys, paths, strict=True) if not pair[1].exists()]
    batches = [missing[start : start + FILMED_AT_ONCE] for start in range(0, len(missing), FILMED_AT_ONCE)]
    source = f"{_sha256(trajectories)} {seed}"
    for _ in spread(partial(_shoot, trajectories, seed, source), batches, workers, "filmed", len):
        pass
    films = []
    for (index, draw), path in zip(keys, paths, strict=True):
        tags = read_metadata(path)
        if tags.get("source") != source:
            raise InputError(f"{path} shows other scenes: give another folder")
        look = sample_look(np.random.default_rng((seed, index, draw)), trajectories[index], "any")
        films.append(Film(trajectories[index], look, tags["prompt"], json.loads(tags["truth"]), path))
    return films


def _shoot(
    trajectories: Sequence[Trajectory], seed: int, source: str, wanted: Sequence[tuple[tuple[int, int], Path]]
) -> None:
    spec = ClipSpec()
    made = TabletopClips(trajectories, spec, "any", seed)[[key for key, _ in wanted]]
    for (_, path), frames, waveform, wordings, truth in zip(
        wanted, made["video"].numpy(), made["audio"].numpy(), made["captions"], made["truth"], strict=True
    ):
        tags = {"prompt": wordings[0], "source": source, "truth": json.dumps(truth)}
        write_video(path, frames, waveform, spec.frame_rate, spec.sample_rate_hz, tags)


def _sha256(trajectories: Sequence[Trajectory]) -> str:
    digest = hashlib.sha256()
    for trajectory in trajectories:
        digest.update(repr((trajectory.bodies, trajectory.floor, trajectory.action)).encode())
        digest.update(np.ascontiguousarray(trajectory.positions_m).tobytes())
    return digest.hexdigest()[:16]


def read_tracks(verifier: Verifier, films: Sequence[Film]) -> dict[str, Tensor]:
    """Tracks as the instrument finds them, each with the blows on the body that it follows.

    Returns:
        ``features``, ``impacts`` and ``weights`` as ``verifier_data.make_tracks`` gives them, of the first 3 tracks.
    """
    rows = []
    for filmed in tqdm(films, desc="tracks", disable=None):
        clip = read_clip(filmed.path, with_sound=False)
        findings = verifier.find(clip.frames, float(clip.frame_rate)).findings
        tracks = link(findings)[:MAX_BODIES]
        rows.append((track_rows(tracks, len(findings)), *struck(filmed, tracks, len(findings))))
    names = ("features", "impacts", "weights")
    return {name: torch.from_numpy(np.stack(part)) for name, part in zip(names, zip(*rows, strict=True), strict=True)}


def struck(filmed: Film, tracks: Sequence[Track], num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """``impacts`` and ``weights`` (3, T) of tracks: a blow belongs to the track that is nearest to the body then."""
    impacts = np.zeros((MAX_BODIES, num_frames), np.float32)
    weights = np.ones_like(impacts)
    start_s = filmed.truth["start_s"]
    path, half_sizes, _ = projected(filmed.trajectory, filmed.look, start_s + np.arange(num_frames) / FRAME_RATE_HZ)
    for contact in filmed.trajectory.contacts:
        at = (contact.time_s - start_s) * FRAME_RATE_HZ
        frame = int(np.clip(round(at), 0, num_frames - 1))
        for body, strength in visible_blows(filmed.trajectory, contact, path, at).items():
            distances = [_apart(track, at, path[frame, body]) for track in tracks]
            if distances and min(distances) <= half_sizes[frame, body]:
                row = int(np.argmin(distances))
                mark_blow(impacts[row], weights[row], at, strength)
    return impacts, np.maximum(weights, impacts)


def _apart(track: Track, at: float, place: np.ndarray) -> float:
    """Pixels from a track at a frame to a place; infinite where the track was lost for long."""
    if np.abs(np.asarray(track.frames) - at).min() > 3:
        return np.inf
    found = np.stack(track.places)
    return float(np.hypot(*(np.interp(at, track.frames, found[:, axis]) - place[axis] for axis in (0, 1))))
