"""VBench's prompts, and the clips that its scripts expect of a model: how many, and under which names.

A prompt of the list belongs to one dimension or more. Five clips are made for each, ``{prompt}-{0..4}.mp4``, and 25 for
those of temporal flickering, because the official filter then keeps five that hardly move. The package finds clips, and
in human action even the label, by these names alone.
"""

import hashlib
import importlib.util
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidgen.errors import InputError

from .fetch import SOURCES, cached_path
from .generate import Asked, clip_paths
from .vbench_scores import DIMENSIONS

SAMPLES = 5
STATIC = "temporal_flickering"
STATIC_SAMPLES = 25
"""Of a prompt of temporal flickering, before the filter."""
LONGEST_NAME_BYTES = 255


@dataclass(frozen=True)
class VBenchPrompt:
    prompt: str
    dimensions: tuple[str, ...]


def full_info(given: Path | None = None) -> Path:
    """The official list: the given file, or that of the installed ``vbench`` package, or the fetched one.

    Raises:
        InputError: it is nowhere; the message says how to get it.
    """
    if given is not None:
        if not given.is_file():
            raise InputError(f"{given}: no such file")
        return given
    spec = importlib.util.find_spec("vbench")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / "VBench_full_info.json").is_file():
            return path
    if (path := cached_path("vbench", SOURCES["vbench"])).is_file():
        return path
    raise InputError("VBench's list of prompts is not at hand. Fetch it: python -m eval.fetch vbench")


def vbench_prompts(given: Path | None = None, dimensions: Collection[str] | None = None) -> list[VBenchPrompt]:
    """The prompts of a list, each once (the official one tells two of them twice), in its order.

    Args:
        given: see ``full_info``.
        dimensions: only prompts of these, and of each prompt only these; by default all.

    Raises:
        InputError: no list, not a list of VBench's form, an unknown dimension, or a prompt that cannot be part of a
            file's name, so that the package could never find its clips.
    """
    wanted = checked_dimensions(dimensions)
    path = full_info(given)
    found: dict[str, list[str]] = {}
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        for entry in entries:
            own = found.setdefault(str(entry["prompt_en"]), [])
            own += [name for name in checked_dimensions(entry["dimension"]) if name in wanted and name not in own]
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(f'{path}: not a list of {{"prompt_en", "dimension"}} ({error})') from error
    prompts = [VBenchPrompt(prompt, tuple(own)) for prompt, own in found.items() if own]
    if not prompts:
        raise InputError(f"{path}: holds no prompt of {', '.join(wanted)}")
    for told in prompts:
        _check_name(path, told.prompt)
    return prompts


def checked_dimensions(names: Collection[str] | None) -> tuple[str, ...]:
    """The names, or all. Raises InputError if VBench has no such dimension."""
    unknown = sorted(set(names or ()) - set(DIMENSIONS))
    if unknown:
        raise InputError(f"VBench has no dimension {', '.join(unknown)}; it has {', '.join(DIMENSIONS)}")
    return tuple(DIMENSIONS) if names is None else tuple(names)


def _check_name(path: Path, prompt: str) -> None:
    name = clip_name(prompt, STATIC_SAMPLES - 1)
    if not prompt.strip() or any(sign in prompt for sign in "/\\\0\n"):
        why = "its clips' names would hold a character that no file's name may"
    elif len(name.encode()) > LONGEST_NAME_BYTES:
        why = f"its clips' names would be longer than {LONGEST_NAME_BYTES} bytes"
    elif prompt.startswith("."):
        why = "its clips would be hidden files"
    else:
        return
    raise InputError(f"{path}: VBench finds clips by their prompt, but {why}: {prompt[:80]!r}")


def vbench_asked(prompts: Sequence[VBenchPrompt], seed: int = 0) -> list[Asked]:
    """The clips that VBench expects, by the names that it expects, a prompt's together; ``generate`` makes them.

    A clip's seed depends on its prompt and its sample alone, so that a part of the list is made as within the whole.
    """
    asked = []
    for entry in prompts:
        first = int.from_bytes(hashlib.sha256(f"{seed} {entry.prompt}".encode()).digest()[:4], "big") // 2
        for sample in range(STATIC_SAMPLES if STATIC in entry.dimensions else SAMPLES):
            asked.append(Asked(entry.prompt, first + sample, name=clip_name(entry.prompt, sample)))
    return asked


def vbench_paths(prompts: Sequence[VBenchPrompt], folder: Path) -> list[Path]:
    """Where the clips of ``vbench_asked`` lie."""
    return clip_paths(vbench_asked(prompts), folder)


def clip_name(prompt: str, sample: int) -> str:
    return f"{prompt}-{sample}.mp4"
