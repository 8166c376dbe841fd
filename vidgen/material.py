"""The user's material, from files or memory, as a ``Given``: at the clip's size and rates, and what was changed."""

from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .clip import ClipSpec
from .errors import InputError
from .given import ROUNDING, Given, Span
from .media import Clip, MediaInfo, probe, read_clip, read_sound
from .mp4 import resampled, to_length

WHITE = 128


def read_given(
    spec: ClipSpec,
    longest: ClipSpec,
    *,
    keyframes: Mapping[int, Path | np.ndarray] | None = None,
    video: Path | Clip | None = None,
    extend_s: float | None = None,
    replaced: Span | None = None,
    mask: Path | np.ndarray | None = None,
    strength: float | None = None,
    only: str | None = None,
    audio: Path | tuple[np.ndarray, int] | None = None,
    with_audio: bool = True,
    has_duration: bool = False,
) -> tuple[Given, ClipSpec, list[str]]:
    """Make a ``Given`` of a user's material, with the clip that it is for, and a line for whatever was changed.

    Args:
        spec: the clip as it would be without material: its size and rates are taken, its length where nothing else
            decides it.
        longest: the longest clip that material may make; more of it is not read.
        keyframes: files or pictures (H, W, 3) uint8 by frame of the clip; -1 is its last frame.
        video: a file, or frames with or without sound; goes with ``extend_s`` (seconds; negative goes on backward),
            ``replaced``, ``mask``, ``strength``, or ``only`` "audio".
        mask: of the video's size, white (or true, (1 or T, H, W) bool) where its picture is to be made anew; its sound
            is kept, outside ``replaced``.
        strength: how much of what is made anew changes (``Given.strength``); without ``replaced`` and ``mask``, of all.
        only: "video" or "audio": make just that, and keep the other.
        audio: any file with sound, or a waveform (N,) float32 and its rate in Hz; longer than the clip only where
            ``has_duration``.
        with_audio: False leaves sound out.
        has_duration: the length of ``spec`` was asked for, and is kept where it can be.

    Raises:
        InputError: a file that cannot be read or has no sound, or material that does not fit the clip.
    """
    given = Given()
    notes: list[str] = []
    limit = spec if has_duration else longest
    if video is not None and extend_s is not None:
        given, spec, notes = _extended(video, spec, longest, extend_s)
    elif video is not None:
        frames, waveform, changes = _read_video(video, spec, limit.num_frames)
        spec, notes = replace(spec, num_frames=len(frames)), _as_note(video, changes)
        if replaced is None and strength is not None and mask is None:
            replaced = (0.0, spec.duration_s)
        if replaced is None and mask is None:
            given = Given(video=frames)
        else:
            if only is not None and waveform is None and with_audio:
                raise InputError(f"{_name(video)}: has no sound that could be kept: make it anew too, or none")
            spans = () if replaced is None else (replaced,)
            given = Given(video=frames, waveform=waveform, replaced_video=spans if only != "audio" else (),
                          replaced_audio=spans if only != "video" else (), strength=strength or 1.0,
                          mask=None if mask is None else _conformed_mask(mask, video, spec))  # fmt: skip
    elif audio is not None:
        if isinstance(audio, tuple):
            waveform = resampled(audio[0][None], audio[1], spec.sample_rate_hz)[0].clip(-1, 1)
        else:
            waveform = np.clip(read_sound(audio, spec.sample_rate_hz, limit.duration_s + 0.1), -1, 1)
        if len(waveform) > limit.num_samples:
            name = "the sound" if isinstance(audio, tuple) else audio.name
            if not has_duration:
                raise InputError(f"{name}: lasts longer than a clip of this model can, {limit.duration_s:.3g} s: ask "
                                 "for a duration, and so much of its beginning is used")  # fmt: skip
            notes = [f"{name}: no more than its first {limit.duration_s:.3g} s used"]
            waveform = waveform[: limit.num_samples]
        if not has_duration:
            num_frames = round(len(waveform) / spec.sample_rate_hz * spec.frame_rate)
            spec = replace(spec, num_frames=max(1, num_frames))
        given = Given(waveform=waveform)
    pictures = {}
    for frame, source in (keyframes or {}).items():
        frame = spec.num_frames - 1 if frame == -1 else frame
        if frame in pictures:
            raise InputError(f"frame {frame} is given twice")
        if isinstance(source, np.ndarray):
            pictures[frame] = _fitted(Image.fromarray(source), spec.height, spec.width)
        else:
            pictures[frame], changes = read_picture(source, spec.height, spec.width)
            notes += _as_note(source, changes)
    given = replace(given, keyframes=pictures, waveform=given.waveform if with_audio else None)
    given.check(spec)
    return given, spec, notes


