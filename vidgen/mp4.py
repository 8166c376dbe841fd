"""Clips written as mp4 files, picture and sound in exact sync: at once, or part by part as they are made."""

from collections.abc import Mapping
from contextlib import nullcontext, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from .errors import InputError
from .files import replacing

AAC_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
AAC_FRAME_SAMPLES = 1024
BT709 = 1  # the code of H.273 for primaries, transfer curve and matrix alike
LIMITED_RANGE = 1
INDEX_IN_FRONT = "+faststart+use_metadata_tags"
IN_FRAGMENTS = "+frag_keyframe+delay_moov+default_base_moof+use_metadata_tags"


class ClipWriter:
    """Writes an mp4 part by part: H.264 (yuv420p, BT.709, no B-frames) with AAC, starting at 0. A context manager.

    Chroma is stored at half size, so an odd height or width gains one row or column that repeats the edge.

    Args:
        size: (height, width) of the frames in pixels.
        frame_rate: frames per second, exact.
        channels: of the sound, 1 or 2; 0 writes no sound track.
        sample_rate_hz: one of ``AAC_RATES_HZ``.
        metadata: written as tags of the file; any key.
        progressive: in fragments of about a second, each playable once it is written, so that what is there can be
            watched, and outlives a crash. Otherwise the index is written in front when the file is complete.

    Raises:
        InputError: a sample rate that AAC does not know.
        OSError: the disk is full or the folder cannot be written.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        frame_rate: Fraction,
        *,
        channels: int = 1,
        sample_rate_hz: int = 24000,
        metadata: Mapping[str, str] | None = None,
        crf: int = 17,
        progressive: bool = False,
    ) -> None:
        if channels and sample_rate_hz not in AAC_RATES_HZ:
            raise InputError(f"sound of {sample_rate_hz} Hz cannot be stored as AAC: resample it to 48000 Hz")
        self.padding = [(0, 0), (0, size[0] % 2), (0, size[1] % 2), (0, 0)]
        self.frame_rate, self.sample_rate_hz = frame_rate, sample_rate_hz
        self.frames_written, self.samples_written = 0, 0
        self.layout = "stereo" if channels == 2 else "mono"
        self.waiting = np.zeros((max(channels, 1), 0), np.float32)  # sound that does not fill an AAC frame yet
        options = {"movflags": IN_FRAGMENTS if progressive else INDEX_IN_FRONT}
        if progressive:
            options["flush_packets"] = "1"
        self.container = av.open(str(path), "w", format="mp4", options=options)
        self.container.metadata.update({key: str(value) for key, value in (metadata or {}).items()})
        self.video: Any = self.container.add_stream("libx264", rate=frame_rate)
        self.video.height, self.video.width = size[0] + size[0] % 2, size[1] + size[1] % 2
        self.video.pix_fmt = "yuv420p"
        self.video.time_base = self.video.codec_context.time_base = 1 / frame_rate
        # No B-frames: decoding order is display order, and players that ignore edit lists stay in sync.
        self.video.codec_context.options = {"crf": str(crf), "preset": "medium", "bf": "0", "g": "24"}
        self.video.codec_context.color_primaries = self.video.codec_context.color_trc = BT709
        self.video.codec_context.colorspace = BT709
        self.video.codec_context.color_range = LIMITED_RANGE
        self.audio: Any = None
        if channels:
            self.audio = self.container.add_stream("aac", rate=sample_rate_hz, layout=self.layout)
            self.audio.codec_context.bit_rate = 128_000 * channels
            self.audio.codec_context.time_base = Fraction(1, sample_rate_hz)

    def __enter__(self) -> "ClipWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What went wrong first is told, not that the file could not be ended after it.
        with suppress(OSError, ValueError) if kind is not None else nullcontext():
            self.close()

    def add(self, frames: np.ndarray, waveform: np.ndarray | None = None) -> None:
        """Write what comes next: frames (T, H, W, 3) uint8 and (C, N) float32 in [-1, 1] of sound, as long."""
        if self.audio is not None and waveform is not None:
            self.waiting = np.concatenate((self.waiting, np.clip(waveform, -1, 1, dtype=np.float32)), axis=1)
        for picture in np.pad(frames, self.padding, mode="edge"):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            frame.pts, frame.time_base = self.frames_written, 1 / self.frame_rate
            self.container.mux(self.video.encode(frame))
            self.frames_written += 1
            self._write_sound(until_s=self.frames_written / self.frame_rate)

    def close(self) -> None:
        """Write what is waiting and end the file; what was added is playable then."""
        try:
            self.container.mux(self.video.encode(None))
            if self.audio is not None:
                self._write_sound(until_s=None)
                self.container.mux(self.audio.encode(None))
        finally:
            self.container.close()

    def _write_sound(self, until_s: Fraction | None) -> None:
        """Whole AAC frames that begin before ``until_s``; None: all that is waiting, the last one not full."""
        smallest = AAC_FRAME_SAMPLES if until_s is not None else 1
        while self.audio is not None and self.waiting.shape[1] >= smallest:
            if until_s is not None and Fraction(self.samples_written, self.sample_rate_hz) >= until_s:
                return
            block = np.ascontiguousarray(self.waiting[:, :AAC_FRAME_SAMPLES])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=self.layout)
            frame.sample_rate, frame.pts = self.sample_rate_hz, self.samples_written
            frame.time_base = Fraction(1, self.sample_rate_hz)
            self.container.mux(self.audio.encode(frame))
            self.samples_written += block.shape[1]
            self.waiting = self.waiting[:, AAC_FRAME_SAMPLES:]


def write_video(
    path: str | Path,
    frames: np.ndarray,
    waveform: np.ndarray | None,
    frame_rate: Fraction,
    sample_rate_hz: int = 24000,
    metadata: Mapping[str, str] | None = None,
    crf: int = 17,
) -> Path:
    """Write an mp4 at once (see ``ClipWriter``), index in front.

    Sound is cut or padded with silence to the length of the picture. A failure leaves no partial file behind.

    Args:
        frames: (T, H, W, 3) uint8.
        waveform: (N,) or (C, N) float in [-1, 1] with one or two channels; None writes no sound track.
        frame_rate: frames per second, exact.
        metadata: written as tags of the file; any key, read back by ``media.read_metadata``.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be (T, H, W, 3) uint8, not {frames.shape} {frames.dtype}")
    frame_rate, size = Fraction(frame_rate), (frames.shape[1], frames.shape[2])
    channels = 0
    if waveform is not None:
        waveform, sample_rate_hz = _fit_sound(waveform, sample_rate_hz, len(frames) / frame_rate)
        channels = len(waveform)
    with (
        replacing(path) as temporary,
        ClipWriter(
            temporary, size, frame_rate, channels=channels, sample_rate_hz=sample_rate_hz, metadata=metadata, crf=crf
        ) as writer,
    ):
        writer.add(frames, waveform)
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
        waveform = resampled(waveform, sample_rate_hz, rate_hz)
    return np.clip(to_length(waveform, round(duration_s * rate_hz)), -1, 1), rate_hz


def to_length(waveform: np.ndarray, num_samples: int) -> np.ndarray:
    """``waveform`` (..., N) cut, or padded with silence, to ``num_samples``."""
    missing = max(0, num_samples - waveform.shape[-1])
    padding = [(0, 0)] * (waveform.ndim - 1) + [(0, missing)]
    return np.pad(waveform[..., :num_samples], padding)


def resampled(waveform: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """(C, N) float32 at another rate; sample 0 stays at time 0."""
    if from_hz == to_hz or not waveform.size:
        return waveform
    layout = "mono" if len(waveform) == 1 else "stereo"
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=to_hz)
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform), format="fltp", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = from_hz, 0, Fraction(1, from_hz)
    blocks = [block.to_ndarray() for source in (frame, None) for block in resampler.resample(source)]
    return to_length(np.concatenate(blocks, axis=1), round(waveform.shape[1] * to_hz / from_hz))
