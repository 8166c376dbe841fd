"""Clips on disk, read in exact sync, and PNG sheets that show picture and sound together. ``mp4`` writes clips.

Time zero of a file is its first video frame. Sound is placed against it by presentation time stamps, never by counting.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path

import av
import av.error
import numpy as np
from PIL import Image

from .errors import InputError
from .mp4 import AAC_RATES_HZ, ClipWriter, resampled, to_length, write_video
from .sheets import contact_sheet, save_sheet

__all__ = [
    "CLIP_SUFFIXES", "IMAGE_SUFFIXES", "SOUND_SUFFIXES", "Clip", "ClipWriter", "MediaInfo", "contact_sheet", "probe",
    "read_clip", "read_metadata", "read_sound", "save_sheet", "write_video",
]  # fmt: skip

Source = str | Path | bytes
"""A media file, or the whole content of one."""

CLIP_SUFFIXES = {
    ".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".ogv", ".flv",
    ".wmv", ".3gp", ".vob",
}  # fmt: skip
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
SOUND_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".aiff"}

MAX_JITTER_S = 0.02  # smaller jumps between audio packets are rounding of time stamps, larger ones are gaps


@dataclass(frozen=True)
class Clip:
    """``frames`` (T, H, W, 3) uint8; ``waveform`` (N,) float32 in [-1, 1], exactly as long, or None without sound."""

    frames: np.ndarray
    waveform: np.ndarray | None
    frame_rate: Fraction
    sample_rate_hz: int


@dataclass(frozen=True)
class MediaInfo:
    """What a file says of itself before it is decoded; height and width as it is shown (``shown_size``)."""

    duration_s: float
    frame_rate: Fraction
    height: int
    width: int
    has_audio: bool


@contextmanager
def opened(source: Source) -> Iterator[av.container.InputContainer]:
    """An opened file; whatever the demuxer or decoder cannot read becomes an InputError that names the file."""
    name = name_of(source)
    try:
        # "file:" keeps a colon in a name from being read as a protocol.
        file = io.BytesIO(source) if isinstance(source, bytes) else f"file:{source}"
        with av.open(file, metadata_errors="replace") as container:
            yield container
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{name}: no such file") from error
    except PermissionError as error:
        raise InputError(f"{name}: may not be read") from error
    except av.error.FFmpegError as error:
        raise InputError(f"{name}: cannot be read as a video or sound ({error.strerror or error})") from error


def name_of(source: Source) -> str:
    """What an error message calls a source."""
    return "a clip in memory" if isinstance(source, bytes) else str(source)


def read_metadata(path: Source) -> dict[str, str]:
    """The tags of a media file, among them those given to ``write_video``. Raises InputError if it is unreadable."""
    with opened(path) as container:
        return dict(container.metadata)


def probe(path: Source) -> MediaInfo:
    """Length, rate and size of a file's picture, and whether it has sound; the first frame is decoded as a check.

    Raises:
        InputError: the file is missing, is no video, or its first frame cannot be decoded.
    """
    _, _, aspect, rotation = _picture_facts(path)
    with opened(path) as container:
        video = container.streams.video[0]
        if video.duration and video.time_base:
            duration_s = float(video.duration * video.time_base)
        else:
            duration_s = (container.duration or 0) / av.time_base
        rate = video.guessed_rate or video.average_rate or Fraction(25)
        size = shown_size(video.height, video.width, aspect, rotation)
        return MediaInfo(duration_s, rate, *size, bool(container.streams.audio))


def shown_size(height: int, width: int, pixel_aspect: Fraction, rotation: int) -> tuple[int, int]:
    """Height and width upright and with square pixels, of a stored picture."""
    shown = (height, max(1, round(width * pixel_aspect)))
    return shown[::-1] if rotation % 180 else shown


def read_clip(
    path: Source,
    *,
    height: int | None = None,
    width: int | None = None,
    frame_rate: Fraction | float | None = None,
    sample_rate_hz: int | None = None,
    start_s: float = 0.0,
    max_frames: int | None = None,
    with_sound: bool = True,
) -> Clip:
    """Read picture and sound of a file on one time grid that starts ``start_s`` after its first frame.

    Picture k is the newest source frame at time ``start_s + k / frame_rate``, which holds for variable frame rates
    too. Frames are turned upright, cropped centrally to the wanted aspect ratio and resized. Sound is mixed to mono,
    resampled, cut of the encoder's padding, and is exactly as long as the picture. Reading ends at the first damaged
    frame: what came before it is returned.

    Args:
        height, width: give both, or neither for the file's own size.
        frame_rate: None for the file's own rate.
        sample_rate_hz: None for the file's own rate.
        max_frames: read no further than this; None reads to the end.
        with_sound: False reads the picture alone.

    Raises:
        InputError: the file is missing, is no video, holds no decodable frame, or ends before ``start_s``.
    """
    if (height is None) != (width is None):
        raise ValueError("give both height and width, or neither")
    if start_s < 0 or (max_frames is not None and max_frames < 1):
        raise InputError(f"cannot read {max_frames} frames from {start_s} s on")
    size = None if height is None or width is None else (height, width)
    origin_s, own_rate, aspect, _ = _picture_facts(path)
    rate = Fraction(frame_rate if frame_rate is not None else own_rate).limit_denominator(1001)
    if rate <= 0:
        raise InputError(f"a frame rate of {frame_rate} cannot be used")
    with opened(path) as container:
        decoded = _decoded_from(container, container.streams.video[0], origin_s + start_s)
        pictures = []
        for frame, copies in _on_grid(decoded, origin_s + start_s, rate, own_rate, max_frames):
            pictures += [_shaped(frame, size, aspect)] * copies
    if not pictures:
        raise InputError(f"{name_of(path)}: has no frame that can be decoded {start_s:g} s after its start")
    if not with_sound:
        return Clip(np.stack(pictures), None, rate, sample_rate_hz or AAC_RATES_HZ[5])
    waveform, rate_hz, _ = _read_sound(path, origin_s + start_s, len(pictures) / rate, sample_rate_hz)
    return Clip(np.stack(pictures), waveform, rate, rate_hz)


def read_sound(path: Source, sample_rate_hz: int, max_duration_s: float, start_s: float = 0.0) -> np.ndarray:
    """Sound of any media file, with or without a picture: mono (N,) float32, at most ``max_duration_s`` long.

    It begins ``start_s`` after the first frame of the picture, or after the sound's start where there is no picture.

    Raises:
        InputError: the file is missing, cannot be read or has no sound.
    """
    with opened(path) as container:
        if not container.streams.audio:
            raise InputError(f"{name_of(path)}: has no sound")
        first = (container.streams.video or container.streams.audio)[0]
        origin_s = float((first.start_time or 0) * (first.time_base or 1))
        lasts_s = container.duration / av.time_base - start_s if container.duration else None
    duration = Fraction(max(0.0, max_duration_s if lasts_s is None else min(lasts_s, max_duration_s)))
    waveform, _, heard_s = _read_sound(path, origin_s + start_s, duration, sample_rate_hz)
    if waveform is not None and lasts_s is None:  # the file does not tell, so its sound does
        waveform = waveform[: max(0, round(heard_s * sample_rate_hz))]
    # After the end of a sound that is shorter than its picture there is silence.
    if waveform is None or not waveform.size or (start_s == 0 and heard_s <= 0):
        raise InputError(f"{name_of(path)}: has no sound")
    return waveform


def _picture_facts(path: Source) -> tuple[float, Fraction, Fraction, int]:
    """When the first frame is shown (seconds), the frame rate, the shape of a pixel (width over height) and by how many
    degrees the picture is turned."""
    with opened(path) as container:
        if not container.streams.video:
            raise InputError(f"{name_of(path)}: has no picture")
        stream = container.streams.video[0]
        rate = stream.guessed_rate or stream.average_rate or Fraction(25)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        for frame in container.decode(stream):
            return frame.time or 0.0, rate, aspect, frame.rotation
    raise InputError(f"{name_of(path)}: has no frame that can be decoded")


def _decoded_from(container, stream, start_s: float) -> Iterator:
    """Frames of ``stream`` in order of time, from the last keyframe before ``start_s`` to the end or to damage."""
    if start_s > 0.5:
        with suppress(av.error.FFmpegError):  # what cannot seek is decoded from its beginning
            container.seek(int(start_s / stream.time_base), stream=stream, backward=True)
    try:
        for frame in container.decode(stream):
            if frame.is_corrupt and frame.time is not None and frame.time >= start_s:
                return  # before the wanted part, a seek may have left frames without their references
            if frame.time is not None:
                yield frame
    except av.error.InvalidDataError:
        return


def _on_grid(decoded: Iterator, start_s: float, rate: Fraction, own_rate: Fraction, max_frames: int | None) -> Iterator:
    """Pairs (frame, number of grid points ``start_s + k / rate`` that show it)."""

    def points_before(time_s: float) -> int:
        points = max(0, ceil(round((time_s - start_s) * float(rate), 6)))
        return points if max_frames is None else min(points, max_frames)

    def slack_s(frame) -> float:
        """Containers round time stamps: a frame is on time when it is late by no more than the rounding."""
        return min(float(frame.time_base) / 2, 0.0005)

    shown, latest = 0, None
    for frame in decoded:
        if latest is not None:
            copies = points_before(frame.time - slack_s(frame)) - shown
            if copies > 0:
                yield latest, copies
                shown += copies
            if shown == max_frames:
                return
        latest = frame
    if latest is not None:
        lasts_s = float(latest.duration * latest.time_base) if latest.duration else float(1 / own_rate)
        copies = points_before(latest.time + lasts_s - 2 * slack_s(latest)) - shown
        if copies > 0:
            yield latest, copies


def _shaped(frame: av.VideoFrame, size: tuple[int, int] | None, pixel_aspect: Fraction) -> np.ndarray:
    """One frame, upright, as (H, W, 3) uint8; with a size, the largest central crop of its shape, resized."""
    image = Image.fromarray(frame.to_ndarray(format="rgb24"))
    if frame.rotation % 180:
        pixel_aspect = 1 / pixel_aspect
    if frame.rotation:
        image = image.rotate(frame.rotation, expand=True)
    if size is None:
        return np.asarray(image)
    height, width = size
    wanted = width / height / float(pixel_aspect)
    crop_width = min(image.width, image.height * wanted)
    crop_height = min(image.height, image.width / wanted)
    left, top = (image.width - crop_width) / 2, (image.height - crop_height) / 2
    box = (left, top, left + crop_width, top + crop_height)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box))


def _read_sound(
    path: Source, start_s: float, duration_s: Fraction, sample_rate_hz: int | None
) -> tuple[np.ndarray | None, int, float]:
    """Mono sound from ``start_s`` (a time stamp of the file) on, exactly ``duration_s`` long; and its sample rate.

    None when there is no sound track. Damage ends the sound, what follows is silence. The last value returned is for
    how many seconds there was sound.
    """
    with opened(path) as container:
        if not container.streams.audio:
            return None, sample_rate_hz or AAC_RATES_HZ[5], 0.0
        stream = container.streams.audio[0]
        own_hz = stream.rate
        # A quarter of a second more on both sides: decoders and resamplers need a run-in.
        run_in_s = min(0.25, start_s) if start_s > 0 else 0.0
        begin_s = start_s - run_in_s
        wanted = ceil((float(duration_s) + run_in_s + 0.25) * own_hz)
        sound = np.zeros((2, wanted), np.float32)
        # 16 bits, because only then does the mix of many channels to two keep its level below full scale.
        to_stereo = av.AudioResampler(format="s16p", layout="stereo" if stream.channels > 1 else "mono")
        filled = 0
        for decoded in _decoded_from(container, stream, begin_s):
            for frame in to_stereo.resample(decoded):
                if frame.time is None:
                    continue
                block = frame.to_ndarray().astype(np.float32) / 32768
                position = round((frame.time - begin_s) * own_hz)
                if filled and abs(position - filled) < MAX_JITTER_S * own_hz:
                    position = filled
                skipped = max(0, -position)
                block = block[:, skipped : skipped + max(0, wanted - max(0, position))]
                position = max(0, position)
                sound[:, position : position + block.shape[1]] = block
                filled = position + block.shape[1] if block.size else filled
            if filled >= wanted:
                break
    rate_hz = sample_rate_hz or own_hz
    mono = resampled(sound.mean(axis=0, keepdims=True), own_hz, rate_hz)[0]
    mono = to_length(mono[round(run_in_s * rate_hz) :], round(duration_s * rate_hz))
    return mono, rate_hz, filled / own_hz - run_in_s
