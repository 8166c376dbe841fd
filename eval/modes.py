"""What a model makes of given material, on clips of the tabletop world with the truth beside:

    python -m vidgen.tabletop.physics --count 120 --seed 31337 --output scenes.npz
    python -m eval.modes --model weights --real scenes.npz --output out

For each clip its sound is made for its picture (foley), a picture for its sound, a clip from its first frame, one
between its first and last frame, and more (``modes_tasks``). Beside each figure stand two controls, the prompt with
another clip's material, and what was made held against another clip; and the clip itself after the autoencoders.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vidgen.audio_sync.onsets import onset_times_s
from vidgen.cli import keep_freed_memory, run
from vidgen.errors import InputError
from vidgen.files import replacing
from vidgen.generation import HIGH, QUALITIES, SHIPPED_MODEL

from .impacts import SEEN_APART_S, audible_groups, grouped, tally
from .modes_tasks import TASKS, RealClip, Task, given_back_db, sound_kept
from .sound import SILENT_PEAK
from .tabletop import ONSET_RISE_DB
from .verifier import Seen, Verifier

FRAMES_APART = 1.5
"""How far, in frames, an impact that is seen may lie from one that is heard."""
TURNS = 5
"""What was made for a clip is held against so many others."""
SHOWN = 4
RESAMPLES = 2000

Row = dict[str, list[float]]
"""The figures of one clip by name: one for the clip, or one for each of its impacts; empty where none arises."""


@dataclass(frozen=True)
class Outcome:
    """A clip that was made, or one to compare with: what is seen and heard in it, as far as the task asks for it."""

    frames: np.ndarray
    waveform: np.ndarray
    seen: Seen | None = None
    heard_s: np.ndarray | None = None
    material: str | None = None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.modes", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, help="folder of a model (default: the shipped)")
    parser.add_argument(
        "--real", type=Path, required=True, help="trajectories (.npz) that the model was not trained on"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for modes.json and sheets; goes on if there")
    parser.add_argument(
        "--quality",
        choices=QUALITIES,
        default=HIGH,
        help="of a model with a few-step student: it, or its teacher (default)",
    )
    parser.add_argument("--limit", type=int, default=64, help="how many clips (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the looks of real clips and of what is made")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="default: all")
    args = parser.parse_args()
    if args.limit < 2:
        raise InputError("--limit must be at least 2, for the control")
    from vidgen.pipeline import VidGenPipeline

    from .models import model_facts

    keep_freed_memory()
    verifier = Verifier.load()
    pipeline = VidGenPipeline.from_pretrained(args.model, quality=args.quality)
    facts = model_facts(args.model, args.quality)  # another state of a training may have the same version
    results: dict[str, Any] = {"model_version": facts["version"], "model_sha256": facts["sha256"],
                               "real": args.real.name, "clips": args.limit, "seed": args.seed}  # fmt: skip
    path = args.output / "modes.json"
    results["tasks"] = _known(path, results)
    clips = real_clips(args.real, pipeline, args.limit, args.seed)
    args.output.mkdir(parents=True, exist_ok=True)
    missing = [TASKS[name] for name in args.tasks if name not in results["tasks"]]
    with tqdm(total=sum(1 + task.is_measured for task in missing) * len(clips), unit="clip", disable=None) as bar:
        for task in missing:
            bar.set_description(task.name)
            made, summary = measure(pipeline, task, clips, args.seed, verifier, bar.update)
            results["tasks"][task.name] = summary
            save(args.output / f"{task.name}.png", clips, made, pipeline)
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results["tasks"]))
    print(f"written: {path}")


def _known(path: Path, header: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run with the same settings has measured.

    Raises:
        InputError: one with other settings, or a damaged file.
    """
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        tasks = found.pop("tasks")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged; remove it to measure anew") from error
    if found != header:
        raise InputError(f"{path} is of another model, other clips or another seed: give another --output")
    return tasks


