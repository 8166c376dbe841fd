"""What a model is asked for, and the clips that it makes of it: one mp4 a prompt and seed, made where it is missing."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import av.error

from vidgen.errors import InputError
from vidgen.files import replacing
from vidgen.media import read_metadata, write_video
from vidgen.published_folders import is_vidgen

from . import models
from .workers import spread

SEED_STEP = 100_000
"""Between the seeds of two samples of one prompt, so that they meet no other prompt's."""


@dataclass(frozen=True)
class Asked:
    prompt: str
    seed: int
    attributes: dict = field(default_factory=dict)
    """What is to be seen, where that is known: as ``vidgen.tabletop.captions.attributes`` returns it."""
    name: str = ""
    """Of the file, with its suffix; by default the number of the clip."""


@dataclass(frozen=True)
class Made:
    """A clip that was asked for: it lies at ``path``, or there is a reason why not."""

    asked: Asked
    path: Path
    failure: str | None = None


def load_prompts(path: Path | None, lists: Sequence[str] = ("held_out",)) -> list[Asked]:
    """Prompts of a JSON file, a list of {"prompt", "seed", "attributes"}, or the fixed ones of ``prompt_lists``.

    Raises:
        InputError: no such file, or it holds something else.
    """
    if path is None:
        from .prompt_lists import prompt_list

        fixed = []
        for entry in prompt_list(lists):
            told = entry["attributes"]
            name = "" if told["list"] == "held_out" else f"{told['list']}-{told['twin']:04d}.mp4"
            fixed.append(Asked(entry["prompt"], entry["seed"], told, name))
        return fixed
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


def sampled(asked: Sequence[Asked], samples: int) -> list[Asked]:
    """Each prompt so many times, with seeds of its own; a prompt's samples stand together."""
    return [
        replace(entry, seed=entry.seed + SEED_STEP * k, name=f"{k}-{entry.name}" if entry.name and k else entry.name)
        for entry in asked
        for k in range(samples)
    ]


def clip_paths(asked: Sequence[Asked], folder: Path) -> list[Path]:
    """Where the clips of a model lie."""
    return [folder / (entry.name or f"{index:04d}.mp4") for index, entry in enumerate(asked)]


def prompts_sha256(asked: Sequence[Asked]) -> str:
    return hashlib.sha256(json.dumps([(entry.prompt, entry.seed) for entry in asked]).encode()).hexdigest()


def generate(
    model: Path,
    asked: Sequence[Asked],
    folder: Path,
    *,
    device: str = "auto",
    batch: int = 4,
    workers: int = 1,
    part: tuple[int, int] = (0, 1),
    quality: str | None = None,
) -> tuple[list[Made], dict[str, Any]]:
    """An mp4 for each entry, made where it is missing; and ``models.model_facts``.

    A clip that cannot be made leaves ``NAME.failed`` with the reason; the next run tries again. Processes, here or on
    other machines that see the folder, may each make their share: a file appears whole or not at all.

    Args:
        workers: processes, each of which loads the model.
        batch: clips made at once. A batch of which something is missing is computed whole, so that a run that was
            broken off ends in the very clips of one that was not.
        part: (k, n): make only every n-th batch, from the k-th on.
        quality: of a model of vidgen's own, as ``generation.chosen_quality`` takes it.

    Raises:
        InputError: no such model, or a clip in the folder was made by another model or for another prompt.
    """
    facts = models.model_facts(model, quality)
    paths = clip_paths(asked, folder)
    rows = list(zip(asked, paths, strict=True))
    for entry, path in rows:
        if not path.exists():
            continue
        tags = read_metadata(path)
        if (tags.get("prompt"), tags.get("seed"), tags.get("model_sha256")) != (
            entry.prompt, str(entry.seed), facts["sha256"],
        ):  # fmt: skip
            raise InputError(f"{path} was made by another model or for another prompt: give another --output")
    tags = {"model_version": facts["version"], "model_sha256": facts["sha256"]}
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)][part[0] :: part[1]]
    batches = [one for one in batches if not all(path.exists() for _, path in one)]
    work = partial(_make, model=model, device=device, tags=tags, quality=quality)
    for _ in spread(work, batches, workers, f"{folder.name} made", weigh=len):
        pass
    return [Made(entry, path, _why_not(path)) for entry, path in rows], facts


