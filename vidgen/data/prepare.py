"""From folders of videos, pictures and sounds to shards for training.

    python -m vidgen.data.prepare INPUT… --output SHARDS
    accelerate launch train.py vae3d --config … --data SHARDS …

Every file is decoded once to find its shots and to look at them; shots that are worth learning from are decoded again,
conformed, and encoded so that training reads them quickly. What is dropped is counted by its reason (report.html).
Run the same command again after a stop, or with more files in the inputs: only what is missing is done. On several
machines that see the same files, give each --rank and --world-size.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .. import cli
from ..errors import InputError
from ..files import replacing
from ..media import CLIP_SUFFIXES, IMAGE_SUFFIXES, SOUND_SUFFIXES
from ..options import Parser
from .captions import read_captions, sidecar_caption
from .conform import Made, Target, make_clip
from .filters import NearDuplicates, Thresholds, check_shot
from .journal import Journal, Progress, close_shard
from .probing import Shot, Survey, Unusable, require_data, survey_image, survey_sound, survey_video
from .shards import INDEX, ShardWriter
from .workers import OrderedPool


@dataclass(frozen=True)
class Job:
    """What every worker needs to know."""

    target: Target
    limits: Thresholds
    cut_threshold: float


@dataclass(frozen=True)
class Input:
    """A file, and what is said of it."""

    path: Path
    captions: list[str]

    @property
    def name(self) -> str:
        return str(self.path)

    def key(self, shot: int) -> str:
        """Unique, without dots, the same in every run."""
        return f"{hashlib.blake2b(os.fsencode(self.path), digest_size=6).hexdigest()}-{shot:04d}"


def find_inputs(paths: Sequence[Path]) -> tuple[list[Input], list[str]]:
    """Every media file under the given files and folders, once each, sorted, with its captions; and what is wrong with
    the captions or folders.

    Raises:
        InputError: a path that does not exist, or no media file at all.
    """
    found: dict[Path, None] = {}
    mistakes: list[str] = []
    suffixes = CLIP_SUFFIXES | IMAGE_SUFFIXES | SOUND_SUFFIXES
    folders: set[Path] = set()
    for path in paths:
        if path.is_dir():
            for folder, _, names in os.walk(
                path.resolve(), onerror=lambda error: mistakes.append(f"{error.filename}: {error.strerror}")
            ):
                folders.add(Path(folder))
                found |= dict.fromkeys(Path(folder) / name for name in names if Path(name).suffix.lower() in suffixes)
        elif path.exists():
            folders.add(path.resolve().parent)
            found[path.parent.resolve() / path.name] = None
        else:
            raise InputError(f"{path}: no such file or folder")
    if not found:
        raise InputError(f"no video, picture or sound in {', '.join(map(str, paths))}")
    captions: dict[Path, list[str]] = {}
    for parent in sorted(folders):
        captions |= {parent / name: texts for name, texts in read_captions(parent, mistakes.append).items()}
    inputs = []
    for path in sorted(found):
        try:
            inputs.append(Input(path, captions.get(path) or sidecar_caption(path)))
        except OSError as error:
            mistakes.append(f"{path.with_suffix('.txt')}: {error.strerror}")
            inputs.append(Input(path, []))
    return inputs, mistakes


# --- what workers do ------------------------------------------------------------------------------------------------


def survey(path: Path, job: Job) -> Survey | Unusable:
    """Look at one file. Whatever is wrong with it comes back, so that no file stops the others."""
    try:
        if not path.is_file():
            raise Unusable("no regular file")
        if path.stat().st_size == 0:
            raise Unusable("empty file")
        suffix, limits = path.suffix.lower(), job.limits
        if suffix in IMAGE_SUFFIXES:
            return survey_image(path, limits.max_pixels)
        if suffix in SOUND_SUFFIXES:
            return survey_sound(path, job.target.max_duration_s)
        return survey_video(
            path,
            max_duration_s=job.target.max_duration_s,
            cut_threshold=job.cut_threshold,
            max_pixels=limits.max_pixels,
        )
    except Exception as error:
        return _unusable(error)


def make(path: Path, shot: Shot, found: Survey, job: Job) -> Made | Unusable:
    """Make a clip of one shot, or tell why not."""
    try:
        return make_clip(path, shot, found, job.target, job.limits)
    except Exception as error:
        return _unusable(error)


def _unusable(error: Exception) -> Unusable:
    if isinstance(error, Unusable):
        return error
    if isinstance(error, InputError):
        reason = "may not be read" if "may not be read" in str(error) else "unreadable"
        return Unusable(reason, str(error)[-200:])
    if isinstance(error, PermissionError):
        return Unusable("may not be read")
    if isinstance(error, OSError) and error.errno in cli.DISK_ERRORS:
        raise error  # of the machine, not of the file
    return Unusable("unexpected error", f"{type(error).__name__}: {error}"[:200])


# --- the run --------------------------------------------------------------------------------------------------------


class Preparation:
    """One process's share: takes what workers return, in the order of the inputs, decides, and writes it down."""

    def __init__(self, output: Path, job: Job, rank: int, clips_per_shard: int, captioner: Any = None) -> None:
        self.output, self.job, self.rank, self.clips_per_shard = output, job, rank, clips_per_shard
        self.captioner = captioner
        self.journal = Journal(output, rank)
        self.progress = Progress(output)
        settings = json.loads(json.dumps(dataclasses.asdict(job)))
        if self.progress.settings not in (None, settings):
            raise InputError(f"{output} was begun with other settings: give the same, or name another folder")
        if self.progress.settings is None:
            self.journal.write(settings=settings)
        self.duplicates = NearDuplicates(job.limits.hash_distance)
        for entry in self.progress.clips.values():
            self.duplicates.add(entry["key"], entry["hashes"])
        self.kept, self.dropped = len(self.progress.clips), sum(self.progress.reasons().values())
        self.number = len(self.progress.shards.get(rank, {}))
        self.writer: ShardWriter | None = None
        self.name, self.clips = "", 0
        if (begun := self.progress.open_shard(rank)) is not None:
            self.name, end, self.clips = begun
            if (output / self.name).exists():  # finished, but killed before that was written down
                close_shard(output, self.name, end)
                self.journal.write(closed=self.name)
            else:
                self.writer = ShardWriter(output / f"{self.name}.part", end)

    def run(self, inputs: list[Input], workers: int, bar: "tqdm[Any]") -> None:
        """Do what is missing of these inputs."""
        with OrderedPool(workers) as pool:
            for item, found in pool.results(self._surveys(inputs)):
                wanted = self._shots_of(item, found)
                # Its clips come before the next file's: order, and so what counts as a duplicate, is always the same.
                for (key, shot), made in pool.results(
                    ((key, shot), make, (item.path, shot, found, self.job)) for key, shot in wanted
                ):
                    self._clip(item, key, shot, made)
                    bar.set_postfix(clips=self.kept, dropped=self.dropped, refresh=False)
                bar.update(1)
            if self.writer is not None and self.clips:
                self._close_shard()

    def _surveys(self, inputs: list[Input]) -> Iterator[tuple[Input, Any, tuple[Any, ...]]]:
        for item in inputs:
            if not self.is_done(item):
                yield item, survey, (item.path, self.job)

    def is_done(self, item: Input) -> bool:
        line = self.progress.files.get(item.name)
        return line is not None and all(key in self.progress.settled for key in line["shots"])

    def _shots_of(self, item: Input, found: Survey | Unusable) -> list[tuple[str, Shot]]:
        """Note what became of a file; the shots that are still to become clips."""
        drops: list[dict[str, Any]] = []
        wanted: list[tuple[str, Shot]] = []
        if isinstance(found, Unusable):
            drops.append({"reason": found.reason, "detail": found.detail})
        else:
            for number, shot in enumerate(found.shots):
                try:
                    if self.job.limits.needs_caption and not (item.captions or self.captioner):
                        raise Unusable("no caption")
                    check_shot(shot, found.height, found.width, self.job.limits)
                    wanted.append((item.key(number), shot))
                except Unusable as error:
                    drops.append({"shot": number, "reason": error.reason, "detail": error.detail})
        if item.name not in self.progress.files:
            notes = [] if isinstance(found, Unusable) else [*found.notes, *([] if item.captions else ["no caption"])]
            self.dropped += len(drops)
            keys = [key for key, _ in wanted]
            self.journal.write(file=item.name, shots=keys, drops=drops, notes=notes)
        return [(key, shot) for key, shot in wanted if key not in self.progress.settled]

    def _clip(self, item: Input, key: str, shot: Shot, made: Made | Unusable) -> None:
        if not isinstance(made, Unusable) and (twin := self.duplicates.find(shot.hashes)) is not None:
            made = Unusable("near-duplicate", f"of {twin}")
        if isinstance(made, Unusable):
            self.dropped += 1
            drop = {"key": key, "file": item.name, "reason": made.reason, "detail": made.detail}
            self.journal.write(drop=drop)
            return
        captions = list(item.captions)
        if self.captioner is not None:
            captions += self.captioner.describe(made)
        facts = {"key": key, "file": item.name, "start_s": round(shot.start_s, 4), **made.facts, "captions": captions}
        if self.writer is None:
            self.name, self.clips = f"clips-{self.rank:04d}-{self.number:05d}.tar", 0
            self.number += 1
            self.writer = ShardWriter(self.output / f"{self.name}.part")
        text = {".txt": captions[0].encode()} if captions else {}
        members = {made.suffix: made.data, ".json": json.dumps(facts).encode(), **text}
        offset, size = self.writer.add(key, members)[made.suffix]
        place = {"shard": self.name, "suffix": made.suffix, "offset": offset, "bytes": size}
        entry = {**facts, **place, "hashes": list(shot.hashes)}
        self.journal.write(clip=entry, end=self.writer.end)
        self.duplicates.add(key, shot.hashes)
        self.kept += 1
        self.clips += 1
        if self.clips >= self.clips_per_shard:
            self._close_shard()

    def _close_shard(self) -> None:
        assert self.writer is not None
        self.writer.finish(self.output / self.name)
        self.writer = None
        self.journal.write(closed=self.name)


