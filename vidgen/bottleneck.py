"""What stands between an encoder and a decoder: features in, latents and an auxiliary loss out.

A bottleneck is a module with ``feature_channels`` (how many channels the encoder must hand it for the latent channels
asked for) and a ``forward(features)`` that returns a posterior: an object with ``mean``, ``mode()``,
``sample(generator)`` and ``loss()``, the bottleneck's own term of the training loss, which weighs it by the name that
``term`` gives. Here the posterior is Gaussian. The quantizers (``vidgen.quantizers``) fit the same shape: their
``mode()`` and ``sample()`` are the quantized latents with a straight-through gradient, and their posterior has
``tokens``, from which ``from_tokens`` of the bottleneck makes the latents again.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .errors import InputError
from .noise import Generator, normal
from .quantizers import FSQ, LFQ, RVQ, Quantizer

LOGVAR_RANGE = (-30.0, 20.0)
NO_TOKENS = "a model with a KL bottleneck has no tokens: train one with bottleneck=lfq, fsq or rvq"


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents; ``mean`` and ``logvar`` have the shape of the latents, (B, C, …)."""

    mean: Tensor
    logvar: Tensor
    term: ClassVar[str] = "kl"

    @property
    def tokens(self) -> Tensor:
        """
        Raises:
            InputError: always, as only a quantizer has tokens.
        """
        raise InputError(NO_TOKENS)

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

    def loss(self) -> Tensor:
        return self.kl()


class KLBottleneck(nn.Module):
    """Splits encoder features (B, 2·C, …) into the mean and log-variance of C latent channels."""

    def __init__(self, latent_channels: int):
        super().__init__()
        self.latent_channels = latent_channels
        self.feature_channels = 2 * latent_channels

    def forward(self, features: Tensor) -> Posterior:
        mean, logvar = features.chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(*LOGVAR_RANGE))

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """
        Raises:
            InputError: always, as only a quantizer has tokens.
        """
        raise InputError(NO_TOKENS)


def make_bottleneck(
    name: str, latent_channels: int, codebooks: int = 1, codebook_size: int = 1024, levels: list[int] | None = None
) -> KLBottleneck | Quantizer:
    """The bottleneck that a model's config names: ``kl``, ``lfq``, ``fsq`` or ``rvq``.

    Args:
        codebooks: of a quantizer, tokens at each latent position. LFQ and FSQ share the latent channels out among
            them, RVQ's code the whole vector in turn.
        codebook_size: codes in each of RVQ's codebooks.
        levels: see ``FSQ``.

    Raises:
        InputError: any other name, or numbers that do not fit together.
    """
    if name == "kl":
        return KLBottleneck(latent_channels)
    if name == "lfq":
        return LFQ(latent_channels, codebooks)
    if name == "fsq":
        return FSQ(latent_channels, codebooks, levels)
    if name == "rvq":
        return RVQ(latent_channels, codebooks, codebook_size)
    raise InputError(f"bottleneck {name!r} is not known: there are kl, lfq, fsq and rvq")
