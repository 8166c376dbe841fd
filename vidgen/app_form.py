"""What is filled in on the page, and the options of ``sample.py`` that it comes to."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .errors import InputError
from .files import labels, replacing
from .generation import GenerationConfig
from .lora import FILE_NAME, Lora
from .media import CLIP_SUFFIXES, IMAGE_SUFFIXES, SOUND_SUFFIXES, probe

SUFFIXES = {"image": IMAGE_SUFFIXES, "video": CLIP_SUFFIXES, "audio": SOUND_SUFFIXES}
ALL_SUFFIXES = sorted(IMAGE_SUFFIXES | CLIP_SUFFIXES | SOUND_SUFFIXES)
MAX_GROWTH = 2
"""How many times larger than the model's own a picture may be on each side: whoever sees the page may ask."""

DURATION_STEP_S = 0.1
OPAQUE = 128
PICTURE_TASKS = {"first": "Start with it", "last": "End with it", "moments": "Pass through it"}
PICTURES_TASKS = {"ends": "Start and end with them", "moments": "Pass through them"}
CLIP_TASKS = {
    "extend": "Go on after it",
    "lead": "Lead up to it",
    "foley": "New sound for it",
    "replace": "Make a part anew",
    "place": "Make a place anew",
    "vary": "Vary it",
    "sound": "New picture for its sound",
}
OWN_LENGTH = tuple(name for name in CLIP_TASKS if name != "sound")
"""Tasks in which what is given decides how long the clip is, whatever else is asked for."""
WITH_SPAN, WITH_STRENGTH = ("replace", "place"), ("replace", "place", "vary")
STREAMS = {"": "picture and sound", "video": "picture", "audio": "sound"}
OWN_STRENGTH = {"vary": 0.5}
"""Where the strength stands when a task is chosen; at 1 in the others: nothing of what was there is kept."""


@dataclass(frozen=True)
class Material:
    """Dropped files by kind: pictures, or one clip or sound. A picture may go with a sound, and with a clip as mask."""

    pictures: tuple[Path, ...] = ()
    clip: Path | None = None
    sound: Path | None = None

    @classmethod
    def of(cls, files: Sequence[str | Path] | None) -> "Material":
        """Sort files by their names' endings.

        Raises:
            InputError: a file of another kind, or files that do not go together.
        """
        kinds: dict[str, list[Path]] = {"image": [], "video": [], "audio": []}
        for path in map(Path, files or ()):
            suffix = path.suffix.lower()
            kind = next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)
            if kind is None:
                raise InputError(f"{path.name}: only pictures, clips and sounds can be used")
            kinds[kind].append(path)
        pictures, clips, sounds = kinds.values()
        if len(clips) + len(sounds) > 1:
            raise InputError("give one clip or one sound, not several")
        if clips and len(pictures) > 1:
            raise InputError("beside a clip give no more than one picture: it is white where the clip is made anew")
        return cls(tuple(pictures), clips[0] if clips else None, sounds[0] if sounds else None)

    @property
    def tasks(self) -> dict[str, str]:
        """What may be done with it, by name; empty where nothing is dropped, or a sound alone."""
        if self.clip is not None:
            return {"place": CLIP_TASKS["place"]} if self.pictures else CLIP_TASKS
        return ({}, PICTURE_TASKS, PICTURES_TASKS, {"moments": PICTURES_TASKS["moments"]})[min(len(self.pictures), 3)]

    @property
    def says(self) -> str:
        """What will be made of it, in words."""
        if self.clip is not None:
            with_mask = "A clip and its mask: it is made anew where the picture is white"
            return with_mask if self.pictures else "A clip: choose what to do with it"
        if not self.pictures:
            return "A sound: a picture is made for it"
        said = "A picture of the clip" if len(self.pictures) == 1 else f"{len(self.pictures)} pictures of the clip"
        return f"{said}: the rest is made" + (", and all of it for the sound" if self.sound is not None else "")


