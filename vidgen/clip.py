"""The one clock: every length, and every moment, of a clip and of its latents is computed here."""

from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil

from .errors import InputError

MAX_DURATION_S = 3600


@dataclass(frozen=True)
class Compression:
    """How many input samples one latent stands for along each axis."""

    frames: int = 4
    pixels: int = 16
    samples: int = 960


@dataclass(frozen=True)
class ClipSpec:
    """Size, rates and compression of a clip; the source of all lengths and token times.

    The causal spacetime VAE maps 1 + n·``compression.frames`` frames to 1 + n latent frames: the first frame
    stands alone. A clip of any other number of frames is padded up to the next such number by whoever encodes it
    (``padded_frames``) and trimmed after decoding.

    Raises:
        InputError: a size that is not a positive multiple of the spatial compression, or a length, frame rate or
            sample rate that is not positive.
    """

    num_frames: int = 49
    height: int = 128
    width: int = 128
    frame_rate: Fraction = Fraction(24)
    sample_rate_hz: int = 24000
    compression: Compression = field(default_factory=Compression)

    def __post_init__(self) -> None:
        object.__setattr__(self, "frame_rate", Fraction(self.frame_rate).limit_denominator(1001))
        if self.num_frames < 1:
            raise InputError(f"a clip needs at least one frame, not {self.num_frames}")
        if self.frame_rate <= 0 or self.sample_rate_hz <= 0:
            raise InputError(f"frame rate {self.frame_rate} and sample rate {self.sample_rate_hz} must be positive")
        step = self.compression.pixels
        for name, value in (("width", self.width), ("height", self.height)):
            if value < step or value % step:
                below = max(step, value // step * step)
                raise InputError(f"{name} {value} is not a multiple of {step}: try {below} or {below + step}")

    @classmethod
    def from_duration(cls, duration_s: float, frame_rate: Fraction | float = Fraction(24), **sizes) -> "ClipSpec":
        """The clip whose length is nearest to ``duration_s`` in whole frames (at least one).

        Raises:
            InputError: a duration that is not between one frame and ``MAX_DURATION_S``, or a bad rate or size.
        """
        if not 0 < float(frame_rate) <= 240:
            raise InputError(f"a frame rate of {frame_rate} cannot be used: give 1 to 240 frames a second")
        rate = Fraction(frame_rate).limit_denominator(1001)
        if not 0 < duration_s <= MAX_DURATION_S:
            raise InputError(f"a duration of {duration_s} s cannot be made: give more than 0, at most {MAX_DURATION_S}")
        num_frames = round(duration_s * rate)
        if num_frames < 1:
            raise InputError(f"a duration of {duration_s:g} s is less than a frame at {float(rate):.5g} fps: "
                             f"give at least {float(1 / rate):.3g}")  # fmt: skip
        return cls(num_frames=num_frames, frame_rate=rate, **sizes)

    @property
    def duration_s(self) -> float:
        return float(self.num_frames / self.frame_rate)

    @property
    def num_samples(self) -> int:
        """Audio samples a channel: the sound is exactly as long as the picture."""
        return self.samples_until(self.num_frames)

    def samples_until(self, frame: int) -> int:
        """Audio samples a channel that are heard before ``frame`` is seen."""
        return round(frame / self.frame_rate * self.sample_rate_hz)

    @property
    def latent_frames(self) -> int:
        return 1 + ceil((self.num_frames - 1) / self.compression.frames)

    @property
    def padded_frames(self) -> int:
        """The number of frames that ``latent_frames`` decode to; at least ``num_frames``."""
        return 1 + (self.latent_frames - 1) * self.compression.frames

    def latent_frame(self, frame: int) -> int:
        """The latent frame that stands for a frame: 0 for frame 0, 1 for the next ``compression.frames``, and so on."""
        return ceil(frame / self.compression.frames)

    def audio_span(self, start: int, stop: int) -> tuple[int, int]:
        """The audio latents, from and up to, that are heard while latent frames [start, stop) are seen.

        Of a part that is not the clip's beginning, from one frame before: there the clock of a clip would start.
        """
        latents_per_frame = self.sample_rate_hz / self.frame_rate / self.compression.samples
        first, end = (max(0, 1 + (latent - 1) * self.compression.frames) for latent in (start, stop))
        # A latent that is heard on both sides of the beginning belongs to what was before.
        return ceil(max(0, first - 1) * latents_per_frame), min(self.audio_latents, ceil(end * latents_per_frame))

    @property
    def latent_height(self) -> int:
        return self.height // self.compression.pixels

    @property
    def latent_width(self) -> int:
        return self.width // self.compression.pixels

    @property
    def audio_latents(self) -> int:
        return ceil(self.num_samples / self.compression.samples)

    def video_latent_times_s(self) -> list[float]:
        """The middle, in seconds, of the frames that each latent frame stands for; the first stands for frame 0."""
        group = self.compression.frames
        middles = [0.0] + [1 + group * index + (group - 1) / 2 for index in range(self.latent_frames - 1)]
        return [middle / float(self.frame_rate) for middle in middles]

    def audio_latent_times_s(self) -> list[float]:
        """The middle, in seconds, of the samples that each audio latent stands for."""
        hop_s = self.compression.samples / self.sample_rate_hz
        return [(index + 0.5) * hop_s for index in range(self.audio_latents)]
