"""Films of scenes of which the truth is known, written as mp4 and read back as a model's clips are.

The instrument learns from them where bodies really are and when they are struck, with the faults that its own eyes
have (``eval.train_verifier``); on others its accuracy is measured (``eval.accuracy``).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vidgen.clip import ClipSpec
from vidgen.files import replacing
from vidgen.media import read_clip, write_video
from vidgen.tabletop.captions import sample_look
from vidgen.tabletop.scene import Look, Trajectory
from vidgen.tabletop.source import TabletopClips

from .networks import FRAME_RATE_HZ, MAX_BODIES
from .verifier import Track, Verifier, as_pictures, track_rows
from .verifier_data import blows_in_picture, mark_blow, projected

FILMED_AT_ONCE = 32


class Film(NamedTuple):
    index: int
    trajectory: Trajectory
    look: Look
    path: Path


def film(
    trajectories: Sequence[Trajectory], seed: int, folder: Path, indices: Sequence[int] | None = None
) -> Iterator[Film]:
    """Films ``0000.mp4``, … of the scenes with looks drawn by ``TabletopClips``; those in ``folder`` are not made anew.

    Args:
        indices: of the scenes to film; None: all.
    """
    spec = ClipSpec()
    clips = TabletopClips(trajectories, spec, "any", seed)
    folder.mkdir(parents=True, exist_ok=True)
    listed = list(range(len(clips))) if indices is None else list(indices)
    for start in range(0, len(listed), FILMED_AT_ONCE):
        batch = listed[start : start + FILMED_AT_ONCE]
        missing = [index for index in batch if not _path(folder, index).exists()]
        if missing:
            made = clips[[(index, 0) for index in missing]]
            for index, frames, waveform in zip(missing, made["video"].numpy(), made["audio"].numpy(), strict=True):
                with replacing(_path(folder, index)) as temporary:
                    write_video(temporary, frames, waveform, spec.frame_rate, spec.sample_rate_hz)
        for index in batch:
            look = sample_look(np.random.default_rng((seed, index, 0)), trajectories[index], "any")
            yield Film(index, trajectories[index], look, _path(folder, index))


def _path(folder: Path, index: int) -> Path:
    return folder / f"{index:04}.mp4"


def pictures_of(filmed: Film) -> Tensor:
    """(T, 3, 128, 128) in [0, 1]."""
    clip = read_clip(filmed.path, with_sound=False)
    return as_pictures(clip.frames, float(clip.frame_rate))


def read_tracks(verifier: Verifier, films: Sequence[Film]) -> dict[str, Tensor]:
    """Tracks as the instrument finds them, each with the blows on the body that it follows.

    Returns:
        ``features``, ``impacts`` and ``weights`` as ``verifier_data.make_tracks`` gives them, of the first 3 tracks.
    """
    rows = []
    for filmed in tqdm(films, desc="tracks", disable=None):
        pictures = pictures_of(filmed)
        tracks = verifier.tracks(pictures)[0][:MAX_BODIES]
        labels = struck(filmed.trajectory, filmed.look, tracks, len(pictures))
        rows.append((track_rows(tracks, len(pictures)), *labels))
    names = ("features", "impacts", "weights")
    return {name: torch.from_numpy(np.stack(part)) for name, part in zip(names, zip(*rows, strict=True), strict=True)}


def struck(trajectory: Trajectory, look: Look, tracks: Sequence[Track], num_frames: int) -> tuple[np.ndarray, ...]:
    """``impacts`` and ``weights`` (3, T) of tracks: a blow belongs to the track that is nearest to the body then."""
    impacts = np.zeros((MAX_BODIES, num_frames), np.float32)
    weights = np.ones_like(impacts)
    for contact in trajectory.contacts:
        at = contact.time_s * FRAME_RATE_HZ
        places, half_sizes, _ = (part[0] for part in projected(trajectory, look, np.array([contact.time_s])))
        for body, strength in blows_in_picture(trajectory, contact, places).items():
            apart, row = min(
                ((_apart(track, at, places[body]), row) for row, track in enumerate(tracks)), default=(np.inf, 0)
            )
            if apart <= half_sizes[body]:
                mark_blow(impacts[row], weights[row], at, strength)
    return impacts, np.maximum(weights, impacts)


def _apart(track: Track, at: float, place: np.ndarray) -> float:
    """Pixels from a track at a frame to a place; infinite where the track was lost for long."""
    if np.abs(np.asarray(track.frames) - at).min() > 3:
        return np.inf
    found = np.stack(track.places)
    return float(np.hypot(*(np.interp(at, track.frames, found[:, axis]) - place[axis] for axis in (0, 1))))
