"""Small films to test with: a texture that moves, and a sound."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vidgen.media import write_video

RATE_HZ = 24000


def moving(num_frames: int = 28, height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    """Coarse blobs of light, of their own for each seed, that slide by: (T, H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    cell = 12
    coarse = rng.integers(30, 226, (height // cell + 2, (width + 2 * num_frames) // cell + 2, 3), dtype=np.uint8)
    ground = coarse.repeat(cell, axis=0).repeat(cell, axis=1)
    return np.stack([ground[:height, 2 * index : 2 * index + width] for index in range(num_frames)])


def tone(duration_s: float, hz: float = 440.0, level: float = 0.3) -> np.ndarray:
    times = np.arange(round(duration_s * RATE_HZ)) / RATE_HZ
    return (level * np.sin(2 * np.pi * hz * times)).astype(np.float32)


def film(path: Path, seed: int = 0, *, num_frames: int = 28, sound: bool = True, size=(64, 96)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    waveform = tone(num_frames / 24, 200 + 50 * seed) if sound else None
    return write_video(path, moving(num_frames, *size, seed=seed), waveform, Fraction(24), RATE_HZ)


def raw_film(path, frames, *, pix_fmt="yuv420p", options=None, times_ms=None, **context):
    """By PyAV alone, for what ``write_video`` never writes."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        stream.codec_context.time_base = Fraction(1, 24) if times_ms is None else Fraction(1, 1000)
        stream.codec_context.options = options or {}
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt)
            frame.pts = index if times_ms is None else times_ms[index]
            frame.time_base = stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def flashes_and_clicks(late_s: float, seed: int = 0, duration_s: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """A lamp that flashes up and fades at uneven times, and clicks that come ``late_s`` after each flash."""
    rng = np.random.default_rng(seed)
    frames = moving(round(duration_s * 24), seed=seed) // 2
    waveform = np.zeros(round(duration_s * RATE_HZ), np.float32)
    for moment in np.cumsum(rng.uniform(0.25, 0.6, 6)) + 0.1:
        frame = round(moment * 24)
        if frame + 5 >= len(frames):
            break
        frames[frame : frame + 5, 16:48, 24:48] += np.array([110, 85, 60, 35, 15], np.uint8)[:, None, None, None]
        start = round((frame / 24 + late_s) * RATE_HZ)
        if 0 <= start < len(waveform) - 600:
            waveform[start : start + 600] = rng.uniform(-0.7, 0.7, 600)
    return frames, waveform


def crash_at_two(number: int) -> int:
    if number == 2:
        os._exit(1)  # as a decoder does that runs into a fault
    return number
