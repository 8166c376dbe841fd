"""A model on ComfyUI's books, and the steps of sampling: shared by the nodes for one step and the one for all."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import comfy.model_management as memory
import comfy.model_patcher
import comfy.utils
import numpy as np
import torch
from comfy.cli_args import LatentPreviewMethod
from comfy.cli_args import args as comfy_args
from PIL import Image
from torch import Tensor, nn

from ..clip import ClipSpec
from ..conditioning import Conditioning, Text
from ..given import Given
from ..loop import looped_spec
from ..lora import Lora
from ..making import preview
from ..pipeline import VidGenPipeline
from ..streaming import Chunk, joined
from .inputs import Choices, said


class VidGenNetworks(nn.ModuleDict):
    """All networks of a pipeline as one module, for ComfyUI to move about."""


class VidGenModel:
    """A pipeline whose memory is ComfyUI's: it goes to the device when it is used, and gives way when told to.

    It stays loaded between runs as long as ComfyUI keeps the output of the node that loaded it, and has room. Models
    that differ in their LoRAs share one pipeline.
    """

    def __init__(self, shared: "_Shared", loras: tuple[Lora, ...] = ()):
        self._shared, self._loras = shared, loras
        self.generation = shared.pipeline.generation

    @classmethod
    def open(cls, folder: Path, quality: str | None = None) -> "VidGenModel":
        """From a model's folder, of a quality as ``generation.chosen_quality`` takes it.

        Raises:
            InputError: it is damaged, or holds no model of that quality.
        """
        return cls(_Shared(folder, quality))

    def with_lora(self, lora: Lora) -> "VidGenModel":
        """The same with one more.

        Raises:
            InputError: it is missing, damaged or made for another model.
        """
        model = VidGenModel(self._shared, (*self._loras, lora))
        model.loaded()
        return model

    def loaded(self) -> VidGenPipeline:
        """The pipeline, whole and on its device, with these LoRAs: ComfyUI makes room, and may have taken it away."""
        self._shared.use(self._loras)
        memory.load_models_gpu([self._shared.patcher], force_full_load=True)
        return self._shared.pipeline


class _Shared:
    """What ComfyUI has on its books, and the LoRAs that are in it now."""

    def __init__(self, folder: Path, quality: str | None):
        device = memory.get_torch_device()
        is_half = not memory.is_device_cpu(device) and memory.should_use_bf16(device)
        dtype = torch.bfloat16 if is_half else torch.float32
        self.pipeline = VidGenPipeline.from_pretrained(folder, torch_dtype=dtype, quality=quality)
        self.patcher = comfy.model_patcher.ModelPatcher(
            VidGenNetworks(self.pipeline.components),
            load_device=device,
            offload_device=memory.unet_offload_device(),
        )
        self.loras: tuple[Lora, ...] = ()

    def use(self, loras: tuple[Lora, ...]) -> None:
        if self.loras != loras:
            self.loras = ()
            self.pipeline.use_loras(loras)
            self.loras = loras


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
    """Features of a prompt; raises InputError if it is empty."""
    return VidGenText(pipeline.encode_text([said(prompt)]), pipeline.encode_text([" ".join(negative_prompt.split())]))


def denoise(
    pipeline: VidGenPipeline, text: VidGenText, spec: ClipSpec, given: Given | None, choices: Choices
) -> VidGenLatents:
    """A batch of clips of one prompt, at once."""
    sampling = pipeline.sampling(**choices.sampling)
    conditioning = Conditioning()
    if given is not None:
        conditioning = pipeline.encode_given(given, looped_spec(spec) if choices.loop else spec)
    video, audio = pipeline.denoise_clips(
        spec,
        choices.batch_size,
        _for_batch(text.positive, pipeline, choices.batch_size),
        _for_batch(text.negative, pipeline, choices.batch_size) if sampling.is_guided else None,
        sampling,
        conditioning,
        with_audio=choices.with_audio,
        loop=choices.loop,
        generator=choices.generators(),
        callback_on_step_end=Progress(sampling.steps).on_step_end,
    )
    return VidGenLatents(video, audio, spec, given)


def make_in_parts(
    pipeline: VidGenPipeline, prompt: str, negative_prompt: str, spec: ClipSpec, choices: Choices
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Long clips, window after window (``vidgen.streaming``): frames (T, H, W, 3) uint8 and sound (N,), or None."""
    progress = Progress(spec.num_frames * choices.batch_size, unit_is_step=False)
    for generator in choices.generators():
        chunks = pipeline.stream(
            prompt,
            spec.duration_s,
            with_audio=choices.with_audio,
            height=spec.height,
            width=spec.width,
            frame_rate=spec.frame_rate,
            negative_prompt=negative_prompt,
            generator=generator,
            callback_on_step_end=progress.on_step_end,
            **choices.sampling,
        )
        yield joined(chunks, progress.on_chunk)


class Progress:
    """ComfyUI's bar, with a preview of the latents if it wants previews; at every step a run can be stopped.

    Args:
        total: steps, or else whatever is counted in ``done``.
    """

    def __init__(self, total: int, unit_is_step: bool = True):
        self.total, self.unit_is_step, self.done = total, unit_is_step, 0
        self.bar = comfy.utils.ProgressBar(total)
        memory.throw_exception_if_processing_interrupted()

    def on_step_end(
        self, pipeline: VidGenPipeline, _step: int, _level: Tensor, latents: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        memory.throw_exception_if_processing_interrupted()
        picture = None
        if comfy_args.preview_method != LatentPreviewMethod.NoPreviews:
            strip = Image.fromarray(preview(pipeline, latents["video_latents"]))
            picture = ("JPEG", strip, comfy_args.preview_size)
        self.done += self.unit_is_step
        self.bar.update_absolute(self.done, self.total, picture)
        return latents

    def on_chunk(self, chunk: Chunk) -> None:
        self.done += len(chunk.frames)


def note(lines: list[str]) -> None:
    """Say on the console what was changed in the user's material."""
    for line in lines:
        logging.getLogger(__name__).info("vidgen: %s", line)


def _for_batch(text: Text, pipeline: VidGenPipeline, batch_size: int) -> Text:
    """A prompt for each clip, where the model is now."""
    features, mask = text
    features = features.to(pipeline.device, pipeline.dtype)
    return features.expand(batch_size, -1, -1), mask.to(pipeline.device).expand(batch_size, -1)
