"""A prompt in, an mp4 with sound out:  python sample.py --prompt "a small red metal ball drops onto a wooden floor"

Pictures, a video or a sound may be given, and the rest is made: a picture that comes to life, a clip that goes on, …
Several prompts and several samples of each may be asked for; every clip depends only on its prompt, seed and settings.
"""

import argparse
import json
import math
import re
import secrets
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidgen import __version__, cli
from vidgen.clip import ClipSpec
from vidgen.errors import InputError
from vidgen.generation import SHIPPED_MODEL, GenerationConfig

if TYPE_CHECKING:
    from vidgen.given import Given

MAX_SEED = 2**63 - 1
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0


@dataclass(frozen=True)
class Job:
    prompt: str
    seed: int
    path: Path


class Parser(argparse.ArgumentParser):
    """Takes ``--num_samples`` for ``--num-samples``, and reports what is wrong in one line."""

    def parse_args(self, args=None, namespace=None):
        given = sys.argv[1:] if args is None else list(args)
        flags = [re.match(r"--[a-z][a-z_-]*(?==|$)", argument) for argument in given]
        given = [
            flag[0].replace("_", "-") + argument[flag.end() :] if flag else argument
            for flag, argument in zip(flags, given, strict=True)
        ]
        return super().parse_args(given, namespace)

    def error(self, message: str):
        raise InputError(f"{message} (see --help)")


def size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})[xX×*](\d{1,5})", text.strip())
    if not match:
        raise argparse.ArgumentTypeError(f"a size looks like 128x128 (width x height), not {text!r}")
    return int(match[1]), int(match[2])


def frame_rate(text: str) -> Fraction:
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"a frame rate looks like 24, 23.976 or 24000/1001, not {text!r}") from error
    for whole in (24, 30, 60, 120):  # 23.976, 29.97 and their like stand for exact fractions
        if abs(rate - Fraction(whole * 1000, 1001)) < Fraction(5, 1000):
            return Fraction(whole * 1000, 1001)
    return rate


def keyframe(text: str) -> tuple[int, Path]:
    match = re.fullmatch(r"(\d{1,6})=(.+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"a keyframe looks like 24=picture.png (frame=file), not {text!r}")
    return int(match[1]), Path(match[2])


def span(text: str) -> tuple[float, float]:
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)-(\d+(?:\.\d*)?|\.\d+)", text.strip())
    if not match or float(match[1]) >= float(match[2]):
        raise argparse.ArgumentTypeError(f"a span looks like 0.5-1.25 (seconds, start before end), not {text!r}")
    return float(match[1]), float(match[2])


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description="Turn prompts into short videos with sound.", allow_abbrev=False)
    what = parser.add_argument_group("what to make")
    what.add_argument("--prompt", nargs="+", action="extend", default=[], help="one or several; may be repeated")
    what.add_argument("--prompt-file", type=Path, help="a text file with one prompt a line")
    what.add_argument("--negative-prompt", default="", help="what to keep away from")
    what.add_argument("--num-samples", type=int, default=1, help="clips for each prompt, with consecutive seeds")
    what.add_argument("--seed", type=int, help="the same seed and settings give the same clip (default: drawn)")
    what.add_argument("--duration", type=float, metavar="SECONDS", help="default: the model's own")
    what.add_argument("--size", type=size, metavar="WxH", help="in pixels (default: the model's own)")
    what.add_argument("--fps", type=frame_rate, help="frames a second, also as a fraction: 24000/1001")
    there = parser.add_argument_group("from what is there", "Files of any size, rate and rotation; the rest is made.")
    there.add_argument("--image", type=Path, metavar="PATH", help="the first frame")
    there.add_argument("--last-image", type=Path, metavar="PATH", help="the last frame")
    there.add_argument("--keyframe", type=keyframe, action="append", default=[], metavar="FRAME=PATH",
                       help="a frame, counted from 0; may be repeated")  # fmt: skip
    there.add_argument("--video", type=Path, metavar="CLIP", help="goes with --extend, --replace or --only audio")
    there.add_argument("--extend", type=float, metavar="SECONDS", help="go on after the clip; negative: lead up to it")
    there.add_argument("--replace", type=span, metavar="START-END", help="seconds of the clip to make anew")
    there.add_argument("--audio", type=Path, metavar="FILE", help="any file with sound, to make a picture for")
    there.add_argument(
        "--only",
        choices=("video", "audio"),
        help="make just this, and keep the other (a kept picture passes through the VAE)",
    )
    there.add_argument("--no-audio", action="store_true", help="make no sound: an mp4 without a sound track")
    where = parser.add_argument_group("where to")
    where.add_argument(
        "--output", type=Path, default=Path("outputs"), help="an .mp4 file, or a folder (default: %(default)s)"
    )
    where.add_argument("--preview", action="store_true", help="also write a PNG of frames, waveform and spectrogram")
    where.add_argument("--json", action="store_true", help="print one line of JSON for each clip")
    how = parser.add_argument_group("how")
    how.add_argument("--model", type=Path, default=SHIPPED_MODEL, help="folder of a model (default: the shipped one)")
    how.add_argument("--steps", type=int, help="steps of the solver (default: the model's own)")
    how.add_argument("--guidance", type=float, help="how strongly the prompt rules; 1 turns guidance off")
    how.add_argument("--audio-guidance", type=float, help="the same for the sound")
    how.add_argument("--solver", choices=("euler", "heun", "midpoint"), help="the last two take twice the time a step")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    how.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    args = parser.parse_args(argv)
    check(args)
    return args