def _extended(
    source: Path | Clip, spec: ClipSpec, longest: ClipSpec, extend_s: float
) -> tuple[Given, ClipSpec, list[str]]:
    """A clip that goes on, after its end or (with a negative length) before its beginning."""
    group = spec.compression.frames
    more = round(abs(extend_s) * spec.frame_rate)
    if more < group:
        raise InputError(f"an extension by {extend_s:g} s is shorter than one latent frame ({group} frames)")
    if extend_s < 0:
        more = 1 + ceil((more - 1) / group) * group  # so that the material begins with a latent frame
    room = longest.num_frames - more
    if room < group:
        raise InputError(f"an extension by {extend_s:g} s is too long: clips of this model last at most "
                         f"{longest.duration_s:.3g} s, what is extended included")  # fmt: skip
    frames, waveform, changes = _read_video(source, spec, room, from_its_end=extend_s > 0)
    if len(frames) < group:
        raise InputError(f"{_name(source)}: its {len(frames)} frames at {float(spec.frame_rate):g} fps are too short "
                         f"to extend: give at least {group}")  # fmt: skip
    changes.append(f"{more} frames added")
    if extend_s > 0 and (len(frames) - 1) % group:
        changes.append(f"its last {(len(frames) - 1) % group} made anew")
    start_frame = more if extend_s < 0 else 0
    spec = replace(spec, num_frames=len(frames) + more)
    return Given(video=frames, waveform=waveform, start_frame=start_frame), spec, _as_note(source, changes)


