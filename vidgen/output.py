"""What a call of the pipeline takes and gives in the forms that diffusers' users know: pictures, and its output."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image, ImageOps

from .clip import ClipSpec
from .errors import InputError
from .given import Given

OUTPUT_TYPES = ("np", "pil", "pt", "latent")
NOISY = ("noisy_video_latents", "noisy_audio_latents")
CLEAN = ("video_latents", "audio_latents")


@dataclass
class VidGenOutput(BaseOutput):
    """What a pipeline made, for B prompts.

    ``frames`` (B, T, H, W, 3) uint8 and ``audio`` (B, N) float32 in [-1, 1], as numpy arrays; with output_type "pil"
    frames as B lists of T pictures; with "pt" tensors, frames as (B, 3, T, H, W) float in [-1, 1]; with "latent" the
    normalised latents. ``audio`` is None where it was not wanted. ``seconds`` by stage.
    """

    frames: Any
    audio: Any
    sample_rate: int
    frame_rate: Fraction
    seconds: dict[str, float]


class Interrupted(Exception):
    """Ends denoising early; ``clean`` is what the latents were estimated to become."""

    def __init__(self, clean: tuple) -> None:
        super().__init__()
        self.clean = clean


class Stopwatch:
    """Seconds by stage; waits for the device, so that a stage is charged for its own work."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def end(self, stage: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[stage] = now - self.last
        self.last = now


def as_pictures(frames: np.ndarray) -> list[list[Image.Image]]:
    """(B, T, H, W, 3) uint8 as B lists of T pictures."""
    return [[Image.fromarray(frame) for frame in clip] for clip in frames]


def with_pictures(given: Given | None, spec: ClipSpec, image: Any, last_image: Any, loop: bool = False) -> Given | None:
    """``given`` with a first and a last frame beside what is there; each may be None.

    Args:
        image, last_image: as ``fitted`` takes them.

    Raises:
        InputError: no picture, a frame that is given twice, or ``given`` is something else or does not fit a loop.
    """
    if given is not None and not isinstance(given, Given):
        raise InputError(f"what is given is a vidgen.given.Given, not a {type(given).__name__}")
    if loop and (last_image is not None or (given is not None and given.video is not None)):
        raise InputError("a loop ends with its first frame: a video and a last frame do not fit")
    pictures = {frame: picture for frame, picture in ((0, image), (spec.num_frames - 1, last_image))
                if picture is not None}  # fmt: skip
    if not pictures:
        return given
    given = given or Given()
    if set(pictures) & set(given.keyframes) or (image is not None and last_image is not None and len(pictures) < 2):
        raise InputError("a frame is given twice")
    fitting = {frame: fitted(picture, spec.height, spec.width) for frame, picture in pictures.items()}
    return replace(given, keyframes={**given.keyframes, **fitting})


def fitted(picture: Any, height: int, width: int) -> np.ndarray:
    """A picture cropped centrally and scaled: (height, width, 3) uint8.

    Args:
        picture: a PIL picture, an array (H, W, 3) of uint8 or of floats in [0, 1], or a tensor (3, H, W) in [0, 1].

    Raises:
        InputError: something else.
    """
    if isinstance(picture, torch.Tensor) and picture.ndim in (3, 4):
        picture = (picture[0] if picture.ndim == 4 else picture).detach().float().cpu().permute(1, 2, 0).numpy()
    if isinstance(picture, np.ndarray) and picture.ndim == 3 and picture.shape[-1] == 3:
        if picture.dtype != np.uint8:
            picture = np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)
        picture = Image.fromarray(np.ascontiguousarray(picture))
    if not isinstance(picture, Image.Image):
        raise InputError(f"a picture is a PIL image, an array (H, W, 3) or a tensor (3, H, W), not {type(picture)}")
    upright = ImageOps.exif_transpose(picture).convert("RGB")
    return np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.BICUBIC))


def chosen_latents(names: Sequence[str], clean: tuple, noisy: tuple) -> dict[str, Any]:
    """The latents that a callback asked for, by name."""
    return {name: value for name, value in zip((*CLEAN, *NOISY), (*clean, *noisy), strict=True) if name in names}


def changed_state(returned: Any, noisy: tuple) -> tuple | None:
    """The state that a callback returned in place of ``noisy``; None if it returned none."""
    if not isinstance(returned, Mapping) or not any(name in returned for name in NOISY):
        return None
    return tuple(returned.get(name, stream) for name, stream in zip(NOISY, noisy, strict=True))
