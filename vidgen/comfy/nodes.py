"""The nodes, in ComfyUI's V3 schema. Inputs are named as in the pipeline; 0 (or -1) leaves a choice to the model."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import folder_paths
import numpy as np
import torch
from comfy_api.latest import ComfyExtension, InputImpl, Types, io

from ..clip import ClipSpec
from ..lora import Lora
from ..options import MAX_GUIDANCE, MAX_SEED, MAX_STEPS
from ..recipe import is_made_in_parts
from .inputs import (
    BOTH,
    EXTEND,
    OWN_SOLVER,
    STREAMS,
    VIDEO_TASKS,
    Choices,
    find_model,
    list_models,
    read_request,
    to_audio,
    to_image,
)
from .sampling import VidGenLatents, VidGenModel, VidGenText, denoise, encode_text, make_in_parts, note

CATEGORY = "vidgen"
MODELS = "vidgen"
LORAS = "loras"

ModelType = io.Custom("VIDGEN_MODEL")
TextType = io.Custom("VIDGEN_TEXT")
LatentsType = io.Custom("VIDGEN_LATENTS")

folder_paths.add_model_folder_path(MODELS, f"{folder_paths.models_dir}/{MODELS}")


def prompt_inputs() -> list[Any]:
    return [
        io.String.Input("prompt", multiline=True, dynamic_prompts=True, tooltip="What is to be seen and heard."),
        io.String.Input("negative_prompt", multiline=True, default="", tooltip="What to keep away from."),
        io.String.Input(
            "camera", default="", optional=True, tooltip="A move that the model knows by name: zooms-in, orbits-left."
        ),
    ]


def sampling_inputs() -> list[Any]:
    """How many clips, of which size, and how they are sampled."""
    return [
        io.Int.Input("seed", default=0, min=0, max=MAX_SEED - 1000, control_after_generate=True,
                     tooltip="The same seed and settings give the same clip."),
        io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="Clips, with consecutive seeds."),
        io.Int.Input("width", default=0, min=0, max=8192, step=32, tooltip="In pixels; 0: the model's own."),
        io.Int.Input("height", default=0, min=0, max=8192, step=32, tooltip="In pixels; 0: the model's own."),
        io.Float.Input("duration_s", default=0.0, min=0.0, max=3600.0, step=0.1,
                       tooltip="Seconds; 0: the model's own, or that of the video or sound that is connected."),
        io.Float.Input("frame_rate", default=0.0, min=0.0, max=240.0, step=0.001,
                       tooltip="Frames a second; 23.976 stands for 24000/1001; 0: the model's own."),
        io.Int.Input("num_inference_steps", default=0, min=0, max=MAX_STEPS, tooltip="0: the model's own."),
        io.Float.Input("guidance_scale", default=-1.0, min=-1.0, max=MAX_GUIDANCE, step=0.1,
                       tooltip="How strongly the prompt rules; 1: no guidance; -1: the model's own."),
        io.Float.Input("audio_guidance_scale", default=-1.0, min=-1.0, max=MAX_GUIDANCE, step=0.1,
                       tooltip="The same for the sound; -1: as guidance_scale, or the model's own."),
        io.Combo.Input("solver", options=[OWN_SOLVER, "euler", "heun", "midpoint"], default=OWN_SOLVER),
        io.Boolean.Input("with_audio", default=True, tooltip="Off: no sound is made."),
        io.Boolean.Input("loop", default=False, tooltip="On: after the last frame comes the first."),
    ]  # fmt: skip


def material_inputs() -> list[Any]:
    """What may be given; the rest is made."""
    return [
        io.Image.Input("image", optional=True, tooltip="The first frame."),
        io.Image.Input("last_image", optional=True, tooltip="The last frame."),
        io.Image.Input("keyframes", optional=True, tooltip="Frames in between, a picture for each of keyframe_places."),
        io.MultiType.Input("video", types=[io.Image, io.Video], optional=True,
                           tooltip="Frames or a VIDEO to go on from, to mend, or to make the sound for."),
        io.Audio.Input("audio", optional=True, tooltip="A sound to make the picture for; beside a video, its sound."),
        io.Mask.Input("mask", optional=True, tooltip="With a video: where it is made anew; one, or one a frame."),
        io.String.Input("keyframe_places", default="", optional=True,
                        tooltip="The frames where the keyframes are seen, counted from 0: 24, 36"),
        io.Combo.Input("video_task", options=list(VIDEO_TASKS), default=EXTEND, optional=True),
        io.Float.Input("video_frame_rate", default=0.0, min=0.0, max=240.0, step=0.001, optional=True,
                       tooltip="Of a video that comes as IMAGE; 0: that of the clip."),
        io.Float.Input("extend_s", default=1.0, min=0.0, max=3600.0, step=0.1, optional=True,
                       tooltip="Seconds that are added after or before the video."),
        io.Float.Input("replace_from_s", default=0.0, min=0.0, max=3600.0, step=0.05, optional=True,
                       tooltip="The span of the video that is made anew; from 0 to 0: none."),
        io.Float.Input("replace_to_s", default=0.0, min=0.0, max=3600.0, step=0.05, optional=True),
        io.Float.Input("strength", default=1.0, min=0.01, max=1.0, step=0.01, optional=True,
                       tooltip="How much of what is replaced changes; below 1 it stays like what was there."),
        io.Combo.Input("replace_in", options=list(STREAMS), default=BOTH, optional=True),
    ]  # fmt: skip


def clip_outputs() -> list[Any]:
    """One of each for every clip of the batch."""
    return [
        io.Image.Output("images_out", display_name="images", is_output_list=True),
        io.Audio.Output("audio_out", display_name="audio", is_output_list=True),
        io.Video.Output(
            "video_out", display_name="video", is_output_list=True, tooltip="Both, at the exact frame rate."
        ),
    ]


def with_camera(model: VidGenModel, prompt: str, camera: str) -> str:
    return model.generation.with_camera(prompt, camera.strip()) if camera.strip() and prompt.strip() else prompt


@torch.no_grad()
def sample(model: VidGenModel, text: VidGenText, settings: dict[str, Any]) -> VidGenLatents:
    choices, request = Choices.split(settings)
    spec, given, notes = read_request(model.generation, with_audio=choices.with_audio, loop=choices.loop, **request)
    note(notes)
    return denoise(model.loaded(), text, spec, given, choices)


@torch.no_grad()
def decode(model: VidGenModel, latents: VidGenLatents) -> io.NodeOutput:
    pipeline, spec = model.loaded(), latents.spec
    frames = pipeline.decode_video(latents.video.to(pipeline.device), spec, as_bytes=True)
    waveforms: Any = [None] * len(frames)
    if latents.audio is not None:
        waveforms = pipeline.decode_audio(latents.audio.to(pipeline.device), spec, latents.given, as_array=True)
    return outputs(zip(frames, waveforms, strict=True), spec)


@torch.no_grad()
def generate(model: VidGenModel, prompt: str, negative_prompt: str, settings: dict[str, Any]) -> io.NodeOutput:
    """All steps; a long clip of which nothing is given is made in parts."""
    text = encode_text(model.loaded(), prompt, negative_prompt)
    choices, request = Choices.split(settings)
    spec, given, notes = read_request(model.generation, with_audio=choices.with_audio, loop=choices.loop, **request)
    if not is_made_in_parts(spec, model.generation, given is not None or choices.loop):
        note(notes)
        return decode(model, denoise(model.loaded(), text, spec, given, choices))
    return outputs(make_in_parts(model.loaded(), prompt, negative_prompt, spec, choices), spec)


def outputs(clips: Iterable[tuple[np.ndarray, np.ndarray | None]], spec: ClipSpec) -> io.NodeOutput:
    """IMAGE, AUDIO and VIDEO of each clip: of its frames (T, H, W, 3) uint8 and sound (N,), or None."""
    images, sounds, videos = [], [], []
    for frames, waveform in clips:
        images.append(to_image(frames))
        sounds.append(None if waveform is None else to_audio(waveform, spec.sample_rate_hz))
        parts = Types.VideoComponents(images=images[-1], audio=sounds[-1], frame_rate=spec.frame_rate)
        videos.append(InputImpl.VideoFromComponents(parts))
    return io.NodeOutput(images, sounds, videos)


class LoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VidGenLoadModel",
            display_name="Load vidgen model",
            category=CATEGORY,
            description=f"A model of models/{MODELS}, or the one that vidgen ships. It stays loaded between runs.",
            inputs=[io.Combo.Input("model", options=list_models(folder_paths.get_folder_paths(MODELS)))],
            outputs=[ModelType.Output("model_out", display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, model: str) -> bool | str:
        try:
            find_model(model, folder_paths.get_folder_paths(MODELS))
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model: str) -> io.NodeOutput:
        return io.NodeOutput(VidGenModel.open(find_model(model, folder_paths.get_folder_paths(MODELS))))


class LoadLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VidGenLora",
            display_name="vidgen LoRA",
            category=CATEGORY,
            description="A LoRA of models/loras in the model; several are put in by several such nodes.",
            inputs=[
                ModelType.Input("model"),
                io.Combo.Input("lora", options=folder_paths.get_filename_list(LORAS)),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05),
            ],
            outputs=[ModelType.Output("model_out", display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, lora: str) -> bool | str:
        return True if folder_paths.get_full_path(LORAS, lora) else f"there is no LoRA {lora!r} in models/{LORAS}"

    @classmethod
    def execute(cls, model: VidGenModel, lora: str, strength: float) -> io.NodeOutput:
        return io.NodeOutput(model.with_lora(Lora(Path(folder_paths.get_full_path(LORAS, lora)), strength)))


class TextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VidGenTextEncode",
            display_name="vidgen text encode",
            category=CATEGORY,
            description="A prompt, and what to keep away from, as the model reads them.",
            inputs=[ModelType.Input("model"), *prompt_inputs()],
            outputs=[TextType.Output("text_out", display_name="text")],
        )

    @classmethod
    def execute(cls, model: VidGenModel, prompt: str, negative_prompt: str, camera: str = "") -> io.NodeOutput:
        return io.NodeOutput(encode_text(model.loaded(), with_camera(model, prompt, camera), negative_prompt))


class Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VidGenSampler",
            display_name="vidgen sampler",
            category=CATEGORY,
            description="Picture and sound from a prompt, and from whatever of them is given.",
            inputs=[ModelType.Input("model"), TextType.Input("text"), *sampling_inputs(), *material_inputs()],
            outputs=[LatentsType.Output("latents_out", display_name="latents")],
        )

    @classmethod
    def execute(cls, model: VidGenModel, text: VidGenText, **settings: Any) -> io.NodeOutput:
        return io.NodeOutput(sample(model, text, settings))


class Decode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VidGenDecode",
            display_name="vidgen decode",
            category=CATEGORY,
            description="Latents to pictures, sound, and both as a video.",
            inputs=[ModelType.Input("model"), LatentsType.Input("latents")],
            outputs=clip_outputs(),
        )

    @classmethod
    def execute(cls, model: VidGenModel, latents: VidGenLatents) -> io.NodeOutput:
        return decode(model, latents)


class Generate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VidGenGenerate",
            display_name="vidgen: prompt to video with sound",
            category=CATEGORY,
            description="Text encode, sampler and decode in one.",
            inputs=[ModelType.Input("model"), *prompt_inputs(), *sampling_inputs(), *material_inputs()],
            outputs=clip_outputs(),
        )

    @classmethod
    def execute(
        cls, model: VidGenModel, prompt: str, negative_prompt: str, camera: str = "", **settings: Any
    ) -> io.NodeOutput:
        return generate(model, with_camera(model, prompt, camera), negative_prompt, settings)


class VidGenExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadModel, LoadLora, TextEncode, Sampler, Decode, Generate]
