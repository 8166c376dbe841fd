"""What ``sample.py`` may be told, and what of it can be known to be wrong before anything heavy is imported."""

import argparse
import math
import re
import sys
from fractions import Fraction
from pathlib import Path

from .errors import InputError
from .generation import QUALITIES, SHIPPED_MODEL

MAX_SEED = 2**63 - 1
MAX_STEPS = 1000
MAX_GUIDANCE = 100.0


EXAMPLES = """examples:
  sample.py --prompt "a small red metal ball drops onto a wooden floor" --output ball.mp4
  sample.py --prompt "a big ball rolls" --seed 3 --num-samples 4 --preview --output clips
  sample.py --prompt "0s: a small blue cube drops" "2s: a big red ball rolls in" --duration 5
  sample.py --prompt "a big cube slides" --video ball.mp4 --extend 1
  sample.py --prompt "a big cube slides" --video ball.mp4 --mask where.png --strength 0.7
  sample.py --prompt "a big wooden cube slides" --video silent.mp4 --only audio
  sample.py --model Lightricks/LTX-Video --prompt "waves on a beach" --add-audio"""


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
    parser = Parser(
        description="Turn prompts into short videos with sound.", epilog=EXAMPLES, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    what = parser.add_argument_group("what to make")
    what.add_argument(
        "--prompt",
        nargs="+",
        action="extend",
        default=[],
        help='one or several, or a story: "0s: a ball rolls in" "4s: …"',
    )
    what.add_argument("--prompt-file", type=Path, help="a text file with one prompt a line")
    what.add_argument("--negative-prompt", default="", help="what to keep away from")
    what.add_argument("--num-samples", type=int, default=1, help="clips for each prompt, with consecutive seeds")
    what.add_argument("--seed", type=int, help="the same seed and settings give the same clip (default: drawn)")
    what.add_argument("--duration", type=float, metavar="SECONDS", help="default: the model's own")
    what.add_argument("--size", type=size, metavar="WxH", help="in pixels (default: the model's own)")
    what.add_argument("--camera", metavar="MOVE", help="a move that the model knows by name, as orbits-left, zooms-in")
    what.add_argument("--fps", type=frame_rate, help="frames a second, also as a fraction: 24000/1001")
    there = parser.add_argument_group("from what is there", "Files of any size, rate and rotation; the rest is made.")
    there.add_argument("--image", type=Path, metavar="PATH", help="the first frame")
    there.add_argument("--last-image", type=Path, metavar="PATH", help="the last frame")
    there.add_argument("--keyframe", type=keyframe, action="append", default=[], metavar="FRAME=PATH",
                       help="a frame, counted from 0; may be repeated")  # fmt: skip
    there.add_argument("--loop", action="store_true", help="after the last frame comes the first")
    there.add_argument("--video", type=Path, metavar="CLIP", help="goes with one or more of the following")
    there.add_argument("--extend", type=float, metavar="SECONDS", help="go on after the clip; negative: lead up to it")
    there.add_argument("--replace", type=span, metavar="START-END", help="seconds of the clip to make anew")
    there.add_argument("--mask", type=Path, metavar="PATH", help="white where the video's picture is to be made anew")
    there.add_argument(
        "--strength", type=float, metavar="0-1", help="how far what is made anew may depart from the video (default: 1)"
    )
    there.add_argument("--audio", type=Path, metavar="FILE", help="any file with sound, to make a picture for")
    there.add_argument(
        "--only",
        choices=("video", "audio"),
        help="make just this, and keep the other",
    )
    there.add_argument("--no-audio", action="store_true", help="make no sound: an mp4 without a sound track")
    there.add_argument("--add-audio", nargs="?", type=Path, const=SHIPPED_MODEL, metavar="MODEL",
                       help="sound for a silent --model, by one that hears its picture (the shipped one)")  # fmt: skip
    where = parser.add_argument_group("where to")
    where.add_argument(
        "--output", type=Path, default=Path("outputs"), help="an .mp4 file, or a folder (default: %(default)s)"
    )
    where.add_argument("--preview", action="store_true", help="also write a PNG of frames, waveform and spectrogram")
    where.add_argument("--json", action="store_true", help="print one line of JSON for each clip")
    how = parser.add_argument_group("how")
    how.add_argument("--model", type=Path, default=SHIPPED_MODEL, metavar="MODEL",
                     help="a folder, or ORG/NAME of any diffusers video pipeline (default: the shipped)")  # fmt: skip
    how.add_argument("--quality", choices=QUALITIES,
                     help="fast: the model's few-step student, where it has one (default); high: guided")  # fmt: skip
    how.add_argument("--lora", nargs="+", action="extend", default=[], metavar="PATH[:SCALE]",
                     help="adapters: a file, or a folder of train.py --lora-rank; scale 1 by default")  # fmt: skip
    how.add_argument("--steps", type=int, help="steps of the solver (default: the model's own)")
    how.add_argument("--guidance", type=float, help="how strongly the prompt rules; 1 turns guidance off")
    how.add_argument("--audio-guidance", type=float, help="the same for the sound")
    how.add_argument("--modality-guidance", type=float,
                     help="how strongly picture and sound heed one another; 1 is off, and faster")  # fmt: skip
    how.add_argument("--solver", choices=("euler", "euler_ancestral", "heun", "midpoint"),
                     help="the second adds fresh noise in each step; the last two take twice the time")  # fmt: skip
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
    for flag, scale in (("--guidance", args.guidance), ("--audio-guidance", args.audio_guidance),
                        ("--modality-guidance", args.modality_guidance)):  # fmt: skip
        if scale is not None and not 0 <= scale <= MAX_GUIDANCE:
            raise InputError(f"{flag} must lie between 0 and {MAX_GUIDANCE:g}, not {scale}")
    check_material(args)


def check_material(args: argparse.Namespace) -> None:
    """What is given must say one thing."""
    has_extend, has_replace = args.extend is not None, args.replace is not None
    edits = has_replace or args.mask is not None or args.strength is not None
    frames = [frame for frame, _ in args.keyframe] + ([] if args.image is None else [0])
    contradictions = (
        (args.video is None and (has_extend or edits), "--extend, --replace, --mask and --strength need --video"),
        (args.video is None and args.audio is None and args.only is not None, "--only needs --video or --audio"),
        (args.video is not None and args.audio is not None, "give --video or --audio, not both"),
        (has_extend and edits, "give --extend, or what to make anew (--replace, --mask, --strength): not both"),
        (args.mask is not None and args.only == "audio", "--mask marks the picture, so --only audio does not fit"),
        (args.strength is not None and not 0 < args.strength <= 1,
         f"--strength lies above 0 and up to 1, not at {args.strength}"),
        (args.strength is not None and (frames or args.last_image is not None),
         "--strength starts from the video: no other picture fits"),
        (args.loop and (args.video is not None or args.last_image is not None),
         "--loop ends with its first frame: --video and --last-image do not fit"),
        (has_extend and args.only is not None, "--extend goes on with picture and sound: --only does not fit"),
        (has_extend and not math.isfinite(args.extend), f"--extend needs a number of seconds, not {args.extend}"),
        (args.video is not None and not has_extend and not edits and args.only != "audio",
         "say what to do with --video: --extend, --replace, --mask, --strength or --only audio (a picture for its "
         "sound is --audio CLIP)"),
        (args.audio is not None and args.only == "audio", "--audio is given, so --only audio leaves nothing to make"),
        (args.no_audio and args.audio is not None, "--no-audio contradicts --audio"),
        (args.no_audio and args.only == "audio", "--no-audio contradicts --only audio"),
        (args.duration is not None and (has_extend or edits), "--duration does not fit: the length of --video decides"),
        (len(set(frames)) < len(frames), "a frame is given twice by --image and --keyframe"),
    )  # fmt: skip
    for is_wrong, message in contradictions:
        if is_wrong:
            raise InputError(message)