def _why_not(path: Path) -> str | None:
    if path.exists():
        return None
    note = path.with_suffix(".failed")
    return note.read_text(encoding="utf-8").strip() if note.exists() else "not made"


def _make(
    rows: list[tuple[Asked, Path]], model: Path, device: str, tags: dict[str, str], quality: str | None = None
) -> None:
    """What is missing of a batch. Where it fails its clips are tried one by one: one takes no other along."""
    models.load_pipeline(model, device, quality)  # if the model itself cannot be had, no clip is to blame
    if not is_vidgen(model):  # makes its clips one by one, so those that are there have no say
        rows = [row for row in rows if not row[1].exists()]
    try:
        prompts, seeds = [entry.prompt for entry, _ in rows], [entry.seed for entry, _ in rows]
        clips = models.make_clips(model, device, prompts, seeds, quality)
        for (entry, path), clip in zip(rows, clips, strict=True):
            if path.exists():
                continue
            own = {"title": entry.prompt, "prompt": entry.prompt, "seed": str(entry.seed), **tags}
            write_video(path, clip.frames, clip.waveform, clip.frame_rate, clip.sample_rate_hz or 24000, own)
            path.with_suffix(".failed").unlink(missing_ok=True)
    except (RuntimeError, ValueError, ArithmeticError, MemoryError, av.error.FFmpegError) as error:
        if len(rows) > 1:
            for row in rows:
                if not row[1].exists():
                    _make([row], model, device, tags, quality)
            return
        with replacing(rows[0][1].with_suffix(".failed")) as temporary:
            temporary.write_text(f"{type(error).__name__}: {error}\n", encoding="utf-8")


def folder_clips(folder: Path) -> list[Made]:
    """The clips of any folder. Their captions come from metadata.jsonl, a text file of the same name, or the clip's
    own tags (prompt, title, comment), and are empty where there is none.

    Raises:
        InputError: no clip in it.
    """
    from vidgen.data.captions import read_captions, sidecar_caption
    from vidgen.media import CLIP_SUFFIXES

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in CLIP_SUFFIXES)
    if not paths:
        raise InputError(f"{folder} is not a folder with clips in it ({', '.join(sorted(CLIP_SUFFIXES))})")
    captions = read_captions(folder)
    made = []
    for index, path in enumerate(paths):
        try:
            tags = read_metadata(path)
        except InputError as error:
            made.append(Made(Asked("", index, name=path.relative_to(folder).as_posix()), path, str(error)))
            continue
        told = [*(captions.get(path.relative_to(folder).as_posix()) or sidecar_caption(path))]
        told += [tags[key] for key in ("prompt", "title", "comment") if tags.get(key)]
        seed = int(tags["seed"]) if tags.get("seed", "").isdigit() else index
        made.append(Made(Asked(next(iter(told), ""), seed, name=path.relative_to(folder).as_posix()), path))
    return made


def matched(folder: Path, asked: Sequence[Asked]) -> list[Made]:
    """Clips that others made for the prompts, told by their captions (capitals and spaces aside).

    The k-th clip of a caption, by name, is the k-th of its prompt; a prompt without a clip is a failure.

    Raises:
        InputError: no clip in the folder, or none of these prompts.
    """
    waiting: dict[str, list[Path]] = {}
    for clip in folder_clips(folder):
        waiting.setdefault(_plain(clip.asked.prompt), []).append(clip.path)
    made = []
    for index, entry in enumerate(asked):
        paths = waiting.get(_plain(entry.prompt))
        if paths:
            made.append(Made(entry, paths.pop(0)))
        else:
            made.append(Made(entry, folder / f"none-{index}.mp4", "no clip has this caption"))
    if all(clip.failure for clip in made):
        raise InputError(f"no clip in {folder} has one of the suite's prompts as its caption, as {asked[0].prompt!r}")
    return made


def _plain(caption: str) -> str:
    return " ".join(caption.casefold().split())
