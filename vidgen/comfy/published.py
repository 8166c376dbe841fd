"""Nodes for any text-to-video pipeline of diffusers, silent or with sound; see ``vidgen.published``."""

from typing import Any

import comfy.model_management as memory
import comfy.utils
import folder_paths
from comfy_api.latest import io
from PIL import Image
from torch import Tensor

from ..published import Asked, Made, PublishedModel, open_model
from ..published_folders import is_published
from .inputs import Shelf, exact_rate, said, to_bytes
from .schema import CATEGORY, MODELS, clip_outputs, outputs, prompt_inputs, sampling_inputs

PublishedType = io.Custom("VIDGEN_PUBLISHED")
OWN_ALONE = ("solver", "loop", "camera")
"""Inputs that only vidgen's own models know."""

folder_paths.add_model_folder_path(MODELS, f"{folder_paths.models_dir}/{MODELS}")


def model_folders() -> list[str]:
    """Where models lie, ComfyUI's own place for diffusers' first."""
    return [*folder_paths.get_folder_paths("diffusers"), *folder_paths.get_folder_paths(MODELS)]


SHELF = Shelf(model_folders, is_published)


class LoadPublished(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VidGenLoadPublished",
            display_name="Load diffusers video model",
            category=CATEGORY,
            description="Any text-to-video pipeline of diffusers, from models/diffusers, placed as memory allows.",
            inputs=[
                io.Combo.Input("model", options=SHELF.names()),
                io.Boolean.Input("for_picture", default=False, tooltip="On: a first picture will be given."),
            ],
            outputs=[PublishedType.Output("model_out", display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, model: str) -> bool | str:
        return SHELF.check(model)

    @classmethod
    def execute(cls, model: str, for_picture: bool) -> io.NodeOutput:
        memory.unload_all_models()  # the free memory decides where the parts go
        memory.soft_empty_cache()
        return io.NodeOutput(open_model(SHELF.find(model), memory.get_torch_device(), for_picture=for_picture))


class GeneratePublished(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        shared = [entry for entry in (*prompt_inputs(), *sampling_inputs()) if entry.id not in OWN_ALONE]
        return io.Schema(
            node_id="VidGenGeneratePublished",
            display_name="diffusers: prompt to video",
            category=CATEGORY,
            description="A clip of a diffusers pipeline, with its sound if it makes any. What a pipeline does not take "
            "is refused by name.",
            inputs=[
                PublishedType.Input("model"),
                *shared,
                io.Image.Input("image", optional=True, tooltip="The first frame."),
                io.Image.Input("last_image", optional=True, tooltip="The last frame."),
            ],
            outputs=clip_outputs(),
        )

    @classmethod
    def execute(
        cls,
        model: PublishedModel,
        prompt: str,
        negative_prompt: str,
        seed: int,
        batch_size: int,
        width: int,
        height: int,
        duration_s: float,
        frame_rate: float,
        num_inference_steps: int,
        guidance_scale: float,
        audio_guidance_scale: float,
        with_audio: bool,
        image: Tensor | None = None,
        last_image: Tensor | None = None,
    ) -> io.NodeOutput:
        steps = num_inference_steps or model.accepts.get("num_inference_steps")
        made = [
            make(
                model,
                said(prompt),
                Asked(
                    negative_prompt=negative_prompt or None,
                    height=height or None,
                    width=width or None,
                    duration_s=duration_s or None,
                    frame_rate=exact_rate(frame_rate),
                    num_inference_steps=num_inference_steps or None,
                    guidance_scale=None if guidance_scale < 0 else guidance_scale,
                    audio_guidance_scale=None if audio_guidance_scale < 0 else audio_guidance_scale,
                    image=_picture(image),
                    last_image=_picture(last_image),
                    with_audio=with_audio,
                    seed=seed + index,
                ),
                steps if isinstance(steps, int) else 1,
            )
            for index in range(batch_size)
        ]
        return outputs(((clip.frames, clip.waveform) for clip in made), made[0].frame_rate, made[0].sample_rate_hz)


def make(model: PublishedModel, prompt: str, asked: Asked, steps: int) -> Made:
    """One clip; at every step that the pipeline tells of, it can be stopped."""
    bar = comfy.utils.ProgressBar(steps)

    def on_step(step: int) -> None:
        memory.throw_exception_if_processing_interrupted()
        bar.update_absolute(step + 1, steps, None)

    memory.throw_exception_if_processing_interrupted()
    return model.make(prompt, asked, on_step)


def _picture(images: Any) -> Image.Image | None:
    return None if images is None else Image.fromarray(to_bytes(images)[0])