@dataclass(frozen=True)
class Form:
    """The page's fields, in their order."""

    prompt: str | None
    files: list[str] | None
    task: str | None
    extend_s: float
    replace_from_s: float
    replace_to_s: float
    anew: str | None
    drawn: Mapping[str, Any] | None
    strength: float
    moments: str | None
    duration_s: float
    size: str | None
    seed: str | None
    steps: int
    guidance: float
    audio_guidance: float
    negative_prompt: str | None
    camera: str | None
    loras: list[str] | None
    loop: bool
    with_sound: bool

    def words(self, own: GenerationConfig, masks: Path, adapters: Mapping[str, str] | None = None) -> list[str]:
        """The words of a ``sample.py`` command, for ``options.parse_args``; a mask that was drawn goes into ``masks``.

        Args:
            adapters: those that may be chosen, ``PATH[:SCALE]`` by label.

        Raises:
            InputError: files that do not go together, a seed that is no number, or an adapter that is not on offer.
        """
        material = Material.of(self.files)
        task = self.task if self.task in material.tasks else next(iter(material.tasks), None)
        words = [f"--prompt={self.prompt or ''}", f"--negative-prompt={self.negative_prompt or ''}"]
        words += [f"--size={self.size}"] if self.size else []
        asked = re.fullmatch(r"(\d+)\D(\d+)", (self.size or "").strip())
        if asked and int(asked[1]) * int(asked[2]) > MAX_GROWTH**2 * own.width * own.height:
            most = f"{MAX_GROWTH * own.width}x{MAX_GROWTH * own.height}"
            raise InputError(f"{self.size} is too large here: a picture has at most the area of {most}")
        words += [f"--steps={self.steps}", f"--guidance={self.guidance}", f"--audio-guidance={self.audio_guidance}"]
        seed = (self.seed or "").strip()
        if seed and not seed.isdecimal():
            raise InputError(f"the seed is a whole number, not {seed!r}: leave it empty for a new one")
        words += [f"--seed={seed}"] if seed else []
        # The slider cannot stand between its steps: where it is not moved, the model's own length is meant.
        is_moved = abs(self.duration_s - own.spec().duration_s) > DURATION_STEP_S / 2
        if is_moved and task not in OWN_LENGTH:  # else a sound that is given decides
            words.append(f"--duration={self.duration_s}")
        words += [f"--camera={self.camera}"] if self.camera else []
        loras, on_offer = self.loras or [], adapters or {}
        unknown = [label for label in loras if label not in on_offer]
        if unknown:
            raise InputError(f"no adapter on offer is called {unknown[0]!r}")
        words += ["--lora", *(on_offer[label] for label in loras)] if loras else []
        words += ["--loop"] if self.loop else []
        words += [] if self.with_sound else ["--no-audio"]
        if material.sound is not None:
            words.append(f"--audio={material.sound}")
        if material.clip is not None:
            return words + self._clip_words(material, task, masks)
        if task == "moments":
            places = frames_at(self.moments, len(material.pictures), own)
            return words + [f"--keyframe={place}={path}" for place, path in zip(places, material.pictures, strict=True)]
        flags = {"first": ["image"], "last": ["last-image"], "ends": ["image", "last-image"]}.get(task or "", [])
        return words + [f"--{flag}={path}" for flag, path in zip(flags, material.pictures, strict=True)]

    def _clip_words(self, material: Material, task: str | None, masks: Path) -> list[str]:
        assert material.clip is not None
        if task == "sound":
            return [f"--audio={material.clip}"]
        words = [f"--video={material.clip}"]
        if task in ("extend", "lead"):
            return [*words, f"--extend={self.extend_s if task == 'extend' else -self.extend_s}"]
        if task == "foley":
            return [*words, "--only=audio"]
        if task in WITH_SPAN and not (task == "place" and self.replace_from_s == self.replace_to_s == 0):
            words.append(f"--replace={self.replace_from_s}-{self.replace_to_s}")
        if task == "replace" and self.anew:
            words.append(f"--only={self.anew}")
        if task == "place":
            mask = material.pictures[0] if material.pictures else save_mask(self.drawn, material.clip, masks)
            words.append(f"--mask={mask}")
        if task == "vary" or self.strength < 1:
            words.append(f"--strength={self.strength}")
        return words


