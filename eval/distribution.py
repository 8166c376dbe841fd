"""How far one folder of clips is from another, as distributions:

    python -m eval.distribution REAL MODEL
    python -m eval.distribution REAL MODEL --metric video sound --output distances.json

video: kernel distance (KVD) and Fréchet distance (FVD) of I3D's logits; frames: the same of Inception's features (KID,
FID); sound: the same of SoundNet's, with a Gaussian kernel as in KAD, which is nobody's standard. The kernel distance
leads: it is unbiased at any number of clips. Beside each stands what two random halves of REAL give, which no model can
be told to beat. Features are kept by the files' content, so an interrupted run goes on where it was, and nothing is
computed twice.
"""

import argparse
import json
import warnings
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vidgen import __version__
from vidgen.cli import run
from vidgen.data.folder import CLIP_SUFFIXES
from vidgen.errors import InputError
from vidgen.files import replacing
from vidgen.media import read_clip

from . import extractors
from .cache import kept_at, sha256
from .distances import Distance, Features, frechet_distance, kernel_distance, split_floor
from .extractors import Extractor

METRICS = {"video": ("KVD", "FVD"), "frames": ("KID", "FID"), "sound": ("SoundNet KD", "SoundNet FD")}
"""What the kernel and the Fréchet distance of each are called."""
SCHEMA = 1


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m eval.distribution", description=__doc__.split("\n")[0].rstrip(":"), allow_abbrev=False
    )
    parser.add_argument("real", type=Path, help="folder of real clips")
    parser.add_argument("model", type=Path, help="folder of a model's clips")
    parser.add_argument("--metric", nargs="+", choices=METRICS, default=["video"], help="default: video")
    parser.add_argument("--i3d", type=Path, help="i3d_torchscript.pt to use for video in place of fetched weights")
    parser.add_argument("--limit", type=int, help="use no more than so many clips of each folder")
    parser.add_argument("--half-samples", type=int, default=500, help="random halves behind an interval")
    parser.add_argument("--seed", type=int, default=0, help="of the halves")
    parser.add_argument("--output", type=Path, help="write the results as JSON, too")
    args = parser.parse_args()
    if args.half_samples < 1 or (args.limit is not None and args.limit < 2):
        raise InputError("--half-samples must be at least 1 and --limit at least 2")
    folders = {"real": clip_files(args.real)[: args.limit], "model": clip_files(args.model)[: args.limit]}
    results: dict[str, Any] = {"schema": SCHEMA, "vidgen": __version__, "torch": torch.__version__, "seed": args.seed}
    results |= {side: {"folder": str(getattr(args, side)), "expected": len(folders[side])} for side in folders}
    results["metrics"] = {}
    for metric in args.metric:
        extractor = extractor_for(metric, args.i3d)
        sides, failures = {}, {}
        for side, files in folders.items():
            sides[side], failures[side] = folder_features(files, extractor)
        outcome = compare(
            sides["real"], sides["model"], METRICS[metric], args.half_samples, args.seed, metric == "sound"
        )
        print(f"{metric}: {extractor.name}; {extractor.preprocessing}")
        print("\n".join(f"  {line}" for line in [*map(str, outcome["distances"]), *outcome["notes"]]))
        for side, failed in failures.items():
            if failed:
                print(f"  {len(failed)} of {len(folders[side])} {side} clips failed, the first: {failed[0]}")
        results["metrics"][metric] = {
            "extractor": extractor.name,
            "preprocessing": extractor.preprocessing,
            "distances": [asdict(distance) for distance in outcome["distances"]],
            "notes": outcome["notes"],
            "failures": failures,
        }
    if args.output is not None:
        with replacing(args.output) as temporary:
            temporary.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def clip_files(folder: Path) -> list[Path]:
    """The clips under a folder, in order of their names. Raises InputError if there is none."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in CLIP_SUFFIXES)
    if not files:
        raise InputError(f"{folder} is not a folder with clips in it ({', '.join(sorted(CLIP_SUFFIXES))})")
    return files


def folder_features(files: list[Path], extractor: Extractor) -> tuple[Features, list[str]]:
    """Features of all clips that give some, and a line for each that does not.

    Raises:
        InputError: fewer than two clips gave features.
    """
    rows, failures = [], []
    for path in tqdm(files, desc=extractor.name.split()[0], unit="clip", disable=None):
        try:
            rows.append(clip_features(path, extractor))
        except InputError as error:
            failures.append(f"{path.name}: {error}")
    if len(rows) < 2:
        why = f"; {failures[0]}" if failures else ""
        raise InputError(f"{len(rows)} of {len(files)} clips in {files[0].parent} gave features, two are needed{why}")
    return Features(np.stack(rows), extractor.name, extractor.preprocessing), failures


def clip_features(path: Path, extractor: Extractor) -> np.ndarray:
    """(d,) float32, from the cache if a file of the same content has been there before with the same extractor.

    Raises:
        InputError: the clip cannot be read, is none for this extractor, or gives values that are not finite.
    """
    cached = kept_at("features", sha256(path), extractor.name, extractor.preprocessing, suffix=".npy")
    if cached.is_file():
        return np.load(cached, allow_pickle=False)
    clip = read_clip(path, sample_rate_hz=extractor.sound_rate_hz, max_frames=extractor.max_frames)
    features = extractor.features(clip)
    if not np.isfinite(features).all():
        raise InputError(f"{extractor.name.split()[0]} gave values that are not finite numbers")
    with replacing(cached) as temporary:
        np.save(temporary, features, allow_pickle=False)
    return features


def compare(
    real: Features,
    model: Features,
    names: tuple[str, str],
    half_samples: int = 500,
    seed: int = 0,
    gaussian: bool = False,
) -> dict[str, list]:
    """``distances``: kernel, its floor, Fréchet, its floor; ``notes``: what is to be known of them.

    The kernel distance has an interval, and a floor there is, where there are four clips.
    """
    enough = min(len(real), len(model)) >= 4
    distances: list[Distance] = []
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kernel = kernel_distance(real, model, half_samples if enough else 0, seed, gaussian)
        for name, distance, measure in (
            (names[0], kernel, partial(kernel_distance, gaussian=gaussian)),
            (names[1], frechet_distance(real, model), frechet_distance),
        ):
            distances.append(replace(distance, name=name))
            if len(real) >= 4:
                floor = split_floor(real, measure, seed=seed)
                distances.append(replace(floor, name=f"{name} between halves of the real clips"))
    notes += dict.fromkeys(str(warning.message) for warning in caught)
    if not enough:
        notes.append("fewer than four clips on a side: no interval")
    return {"distances": distances, "notes": notes}


def extractor_for(metric: str, torchscript: Path | None = None) -> Extractor:
    """The network of one of ``METRICS``. Raises InputError if its weights are not at hand."""
    if metric == "video":
        return extractors.i3d(torchscript)
    return extractors.inception() if metric == "frames" else extractors.soundnet()


if __name__ == "__main__":
    run(main)
