"""A prompt in, an mp4 with sound out:  python sample.py --prompt "a small red metal ball drops onto a wooden floor"

Pictures, a video or a sound may be given, and the rest is made: a picture that comes to life, a clip that goes on, …
Several prompts and several samples of each may be asked for; every clip depends only on its prompt, seed and settings.
"""

import argparse
import itertools
import json
import re
import secrets
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidgen import cli, published_clips, recipe
from vidgen.clip import ClipSpec
from vidgen.errors import InputError
from vidgen.generation import GenerationConfig, chosen_quality
from vidgen.options import parse_args
from vidgen.published_folders import is_published
from vidgen.recipe import file_stem

if TYPE_CHECKING:
    from vidgen.given import Given
    from vidgen.pipeline import VidGenPipeline

TIMED_PROMPT = re.compile(r"(\d+(?:\.\d+)?)s:\s*(\S.*)")


@dataclass(frozen=True)
class Job:
    prompt: str
    seed: int
    path: Path
    story: tuple[tuple[float, str], ...] = ()
    """Prompts that follow one another, each with the second from which on it holds; empty for a single prompt."""


def read_prompts(args: argparse.Namespace) -> list[str]:
    prompts = list(args.prompt)
    if args.prompt_file is not None:
        try:
            lines = args.prompt_file.read_text(encoding="utf-8").splitlines()
        except (FileNotFoundError, IsADirectoryError) as error:
            raise InputError(f"{args.prompt_file}: no such file") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{args.prompt_file}: is not a text file in UTF-8") from error
        prompts += [line for line in lines if line.strip()]
        if not prompts:
            raise InputError(f"{args.prompt_file}: holds no prompt")
    if not prompts:
        raise InputError('nothing to make: give --prompt "…" or --prompt-file')
    if not all(prompt.strip() for prompt in prompts):
        raise InputError("a prompt is empty: say what should be seen and heard")
    return [" ".join(prompt.split()) for prompt in prompts]


def read_story(prompts: list[str]) -> tuple[tuple[float, str], ...]:
    """Prompts like "8s: a ball rolls" as pairs (8.0, "a ball rolls"); none if they are not of that kind."""
    matches = [TIMED_PROMPT.fullmatch(prompt) for prompt in prompts]
    if not any(matches):
        return ()
    if not all(matches):
        raise InputError('prompts with a time ("8s: a ball rolls in") are one story: give all of them a time, or none')
    return tuple((float(match[1]), match[2]) for match in matches if match)


def plan(args: argparse.Namespace) -> list[Job]:
    """The clips to make, each with its own file name."""
    prompts = read_prompts(args)
    story = read_story(prompts)
    if story:
        prompts = [" ".join(prompts)]
    first_seed = secrets.randbelow(2**31) if args.seed is None else args.seed
    pairs = [(prompt, first_seed + index) for prompt in prompts for index in range(args.num_samples)]
    if args.output.suffix.lower() == ".mp4":
        if len(pairs) > 1:
            raise InputError(f"{len(pairs)} clips cannot go into one file: give a folder as --output")
        if args.output.is_dir():
            raise InputError(f"{args.output} is a folder")
        return [Job(*pairs[0], args.output, story)]
    if args.output.suffix.lower() in (".mov", ".mkv", ".webm", ".avi", ".gif"):
        raise InputError(f"only mp4 is written: name the output {args.output.with_suffix('.mp4').name}")
    jobs: list[Job] = []
    for prompt, seed in pairs:
        stem = file_stem(prompt, seed)
        path = args.output / f"{stem}.mp4"
        copies = sum(job.prompt == prompt and job.seed == seed for job in jobs)
        taken = {job.path for job in jobs}
        while path in taken:
            copies += 1
            path = args.output / f"{stem}-{copies}.mp4"
        jobs.append(Job(prompt, seed, path, story))
    return jobs


