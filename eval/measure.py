"""What each clip shows and sounds like, read once: a clip's measures are kept under the content of its file.

A measure that is added later, or whose code has changed, is taken alone; a clip that lacks none is not even decoded.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from vidgen import media
from vidgen.audio_sync import onsets
from vidgen.errors import InputError
from vidgen.files import replacing
from vidgen.media import Clip, read_clip

from . import impacts, motion, networks, physical, quality, sound, subject, sync, tabletop, tracks, verifier
from .cache import code_sha256, kept_at, sha256
from .fetch import weights_path
from .tabletop import Observation
from .verifier import Found, Seen, Verifier
from .workers import spread


@dataclass(frozen=True)
class Measure:
    """``compute`` turns a file and what was read of it into something that JSON holds; a NumPy array may be in it."""

    name: str
    version: str
    """Of the code and of the weights: what is kept under another version is not used."""
    compute: Callable[..., Any]
    """Of (path, clip), or (path, clip, prompt)."""
    with_prompt: bool = False
    """Whether it takes the prompt, too."""


@dataclass
class Measured:
    """All there is to say of one file."""

    sha256: str | None = None
    """Of its content; None if it is not there."""
    values: dict[str, Any] = field(default_factory=dict)
    """By the measure's name."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why a measure has no value; under ``file`` why none has."""


def quality_measure() -> Measure:
    """The figures that need no weights, and onset sync: see ``quality.measure``.

    Raises:
        InputError: the packages of the ``eval`` extra are missing.
    """
    for module in ("cv2", "pyloudnorm", "scipy.signal"):
        motion.require(module)
    return Measure("quality", code_sha256(quality, motion, sync, onsets, media), quality.measure_file)


class Sight:
    """What the tabletop instrument finds in a clip, kept for the next measure that asks for it of the same clip."""

    def __init__(self, weights: Path, blur_px: float = 0.0):
        self.weights, self.blur_px = weights, blur_px
        self._last: tuple[Clip, Found] | None = None

    def __reduce__(self) -> tuple:
        return Sight, (self.weights, self.blur_px)  # another process looks for itself

    def find(self, clip: Clip) -> Found:
        if self._last is None or self._last[0] is not clip:
            frames = blurred(clip.frames, self.blur_px)
            self._last = clip, load_verifier(self.weights).find(frames, float(clip.frame_rate))
        return self._last[1]


def tabletop_measure(sight: Sight) -> Measure:
    """What the tabletop instrument reads; ``observation`` makes an ``Observation`` of it.

    Raises:
        InputError: the instrument's weights are missing or damaged.
    """
    load_verifier(sight.weights)
    code = code_sha256(tabletop, verifier, tracks, networks, impacts, sound, onsets, media)
    version = f"{code} {verifier_sha256(sight.weights)} blur {sight.blur_px:g}"
    return Measure("tabletop", version, partial(_observed, sight=sight))


def physical_measure(sight: Sight) -> Measure:
    """Whether bodies stay themselves, stay there, and keep to the floor: see ``physical.measure``.

    Raises:
        InputError: the instrument's weights are missing or damaged.
    """
    load_verifier(sight.weights)
    code = code_sha256(physical, verifier, tracks, networks, media)
    version = f"{code} {verifier_sha256(sight.weights)} blur {sight.blur_px:g}"
    return Measure("physical", version, partial(_physical, sight=sight))


def subject_measure() -> Measure:
    """Whether what a clip shows stays the same, by an image network: see ``subject.measure``.

    Raises:
        InputError: the network's weights have not been fetched; the message says how.
    """
    weights = sha256(weights_path("efficientnet"))
    return Measure("subject", f"{code_sha256(subject, media)} {weights}", _subject)


def measure_files(
    paths: Sequence[Path], measures: Sequence[Measure], workers: int = 1, prompts: Sequence[str] | None = None
) -> list[Measured]:
    """Everything about every file, in their order. What cannot be measured is a failure, with its reason.

    Args:
        prompts: what each was made for, for measures that take it.
    """
    jobs = list(zip(paths, prompts if prompts is not None else [""] * len(paths), strict=True))
    return list(spread(partial(_measure_job, measures=measures), jobs, workers, "measured"))


