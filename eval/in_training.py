"""What a training run measures of itself every so often: distances to real clips, and whether sound meets motion."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vidgen.mp4 import write_video

from . import extractors
from .distribution import METRICS, clip_files, compare, folder_features
from .quality import measure_file

BATCH = 4


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
    synced = [value for value in (measure_file(path)["onset_sync"] for path in ours) if value is not None]
    return scores | {"onset_sync": float(np.mean(synced)) if synced else float("nan")}
