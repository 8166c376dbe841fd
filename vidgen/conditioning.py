"""What is given and what is wanted, and guidance: from a network to a velocity function that solvers take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError
from .flow import interpolate
from .loading import execution_device
from .solvers import State, VelocityFn

if TYPE_CHECKING:
    from .audio_sync.codec import AudioCodec
    from .clip import ClipSpec
    from .given import Given
    from .vae3d.autoencoder import SpacetimeVAE

Text = tuple[Tensor, Tensor]
"""Features (B, S, D) and mask (B, S), as a text encoder's ``encode`` returns them."""


@dataclass(frozen=True)
class Conditioning:
    """Clean latents and masks that are true where they are given. Everything is wanted where a field is None.

    video: normalised latents (B, C, t, h, w); ``video_given`` bool, broadcastable to (B, t, h, w).
    audio: normalised latents (B, C_a, L); ``audio_given`` bool, broadcastable to (B, L).
    video_strength, audio_strength: below 1, what is wanted starts from the clean latents under so much noise, and the
        schedule of noise levels is to start there.
    given_noise: the network is shown what is given under noise of this level, or of the level of what is wanted where
        that is lower. 0 shows it clean, at 1 all latents have one noise level (the replacement method of Song et al.
        2021, arXiv 2011.13456, appendix I.2). It comes out clean in either case.
    """

    video: Tensor | None = None
    video_given: Tensor | None = None
    audio: Tensor | None = None
    audio_given: Tensor | None = None
    video_strength: float = 1.0
    audio_strength: float = 1.0
    given_noise: float = 0.0

    def __post_init__(self) -> None:
        for name, axes in (("video", 4), ("audio", 2)):
            clean, given = getattr(self, name), getattr(self, f"{name}_given")
            if (clean is None) != (given is None):
                raise InputError(f"given {name} needs both its latents and its mask")
            if given is None:
                continue
            sites = (clean.shape[0], *clean.shape[2:])
            fits = given.ndim == axes and all(a in (1, b) for a, b in zip(given.shape, sites, strict=True))
            if given.dtype != torch.bool or not fits:
                raise InputError(f"the mask of the given {name} is bool, broadcastable to {sites}: not "
                                 f"{given.dtype} {tuple(given.shape)}")  # fmt: skip

    def start(self, x: State) -> State:
        """(video, audio) with the given latents in place of what is there; call it on the initial noise."""
        masks, strengths = (self.video_given, self.audio_given), (self.video_strength, self.audio_strength)
        started = []
        for noise, clean, given, strength in zip(x, (self.video, self.audio), masks, strengths, strict=True):
            if noise is None or clean is None or given is None:
                started.append(noise)
                continue
            clean = clean.to(noise)
            wanted = noise if strength == 1 else torch.lerp(clean, noise, strength)  # flow.interpolate
            started.append(torch.where(given.unsqueeze(1), clean, wanted))
        return tuple(started)

    def kept(self, x: State) -> State:
        """(video, audio) with the given latents in place of what became of them."""
        streams = zip(x, (self.video, self.audio), (self.video_given, self.audio_given), strict=True)
        return tuple(
            x if x is None or clean is None or given is None else torch.where(given.unsqueeze(1), clean.to(x), x)
            for x, clean, given in streams
        )

    def shown(self, x: State, sigma: tuple[Tensor, ...], noise: State) -> State:
        """(video, audio) as the network is to see them: what is given under so much of ``noise``."""
        if not self.given_noise:
            return x
        streams = zip(x, (self.video, self.audio), (self.video_given, self.audio_given), noise, sigma, strict=True)
        shown = []
        for stream, clean, given, drawn, level in streams:
            if stream is not None and clean is not None and given is not None:
                assert drawn is not None, "what is given cannot be shown under noise that was not drawn"
                level = level.to(stream).clamp(max=self.given_noise)
                noisy = interpolate(clean.to(stream), drawn.to(stream), level)
                stream = torch.where(given.unsqueeze(1), noisy, stream)
            shown.append(stream)
        return tuple(shown)

    def still(self, velocity: State) -> State:
        """(video, audio) velocities with 0 where the latents are given, so that no solver moves them."""
        streams = zip(velocity, (self.video_given, self.audio_given), strict=True)
        return tuple(
            stream if stream is None or given is None else stream.masked_fill(given.unsqueeze(1), 0)
            for stream, given in streams
        )

    def video_sigma(self, sigma: Tensor) -> Tensor:
        """Noise levels, broadcastable to (B, t, h, w), for a scalar ``sigma``: at most ``given_noise`` where given."""
        return _levels(sigma, self.video_given, 4, self.given_noise)

    def audio_sigma(self, sigma: Tensor) -> Tensor:
        """Noise levels, broadcastable to (B, L), for a scalar ``sigma``: at most ``given_noise`` where given."""
        return _levels(sigma, self.audio_given, 2, self.given_noise)