def check(args: argparse.Namespace) -> None:
    """Everything that can be known to be wrong before anything heavy is imported."""
    if args.num_samples < 1:
        raise InputError(f"--num-samples must be at least 1, not {args.num_samples}")
    if args.seed is not None and not 0 <= args.seed <= MAX_SEED - args.num_samples:
        raise InputError(f"--seed must lie between 0 and 2^63, not {args.seed}")
    if args.steps is not None and not 1 <= args.steps <= MAX_STEPS:
        raise InputError(f"--steps must lie between 1 and {MAX_STEPS}, not {args.steps}")
    for flag, scale in (("--guidance", args.guidance), ("--audio-guidance", args.audio_guidance)):
        if scale is not None and not 0 <= scale <= MAX_GUIDANCE:
            raise InputError(f"{flag} must lie between 0 and {MAX_GUIDANCE:g}, not {scale}")
    check_material(args)


def check_material(args: argparse.Namespace) -> None:
    """What is given must say one thing."""
    has_extend, has_replace = args.extend is not None, args.replace is not None
    frames = [frame for frame, _ in args.keyframe] + ([] if args.image is None else [0])
    contradictions = (
        (args.video is None and (has_extend or has_replace), "--extend and --replace need --video"),
        (args.video is None and args.audio is None and args.only is not None, "--only needs --video or --audio"),
        (args.video is not None and args.audio is not None, "give --video or --audio, not both"),
        (has_extend and has_replace, "give --extend or --replace, not both"),
        (has_extend and args.only is not None, "--extend goes on with picture and sound: --only does not fit"),
        (has_extend and not math.isfinite(args.extend), f"--extend needs a number of seconds, not {args.extend}"),
        (args.video is not None and not has_extend and not has_replace and args.only != "audio",
         "say what to do with --video: --extend, --replace or --only audio (a picture for its sound is --audio CLIP)"),
        (args.audio is not None and args.only == "audio", "--audio is given, so --only audio leaves nothing to make"),
        (args.no_audio and args.audio is not None, "--no-audio contradicts --audio"),
        (args.no_audio and args.only == "audio", "--no-audio contradicts --only audio"),
        (args.duration is not None and (has_extend or has_replace),
         "--duration does not fit --extend and --replace: the clip's length decides"),
        (len(set(frames)) < len(frames), "a frame is given twice by --image and --keyframe"),
    )  # fmt: skip
    for is_wrong, message in contradictions:
        if is_wrong:
            raise InputError(message)


def read_material(
    args: argparse.Namespace, defaults: GenerationConfig, spec: ClipSpec
) -> tuple["Given | None", ClipSpec]:
    """What the user's files give, and the clip that comes of it; what was changed in them is said on stderr."""
    keyframes = dict(args.keyframe)
    for frame, path in ((0, args.image), (-1, args.last_image)):
        if path is not None:
            keyframes[frame] = path
    if not keyframes and args.video is None and args.audio is None:
        return None, spec
    from vidgen.material import read_given

    own = defaults.spec(height=spec.height, width=spec.width, frame_rate=spec.frame_rate)
    given, spec, notes = read_given(
        spec,
        replace(own, num_frames=2 * own.num_frames),
        keyframes=keyframes,
        video=args.video,
        extend_s=args.extend,
        replaced=args.replace,
        only=args.only,
        audio=args.audio,
        with_audio=not args.no_audio,
        has_duration=args.duration is not None,
    )
    if notes:
        print("; ".join(notes), file=sys.stderr)
    return given, spec


