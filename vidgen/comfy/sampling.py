"""A model on ComfyUI's books, and the steps of sampling: shared by the nodes for one step and the one for all."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management as memory
import comfy.model_patcher
import comfy.utils
import torch
from comfy.cli_args import LatentPreviewMethod
from comfy.cli_args import args as comfy_args
from PIL import Image
from torch import Tensor, nn

from ..clip import ClipSpec
from ..conditioning import Conditioning, Text
from ..data.source import to_uint8
from ..errors import InputError
from ..given import Given
from ..pipeline import Sampling, VidGenPipeline


class VidGenNetworks(nn.ModuleDict):
    """All networks of a pipeline as one module, for ComfyUI to move about."""


class VidGenModel:
    """A pipeline whose memory is ComfyUI's: it goes to the device when it is used, and gives way when told to.

    It stays loaded between runs as long as ComfyUI keeps the output of the node that loaded it, and has room.
    """

    def __init__(self, folder: Path):
        device = memory.get_torch_device()
        is_half = not memory.is_device_cpu(device) and memory.should_use_bf16(device)
        self._pipeline = VidGenPipeline.from_pretrained(
            folder, torch_dtype=torch.bfloat16 if is_half else torch.float32
        )
        self._patcher = comfy.model_patcher.ModelPatcher(
            VidGenNetworks(self._pipeline.components),
            load_device=device,
            offload_device=memory.unet_offload_device(),
        )
        self.generation = self._pipeline.generation

    def loaded(self) -> VidGenPipeline:
        """The pipeline, whole and on its device: ComfyUI makes room and may have taken parts of it away since."""
        memory.load_models_gpu([self._patcher], force_full_load=True)
        return self._pipeline


@dataclass(frozen=True, eq=False)
class VidGenText:
    """A prompt and what to keep away from, encoded."""

    positive: Text
    negative: Text


@dataclass(frozen=True, eq=False)
class VidGenLatents:
    """Normalised latents of B clips, picture and sound (None without), of the clip ``spec``, with what was given."""

    video: Tensor
    audio: Tensor | None
    spec: ClipSpec
    given: Given | None


def encode_text(pipeline: VidGenPipeline, prompt: str, negative_prompt: str) -> VidGenText:
    """Features of a prompt; line breaks count as spaces.

    Raises:
        InputError: the prompt is empty.
    """
    prompt, negative_prompt = (" ".join(text.split()) for text in (prompt, negative_prompt))
    if not prompt:
        raise InputError("the prompt is empty: say what should be seen and heard")
    return VidGenText(pipeline.encode_text([prompt]), pipeline.encode_text([negative_prompt]))


def denoise(
    pipeline: VidGenPipeline,
    text: VidGenText,
    spec: ClipSpec,
    given: Given | None,
    sampling: Sampling,
    *,
    seed: int,
    batch_size: int,
    with_audio: bool,
    on_step: Callable[..., None],
) -> VidGenLatents:
    """B clips of one prompt; clip i is that of the seed ``seed + i``, whatever the batch."""
    generators = [torch.Generator().manual_seed(seed + index) for index in range(batch_size)]
    video_noise, audio_noise = pipeline.noise(spec, batch_size, generators)
    conditioning = Conditioning() if given is None else pipeline.encode_given(given, spec)
    video, audio = pipeline.denoise(
        (video_noise, audio_noise if with_audio else None),
        _for_batch(text.positive, pipeline, batch_size),
        _for_batch(text.negative, pipeline, batch_size) if sampling.is_guided else None,
        sampling,
        spec.video_latent_times_s(),
        spec.audio_latent_times_s(),
        conditioning,
        on_step,
    )
    assert video is not None
    return VidGenLatents(video, audio, spec, given)


class Progress:
    """ComfyUI's bar with a preview of the latents, if it wants previews; a step is where a run can be stopped."""

    def __init__(self, pipeline: VidGenPipeline, steps: int):
        self.vae = pipeline.vae
        self.steps = steps
        self.bar = comfy.utils.ProgressBar(steps)
        memory.throw_exception_if_processing_interrupted()

    def __call__(self, _pipeline: Any, step: int, _level: Any, values: dict[str, Any]) -> None:
        memory.throw_exception_if_processing_interrupted()
        preview = None
        if comfy_args.preview_method != LatentPreviewMethod.NoPreviews:
            preview = ("JPEG", self._picture(values["video_latents"]), comfy_args.preview_size)
        self.bar.update_absolute(step + 1, self.steps, preview)

    def _picture(self, latents: Tensor) -> Image.Image:
        """The middle of the first clip, decoded from two latent frames alone: cheap, and nearly what it will be."""
        middle = latents.shape[2] // 2
        part = latents[:1, :, max(0, middle - 1) : middle + 1]
        frame = self.vae.from_latents(part.to(self.vae.dtype))[0, :, -1:]
        return Image.fromarray(to_uint8(frame.float())[0].cpu().numpy())


def note(lines: list[str]) -> None:
    """Say on the console what was changed in the user's material."""
    for line in lines:
        logging.getLogger(__name__).info("vidgen: %s", line)


def _for_batch(text: Text, pipeline: VidGenPipeline, batch_size: int) -> Text:
    """A prompt for each clip, where the model is now."""
    features, mask = text
    features = features.to(pipeline.device, pipeline.dtype)
    return features.expand(batch_size, -1, -1), mask.to(pipeline.device).expand(batch_size, -1)
