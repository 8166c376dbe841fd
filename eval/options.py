"""What ``eval.run`` may be told. ``vidgen eval`` reads it before torch is imported: help and mistakes come at once."""

import argparse
from pathlib import Path

from vidgen.errors import InputError
from vidgen.generation import QUALITIES
from vidgen.options import Parser

from .prompt_lists import LISTS

EXAMPLES = """examples:
  python -m eval.run --model weights --output out                           the tabletop suite
  python -m eval.run --model weights --model student --output out --blind   two models
  python -m eval.run --model weights --quality fast high --output out       a few-step student and its teacher
  python -m eval.run --suite my-clips --output out                          any folder of clips
  python -m eval.run --model weights --suite vbench --output out            VBench's prompts"""
DISTANCES = ("video", "frames", "sound")
VERIFIER = Path(__file__).resolve().parent / "weights"


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The options of ``eval.run``.

    Raises:
        InputError: options that cannot be read, or that contradict one another.
    """
    parser = Parser(
        prog="python -m eval.run", description="Score models, or any folder of clips.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--model", type=Path, action="append", default=[], help="folder of a model; may be repeated")
    parser.add_argument(
        "--clips", type=Path, action="append", default=[], metavar="FOLDER",
        help="clips that another program made for the suite's prompts, found by their captions; may be repeated",
    )  # fmt: skip
    parser.add_argument("--suite", default="tabletop", help="tabletop (default), vbench, or a folder of clips")
    parser.add_argument("--output", type=Path, required=True, help="folder for clips, results.json and report.html")
    what = parser.add_argument_group("what is made and measured")
    what.add_argument(
        "--quality", nargs="+", choices=QUALITIES, default=[None],
        help="the models' few-step students, their teachers with guidance, or both (default: the student if there is)",
    )  # fmt: skip
    what.add_argument("--prompts", type=Path, help="a JSON file instead of the suite's own prompts")
    what.add_argument(
        "--lists", nargs="+", choices=LISTS, default=["held_out"], help="tabletop: which fixed prompts (held_out)"
    )
    what.add_argument("--limit", type=int, help="the first so many prompts or clips")
    what.add_argument("--samples", type=int, default=1, help="clips of each prompt, with other seeds")
    what.add_argument("--reference", type=Path, help="a folder of clips that distances are taken from")
    what.add_argument("--reference-scenes", type=Path, help="the same, filmed of simulated scenes (.npz)")
    what.add_argument("--distances", nargs="+", choices=DISTANCES, default=list(DISTANCES), help="which (default: all)")
    what.add_argument("--i3d", type=Path, help="i3d_torchscript.pt to use for video in place of fetched weights")
    more = parser.add_argument_group(
        "what others' weights and packages add (python -m eval.doctor tells what is there)"
    )
    more.add_argument("--vbench-python", type=Path, help="Python of an environment that holds the package vbench")
    more.add_argument("--vbench-dimensions", nargs="+", metavar="NAME", help="which (default: all that apply)")
    more.add_argument("--clap", metavar="MODEL", help="CLAP: a folder, or a name on the hub")
    more.add_argument("--synchformer", type=Path, help="Synchformer as TorchScript")
    more.add_argument("--imagebind", type=Path, help="imagebind_huge.pth")
    how = parser.add_argument_group("how")
    how.add_argument("--workers", type=int, default=1, help="processes that make and measure clips")
    how.add_argument("--part", metavar="K/N", help="make the K-th of N parts of what is missing, and measure nothing")
    how.add_argument("--batch", type=int, default=4, help="clips made at once")
    how.add_argument("--device", default="auto", help="auto, cpu, cuda, mps: where clips are made")
    how.add_argument("--blind", action="store_true", help="report: models in random order, named at the end only")
    how.add_argument("--embed-mib", type=float, default=24.0, help="report: clips of so much in the page, more linked")
    check = parser.add_argument_group("tests of the instrument")
    check.add_argument("--real", type=Path, help="score clips of the generator from these trajectories (.npz) instead")
    check.add_argument("--blur", type=float, default=0.0, help="blur what the instrument sees by so many pixels")
    check.add_argument("--seed", type=int, default=0, help="of the looks of real and reference clips")
    check.add_argument("--verifier", type=Path, default=VERIFIER, help="weights of the instrument")
    args = parser.parse_args(argv)
    if min(args.limit or 1, args.batch, args.samples, args.workers) < 1 or args.limit == 0 or args.blur < 0:
        raise InputError("--limit, --batch, --samples and --workers must be at least 1, and --blur not negative")
    args.quality = list(dict.fromkeys(args.quality))
    scored = bool(args.model or args.clips)
    if args.suite == "tabletop" and scored == (args.real is not None):
        raise InputError("give either --model, --clips or --real, or a folder of clips as --suite")
    if args.suite == "vbench" and not scored:
        raise InputError("--suite vbench needs --model or --clips")
    if args.suite not in ("tabletop", "vbench") and not Path(args.suite).is_dir():
        raise InputError(f"--suite is tabletop, vbench or a folder of clips, and {args.suite} is no folder")
    if args.reference is not None and args.reference_scenes is not None:
        raise InputError("give --reference or --reference-scenes, not both")
    return args
