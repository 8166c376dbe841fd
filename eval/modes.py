"""What a model makes of given material, on clips of the tabletop world with the truth beside:

    python -m eval.modes --model weights --real scenes.npz --output out

For each clip its sound is made for its picture (foley), a picture for its sound, a clip from its first frame, and one
between its first and last frame. Every task has a control: the same with another clip's material in its place.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from vidgen.cli import keep_freed_memory, run
from vidgen.errors import InputError
from vidgen.generation import SHIPPED_MODEL
from vidgen.given import Given

from .tabletop import compare, observe
from .verifier import Verifier

FRAMES_APART = 1.5
"""How far, in frames, an impact that is seen may lie from the one that is heard."""
SHOWN = 4
RESAMPLES = 2000


@dataclass(frozen=True)
class RealClip:
    """A clip of the generator: frames (T, H, W, 3) uint8, waveform (N,), its prompt and the truth about it."""

    frames: np.ndarray
    waveform: np.ndarray
    prompt: str
    truth: dict


@dataclass(frozen=True)
class Task:
    """``given`` makes material of a clip; what is not made of the output is the clip's own."""

    name: str
    given: Callable[[RealClip], Given]
    makes_picture: bool
    makes_sound: bool


TASKS = (
    Task("foley", lambda clip: Given(video=clip.frames), makes_picture=False, makes_sound=True),
    Task("sound to video", lambda clip: Given(waveform=clip.waveform), makes_picture=True, makes_sound=False),
    Task("first frame", lambda clip: Given(keyframes={0: clip.frames[0]}), makes_picture=True, makes_sound=True),
    Task("first and last frame",
         lambda clip: Given(keyframes={0: clip.frames[0], len(clip.frames) - 1: clip.frames[-1]}),
         makes_picture=True, makes_sound=True),
)  # fmt: skip


@dataclass
class Answers:
    """What came of a task, clip by clip; an answer is None where the question does not arise."""

    figures: list[dict[str, float | None]] = field(default_factory=list)
    controls: list[dict[str, float | None]] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.modes", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, help="folder of a model (default: the shipped)")
    parser.add_argument(
        "--real", type=Path, required=True, help="trajectories (.npz) that the model was not trained on"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for modes.json and sheets")
    parser.add_argument("--limit", type=int, default=64, help="how many clips (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the looks of real clips and of what is made")
    args = parser.parse_args()
    if args.limit < 2:
        raise InputError("--limit must be at least 2, for the control")
    from vidgen.pipeline import VidGenPipeline

    keep_freed_memory()
    verifier = Verifier.load()
    pipeline = VidGenPipeline.from_pretrained(args.model)
    clips = real_clips(args.real, pipeline, args.limit, args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"model_version": pipeline.generation.model_version, "real": args.real.name,
                               "clips": len(clips), "seed": args.seed, "tasks": {}}  # fmt: skip
    with tqdm(total=len(TASKS) * len(clips), unit="clip", disable=None) as bar:
        for task in TASKS:
            bar.set_description(task.name)
            made = make(pipeline, task, clips, args.seed, bar.update)
            results["tasks"][task.name] = summarise(judge(task, clips, made, verifier, pipeline))
            save(args.output / f"{task.name.replace(' ', '-')}.png", clips, made, pipeline)
    (args.output / "modes.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results["tasks"]))
    print(f"written: {args.output / 'modes.json'}")


def real_clips(trajectories: Path, pipeline: Any, count: int, seed: int) -> list[RealClip]:
    """Clips of the generator at the model's size and rate.

    Raises:
        InputError: no such trajectories, or fewer than ``count``.
    """
    from vidgen.tabletop.physics import load_trajectories
    from vidgen.tabletop.source import TabletopClips

    source = TabletopClips(load_trajectories(trajectories), pipeline.generation.spec(), "any", seed)
    if len(source) < count:
        raise InputError(f"{trajectories} holds {len(source)} scenes, fewer than {count}")
    clips = []
    for index in np.random.default_rng(seed).permutation(len(source))[:count].tolist():
        batch = source[index]
        clips.append(RealClip(batch["video"][0].cpu().numpy(), batch["audio"][0, 0].numpy(), batch["captions"][0][0],
                              batch["truth"][0]))  # fmt: skip
    return clips


def make(
    pipeline: Any, task: Task, clips: Sequence[RealClip], seed: int, done: Callable[[int], Any]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Frames and sound for each clip's prompt and material."""
    made = []
    for index, clip in enumerate(clips):
        output = pipeline(clip.prompt, given=task.given(clip), generator=torch.Generator().manual_seed(seed + index))
        made.append((output.frames[0], output.audio[0]))
        done(1)
    return made


def judge(
    task: Task, clips: Sequence[RealClip], made: Sequence[tuple[np.ndarray, np.ndarray]], verifier: Verifier,
    pipeline: Any,
) -> Answers:  # fmt: skip
    """Each clip's figures, and those of the control: what was made, beside the next clip's material."""
    spec = pipeline.generation.spec()
    rate, sample_rate_hz = float(spec.frame_rate), spec.sample_rate_hz
    answers = Answers()
    for index, clip in enumerate(clips):
        frames, sound = made[index]
        other = clips[(index + 1) % len(clips)]
        for asked, rows in ((clip, answers.figures), (other, answers.controls)):
            picture = frames if task.makes_picture else asked.frames
            waveform = sound if task.makes_sound else asked.waveform
            score = compare(observe(verifier, picture, waveform, rate, sample_rate_hz), asked.truth)
            offset_s = score["sync"]["first_offset_s"]
            figures: dict[str, float | None] = {"offset_ms": None if offset_s is None else 1000 * abs(offset_s)}
            if score["sync"]["impacts_s"]:
                figures["in_sync"] = float(offset_s is not None and abs(offset_s) * rate <= FRAMES_APART)
            if task.makes_picture and score["right"]["action"] is not None:
                figures["action_right"] = float(score["right"]["action"])
            for place, name in ((0, "first_frame_db"), (-1, "last_frame_db")):
                if place % len(asked.frames) in task.given(asked).keyframes:
                    figures[name] = psnr_db(frames[place], asked.frames[place])
            rows.append(figures)
    return answers


def psnr_db(picture: np.ndarray, reference: np.ndarray) -> float:
    error = np.square(picture.astype(np.float64) - reference).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-3)))


