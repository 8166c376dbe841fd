"""Clips that go round: after the last frame comes the first, as if there were no end.

The clip is made one latent frame longer, with the picture of its beginning given there too, and that end is cut off. So
it is the task of a first and a last frame, a mask over the same transformer.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .clip import ClipSpec
from .conditioning import Conditioning, given_frames, hold
from .errors import InputError

if TYPE_CHECKING:
    from .vae3d.autoencoder import SpacetimeVAE


def looped_spec(spec: ClipSpec) -> ClipSpec:
    """``spec`` with whole latent frames and one more.

    Raises:
        InputError: a clip too short to leave its first frame and come back to it.
    """
    if spec.latent_frames < 3:
        raise InputError(f"a clip of {spec.num_frames} frames is too short for a loop")
    return replace(spec, num_frames=spec.padded_frames + spec.compression.frames)


@torch.no_grad()
def close_loop(
    conditioning: Conditioning, spec: ClipSpec, vae: "SpacetimeVAE", make_first: Callable[[], Tensor]
) -> Conditioning:
    """Give the picture of the first latent frame at the last one as well.

    Args:
        conditioning: of the clip ``spec``, which is ``looped_spec`` of the clip that is wanted.
        make_first: makes the normalised latents (B, C, 1, h, w) of the first frame; called if that is not given.
    """
    given, mask = conditioning.video, conditioning.video_given
    first = make_first() if given is None or mask is None or not mask[:, 0].all() else given[:, :, :1]
    picture = vae.decode(vae.denormalise(first.to(vae.dtype)))
    last = hold(picture, spec, vae, spec.latent_frames - 1)
    video, ends = given_frames(torch.cat((first.to(last), last), dim=2), (0, -1), spec.latent_frames)
    if given is not None and mask is not None:
        video = torch.where(ends[:, None], video, given)
        ends = ends | mask
    return replace(conditioning, video=video, video_given=ends)