def ensure_writable(folder: Path) -> None:
    """Find out before minutes of work, not after; an OSError is reported by ``vidgen.cli``."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder: --output is a folder, or a file named .mp4 in one")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    jobs = plan(args)
    if is_published(args.model):
        published_clips.check(args, jobs)
        ensure_writable(jobs[0].path.parent)
        published_clips.make(args, jobs)
        return
    if args.add_audio is not None:
        raise InputError("--add-audio is for published models: vidgen's own make sound (for a clip: --only audio)")
    asked = args.quality
    args.quality = chosen_quality(args.model, asked or recipe.quality_needed(args, bool(jobs[0].story)))
    defaults = GenerationConfig.load(args.model, args.quality)
    given, spec, notes = recipe.read_material(args, defaults, recipe.clip_spec(args, defaults))
    if not args.lora:  # which may have taught it further words
        notes += defaults.notes_on(" ".join(job.prompt for job in jobs))
    if asked is None and args.quality != chosen_quality(args.model):
        notes.append("made by the teacher (--quality high): the student makes whole clips from a prompt alone")
    if notes:
        print("; ".join(notes), file=sys.stderr)
    if args.camera is not None:
        defaults.with_camera("", args.camera)  # before anything is loaded
    if (given is not None or args.loop) and jobs[0].story:
        raise InputError("what is given, and --loop, go with one prompt, not with prompts that follow one another")
    ensure_writable(jobs[0].path.parent)
    cli.keep_freed_memory()
    make(args, jobs, spec, given)


def make(args: argparse.Namespace, jobs: list[Job], spec: ClipSpec, given: "Given | None" = None) -> None:
    import torch
    from tqdm import tqdm

    from vidgen.loading import choose_device
    from vidgen.pipeline import VidGenPipeline

    start_s = time.perf_counter()
    device = choose_device(args.device)
    dtype = None if args.dtype == "auto" else getattr(torch, args.dtype)
    pipeline = VidGenPipeline.from_pretrained(args.model, torch_dtype=dtype, device=device, quality=args.quality)
    if args.lora:
        from vidgen.lora import Lora, load_loras

        load_loras(pipeline.transformer, [Lora.parse(text) for text in args.lora], fuse=True)
    load_s = time.perf_counter() - start_s

    sampling = pipeline.sampling(args.steps, args.guidance, args.audio_guidance, args.modality_guidance, args.solver)
    settings = recipe.sampling_settings(sampling, args.negative_prompt)
    story = {"story": jobs[0].story} if jobs[0].story else {}
    recorded = recipe.recorded_settings(pipeline, args, settings, spec) | story
    version = pipeline.generation.model_version
    is_one_piece = given is not None or args.loop
    in_parts = bool(jobs[0].story) or recipe.is_made_in_parts(spec, pipeline.generation, is_one_piece)
    per_clip = spec.num_frames if in_parts else sampling.steps + 1  # one more for decoding and writing
    unit = "frame" if in_parts else "step"
    with tqdm(total=len(jobs) * per_clip, unit=unit, disable=not sys.stderr.isatty(), leave=False) as bar:
        for job in jobs:
            bar.set_description(job.prompt[:30])
            tags = recipe.tags(job.prompt, job.seed, recorded, version)
            if in_parts:
                seconds = make_in_parts(pipeline, job, spec, settings, tags, args, bar)
            else:
                seconds = make_at_once(pipeline, job, spec, given, settings, tags, args, bar)
            if args.json:
                line = {
                    "path": str(job.path),
                    "prompt": job.prompt,
                    "seed": job.seed,
                    "model_version": version,
                    "settings": recorded,
                    "duration_s": spec.duration_s,
                    "seconds": {stage: round(value, 4) for stage, value in ({"load": load_s} | seconds).items()},
                    "peak_memory_mib": cli.peak_memory_mib(),
                }
                if device.type == "cuda":
                    line["peak_device_memory_mib"] = torch.cuda.max_memory_allocated(device) // 2**20
                bar.write(json.dumps(line), file=sys.stdout)
            else:
                bar.write(str(job.path), file=sys.stdout)
            load_s = 0.0


def make_at_once(
    pipeline: "VidGenPipeline", job: Job, spec: ClipSpec, given: "Given | None", settings: dict[str, Any],
    tags: dict[str, str], args: argparse.Namespace, bar: Any,
) -> dict[str, float]:  # fmt: skip
    """Make a clip and write its file; the seconds of each stage."""
    import torch

    from vidgen.media import write_video

    def on_step_end(_pipeline, _step, _time, values):
        bar.update()
        return values

    output = pipeline(
        job.prompt,
        given=given,
        with_audio=not args.no_audio,
        loop=args.loop,
        camera=args.camera,
        num_frames=spec.num_frames,
        height=spec.height,
        width=spec.width,
        frame_rate=spec.frame_rate,
        generator=torch.Generator().manual_seed(job.seed),
        callback_on_step_end=on_step_end,
        **settings,
    )
    muxing_s = time.perf_counter()
    frames, waveform = output.frames[0], None if output.audio is None else output.audio[0]
    write_video(job.path, frames, waveform, spec.frame_rate, spec.sample_rate_hz, tags)
    if args.preview:
        save_preview(job, frames, waveform, spec)
    bar.update()
    return output.seconds | {"mux": time.perf_counter() - muxing_s}


def make_in_parts(
    pipeline: "VidGenPipeline", job: Job, spec: ClipSpec, settings: dict[str, Any], tags: dict[str, str],
    args: argparse.Namespace, bar: Any,
) -> dict[str, float]:  # fmt: skip
    """Make a long clip window by window and write each part as it is made, into a file that can be played meanwhile.

    What was written stays playable when the work ends early.
    """
    import numpy as np
    import torch

    from vidgen.media import ClipWriter

    start_s = time.perf_counter()
    story: Any = job.story or ((0.0, job.prompt),)
    if args.camera is not None:
        story = [(time_s, pipeline.generation.with_camera(prompt, args.camera)) for time_s, prompt in story]
    chunks = pipeline.stream(
        story,
        spec.duration_s,
        with_audio=not args.no_audio,
        height=spec.height,
        width=spec.width,
        frame_rate=spec.frame_rate,
        generator=torch.Generator().manual_seed(job.seed),
        **settings,
    )
    first = next(chunks)
    seconds = {"first_part": time.perf_counter() - start_s}
    shown, heard = [], []  # a frame a second, and the sound, for the preview
    step = max(1, round(spec.frame_rate))
    with ClipWriter(
        job.path, (spec.height, spec.width), spec.frame_rate, channels=0 if args.no_audio else 1,
        sample_rate_hz=spec.sample_rate_hz, metadata=tags, progressive=True,
    ) as writer:  # fmt: skip
        try:
            for chunk in itertools.chain([first], chunks):
                writer.add(chunk.frames, None if chunk.waveform is None else chunk.waveform[None])
                bar.update(len(chunk.frames))
                if args.preview:
                    shown.append(chunk.frames[-chunk.start_frame % step :: step].copy())
                    heard += [] if chunk.waveform is None else [chunk.waveform]
        except KeyboardInterrupt:
            seconds_made = float(writer.frames_written / spec.frame_rate)
            bar.write(f"{job.path} holds the first {seconds_made:.2f} s", file=sys.stderr)
            raise
    if args.preview:
        save_preview(job, np.concatenate(shown), np.concatenate(heard) if heard else None, spec)
    return seconds | {"all_parts": time.perf_counter() - start_s}


def save_preview(job: Job, frames: Any, waveform: Any, spec: ClipSpec) -> None:
    from vidgen.media import contact_sheet, save_sheet

    title = f"{job.prompt}  (seed {job.seed})"
    save_sheet(job.path.with_suffix(".png"), [contact_sheet(frames, waveform, spec.sample_rate_hz, title)])


if __name__ == "__main__":
    cli.run(main)
