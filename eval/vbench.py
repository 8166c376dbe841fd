"""VBench's dimensions by the official package, for clips that lie under the names that it expects, or for anybody's:

    python -m eval.vbench CLIPS --output DIR --vbench-python PYTHON           clips named {prompt}-{0..4}.mp4
    python -m eval.vbench CLIPS --output DIR --vbench-python PYTHON --custom  any clips
    python -m eval.vbench --totals RESULTS.json …                             sums of the package's result files

The package (``vbench`` 0.1.5) lives in an environment of its own, whose Python is named; docs/vbench.md tells how to
set it up. Each dimension is a process of its own with a time limit, so that one that fails takes none along, and what
has been scored is not scored again. Without that Python the folders of links are laid out, ready to be scored
elsewhere. Clips of 5 s and more go to the package's long variant, as its authors demand.
"""

import argparse
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vidgen.cli import run
from vidgen.errors import InputError
from vidgen.files import replacing
from vidgen.media import probe

from .generate import Made, clip_paths, folder_clips
from .motion import require
from .vbench_jobs import check, job_results, lay_out, new_job, per_clip
from .vbench_needs import RAFT, missing
from .vbench_prompts import SAMPLES, STATIC, VBenchPrompt, checked_dimensions, clip_name, vbench_asked
from .vbench_prompts import vbench_prompts as read_prompts
from .vbench_scores import DIMENSIONS, QUALITY, Score, Totals, read_scores, table, total_scores

PYTHON_VARIABLE = "VIDGEN_VBENCH_PYTHON"
TIME_LIMIT_S = 6 * 3600.0
LONG_FROM_S = 5.0
CUSTOM = (*QUALITY, "temporal_style", "overall_consistency")
"""Dimensions of clips that were not made from VBench's prompts; the last two need a caption for each clip."""
WITH_TEXT = ("temporal_style", "overall_consistency")
NOT_FILTERED = (
    "temporal_flickering: of the first five clips of each prompt, moving or not. The official filter keeps those that"
    " hardly move; it needs RAFT's weights and easydict, and is left out for long clips"
)
LAID_OUT = "laid out, to be scored where the package is"
SCHEMA = {"name": "vidgen.vbench", "version": 1}


@dataclass
class Outcome:
    """What came of an evaluation."""

    mode: str
    """``standard`` or ``custom``, ``long`` before it for the long variant."""
    scores: dict[str, Score] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    """Why a dimension has no score."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why a clip that was to be there could not be scored, by its name."""
    notes: list[str] = field(default_factory=list)
    per_clip: dict[str, dict[str, float]] = field(default_factory=dict)
    """By dimension and clip, as the package gives it (imaging_quality in percent)."""
    packages: dict[str, str | None] = field(default_factory=dict)

    @property
    def totals(self) -> Totals:
        """Quality, Semantic and Total; of custom clips none, as those belong to the official prompts."""
        totals = total_scores(self.scores)
        return replace(totals, quality=None, semantic=None, total=None) if "custom" in self.mode else totals


def evaluate(
    made: Sequence[Made],
    output: Path,
    *,
    prompts: Sequence[VBenchPrompt] | None = None,
    info: Path | None = None,
    python: Path | None = None,
    dimensions: Collection[str] | None = None,
    device: str = "cpu",
    time_limit_s: float = TIME_LIMIT_S,
) -> Outcome:
    """Score clips by the official package, dimension by dimension.

    Args:
        made: the clips of ``vbench_asked``, made or not; or any clips.
        output: folder for links, jobs and results.
        prompts: those that the clips were to show; None for clips of other prompts.
        info: see ``vbench_prompts.full_info``.
        python: of the environment that holds the package; None lays out the folders of links only.
        dimensions: by default all that these clips can be scored in.
        time_limit_s: for one dimension.

    Raises:
        InputError: the Python cannot be used, an unknown dimension, or no list of prompts.
    """
    wanted = checked_dimensions(dimensions) if dimensions is not None else tuple(DIMENSIONS if prompts else CUSTOM)
    custom = prompts is None
    failures, lengths_s = _readable(made)
    long = max(lengths_s, default=0.0) >= LONG_FROM_S - 1e-3
    outcome = Outcome(("long " if long else "") + ("custom" if custom else "standard"), failures=failures)
    if not lengths_s or (long and min(lengths_s) < LONG_FROM_S - 1e-3):
        outcome.reasons = dict.fromkeys(wanted, _mixed(lengths_s) if lengths_s else "none of its clips is there")
        return outcome
    if python is not None:
        environment = check(python)
        outcome.packages = environment["packages"]
        info = info or own_info(environment)
    for dimension in wanted:
        clips = _clips_of(dimension, made, prompts, long)
        if isinstance(clips, str):
            outcome.reasons[dimension] = clips
            continue
        filtered = dimension == STATIC and not (custom or long) and _can_filter(outcome)
        if dimension == STATIC and not custom and not filtered:
            # The package scores the first five of each prompt; the others are there for the filter.
            clips = {name: clip for name, clip in clips.items() if _sample(name) < SAMPLES}
            outcome.notes.append(NOT_FILTERED)
        there = {name: clip for name, clip in clips.items() if _name(clip) not in failures}
        if not there:
            outcome.reasons[dimension] = "none of its clips is there"
            continue
        folder = output / "links" / outcome.mode.replace(" ", "-") / dimension
        lacking = missing(dimension, outcome.packages, long)
        if python is None or lacking:
            lay_out(folder, there)
            outcome.reasons[dimension] = f"needs {lacking[0][0]}: {lacking[0][1]}" if python else LAID_OUT
            continue
        job = new_job(dimension, there, folder, long=long, custom=custom, info=info, device=device, filtered=filtered)
        found = job_results(python, job, there, folder, output / "official", time_limit_s)
        if isinstance(found, str):
            outcome.reasons[dimension] = found
            continue
        outcome.scores[dimension] = Score(float(found[0]), len(there), len(clips))
        outcome.per_clip[dimension] = per_clip(found[-1], there)
    return outcome


