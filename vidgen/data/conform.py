"""From a shot of a file to a clip for training: one frame rate, a size near its own, one sound, quick to decode."""

import io
import tempfile
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from ..errors import InputError
from ..media import IMAGE_SUFFIXES, read_clip, read_sound, write_video
from ..mp4 import AAC_RATES_HZ
from .buckets import fitting_size
from .filters import Thresholds, check_sound
from .probing import Shot, Survey, Unusable, read_image

CUT_MARGIN_S = 0.001
"""Time stamps are rounded: a picture this little before the next shot might be its first."""


@dataclass(frozen=True)
class Target:
    """What clips are conformed to."""

    size: int = 256
    """Clips have about size × size pixels, in the shape of their source, and never more than their source."""
    multiple: int = 32
    """Of which height and width are multiples."""
    frame_rate: float = 24.0
    sample_rate_hz: int = 24000
    max_duration_s: float = 10.0
    """A shot that is longer becomes several clips."""
    crf: int = 18
    """Of H.264: 0 is lossless, 51 the worst."""

    def __post_init__(self) -> None:
        if not 1 <= self.multiple <= self.size:
            raise InputError(
                f"clips of {self.size}×{self.size} pixels cannot have edges in multiples of {self.multiple}"
            )
        if not (0 < self.frame_rate <= 240 and self.max_duration_s > 0 and 0 <= self.crf <= 51):
            raise InputError("give a frame rate of 1 to 240, a positive longest duration, and a crf of 0 to 51")
        if self.sample_rate_hz not in AAC_RATES_HZ:
            raise InputError(
                f"a sample rate is one of {', '.join(map(str, AAC_RATES_HZ))} Hz, not {self.sample_rate_hz}"
            )


@dataclass(frozen=True)
class Made:
    """A clip as it is stored: the bytes of a .mp4, .jpg or .flac file, and what is known of it."""

    data: bytes
    suffix: str
    facts: dict[str, Any]


def make_clip(path: Path, shot: Shot, survey: Survey, target: Target, limits: Thresholds) -> Made:
    """Decode one shot, measure its sound and encode it anew.

    Colours become BT.709 of limited range, turned pictures upright, pixels square. H.264 with a keyframe at least every
    24 frames and without B-frames, so that a random moment is reached quickly; sound keeps its level.

    Raises:
        Unusable: its sound is beyond a threshold.
        InputError: it cannot be decoded (any more).
    """
    if survey.height == 0:
        return _sound_clip(path, shot, target, limits)
    size = fitting_size(survey.height, survey.width, target.size**2, target.multiple)
    shape = {"height": size[0], "width": size[1]}
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _image_clip(path, shot, limits, shape)
    rate = Fraction(target.frame_rate).limit_denominator(1001)
    clip = read_clip(
        path,
        height=size[0],
        width=size[1],
        frame_rate=rate,
        sample_rate_hz=target.sample_rate_hz,
        start_s=shot.start_s,
        max_frames=max(1, ceil((shot.duration_s - CUT_MARGIN_S) * rate)),
    )
    duration_s = float(len(clip.frames) / rate)
    if duration_s < min(limits.min_duration_s, shot.duration_s) - 1.5 / rate:
        raise Unusable("corrupt", f"only {duration_s:.2f} of {shot.duration_s:.2f} s can be decoded")
    end_s = shot.start_s + duration_s
    overlap_s = min(end_s, survey.audio_ends_s) - max(shot.start_s, survey.audio_starts_s)
    covered = max(0.0, overlap_s) / duration_s
    measured = check_sound(clip.waveform, clip.frames, covered, (float(rate), clip.sample_rate_hz), limits)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.mp4"
        write_video(file, clip.frames, clip.waveform, rate, clip.sample_rate_hz, crf=target.crf)
        data = file.read_bytes()
    facts = {
        "kind": "video",
        "frames": len(clip.frames),
        **shape,
        "frame_rate": str(rate),
        "duration_s": round(duration_s, 4),
        "has_audio": clip.waveform is not None,
        **({"sample_rate_hz": clip.sample_rate_hz} if clip.waveform is not None else {}),
        "luma": round(shot.luma, 2),
        "motion": round(shot.motion, 3),
        **measured,
    }
    return Made(data, ".mp4", facts)


def _image_clip(path: Path, shot: Shot, limits: Thresholds, shape: dict[str, int]) -> Made:
    image = crop_to(read_image(path, limits.max_pixels), **shape)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling=0)
    facts = {"kind": "image", "frames": 1, **shape, "duration_s": 0.0, "has_audio": False, "luma": round(shot.luma, 2)}
    return Made(file.getvalue(), ".jpg", facts)


def _sound_clip(path: Path, shot: Shot, target: Target, limits: Thresholds) -> Made:
    rate_hz = target.sample_rate_hz
    waveform = read_sound(path, rate_hz, shot.duration_s, shot.start_s)
    measured = check_sound(waveform, None, 1.0, (0.0, rate_hz), limits)
    facts = {
        "kind": "sound",
        "frames": 0,
        "height": 0,
        "width": 0,
        "duration_s": round(len(waveform) / rate_hz, 4),
        "has_audio": True,
        "sample_rate_hz": rate_hz,
        **measured,
    }
    return Made(encode_flac(waveform, rate_hz), ".flac", facts)


def crop_to(image: Image.Image, height: int, width: int) -> Image.Image:
    """The largest central part of that shape, resized."""
    crop_width = min(image.width, image.height * width / height)
    crop_height = min(image.height, image.width * height / width)
    left, top = (image.width - crop_width) / 2, (image.height - crop_height) / 2
    box = (left, top, left + crop_width, top + crop_height)
    return image.resize((width, height), Image.Resampling.BICUBIC, box=box)


def encode_flac(waveform: np.ndarray, rate_hz: int) -> bytes:
    """Mono (N,) in [-1, 1] without loss but that of 16 bits."""
    file = io.BytesIO()
    with av.open(file, "w", format="flac") as container:
        stream: Any = container.add_stream("flac", rate=rate_hz, layout="mono")
        stream.codec_context.format = "s16"
        samples = np.round(np.clip(waveform, -1, 1) * 32767).astype(np.int16)[None]
        for start in range(0, samples.shape[1], 4096):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(samples[:, start : start + 4096]), format="s16", layout="mono"
            )
            frame.sample_rate, frame.pts, frame.time_base = rate_hz, start, Fraction(1, rate_hz)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()