def given_frames(latents: Tensor, indices: Sequence[int], num_latents: int) -> tuple[Tensor, Tensor]:
    """Put given latents at their places in time: clean values and mask, for a ``Conditioning``.

    Args:
        latents: (B, C, n, h, w) of video or (B, C_a, n) of audio.
        indices: n places in time, each once; a negative place counts from the end.
        num_latents: length in time of the whole clip.

    Returns:
        Values of that length (0 where nothing is given), and the mask (1, num_latents, 1, 1) or (1, num_latents).

    Raises:
        InputError: a place outside the clip or twice, or not as many places as latents.
    """
    places = [index + num_latents if index < 0 else index for index in indices]
    if len(places) != latents.shape[2] or len(set(places)) != len(places):
        raise InputError(f"{latents.shape[2]} given latents need as many different places, not {list(indices)}")
    if any(not 0 <= place < num_latents for place in places):
        raise InputError(f"places {list(indices)} do not lie in a clip of {num_latents} latent frames")
    clean = latents.new_zeros(*latents.shape[:2], num_latents, *latents.shape[3:])
    clean[:, :, places] = latents
    given = torch.zeros(num_latents, dtype=torch.bool, device=latents.device)
    given[places] = True
    return clean, given.view(1, num_latents, *(1 for _ in latents.shape[3:]))


@torch.no_grad()
def encode_given(given: "Given", spec: "ClipSpec", vae: "SpacetimeVAE", codec: "AudioCodec") -> Conditioning:
    """The latents, for a batch of 1 that broadcasts to any, that a user's material gives of the clip ``spec``.

    A video is encoded from its own beginning, so that each latent frame knows the frames before it, as in training.
    A keyframe is encoded as a picture that is held.

    Raises:
        InputError: material that does not fit the clip.
    """
    given.check(spec)
    group = spec.compression.frames
    parts, places = [], []
    mask = given.video_mask(spec)
    is_edit = given.strength < 1  # which starts from all that is there
    if given.video is not None and (is_edit or mask.any()):
        video_places = np.flatnonzero(mask.any(axis=(1, 2)) | is_edit)
        offset = given.start_frame // group  # the latent frame whose last frame is encoded alone, as the first
        indices = np.arange(offset * group, video_places[-1] * group + 1) - given.start_frame
        frames = given.video[indices.clip(0, len(given.video) - 1)]  # held before its beginning and after its end
        parts.append(vae.to_latents(_as_video(frames[None], vae))[:, :, video_places - offset])
        places += video_places.tolist()
    for frame, picture in given.keyframes.items():
        place = spec.latent_frame(frame)
        parts.append(hold(_as_video(picture[None, None], vae), spec, vae, place))
        places.append(place)
        mask[place] = True
    video = video_given = None
    if parts:
        video, _ = given_frames(torch.cat(parts, dim=2), places, spec.latent_frames)
        video_given = torch.from_numpy(mask)[None].to(video.device)

    audio = audio_given = None
    known = given.audio_mask(spec)
    audio_places = np.flatnonzero(known | (is_edit and given.waveform is not None)).tolist()
    if audio_places:
        latents = codec.to_latents(
            torch.from_numpy(given.sound(spec)).to(execution_device(codec), codec.dtype)[None, None]
        )
        audio, _ = given_frames(latents[:, :, audio_places], audio_places, spec.audio_latents)
        audio_given = torch.from_numpy(known)[None].to(audio.device)
    strengths = (1.0 if clean is None else given.strength for clean in (video, audio))
    return Conditioning(video, video_given, audio, audio_given, *strengths)


def hold(picture: Tensor, spec: "ClipSpec", vae: "SpacetimeVAE", place: int) -> Tensor:
    """Normalised latents (B, C, 1, h, w) of a picture (B, 3, 1, H, W) in [-1, 1] that is held for a latent frame."""
    frames = picture if place == 0 else picture.expand(-1, -1, 1 + spec.compression.frames, -1, -1)
    return vae.to_latents(frames.to(vae.dtype))[:, :, -1:]


def _as_video(frames: np.ndarray, vae: "SpacetimeVAE") -> Tensor:
    """Frames (B, T, H, W, 3) uint8 to (B, 3, T, H, W) in [-1, 1]."""
    video = torch.from_numpy(np.array(frames)).to(execution_device(vae)).permute(0, 4, 1, 2, 3)
    return video.to(vae.dtype) / 127.5 - 1


