"""The user's files, read into a ``Given``: at the size and rates of the clip, with a word on what was changed."""

from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .clip import ClipSpec
from .errors import InputError
from .given import Given, Span
from .media import probe, read_clip, read_sound

WHITE = 128


def read_given(
    spec: ClipSpec,
    longest: ClipSpec,
    *,
    keyframes: Mapping[int, Path] | None = None,
    video: Path | None = None,
    extend_s: float | None = None,
    replaced: Span | None = None,
    mask: Path | None = None,
    strength: float | None = None,
    only: str | None = None,
    audio: Path | None = None,
    with_audio: bool = True,
    has_duration: bool = False,
) -> tuple[Given, ClipSpec, list[str]]:
    """Read a user's files into a ``Given``, with the clip that it is for, and a line for each file that was changed.

    Args:
        spec: the clip as it would be without material: its size and rates are taken, its length where nothing else
            decides it.
        longest: the longest clip that material may make; more of it is not read.
        keyframes: files by frame of the clip; -1 is its last frame.
        video: goes with ``extend_s`` (seconds; negative goes on backward), ``replaced``, ``mask``, ``strength``, or
            ``only`` "audio".
        mask: a picture of the video's size, white where it is to be made anew; its sound is kept, outside ``replaced``.
        strength: how much of what is made anew changes (``Given.strength``); without ``replaced`` and ``mask``, of all.
        only: "video" or "audio": make just that, and keep the other.
        audio: any file with sound.
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
                raise InputError(f"{video}: has no sound that could be kept: leave out --only, or give --no-audio")
            spans = () if replaced is None else (replaced,)
            given = Given(video=frames, waveform=waveform, replaced_video=spans if only != "audio" else (),
                          replaced_audio=spans if only != "video" else (), strength=strength or 1.0,
                          mask=None if mask is None else read_mask(mask, video, spec))  # fmt: skip
    elif audio is not None:
        waveform = np.clip(read_sound(audio, spec.sample_rate_hz, limit.duration_s + 0.1), -1, 1)
        is_longer = len(waveform) > limit.num_samples
        waveform = waveform[: limit.num_samples]
        if not has_duration:
            num_frames = round(len(waveform) / spec.sample_rate_hz * spec.frame_rate)
            spec = replace(spec, num_frames=max(1, num_frames))
        given = Given(waveform=waveform)
        if is_longer:
            notes = _as_note(audio, [f"no more than its first {limit.duration_s:.3g} s used"])
    pictures = {}
    for frame, path in (keyframes or {}).items():
        frame = spec.num_frames - 1 if frame == -1 else frame
        if frame in pictures:
            raise InputError(f"frame {frame} is given twice")
        pictures[frame], changes = read_picture(path, spec.height, spec.width)
        notes += _as_note(path, changes)
    given = replace(given, keyframes=pictures, waveform=given.waveform if with_audio else None)
    given.check(spec)
    return given, spec, notes


def _extended(path: Path, spec: ClipSpec, longest: ClipSpec, extend_s: float) -> tuple[Given, ClipSpec, list[str]]:
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
    frames, waveform, changes = _read_video(path, spec, room, from_its_end=extend_s > 0)
    if len(frames) < group:
        raise InputError(f"{path}: its {len(frames)} frames at {float(spec.frame_rate):g} fps are too short to extend: "
                         f"give at least {group}")  # fmt: skip
    changes.append(f"{more} frames added")
    if extend_s > 0 and (len(frames) - 1) % group:
        changes.append(f"its last {(len(frames) - 1) % group} made anew")
    start_frame = more if extend_s < 0 else 0
    spec = replace(spec, num_frames=len(frames) + more)
    return Given(video=frames, waveform=waveform, start_frame=start_frame), spec, _as_note(path, changes)


def _read_video(
    path: Path, spec: ClipSpec, max_frames: int, from_its_end: bool = False
) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Frames and sound at the size and rates of ``spec``, and what was changed."""
    info = probe(path)
    start_s = 0.0
    if from_its_end:
        start_s = max(0.0, info.duration_s - float(max_frames / spec.frame_rate))
    clip = read_clip(
        path,
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


def _as_note(path: Path, changes: list[str]) -> list[str]:
    """One line for a file, none if nothing was changed."""
    return [f"{path.name}: {', '.join(changes)}"] if changes else []


def read_picture(path: str | Path, height: int, width: int) -> tuple[np.ndarray, list[str]]:
    """A picture file, upright, cropped centrally and scaled: (height, width, 3) uint8, and what was changed.

    Raises:
        InputError: the file is missing or no picture.
    """
    upright = _open_picture(Path(path))
    changes = []
    if upright.size != (width, height):
        changes.append(f"{upright.width}×{upright.height} cropped and scaled to {width}×{height}")
    return np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.BICUBIC)), changes


def read_mask(path: Path, video: Path, spec: ClipSpec) -> np.ndarray:
    """A mask for a video, conformed as the video is: (H, W) bool, true where the picture is white.

    Raises:
        InputError: a file that is missing or no picture, or a picture of another size than the video's.
    """
    picture, info = _open_picture(path), probe(video)
    if picture.size != (info.width, info.height):
        raise InputError(f"{path}: a mask of {picture.width}×{picture.height} does not fit {video.name}, which has "
                         f"{info.width}×{info.height}")  # fmt: skip
    size = (spec.width, spec.height)
    return np.asarray(ImageOps.fit(picture.convert("L"), size, Image.Resampling.BOX)) >= WHITE


def _open_picture(path: Path) -> Image.Image:
    """A picture file, upright."""
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # as PIL's decoders raise them
        raise InputError(f"{path}: cannot be read as a picture") from error
