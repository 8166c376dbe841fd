"""A look at a media file before it becomes clips: every frame is decoded once, at thumbnail size.

Its shots come from PySceneDetect's adaptive detector (https://www.scenedetect.com), which compares each frame's change
with those around it, so that a fast camera is not taken for a cut.
"""

from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from math import ceil, inf
from pathlib import Path
from types import ModuleType

import av
import av.error
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError
from ..media import opened, shown_size

THUMBNAIL_PX = 64
"""Of a frame's shorter edge."""
HASH_SIZE = 8
MAX_PIXELS = 8192 * 4320
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # codes of H.273
FULL_RANGE = 2


class Unusable(InputError):
    """A file or clip that is left out, and ``reason``, by which such are counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return Unusable, (self.reason, self.detail)  # on its way between processes


@dataclass(frozen=True)
class Shot:
    """What is seen between two cuts; seconds count from the file's first frame."""

    start_s: float
    end_s: float
    luma: float
    """Mean brightness, 0 to 255."""
    motion: float
    """Mean change of a pixel's brightness from frame to frame, in the same units."""
    is_corrupt: bool
    hashes: tuple[int, ...]
    """Perceptual hashes (64 bits) of a frame after a sixth, a half and five sixths of it."""

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True)
class Survey:
    """What a file holds. ``height`` and ``width`` are those shown: upright, with square pixels; 0 for sound alone."""

    shots: list[Shot]
    height: int = 0
    width: int = 0
    frame_rate: Fraction = Fraction(0)
    has_audio: bool = False
    audio_starts_s: float = 0.0
    """When sound begins and ends, against the first frame, by the time stamps of the track."""
    audio_ends_s: float = 0.0
    notes: list[str] = field(default_factory=list)
    """What is unusual about the file and will be mended."""


def survey_video(
    path: Path, *, max_duration_s: float, cut_threshold: float = 3.0, max_pixels: int = MAX_PIXELS
) -> Survey:
    """Decode a video once and find its shots; one that is longer than ``max_duration_s`` becomes several.

    Raises:
        InputError: it cannot be opened.
        Unusable: nothing in it can be decoded; or it has no picture, is HDR, interlaced or too large.
    """
    frames = _Frames(cut_threshold)
    with opened(path) as container:
        if not container.streams.video:
            raise Unusable("no picture")
        stream = container.streams.video[0]
        context = stream.codec_context
        if context.width * context.height > max_pixels:
            raise Unusable("too large", f"{context.width}x{context.height} pixels")
        if context.color_trc in HDR_TRANSFERS:
            raise Unusable("high dynamic range", HDR_TRANSFERS[context.color_trc])
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        try:
            for frame in container.decode(stream):
                if frame.time is None:
                    continue
                if frame.interlaced_frame:
                    raise Unusable("interlaced")
                frames.add(frame)
        except av.error.FFmpegError:
            frames.mark_corrupt()
        if not frames.times_s:
            raise Unusable("no frame can be decoded")
        claimed_s = _seconds(stream.duration, stream.time_base) or (container.duration or 0) / av.time_base
        aspect = stream.sample_aspect_ratio or Fraction(1)
        audio = container.streams.audio[0] if container.streams.audio else None
        first_s, audio_starts_s, audio_ends_s = frames.times_s[0], 0.0, 0.0
        if audio is not None:
            audio_starts_s = _seconds(audio.start_time, audio.time_base) - first_s
            lasts_s = _seconds(audio.duration, audio.time_base) or inf
            audio_ends_s = audio_starts_s + lasts_s
        shots, lasts_s = frames.shots(float(1 / rate), max_duration_s)
        notes = frames.notes(rate)
        if claimed_s and abs(claimed_s - lasts_s) > max(0.5, 0.1 * lasts_s):
            notes.append("length is not that of the header")
        if frames.rotation:
            notes.append("rotated")
        if aspect != 1:
            notes.append("pixels not square")
        if context.width % 2 or context.height % 2:
            notes.append("odd size")
        if context.pix_fmt and any(depth in context.pix_fmt for depth in ("10le", "10be", "12le", "12be", "p010")):
            notes.append("more than 8 bits")
        if context.color_range == FULL_RANGE or (context.pix_fmt or "").startswith("yuvj"):
            notes.append("full colour range")
        height, width = shown_size(context.height, context.width, aspect, frames.rotation)
        return Survey(shots, height, width, rate, audio is not None, audio_starts_s, audio_ends_s, notes)


def survey_image(path: Path, max_pixels: int = MAX_PIXELS) -> Survey:
    """An image is a video of one frame.

    Raises:
        Unusable: it cannot be decoded, or is too large.
    """
    image = read_image(path, max_pixels)
    pixels = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BOX), np.float32)
    luma = float(pixels.mean())
    shot = Shot(0.0, 0.0, luma, 0.0, False, (perceptual_hash(pixels),))
    return Survey([shot], image.height, image.width)


def survey_sound(path: Path, max_duration_s: float = inf) -> Survey:
    """Sound without a picture is one shot, or several even ones where it is longer than ``max_duration_s``.

    Raises:
        InputError: it cannot be opened.
        Unusable: it has no sound that can be decoded.
    """
    with opened(path) as container:
        if not container.streams.audio:
            raise Unusable("no sound")
        samples, rate_hz = 0, container.streams.audio[0].rate
        is_corrupt = False
        try:
            for frame in container.decode(container.streams.audio[0]):
                samples += frame.samples
        except av.error.FFmpegError:
            is_corrupt = True
        if not samples:
            raise Unusable("no sound can be decoded")
    parts = pairwise(even_parts(samples / rate_hz, max_duration_s))
    shots = [Shot(start_s, end_s, 0.0, 0.0, is_corrupt, ()) for start_s, end_s in parts]
    return Survey(shots, has_audio=True, audio_ends_s=samples / rate_hz)


