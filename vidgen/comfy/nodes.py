"""The nodes, in ComfyUI's V3 schema. Inputs are named as in the pipeline; 0 (or -1) leaves a choice to the model."""

from typing import Any

import folder_paths
import torch
from comfy_api.latest import ComfyExtension, InputImpl, Types, io

from ..options import MAX_GUIDANCE, MAX_SEED, MAX_STEPS
from .inputs import BOTH, EXTEND, STREAMS, VIDEO_TASKS, find_model, list_models, read_request, to_image
from .sampling import Progress, VidGenLatents, VidGenModel, VidGenText, denoise, encode_text, note

CATEGORY = "vidgen"
MODELS = "vidgen"
OWN_SOLVER = "the model's own"

ModelType = io.Custom("VIDGEN_MODEL")
TextType = io.Custom("VIDGEN_TEXT")
LatentsType = io.Custom("VIDGEN_LATENTS")

folder_paths.add_model_folder_path(MODELS, f"{folder_paths.models_dir}/{MODELS}")


def prompt_inputs() -> list[Any]:
    return [
        io.String.Input("prompt", multiline=True, dynamic_prompts=True, tooltip="What is to be seen and heard."),
        io.String.Input("negative_prompt", multiline=True, default="", tooltip="What to keep away from."),
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


@torch.no_grad()
def sample(
    model: VidGenModel,
    text: VidGenText,
    *,
    seed: int,
    batch_size: int,
    num_inference_steps: int,
    guidance_scale: float,
    audio_guidance_scale: float,
    solver: str,
    with_audio: bool,
    **request: Any,
) -> VidGenLatents:
    spec, given, notes = read_request(model.generation, with_audio=with_audio, **request)
    note(notes)
    pipeline = model.loaded()
    sampling = pipeline.sampling(
        num_inference_steps or None,
        None if guidance_scale < 0 else guidance_scale,
        None if audio_guidance_scale < 0 else audio_guidance_scale,
        None if solver == OWN_SOLVER else solver,
    )
    return denoise(
        pipeline,
        text,
        spec,
        given,
        sampling,
        seed=seed,
        batch_size=batch_size,
        with_audio=with_audio,
        on_step=Progress(pipeline, sampling.steps),
    )


@torch.no_grad()
def decode(model: VidGenModel, latents: VidGenLatents) -> io.NodeOutput:
    pipeline, spec = model.loaded(), latents.spec
    frames = pipeline.decode_video(latents.video.to(pipeline.device), spec, as_bytes=True)
    images = [to_image(clip) for clip in frames]
    sounds: list[Any] = [None] * len(images)
    if latents.audio is not None:
        waveform = pipeline.decode_audio(latents.audio.to(pipeline.device), spec, latents.given, as_array=False).cpu()
        sounds = [{"waveform": sound[None, None], "sample_rate": spec.sample_rate_hz} for sound in waveform]
    videos = [
        InputImpl.VideoFromComponents(Types.VideoComponents(images=shown, audio=heard, frame_rate=spec.frame_rate))
        for shown, heard in zip(images, sounds, strict=True)
    ]
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
        return io.NodeOutput(VidGenModel(find_model(model, folder_paths.get_folder_paths(MODELS))))


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
    def execute(cls, model: VidGenModel, prompt: str, negative_prompt: str) -> io.NodeOutput:
        return io.NodeOutput(encode_text(model.loaded(), prompt, negative_prompt))


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
        return io.NodeOutput(sample(model, text, **settings))


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
    def execute(cls, model: VidGenModel, prompt: str, negative_prompt: str, **settings: Any) -> io.NodeOutput:
        text = encode_text(model.loaded(), prompt, negative_prompt)
        return decode(model, sample(model, text, **settings))


class VidGenExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [LoadModel, TextEncode, Sampler, Decode, Generate]