def complete(output: Path, inputs_hash: str, world_size: int, mistakes: list[str], limits: Thresholds) -> bool:
    """Once all ranks are done with these inputs: index and report, by whichever sees it. Says whether they are.

    Clips that are near-duplicates across ranks, which know nothing of one another, stay in their shards but not in the
    index.
    """
    progress = Progress(output)
    if any(progress.done.get(rank) != inputs_hash for rank in range(world_size)):
        return False
    for rank in progress.shards:  # of ranks that there were once
        if rank >= world_size and (begun := progress.open_shard(rank)) is not None:
            close_shard(output, begun[0], begun[1])
    duplicates = NearDuplicates(limits.hash_distance)
    entries = []
    for entry in progress.clips.values():
        twin = duplicates.find(entry["hashes"])
        if twin is not None:
            drop = {"key": entry["key"], "file": entry["file"], "reason": "near-duplicate", "detail": f"of {twin}"}
            progress.drops.append(drop)
            continue
        duplicates.add(entry["key"], entry["hashes"])
        entries.append({name: value for name, value in entry.items() if name != "hashes"})
    from .report import write_report

    write_report(output, entries, progress, mistakes)
    with replacing(output / INDEX) as temporary:
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    return True


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m vidgen.data.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="files and folders")
    parser.add_argument("--output", required=True, type=Path, help="folder of the shards, their index and the report")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    parser.add_argument("--rank", type=int, default=0, help="which of --world-size machines this is, from 0")
    parser.add_argument("--world-size", type=int, default=1, help="how many machines share the work")
    parser.add_argument("--clips-per-shard", type=int, default=256, help="(%(default)s)")
    parser.add_argument(
        "--captioner", metavar="MODEL", help="a vision-language model of transformers, a folder or a hub id"
    )
    parser.add_argument("--cut-threshold", type=float, default=3.0, help="of PySceneDetect's adaptive detector (3.0)")
    for group, kind in (("clips are conformed to", Target), ("clips beyond these are dropped", Thresholds)):
        options = parser.add_argument_group(group)
        docs = field_docs(kind)
        for field in dataclasses.fields(kind):
            name, default = f"--{field.name.replace('_', '-')}", field.default
            words = f"{docs.get(field.name, '')} ({default})".strip()
            if isinstance(default, bool):
                options.add_argument(name, action="store_true", help=f"drop clips without {field.name[6:]}")
            else:
                options.add_argument(name, type=type(default), default=default, help=words)
    args = parser.parse_args(arguments)
    if not 0 <= args.rank < args.world_size:
        parser.error(f"--rank is 0 to {args.world_size - 1}")
    if args.workers < 1 or args.clips_per_shard < 1:
        parser.error("--workers and --clips-per-shard are at least 1")
    return args


