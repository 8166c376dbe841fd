"""Clips of any length in bounded memory: window after window of latents, decoded as they are made.

Each window after the first is denoised with the end of what is there already given, picture and sound, under noise of
one level (``GIVEN_NOISE``): the task of extending a clip, a mask over the same transformer. Both decoders go on from
window to window.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .clip import ClipSpec
from .conditioning import Conditioning, Text, given_frames
from .data.source import to_uint8
from .errors import InputError
from .solvers import State

if TYPE_CHECKING:
    from .generation import Sampling
    from .pipeline import VidGenPipeline

ENDING_LATENTS = 2
"""So many audio latents at the end of a window are made anew by the next one: in training a clip's last latents stand
for sound that is cut off there, and one would hear that at every window's end."""

GIVEN_NOISE = 0.4
"""A window sees the end of the one before under noise of this level (``Conditioning.given_noise``). It shows where
things are and hides the small faults of what was made, which would be taken for real and grow from window to window."""

Latents = tuple[Tensor, Tensor | None]
"""Normalised latents (1, C, t, h, w) of the picture and (1, C_a, L) of the sound, or None without sound."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """A part of a clip: ``frames`` (T, H, W, 3) uint8 and as much of ``waveform`` (N,) float32 in [-1, 1], or None."""

    frames: np.ndarray
    waveform: np.ndarray | None
    start_frame: int


@dataclass(frozen=True)
class Window:
    """Latent frames [start, stop), of which the first ``known`` are there already."""

    start: int
    stop: int
    known: int


def plan_windows(total: int, size: int, overlap: int, cuts: Sequence[int] = ()) -> list[Window]:
    """Windows that cover ``total`` latent frames. Each later one knows ``overlap`` or more, or all there are so far.

    The first has ``size`` latent frames. A later one has ``size`` - 1: it stands where those after the first stand in a
    clip, since the first latent frame of a clip is of another kind (it stands for one picture). A new part begins at
    each of ``cuts``; windows that end there early are shorter only near the beginning.

    Raises:
        InputError: an overlap that is not between 1 and ``size`` - 2.
    """
    if not 1 <= overlap <= size - 2:
        raise InputError(f"windows of {size} latent frames overlap by 1 to {size - 2}, not {overlap}")
    windows = [Window(0, min(size, total, *cuts), 0)]
    while windows[-1].stop < total:
        made = windows[-1].stop
        stop = min(made + size - 1 - overlap, total, *(cut for cut in cuts if cut > made))
        start = max(0, stop - (size - 1))
        windows.append(Window(start, stop, made - start))
    return windows


def stream(
    pipeline: "VidGenPipeline",
    prompt: str | Sequence[tuple[float, str]],
    duration_s: float,
    *,
    overlap_latents: int | None = None,
    with_audio: bool = True,
    height: int | None = None,
    width: int | None = None,
    frame_rate: Fraction | float | None = None,
    negative_prompt: str = "",
    generator: torch.Generator | None = None,
    callback_on_step_end: Callable[..., Any] | None = None,
    **sampling: Any,
) -> Iterator[Chunk]:
    """Make one clip part by part. Joined, the chunks are the whole clip; picture and sound of each are equally long.

    Args:
        prompt: one for the whole clip, or pairs (from which second on, prompt), the first from 0 on. Each holds for
            the latent frames whose middle lies in its time; a window ends where a prompt does.
        overlap_latents: latent frames that a window shares with the one before it; half a window by default.
        callback_on_step_end: as in a call of the pipeline; its steps count anew in every window.
        sampling: ``num_inference_steps``, ``guidance_scale``, ``audio_guidance_scale``, ``modality_scale`` and
            ``solver``, as in a call of the pipeline.

    Raises:
        InputError: an empty prompt, prompts out of order, a clip that cannot be made, or settings out of range. It is
            raised here, not when the first chunk is asked for.
    """
    story = [(0.0, prompt)] if isinstance(prompt, str) else [(float(time), text) for time, text in prompt]
    times = [time for time, _ in story]
    if not story or not all(text.strip() for _, text in story):
        raise InputError("a prompt is empty")
    if times[0] != 0 or any(first >= second for first, second in itertools.pairwise(times)):
        raise InputError(f"prompts that follow one another start at 0 s and go on in order, not at {times} s")
    own = pipeline.generation
    spec = own.spec(duration_s=duration_s, height=height, width=width, frame_rate=frame_rate)
    if times[-1] >= spec.duration_s:
        raise InputError(f"the prompt from {times[-1]:g} s on lies beyond the clip's {spec.duration_s:g} s")
    starts_s = spec.video_latent_times_s()
    cuts = [sum(start_s < time for start_s in starts_s) for time in times[1:]]
    for (time, text), (cut, following) in zip(story, itertools.pairwise([0, *cuts, spec.latent_frames]), strict=True):
        if cut >= following:
            raise InputError(f"the prompt from {time:g} s on, {text!r}, holds for less than a latent frame")
    size = max(3, own.spec(frame_rate=frame_rate).latent_frames)  # the first, one that is shared, and a new one
    overlap = size // 2 if overlap_latents is None else overlap_latents
    windows = plan_windows(spec.latent_frames, size, overlap, cuts)
    settings = pipeline.sampling(**sampling)
    texts = [pipeline.encode_text([text]) for _, text in story]
    negative = pipeline.encode_text([negative_prompt]) if settings.is_guided else None
    chosen = [texts[sum(cut <= window.start + window.known for cut in cuts)] for window in windows]
    latents = _denoise_windows(
        pipeline, spec, windows, chosen, negative, settings, generator, with_audio, callback_on_step_end
    )
    return _decode(pipeline, spec, latents, with_audio)


def joined(
    chunks: Iterable[Chunk], on_chunk: Callable[[Chunk], None] = lambda _: None
) -> tuple[np.ndarray, np.ndarray | None]:
    """The whole clip of its chunks, each told to ``on_chunk``: frames (T, H, W, 3) uint8, sound (N,) or None."""
    frames, sound = [], []
    for chunk in chunks:
        frames.append(chunk.frames)
        sound += [] if chunk.waveform is None else [chunk.waveform]
        on_chunk(chunk)
    return np.concatenate(frames), np.concatenate(sound) if sound else None


def _denoise_windows(
    pipeline: "VidGenPipeline",
    spec: ClipSpec,
    windows: list[Window],
    texts: list[Text],
    negative_text: Text | None,
    sampling: "Sampling",
    generator: torch.Generator | None,
    with_audio: bool,
    callback_on_step_end: Callable[..., Any] | None,
) -> Iterator[Latents]:
    """The new latents of each window."""
    video_times_s, audio_times_s = spec.video_latent_times_s(), spec.audio_latent_times_s()
    sizes = (pipeline.vae.config.latent_channels, spec.latent_height, spec.latent_width)
    video = torch.zeros(1, sizes[0], 0, *sizes[1:], device=pipeline.device)  # of the window before
    audio = torch.zeros(1, pipeline.codec.config.latent_channels, 0, device=pipeline.device)
    heard = 0  # audio latents made so far
    before, like = None, None  # the last window's text, and the statistics of the first window with that text
    for window, text in zip(windows, texts, strict=True):
        first, end = spec.audio_span(window.start, window.stop)
        first = min(first, heard)  # no gap, even where a window hardly overlaps the one before
        known = (window.known, heard - first)
        video_noise = torch.randn(1, sizes[0], window.stop - window.start, *sizes[1:], generator=generator)
        audio_noise = torch.randn(1, audio.shape[1], end - first, generator=generator)
        noise = (video_noise.to(pipeline.device), audio_noise.to(pipeline.device) if with_audio else None)
        given = _first_given((video, audio if with_audio else None), known, noise)
        # A window's clock starts where the clip's would, one frame before its first latent frame of several.
        origin_s = video_times_s[window.start] - video_times_s[1] if window.start else 0.0
        kept = end if window is windows[-1] else max(heard, end - ENDING_LATENTS)
        made_video, made_audio = pipeline.denoise(
            noise,
            text,
            negative_text,
            sampling,
            [time - origin_s for time in video_times_s[window.start : window.stop]],
            [time - origin_s for time in audio_times_s[first:end]],
            given,
            callback_on_step_end,
        )
        assert made_video is not None
        if like is None or text is not before:
            before, like = text, statistics(made_video)
        else:
            made_video = held(made_video, known[0], like)
        video, heard = made_video, kept
        audio = audio if made_audio is None else made_audio[:, :, : kept - first]
        yield video[:, :, known[0] :], None if made_audio is None else audio[:, :, known[1] :]


def statistics(video: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (1, C, 1, 1, 1) of each channel of latents; a clip's first one is of another kind."""
    rest = video[:, :, 1:] if video.shape[2] > 1 else video
    return rest.mean((0, 2, 3, 4), keepdim=True), rest.std((0, 2, 3, 4), keepdim=True)


