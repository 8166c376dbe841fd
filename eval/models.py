"""What makes clips: vidgen's models, and any text-to-video pipeline of diffusers (see ``vidgen.published``)."""

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vidgen.errors import InputError
from vidgen.generation import FAST, GenerationConfig, chosen_quality
from vidgen.published import Asked, Made, PublishedModel, open_model
from vidgen.published_folders import MODULAR_INDEX, PLAIN_INDEX, is_vidgen, local_folder

from .cache import sha256

SAMPLER = (
    "num_inference_steps",
    "guidance_scale",
    "audio_guidance_scale",
    "modality_scale",
    "video_shift",
    "audio_shift",
    "solver",
)
CLIP = ("num_frames", "height", "width", "frame_rate", "sample_rate_hz")


def model_facts(model: Path, quality: str | None = None) -> dict[str, Any]:
    """Version and checksum of a model, how it is sampled, and what its clips are.

    Args:
        quality: of a model of vidgen's own, as ``generation.chosen_quality`` takes it; the checksum of ``high`` is that
            of the model without its student.

    A pipeline of diffusers is sampled as its own defaults have it; ``sampler`` names what has them.

    Raises:
        InputError: no such model.
    """
    folder = model if is_vidgen(model) else local_folder(model)
    digest = hashlib.sha256()
    is_own = is_vidgen(folder)
    without = folder / FAST if is_own and chosen_quality(folder, quality) != FAST else None
    for path in sorted(folder.rglob("*")):
        if path.parent == without:
            continue
        if path.suffix in (".safetensors", ".json") and path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256(path)}\0".encode())
    if is_own:
        own = GenerationConfig.load(folder, quality)
        facts: dict[str, Any] = {
            "version": own.model_version,
            "sampler": {name: getattr(own, name) for name in SAMPLER},
            "clip": {name: getattr(own, name) for name in CLIP},
        }
    else:
        index = next(path for name in (PLAIN_INDEX, MODULAR_INDEX) if (path := folder / name).exists())
        try:
            name = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{index} is damaged: {error!r}") from error
        name = name if isinstance(name, str) else name[-1]
        defaults = f"{name} of diffusers {metadata.version('diffusers')}"
        facts = {"version": name, "sampler": {"defaults_of": defaults}, "clip": {}}
    return facts | {"sha256": digest.hexdigest()}


@lru_cache(maxsize=1)
def load_pipeline(model: Path, device: str, quality: str | None = None) -> Any:
    """A ``VidGenPipeline`` or a ``PublishedModel``, kept for the next clips of this process."""
    if not is_vidgen(model):
        return open_model(model, device, quality=quality)
    from vidgen.loading import choose_device
    from vidgen.pipeline import VidGenPipeline

    return VidGenPipeline.from_pretrained(model, device=choose_device(device), quality=quality)


def make_clips(
    model: Path, device: str, prompts: Sequence[str], seeds: Sequence[int], quality: str | None = None
) -> list[Made]:
    """A clip for each prompt and seed, at once where the model can.

    Raises:
        InputError: no such model, or it refuses.
    """
    pipeline = load_pipeline(model, device, quality)
    if isinstance(pipeline, PublishedModel):
        return [pipeline.make(prompt, Asked(seed=seed)) for prompt, seed in zip(prompts, seeds, strict=True)]
    output = pipeline(list(prompts), generator=[torch.Generator().manual_seed(seed) for seed in seeds])
    sounds = [None] * len(prompts) if output.audio is None else output.audio
    return [
        Made(frames, output.frame_rate, waveform, output.sample_rate)
        for frames, waveform in zip(output.frames, sounds, strict=True)
    ]
