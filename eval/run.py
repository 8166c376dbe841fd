"""Score models, or any folder of clips:

    python -m eval.run --model weights --output out                        # the tabletop suite
    python -m eval.run --model weights --model student --output out --blind
    python -m eval.run --model weights --suite my-clips --output out       # for the captions of a folder's clips
    python -m eval.run --suite my-clips --output out                       # the clips themselves
    python -m eval.run --clips theirs --output out                         # of another program, by their captions
    python -m eval.run --model weights --suite vbench --output out         # VBench's prompts, names and package

Clips that are missing in the output folder are made first, each with its fixed seed; a run that was broken off goes on
where it ended. ``results.json`` then holds every verdict, and ``report.html`` shows them with the clips. Every clip
gets the figures that need no weights; distances are taken where a reference is given. What was measured is kept by the
content of the files, so nothing is measured twice. With ``--real trajectories.npz`` the instrument itself is tested:
clips of the generator, through mp4 files as well, are scored against the truth about them.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vidgen.cli import run
from vidgen.errors import InputError
from vidgen.loading import choose_device
from vidgen.published_folders import is_vidgen

from . import accuracy, against, report, results, tables, vbench
from .contenders import FILMED, Contender, contend, reference_clips
from .distribution import METRICS
from .generate import prompts_sha256
from .judge import judgement, verdicts
from .measure import (
    Measure,
    Measured,
    Sight,
    measure_files,
    physical_measure,
    quality_measure,
    subject_measure,
    tabletop_measure,
)
from .optional import optional_measures
from .prompt_lists import LISTS
from .tabletop import table
from .vbench_prompts import vbench_prompts
from .verifier import WEIGHTS


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m eval.run", description=__doc__.split("\n")[0].rstrip(":"))
    parser.add_argument("--model", type=Path, action="append", default=[], help="folder of a model; may be repeated")
    parser.add_argument(
        "--clips", type=Path, action="append", default=[], metavar="FOLDER",
        help="clips that another program made for the suite's prompts, found by their captions; may be repeated",
    )  # fmt: skip
    parser.add_argument("--suite", default="tabletop", help="tabletop (default), vbench, or a folder of clips")
    parser.add_argument("--output", type=Path, required=True, help="folder for clips, results.json and report.html")
    what = parser.add_argument_group("what is made and measured")
    what.add_argument("--prompts", type=Path, help="a JSON file instead of the suite's own prompts")
    what.add_argument(
        "--lists", nargs="+", choices=LISTS, default=["held_out"], help="tabletop: which fixed prompts (held_out)"
    )
    what.add_argument("--limit", type=int, help=f"the first so many prompts or clips (real ones: {FILMED})")
    what.add_argument("--samples", type=int, default=1, help="clips of each prompt, with other seeds")
    what.add_argument("--reference", type=Path, help="a folder of clips that distances are taken from")
    what.add_argument("--reference-scenes", type=Path, help="the same, filmed of simulated scenes (.npz)")
    what.add_argument("--distances", nargs="+", choices=METRICS, default=list(METRICS), help="which (default: all)")
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
    check.add_argument("--verifier", type=Path, default=WEIGHTS, help="weights of the instrument")
    args = parser.parse_args()
    if min(args.limit or 1, args.batch, args.samples, args.workers) < 1 or args.limit == 0 or args.blur < 0:
        raise InputError("--limit, --batch, --samples and --workers must be at least 1, and --blur not negative")
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


def main() -> None:
    args = parse_arguments()
    measures, missing = chosen_measures(args)
    args.output.mkdir(parents=True, exist_ok=True)
    contenders = contend(args)
    if args.part is not None:
        made = sum(clip.path.exists() for contender in contenders for clip in contender.made)
        print(f"{made} of {sum(len(contender.made) for contender in contenders)} clips are there")
        return
    reference = reference_clips(args, max(len(contender.made) for contender in contenders))
    models = [score(contender, measures, reference, args) for contender in contenders]
    found = {
        "schema": results.SCHEMA,
        "suite": args.suite if args.suite in ("tabletop", "vbench") else "folder",
        "prompts_sha256": prompts_sha256([clip.asked for clip in contenders[0].made]),
        "prompts_rewritten": False,
        "preprocessing": {
            "frames": "as decoded, at the file's own size and rate",
            "sound": "mixed to mono, at the file's own rate",
            "blur_px": args.blur,
        },
        "measures": {measure.name: measure.version for measure in measures},
        "missing": missing,
        "environment": results.environment(),
        "models": models,
        "comparisons": results.all_comparisons(models),
    }
    results.write(found, args.output / "results.json")
    print(told(found))
    print(f"written: {args.output / 'results.json'}")
    print(f"written: {report.write(found, args.output, blind=args.blind, embed_mib=args.embed_mib)}")


def chosen_measures(args: argparse.Namespace) -> tuple[list[Measure], list[str]]:
    """What is measured of every clip, the cheap and the certain first; and what is not, with what would bring it.

    Raises:
        InputError: what was asked for, or the ``eval`` extra, is missing.
    """
    measures, missing = [quality_measure()], []
    if args.suite == "tabletop":
        sight = Sight(args.verifier, args.blur)
        measures += [tabletop_measure(sight), physical_measure(sight)]
    try:
        measures.append(subject_measure())
    except InputError as error:
        missing.append(f"subject consistency: {error}")
    return measures + optional_measures(args.clap, args.synchformer, args.imagebind), missing


def score(
    contender: Contender, measures: Sequence[Measure], reference: Sequence[Path], args: argparse.Namespace
) -> dict[str, Any]:
    """One contender's part of the results."""
    paths, prompts = [clip.path for clip in contender.made], [clip.asked.prompt for clip in contender.made]
    measured = measure_files(paths, measures, args.workers, prompts)
    more: dict[str, Any] = {}
    scores = None
    if args.suite == "tabletop":
        scores = verdicts(contender.made, measured)
        more["judgement"] = judgement(contender.made, measured, scores)
        more["judgement"]["accuracy"] = accuracy.stored(args.verifier)
    if args.suite == "vbench" or args.vbench_python is not None:
        more["vbench"] = score_by_vbench(contender, measured, args)
    if reference:
        again = None
        if contender.model is not None and is_vidgen(contender.model):
            folder = args.output / f"{contender.name}-reconstructed"
            again = partial(against.reconstruct, contender.model, args.device, reference, folder)
        there = [clip.path for clip in contender.made if clip.path.exists()]
        more["distances"] = against.distances(
            there, reference, args.distances, torchscript=args.i3d, reconstructed=again
        )
    rows = results.clip_rows(contender.made, measured, scores, args.output)
    return results.model_results(contender.name, contender.facts, rows, **more)