def read_image(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture file, upright and in RGB; what is transparent becomes white.

    Raises:
        Unusable: it cannot be decoded, or is too large.
    """
    try:
        with Image.open(path) as file:
            if file.width * file.height > max_pixels:
                raise Unusable("too large", f"{file.width}x{file.height} pixels")
            upright = ImageOps.exif_transpose(file)
            if upright.has_transparency_data:
                ground = Image.new("RGBA", upright.size, "white")
                ground.alpha_composite(upright.convert("RGBA"))
                upright = ground
            return upright.convert("RGB")
    except PermissionError as error:
        raise Unusable("may not be read") from error
    except Unusable:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise Unusable("unreadable", str(error)[:80]) from error


def _seconds(ticks: int | None, time_base: Fraction | None) -> float:
    return float(ticks * time_base) if ticks and time_base else 0.0


def even_parts(duration_s: float, max_duration_s: float) -> list[float]:
    """The bounds, from 0 to ``duration_s``, of as few even parts as are no longer than ``max_duration_s``."""
    count = max(1, ceil(duration_s / max_duration_s - 1e-6))
    return [duration_s * number / count for number in range(count + 1)]


class _Frames:
    """The frames of a file, one after the other, of which only a few numbers each are kept."""

    def __init__(self, cut_threshold: float) -> None:
        detectors = require_data("scenedetect.detectors")
        self.timecode = require_data("scenedetect.common").FrameTimecode
        self.detector = detectors.AdaptiveDetector(adaptive_threshold=cut_threshold, min_scene_len=1)
        self.times_s: list[float] = []
        self.lumas: list[float] = []
        self.changes: list[float] = []
        self.hashes: list[int] = []
        self.corrupt: list[bool] = []
        self.cuts: set[int] = set()
        self.last: np.ndarray | None = None
        self.last_duration_s = 0.0
        self.rotation = 0

    def add(self, frame: av.VideoFrame) -> None:
        scale = THUMBNAIL_PX / min(frame.width, frame.height)
        size = {"width": max(8, round(frame.width * scale)), "height": max(8, round(frame.height * scale))}
        picture = frame.reformat(**size, format="bgr24", interpolation="AREA").to_ndarray()
        gray = picture.astype(np.float32) @ np.array([0.114, 0.587, 0.299], np.float32)
        number = len(self.times_s)
        # The detector counts frames; what a frame's time is stays here.
        found = self.detector.process_frame(self.timecode(number, fps=25.0), picture)
        self.cuts.update(cut.frame_num for cut in found)
        self.times_s.append(float(frame.time))
        self.lumas.append(float(gray.mean()))
        change = 0.0 if self.last is None or self.last.shape != gray.shape else float(np.abs(gray - self.last).mean())
        self.changes.append(change)
        self.hashes.append(perceptual_hash(gray))
        self.corrupt.append(bool(frame.is_corrupt))
        self.last_duration_s = _seconds(frame.duration, frame.time_base)
        self.last, self.rotation = gray, frame.rotation % 360

    def mark_corrupt(self) -> None:
        """Decoding ended in an error: the last frame is not to be trusted."""
        if self.corrupt:
            self.corrupt[-1] = True

    def shots(self, frame_s: float, max_duration_s: float) -> tuple[list[Shot], float]:
        """The shots between cuts, long ones in even parts, and how long all of them last."""
        count = len(self.times_s)
        starts = np.maximum.accumulate(np.array(self.times_s)) - self.times_s[0]
        ends = np.append(starts[1:], starts[-1] + (self.last_duration_s or frame_s))
        bounds = [0, *sorted(cut for cut in self.cuts if 0 < cut < count), count]
        for first, last in pairwise(list(bounds)):
            parts = even_parts(float(ends[last - 1] - starts[first]), max_duration_s)
            bounds += np.searchsorted(starts, starts[first] + np.array(parts[1:-1])).tolist()
        shots = []
        for first, last in pairwise(sorted(set(bounds))):
            inside = slice(first + 1, last)  # the change at a cut is not motion
            shots.append(
                Shot(
                    float(starts[first]),
                    float(ends[last - 1]),
                    float(np.mean(self.lumas[first:last])),
                    float(np.mean(self.changes[inside])) if last - first > 1 else 0.0,
                    any(self.corrupt[first:last]),
                    tuple(self.hashes[first + (last - first) * sixth // 6] for sixth in (1, 3, 5)),
                )
            )
        return shots, float(ends[-1])

    def notes(self, rate: Fraction) -> list[str]:
        steps = np.diff(self.times_s)
        steps = steps[steps > 0]
        varies = len(steps) > 2 and np.ptp(steps) > 0.5 * float(1 / rate) + 0.002
        return ["variable frame rate"] if varies else []


def perceptual_hash(gray: np.ndarray) -> int:
    """64 bits that tell which low frequencies of a picture (H, W) are above their median.

    The DCT hash of Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions", section 3.2.1:
    nearly the same for a picture that was scaled, brightened or compressed anew.
    """
    size = 32
    image = Image.fromarray(gray.astype(np.float32)).resize((size, size), Image.Resampling.BOX)
    frequencies = np.arange(1, HASH_SIZE + 1)[:, None]  # the mean and what is constant along one axis are left out
    basis = np.cos(np.pi / size * (np.arange(size) + 0.5) * frequencies)
    low = basis @ np.asarray(image, np.float32) @ basis.T
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes(), "big")


def require_data(module: str) -> ModuleType:
    """A module of the ``data`` extra.

    Raises:
        InputError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f'{module} is missing: pip install "vidgen[data]"') from error
