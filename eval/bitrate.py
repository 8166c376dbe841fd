"""What an autoencoder's latents cost in bits, and how well a quantizer's codebooks are used.

Tokens have a bit rate; continuous latents have none until they are rounded. ``RoundedLatents`` rounds them as coarsely
as a wanted rate asks, so that an autoencoder with a KL bottleneck can be compared with one with a quantizer.
"""

from typing import Any

import torch
from torch import Tensor

from vidgen.errors import InputError

BISECTIONS = 30
FINEST_STEP, COARSEST_STEP = 1e-3, 1e3


def token_figures(tokens: list[Tensor], vocabulary: int, duration_s: float) -> dict[str, float]:
    """Of the tokens (1, codebooks, …) of clips that last ``duration_s`` altogether, by name:

    ``codes_used_percent``: which share of a codebook occurs, and ``perplexity``: how many equally frequent codes would
    have the same entropy, both as means over the codebooks. No more codes can occur than there are positions:
    ``tokens_per_codebook``.
    ``kbit_per_s``: at log2(vocabulary) bits a token. ``entropy_kbit_per_s``: with a code for each codebook that knows
    how often each token occurs in these clips.
    """
    by_codebook = torch.cat([clip[0].flatten(1) for clip in tokens], dim=1)
    counts = [torch.unique(row, return_counts=True)[1] for row in by_codebook]
    entropies = [entropy_nats(count) for count in counts]
    positions = by_codebook.shape[1]
    nats_per_kbit = 1000 * float(torch.log(torch.tensor(2.0)))
    return {
        "codebooks": len(counts),
        "codes_per_codebook": vocabulary,
        "tokens_per_codebook": positions,
        "codes_used_percent": 100 * sum(len(count) for count in counts) / len(counts) / vocabulary,
        "perplexity": float(torch.stack(entropies).exp().mean()),
        "kbit_per_s": len(counts) * positions * float(torch.log2(torch.tensor(float(vocabulary)))) / 1000 / duration_s,
        "entropy_kbit_per_s": positions * float(torch.stack(entropies).sum()) / nats_per_kbit / duration_s,
    }


def entropy_nats(counts: Tensor) -> Tensor:
    """Of the distribution with these relative frequencies."""
    shares = counts.double() / counts.sum()
    return -torch.xlogy(shares, shares).sum()


class RoundedLatents:
    """An autoencoder whose normalised latents are rounded to multiples of ``step``."""

    def __init__(self, network: Any, step: float):
        self.network, self.step, self.config = network, step, network.config

    def to_latents(self, signal: Tensor) -> Tensor:
        return torch.round(self.network.to_latents(signal) / self.step) * self.step

    def from_latents(self, latents: Tensor, *lengths: int) -> Tensor:
        return self.network.from_latents(latents, *lengths)


def rounded_kbit_per_s(latents: list[Tensor], step: float, duration_s: float) -> float:
    """What the latents (1, C, …) of clips cost, rounded to multiples of ``step``, with a code for each channel that
    knows how often each value occurs in these clips."""
    channels = torch.cat([clip[0].flatten(1) for clip in latents], dim=1)
    symbols = torch.round(channels / step)
    nats = sum(entropy_nats(torch.unique(row, return_counts=True)[1]) for row in symbols) * channels.shape[1]
    return float(nats) / float(torch.log(torch.tensor(2.0))) / 1000 / duration_s


def step_for_rate(latents: list[Tensor], kbit_per_s: float, duration_s: float) -> float:
    """The step at which the latents of these clips cost ``kbit_per_s`` (``rounded_kbit_per_s``), by bisection.

    Raises:
        InputError: they cost less than that at the finest step, or more at the coarsest.
    """
    low, high = FINEST_STEP, COARSEST_STEP
    reachable = [rounded_kbit_per_s(latents, step, duration_s) for step in (high, low)]
    if not reachable[0] <= kbit_per_s <= reachable[1]:
        raise InputError(
            f"{kbit_per_s:g} kbit/s cannot be reached: latents of these clips cost {reachable[0]:.3g} to "
            f"{reachable[1]:.3g} kbit/s (few clips have few different values: give more --clips)"
        )
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if rounded_kbit_per_s(latents, middle, duration_s) > kbit_per_s else (low, middle)
    return high
