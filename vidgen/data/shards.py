"""Clips in tar files, in the WebDataset layout, and where in them each clip lies.

A clip is a few neighbouring members with the same name up to the first dot: ``KEY.mp4`` (or .jpg, .flac), ``KEY.json``
(what is known of it) and ``KEY.txt`` (its first caption). Any reader of WebDataset shards can stream them; with
``index.jsonl``, which tells offset and size of every clip, any clip can be read alone, so training can start anywhere.
"""

import json
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError

INDEX = "index.jsonl"
FIELDS = ("shard", "offset", "bytes", "kind", "duration_s", "height", "width", "has_audio", "captions")
"""What every line of the index must tell."""
BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)


@dataclass(frozen=True)
class Slice:
    """Some bytes of a file."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Raises InputError when the file has fewer bytes."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) != self.size:
            raise InputError(f"{self.path} is cut off: prepare it again, or leave it out of {INDEX}")
        return data


class ShardWriter:
    """Appends clips to a tar file that may be cut off at any time: what lies before a known end stays good.

    Args:
        path: of the unfinished file.
        end: what earlier work is known to have left in it; the rest is cut off.
    """

    def __init__(self, path: Path, end: int = 0) -> None:
        self.path = path
        self.file: BinaryIO = path.open("r+b" if path.exists() else "w+b")
        if self.file.seek(0, os.SEEK_END) < end:
            self.file.close()
            raise InputError(f"{path} is shorter than its journal says: delete this output and prepare it again")
        self.file.truncate(end)
        self.file.seek(end)

    def add(self, key: str, members: dict[str, bytes]) -> dict[str, tuple[int, int]]:
        """Write a clip's members, by suffix, to the disk; (offset, size) of each."""
        places = {}
        for suffix, data in members.items():
            info = tarfile.TarInfo(f"{key}{suffix}")
            info.size, info.mode = len(data), 0o644
            self.file.write(info.tobuf(tarfile.USTAR_FORMAT))
            places[suffix] = (self.file.tell(), len(data))
            self.file.write(data + bytes(-len(data) % BLOCK))
        self.file.flush()
        os.fsync(self.file.fileno())
        return places

    @property
    def end(self) -> int:
        return self.file.tell()

    def finish(self, path: Path) -> None:
        """End the archive and give it its name."""
        self.file.write(END)
        self.close()
        os.replace(self.path, path)

    def close(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


def read_index(folder: Path) -> list[dict[str, Any]]:
    """The entries of ``index.jsonl``: key, shard, offset and bytes of the media, captions and facts of each clip.

    Raises:
        InputError: no index, a damaged one, or one that names files of other folders.
    """
    path = folder / INDEX
    if not path.is_file():
        unfinished = "python -m vidgen.data.prepare has not finished it" if list(folder.glob("*.part")) else "no shards"
        raise InputError(f"{folder} has no {INDEX}: {unfinished}")
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            missing = [field for field in FIELDS if field not in entry]
            outside = not missing and (entry["shard"] in ("", "..") or Path(entry["shard"]).name != entry["shard"])
        except (json.JSONDecodeError, TypeError) as error:
            raise InputError(f"{path}, line {number} is damaged: prepare the shards again") from error
        if missing:
            raise InputError(f"{path}, line {number} has no {missing[0]!r}: prepare the shards again")
        if outside:
            raise InputError(f"{path}, line {number}: {entry['shard']!r} is not the name of a shard in that folder")
        entries.append(entry)
    return entries