def guided_velocity(
    model: nn.Module,
    text: Text,
    negative_text: Text | None = None,
    *,
    video_guidance: float = 1.0,
    audio_guidance: float = 1.0,
    modality_scale: float = 1.0,
    video_times_s: Tensor | None = None,
    audio_times_s: Tensor | None = None,
    conditioning: Conditioning | None = None,
    noise: State = (None, None),
) -> VelocityFn:
    """The velocity function of a ``JointDiT`` under a prompt, with a guidance scale for each modality.

    Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, equation 6, written so that a scale of 1 is no
    guidance): v = v_negative + scale·(v_text − v_negative), both from one call with twice the batch. With both scales
    at 1 the network is called once, on the text alone.

    With another ``modality_scale`` than 1 each stream is also led away from what it would be beside one that says
    nothing, so that picture and sound fit together better (as in LTX-2, HaCohen et al. 2026, arXiv 2601.03233, which
    cuts the attention between them instead): v gains (modality_scale − 1)·(v_text − v_alone), where v_alone is answered
    beside pure noise. It costs two more calls.

    The function takes (video, audio) and a noise level for each, and returns their velocities; those of latents that
    ``conditioning`` gives are 0. Start the solver from ``conditioning.start(noise)``; the same ``noise`` is needed here
    for modality guidance, and where what is given is shown under some.

    Raises:
        InputError: guidance without ``negative_text``.
    """
    given = conditioning or Conditioning()
    guided = not (video_guidance == audio_guidance == 1)
    if guided and negative_text is None:
        raise InputError("guidance needs the features of a negative prompt; the empty prompt will do")
    both_texts = text if negative_text is None else stack_texts(text, negative_text)

    def call(x: State, levels: State, words: Text) -> State:
        features, mask = words
        (video, audio), (video_sigma, audio_sigma) = x, levels
        return model(
            video,
            audio,
            features,
            text_mask=mask,
            video_sigma=video_sigma,
            audio_sigma=audio_sigma,
            video_times_s=video_times_s,
            audio_times_s=audio_times_s,
        )

    def beside_noise(x: State, levels: State) -> State:
        """What each stream is answered when the other is pure noise."""
        pure, most = _each(lambda stream, drawn: drawn.to(stream), x, noise), _each(torch.ones_like, levels)
        video, _ = call((x[0], pure[1]), (levels[0], most[1]), text)
        _, audio = call((pure[0], x[1]), (most[0], levels[1]), text)
        return video, audio

    def velocity(x: State, sigma: tuple[Tensor, ...]) -> State:
        x = given.shown(x, sigma, noise)
        levels = (
            None if x[0] is None else given.video_sigma(sigma[0]),
            None if x[1] is None else given.audio_sigma(sigma[1]),
        )
        if guided:
            # Levels of one row serve a batch of any size.
            both_levels = _each(lambda rows: rows if len(rows) == 1 else torch.cat((rows, rows)), levels)
            answer = call(_each(lambda stream: torch.cat((stream, stream)), x), both_levels, both_texts)
            under_text = _each(lambda both: both.chunk(2)[0], answer)
            answer = _each(guide, answer, (video_guidance, audio_guidance))
        else:
            answer = under_text = call(x, levels, text)
        if modality_scale != 1 and all(stream is not None for stream in x):
            if any(drawn is None for drawn in noise):
                raise InputError("modality guidance needs the noise that both streams start from")
            beyond = modality_scale - 1
            alone = beside_noise(x, levels)
            answer = _each(lambda v, joint, own: v + beyond * (joint - own), answer, under_text, alone)
        return given.still(answer)

    return velocity


def _each(function: Callable[..., Tensor], *streams: Sequence[Any]) -> State:
    """``function`` of each stream that there is, with what belongs to it."""
    return tuple(None if parts[0] is None else function(*parts) for parts in zip(*streams, strict=True))


def stack_texts(first: Text, second: Text) -> Text:
    """Two batches of prompts as one, the shorter padded."""
    length = max(first[0].shape[1], second[0].shape[1])
    features = [F.pad(text[0], (0, 0, 0, length - text[0].shape[1])) for text in (first, second)]
    masks = [F.pad(text[1], (0, length - text[1].shape[1])) for text in (first, second)]
    return torch.cat(features), torch.cat(masks)


def guide(both: Tensor, scale: float) -> Tensor:
    """Velocities (2·B, …), under the prompt and then under the negative one, to the guided ones (B, …)."""
    conditional, negative = both.chunk(2)
    return torch.lerp(negative, conditional, scale)


def _levels(sigma: Tensor, given: Tensor | None, axes: int, most: float) -> Tensor:
    """``sigma`` with one axis a site, at most ``most`` where given."""
    level = sigma.view((1,) * axes)
    return level if given is None else torch.where(given, level.clamp(max=most), level)
