"""The files of ``sample.py`` where ``--model`` is a published pipeline: the same prompts, seeds, names and metadata."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from . import __version__, cli
from .errors import InputError

NOT_FOR_OTHERS = {
    "keyframe": "--keyframe", "video": "--video", "extend": "--extend", "replace": "--replace", "audio": "--audio",
    "only": "--only", "mask": "--mask", "strength": "--strength", "loop": "--loop", "camera": "--camera",
    "solver": "--solver", "quality": "--quality", "modality_guidance": "--modality-guidance",
}  # fmt: skip
"""Flags that only vidgen's own models understand."""


class Job(Protocol):
    """As ``sample.py`` plans it."""

    @property
    def prompt(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def path(self) -> Path: ...
    @property
    def story(self) -> tuple[tuple[float, str], ...]: ...


def check(args: argparse.Namespace, jobs: Sequence[Job]) -> None:
    """Raise InputError for what no published pipeline can do; before anything heavy is imported."""
    for name, flag in NOT_FOR_OTHERS.items():
        if getattr(args, name, None) not in (None, [], False):
            raise InputError(f"{flag} works with vidgen's own models only: leave it out, or leave out --model")
    if jobs[0].story:
        raise InputError("prompts with a time work with vidgen's own models only")
    for path in (args.image, args.last_image):
        if path is not None and not path.is_file():
            raise InputError(f"{path}: no such file")


def make(args: argparse.Namespace, jobs: Sequence[Job]) -> None:
    """Make every job's clip and write its file.

    Raises:
        InputError: the model cannot be loaded, or not do what was asked for.
    """
    from tqdm import tqdm

    from .material import open_picture
    from .media import contact_sheet, save_sheet, write_video
    from .published import Asked, open_model

    start_s = time.perf_counter()
    model = open_model(args.model, args.device, args.dtype, for_picture=args.image is not None)
    if args.add_audio is not None and model.has_sound and not args.no_audio:
        raise InputError(f"{model.name} makes sound of its own: give --no-audio with --add-audio to replace it")
    model.load_loras(args.lora)
    width, height = args.size or (None, None)
    wanted = {
        "negative_prompt": args.negative_prompt or None,
        "height": height,
        "width": width,
        "duration_s": args.duration,
        "frame_rate": args.fps,
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance,
        "audio_guidance_scale": args.audio_guidance,
        "with_audio": not args.no_audio,
    }
    pictures: dict[str, Any] = {
        name: open_picture(getattr(args, name)) for name in ("image", "last_image") if getattr(args, name)
    }
    model.arguments(Asked(**wanted, **pictures), model.frame_rate(Asked(**wanted)))  # refused now, not after minutes
    hearing = None
    if args.add_audio is not None:
        from .loading import choose_device
        from .pipeline import VidGenPipeline

        hearing = VidGenPipeline.from_pretrained(  # a student never learned to heed what is given
            args.add_audio, device=choose_device(args.device), quality="high"
        )
    print(f"{model.name}: {model.placement}", file=sys.stderr)
    load_s = time.perf_counter() - start_s
    for job in tqdm(jobs, unit="clip", disable=not sys.stderr.isatty() or len(jobs) == 1, leave=False):
        begun_s = time.perf_counter()
        made = model.make(job.prompt, Asked(**wanted, **pictures, seed=job.seed))
        seconds = {"load": load_s, "make": time.perf_counter() - begun_s}
        waveform, sample_rate_hz = made.waveform, made.sample_rate_hz
        if hearing is not None:
            from .foley import add_sound

            begun_s = time.perf_counter()
            waveform, sample_rate_hz = add_sound(hearing, made.frames, made.frame_rate, job.prompt, job.seed)
            seconds["add_audio"] = time.perf_counter() - begun_s
        elif waveform is not None:
            _say_if_lengths_differ(waveform.shape[1] / sample_rate_hz, float(len(made.frames) / made.frame_rate))
        made_s = float(len(made.frames) / made.frame_rate)
        if args.duration is not None and abs(made_s - args.duration) > max(0.2, 0.1 * args.duration):
            print(f"{model.name} makes {made_s:.2f} s where {args.duration:g} s were asked for", file=sys.stderr)
        recorded = _recorded(args, made, sample_rate_hz)
        tags = {
            "title": job.prompt,
            "comment": f"made by vidgen {__version__} with {args.model.name}, seed {job.seed}",
            "prompt": job.prompt,
            "seed": str(job.seed),
            "settings": json.dumps(recorded),
            "model_version": args.model.name,
        }
        write_video(job.path, made.frames, waveform, made.frame_rate, sample_rate_hz or 24000, tags)
        if args.preview:
            title = f"{job.prompt}  (seed {job.seed})"
            sound = None if waveform is None else waveform if waveform.ndim == 1 else waveform.mean(axis=0)
            save_sheet(job.path.with_suffix(".png"), [contact_sheet(made.frames, sound, sample_rate_hz, title)])
        line = {
            "path": str(job.path),
            "prompt": job.prompt,
            "seed": job.seed,
            "model_version": args.model.name,
            "settings": recorded,
            "duration_s": made_s,
            "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
            "peak_memory_mib": cli.peak_memory_mib(),
        }
        tqdm.write(json.dumps(line) if args.json else str(job.path), file=sys.stdout)
        load_s = 0.0


def _recorded(args: argparse.Namespace, made: Any, sample_rate_hz: int) -> dict[str, Any]:
    """What ``python -m vidgen.inspect`` needs to tell the command again."""
    values = {
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance,
        "audio_guidance_scale": args.audio_guidance,
        "negative_prompt": args.negative_prompt,
        "num_frames": len(made.frames),
        "height": made.frames.shape[1],
        "width": made.frames.shape[2],
        "frame_rate": str(made.frame_rate),
        "sample_rate_hz": sample_rate_hz,
        "device": args.device,
        "dtype": args.dtype,
        "model": str(args.model),
    }
    given = {name: getattr(args, name).name for name in ("image", "last_image") if getattr(args, name) is not None}
    values |= {"given": given} if given else {}
    values |= {"with_audio": False} if args.no_audio else {}
    values |= {"lora": args.lora} if args.lora else {}
    return values | ({} if args.add_audio is None else {"add_audio": str(args.add_audio)})


def _say_if_lengths_differ(sound_s: float, picture_s: float) -> None:
    if abs(sound_s - picture_s) > 0.1 * picture_s + 0.1:
        print(f"the sound lasts {sound_s:.2f} s, the picture {picture_s:.2f} s: it is cut or padded, not "
              "stretched; --fps sets the picture's rate", file=sys.stderr)  # fmt: skip