def real_clips(trajectories: Path, pipeline: Any, count: int, seed: int) -> list[RealClip]:
    """Clips of the generator at the model's size and rate.

    Raises:
        InputError: no such trajectories, or fewer than ``count``.
    """
    from vidgen.tabletop.captions import sample_look
    from vidgen.tabletop.physics import load_trajectories
    from vidgen.tabletop.source import TabletopClips

    spec = pipeline.generation.spec()
    source = TabletopClips(load_trajectories(trajectories), spec, "any", seed)
    if len(source) < count:
        raise InputError(f"{trajectories} holds {len(source)} scenes, fewer than {count}")
    clips = []
    for index in np.random.default_rng(seed).permutation(len(source))[:count].tolist():
        batch = source[index]
        trajectory, truth = source.trajectories[index], batch["truth"][0]
        look = sample_look(np.random.default_rng((seed, index, 0)), trajectory, "any")  # as the source draws it
        blows_s = audible_groups(trajectory, truth["start_s"], spec.duration_s, look.seed, spec.sample_rate_hz)
        clips.append(RealClip(batch["video"][0].cpu().numpy(), batch["audio"][0, 0].numpy(), batch["captions"][0][0],
                              truth, blows_s))  # fmt: skip
    return clips


def measure(
    pipeline: Any, task: Task, clips: Sequence[RealClip], seed: int, verifier: Verifier, done: Callable[[int], Any]
) -> tuple[list[Outcome], dict[str, dict[str, float | int | None]]]:
    """What is made of each clip's material, and each figure with its controls; see ``summarise``."""
    others = [*clips[1:], clips[0]]
    made = [look_at(task, outcome, verifier, pipeline) for outcome in make(pipeline, task, clips, clips, seed, done)]
    spec = pipeline.generation.spec()
    columns = {
        "other_clip": [
            judge(task, asked, outcome, spec)
            for turn in range(1, min(TURNS, len(clips) - 1) + 1)
            for asked, outcome in zip([*clips[turn:], *clips[:turn]], made, strict=True)
        ],
        "autoencoders": [
            judge(task, clip, look_at(task, coded(clip, pipeline), verifier, pipeline), spec) for clip in clips
        ],
    }
    if task.is_measured:
        swapped = make(pipeline, task, clips, others, seed, done)
        columns["other_material"] = [
            judge(task, clip, look_at(task, outcome, verifier, pipeline), spec)
            for clip, outcome in zip(clips, swapped, strict=True)
        ]
    rows = [judge(task, clip, outcome, spec) for clip, outcome in zip(clips, made, strict=True)]
    return made, summarise(rows, columns)


def make(
    pipeline: Any,
    task: Task,
    clips: Sequence[RealClip],
    material: Sequence[RealClip],
    seed: int,
    done: Callable[[int], Any],
) -> list[Outcome]:
    """A clip for each clip's prompt and the material of the clip beside it."""
    import torch

    made = []
    for index, (clip, source) in enumerate(zip(clips, material, strict=True)):
        given = task.given(source, pipeline.generation.spec())
        output = pipeline(clip.prompt, given=given, generator=torch.Generator().manual_seed(seed + index))
        made.append(Outcome(output.frames[0], output.audio[0]))
        done(1)
    return made


def coded(clip: RealClip, pipeline: Any) -> Outcome:
    """The clip itself as its autoencoders give it back: nothing can be made better than that."""
    import torch

    from vidgen.given import Given

    spec = pipeline.generation.spec()
    latents = pipeline.encode_given(Given(video=clip.frames, waveform=clip.waveform), spec)
    with torch.no_grad():
        frames = pipeline.decode_video(latents.video, spec, as_bytes=True)[0]
        return Outcome(frames, pipeline.decode_audio(latents.audio, spec, None, as_array=True)[0])


def look_at(task: Task, outcome: Outcome, verifier: Verifier, pipeline: Any) -> Outcome:
    """See and hear what the task asks for."""
    if task.asks_of_picture:
        outcome = replace(outcome, seen=verifier.read(outcome.frames, float(pipeline.generation.spec().frame_rate)))
    if task.asks_of_sound:
        rate_hz = pipeline.generation.sample_rate_hz
        is_silent = np.abs(outcome.waveform).max() < SILENT_PEAK
        heard_s = onset_times_s(outcome.waveform, rate_hz, threshold_db=ONSET_RISE_DB)
        material = None if verifier.sound is None else verifier.sound.material(outcome.waveform, rate_hz)
        outcome = replace(outcome, heard_s=np.zeros(0) if is_silent else heard_s, material=material)
    return outcome


