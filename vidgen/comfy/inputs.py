"""What the nodes are given, as the pipeline wants it: ComfyUI's tensors and numbers, where 0 stands for "not said".

IMAGE is (T, H, W, 3) float in [0, 1], MASK (T, H, W) float in [0, 1], AUDIO {"waveform": (B, C, N) float in [-1, 1],
"sample_rate": Hz}. VIDEO is an object of ComfyUI whose ``get_components()`` has images, audio and frame_rate.
"""

from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..clip import ClipSpec
from ..errors import InputError
from ..generation import SHIPPED_MODEL, GenerationConfig
from ..given import Given
from ..material import read_given
from ..media import Clip
from ..options import frame_rate as parse_rate
from ..published_folders import MODULAR_INDEX, PLAIN_INDEX

SHIPPED = "shipped with vidgen"
"""How the combo box calls the model that the repository carries."""
EXTEND, LEAD_UP, REPLACE, FOLEY = VIDEO_TASKS = ("go on after it", "lead up to it", "replace parts", "make its sound")
BOTH, ONLY_PICTURE, ONLY_SOUND = STREAMS = ("picture and sound", "picture", "sound")
OWN_SOLVER = "the model's own"


@dataclass(frozen=True)
class Choices:
    """How clips are sampled, as a node is told it: 0 steps and scales of -1 are the model's own."""

    seed: int
    batch_size: int
    num_inference_steps: int
    guidance_scale: float
    audio_guidance_scale: float
    solver: str
    with_audio: bool
    loop: bool

    @classmethod
    def split(cls, settings: Mapping[str, Any]) -> "tuple[Choices, dict[str, Any]]":
        """These of a node's inputs, and all others."""
        names = {field.name for field in fields(cls)}
        own = {name: value for name, value in settings.items() if name in names}
        return cls(**own), {name: value for name, value in settings.items() if name not in names}

    @property
    def sampling(self) -> dict[str, Any]:
        """As ``VidGenPipeline.sampling`` takes them."""
        return {
            "num_inference_steps": self.num_inference_steps or None,
            "guidance_scale": None if self.guidance_scale < 0 else self.guidance_scale,
            "audio_guidance_scale": None if self.audio_guidance_scale < 0 else self.audio_guidance_scale,
            "solver": None if self.solver == OWN_SOLVER else self.solver,
        }

    def generators(self) -> list[torch.Generator]:
        """One for each clip, seeded one after the other: a clip is the same whatever batch it is in."""
        return [torch.Generator().manual_seed(self.seed + index) for index in range(self.batch_size)]


@dataclass(frozen=True)
class Shelf:
    """The models of one kind, which a loader offers.

    Args:
        folders: where they lie; asked each time, since ComfyUI's settings may change it.
        fits: whether a folder with an index holds one of this kind.
    """

    folders: Callable[[], list[str]]
    fits: Callable[[Path], bool]

    def names(self) -> list[str]:
        """What the combo box offers: NAME or ORG/NAME of each folder, first the model that vidgen ships."""
        found = {
            path.relative_to(folder).as_posix()
            for folder in map(Path, self.folders())
            for pattern in ("*", "*/*")
            for path in folder.glob(pattern)
            if self._has(path)
        }
        return [SHIPPED] * self._has(SHIPPED_MODEL) + sorted(found)

    def find(self, name: str) -> Path:
        """The folder behind an entry of the combo box.

        Raises:
            InputError: there is none.
        """
        folders = self.folders()
        places = [SHIPPED_MODEL] if name == SHIPPED else [Path(folder) / name for folder in folders]
        is_inside = bool(name) and ".." not in Path(name).parts and not Path(name).is_absolute()
        for place in places:
            if is_inside and self._has(place):
                return place
        raise InputError(f"there is no model {name!r} of this kind: put its folder into {folders[0]}")

    def check(self, name: str) -> bool | str:
        """As a node's ``validate_inputs`` answers."""
        try:
            self.find(name)
        except InputError as error:
            return str(error)
        return True

    def _has(self, folder: Path) -> bool:
        return any((folder / name).is_file() for name in (PLAIN_INDEX, MODULAR_INDEX)) and self.fits(folder)


