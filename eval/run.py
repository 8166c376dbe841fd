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
from .contenders import Contender, contend, reference_clips
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
from .options import parse_arguments
from .tabletop import table
from .vbench_prompts import vbench_prompts


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
