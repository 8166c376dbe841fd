"""What several nodes have in common: inputs, and clips as outputs. 0 (or -1) leaves a choice to the model."""

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import numpy as np
from comfy_api.latest import InputImpl, Types, io

from ..options import MAX_GUIDANCE, MAX_SEED, MAX_STEPS
from .inputs import BOTH, EXTEND, OWN_SOLVER, STREAMS, VIDEO_TASKS, to_audio, to_image

CATEGORY = "vidgen"
MODELS = "vidgen"


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
        io.Combo.Input("solver", options=[OWN_SOLVER, "euler", "heun", "midpoint", "euler_ancestral"],
                       default=OWN_SOLVER),
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


def outputs(
    clips: Iterable[tuple[np.ndarray, np.ndarray | None]], frame_rate: Fraction, sample_rate_hz: int
) -> io.NodeOutput:
    """IMAGE, AUDIO and VIDEO of each clip: of its frames (T, H, W, 3) uint8 and sound (N,) or (C, N), or None."""
    images, sounds, videos = [], [], []
    for frames, waveform in clips:
        images.append(to_image(frames))
        sounds.append(None if waveform is None else to_audio(waveform, sample_rate_hz))
        parts = Types.VideoComponents(images=images[-1], audio=sounds[-1], frame_rate=frame_rate)
        videos.append(InputImpl.VideoFromComponents(parts))
    return io.NodeOutput(images, sounds, videos)