def _readable(made: Sequence[Made]) -> tuple[dict[str, str], list[float]]:
    """Why clips cannot be scored, by name; and the lengths of the others, in seconds."""
    failures, lengths_s = {}, []
    for clip in tqdm(made, desc="looked at", unit="clip", disable=None):
        try:
            if clip.failure is not None:
                raise InputError(clip.failure)
            info = probe(clip.path)
            if info.duration_s * info.frame_rate < 1.5:
                raise InputError(f"{clip.path}: has one frame only")
            lengths_s.append(info.duration_s)
        except InputError as error:
            failures[_name(clip)] = str(error)
    return failures, lengths_s


def _mixed(lengths_s: Sequence[float]) -> str:
    return (
        f"clips last from {min(lengths_s):.2f} to {max(lengths_s):.2f} s: those of {LONG_FROM_S:g} s and more are for"
        " VBench's long variant, which gives other values; score them apart"
    )


def _name(clip: Made) -> str:
    return clip.asked.name or clip.path.name


def _clips_of(
    dimension: str, made: Sequence[Made], prompts: Sequence[VBenchPrompt] | None, long: bool
) -> dict[str, Made] | str:
    """The clips that a dimension expects, by the names of their links; or why it cannot be scored."""
    if prompts is not None:
        own = {entry.prompt for entry in prompts if dimension in entry.dimensions}
        clips = {clip.asked.name: clip for clip in made if clip.asked.prompt in own}
        if dimension != STATIC:  # a prompt may be of temporal flickering and of another dimension
            clips = {name: clip for name, clip in clips.items() if _sample(name) < SAMPLES}
        return clips or "no prompt of it was asked for"
    if dimension not in CUSTOM:
        return "needs what VBench says of its own prompts"
    if dimension in WITH_TEXT and long:
        return "the long variant takes a clip's prompt from its name"
    if dimension in WITH_TEXT and not all(clip.asked.prompt for clip in made):
        return "needs a caption for every clip"
    # The long variant groups pieces by what stands before the first underscore.
    return {f"clip-{index:05d}.mp4": clip for index, clip in enumerate(made)}


def _sample(name: str) -> int:
    return int(name.removesuffix(".mp4").rpartition("-")[2])


def _can_filter(outcome: Outcome) -> bool:
    return RAFT.path.exists() and outcome.packages.get("easydict") is not None


def temporal_flickering(path: Path) -> float:
    """Our own reading of the one dimension that needs no weights, by the same decoder as the package's: mean absolute
    difference of successive frames x, (255 - x) / 255.

    Raises:
        InputError: fewer than two frames.
    """
    cv2 = require("cv2")
    video = cv2.VideoCapture(str(path))
    changes, last = [], None
    while (read := video.read())[0]:
        frame = read[1].astype(np.float32)
        if last is not None:
            changes.append(float(np.abs(frame - last).mean()))
        last = frame
    video.release()
    if not changes:
        raise InputError(f"{path}: has no two frames to compare")
    return (255 - float(np.mean(changes))) / 255


