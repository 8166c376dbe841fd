"""One clip from options to a file, watched while it is made: what the page does when it is told to make one.

The options are those of ``sample.py`` (``options.parse_args``), so that all that the page can do, a command can repeat.
"""

import argparse
import itertools
import json
import queue
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Generator
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import recipe
from .data.source import to_uint8
from .errors import InputError
from .lora import Lora
from .media import contact_sheet, save_sheet, write_video
from .pipeline import VidGenPipeline
from .streaming import Chunk, joined

PREVIEW_EVERY_S = 0.4
"""Previews cost a part of a decoding each: so many seconds apart, they are a small part of the work."""
PREVIEW_COLUMNS = 4
THREAD_NAME = "vidgen clip"


@dataclass(frozen=True, eq=False)
class Progress:
    """How far a clip is: of ``total`` steps (or, when it is made in parts, frames) ``done`` are there.

    ``preview`` (H, columns·W, 3) uint8 shows moments of the clip side by side; None when it is too soon for a new one.
    """

    done: int
    total: int
    unit: str
    preview: np.ndarray | None


@dataclass(frozen=True)
class Made:
    """A finished clip: its file; to show it a copy, a sheet (frames, waveform, spectrogram) and a poster; its tags."""

    path: str
    copy: str
    sheet: str
    poster: str
    tags: dict[str, str]
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        return json.loads(self.tags["settings"])

    @property
    def duration_s(self) -> float:
        return float(self.settings["num_frames"] / Fraction(self.settings["frame_rate"]))


class Stopped(Exception):
    """The user does not want the clip any more."""


def make(
    pipeline: VidGenPipeline,
    args: argparse.Namespace,
    pictures: Path,
    turn: "threading.Lock | None" = None,  # a function until Python 3.13
    stop: threading.Event | None = None,
) -> Generator[Progress | Made, None, None]:
    """Make the first prompt's clip in a thread of its own, and yield how far it is; the last thing is the clip.

    Setting ``stop``, or closing the iterator, ends the work with the step that is being done; no file is left then.

    Args:
        args: options as ``options.parse_args`` returns them; files go into the folder ``args.output``.
        pictures: a folder for what is shown: the copy, sheet and poster.
        turn: held while the pipeline works, so that clips that share a lock are made one after another.

    Raises:
        InputError: what was asked for cannot be made.
        Stopped: ``stop`` was set.
    """
    news: queue.SimpleQueue[Progress | Made | BaseException] = queue.SimpleQueue()
    stop = stop or threading.Event()

    def report(progress: Progress) -> None:
        if stop.is_set():
            raise Stopped
        news.put(progress)

    def work() -> None:
        try:
            with turn or nullcontext():
                if stop.is_set():
                    raise Stopped
                news.put(_make(pipeline, args, pictures, report))
        except BaseException as error:  # handed over, and raised where the user is
            news.put(error)

    threading.Thread(target=work, name=THREAD_NAME, daemon=True).start()
    try:
        while True:
            item = news.get()
            if isinstance(item, BaseException):
                raise item
            yield item
            if isinstance(item, Made):
                return
    finally:
        stop.set()


