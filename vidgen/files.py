"""Files that appear whole or not at all, and short names for files."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when the block succeeds and vanishes when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"  # also where several machines write to one disk
    temporary = path.with_name(f".{path.stem[:80]}.{unique}.tmp{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def labels(paths: Sequence[Path]) -> list[str]:
    """A short name for each file or folder, no two alike: ``weights``, or ``dit-model`` of ``runs/out/dit/model``."""
    names = [path.resolve().name for path in paths]
    names = [
        f"{path.resolve().parent.name}-{name}" if name == "model" or names.count(name) > 1 else name
        for name, path in zip(names, paths, strict=True)
    ]
    return [f"{name}-{index}" if names.count(name) > 1 else name for index, name in enumerate(names, 1)]
