"""Score a model on the tabletop world:

    python -m eval.run --model weights/tabletop --suite tabletop --output runs/eval

Clips that are missing in the output folder are made first, one for each of the fixed prompts, each with its fixed
seed; a run that was broken off goes on where it ended. ``results.json`` then holds every verdict.
With ``--real trajectories.npz`` the instrument itself is tested: clips of the generator, through mp4 files as well,
are scored against the truth about them.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vidgen.cli import run
from vidgen.clip import ClipSpec
from vidgen.errors import InputError
from vidgen.media import read_clip, read_metadata, write_video

from .tabletop import Observation, compare, moved_sounds, observe, shuffled_prompts, summarise, table
from .verifier import WEIGHTS, Verifier

FILMED_AT_ONCE = 96


@dataclass(frozen=True)
class Asked:
    prompt: str
    seed: int
    attributes: dict
    """As ``vidgen.tabletop.captions.attributes`` returns them."""


def load_prompts(path: Path | None) -> list[Asked]:
    """Prompts of a JSON file, a list of {"prompt", "seed", "attributes"}, or the fixed ones.

    Raises:
        InputError: no such file, or it holds something else.
    """
    if path is None:
        from .prompts import tabletop_prompts

        return [Asked(entry["prompt"], entry["seed"], entry["attributes"]) for entry in tabletop_prompts()]
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        asked = [Asked(str(entry["prompt"]), int(entry["seed"]), dict(entry["attributes"])) for entry in entries]
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f'{path}: not a list of {{"prompt", "seed", "attributes"}} ({error!r})') from error
    if not asked:
        raise InputError(f"{path}: holds no prompt")
    return asked


def generate(model: Path, asked: Sequence[Asked], folder: Path, device: str, batch: int) -> tuple[list[Path], str]:
    """An mp4 for each prompt, made where it is missing; and the model's version.

    Raises:
        InputError: no such model, or a clip in the folder was made by another model or for another prompt.
    """
    from vidgen.loading import choose_device
    from vidgen.pipeline import VidGenPipeline

    pipeline = VidGenPipeline.from_pretrained(model, device=choose_device(device))
    version = pipeline.generation.model_version
    paths = [folder / f"{index:04d}.mp4" for index in range(len(asked))]
    missing = []
    for index, (entry, path) in enumerate(zip(asked, paths, strict=True)):
        if not path.exists():
            missing.append(index)
            continue
        tags = read_metadata(path)
        if (tags.get("prompt"), tags.get("seed"), tags.get("model_version")) != (
            entry.prompt, str(entry.seed), version,
        ):  # fmt: skip
            raise InputError(f"{path} was made by another model or for another prompt: give another --output")
    for start in tqdm(range(0, len(missing), batch), desc="clips", disable=None):
        rows = missing[start : start + batch]
        output = pipeline(
            [asked[row].prompt for row in rows],
            generator=[torch.Generator().manual_seed(asked[row].seed) for row in rows],
        )
        for row, frames, waveform in zip(rows, output.frames, output.audio, strict=True):
            tags = {
                "title": asked[row].prompt, "prompt": asked[row].prompt, "seed": str(asked[row].seed),
                "model_version": version,
            }  # fmt: skip
            write_video(paths[row], frames, waveform, output.frame_rate, output.sample_rate, tags)
    return paths, version


def film(trajectories: Path, count: int, folder: Path, seed: int) -> tuple[list[Path], list[Asked]]:
    """An mp4 of each of ``count`` clips of the generator, with looks drawn anew, and the truth about it.

    Raises:
        InputError: no such trajectories.
    """
    from vidgen.tabletop.physics import load_trajectories
    from vidgen.tabletop.source import TabletopClips

    spec = ClipSpec()
    clips = TabletopClips(load_trajectories(trajectories), spec, "any", seed)
    order = np.random.default_rng(seed).permutation(len(clips)).tolist()
    keys = [(order[index % len(clips)], index // len(clips)) for index in range(count)]
    paths: list[Path] = []
    asked: list[Asked] = []
    for start in tqdm(range(0, count, FILMED_AT_ONCE), desc="clips", disable=None):
        batch = clips[keys[start : start + FILMED_AT_ONCE]]
        for frames, waveform, wordings, truth in zip(
            batch["video"].numpy(), batch["audio"].numpy(), batch["captions"], batch["truth"], strict=True
        ):
            path = folder / f"real-{len(paths):04d}.mp4"
            write_video(path, frames, waveform, spec.frame_rate, spec.sample_rate_hz, {"prompt": wordings[0]})
            paths.append(path)
            asked.append(Asked(wordings[0], seed, truth))
    return paths, asked


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.run", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="folder of a model")
    parser.add_argument("--suite", choices=("tabletop",), default="tabletop")
    parser.add_argument("--output", type=Path, required=True, help="folder for clips and results.json")
    parser.add_argument("--prompts", type=Path, help="a JSON file instead of the fixed prompts")
    parser.add_argument("--limit", type=int, help="the first so many prompts, or real clips (400)")
    parser.add_argument("--real", type=Path, help="score clips of the generator from these trajectories (.npz) instead")
    parser.add_argument("--blur", type=float, default=0.0, help="blur what is scored by so many pixels, as a test")
    parser.add_argument("--seed", type=int, default=0, help="of the looks of real clips")
    parser.add_argument("--batch", type=int, default=4, help="clips made at once")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps: where clips are made")
    parser.add_argument("--verifier", type=Path, default=WEIGHTS, help="weights of the instrument")
    args = parser.parse_args()
    if (args.model is None) == (args.real is None):
        raise InputError("give either --model or --real")
    if (args.limit is not None and args.limit < 1) or args.batch < 1 or args.blur < 0:
        raise InputError("--limit and --batch must be at least 1, and --blur not negative")
    verifier = Verifier.load(args.verifier)
    args.output.mkdir(parents=True, exist_ok=True)

    facts = {"suite": args.suite, "verifier_sha256": _sha256(args.verifier / "model.safetensors"), "blur_px": args.blur}
    if args.real is not None:
        paths, asked = film(args.real, args.limit or 400, args.output, args.seed)
        facts |= {"real": args.real.name}
    else:
        asked = load_prompts(args.prompts)[: args.limit]
        paths, version = generate(args.model, asked, args.output, args.device, args.batch)
        facts |= {"model": args.model.name, "model_version": version}
    observed: list[Observation] = []
    for path in tqdm(paths, desc="scored", disable=None):
        clip = read_clip(path)
        frames = blurred(clip.frames, args.blur)
        observed.append(observe(verifier, frames, clip.waveform, float(clip.frame_rate), clip.sample_rate_hz))
    truths = [entry.attributes for entry in asked]
    scores = [compare(clip, truth) for clip, truth in zip(observed, truths, strict=True)]
    results = report(scores, observed, truths)
    prompts = json.dumps([(entry.prompt, entry.seed) for entry in asked])
    facts |= {"clips": len(asked), "prompts_sha256": hashlib.sha256(prompts.encode()).hexdigest()}
    verdicts = [{"prompt": entry.prompt, "seed": entry.seed, "asked": entry.attributes} | score
                for entry, score in zip(asked, scores, strict=True)]  # fmt: skip
    text = json.dumps(facts | results | {"verdicts": verdicts}, indent=1)
    (args.output / "results.json").write_text(text + "\n", encoding="utf-8")
    print(table(results["summary"], results["shuffled_prompts"], results["moved_sounds"]))
    print(f"written: {args.output / 'results.json'}")


def report(scores: list[dict], observed: list[Observation], truths: list[dict]) -> dict:
    """The summary, that of clips with and without a held-out triple, and the two controls."""
    results = {
        "summary": summarise(scores),
        "shuffled_prompts": summarise(shuffled_prompts(observed, truths), resamples=200),
        "moved_sounds": summarise(moved_sounds(observed, truths), resamples=200),
    }
    for name, wanted in (("held_out", True), ("not_held_out", False)):
        part = [score for score, truth in zip(scores, truths, strict=True) if truth.get("held_out") is wanted]
        if part:
            results[name] = summarise(part)
    return results


def blurred(frames: np.ndarray, sigma_px: float) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 under a Gaussian blur."""
    if sigma_px <= 0:
        return frames
    reach = int(np.ceil(3 * sigma_px))
    taps = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma_px**2)).astype(np.float32)
    taps /= taps.sum()
    padded = np.pad(frames.astype(np.float32), ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, width = frames.shape[1:3]
    rows = sum(tap * padded[:, i : i + height] for i, tap in enumerate(taps))
    return np.rint(sum(tap * rows[:, :, i : i + width] for i, tap in enumerate(taps))).astype(np.uint8)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    run(main)
