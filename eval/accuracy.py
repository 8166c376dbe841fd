"""How often the tabletop instrument itself is right, on fresh clips of the generator of which the truth is known:

    python -m eval.accuracy --count 500 --seed 90002 --workers 2 --films films

Scenes are simulated (the ``tabletop`` extra), filmed, written as mp4 and read again, as a model's clips are. What comes
out is kept beside the weights, with their checksum, and stands beside every model's score; with other weights it does
not count. Scenes of the seed that the instrument learnt from would flatter it: of the shipped weights that is 1 (the
5 in ``eval.train_verifier`` is a seed of training, on the same scenes). With ``--films`` a run that was broken off goes
on: films stay in that folder, what was read of them in the cache.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidgen.cli import run
from vidgen.errors import InputError
from vidgen.files import replacing
from vidgen.tabletop.archive import load_trajectories
from vidgen.tabletop.scene import Trajectory

from .controls import follow
from .films import Film, film
from .impacts import FRAME_S, HEARD_WITHIN_S, Tally, audible_groups, tally, visible_groups
from .measure import Sight, measure_files, observation, tabletop_measure
from .tabletop import Observation, compare, summarise
from .verifier import WEIGHTS, Verifier, weights_sha256
from .workers import spread

FILE = "accuracy.json"


def measure(
    weights: Path, trajectories: Sequence[Trajectory], seed: int, folder: Path, workers: int = 1
) -> dict[str, Any]:
    """The instrument's own accuracy on one clip of each trajectory, with looks drawn anew.

    Args:
        weights: the instrument's folder.
        folder: where the films of these scenes and this seed are kept; those that are there are not made anew.

    Returns:
        attributes: as ``summarise`` gives them: how often each verdict is right about a clip that shows what was asked.
        offsets, whole_offsets: of sound from picture, which are 0 in truth.
        missing, surplus: impacts without a sound and sounds without an impact, a clip. In truth these are there, too:
            not every blow that is seen is loud, nor is every one that is heard in view.
        follows: the control with moved sounds, see ``controls.follow``.
        impacts: ``seen`` and ``heard``: how many there were to tell (asked), the share ``found``, of all that were told
            the share that is ``true``, and median_s and p95_s of the error; within a frame and within 5 ms.
    """
    films = film(trajectories, len(trajectories), folder, seed, workers)
    measured = measure_files([filmed.path for filmed in films], [tabletop_measure(Sight(weights))], workers)
    observed = [observation(one.values["tabletop"]) for one in measured]
    scores = [compare(*pair) for pair in zip(observed, (filmed.truth for filmed in films), strict=True)]
    seen, heard = Tally(), Tally()
    for ours, theirs in spread(_impacts, list(zip(films, observed, strict=True)), workers, "impacts"):
        seen, heard = seen + ours, heard + theirs
    summary = summarise(scores)
    return {
        "attributes": summary["attributes"],
        "offsets": summary["offsets"],
        "whole_offsets": summary["whole_offsets"],
        "missing": summary["missing"],
        "surplus": summary["surplus"],
        "follows": follow(observed),
        "impacts": {"seen": _shares(seen, FRAME_S), "heard": _shares(heard, HEARD_WITHIN_S)},
    }


def _impacts(job: tuple[Film, Observation]) -> tuple[Tally, Tally]:
    """What was told of the impacts seen and heard in a film."""
    filmed, observed = job
    start_s, duration_s = filmed.truth["start_s"], observed.duration_s
    blows_s = [event["time_s"] for event in filmed.truth["events"]]
    to_see = visible_groups(filmed.trajectory, filmed.look, start_s, duration_s)
    to_hear = audible_groups(filmed.trajectory, start_s, duration_s, filmed.look.seed)
    return (
        tally(to_see, blows_s, observed.seen.impacts_s, FRAME_S),
        tally(to_hear, blows_s, observed.heard_s, HEARD_WITHIN_S),
    )


def _shares(told: Tally, tolerance_s: float) -> dict[str, Any]:
    errors = np.array(told.errors_s)
    return {
        "tolerance_s": tolerance_s,
        "asked": told.asked,
        "found": told.found / told.asked if told.asked else None,
        "told": told.told,
        "true": told.true / told.told if told.told else None,
        "median_s": float(np.median(errors)) if len(errors) else None,
        "p95_s": float(np.quantile(errors, 0.95)) if len(errors) else None,
    }


def stored(weights: Path = WEIGHTS) -> dict[str, Any] | None:
    """What ``measure`` found for the weights in a folder; None if it was never measured, or for other weights.

    Raises:
        InputError: the file is damaged.
    """
    path = weights / FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found if found["weights_sha256"] == weights_sha256(weights) else None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error!r}); write it anew with eval.accuracy") from error


def lines(found: dict[str, Any]) -> list[str]:
    """For a terminal."""
    told = [f"{found['clips']} fresh clips, scenes of seed {found['seed']}, weights {found['weights_sha256'][:12]}"]
    for name, row in found["attributes"].items():
        short = "" if row["share"] >= 0.97 else "  below 97 %"
        interval = f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        told.append(f"{name:14} {100 * row['share']:5.1f} % {interval} n {row['n']}{short}")
    for name, row in found["impacts"].items():
        if row["asked"] and row["told"]:
            told.append(
                f"impacts {name}: {100 * row['found']:.1f} % of {row['asked']} found within "
                f"{1000 * row['tolerance_s']:.1f} ms, {100 * row['true']:.1f} % of {row['told']} told are true, "
                f"error median {1000 * row['median_s']:.1f} ms, 95 % {1000 * row['p95_s']:.1f} ms"
            )
    for name in ("offsets", "whole_offsets"):
        if row := found[name]:
            told.append(
                f"{name}: median {1000 * row['median_s']:.1f} ms, 95 % {1000 * row['p95_s']:.1f} ms, "
                f"{100 * row['within_45_ms']:.1f} % within 45 ms, n {row['n']}"
            )
    told.append(
        f"a clip: {found['missing']:.2f} impacts without a sound, {found['surplus']:.2f} sounds without an impact"
    )
    if row := found["follows"]:
        interval = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
        within = f"{100 * row['within_20_ms']:.1f} % within 20 ms"
        told.append(f"sounds moved: slope {row['slope']:.3f}{interval}, {within}, n {row['n']}")
    return told


def _scenes(count: int, seed: int, folder: Path, workers: int) -> list[Trajectory]:
    from vidgen.tabletop.physics import save_trajectories, simulate_many

    path = folder / f"scenes-{count}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            save_trajectories(temporary, simulate_many(count, seed, workers))
    return load_trajectories(path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.accuracy", description=__doc__.split("\n")[0].rstrip(":"))
    parser.add_argument("--count", type=int, default=500, help="clips")
    parser.add_argument("--seed", type=int, default=90002, help="of scenes and looks")
    parser.add_argument("--trajectories", type=Path, help="scenes (.npz) simulated before with this count and seed")
    parser.add_argument("--films", type=Path, help="keep scenes and films here, and go on from what is there")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--verifier", type=Path, default=WEIGHTS, help="weights of the instrument")
    parser.add_argument("--output", type=Path, help=f"a JSON file (default: {FILE} beside the weights)")
    args = parser.parse_args()
    if args.count < 8 or args.seed < 0 or args.workers < 1:
        raise InputError("--count must be at least 8, --seed not negative, and --workers at least 1")
    Verifier.load(args.verifier)  # what is wrong with it is told before all the work
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if args.films is None else args.films / str(args.seed)
        if args.trajectories is not None:
            trajectories = load_trajectories(args.trajectories)[: args.count]
        else:
            trajectories = _scenes(args.count, args.seed, folder, args.workers)
        found = {
            "clips": len(trajectories),
            "seed": args.seed,
            "weights_sha256": weights_sha256(args.verifier),
            **measure(args.verifier, trajectories, args.seed, folder, args.workers),
        }
    path = args.output or args.verifier / FILE
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print("\n".join([*lines(found), f"written: {path}"]))


if __name__ == "__main__":
    run(main)
