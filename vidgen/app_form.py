"""What is filled in on the page, and the options of ``sample.py`` that it comes to."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import InputError
from .generation import GenerationConfig
from .media import CLIP_SUFFIXES, IMAGE_SUFFIXES, SOUND_SUFFIXES

SUFFIXES = {"image": IMAGE_SUFFIXES, "video": CLIP_SUFFIXES, "audio": SOUND_SUFFIXES}
ALL_SUFFIXES = sorted(IMAGE_SUFFIXES | CLIP_SUFFIXES | SOUND_SUFFIXES)
MAX_GROWTH = 2
"""How many times larger than the model's own a picture may be on each side: whoever sees the page may ask."""

DURATION_STEP_S = 0.1
PICTURE_TASKS = {"first": "Start with it", "last": "End with it"}
CLIP_TASKS = {
    "extend": "Go on after it",
    "lead": "Lead up to it",
    "foley": "New sound for it",
    "replace": "Make a part anew",
    "sound": "New picture for its sound",
}
OWN_LENGTH = ("extend", "lead", "foley", "replace", "sound")
"""Tasks in which what is given decides how long the clip is."""


@dataclass(frozen=True)
class Material:
    """Dropped files by kind: at most two pictures, or one clip or sound; a picture may go with a sound."""

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
        if len(pictures) > 2:
            raise InputError(f"{len(pictures)} pictures are too many: give the first frame, the last, or both")
        if len(clips) + len(sounds) > 1:
            raise InputError("give one clip or one sound, not several")
        if clips and pictures:
            raise InputError("give pictures or a clip, not both")
        return cls(tuple(pictures), clips[0] if clips else None, sounds[0] if sounds else None)

    @property
    def tasks(self) -> dict[str, str]:
        """What may be done with it, by name; empty where there is nothing to choose."""
        if self.clip is not None:
            return CLIP_TASKS
        return PICTURE_TASKS if len(self.pictures) == 1 else {}

    @property
    def says(self) -> str:
        """What will be made of it, in words."""
        if self.clip is not None:
            return "A clip: choose what to do with it"
        if self.sound is not None and not self.pictures:
            return "A sound: a picture is made for it"
        said = (
            "",
            "A picture: the clip starts or ends with it",
            "The first and the last frame: what lies between is made",
        )
        return said[len(self.pictures)] + (", and the picture for the sound" if self.sound is not None else "")


@dataclass(frozen=True)
class Form:
    """The page's fields, in their order."""

    prompt: str | None
    files: list[str] | None
    task: str | None
    extend_s: float
    replace_from_s: float
    replace_to_s: float
    duration_s: float
    size: str | None
    seed: str | None
    steps: int
    guidance: float
    audio_guidance: float
    negative_prompt: str | None
    camera: str | None
    loop: bool
    with_sound: bool

    def words(self, own: GenerationConfig) -> list[str]:
        """The words of a ``sample.py`` command, for ``options.parse_args``.

        Raises:
            InputError: files that do not go together, or a seed that is no number.
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
        if is_moved and task not in OWN_LENGTH and material.sound is None:
            words.append(f"--duration={self.duration_s}")
        words += [f"--camera={self.camera}"] if self.camera else []
        words += ["--loop"] if self.loop else []
        words += [] if self.with_sound else ["--no-audio"]
        if material.sound is not None:
            words.append(f"--audio={material.sound}")
        if len(material.pictures) == 2:
            words += [f"--image={material.pictures[0]}", f"--last-image={material.pictures[1]}"]
        elif material.pictures:
            words.append(f"--{'image' if task == 'first' else 'last-image'}={material.pictures[0]}")
        if material.clip is not None:
            words += self._clip_words(material.clip, task)
        return words

    def _clip_words(self, clip: Path, task: str | None) -> list[str]:
        if task == "sound":
            return [f"--audio={clip}"]
        words = [f"--video={clip}"]
        if task in ("extend", "lead"):
            words.append(f"--extend={self.extend_s if task == 'extend' else -self.extend_s}")
        elif task == "replace":
            words.append(f"--replace={self.replace_from_s}-{self.replace_to_s}")
        else:
            words += ["--only=audio"]
        return words


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