def _make(
    pipeline: VidGenPipeline, args: argparse.Namespace, pictures: Path, report: Callable[[Progress], None]
) -> Made:
    start_s = time.perf_counter()
    prompt = " ".join(args.prompt[0].split())
    if not prompt:
        raise InputError("the prompt is empty: say what should be seen and heard")
    seed = secrets.randbelow(2**31) if args.seed is None else args.seed
    given, spec, notes = recipe.read_material(args, pipeline.generation, recipe.clip_spec(args, pipeline.generation))
    pipeline.use_loras([Lora.parse(text) for text in args.lora])
    sampling = pipeline.sampling(args.steps, args.guidance, args.audio_guidance, args.modality_guidance, args.solver)
    settings = recipe.sampling_settings(sampling, args.negative_prompt)
    tags = recipe.tags(
        prompt, seed, recipe.recorded_settings(pipeline, args, settings, spec), pipeline.generation.model_version
    )
    watch = _Watch(pipeline, sampling.steps, report)
    wanted = settings | {
        "with_audio": not args.no_audio,
        "height": spec.height,
        "width": spec.width,
        "frame_rate": spec.frame_rate,
        "generator": torch.Generator().manual_seed(seed),
    }
    if recipe.is_made_in_parts(spec, pipeline.generation, given is not None or args.loop):
        said = prompt if args.camera is None else pipeline.generation.with_camera(prompt, args.camera)
        frames, waveform = watch.in_parts(said, spec.duration_s, spec.num_frames, wanted)
    else:
        output = pipeline(
            prompt, given=given, loop=args.loop, camera=args.camera, num_frames=spec.num_frames,
            callback_on_step_end=watch.on_step_end, **wanted,
        )  # fmt: skip
        frames, waveform = output.frames[0], None if output.audio is None else output.audio[0]
    report(Progress(1, 1, "clip", None))  # the last moment to stop: nothing has been written yet

    stem = recipe.file_stem(prompt, seed)
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    path = next(path for path in (args.output / f"{name}.mp4" for name in names) if not path.exists())
    write_video(path, frames, waveform, spec.frame_rate, spec.sample_rate_hz, tags)
    copy = shutil.copyfile(path, pictures / path.name)
    title = f"{prompt}  (seed {seed})"
    sheet = save_sheet(
        pictures / f"{path.stem}-sheet.png", [contact_sheet(frames, waveform, spec.sample_rate_hz, title)]
    )
    poster = save_poster(pictures / f"{path.stem}.png", frames)
    if not args.lora:  # which may have taught it further words
        notes += pipeline.generation.notes_on(prompt)
    return Made(str(path), str(copy), str(sheet), str(poster), tags, time.perf_counter() - start_s, tuple(notes))


def save_poster(path: Path, frames: np.ndarray) -> Path:
    """The middle one of ``frames`` (T, H, W, 3) as a PNG."""
    from PIL import Image

    return save_sheet(path, [Image.fromarray(frames[len(frames) // 2])])


class _Watch:
    """Tells ``report`` how far a pipeline is, with a preview now and then."""

    def __init__(self, pipeline: VidGenPipeline, steps: int, report: Callable[[Progress], None]):
        self.pipeline, self.steps, self.report = pipeline, steps, report
        self.frames_total = self.frames_done = 0
        self.shown_at = -PREVIEW_EVERY_S

    def on_step_end(
        self, _pipeline: Any, step: int, _sigma: Tensor, latents: dict[str, Tensor | None]
    ) -> dict[str, Tensor | None]:
        picture = None
        video = latents["video_latents"]
        if video is not None and time.perf_counter() - self.shown_at >= PREVIEW_EVERY_S:
            picture = preview(self.pipeline, video)
            self.shown_at = time.perf_counter()
        if self.frames_total:
            self.report(Progress(self.frames_done, self.frames_total, "frame", picture))
        else:
            self.report(Progress(step + 1, self.steps, "step", picture))
        return latents

    def in_parts(
        self, prompt: str, duration_s: float, num_frames: int, wanted: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """A long clip, window after window: (T, H, W, 3) uint8 and (N,) or None."""
        self.frames_total = num_frames
        chunks = self.pipeline.stream(prompt, duration_s, callback_on_step_end=self.on_step_end, **wanted)
        return joined(chunks, self.on_chunk)

    def on_chunk(self, chunk: Chunk) -> None:
        self.frames_done += len(chunk.frames)


@torch.no_grad()
def preview(pipeline: VidGenPipeline, video: Tensor, columns: int = PREVIEW_COLUMNS) -> np.ndarray:
    """A few moments of normalised latents (1, C, t, h, w), side by side: (H, columns·W, 3) uint8.

    Latent frames far from one another are decoded as if they followed each other: good enough to see what will come,
    at a part of the cost of decoding the clip. Fewer columns where there are fewer latent frames.
    """
    places = np.unique(np.linspace(0, video.shape[2] - 1, columns).round().astype(int))
    decoded = pipeline.vae.from_latents(video[:1, :, places].to(pipeline.vae.dtype)).float()
    frames = to_uint8(decoded[0])[:: pipeline.vae.config.temporal_compression]  # the last of each latent frame's
    return np.concatenate(list(frames.cpu().numpy()), axis=1)
