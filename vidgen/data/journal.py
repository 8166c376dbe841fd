"""What has been done of a preparation, a line at a time, so that a killed one goes on where it stopped.

Each process appends to a journal of its own and reads everybody's. A clip is written to its shard and to the disk
before its line is, and a line counts only when it is whole; what a shard holds beyond its last line is cut off. So
nothing is lost and nothing done twice, but the one clip that was being written.

Lines are JSON objects with one of these keys: ``settings`` (what everything was made with), ``file`` (an input, its
shots that are to become clips, and what was dropped), ``clip`` (an entry of the index), ``drop`` (a shot that did not
become one), ``closed`` (a finished shard) and ``done`` (all inputs of that hash).
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from .shards import END, ShardWriter


class Journal:
    """One process's journal, opened to go on with.

    Raises:
        InputError: another process has it open.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = journal_path(folder, rank)
        self.file = self.path.open("r+b" if self.path.exists() else "w+b")
        try:
            import fcntl

            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # no such locks on this system
        except OSError as error:
            raise InputError(f"{folder} is being prepared by another process with the same --rank") from error
        content = self.file.read()
        self.file.seek(content.rfind(b"\n") + 1)
        self.file.truncate()

    def write(self, **line: Any) -> None:
        self.file.write(json.dumps(line).encode() + b"\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


def journal_path(folder: Path, rank: int) -> Path:
    return folder / f"journal-{rank:04d}.jsonl"


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a journal."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise InputError(f"{path} is damaged: delete this output and prepare it again") from error


class Progress:
    """What all journals of an output tell together."""

    def __init__(self, folder: Path) -> None:
        self.settings: dict[str, Any] | None = None
        self.files: dict[str, dict[str, Any]] = {}
        """By input: its line."""
        self.clips: dict[str, dict[str, Any]] = {}
        """By key, in the order of ranks and lines."""
        self.drops: list[dict[str, Any]] = []
        self.settled: set[str] = set()
        """Keys of shots that became clips or were dropped."""
        self.shards: dict[int, dict[str, tuple[int, int]]] = {}
        """By rank, the shards begun: how far each is good, and how many clips that is."""
        self.closed: dict[int, set[str]] = {}
        self.done: dict[int, str] = {}
        for path in sorted(folder.glob("journal-*.jsonl")):
            rank = int(path.stem.split("-")[1])
            begun = self.shards.setdefault(rank, {})
            closed = self.closed.setdefault(rank, set())
            for line in read_journal(path):
                if "settings" in line:
                    self.settings = line["settings"]
                elif "file" in line:
                    self.files[line["file"]] = line
                elif "clip" in line:
                    entry = line["clip"]
                    self.clips[entry["key"]] = entry
                    self.settled.add(entry["key"])
                    begun[entry["shard"]] = (line["end"], begun.get(entry["shard"], (0, 0))[1] + 1)
                elif "drop" in line:
                    self.drops.append(line["drop"])
                    self.settled.add(line["drop"]["key"])
                elif "closed" in line:
                    closed.add(line["closed"])
                elif "done" in line:
                    self.done[rank] = line["done"]

    def open_shard(self, rank: int) -> tuple[str, int, int] | None:
        """The shard that a rank was writing: its name, end and number of clips."""
        for name, (end, clips) in self.shards.get(rank, {}).items():
            if name not in self.closed[rank]:
                return name, end, clips
        return None

    def reasons(self) -> Counter[str]:
        """How many files and clips were dropped, by reason."""
        counts = Counter(drop["reason"] for drop in self.drops)
        for line in self.files.values():
            counts.update(drop["reason"] for drop in line["drops"])
        return counts


def close_shard(folder: Path, name: str, end: int) -> None:
    """End a shard that is good up to ``end``; one that was ended before its line was written stays as it is."""
    part = folder / f"{name}.part"
    if part.exists():
        ShardWriter(part, end).finish(folder / name)
    elif not (folder / name).exists() or (folder / name).stat().st_size != end + len(END):
        raise InputError(f"{folder / name} is missing or damaged: delete this output and prepare it again")