def said(prompt: str) -> str:
    """A prompt on one line.

    Raises:
        InputError: it is empty.
    """
    prompt = " ".join(prompt.split())
    if not prompt:
        raise InputError("the prompt is empty: say what should be seen and heard")
    return prompt


def exact_rate(frames_a_second: float) -> Fraction | None:
    """A rate that came as a float; 23.976 and its like stand for exact fractions, 0 for the model's own.

    Raises:
        InputError: a rate that is no number.
    """
    try:
        return parse_rate(str(frames_a_second)) or None
    except ArgumentTypeError as error:
        raise InputError(str(error)) from error


def read_request(
    own: GenerationConfig,
    *,
    width: int = 0,
    height: int = 0,
    duration_s: float = 0.0,
    frame_rate: float = 0.0,
    with_audio: bool = True,
    loop: bool = False,
    image: Tensor | None = None,
    last_image: Tensor | None = None,
    keyframes: Tensor | None = None,
    keyframe_places: str = "",
    video: Any = None,
    video_frame_rate: float = 0.0,
    video_task: str = EXTEND,
    extend_s: float = 1.0,
    replace_from_s: float = 0.0,
    replace_to_s: float = 0.0,
    replace_in: str = BOTH,
    mask: Tensor | None = None,
    strength: float = 1.0,
    audio: Mapping[str, Any] | None = None,
) -> tuple[ClipSpec, Given | None, list[str]]:
    """The clip that is asked for, what of it is given, and a line for whatever was changed to fit.

    Args:
        own: of the model, for all that is not said.
        image, last_image: the first and the last frame; of several pictures the first is taken.
        keyframes, keyframe_places: pictures, and for each the frame where it is seen ("24, 36").
        video: IMAGE or VIDEO; the rate of an IMAGE is ``video_frame_rate``, or else that of the clip.
        replace_from_s, replace_to_s: the span that is made anew, none if both are 0; ``replace_in`` says in which
            streams.
        mask: places of the video that are made anew, 1; one picture for all frames or one for each.
        strength: how much of what is replaced changes; below 1 without a span and a mask, of the whole video.
        audio: a sound to make a picture for; beside a video, the video's sound.

    Raises:
        InputError: material that contradicts itself, or does not fit the model.
    """
    spec = own.spec(
        duration_s=duration_s or None, height=height or None, width=width or None, frame_rate=exact_rate(frame_rate)
    )
    pictures = _pictures(image, last_image, keyframes, keyframe_places)
    sound = None if audio is None else _mono(audio)
    clip = None if video is None else _clip(video, exact_rate(video_frame_rate) or spec.frame_rate, sound)
    settings: dict[str, Any] = {}
    if clip is not None:
        settings["video"] = clip
        settings |= _video_task(video_task, extend_s, (replace_from_s, replace_to_s), replace_in, mask, strength)
        if video_task == FOLEY and audio is not None:
            raise InputError("the video's sound is to be made, and a sound is given: leave one of them out")
        if video_task == FOLEY and not with_audio:
            raise InputError("the video's sound is to be made, and no sound is wanted: turn with_audio on")
        if video_task in (EXTEND, LEAD_UP, REPLACE) and duration_s:
            raise InputError("the video decides how long the clip is: set duration_s to 0")
    elif mask is not None or strength != 1:
        raise InputError("mask and strength say what of a video is made anew: connect a video too")
    elif sound is not None:
        settings["audio"] = sound
        if not with_audio:
            raise InputError("a sound is given, and no sound is wanted: turn with_audio on")
    if loop and (video is not None or last_image is not None):
        raise InputError("a loop ends with its first frame: no video and no last_image go with it")
    if not pictures and not settings:
        return spec, None, []
    model_clip = own.spec(height=spec.height, width=spec.width, frame_rate=spec.frame_rate)
    given, spec, notes = read_given(
        spec,
        replace(model_clip, num_frames=2 * model_clip.num_frames),
        keyframes=pictures,
        with_audio=with_audio,
        has_duration=bool(duration_s),
        **settings,
    )
    return spec, given, notes


