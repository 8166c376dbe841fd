"""What a training run finds on clips that are never trained on: losses, and now and then distances to real clips."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from . import config
from .data.sampling import Layout, SeededBatches, held_back_keys
from .noise import on_device
from .progress import by_level

if TYPE_CHECKING:
    from .stages import Stage

Keys = list[tuple[int, int]]


@torch.no_grad()
def validate(
    stage: "Stage", average: nn.Module, settings: config.TrainConfig, accelerator: Accelerator
) -> dict[str, float]:
    """Mean loss and parts of the averaged weights, with the same noise each time.

    Processes share out the batches of each shape; where these do not divide evenly, some see one again, which does not
    count: a network that is shared out needs all of them at every turn. A part counts where there is one.
    """
    clips = SeededBatches(stage.validation, settings.seed)  # type: ignore[arg-type]
    keys = held_back_keys(stage.validation, settings.validation_clips)  # type: ignore[arg-type]
    sums: dict[str, Tensor] = {}
    counts: dict[str, float] = {}
    for batches in batches_by_shape(stage.validation, keys, settings.batch_size):
        for turn in range(0, len(batches), accelerator.num_processes):
            place = turn + accelerator.process_index
            batch = batches[place % len(batches)]
            weight = float(len(batch)) if place < len(batches) else 0.0
            with accelerator.autocast():
                loss, parts = stage.loss(average, on_device(clips[batch], accelerator.device))
            for key, value in {"loss": loss, **parts}.items():
                if value.ndim == 0:
                    sums[key] = sums.get(key, 0) + weight * value.float()
                    counts[key] = counts.get(key, 0.0) + weight
    totals = torch.stack(list(sums.values()))
    both = accelerator.reduce(torch.stack([totals, totals.new_tensor(list(counts.values()))]), reduction="sum")
    means = (both[0] / both[1]).tolist()
    return by_level(dict(zip(sums, means, strict=True)))


def batches_by_shape(clips: Any, keys: Keys, batch_size: int) -> list[list[Keys]]:
    """For each shape of clip its batches."""
    groups: dict[int, Keys] = {}
    group_of = Layout.of(clips).groups
    for key in keys:
        groups.setdefault(int(group_of[key[0]]), []).append(key)
    return [
        [members[start : start + batch_size] for start in range(0, len(members), batch_size)]
        for _, members in sorted(groups.items())
    ]


def prompts(stage: "Stage") -> list[str]:
    """The first wording of each validation clip that has words."""
    captions: Any = getattr(stage.validation, "captions", [])
    return [wordings[0] for wordings in captions if wordings and wordings[0].strip()]


def check_scoring(stage: "Stage", real: Path, num_frames: int) -> None:
    """Before training, what ``score`` would fail for after hours of it.

    Raises:
        InputError: a folder without two clips, fewer than two captions, clips of too few frames, or packages or weights
            that are missing.
    """
    from eval import in_training

    in_training.check(prompts(stage), real, num_frames)


def score(stage: "Stage", average: nn.Module, real: Path, folder: Path) -> dict[str, float]:
    """FVD, its like for sound, and sync of clips made from the captions of those that are never trained on."""
    from eval import in_training

    assert stage.pipeline is not None
    return in_training.score(stage.pipeline(average), prompts(stage), real, folder)