def frames_at(moments: str | None, count: int, own: GenerationConfig) -> list[int]:
    """Frames of the clip that are seen at ``moments``, seconds as in "0, 1.5"; there must be ``count`` of them.

    Raises:
        InputError: text that is no such list, or of another length.
    """
    try:
        times_s = [float(word) for word in (moments or "").replace(",", " ").split()]
    except ValueError as error:
        raise InputError(f"the moments of the pictures are seconds, as in 0, 1.5: not {moments!r}") from error
    if len(times_s) != count or not all(0 <= time_s < 3600 for time_s in times_s):
        raise InputError(f"{count} pictures need as many moments, in seconds from 0 on: not {moments!r}")
    return [round(time_s * Fraction(own.frame_rate)) for time_s in times_s]


def spread(count: int, own: GenerationConfig) -> str:
    """Moments for so many pictures, evenly over a clip of the model's own length, as ``frames_at`` reads them."""
    last_s = float((own.num_frames - 1) / Fraction(own.frame_rate))
    times_s = np.linspace(0, last_s, count) if count > 1 else [last_s / 2]
    return ", ".join(f"{int(time_s * 1000) / 1000:g}" for time_s in times_s)  # rounded up, the last would lie outside


def adapter_labels(loras: Sequence[str]) -> dict[str, str]:
    """Adapters, each ``PATH[:SCALE]``, by short names that tell nothing of the folders they lie in but the last."""
    parsed = {text: Lora.parse(text) for text in loras}
    paths = list(dict.fromkeys(lora.path for lora in parsed.values()))
    named = [path.parent if path.name == FILE_NAME else path for path in paths]
    named = [path.with_suffix("") if path.suffix == ".safetensors" else path for path in named]
    names = dict(zip(paths, labels(named), strict=True))
    scales = {text: "" if lora.scale == 1 else f":{lora.scale:g}" for text, lora in parsed.items()}
    return {f"{names[lora.path]}{scales[text]}": text for text, lora in parsed.items()}


def save_mask(drawn: Mapping[str, Any] | None, clip: Path, folder: Path) -> Path:
    """What was drawn over a frame of ``clip``, as a PNG of its size, white where there is a stroke; its name tells it.

    Args:
        drawn: as Gradio's editor gives it, ``layers`` of (H, W, 4) uint8.

    Raises:
        InputError: nothing was drawn, or ``clip`` cannot be read.
    """
    layers = [np.asarray(layer)[..., 3] >= OPAQUE for layer in (drawn or {}).get("layers", [])]
    if not any(layer.any() for layer in layers):
        raise InputError("draw over the place that is to be made anew, or drop a picture that is white there")
    info = probe(clip)
    picture = Image.fromarray(np.logical_or.reduce(layers)).resize((info.width, info.height), Image.Resampling.NEAREST)
    digest = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
    path = folder / f"mask-{digest[:12]}.png"
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG")
    return path


def plain(error: InputError, files: Sequence[str] | None = None) -> str:
    """An error's message as the page says it: without command line's dashes and the folders of uploaded files."""
    message = str(error).removesuffix(" (see --help)").removeprefix("argument ").replace("--", "")
    for path in files or ():
        message = message.replace(str(path), Path(path).name)
    return message


def sizes(own: GenerationConfig) -> list[tuple[str, str]]:
    """Sizes to choose from, as (label, "WxH"): the model's own; wide, tall and square of about that area; large."""
    multiple, area = own.size_multiple, own.width * own.height

    def whole(pixels: float) -> int:
        return max(1, round(pixels / multiple)) * multiple

    shapes = [(whole((area * aspect) ** 0.5), whole((area / aspect) ** 0.5)) for aspect in (16 / 9, 9 / 16, 1.0)]
    pairs = dict.fromkeys([(own.width, own.height), *shapes, (2 * own.width, 2 * own.height)])
    return [(f"{width} × {height}", f"{width}x{height}") for width, height in pairs]