def material_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What was given, by file name, as the settings record it; empty if nothing was."""
    paths = {"image": args.image, "last_image": args.last_image, "video": args.video, "audio": args.audio}
    values: dict[str, Any] = {name: path.name for name, path in paths.items() if path is not None}
    if args.keyframe:
        values["keyframes"] = {str(frame): path.name for frame, path in args.keyframe}
    choices = {"extend_s": args.extend, "replaced_s": args.replace, "only": args.only}
    values |= {name: value for name, value in choices.items() if value is not None}
    return ({"given": values} if values else {}) | ({"with_audio": False} if args.no_audio else {})


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


def plan(args: argparse.Namespace) -> list[Job]:
    """The clips to make, each with its own file name."""
    prompts = read_prompts(args)
    first_seed = secrets.randbelow(2**31) if args.seed is None else args.seed
    pairs = [(prompt, first_seed + index) for prompt in prompts for index in range(args.num_samples)]
    if args.output.suffix.lower() == ".mp4":
        if len(pairs) > 1:
            raise InputError(f"{len(pairs)} clips cannot go into one file: give a folder as --output")
        if args.output.is_dir():
            raise InputError(f"{args.output} is a folder")
        return [Job(*pairs[0], args.output)]
    if args.output.suffix.lower() in (".mov", ".mkv", ".webm", ".avi", ".gif"):
        raise InputError(f"only mp4 is written: name the output {args.output.with_suffix('.mp4').name}")
    jobs: list[Job] = []
    for prompt, seed in pairs:
        slug = re.sub(r"\W+", "-", prompt.casefold()).strip("-_")[:60].rstrip("-") or "clip"
        path = args.output / f"{slug}-{seed}.mp4"
        copies = sum(job.prompt == prompt and job.seed == seed for job in jobs)
        taken = {job.path for job in jobs}
        while path in taken:
            copies += 1
            path = args.output / f"{slug}-{seed}-{copies}.mp4"
        jobs.append(Job(prompt, seed, path))
    return jobs


def ensure_writable(folder: Path) -> None:
    """Find out before minutes of work, not after; an OSError is reported by ``vidgen.cli``."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    jobs = plan(args)
    defaults = GenerationConfig.load(args.model)
    width, height = args.size or (None, None)
    spec = defaults.spec(duration_s=args.duration, height=height, width=width, frame_rate=args.fps)
    given, spec = read_material(args, defaults, spec)
    ensure_writable(jobs[0].path.parent)
    cli.keep_freed_memory()
    make(args, jobs, spec, given)


def make(args: argparse.Namespace, jobs: list[Job], spec: ClipSpec, given: "Given | None" = None) -> None:
    import torch
    from tqdm import tqdm

    from vidgen.loading import choose_device
    from vidgen.media import contact_sheet, save_sheet, write_video
    from vidgen.pipeline import VidGenPipeline

    start_s = time.perf_counter()
    device = choose_device(args.device)
    dtype = None if args.dtype == "auto" else getattr(torch, args.dtype)
    pipeline = VidGenPipeline.from_pretrained(args.model, torch_dtype=dtype, device=device)
    load_s = time.perf_counter() - start_s

    defaults = pipeline.generation
    guidance = defaults.guidance_scale if args.guidance is None else args.guidance
    if args.audio_guidance is not None:
        audio_guidance = args.audio_guidance
    else:
        audio_guidance = defaults.audio_guidance_scale if args.guidance is None else args.guidance
    settings = {
        "num_inference_steps": args.steps or defaults.num_inference_steps,
        "guidance_scale": guidance,
        "audio_guidance_scale": audio_guidance,
        "solver": args.solver or defaults.solver,
        "negative_prompt": args.negative_prompt,
    }
    recorded = settings | {
        "num_frames": spec.num_frames,
        "height": spec.height,
        "width": spec.width,
        "frame_rate": str(spec.frame_rate),
        "sample_rate_hz": spec.sample_rate_hz,
        "device": str(device),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        **material_settings(args),
    }
    steps = settings["num_inference_steps"] + 1  # one more for decoding and writing
    with tqdm(total=len(jobs) * steps, unit="step", disable=not sys.stderr.isatty(), leave=False) as bar:

        def on_step_end(_pipeline, _step, _time, values):
            bar.update()
            return values

        for job in jobs:
            bar.set_description(job.prompt[:30])
            output = pipeline(
                job.prompt,
                given=given,
                with_audio=not args.no_audio,
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
            tags = {
                "title": job.prompt,
                "comment": f"made by vidgen {__version__}, model {defaults.model_version}, seed {job.seed}",
                "prompt": job.prompt,
                "seed": str(job.seed),
                "settings": json.dumps(recorded),
                "model_version": defaults.model_version,
            }
            write_video(job.path, frames, waveform, spec.frame_rate, spec.sample_rate_hz, tags)
            if args.preview:
                save_sheet(
                    job.path.with_suffix(".png"),
                    [contact_sheet(frames, waveform, spec.sample_rate_hz, f"{job.prompt}  (seed {job.seed})")],
                )
            seconds = output.seconds | {"mux": time.perf_counter() - muxing_s}
            bar.update()
            if args.json:
                line = {
                    "path": str(job.path),
                    "prompt": job.prompt,
                    "seed": job.seed,
                    "model_version": defaults.model_version,
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


if __name__ == "__main__":
    cli.run(main)
