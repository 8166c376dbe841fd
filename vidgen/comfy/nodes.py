"""The nodes, in ComfyUI's V3 schema."""

from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io

from ..errors import InputError
from ..generation import QUALITIES, chosen_quality
from ..lora import Lora
from ..published_folders import is_vidgen
from ..recipe import is_made_in_parts
from .inputs import Choices, Shelf, read_request
from .published import GeneratePublished, LoadPublished
from .sampling import VidGenLatents, VidGenModel, VidGenText, denoise, encode_text, make_in_parts, note
from .schema import CATEGORY, MODELS, clip_outputs, material_inputs, outputs, prompt_inputs, sampling_inputs

LORAS = "loras"
OWN_QUALITY = "fast if there is"
SHELF = Shelf(lambda: folder_paths.get_folder_paths(MODELS), is_vidgen)

ModelType = io.Custom("VIDGEN_MODEL")
TextType = io.Custom("VIDGEN_TEXT")
LatentsType = io.Custom("VIDGEN_LATENTS")


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
    frames = pipeline.decode_video(latents.video.to(pipeline.device), spec, as_bytes=True, given=latents.given)
    waveforms: Any = [None] * len(frames)
    if latents.audio is not None:
        waveforms = pipeline.decode_audio(latents.audio.to(pipeline.device), spec, latents.given, as_array=True)
    return outputs(zip(frames, waveforms, strict=True), spec.frame_rate, spec.sample_rate_hz)


@torch.no_grad()
def generate(model: VidGenModel, prompt: str, negative_prompt: str, settings: dict[str, Any]) -> io.NodeOutput:
    """All steps; a long clip of which nothing is given is made in parts."""
    text = encode_text(model.loaded(), prompt, negative_prompt)
    choices, request = Choices.split(settings)
    spec, given, notes = read_request(model.generation, with_audio=choices.with_audio, loop=choices.loop, **request)
    if not is_made_in_parts(spec, model.generation, given is not None or choices.loop):
        note(notes)
        return decode(model, denoise(model.loaded(), text, spec, given, choices))
    clips = make_in_parts(model.loaded(), prompt, negative_prompt, spec, choices)
    return outputs(clips, spec.frame_rate, spec.sample_rate_hz)


class LoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="VidGenLoadModel",
            display_name="Load vidgen model",
            category=CATEGORY,
            description=f"A model of models/{MODELS}, or the one that vidgen ships. It stays loaded between runs.",
            inputs=[
                io.Combo.Input("model", options=SHELF.names()),
                io.Combo.Input("quality", options=[OWN_QUALITY, *QUALITIES], default=OWN_QUALITY, optional=True,
                               tooltip="fast: the model's few-step student; high: its teacher, with guidance."),
            ],
            outputs=[ModelType.Output("model_out", display_name="model")],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, model: str, quality: str = OWN_QUALITY) -> bool | str:
        try:
            chosen_quality(SHELF.find(model), cls.asked(quality))
        except InputError as error:
            return str(error)
        return True

    @classmethod
    def execute(cls, model: str, quality: str = OWN_QUALITY) -> io.NodeOutput:
        return io.NodeOutput(VidGenModel.open(SHELF.find(model), cls.asked(quality)))

    @staticmethod
    def asked(quality: str) -> str | None:
        return None if quality == OWN_QUALITY else quality


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
        return [LoadModel, LoadLora, TextEncode, Sampler, Decode, Generate, LoadPublished, GeneratePublished]
