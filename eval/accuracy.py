"""How often the tabletop instrument itself is right, on fresh clips of the generator of which the truth is known:

    python -m eval.accuracy --count 500 --seed 90001

Scenes are simulated (the ``tabletop`` extra), filmed, written as mp4 and read again, as a model's clips are. What comes
out is kept beside the weights, with their checksum, and stands beside every model's score; with other weights it does
not count. Scenes of a seed that the instrument was trained on would flatter it: those of the shipped weights have 1.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vidgen.cli import run
from vidgen.clip import ClipSpec
from vidgen.errors import InputError
from vidgen.files import replacing
from vidgen.media import read_clip, write_video
from vidgen.tabletop.captions import sample_look
from vidgen.tabletop.scene import Trajectory
from vidgen.tabletop.source import TabletopClips

from .controls import follow
from .impacts import FRAME_S, HEARD_WITHIN_S, Tally, audible_groups, tally, visible_groups
from .tabletop import Observation, compare, observe, summarise
from .verifier import WEIGHTS, Verifier, weights_sha256

FILE = "accuracy.json"
FILMED_AT_ONCE = 32


def measure(
    verifier: Verifier, trajectories: Sequence[Trajectory], seed: int, spec: ClipSpec | None = None
) -> dict[str, Any]:
    """The instrument's own accuracy on one clip of each trajectory, with looks drawn anew.

    Returns:
        attributes: as ``summarise`` gives them: how often each verdict is right about a clip that shows what was asked.
        offsets, whole_offsets: of sound from picture, which are 0 in truth.
        follows: the control with moved sounds, see ``controls.follow``.
        impacts: ``seen`` and ``heard``: how many there were to tell (asked), the share ``found``, of all that were told
            the share that is ``true``, and median_s and p95_s of the error; within a frame and within 5 ms.
    """
    spec = spec or ClipSpec()
    clips = TabletopClips(trajectories, spec, "any", seed)
    scores, observed, seen, heard = [], [], Tally(), Tally()
    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(clips), desc="clips", disable=None) as bar:
        path = Path(folder) / "clip.mp4"
        for first in range(0, len(clips), FILMED_AT_ONCE):
            indices = range(first, min(first + FILMED_AT_ONCE, len(clips)))
            batch = clips[[(index, 0) for index in indices]]
            for index, frames, waveform, truth in zip(
                indices, batch["video"].numpy(), batch["audio"].numpy(), batch["truth"], strict=True
            ):
                write_video(path, frames, waveform, spec.frame_rate, spec.sample_rate_hz)
                clip = read_clip(path)
                observation = observe(verifier, clip.frames, clip.waveform, float(clip.frame_rate), clip.sample_rate_hz)
                observed.append(observation)
                scores.append(compare(observation, truth))
                ours, theirs = _impacts(trajectories[index], (seed, index, 0), truth, observation)
                seen, heard = seen + ours, heard + theirs
                bar.update()
    summary = summarise(scores)
    return {
        "attributes": summary["attributes"],
        "offsets": summary["offsets"],
        "whole_offsets": summary["whole_offsets"],
        "follows": follow(observed),
        "impacts": {"seen": _shares(seen, FRAME_S), "heard": _shares(heard, HEARD_WITHIN_S)},
    }


def _impacts(
    trajectory: Trajectory, key: tuple[int, int, int], truth: dict, observation: Observation
) -> tuple[Tally, Tally]:
    """What was told of the impacts seen and heard; ``key`` draws the look as ``TabletopClips`` draws it."""
    look = sample_look(np.random.default_rng(key), trajectory, "any")
    start_s, duration_s = truth["start_s"], observation.duration_s
    blows_s = [event["time_s"] for event in truth["events"]]
    seen = tally(visible_groups(trajectory, look, start_s, duration_s), blows_s, observation.seen.impacts_s, FRAME_S)
    groups = audible_groups(trajectory, start_s, duration_s, look.seed)
    return seen, tally(groups, blows_s, observation.heard_s, HEARD_WITHIN_S)


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
    if row := found["follows"]:
        interval = "" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]"
        within = f"{100 * row['within_20_ms']:.1f} % within 20 ms"
        told.append(f"sounds moved: slope {row['slope']:.3f}{interval}, {within}, n {row['n']}")
    return told


def main() -> None:
    from vidgen.tabletop.physics import load_trajectories, simulate_many

    parser = argparse.ArgumentParser(prog="python -m eval.accuracy", description=__doc__.split("\n")[0].rstrip(":"))
    parser.add_argument("--count", type=int, default=500, help="clips")
    parser.add_argument("--seed", type=int, default=90001, help="of scenes and looks")
    parser.add_argument("--trajectories", type=Path, help="scenes (.npz) simulated before with this count and seed")
    parser.add_argument("--verifier", type=Path, default=WEIGHTS, help="weights of the instrument")
    parser.add_argument("--output", type=Path, help=f"a JSON file (default: {FILE} beside the weights)")
    args = parser.parse_args()
    if args.count < 8 or args.seed < 0:
        raise InputError("--count must be at least 8, and --seed not negative")
    verifier = Verifier.load(args.verifier)
    if args.trajectories is not None:
        trajectories = load_trajectories(args.trajectories)[: args.count]
    else:
        trajectories = simulate_many(args.count, args.seed)
    found = {
        "clips": len(trajectories),
        "seed": args.seed,
        "weights_sha256": weights_sha256(args.verifier),
        **measure(verifier, trajectories, args.seed),
    }
    path = args.output or args.verifier / FILE
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    print("\n".join([*lines(found), f"written: {path}"]))


if __name__ == "__main__":
    run(main)