def judge(task: Task, asked: RealClip, outcome: Outcome, spec: Any) -> Row:
    """The figures of what was made, held against the clip whose material was to be followed.

    offset_ms: of each blow to be heard, how far off the nearest sound begins (the clip's length, if there is none).
    heard, seen: whether a blow to be heard has a sound's beginning, or an impact that is seen, within ``FRAMES_APART``.
    sounds_true, impacts_true: whether there is a blow, of whatever strength, where one is heard or seen.
    material_right, action_right: as in ``eval.tabletop.compare``.
    given_db, first_frame_db, …: PSNR of what was given; sound_kept: 1 where every given sample came back exactly.
    """
    row: Row = {}
    near_s = FRAMES_APART / float(spec.frame_rate)
    blows_s = [event["time_s"] for event in asked.truth["events"]]
    if outcome.heard_s is not None:
        told = tally(asked.blows_s, blows_s, outcome.heard_s, near_s)
        errors = told.errors_s or (spec.duration_s,) * told.asked
        row["offset_ms"] = [1000 * error for error in errors]
        row["heard"] = [float(error <= near_s) for error in errors]
        row["sounds_true"] = [1.0] * told.true + [0.0] * (told.told - told.true)
        if len(asked.truth["bodies"]) == 1 and asked.truth["action"] != "rests":
            row["material_right"] = [float(outcome.material == asked.truth["bodies"][0]["material"])]
    if outcome.seen is not None:
        row["action_right"] = [float(outcome.seen.action == asked.truth["action"])]
        if not task.makes_sound:
            moments = [moment for group in asked.blows_s for moment in group]
            told = tally(grouped(moments, SEEN_APART_S), blows_s, outcome.seen.impacts_s, near_s)
            errors = told.errors_s or (spec.duration_s,) * told.asked
            row["seen"] = [float(error <= near_s) for error in errors]
            row["impacts_true"] = [1.0] * told.true + [0.0] * (told.told - told.true)
    row |= given_back_db(task.given(asked, spec), asked.frames, outcome.frames, spec)
    return row | sound_kept(task.given(asked, spec), outcome.waveform, spec)


def summarise(rows: Sequence[Row], controls: dict[str, list[Row]]) -> dict[str, dict[str, float | int | None]]:
    """For each figure its mean (of offsets the median) with a 95 % bootstrap interval over clips, and the controls'."""
    rng = np.random.default_rng(0)
    summary: dict[str, dict[str, float | int | None]] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        statistic = np.median if name == "offset_ms" else np.mean

        def over(chosen: Sequence[Row], name: str = name, statistic: Callable = statistic) -> float | None:
            values = [value for row in chosen for value in row.get(name, ())]
            return float(statistic(values)) if values else None

        value = over(rows)
        if value is None:
            continue
        drawn = rng.integers(len(rows), size=(RESAMPLES, len(rows)))
        statistics = [found for picks in drawn if (found := over([rows[pick] for pick in picks])) is not None]
        low, high = np.quantile(statistics, (0.025, 0.975))
        summary[name] = {
            "value": value,
            "low": float(low),
            "high": float(high),
            "n": sum(len(row.get(name, ())) for row in rows),
            **{column: over(others) for column, others in controls.items()},
        }
    return summary


def table(tasks: dict[str, dict[str, dict[str, Any]]]) -> str:
    head = ("value", "95 % interval", "n", "other material", "other clip", "autoencoders")
    lines = [f"{'':35} {head[0]:>8} {head[1]:>17} {head[2]:>4} {head[3]:>15} {head[4]:>11} {head[5]:>13}"]
    for task, summary in tasks.items():
        for name, row in summary.items():
            controls = ("other_material", "other_clip", "autoencoders")
            told = ["" if row.get(column) is None else f"{row[column]:.2f}" for column in controls]
            interval = f"{row['low']:.2f} to {row['high']:.2f}"
            lines.append(f"{task:19} {name:15} {row['value']:8.2f} {interval:>17} {row['n']:4} {told[0]:>15} "
                         f"{told[1]:>11} {told[2]:>13}")  # fmt: skip
    return "\n".join(lines)


def save(path: Path, clips: Sequence[RealClip], made: Sequence[Outcome], pipeline: Any) -> None:
    """The first clips and, below each, what was made of them."""
    from vidgen.sheets import contact_sheet, save_sheet

    rate_hz = pipeline.generation.sample_rate_hz
    sheets = []
    for clip, outcome in list(zip(clips, made, strict=True))[:SHOWN]:
        sheets.append(contact_sheet(clip.frames, clip.waveform, rate_hz, f"real: {clip.prompt}"))
        sheets.append(contact_sheet(outcome.frames, outcome.waveform, rate_hz, "made"))
    save_sheet(path, sheets)


if __name__ == "__main__":
    run(main)
