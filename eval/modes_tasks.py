"""The tasks of ``eval.modes``: what is given of a clip, and how well that comes back."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vidgen.clip import ClipSpec
from vidgen.given import Given


@dataclass(frozen=True)
class RealClip:
    """A clip of the generator: frames (T, H, W, 3) uint8, waveform (N,), its prompt and the truth about it."""

    frames: np.ndarray
    waveform: np.ndarray
    prompt: str
    truth: dict
    blows_s: list[list[float]]
    """Blows to be heard; those of a group are one to the ear (``impacts.audible_groups``)."""


@dataclass(frozen=True)
class Task:
    """``given`` makes material of a clip. What is asked of picture and sound is read off what was made.

    Where nothing is asked, only how well the given comes back is measured.
    """

    name: str
    given: Callable[[RealClip, ClipSpec], Given]
    makes_sound: bool = True
    asks_of_picture: bool = False
    asks_of_sound: bool = False

    @property
    def is_measured(self) -> bool:
        return self.asks_of_picture or self.asks_of_sound


def middle_frame(spec: ClipSpec) -> int:
    """The first frame of a latent frame, near the middle: where clips can be cut."""
    return 1 + spec.compression.frames * (spec.latent_frames // 2)


def _beginning(clip: RealClip, spec: ClipSpec) -> Given:
    stop = middle_frame(spec)
    return Given(video=clip.frames[:stop], waveform=clip.waveform[: spec.samples_until(stop)])


def _end(clip: RealClip, spec: ClipSpec) -> Given:
    start = middle_frame(spec)
    return Given(video=clip.frames[start:], waveform=clip.waveform[spec.samples_until(start) :], start_frame=start)


def _both_ends(clip: RealClip, spec: ClipSpec) -> Given:
    spans = ((spec.duration_s / 3, 2 * spec.duration_s / 3),)
    return Given(video=clip.frames, waveform=clip.waveform, replaced_video=spans, replaced_audio=spans)


def _right_half(clip: RealClip, spec: ClipSpec) -> Given:
    mask = np.zeros((1, spec.height, spec.width), bool)
    mask[..., : spec.width // 2] = True
    return Given(video=clip.frames, waveform=clip.waveform, mask=mask)


TASKS = {
    task.name: task
    for task in (
        Task("foley", lambda clip, _: Given(video=clip.frames), asks_of_sound=True),
        Task("sound-to-video", lambda clip, _: Given(waveform=clip.waveform), makes_sound=False, asks_of_picture=True),
        Task("first-frame", lambda clip, _: Given(keyframes={0: clip.frames[0]}), asks_of_picture=True),
        Task("first-and-last",
             lambda clip, spec: Given(keyframes={at: clip.frames[at] for at in (0, spec.num_frames - 1)}),
             asks_of_picture=True),
        Task("extend", _beginning, asks_of_picture=True),
        Task("keyframe", lambda clip, spec: Given(keyframes={middle_frame(spec): clip.frames[middle_frame(spec)]})),
        Task("lead-up", _end),
        Task("replace", _both_ends),
        Task("mask", _right_half),
    )
}  # fmt: skip


def given_back_db(given: Given, real: np.ndarray, made: np.ndarray, spec: ClipSpec) -> dict[str, list[float]]:
    """PSNR of the picture that was given: of each keyframe, and of all pixels of a video that settle a latent."""
    figures = {}
    for frame in given.keyframes:
        name = {0: "first_frame_db", spec.num_frames - 1: "last_frame_db"}.get(frame, "keyframe_db")
        figures[name] = [psnr_db(made[frame], real[frame])]
    settled = given.video_mask(spec)
    if settled.any():
        pixels = settled.repeat(spec.height // settled.shape[1], axis=1).repeat(spec.width // settled.shape[2], axis=2)
        groups = [1] + [spec.compression.frames] * (spec.latent_frames - 1)
        pixels = pixels.repeat(groups, axis=0)[: spec.num_frames]
        figures["given_db"] = [psnr_db(made[pixels], real[pixels])]
    return figures


def sound_kept(given: Given, made: np.ndarray, spec: ClipSpec) -> dict[str, list[float]]:
    """1 where every sample that was given came back as it was, 0 where one did not; nothing where none was given."""
    if given.waveform is None:
        return {}
    known = given.samples_mask(spec)
    return {"sound_kept": [float(np.array_equal(made[known], given.sound(spec)[known]))]}


def psnr_db(picture: np.ndarray, reference: np.ndarray) -> float:
    error = np.square(picture.astype(np.float64) - reference).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-3)))
