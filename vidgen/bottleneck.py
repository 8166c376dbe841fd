"""What stands between an encoder and a decoder: features in, latents and an auxiliary loss out.

A bottleneck is a module with ``feature_channels`` (how many channels the encoder must hand it for the latent channels
asked for) and a ``forward(features)`` that returns a posterior: an object with ``mean``, ``mode()``,
``sample(generator)`` and ``kl()``. Here the posterior is Gaussian. A quantizer (LFQ, FSQ, RVQ) fits the same shape: its
``mode()`` and ``sample()`` are the quantized latents with a straight-through gradient, its ``kl()`` the rate or
commitment term that the trainer adds to the loss.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .errors import InputError
from .noise import Generator, normal

LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents; ``mean`` and ``logvar`` have the shape of the latents, (B, C, …)."""

    mean: Tensor
    logvar: Tensor

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: Generator = None) -> Tensor:
        """One draw by the reparameterization trick (Kingma & Welling 2013, arXiv 1312.6114, section 2.4).

        With a list of generators or seeds, each sample of the batch is drawn from its own.
        """
        noise = normal(self.mean.shape, generator, self.mean.device, self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """Divergence from the standard normal, in nats per latent element, a scalar (arXiv 1312.6114, appendix B)."""
        mean, logvar = self.mean.float(), self.logvar.float()
        return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


class KLBottleneck(nn.Module):
    """Splits encoder features (B, 2·C, …) into the mean and log-variance of C latent channels."""

    def __init__(self, latent_channels: int):
        super().__init__()
        self.latent_channels = latent_channels
        self.feature_channels = 2 * latent_channels

    def forward(self, features: Tensor) -> Posterior:
        mean, logvar = features.chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(*LOGVAR_RANGE))


def make_bottleneck(name: str, latent_channels: int) -> KLBottleneck:
    """The bottleneck that a model's config names; only ``"kl"`` exists so far.

    Raises:
        InputError: any other name.
    """
    if name != "kl":
        raise InputError(f"bottleneck {name!r} is not known: the only one is 'kl'")
    return KLBottleneck(latent_channels)