def _measure_job(job: tuple[Path, str], measures: Sequence[Measure]) -> Measured:
    return measure_file(job[0], measures, job[1])


def measure_file(path: Path, measures: Sequence[Measure], prompt: str = "") -> Measured:
    """Everything about one file; only what is not kept from an earlier time is computed."""
    if not path.is_file():
        return Measured(failures={"file": "not there"})
    measured = Measured(sha256(path))
    clip: Clip | None = None
    for measure in measures:
        told = (prompt,) if measure.with_prompt else ()
        kept = kept_at("measures", measured.sha256 or "", measure.name, measure.version, *told, suffix=".json")
        if kept.is_file():
            measured.values[measure.name] = json.loads(kept.read_text(encoding="utf-8"))
            continue
        if clip is None:
            try:
                clip = read_clip(path)
            except InputError as error:
                measured.failures["file"] = str(error)
                return measured
        try:
            text = json.dumps(_plain(measure.compute(path, clip, *told)))
        except InputError as error:
            measured.failures[measure.name] = str(error)
            continue
        with replacing(kept) as temporary:
            temporary.write_text(text, encoding="utf-8")
        measured.values[measure.name] = json.loads(text)
    return measured


def _plain(value: Any) -> Any:
    """For JSON, with arrays marked as such. A number that is not finite is no measure: InputError."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, np.ndarray):
        return {"array": _plain(value.tolist())}
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float | np.floating) and not math.isfinite(value):
        raise InputError("a value is not a finite number")
    return value.item() if isinstance(value, np.generic) else value


def _arrays(value: Any) -> Any:
    """The inverse of ``_plain``, but for data classes."""
    if isinstance(value, dict):
        if set(value) == {"array"}:
            return np.asarray(value["array"], float)
        return {key: _arrays(entry) for key, entry in value.items()}
    return [_arrays(entry) for entry in value] if isinstance(value, list) else value


def observation(value: dict) -> Observation:
    """What the tabletop measure kept, as ``compare`` takes it."""
    fields = _arrays(value)
    return Observation(**fields | {"seen": Seen(**fields["seen"])})


@lru_cache(maxsize=1)
def load_verifier(weights: Path) -> Verifier:
    """The instrument, kept for the next clip of this process."""
    return Verifier.load(weights)


@lru_cache(maxsize=1)
def verifier_sha256(weights: Path) -> str:
    return verifier.weights_sha256(weights)


def _observed(path: Path, clip: Clip, sight: Sight) -> Observation:
    instrument = load_verifier(sight.weights)
    seen, duration_s = instrument.tell(sight.find(clip)), len(clip.frames) / float(clip.frame_rate)
    return tabletop.hear(instrument, seen, clip.waveform, duration_s, clip.sample_rate_hz)


def _physical(path: Path, clip: Clip, sight: Sight) -> dict[str, float | None]:
    return physical.measure(load_verifier(sight.weights), sight.find(clip))


def _subject(path: Path, clip: Clip) -> dict[str, float | None]:
    return subject.measure(_image_net(), clip.frames)


@lru_cache(maxsize=1)
def _image_net() -> subject.EfficientNetLite0:
    return subject.load()


def blurred(frames: np.ndarray, sigma_px: float) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 under a Gaussian blur."""
    if sigma_px <= 0:
        return frames
    reach = int(np.ceil(3 * sigma_px))
    taps = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma_px**2)).astype(np.float32)
    taps /= taps.sum()
    padded = np.pad(frames.astype(np.float32), ((0, 0), (reach, reach), (reach, reach), (0, 0)), mode="edge")
    height, width = frames.shape[1:3]
    rows = sum(tap * padded[:, i : i + height] for i, tap in enumerate(taps))
    return np.rint(sum(tap * rows[:, :, i : i + width] for i, tap in enumerate(taps))).astype(np.uint8)
