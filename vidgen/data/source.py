"""The clips that a path stands for, and pictures between bytes and a network's values."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..clip import ClipSpec


def open_clips(
    path: Path,
    spec: ClipSpec,
    *,
    seed: int = 0,
    split: str = "train",
    device: str | torch.device = "cpu",
    with_video: bool = True,
    with_audio: bool = True,
) -> Dataset:
    """The clips at ``path``: a folder of the user's own, or simulated tabletop scenes (.npz).

    ``split`` and ``device`` (where pictures are drawn) are the simulated scenes' alone.

    Raises:
        InputError: there are none.
    """
    if path.suffix == ".npz":
        from ..tabletop.archive import load_trajectories
        from ..tabletop.render import can_compile
        from ..tabletop.source import TabletopClips

        return TabletopClips(load_trajectories(path), spec, split, seed, device, with_video=with_video,
                             with_audio=with_audio, compiled=can_compile(torch.device(device)))  # fmt: skip
    from .folder import ClipFolder

    return ClipFolder(path, spec, seed=seed, with_video=with_video, with_audio=with_audio)


def to_float(video: Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) to float (B, 3, T, H, W) in [-1, 1]."""
    return video.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_uint8(video: Tensor) -> Tensor:
    """Float (…, 3, T, H, W) in [-1, 1] to uint8 (…, T, H, W, 3)."""
    return ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-4, -1)


def random_crops(video: Tensor, size: int, seeds: list[int]) -> Tensor:
    """A square of each clip (B, T, H, W, 3), placed at random by the sample's own seed."""
    crops = []
    for clip, seed in zip(video, seeds, strict=True):
        rng = np.random.default_rng(seed)
        top, left = (int(rng.integers(max(0, edge - size) + 1)) for edge in clip.shape[1:3])
        crops.append(clip[:, top : top + size, left : left + size])
    return torch.stack(crops)