def field_docs(kind: type) -> dict[str, str]:
    """The strings below a dataclass's fields, which are also what the command line says of them."""
    import ast
    import inspect

    body = ast.parse(inspect.getsource(kind)).body[0].body  # type: ignore[attr-defined]
    docs = {}
    for line, after in pairwise(body):
        if isinstance(line, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            docs[line.target.id] = " ".join(str(after.value.value).split())  # type: ignore[union-attr]
    return docs


def chosen(kind: Any, args: argparse.Namespace) -> Any:
    return kind(**{field.name: getattr(args, field.name) for field in dataclasses.fields(kind)})


def inputs_digest(inputs: Iterable[Input]) -> str:
    return hashlib.blake2b(b"\0".join(os.fsencode(item.path) for item in inputs), digest_size=16).hexdigest()


def summary(progress: Progress, clips: int) -> str:
    lines = [f"{clips} clips of {len(progress.files)} files"]
    for title, counts in (
        ("dropped", progress.reasons()),
        ("mended or noted", Counter(note for line in progress.files.values() for note in line["notes"])),
    ):
        told = ", ".join(f"{reason} {count}" for reason, count in counts.most_common())
        lines.append(f"{title}: {told or 'none'}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    for module in ("scenedetect", "pyloudnorm"):
        require_data(module)
    job = Job(chosen(Target, args), chosen(Thresholds, args), args.cut_threshold)
    inputs, mistakes = find_inputs(args.inputs)
    for mistake in mistakes[:20]:
        print(f"left out: {mistake}", file=sys.stderr)
    captioner = None
    if args.captioner is not None:
        from .captioner import Captioner

        captioner = Captioner(args.captioner)
    preparation = Preparation(args.output, job, args.rank, args.clips_per_shard, captioner)
    mine = inputs[args.rank :: args.world_size]
    ready = sum(preparation.is_done(item) for item in mine)
    with tqdm(total=len(mine), initial=ready, unit="file", desc="preparing", disable=None) as bar:
        preparation.run(mine, args.workers, bar)
    preparation.journal.write(done=inputs_digest(inputs))
    preparation.journal.close()
    if complete(args.output, inputs_digest(inputs), args.world_size, mistakes, job.limits):
        with (args.output / INDEX).open() as index:
            print(summary(Progress(args.output), sum(1 for _ in index)))
        print(f"saved {args.output} (see report.html)")
    else:
        print(f"rank {args.rank} is done; the last of {args.world_size} writes index and report")


if __name__ == "__main__":
    cli.run(main)
