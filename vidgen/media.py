"""Clips on disk: mp4 files written and read in exact sync, and PNG sheets that show picture and sound together.

Time zero of a file is its first video frame. Sound is placed against it by presentation time stamps, never by counting.
"""

from collections.abc import Iterator, Mapping
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
from .files import replacing
from .sheets import contact_sheet, save_sheet

__all__ = [
    "Clip", "MediaInfo", "contact_sheet", "probe", "read_clip", "read_metadata", "read_sound", "save_sheet",
    "write_video",
]  # fmt: skip

AAC_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
AAC_FRAME_SAMPLES = 1024
BT709 = 1  # the code of H.273 for primaries, transfer curve and matrix alike
LIMITED_RANGE = 1
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
    """What a file says of itself before it is decoded."""

    duration_s: float
    frame_rate: Fraction
    height: int
    width: int
    has_audio: bool


def write_video(
    path: str | Path,
    frames: np.ndarray,
    waveform: np.ndarray | None,
    frame_rate: Fraction,
    sample_rate_hz: int = 24000,
    metadata: Mapping[str, str] | None = None,
    crf: int = 17,
) -> Path:
    """Write an mp4: H.264 (yuv420p, BT.709, no B-frames) with AAC, starting at 0, index in front.

    Chroma is stored at half size, so an odd height or width gains one row or column that repeats the edge. Sound is
    cut or padded with silence to the length of the picture. A failure leaves no partial file behind.

    Args:
        frames: (T, H, W, 3) uint8.
        waveform: (N,) or (C, N) float in [-1, 1] with one or two channels; None writes no sound track.
        frame_rate: frames per second, exact.
        metadata: written as tags of the file; any key, read back by ``read_metadata``.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be (T, H, W, 3) uint8, not {frames.shape} {frames.dtype}")
    frame_rate = Fraction(frame_rate)
    odd_height, odd_width = frames.shape[1] % 2, frames.shape[2] % 2
    if odd_height or odd_width:
        frames = np.pad(frames, ((0, 0), (0, odd_height), (0, odd_width), (0, 0)), mode="edge")
    with replacing(path) as temporary:
        options = {"movflags": "+faststart+use_metadata_tags"}
        with av.open(str(temporary), "w", format="mp4", options=options) as container:
            container.metadata.update({key: str(value) for key, value in (metadata or {}).items()})
            video = container.add_stream("libx264", rate=frame_rate)
            video.height, video.width = frames.shape[1:3]
            video.pix_fmt = "yuv420p"
            video.time_base = video.codec_context.time_base = 1 / frame_rate
            # No B-frames: decoding order is display order, and players that ignore edit lists stay in sync.
            video.codec_context.options = {"crf": str(crf), "preset": "medium", "bf": "0", "g": "24"}
            video.codec_context.color_primaries = video.codec_context.color_trc = BT709
            video.codec_context.colorspace = BT709
            video.codec_context.color_range = LIMITED_RANGE
            audio_frames: list[av.AudioFrame] = []
            if waveform is not None:
                waveform, audio_rate_hz = _fit_sound(waveform, sample_rate_hz, len(frames) / frame_rate)
                layout = "mono" if len(waveform) == 1 else "stereo"
                audio = container.add_stream("aac", rate=audio_rate_hz, layout=layout)
                audio.codec_context.bit_rate = 128_000 * len(waveform)
                audio.codec_context.time_base = Fraction(1, audio_rate_hz)
                audio_frames = _audio_frames(waveform, audio_rate_hz, layout)
            next_audio = 0
            for index, picture in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
                frame.pts, frame.time_base = index, 1 / frame_rate
                container.mux(video.encode(frame))
                until_s = (index + 1) / frame_rate
                while next_audio < len(audio_frames) and (audio_frames[next_audio].time or 0) < until_s:
                    container.mux(audio.encode(audio_frames[next_audio]))
                    next_audio += 1
            container.mux(video.encode(None))
            for audio_frame in audio_frames[next_audio:]:
                container.mux(audio.encode(audio_frame))
            if waveform is not None:
                container.mux(audio.encode(None))
    return path


def _fit_sound(waveform: np.ndarray, sample_rate_hz: int, duration_s: Fraction) -> tuple[np.ndarray, int]:
    """(C, N) float32 at a rate that AAC knows, exactly ``duration_s`` long; and that rate."""
    waveform = np.atleast_2d(np.asarray(waveform, dtype=np.float32))
    if waveform.ndim != 2 or len(waveform) > 2:
        raise ValueError(f"the waveform must be (N,) or (1 or 2, N), not {waveform.shape}")
    if not np.isfinite(waveform).all():
        raise ValueError("the waveform holds values that are not numbers")
    rate_hz = sample_rate_hz
    if rate_hz not in AAC_RATES_HZ:
        rate_hz = 48000
        waveform = _resample(waveform, sample_rate_hz, rate_hz)
    return np.clip(_to_length(waveform, round(duration_s * rate_hz)), -1, 1), rate_hz


def _to_length(waveform: np.ndarray, num_samples: int) -> np.ndarray:
    """``waveform`` (..., N) cut, or padded with silence, to ``num_samples``."""
    missing = max(0, num_samples - waveform.shape[-1])
    padding = [(0, 0)] * (waveform.ndim - 1) + [(0, missing)]
    return np.pad(waveform[..., :num_samples], padding)


def _audio_frames(waveform: np.ndarray, rate_hz: int, layout: str) -> list[av.AudioFrame]:
    frames = []
    for start in range(0, waveform.shape[1], AAC_FRAME_SAMPLES):
        block = np.ascontiguousarray(waveform[:, start : start + AAC_FRAME_SAMPLES])
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, start, Fraction(1, rate_hz)
        frames.append(frame)
    return frames


def _resample(waveform: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """(C, N) float32 at another rate; sample 0 stays at time 0."""
    if from_hz == to_hz or not waveform.size:
        return waveform
    layout = "mono" if len(waveform) == 1 else "stereo"
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=to_hz)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform), format="fltp", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = from_hz, 0, Fraction(1, from_hz)
    blocks = [block.to_ndarray() for source in (frame, None) for block in resampler.resample(source)]
    return _to_length(np.concatenate(blocks, axis=1), round(waveform.shape[1] * to_hz / from_hz))


@contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    """An opened file; whatever the demuxer or decoder cannot read becomes an InputError that names the file."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            yield container
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path}: no such file") from error
    except PermissionError as error:
        raise InputError(f"{path}: may not be read") from error
    except av.error.FFmpegError as error:
        raise InputError(f"{path}: cannot be read as a video ({error.strerror or error})") from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """The tags of a media file, among them those given to ``write_video``. Raises InputError if it is unreadable."""
    with _opened(Path(path)) as container:
        return dict(container.metadata)


