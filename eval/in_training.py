"""What a training run measures of itself: figures without weights of its sheets' clips, and now and then distances to
real clips."""

import csv
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidgen.errors import InputError
from vidgen.files import replacing

from . import motion

BATCH = 4
PACKAGES = ("cv2", "pyloudnorm", "scipy.signal")


def measure_sheet(sheet: Path) -> dict[str, float]:
    """Measure the clips ``NAME-0.mp4``, … beside a sheet ``NAME.png`` into ``NAME.csv``, a row for each.

    Returns:
        means over the clips that have a figure, for a log; nothing if there are no clips, or if the packages of the
        ``eval`` extra are missing, which is said once.
    """
    clips = sorted(sheet.parent.glob(f"{sheet.stem}-*.mp4"))
    try:
        for module in PACKAGES:
            motion.require(module)
    except InputError as error:
        if clips:
            _tell(f"samples are not measured: {error}")
        return {}
    if not clips:
        return {}
    from . import quality  # which reads media, as whoever wrote the clips can

    rows: dict[str, dict[str, float | None]] = {}
    for clip in clips:
        try:
            rows[clip.name] = quality.measure_file(clip)
        except InputError as error:
            _tell(f"not measured: {error}")
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    if names:
        with replacing(sheet.with_suffix(".csv")) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["clip", *names])
            for clip_name, figures in rows.items():
                values = (figures.get(name) for name in names)
                writer.writerow([clip_name, *("" if value is None else f"{value:.6g}" for value in values)])
    means = {}
    for name in names:
        known = [value for figures in rows.values() if (value := figures.get(name)) is not None]
        if known:
            means[name] = sum(known) / len(known)
    return means


@lru_cache
def _tell(message: str) -> None:
    """Once."""
    print(message)


def check(prompts: Sequence[str], real: Path, num_frames: int) -> None:
    """Whether ``score`` will find what it needs, for clips of so many frames.

    Raises:
        InputError: fewer than two captions or clips, a folder of shards, clips that are too short for FVD, or packages
            or weights that are missing.
    """
    from . import extractors
    from .distribution import clip_files

    for module in PACKAGES:
        motion.require(module)
    extractors.i3d()
    extractors.soundnet()
    found = {"clips": len(clip_files(real)), "captions": len(prompts)}
    for name, count in found.items():
        if count < 2:
            raise InputError(f"to score clips against those of {real} takes two {name} at least, and there is {count}")
    if num_frames < extractors.I3D_FRAMES:
        raise InputError(
            f"FVD takes clips of {extractors.I3D_FRAMES} frames at least, and this model's have {num_frames}: "
            "leave out --score-every, or train longer clips (--set num_frames=…)"
        )


def score(pipeline: Any, prompts: Sequence[str], real: Path, folder: Path) -> dict[str, float]:
    """Make a clip for each prompt, with seeds 0, 1, …, keep them in ``folder``, and hold them against real ones.

    Args:
        pipeline: a ``VidGenPipeline``.
        real: a folder of clips, of which as many are looked at.

    Returns:
        Kernel and Fréchet distances of pictures (I3D) and sound (SoundNet) by their names, the number of clips made
        (``clips``), and ``onset_sync``, the mean over clips that have an onset or a peak of motion.

    Raises:
        InputError: fewer than two clips on a side, or packages or weights that are missing.
    """
    from vidgen.mp4 import write_video

    from . import extractors, quality
    from .distribution import METRICS, clip_files, compare, folder_features

    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(prompts), BATCH):
        texts = list(prompts[start : start + BATCH])
        seeds = [torch.Generator().manual_seed(start + number) for number in range(len(texts))]
        made = pipeline(texts, generator=seeds)
        for number, (frames, sound) in enumerate(zip(made.frames, made.audio, strict=True), start):
            write_video(folder / f"{number:04d}.mp4", frames, sound, made.frame_rate, made.sample_rate, {})
    ours, theirs = clip_files(folder), clip_files(real)[: len(prompts)]
    scores: dict[str, float] = {"clips": float(len(ours))}
    for metric, extractor in (("video", extractors.i3d()), ("sound", extractors.soundnet())):
        features = [folder_features(files, extractor)[0] for files in (theirs, ours)]
        gaussian = metric == "sound"
        outcome = compare(features[0], features[1], METRICS[metric], half_samples=1, gaussian=gaussian)
        scores |= {distance.name.replace(" ", "_"): distance.value for distance in outcome["distances"]}
    synced = [value for value in (quality.measure_file(path)["onset_sync"] for path in ours) if value is not None]
    return scores | {"onset_sync": float(np.mean(synced)) if synced else float("nan")}