def held(made: Tensor, known: int, like: tuple[Tensor, Tensor]) -> Tensor:
    """A window's latents of which those after the first ``known`` have the mean ``like`` before, and no more spread.

    What a model makes of its own output is a little harder and of another tint each time: over a minute pictures would
    burn out. The channels' statistics tell that before it shows.
    """
    mean, std = made.mean((0, 2, 3, 4), keepdim=True), made.std((0, 2, 3, 4), keepdim=True)
    new = (made[:, :, known:] - mean) * (like[1] / std.clamp(min=1e-6)).clamp(max=1) + like[0]
    return torch.cat((made[:, :, :known], new), dim=2)


def _first_given(made: Latents, known: tuple[int, int], noise: State) -> Conditioning:
    """So many latents of picture and sound at the end of ``made`` are given at the beginning of the next window."""
    parts: list[Tensor | None] = []
    for latents, count, drawn in zip(made, known, noise, strict=True):
        if latents is None or drawn is None or count == 0:
            parts += [None, None]
        else:
            parts += given_frames(latents[:, :, latents.shape[2] - count :], range(count), drawn.shape[2])
    video, video_given, audio, audio_given = parts
    return Conditioning(video, video_given, audio, audio_given, given_noise=GIVEN_NOISE)


@torch.no_grad()
def _decode(
    pipeline: "VidGenPipeline", spec: ClipSpec, latents: Iterable[Latents], with_audio: bool
) -> Iterator[Chunk]:
    """Chunks as soon as both picture and sound are known: the codec holds back what later latents are heard in."""
    for_video, for_audio = itertools.tee(latents)
    vae, codec = pipeline.vae, pipeline.codec
    videos = vae.decode_stream(vae.denormalise(video.to(vae.dtype)) for video, _ in for_video)
    sounds: Iterator[Tensor] = iter(())
    if with_audio:
        made = (audio for _, audio in for_audio if audio is not None and audio.shape[2])
        codec_latents = (codec.denormalise(audio.to(codec.dtype)) for audio in made)
        sounds = codec.decode_stream(codec_latents, spec.num_samples)
    else:
        del for_audio  # it would keep all that the other has passed on
    frames = np.zeros((0, spec.height, spec.width, 3), np.uint8)
    waveform = np.zeros(0, np.float32)
    shown = 0
    for video in videos:
        frames = np.concatenate((frames, to_uint8(video[0].float()).cpu().numpy()))[: spec.num_frames - shown]
        is_last = shown + len(frames) == spec.num_frames
        # The end of the sound comes in a part of its own, without waiting for more latents.
        for part in sounds if is_last else itertools.islice(sounds, 1):
            waveform = np.concatenate((waveform, part[0, 0].float().clamp(-1, 1).cpu().numpy()))
        heard = spec.samples_until(shown)
        ready = len(frames)
        while with_audio and ready and spec.samples_until(shown + ready) - heard > len(waveform):
            ready -= 1
        if ready:
            until = spec.samples_until(shown + ready) - heard
            yield Chunk(frames[:ready], waveform[:until] if with_audio else None, shown)
            frames, waveform, shown = frames[ready:], waveform[until:], shown + ready
