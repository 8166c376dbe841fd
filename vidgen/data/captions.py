"""What clips are said to show: captions beside the clips, in one of three forms, and how they vary in training."""

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError

NAME_KEYS = ("file_name", "file", "path", "video", "name")
TEXT_KEYS = ("text", "caption", "captions", "prompt", "description")


def read_captions(folder: Path, on_error: Callable[[str], None] | None = None) -> dict[str, list[str]]:
    """Wordings by file name relative to ``folder``, from its ``metadata.jsonl`` and ``metadata.csv``.

    A line of the first is ``{"file_name": …, "text": …}``, where ``text`` may be a list of wordings; the second has the
    same two columns. Other usual names of both are understood (``NAME_KEYS``, ``TEXT_KEYS``).

    Args:
        on_error: is told of a line that cannot be used, which is then left out.

    Raises:
        InputError: such a line, where there is no ``on_error``.
    """
    captions: dict[str, list[str]] = {}
    for path, entries in ((folder / "metadata.jsonl", _jsonl), (folder / "metadata.csv", _csv)):
        if not path.is_file():
            continue
        for number, entry in entries(path):
            name = wording = None
            if isinstance(entry, dict):
                name = next((entry[key] for key in NAME_KEYS if entry.get(key)), None)
                wording = next((entry[key] for key in TEXT_KEYS if entry.get(key) is not None), None)
            if isinstance(wording, str):
                wording = [wording]
            if not isinstance(name, str) or not isinstance(wording, list) or not wording:
                message = f'{path}, line {number}: give {{"file_name": …, "text": …}}, or these two columns'
                if on_error is None:
                    raise InputError(message)
                on_error(message)
                continue
            captions[Path(name).as_posix()] = [" ".join(str(text).split()) for text in wording]
    return captions


def sidecar_caption(path: Path) -> list[str]:
    """The text of the .txt file of the same name; none where there is no such file."""
    sidecar = path.with_suffix(".txt")
    if not sidecar.is_file():
        return []
    text = " ".join(sidecar.read_text(encoding="utf-8", errors="replace").split())
    return [text] if text else []


def _jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError:
                yield number, None


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        yield from enumerate(csv.DictReader(file), start=2)


def vary_caption(
    wordings: list[str], rng: np.random.Generator, *, dropout: float = 0.0, shorten: float = 0.0, swap: float = 1.0
) -> str:
    """The caption that a sample shows.

    Args:
        wordings: of the clip, the main one first.
        dropout: how often there is none, for guidance without a classifier (Ho & Salimans 2022, arXiv 2207.12598).
        shorten: how often only its first clause is shown (``first_clause``), as users write short prompts.
        swap: how often any of the wordings, each as likely, stands in for the main one.
    """
    other = wordings[rng.integers(len(wordings))]
    is_dropped = rng.random() < dropout
    # Drawn only where asked for, so that a run without them draws as it always did.
    caption = other if swap >= 1 or rng.random() < swap else wordings[0]
    if shorten > 0 and rng.random() < shorten:
        caption = first_clause(caption)
    return "" if is_dropped else caption


def first_clause(caption: str) -> str:
    """A caption up to its first mark of punctuation that follows at least three words."""
    for mark in re.finditer(r"[.;:,!?…](?=\s|$)", caption):
        if len(caption[: mark.start()].split()) >= 3:
            return caption[: mark.start()]
    return caption
