"""How a trained model wants to be sampled: the ``generation_config.json`` that makes its folder self-describing."""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from .clip import ClipSpec, Compression
from .errors import InputError

_PACKAGE = Path(__file__).resolve().parent
SHIPPED_MODEL = next(
    (folder for folder in (_PACKAGE / "weights", _PACKAGE.parent / "weights") if folder.is_dir()), _PACKAGE / "weights"
)
"""The model that the repository carries at its root, and a wheel inside the package."""
FILE_NAME = "generation_config.json"
FAST = "fast"
"""The folder, in a model's own, of its few-step student: an adapter, and how sampling differs from the teacher's."""
HIGH = "high"
QUALITIES = (FAST, HIGH)
WORD = re.compile(r"\b[^\W\d_]+\b")
FEW_WORDS = 1000
"""A model that learned from no more words than these names them: prompts with others can then be told so."""


@dataclass(frozen=True)
class GenerationConfig:
    """Defaults of one model: the clip that it was trained on, and the settings that suit it.

    ``video_shift`` and ``audio_shift`` bend the noise levels of the solver's steps towards noise (1 leaves them even).
    ``compression`` is that of the autoencoders: it decides the lengths of latents.
    """

    num_frames: int = 49
    height: int = 128
    width: int = 128
    frame_rate: str = "24"
    sample_rate_hz: int = 24000
    num_inference_steps: int = 20
    guidance_scale: float = 4.0
    audio_guidance_scale: float = 4.0
    modality_scale: float = 1.0
    video_shift: float = 1.0
    audio_shift: float = 1.0
    solver: str = "euler"
    size_multiple: int = 32
    compression: Compression = field(default_factory=Compression)
    model_version: str = "untrained"
    cameras: dict[str, str] = field(default_factory=dict)
    """Moves of the camera that the model learned, and the words for each in a prompt."""
    words: list[str] = field(default_factory=list)
    """Of the captions that the model learned from, in lower case; none where that is not known, or they are many."""

    def spec(
        self,
        *,
        num_frames: int | None = None,
        duration_s: float | None = None,
        height: int | None = None,
        width: int | None = None,
        frame_rate: Fraction | float | None = None,
    ) -> ClipSpec:
        """The clip asked for; what is left out is the model's own. At another rate the length in seconds is kept.

        Raises:
            InputError: both a number of frames and a duration, or a clip that cannot be.
        """
        if num_frames is not None and duration_s is not None:
            raise InputError("give num_frames or duration_s, not both")
        rate = Fraction(self.frame_rate) if frame_rate is None else frame_rate
        if num_frames is None and duration_s is None:
            duration_s = float(self.num_frames / Fraction(self.frame_rate))
        height = self.height if height is None else height
        width = self.width if width is None else width
        for name, value in (("height", height), ("width", width)):
            if value < 1 or value % self.size_multiple:
                below = max(1, value // self.size_multiple) * self.size_multiple
                raise InputError(
                    f"{name} {value} is not a multiple of {self.size_multiple}, as this model needs: "
                    f"try {below} or {below + self.size_multiple}"
                )
        sizes: dict[str, Any] = {"height": height, "width": width, "sample_rate_hz": self.sample_rate_hz}
        sizes["compression"] = self.compression
        if duration_s is None:
            assert num_frames is not None
            duration_s = ClipSpec(num_frames=num_frames, frame_rate=Fraction(rate), **sizes).duration_s
        return ClipSpec.from_duration(duration_s, rate, **sizes)

    def with_camera(self, prompt: str, camera: str) -> str:
        """The prompt with the words for a move of the camera.

        Raises:
            InputError: a move that the model does not know.
        """
        if camera not in self.cameras:
            known = ", ".join(self.cameras) or "no moves by name: describe them in the prompt"
            raise InputError(f"the camera move {camera!r} is not known; this model knows {known}")
        return f"{prompt}, {self.cameras[camera]}"

    def notes_on(self, prompt: str) -> list[str]:
        """A line about words that no caption of the training had, if it is known which they had and there are such."""
        unknown = [word for word in words_of([[prompt]]) if word not in self.words]
        if not self.words or not unknown:
            return []
        return [f"words that this model never learned from: {', '.join(unknown)} (it knows {len(self.words)})"]

    def save(self, folder: Path) -> None:
        (folder / FILE_NAME).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "GenerationConfig":
        """The reverse of ``dataclasses.asdict``; what is unknown or no number raises as Python does."""
        compression = Compression(**values.get("compression", {}))
        config = cls(**{**values, "compression": compression})
        Fraction(config.frame_rate)
        return config

    @classmethod
    def load(cls, folder: str | Path, quality: str | None = None) -> "GenerationConfig":
        """Read it from a model's folder.

        Args:
            quality: as ``chosen_quality`` takes it.

        Raises:
            InputError: no such folder or file, a file that is damaged or of another version, or a quality that the
                model does not have.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such model folder")
        values: dict[str, Any] = {}
        paths = [folder / FILE_NAME]
        if chosen_quality(folder, quality) == FAST:
            paths.append(folder / FAST / FILE_NAME)  # only what differs
        for path in paths:
            try:
                values |= json.loads(path.read_text(encoding="utf-8"))
                config = cls.from_dict(values)
            except FileNotFoundError as error:
                raise InputError(f"{path} is missing: {folder} is not the folder of a vidgen model") from error
            except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
                raise InputError(f"{path} is damaged: {error}") from error
        return config


@dataclass(frozen=True)
class Sampling:
    """How latents are denoised: steps of which solver, and how strongly the prompt rules each stream."""

    steps: int
    guidance_scale: float
    audio_guidance_scale: float
    modality_scale: float
    solver: str

    @property
    def is_guided(self) -> bool:
        return not self.guidance_scale == self.audio_guidance_scale == 1


def chosen_quality(folder: str | Path, quality: str | None = None) -> str:
    """``fast``, a model's few-step student, or ``high``, its teacher with guidance; None takes the student if there is
    one.

    Raises:
        InputError: another word, or the student of a model that has none.
    """
    if quality not in (None, *QUALITIES):
        raise InputError(f"the quality is {' or '.join(QUALITIES)}, not {quality!r}")
    has_student = (Path(folder) / FAST / FILE_NAME).is_file()
    if quality == FAST and not has_student and Path(folder).is_dir():
        raise InputError(f"{folder} has no few-step student: leave out the quality {FAST}, or give another model")
    return quality or (FAST if has_student else HIGH)


def words_known(folder: Path) -> list[str]:
    """The words that a model says it learned from; none where it does not say."""
    return GenerationConfig.load(folder, HIGH).words if (folder / FILE_NAME).is_file() else []


def words_of(captions: Iterable[Sequence[str]]) -> list[str]:
    """All words of captions, each with its wordings, once, in lower case and sorted."""
    return sorted({word for wordings in captions for text in wordings for word in WORD.findall(text.lower())})