def summarise(answers: Answers) -> dict[str, dict[str, float | int | None]]:
    """For each figure its mean (of offsets the median) with a 95 % bootstrap interval over clips, and the control's."""
    rng = np.random.default_rng(0)
    names = list(dict.fromkeys(name for row in answers.figures for name in row))
    summary = {}
    for name in names:
        values, control = (
            np.array([row[name] for row in rows if row.get(name) is not None], float)
            for rows in (answers.figures, answers.controls)
        )
        statistic = np.median if name == "offset_ms" else np.mean
        if len(values):
            drawn = values[rng.integers(len(values), size=(RESAMPLES, len(values)))]
            low, high = np.quantile(statistic(drawn, axis=1), (0.025, 0.975))
            summary[name] = {
                "value": float(statistic(values)),
                "low": float(low),
                "high": float(high),
                "n": len(values),
                "control": float(statistic(control)) if len(control) else None,
            }
    return summary


def table(tasks: dict[str, dict[str, dict[str, Any]]]) -> str:
    lines = [f"{'':37} {'value':>7} {'95 % interval':>16} {'n':>4} {'other clip':>11}"]
    for task, summary in tasks.items():
        for name, row in summary.items():
            interval = f"{row['low']:.2f} to {row['high']:.2f}"
            control = "" if row["control"] is None else f"{row['control']:.2f}"
            lines.append(f"{task:22} {name:14} {row['value']:7.2f} {interval:>16} {row['n']:4} {control:>11}")
    return "\n".join(lines)


def save(path: Path, clips: Sequence[RealClip], made: Sequence[tuple[np.ndarray, np.ndarray]], pipeline: Any) -> None:
    """The first clips and, below each, what was made of them."""
    from vidgen.sheets import contact_sheet, save_sheet

    rate_hz = pipeline.generation.sample_rate_hz
    sheets = []
    for clip, (frames, sound) in list(zip(clips, made, strict=True))[:SHOWN]:
        sheets.append(contact_sheet(clip.frames, clip.waveform, rate_hz, f"real: {clip.prompt}"))
        sheets.append(contact_sheet(frames, sound, rate_hz, "made"))
    save_sheet(path, sheets)


if __name__ == "__main__":
    run(main)