def probe(path: str | Path) -> MediaInfo:
    """Length, rate and size of a file's picture, and whether it has sound; the first frame is decoded as a check.

    Raises:
        InputError: the file is missing, is no video, or its first frame cannot be decoded.
    """
    path = Path(path)
    _picture_facts(path)
    with _opened(path) as container:
        video = container.streams.video[0]
        if video.duration and video.time_base:
            duration_s = float(video.duration * video.time_base)
        else:
            duration_s = (container.duration or 0) / av.time_base
        rate = video.guessed_rate or video.average_rate or Fraction(25)
        return MediaInfo(duration_s, rate, video.height, video.width, bool(container.streams.audio))


def read_clip(
    path: str | Path,
    *,
    height: int | None = None,
    width: int | None = None,
    frame_rate: Fraction | float | None = None,
    sample_rate_hz: int | None = None,
    start_s: float = 0.0,
    max_frames: int | None = None,
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

    Raises:
        InputError: the file is missing, is no video, holds no decodable frame, or ends before ``start_s``.
    """
    path = Path(path)
    if (height is None) != (width is None):
        raise ValueError("give both height and width, or neither")
    if start_s < 0 or (max_frames is not None and max_frames < 1):
        raise InputError(f"cannot read {max_frames} frames from {start_s} s on")
    size = None if height is None or width is None else (height, width)
    origin_s, own_rate, aspect = _picture_facts(path)
    rate = Fraction(frame_rate if frame_rate is not None else own_rate).limit_denominator(1001)
    if rate <= 0:
        raise InputError(f"a frame rate of {frame_rate} cannot be used")
    with _opened(path) as container:
        decoded = _decoded_from(container, container.streams.video[0], origin_s + start_s)
        pictures = []
        for frame, copies in _on_grid(decoded, origin_s + start_s, rate, own_rate, max_frames):
            pictures += [_shaped(frame, size, aspect)] * copies
    if not pictures:
        raise InputError(f"{path}: has no frame that can be decoded {start_s:g} s after its start")
    waveform, rate_hz = _read_sound(path, origin_s + start_s, len(pictures) / rate, sample_rate_hz)
    return Clip(np.stack(pictures), waveform, rate, rate_hz)


def read_sound(path: str | Path, sample_rate_hz: int, max_duration_s: float) -> np.ndarray:
    """Sound of any media file, with or without a picture: mono (N,) float32, at most ``max_duration_s`` long.

    It begins with the first frame of the picture, or with the sound where there is no picture.

    Raises:
        InputError: the file is missing, cannot be read or has no sound.
    """
    path = Path(path)
    with _opened(path) as container:
        if not container.streams.audio:
            raise InputError(f"{path}: has no sound")
        first = (container.streams.video or container.streams.audio)[0]
        start_s = float((first.start_time or 0) * (first.time_base or 1))
        lasts_s = container.duration / av.time_base if container.duration else max_duration_s
    waveform, _ = _read_sound(path, start_s, Fraction(min(lasts_s, max_duration_s)), sample_rate_hz)
    if waveform is None or not waveform.size:
        raise InputError(f"{path}: has no sound")
    return waveform


def _picture_facts(path: Path) -> tuple[float, Fraction, Fraction]:
    """When the first frame is shown (seconds), the frame rate and the shape of a pixel (width over height)."""
    with _opened(path) as container:
        if not container.streams.video:
            raise InputError(f"{path}: has no picture")
        stream = container.streams.video[0]
        rate = stream.guessed_rate or stream.average_rate or Fraction(25)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        for frame in container.decode(stream):
            return frame.time or 0.0, rate, aspect
    raise InputError(f"{path}: has no frame that can be decoded")


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
    path: Path, start_s: float, duration_s: Fraction, sample_rate_hz: int | None
) -> tuple[np.ndarray | None, int]:
    """Mono sound from ``start_s`` (a time stamp of the file) on, exactly ``duration_s`` long; and its sample rate.

    None when there is no sound track. Damage ends the sound, what follows is silence.
    """
    with _opened(path) as container:
        if not container.streams.audio:
            return None, sample_rate_hz or AAC_RATES_HZ[5]
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
    mono = _resample(sound.mean(axis=0, keepdims=True), own_hz, rate_hz)[0]
    return _to_length(mono[round(run_in_s * rate_hz) :], round(duration_s * rate_hz)), rate_hz
