"""Sound for pictures that have none: a joint model hears what it sees, and the pictures stay as they are.

The picture is conformed to what the model knows (its size and rate), given clean, and only the sound is denoised.
"""

from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps

from .clip import ClipSpec
from .errors import InputError
from .given import Given

if TYPE_CHECKING:
    from .pipeline import VidGenPipeline

KNOWN_SHARE = 0.5
"""Of a window that goes on from another: so much of it is heard already."""


def add_sound(
    pipeline: "VidGenPipeline", frames: np.ndarray, frame_rate: Fraction, prompt: str, seed: int = 0, **settings: Any
) -> tuple[np.ndarray, int]:
    """A waveform (N,) float32 in [-1, 1], exactly as long as the picture, and its sample rate.

    A picture longer than a clip that the model knows is heard in windows of that length; each goes on from the second
    half of what the one before made.

    Args:
        frames: (T, H, W, 3) uint8, of any size and rate.
        settings: of the sampling, as in a call of the pipeline.

    Raises:
        InputError: a picture that is no video.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise InputError(f"sound is made for frames (T, H, W, 3) uint8, not {frames.shape} {frames.dtype}")
    own = pipeline.generation.spec()
    seen = conformed(frames, frame_rate, own)
    generator = torch.Generator().manual_seed(seed)
    rate_hz = own.sample_rate_hz
    waveform = np.zeros(0, np.float32)
    size, known = own.num_frames, int(own.num_frames * KNOWN_SHARE)
    for start in range(0, max(1, len(seen) - known), size - known):
        part = seen[start : start + size]
        heard = waveform[own.samples_until(start) :]
        given = Given(video=part, waveform=heard if len(heard) else None)
        output = pipeline(
            prompt, given=given, num_frames=len(part), height=own.height, width=own.width, frame_rate=own.frame_rate,
            generator=generator, **settings,
        )  # fmt: skip
        waveform = np.concatenate((waveform[: own.samples_until(start)], output.audio[0]))
    length = round(len(frames) / Fraction(frame_rate) * rate_hz)
    return np.pad(waveform, (0, max(0, length - len(waveform))))[:length], rate_hz


def conformed(frames: np.ndarray, frame_rate: Fraction, spec: ClipSpec) -> np.ndarray:
    """Frames at the rate of ``spec`` (the newest at each moment), cropped centrally and scaled to its size."""
    count = max(1, round(len(frames) / Fraction(frame_rate) * spec.frame_rate))
    picks = [min(len(frames) - 1, int(index / spec.frame_rate * Fraction(frame_rate))) for index in range(count)]
    size = (spec.width, spec.height)
    scaled = {
        pick: np.asarray(ImageOps.fit(Image.fromarray(frames[pick]), size, Image.Resampling.BICUBIC))
        for pick in set(picks)
    }
    return np.stack([scaled[pick] for pick in picks])