def _video_task(
    task: str,
    extend_s: float,
    span: tuple[float, float],
    replace_in: str,
    mask: Tensor | None,
    strength: float,
) -> dict[str, Any]:
    """What ``read_given`` is told of a video."""
    if task not in VIDEO_TASKS or replace_in not in STREAMS:
        raise InputError(f"{task!r} of {replace_in!r} is not known: {', '.join(VIDEO_TASKS)}; of {', '.join(STREAMS)}")
    if task != REPLACE and (mask is not None or strength != 1):
        raise InputError(f"mask and strength go with {REPLACE!r}, not with {task!r}")
    if task == FOLEY:
        return {"only": "audio"}
    if task in (EXTEND, LEAD_UP):
        return {"extend_s": extend_s if task == EXTEND else -extend_s}
    if mask is not None and replace_in == ONLY_SOUND:
        raise InputError("a mask says what of the picture is made anew, and only sound is to be")
    if span == (0, 0) and mask is None and strength == 1:
        raise InputError(
            "nothing is to be replaced: set replace_from_s and replace_to_s, or a mask, or a strength below 1"
        )
    return {
        "replaced": None if span == (0, 0) else span,
        "mask": None if mask is None else _array(mask) > 0.5,
        "strength": None if strength == 1 else strength,
        "only": {BOTH: None, ONLY_PICTURE: "video", ONLY_SOUND: "audio"}[replace_in],
    }


def _pictures(
    image: Tensor | None, last_image: Tensor | None, keyframes: Tensor | None, places: str
) -> dict[int, np.ndarray]:
    """By frame of the clip; -1 is the last."""
    try:
        frames = [int(place) for place in places.replace(",", " ").split()]
    except ValueError as error:
        raise InputError(f"keyframe_places are numbers of frames, as 24, 36, not {places!r}") from error
    count = 0 if keyframes is None else len(keyframes)
    if len(frames) != count:
        raise InputError(f"{count} keyframes need as many keyframe_places, not {len(frames)}")
    given = [(0, image), (-1, last_image)]
    pictures = {frame: to_bytes(picture)[0] for frame, picture in given if picture is not None}
    for frame, picture in zip(frames, [] if keyframes is None else to_bytes(keyframes), strict=True):
        if frame < 0 or frame in pictures:
            raise InputError(f"keyframe {frame} is given twice, or below 0")
        pictures[frame] = picture
    return pictures


def _clip(video: Any, frame_rate: Fraction, sound: tuple[np.ndarray, int] | None) -> Clip:
    """An IMAGE or a VIDEO, with the sound that is connected beside it, or else its own."""
    images = video
    if not isinstance(video, Tensor):
        parts = video.get_components()
        images, frame_rate = parts.images, Fraction(parts.frame_rate)
        if sound is None and parts.audio is not None and parts.audio["waveform"].shape[-1]:
            sound = _mono(parts.audio)
    if not len(images):
        raise InputError("the video has no frames")
    waveform, rate_hz = (None, 48000) if sound is None else sound
    return Clip(to_bytes(images), waveform, frame_rate, rate_hz)


def _mono(audio: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """The first sound of an AUDIO: (N,) float32, and its rate in Hz."""
    waveform = _array(audio["waveform"])[0].mean(axis=0)
    if not waveform.size or not np.isfinite(waveform).all():
        raise InputError("the sound is empty, or holds values that are not numbers")
    return waveform, int(audio["sample_rate"])


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def to_bytes(images: Tensor) -> np.ndarray:
    """IMAGE (T, H, W, 3 or more) to (T, H, W, 3) uint8; what is transparent is left out of account."""
    if images.ndim != 4 or images.shape[-1] < 3:
        raise InputError(f"pictures are (T, H, W, 3), not {tuple(images.shape)}")
    return (images[..., :3].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def to_audio(waveform: np.ndarray, sample_rate_hz: int) -> dict[str, Any]:
    """(N,) or (C, N) float32 to AUDIO."""
    return {"waveform": torch.from_numpy(np.atleast_2d(waveform))[None], "sample_rate": sample_rate_hz}


def to_image(frames: np.ndarray) -> Tensor:
    """(T, H, W, 3) uint8 to IMAGE."""
    return torch.from_numpy(frames).float() / 255