def score_by_vbench(contender: Contender, measured: Sequence[Measured], args: argparse.Namespace) -> dict[str, Any]:
    """What the official package says of the clips; its figures of single clips join the others of ``measured``."""
    official = args.suite == "vbench"
    folder = args.output / f"{contender.name}-vbench"
    outcome = vbench.evaluate(
        contender.made,
        folder,
        prompts=vbench_prompts(args.prompts, args.vbench_dimensions)[: args.limit] if official else None,
        info=args.prompts if official else None,
        python=vbench.given_python(args.vbench_python),
        dimensions=args.vbench_dimensions,
        device=choose_device(args.device).type,
    )
    for clip, one in zip(contender.made, measured, strict=True):
        name = clip.path.name
        figures = {key: values[name] for key, values in outcome.per_clip.items() if name in values}
        if figures:
            one.values["vbench"] = figures
    clips = contender.made[0].path.parent
    return vbench.results(outcome) | {"told": vbench.told(outcome, clips, folder).splitlines()}


def told(found: dict[str, Any]) -> str:
    """The results for a terminal."""
    # The judgement's own table says more of a single model.
    parts = [tables.estimates_table(found["models"], without="tabletop." if len(found["models"]) == 1 else None)]
    for model in found["models"]:
        parts.append(tables.counts_text(model))
        if "judgement" in model:
            judged = model["judgement"]
            controls = (judged["shuffled_prompts"], judged["moved_sounds"], judged["follows"])
            parts.append(table(judged["summary"], *controls, judged["accuracy"]))
            parts += [tables.differences_table(gap) for gap in judged["gaps"]]
        if "vbench" in model:
            parts.append("\n".join(model["vbench"]["told"]))
        if "distances" in model:
            parts.append("\n".join(against.lines(model["distances"])))
        else:
            parts.append("no distances (KVD, FVD, KID, FID, of sound): they need --reference or --reference-scenes")
    parts += [f"without {what}" for what in found["missing"]]
    parts += [tables.differences_table(comparison) for comparison in found["comparisons"]]
    return "\n\n".join(parts)


if __name__ == "__main__":
    run(main)