def results(outcome: Outcome) -> dict[str, Any]:
    """The outcome for JSON."""
    totals = outcome.totals
    return {
        "schema": SCHEMA,
        "mode": outcome.mode,
        "vbench": outcome.packages.get("vbench"),
        "packages": outcome.packages,
        "dimensions": {
            name: asdict(score) | {"normalised": totals.normalised[name]} for name, score in outcome.scores.items()
        },
        "not_scored": outcome.reasons,
        "quality": totals.quality,
        "semantic": totals.semantic,
        "total": totals.total,
        "notes": outcome.notes,
        "failures": outcome.failures,
        "per_clip": outcome.per_clip,
    }


def told(outcome: Outcome, clips: Path, output: Path) -> str:
    """The outcome for a terminal, and what to run where for what is not scored."""
    parts = [f"VBench, {outcome.mode}", table(outcome.scores, outcome.totals, outcome.reasons), *outcome.notes]
    if outcome.failures:
        name, why = next(iter(outcome.failures.items()))
        parts.append(f"{len(outcome.failures)} clips are missing or cannot be read, the first: {name}: {why}")
    if not outcome.packages:
        custom = " --custom" if "custom" in outcome.mode else ""
        folder = output / "links" / outcome.mode.replace(" ", "-")
        parts.append(
            "VBench's package was not named. Set it up as docs/vbench.md tells, here or where this folder is seen:\n"
            f"  python -m eval.vbench '{clips}' --output '{output}'{custom} --vbench-python PYTHON\n"
            "or, there, by its own command:\n"
            f"  vbench evaluate --videos_path '{folder}'/DIMENSION --dimension DIMENSION"
            + (" --mode custom_input" if custom else "")
        )
    elif outcome.reasons:
        parts.append("what is missing, and how to get it: python -m eval.doctor")
    return "\n\n".join(parts)


def folder_made(folder: Path, prompts: Sequence[VBenchPrompt]) -> list[Made]:
    """The clips that VBench expects of the prompts, of which a folder holds all or some.

    Raises:
        InputError: it holds none of them.
    """
    asked = vbench_asked(prompts)
    made = [
        Made(entry, path, None if path.is_file() else "is not there")
        for entry, path in zip(asked, clip_paths(asked, folder), strict=True)
    ]
    if all(clip.failure for clip in made):
        example = clip_name(prompts[0].prompt, 0)
        raise InputError(f"{folder} holds no clip named as VBench expects ({example}): for other clips give --custom")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.vbench", description=__doc__.split("\n")[0].rstrip(":"))
    parser.add_argument("clips", type=Path, nargs="?", help="folder of clips")
    parser.add_argument("--output", type=Path, help="folder for links, results of the package, and vbench.json")
    parser.add_argument("--totals", type=Path, nargs="+", metavar="RESULTS", help="only sum up results of the package")
    parser.add_argument("--custom", action="store_true", help="any clips; captions as eval.run finds them")
    parser.add_argument("--dimensions", nargs="+", metavar="NAME", help="which (default: all that apply)")
    parser.add_argument("--info", type=Path, help="a list of prompts in place of VBench_full_info.json")
    parser.add_argument("--limit", type=int, help="the first so many prompts, or custom clips")
    parser.add_argument(
        "--vbench-python", type=Path, help=f"Python of the package's environment (or ${PYTHON_VARIABLE})"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT_S, help="seconds for a dimension (%(default)g)")
    args = parser.parse_args()
    if args.totals:
        scores = read_scores(args.totals)
        print(table(scores, total_scores(scores)))
        return
    if args.clips is None or args.output is None:
        raise InputError("give a folder of clips and --output, or --totals")
    if not args.clips.is_dir() or (args.limit is not None and args.limit < 1):
        raise InputError("CLIPS must be a folder, and --limit at least 1")
    prompts, python = None, given_python(args.vbench_python)
    if args.custom:
        made = folder_clips(args.clips)[: args.limit]
    else:
        prompts = read_prompts(args.info or (own_info(check(python)) if python else None), args.dimensions)[
            : args.limit
        ]
        made = folder_made(args.clips, prompts)
    outcome = evaluate(
        made, args.output, prompts=prompts, info=args.info, python=python,
        dimensions=args.dimensions, device=args.device, time_limit_s=args.time_limit,
    )  # fmt: skip
    write(outcome, args.output / "vbench.json")
    print(told(outcome, args.clips, args.output))


def own_info(environment: Mapping[str, Any]) -> Path | None:
    """The list of prompts of the package that ``check`` found."""
    return Path(environment["full_info"]) if environment["full_info"] else None


def given_python(given: Path | None) -> Path | None:
    """The Python that was named, or that of the environment variable."""
    return given or (Path(os.environ[PYTHON_VARIABLE]) if os.environ.get(PYTHON_VARIABLE) else None)


def write(outcome: Outcome, path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(results(outcome), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
