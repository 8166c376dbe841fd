"""The latent cache of a training stage: made where it is missing, then served from where it fits."""

import argparse
import dataclasses
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from . import config
from .clip import ClipSpec
from .data.latents import LatentClips, cache_latents, claim_cache, clips_in_cache, complete_cache, digest
from .data.sampling import Layout
from .data.source import Source, open_clips, source_weights, to_float
from .errors import InputError
from .noise import to_device

RESIDENT_SHARE = 0.4
"""Of the training device's free memory, at most, for latents that stay there."""


def latent_clips(
    args: argparse.Namespace,
    settings: config.DiTConfig | config.DistillConfig,
    accelerator: Accelerator,
    vae: Any,
    codec: Any,
    spec: ClipSpec,
    **options: Any,
) -> Any:
    """The latent cache, made first where it is missing; ``options`` are those of ``LatentClips``.

    Raises:
        InputError: a cache of other data, clips or autoencoders; fewer clips asked for than several sources have.
    """
    device = accelerator.device
    # Pictures of simulated scenes are drawn here, where the device is; loading processes make their sounds.
    pictures: Any = None
    if len(args.data) == 1 and args.data[0].path.suffix == ".npz":
        pictures = open_clips(args.data, spec, seed=settings.seed, device=device, with_audio=False)

    @torch.no_grad()
    def encode(batch: dict[str, Any]) -> tuple[Tensor | None, Tensor]:
        video = (batch if pictures is None else pictures[batch["keys"]]).get("video")
        latents = None if video is None else vae.to_latents(to_float(to_device(video, device)))
        return latents, codec.to_latents(to_device(batch["audio"], device))

    cache = args.latents or args.output / "latents"
    if accelerator.is_main_process:
        paths = [source.path for source in args.data]
        claim_cache(cache, digest(paths, spec, vae, codec, in_buckets=settings.buckets))
    accelerator.wait_for_everyone()
    made = clips_in_cache(cache)
    accelerator.wait_for_everyone()  # all have looked before one of them writes the index
    if made == 0 or made < settings.cached_clips:
        clips = open_clips(
            args.data, spec, seed=settings.seed, with_video=pictures is None, in_buckets=settings.buckets
        )
        count = settings.cached_clips or len(clips)
        if count < len(clips) and len(args.data) > 1:  # the first ones would be cached
            raise InputError(f"cached_clips={count} would leave out whole sources of {len(clips)} clips: "
                             "--set cached_clips=0")  # fmt: skip
        share = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
        size = 4 if device.type == "cpu" else 16
        cache_latents(clips, count, encode, cache, batch_size=size, workers=settings.workers, **share)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            complete_cache(count, cache, Layout.of(clips))
    accelerator.wait_for_everyone()
    return LatentClips(cache, seed=settings.seed, weights=source_weights(args.data), **options)


def held_back_latents(
    args: argparse.Namespace, settings: config.DiTConfig | config.DistillConfig, accelerator: Accelerator,
    vae: Any, codec: Any, spec: ClipSpec, **options: Any,
) -> Any:  # fmt: skip
    """The clips of ``--validation``, each once, with all their words, in a latent cache of their own; None without."""
    if args.validation is None:
        return None
    own = argparse.Namespace(data=[Source(args.validation)], latents=args.output / "validation-latents")
    there_are = len(open_clips(own.data, spec, seed=settings.seed, in_buckets=settings.buckets))
    few = dataclasses.replace(settings, cached_clips=min(settings.validation_clips, there_are))
    return latent_clips(own, few, accelerator, vae, codec, spec, **options)


def at_hand(clips: Any, device: torch.device) -> Dataset:
    """What is to be loaded of latent clips: only the choice, where the latents fit on the training device."""
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        if clips.size_bytes > RESIDENT_SHARE * free_bytes:
            return clips
    return clips.to(device).choices


def latent_deviations(clips: Any, count: int = 256) -> dict[str, list[float]]:
    """``video_std`` and ``audio_std`` for ``JointDiT``: of each channel, over the first clips of a cache.

    The floor keeps a channel that never changes (an untrained autoencoder's) from being divided by nothing.
    """
    deviations = {}
    for name in ("video", "audio"):
        taken: list[Tensor] = []
        seen = 0
        for part in clips.parts:
            rows = part.get(name)
            if name == "audio" and rows is not None:
                rows = rows[part["has_audio"]]
            if rows is not None and len(rows) and seen < count:
                # Clips of several shapes: positions of every one, by channel.
                taken.append(rows[: count - seen].float().movedim(1, 0).flatten(1).T)
                seen += len(rows)
        if taken:
            std = channel_statistics(torch.cat(taken))[1]
            deviations[f"{name}_std"] = [round(max(float(value), 0.01), 4) for value in std]
    return deviations


def channel_statistics(latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, of latents (B, C, …).

    A channel of which a quantizer gave the same value each time counts as one that hardly changes.
    """
    values = latents.float().movedim(1, 0).flatten(1)
    return values.mean(1), values.std(1).clamp_min(1e-4)


@torch.no_grad()
def latent_scales(vae: Any, latents: Tensor, std: Tensor, power: float) -> Tensor:
    """How large each channel (C,) of the VAE's latents is to be for the DiT, 1 in the mean square.

    A channel counts by what one standard deviation of it changes in the picture, to the given power: 0 makes all equal,
    so that faint detail weighs as much as what a thing is and where; 1 keeps the spectrum of the pixels. In between,
    denoising decides coarse things first, as it does in pixels.
    """
    decoded = vae.decode(latents)
    effect = torch.empty_like(std)
    for channel in range(len(std)):
        moved = latents.clone()
        moved[:, channel] += std[channel]
        effect[channel] = (vae.decode(moved) - decoded).square().mean().sqrt()
    scale = effect**power
    return (scale / scale.square().mean().sqrt()).clamp_min(1e-3)
