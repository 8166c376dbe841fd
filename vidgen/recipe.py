"""How a clip is made, as its file tells it: the options of ``sample.py`` put to work and written into the metadata.

``options`` says what may be asked for, ``inspect`` reads back what stands here.
"""

import argparse
import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import __version__
from .clip import ClipSpec
from .errors import InputError
from .generation import HIGH, SHIPPED_MODEL, GenerationConfig, Sampling

if TYPE_CHECKING:
    from .generation import Sampling
    from .given import Given
    from .pipeline import VidGenPipeline

IN_ONE_GO = 2
"""Clips of up to so many times the length that a model knows are made at once, as are all with given material."""


def clip_spec(args: argparse.Namespace, defaults: GenerationConfig) -> ClipSpec:
    """The clip that ``args`` ask for, before given material changes its length. Raises InputError if it cannot be."""
    width, height = args.size or (None, None)
    return defaults.spec(duration_s=args.duration, height=height, width=width, frame_rate=args.fps)


def read_material(
    args: argparse.Namespace, defaults: GenerationConfig, spec: ClipSpec
) -> tuple["Given | None", ClipSpec, list[str]]:
    """What the user's files give, the clip that comes of it, and a line for each file that was changed.

    Raises:
        InputError: a file that cannot be read, material that does not fit the clip, or a clip with material, or a loop,
            that is too long to be made at once.
    """
    keyframes = dict(args.keyframe)
    for frame, path in ((0, args.image), (-1, args.last_image)):
        if path is not None:
            keyframes[frame] = path
    has_material = bool(keyframes) or args.video is not None or args.audio is not None
    if (has_material or args.loop) and is_long(spec, defaults):
        raise InputError(f"with given material, or as a loop, clips of this model last at most "
                         f"{IN_ONE_GO * defaults.spec().duration_s:.3g} s, not {spec.duration_s:.3g} s")  # fmt: skip
    if not has_material:
        return None, spec, []
    from .material import read_given

    own = defaults.spec(height=spec.height, width=spec.width, frame_rate=spec.frame_rate)
    return read_given(
        spec,
        replace(own, num_frames=2 * own.num_frames),
        keyframes=keyframes,
        video=args.video,
        extend_s=args.extend,
        replaced=args.replace,
        mask=args.mask,
        strength=args.strength,
        only=args.only,
        audio=args.audio,
        with_audio=not args.no_audio,
        has_duration=args.duration is not None,
    )


def quality_needed(args: argparse.Namespace, is_story: bool) -> str | None:
    """``high`` for what a student is not taught, which is all but whole clips from a prompt, unguided."""
    paths = (args.image, args.last_image, args.video, args.audio)
    is_given = any(path is not None for path in paths) or bool(args.keyframe)
    scales = (args.guidance, args.audio_guidance, args.modality_guidance)
    is_guided = bool(args.negative_prompt) or any(scale not in (None, 1) for scale in scales)
    own = GenerationConfig.load(args.model, HIGH)
    is_long = args.duration is not None and clip_spec(args, own).num_frames > own.spec(frame_rate=args.fps).num_frames
    return HIGH if is_given or is_guided or is_long or is_story or args.loop or args.no_audio else None


def material_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What was given, by file name, as the settings record it; empty if nothing was."""
    names = ("image", "last_image", "video", "mask", "audio")
    values: dict[str, Any] = {name: path.name for name in names if (path := getattr(args, name)) is not None}
    if args.keyframe:
        values["keyframes"] = {str(frame): path.name for frame, path in args.keyframe}
    choices = {"extend_s": args.extend, "replaced_s": args.replace, "strength": args.strength, "only": args.only}
    values |= {name: value for name, value in choices.items() if value is not None}
    settings: dict[str, Any] = {"given": values} if values else {}
    if args.no_audio:
        settings["with_audio"] = False
    if args.loop:
        settings["loop"] = True
    return settings | ({"camera": args.camera} if args.camera else {})


def sampling_settings(sampling: "Sampling", negative_prompt: str) -> dict[str, Any]:
    """The keywords by which a call of the pipeline is told how to sample."""
    return {
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        "audio_guidance_scale": sampling.audio_guidance_scale,
        "modality_scale": sampling.modality_scale,
        "solver": sampling.solver,
        "negative_prompt": negative_prompt,
    }


def recorded_settings(
    pipeline: "VidGenPipeline", args: argparse.Namespace, settings: dict[str, Any], spec: ClipSpec
) -> dict[str, Any]:
    """All that decides a clip besides prompt and seed; ``settings`` are those of ``sampling_settings``."""
    return settings | {
        "num_frames": spec.num_frames,
        "height": spec.height,
        "width": spec.width,
        "frame_rate": str(spec.frame_rate),
        "sample_rate_hz": spec.sample_rate_hz,
        "device": str(pipeline.device),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        **material_settings(args),
        **({"quality": args.quality} if args.quality else {}),
        **({"lora": args.lora} if args.lora else {}),
        **({"model": str(args.model)} if args.model != SHIPPED_MODEL else {}),
    }


def tags(prompt: str, seed: int, settings: dict[str, Any], model_version: str) -> dict[str, str]:
    """The metadata of a clip's file; ``inspect.command`` makes a command of them."""
    return {
        "title": prompt,
        "comment": f"made by vidgen {__version__}, model {model_version}, seed {seed}",
        "prompt": prompt,
        "seed": str(seed),
        "settings": json.dumps(settings),
        "model_version": model_version,
    }


def file_stem(prompt: str, seed: int) -> str:
    """A file name, without its suffix, that tells prompt and seed."""
    slug = re.sub(r"\W+", "-", prompt.casefold()).strip("-_")[:60].rstrip("-") or "clip"
    return f"{slug}-{seed}"


def is_made_in_parts(spec: ClipSpec, defaults: GenerationConfig, is_one_piece: bool) -> bool:
    """Whether a clip is so long that it is made window by window; one with material, or a loop, never is."""
    return not is_one_piece and is_long(spec, defaults)


def is_long(spec: ClipSpec, defaults: GenerationConfig) -> bool:
    """Whether a clip is longer than can be made at once."""
    return spec.duration_s > IN_ONE_GO * defaults.spec().duration_s + 1e-6
