"""The user's own material for a clip: pictures, a video, a sound; everything that is not given is made.

``Given`` holds material that already has the clip's size and rates, and says which latents and samples it settles.
``material.read_given`` makes one from files, ``conditioning.encode_given`` turns it into clean latents and masks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, floor

import numpy as np

from .clip import ClipSpec
from .errors import InputError

FADE_S = 0.005
ROUNDING = 1e-6

Span = tuple[float, float]
"""Start and end in seconds of the clip."""


@dataclass(frozen=True, eq=False)
class Given:
    """Material conformed to the size, frame rate and sample rate of the clip that it is given for.

    The picture is given in whole latent frames: one for frame 0 alone, then one for every four frames. Frames of
    ``video`` that do not fill a latent frame (at its ends and around a replaced span, up to 3 each) are made anew.

    Args:
        keyframes: pictures (H, W, 3) uint8 by frame of the clip. One that is not frame 0 is given as a picture that is
            held for the four frames of the latent frame that it falls in: it is seen at its frame, and up to 3 frames
            before or after.
        video: frames (T, H, W, 3) uint8.
        waveform: sound (N,) float32 in [-1, 1]; it comes out of the pipeline sample by sample as it went in.
        start_frame: frame of the clip where ``video`` and ``waveform`` begin. Frames beyond the clip are not used;
            sound may reach no more than a frame beyond it.
        replaced_video, replaced_audio: spans of the clip in which ``video`` or ``waveform`` are made anew.
        mask: (1 or T, H, W) bool, true where the picture of ``video`` is made anew, alike in all frames or for each: in
            ``replaced_video``, or in the whole clip where no span is given. A latent with any such pixel is made anew.
        strength: in (0, 1]: below 1, what is made anew starts from what was there under so much noise (SDEdit, Meng et
            al. 2022, arXiv 2108.01073), so that it stays like it.
    """

    keyframes: Mapping[int, np.ndarray] = field(default_factory=dict)
    video: np.ndarray | None = None
    waveform: np.ndarray | None = None
    start_frame: int = 0
    replaced_video: tuple[Span, ...] = ()
    replaced_audio: tuple[Span, ...] = ()
    mask: np.ndarray | None = None
    strength: float = 1.0

    def check(self, spec: ClipSpec) -> None:
        """Raise InputError where the material does not fit the clip ``spec`` or contradicts itself."""
        self._check_kinds()
        pictures = [*self.keyframes.values(), *([] if self.video is None else [self.video[0]])]
        for picture in pictures:
            if picture.shape != (spec.height, spec.width, 3) or picture.dtype != np.uint8:
                raise InputError(f"given pictures must be ({spec.height}, {spec.width}, 3) uint8, not "
                                 f"{picture.shape} {picture.dtype}")  # fmt: skip
        if not 0 <= self.start_frame < spec.num_frames:
            raise InputError(f"given material cannot begin at frame {self.start_frame} of {spec.num_frames}")
        if self.waveform is not None:
            beyond = self.first_sample(spec) + len(self.waveform) - spec.samples_until(spec.num_frames + 1)
            if beyond > 0:
                lasts_s, start = len(self.waveform) / spec.sample_rate_hz, self.start_frame
                raise InputError(f"given sound of {lasts_s:.3g} s from frame {start} on is longer than the clip, "
                                 f"{spec.duration_s:.3g} s: cut it, or make the clip longer")  # fmt: skip
        for start_s, end_s in (*self.replaced_video, *self.replaced_audio):
            if not 0 <= start_s < end_s <= spec.duration_s + ROUNDING:
                raise InputError(f"the span {start_s:g}-{end_s:g} s does not lie in the clip's {spec.duration_s:.3g} s")
        self._check_editing(spec)
        settled: np.ndarray = np.any(self.video_mask(spec), axis=(1, 2))
        for frame in sorted(self.keyframes):
            if not 0 <= frame < spec.num_frames:
                raise InputError(f"keyframe {frame} lies outside the clip: its frames are 0 to {spec.num_frames - 1}")
            place = spec.latent_frame(frame)
            if settled[place]:
                raise InputError(
                    f"keyframe {frame} falls on frames that are given already: keep keyframes "
                    f"{spec.compression.frames} frames apart, and out of what is kept of a video"
                )
            settled[place] = True

    def _check_kinds(self) -> None:
        """What would otherwise fail somewhere within, or silently make nonsense."""
        for array in (self.video, self.waveform, self.mask, *self.keyframes.values()):
            if array is not None and not isinstance(array, np.ndarray):
                raise InputError(
                    f"pictures, video, sound and mask are given as numpy arrays, not {type(array).__name__}"
                )
        if any(not isinstance(frame, int | np.integer) for frame in self.keyframes):
            raise InputError(f"keyframes are given by number of frame, not {list(self.keyframes)}")
        if self.video is not None and (self.video.ndim != 4 or not len(self.video)):
            raise InputError(f"a given video must be frames (T, H, W, 3) uint8, not {self.video.shape}")
        sound = self.waveform
        if sound is not None:
            if sound.ndim != 1 or not sound.size or not np.issubdtype(sound.dtype, np.floating):
                raise InputError(f"given sound must be (N,) floats, not {sound.shape} {sound.dtype}")
            if not np.abs(sound).max() <= 1:
                raise InputError("given sound must lie between -1 and 1")
        if any(np.shape(span) != (2,) for span in (*self.replaced_video, *self.replaced_audio)):
            raise InputError("replaced spans are pairs of seconds, start and end: ((0.5, 1.0),)")

    def _check_editing(self, spec: ClipSpec) -> None:
        if self.mask is not None:
            if self.video is None:
                raise InputError("a mask needs the video that it belongs to")
            fits = self.mask.shape in [(count, spec.height, spec.width) for count in (1, len(self.video))]
            if not fits or self.mask.dtype != bool:
                raise InputError(f"a mask must be ({spec.height}, {spec.width}) bool, one or one a frame, not "
                                 f"{self.mask.shape} {self.mask.dtype}")  # fmt: skip
            if not self.mask.any():
                raise InputError("the mask marks nothing: it must be white where the picture is to be made anew")
        if not 0 < self.strength <= 1:
            raise InputError(f"strength lies above 0 and up to 1, not at {self.strength}")
        if self.strength < 1 and (self.video is None or not self._covered(spec).all() or self.keyframes):
            raise InputError("a strength below 1 needs a video that fills the clip, and no other pictures")

    def _covered(self, spec: ClipSpec) -> np.ndarray:
        """(spec.padded_frames,) bool: the frames that ``video`` has, replaced ones as well."""
        covered = np.zeros(spec.padded_frames, bool)
        if self.video is not None:
            stop = self.start_frame + len(self.video)
            # Beyond its end a clip is padded to whole latent frames, by whoever encodes it.
            covered[self.start_frame : stop if stop < spec.num_frames else None] = True
        return covered

    def video_mask(self, spec: ClipSpec) -> np.ndarray:
        """Bool, true at the latents that ``video`` gives, keyframes not counted.

        Returns:
            (spec.latent_frames, 1, 1), or (spec.latent_frames, spec.latent_height, spec.latent_width) under a mask.
        """
        covered = self._covered(spec)
        kept = covered.copy()
        rate = float(spec.frame_rate)
        for start_s, end_s in self.replaced_video:
            kept[floor(start_s * rate + ROUNDING) : ceil(end_s * rate - ROUNDING)] = False
        if self.mask is None:
            return _latent_frames(kept, spec)
        if not self.replaced_video:
            kept[:] = False
        step = spec.compression.pixels
        blocks = self.mask.reshape(-1, spec.latent_height, step, spec.latent_width, step)
        cells: np.ndarray = np.any(blocks, axis=(2, 4))
        unmarked = np.ones((spec.padded_frames, *cells.shape[1:]), bool)
        unmarked[covered] = ~cells if len(cells) == 1 else ~_repeated(cells, int(covered.sum()))
        return _latent_frames(kept, spec) | _latent_frames(unmarked & covered[:, None, None], spec)

    def whole_picture(self, spec: ClipSpec) -> np.ndarray | None:
        """(spec.num_frames, H, W, 3) frames of ``video`` where it settles all of the picture, else None."""
        return self.video[: spec.num_frames] if self.video is not None and self.video_mask(spec).all() else None

    def audio_mask(self, spec: ClipSpec) -> np.ndarray:
        """(spec.audio_latents,) bool: the audio latents of which every sample is given."""
        hop = spec.compression.samples
        beyond = spec.audio_latents * hop - spec.num_samples
        known = np.pad(self.samples_mask(spec), (0, beyond), constant_values=True)
        return np.all(known.reshape(-1, hop), axis=1)

    def samples_mask(self, spec: ClipSpec) -> np.ndarray:
        """(spec.num_samples,) bool: the samples that ``waveform`` gives."""
        known = np.zeros(spec.num_samples, bool)
        if self.waveform is not None:
            first = self.first_sample(spec)
            known[first : first + len(self.waveform)] = True
        for start_s, end_s in self.replaced_audio:
            known[round(start_s * spec.sample_rate_hz) : round(end_s * spec.sample_rate_hz)] = False
        return known

    def first_sample(self, spec: ClipSpec) -> int:
        """Sample of the clip where ``waveform`` begins."""
        return round(self.start_frame / spec.frame_rate * spec.sample_rate_hz)

    def sound(self, spec: ClipSpec) -> np.ndarray:
        """(spec.num_samples,) ``waveform`` at its place, mirrored at its ends: silence there would be an event."""
        assert self.waveform is not None
        first = self.first_sample(spec)
        after = max(0, spec.num_samples - first - len(self.waveform))
        return np.pad(self.waveform, (first, after), mode="symmetric")[: spec.num_samples].astype(np.float32)

    def put_back(self, made: np.ndarray, spec: ClipSpec) -> np.ndarray:
        """Decoded sound (B, spec.num_samples) with the given samples in place of their decoded likeness.

        Where given and made sound meet, the made sound starts at the level of the given one and goes over to its own
        within 5 ms: a step would be heard as a click.
        """
        if self.waveform is None:
            return made
        given, known = self.sound(spec), self.samples_mask(spec)
        restored = made.copy()
        fade = np.linspace(1, 0, round(FADE_S * spec.sample_rate_hz) + 1, dtype=np.float32)[:-1]
        for edge in np.flatnonzero(known[1:] != known[:-1]):  # the last sample before each change
            towards_end = known[edge]
            source = edge if towards_end else edge + 1
            faded = np.arange(len(fade)) + edge + 1 if towards_end else edge - np.arange(len(fade))
            inside = (faded >= 0) & (faded < len(known))
            restored[:, faded[inside]] += (given[source] - made[:, source : source + 1]) * fade[inside]
        return np.where(known, given, np.clip(restored, -1, 1))


def _latent_frames(frames: np.ndarray, spec: ClipSpec) -> np.ndarray:
    """Bool (spec.padded_frames,) or (spec.padded_frames, h, w) to (spec.latent_frames, 1, 1) or (…, h, w).

    True where all frames of a latent frame are.
    """
    frames = frames if frames.ndim == 3 else frames[:, None, None]
    groups = frames[1:].reshape(-1, spec.compression.frames, *frames.shape[1:]).all(axis=1)
    return np.concatenate([frames[:1], groups])


def _repeated(masks: np.ndarray, count: int) -> np.ndarray:
    """The first ``count`` of (T, h, w), the last one repeated where there are fewer."""
    return masks[np.minimum(np.arange(count), len(masks) - 1)]
