"""What has been measured is kept, under the content of the file and the name of what measured it."""

import hashlib
import inspect
import os
from pathlib import Path
from types import ModuleType


def cache_folder() -> Path:
    """Where fetched weights, features and measures are kept: ``VIDGEN_CACHE``, else ~/.cache/vidgen."""
    return Path(os.environ.get("VIDGEN_CACHE") or Path.home() / ".cache" / "vidgen")


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def kept_at(kind: str, content_sha256: str, *identity: str, suffix: str) -> Path:
    """The file in which what ``identity`` says of a content is kept; another version of a measure is another file."""
    key = hashlib.sha256(content_sha256.encode())
    for part in identity:
        key.update(f"\0{part}".encode())
    return cache_folder() / kind / f"{key.hexdigest()}{suffix}"


def code_sha256(*modules: ModuleType) -> str:
    """Of the source of modules: what was measured by other code is not taken for what this code would give."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()[:16]