def _read_video(
    source: Path | Clip, spec: ClipSpec, max_frames: int, from_its_end: bool = False
) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Frames and sound at the size and rates of ``spec``, and what was changed."""
    info = _info(source) if isinstance(source, Clip) else probe(source)
    start_s = 0.0
    if from_its_end:
        start_s = max(0.0, info.duration_s - float(max_frames / spec.frame_rate))
    if isinstance(source, Clip):
        clip = _conformed(source, spec, start_s, max_frames)
    else:
        clip = read_clip(
            source,
            height=spec.height,
            width=spec.width,
            frame_rate=spec.frame_rate,
            sample_rate_hz=spec.sample_rate_hz,
            start_s=start_s,
            max_frames=max_frames,
        )
    waveform = None if clip.waveform is None else np.clip(clip.waveform, -1, 1)
    changes = []
    used_s = float(len(clip.frames) / spec.frame_rate)
    if info.duration_s - used_s > 1.5 / float(min(spec.frame_rate, info.frame_rate)):
        changes.append(f"only {start_s:.3g}-{start_s + used_s:.3g} s of {info.duration_s:.3g} s used")
    if (info.width, info.height) != (spec.width, spec.height):
        changes.append(f"{info.width}×{info.height} cropped and scaled to {spec.width}×{spec.height}")
    if abs(info.frame_rate - spec.frame_rate) > 0.001:
        changes.append(f"{float(info.frame_rate):.5g} to {float(spec.frame_rate):.5g} fps")
    return clip.frames, waveform, changes


def _info(clip: Clip) -> MediaInfo:
    height, width = clip.frames.shape[1:3]
    duration_s = float(len(clip.frames) / clip.frame_rate)
    return MediaInfo(duration_s, clip.frame_rate, height, width, clip.waveform is not None)


def _conformed(clip: Clip, spec: ClipSpec, start_s: float, max_frames: int) -> Clip:
    """A clip that is in memory, at the size and rates of ``spec``: as ``read_clip`` would read it from a file."""
    lasts_s = len(clip.frames) / float(clip.frame_rate) - start_s
    count = min(max_frames, ceil(lasts_s * float(spec.frame_rate) - ROUNDING))
    if count < 1:
        raise InputError("the video has no frames")
    times_s = start_s + np.arange(count) / float(spec.frame_rate)
    shown = np.floor(times_s * float(clip.frame_rate) + ROUNDING).astype(int)
    frames = np.stack([_fitted(Image.fromarray(clip.frames[index]), spec.height, spec.width) for index in shown])
    waveform = clip.waveform
    if waveform is not None:
        waveform = resampled(waveform[None], clip.sample_rate_hz, spec.sample_rate_hz)[0]
        waveform = to_length(waveform[round(start_s * spec.sample_rate_hz) :], spec.samples_until(count))
    return Clip(frames, waveform, spec.frame_rate, spec.sample_rate_hz)


def _conformed_mask(mask: Path | np.ndarray, video: Path | Clip, spec: ClipSpec) -> np.ndarray:
    """(1 or T, H, W) bool, placed in time and space as the frames of ``video`` are.

    Raises:
        InputError: a mask of another size or length than the video's, or a file that is no picture.
    """
    info = _info(video) if isinstance(video, Clip) else probe(video)
    if isinstance(mask, Path):
        name, mask = str(mask), np.asarray(open_picture(mask).convert("L"))[None] >= WHITE
    else:
        name = "the mask"
    if mask.shape[1:] != (info.height, info.width):
        raise InputError(f"{name}: a mask of {mask.shape[2]}×{mask.shape[1]} does not fit {_name(video)}, which has "
                         f"{info.width}×{info.height}")  # fmt: skip
    pictures = np.repeat(mask[..., None], 3, axis=3).astype(np.uint8) * 255
    if len(mask) == 1:
        return _fitted(Image.fromarray(pictures[0]), spec.height, spec.width)[None, ..., 0] >= WHITE
    if not isinstance(video, Clip) or len(mask) != len(video.frames):
        raise InputError(f"a mask has one picture, or one for each frame of the video, not {len(mask)}")
    masks = Clip(pictures, None, video.frame_rate, video.sample_rate_hz)
    return _conformed(masks, spec, 0.0, spec.num_frames).frames[..., 0] >= WHITE


def _name(source: Path | Clip) -> str:
    return "the video" if isinstance(source, Clip) else str(source)


def _as_note(source: Path | Clip, changes: list[str]) -> list[str]:
    """One line for what was given, none if nothing was changed."""
    name = source.name if isinstance(source, Path) else _name(source)
    return [f"{name}: {', '.join(changes)}"] if changes else []


def read_picture(path: str | Path, height: int, width: int) -> tuple[np.ndarray, list[str]]:
    """A picture file, upright, cropped centrally and scaled: (height, width, 3) uint8, and what was changed.

    Raises:
        InputError: the file is missing or no picture.
    """
    upright = open_picture(Path(path))
    changes = []
    if upright.size != (width, height):
        changes.append(f"{upright.width}×{upright.height} cropped and scaled to {width}×{height}")
    return _fitted(upright, height, width), changes


def _fitted(picture: Image.Image, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8: the largest central part of that shape, scaled."""
    return np.asarray(ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC))


def open_picture(path: Path) -> Image.Image:
    """A picture file in RGB, upright.

    Raises:
        InputError: the file is missing or no picture.
    """
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # as PIL's decoders raise them
        raise InputError(f"{path}: cannot be read as a picture") from error
