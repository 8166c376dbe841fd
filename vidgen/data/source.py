"""The clips that paths stand for, and pictures between bytes and a network's values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..clip import ClipSpec
from ..errors import InputError
from .shards import INDEX


class Source(NamedTuple):
    """Where clips are, and how often they are drawn beside those of other sources."""

    path: Path
    weight: float | None = None


def parse_source(text: str) -> Source:
    """``PATH`` or ``PATH:WEIGHT``. An existing path is taken as it is, whatever its name.

    Raises:
        InputError: a weight that is not positive.
    """
    path, separator, end = text.rpartition(":")
    if not separator or not path or Path(text).exists():
        return Source(Path(text))
    try:
        weight = float(end)
    except ValueError:
        return Source(Path(text))
    if not 0 < weight < float("inf"):
        raise InputError(f"--data {text}: a weight is positive")
    return Source(Path(path), weight)


def open_clips(
    sources: Path | Sequence[Source],
    spec: ClipSpec,
    *,
    seed: int = 0,
    split: str = "train",
    device: str | torch.device = "cpu",
    with_video: bool = True,
    with_audio: bool = True,
    in_buckets: bool = False,
) -> Any:
    """The clips of one path or of several sources: each a folder of shards (``vidgen.data.prepare``), a folder of the
    user's own clips, or simulated tabletop scenes (.npz).

    ``split`` and ``device`` (where pictures are drawn) are the simulated scenes' alone, ``in_buckets`` is not
    (``Recordings``).

    Raises:
        InputError: there are none, or only some of several sources have weights.
    """
    options = {"seed": seed, "with_video": with_video, "with_audio": with_audio}
    if isinstance(sources, Path):
        return _open_one(sources, spec, split, device, in_buckets, options)
    if len(sources) == 1:
        return _open_one(sources[0].path, spec, split, device, in_buckets, options)
    from .buckets import Bucket
    from .recordings import Mixture

    weights = source_weights(sources)
    parts: list[Any] = [_open_one(source.path, spec, split, device, in_buckets, options) for source in sources]
    whole = Bucket(spec.num_frames, spec.height, spec.width)
    return Mixture(parts, weights, [getattr(part, "buckets", None) or [whole] * len(part) for part in parts])


def source_weights(sources: Sequence[Source]) -> tuple[float, ...] | None:
    """None where none has one.

    Raises:
        InputError: only some have one.
    """
    weights = [source.weight for source in sources]
    if any(weight is None for weight in weights):
        if any(weight is not None for weight in weights):
            raise InputError("give every --data a weight, as A:0.7 B:0.3, or none")
        return None
    return tuple(weight for weight in weights if weight is not None)


def _open_one(
    path: Path, spec: ClipSpec, split: str, device: str | torch.device, in_buckets: bool, options: dict[str, Any]
) -> Dataset:
    if path.suffix == ".npz":
        from ..tabletop.archive import load_trajectories
        from ..tabletop.render import can_compile
        from ..tabletop.source import TabletopClips

        compiled = can_compile(torch.device(device))
        scenes = load_trajectories(path)
        return TabletopClips(scenes, spec, split, device=device, compiled=compiled, with_focus=True, **options)
    if (path / INDEX).is_file() or list(path.glob("*.tar*")):
        from .recordings import Recordings, shard_recordings

        clips: Any = Recordings(shard_recordings(path), spec, in_buckets=in_buckets, **options)
        if not len(clips):
            wanted = "clip" if options["with_video"] else "clip with sound"
            raise InputError(f"{path} holds no {wanted} that can be used as asked for")
        return clips
    from .folder import ClipFolder

    return ClipFolder(path, spec, in_buckets=in_buckets, **options)


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
