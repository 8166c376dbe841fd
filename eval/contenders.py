"""Who is scored: models, whose missing clips are made, or clips that are there; and what distances are taken from."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidgen.errors import InputError
from vidgen.files import labels
from vidgen.published_folders import is_published
from vidgen.tabletop.archive import load_trajectories

from .distribution import clip_files
from .films import film
from .generate import Asked, Made, folder_clips, generate, load_prompts, matched, sampled
from .vbench_prompts import vbench_asked, vbench_prompts

FILMED = 400


@dataclass
class Contender:
    """What is scored: a model's clips, or anybody's."""

    name: str
    made: list[Made]
    facts: dict[str, Any] = field(default_factory=dict)
    model: Path | None = None


def contend(args: argparse.Namespace) -> list[Contender]:
    """What is to be scored; a model's missing clips are made."""
    if args.real is not None:
        films = film(load_trajectories(args.real), args.limit or FILMED, args.output / "real", args.seed, args.workers)
        made = [Made(Asked(filmed.caption, args.seed, filmed.truth), filmed.path) for filmed in films]
        return [Contender("generator", made, {"version": args.real.name})]
    if args.suite == "tabletop":
        asked = sampled(load_prompts(args.prompts, args.lists)[: args.limit], args.samples)
    elif args.suite == "vbench":
        asked = vbench_asked(vbench_prompts(args.prompts, args.vbench_dimensions)[: args.limit], args.seed)
    else:
        clips = folder_clips(Path(args.suite))[: args.limit]
        if not (args.model or args.clips):
            return [Contender(Path(args.suite).resolve().name, clips)]
        asked = [Asked(clip.asked.prompt, index) for index, clip in enumerate(clips) if clip.asked.prompt]
        if not asked:
            raise InputError(f"{args.suite} holds no captions: give metadata.jsonl or text files, or leave out --model")
        asked = sampled(asked, args.samples)
    contenders = []
    names = labels([*args.model, *args.clips])
    for label, model in zip(names, args.model, strict=False):
        qualities = [None] if is_published(model) and model.is_dir() else args.quality
        for quality in qualities:
            name = label if len(qualities) == 1 else f"{label}-{quality}"
            made, facts = generate(
                model, asked, args.output / name, device=args.device, batch=args.batch, workers=args.workers,
                part=part(args.part), quality=quality,
            )  # fmt: skip
            contenders.append(Contender(name, made, facts, model))
    others = zip(names[len(args.model) :], args.clips, strict=True)
    return contenders + [Contender(name, matched(folder, asked)) for name, folder in others]


def part(text: str | None) -> tuple[int, int]:
    """``2/4`` as (1, 4)."""
    if text is None:
        return 0, 1
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise InputError(f"--part looks like 2/4 (the second of four), not {text!r}")
    return int(number) - 1, int(count)


def reference_clips(args: argparse.Namespace, count: int) -> list[Path]:
    """The clips that distances are taken from; none if none are given."""
    if args.reference_scenes is not None:
        scenes = load_trajectories(args.reference_scenes)
        return [filmed.path for filmed in film(scenes, count, args.output / "reference", args.seed, args.workers)]
    if args.reference is not None:
        return clip_files(args.reference)
    of_folder = args.suite not in ("tabletop", "vbench") and (args.model or args.clips)
    return clip_files(Path(args.suite)) if of_folder else []
