"""A clip drawn on one page: a row of its frames over its waveform over its spectrogram, on one time axis."""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .files import replacing

SHEET_WIDTH = 960
TITLE_HEIGHT = 22
HEAT = np.array([(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)])


def contact_sheet(
    frames: np.ndarray | None, waveform: np.ndarray | None, sample_rate_hz: int, title: str, columns: int = 6
) -> Image.Image:
    """A clip at a glance: frames over waveform over log-mel spectrogram on one time axis, under a title.

    Args:
        frames: (T, H, W, 3) uint8, or None for sound alone. Each of the ``columns`` pictures stands in the middle of
            its share of time.
        waveform: (N,) or (C, N) float in [-1, 1], or None for the frames alone.
        title: cut to the width of the sheet.
    """
    heading = Image.new("RGB", (SHEET_WIDTH, TITLE_HEIGHT), "white")
    ImageDraw.Draw(heading).text((6, 5), title, fill="black")
    parts = [heading]
    if frames is not None:
        parts.append(_frame_strip(frames, min(columns, len(frames))))
    if waveform is not None and waveform.size:
        mono = np.atleast_2d(waveform).mean(axis=0)
        parts += [_waveform_strip(mono), _spectrogram_strip(mono, sample_rate_hz)]
    return stacked(parts)


def stacked(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures below one another."""
    sheet = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height
    return sheet


def _frame_strip(frames: np.ndarray, columns: int) -> Image.Image:
    num_frames, height, width = frames.shape[:3]
    strip = Image.new("RGB", (SHEET_WIDTH, round(SHEET_WIDTH / columns * height / width)))
    for column in range(columns):
        picture = Image.fromarray(frames[int((column + 0.5) / columns * num_frames)])
        left, right = (round(SHEET_WIDTH * edge / columns) for edge in (column, column + 1))
        strip.paste(picture.resize((right - left, strip.height)), (left, 0))
    return strip


def _waveform_strip(mono: np.ndarray, height: int = 48) -> Image.Image:
    """Minimum and maximum of the wave in every column of pixels; full height is full scale."""
    edges = np.linspace(0, len(mono), SHEET_WIDTH + 1).astype(int)[:-1].clip(max=len(mono) - 1)
    rows = (1 - np.stack([np.maximum.reduceat(mono, edges), np.minimum.reduceat(mono, edges)])) / 2 * (height - 1)
    top, bottom = np.floor(rows[0]), np.ceil(rows[1])
    row = np.arange(height)[:, None]
    strip = np.full((height, SHEET_WIDTH, 3), 255, np.uint8)
    strip[(row >= top) & (row <= bottom)] = (40, 90, 160)
    return Image.fromarray(strip)


def _spectrogram_strip(mono: np.ndarray, sample_rate_hz: int, height: int = 96, window: int = 1024) -> Image.Image:
    """Power in ``height`` mel bands (low ones at the bottom) over 80 dB, every column of pixels one moment."""
    centres = (np.arange(SHEET_WIDTH) + 0.5) / SHEET_WIDTH * len(mono)
    padded = np.pad(mono, window // 2)
    blocks = padded[centres.astype(int)[:, None] + np.arange(window)] * np.hanning(window)
    power = np.abs(np.fft.rfft(blocks)) ** 2
    # Mel scale of O'Shaughnessy: 2595 log10(1 + f / 700).
    mels = np.linspace(0, 2595 * np.log10(1 + sample_rate_hz / 2 / 700), height + 2)
    edges_hz = 700 * (10 ** (mels / 2595) - 1)
    bins_hz = np.fft.rfftfreq(window, 1 / sample_rate_hz)
    rising = (bins_hz - edges_hz[:-2, None]) / np.diff(edges_hz)[:-1, None]
    falling = (edges_hz[2:, None] - bins_hz) / np.diff(edges_hz)[1:, None]
    filters = np.clip(np.minimum(rising, falling), 0, None)
    filters[np.arange(height), np.rint(edges_hz[1:-1] / bins_hz[1]).astype(int).clip(max=window // 2)] += 1e-3
    decibels = 10 * np.log10(power @ filters.T + 1e-10)
    full_scale_db = 10 * np.log10((window / 4) ** 2)  # a sine of amplitude 1 in the middle of a bin
    level = np.clip((decibels - full_scale_db) / 80 + 1, 0, 1).T[::-1]
    stops = np.linspace(0, 1, len(HEAT))
    colours = np.stack([np.interp(level, stops, HEAT[:, channel]) for channel in range(3)], axis=-1)
    return Image.fromarray(colours.round().astype(np.uint8))


def save_sheet(path: str | Path, images: Sequence[Image.Image]) -> Path:
    """Write pictures below one another as one PNG, whole or not at all."""
    path = Path(path)
    with replacing(path) as temporary:
        stacked(images).save(temporary, format="PNG")
    return path


def prompt_sheet(prompts: Sequence[str], pipeline: Callable[[Any], Any]) -> Callable[[Any, Path], None]:
    """How to draw what a transformer does now: a clip for each prompt, with seeds 0, 1, …

    All go into one picture, frames over spectrogram; where PyAV is installed, each can also be played.

    Args:
        pipeline: of a transformer, a ``VidGenPipeline``.
    """

    def sheet(transformer: Any, path: Path) -> None:
        import torch

        seeds = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
        made = pipeline(transformer)(prompts, generator=seeds)
        clips = list(zip(prompts, made.frames, made.audio, strict=True))
        save_sheet(path, [contact_sheet(frames, sound, made.sample_rate, text) for text, frames, sound in clips])
        with contextlib.suppress(ImportError):
            from .media import write_video

            for number, (text, frames, sound) in enumerate(clips):
                playable = path.with_name(f"{path.stem}-{number}.mp4")
                write_video(playable, frames, sound, made.frame_rate, made.sample_rate, {"title": text})

    return sheet


def some_captions(dataset: Any, count: int = 4) -> list[str]:
    """Prompts for sheets, of data that may have no captions at all."""
    captions = (wordings[0] for wordings in dataset.captions if wordings and wordings[0].strip())
    return list(itertools.islice(captions, count)) or ["a clip"]
