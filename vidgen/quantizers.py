"""Quantizers: encoder features in, discrete latents and their integer tokens out.

Each latent position has one token in each of ``codebooks`` codebooks, of ``vocabulary`` codes each: tokens are int64
(B, codebooks, …) with values from 0. LFQ and FSQ have no codebook to learn: they round every channel for itself and
share the channels out among the codebooks. RVQ learns codebooks that code the same vector in turn, each what those
before it left over.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import InputError
from .noise import Generator, normal

MAX_VOCABULARY = 2**31
LFQ_COMMITMENT = 0.25
JOINT_BITS = 12
"""Bits of a token whose joint use is measured; longer tokens are measured in pieces of this many."""


@dataclass(frozen=True)
class Codes:
    """Quantized latents (B, C, …), whose gradient passes to the features, their tokens (B, codebooks, …) and the
    quantizer's own loss, a scalar, not negative."""

    latents: Tensor
    tokens: Tensor
    own_loss: Tensor
    term: ClassVar[str] = "quantizer"

    @property
    def mean(self) -> Tensor:
        return self.latents

    def mode(self) -> Tensor:
        return self.latents

    def sample(self, generator: Generator = None) -> Tensor:
        """What the decoder sees in training; here nothing is random."""
        return self.latents

    def loss(self) -> Tensor:
        return self.own_loss


@dataclass(frozen=True)
class ResidualCodes(Codes):
    """Of ``RVQ``: the latents are the sum of ``stages`` (codebooks, B, C, …), from which no gradient passes."""

    stages: Tensor

    def sample(self, generator: Generator = None) -> Tensor:
        """Quantizer dropout: half of the samples keep their first 1, 2, … codebooks only, so that any number of them
        decodes (Zeghidour et al. 2021, arXiv 2107.03312, section III-C; Kumar et al. 2023, arXiv 2306.06546,
        section 3.3)."""
        count, batch = self.stages.shape[:2]
        uniform = torch.special.ndtr(normal((batch, 2), generator, self.stages.device))
        kept = torch.where(uniform[:, 0] < 0.5, (uniform[:, 1] * count).long().clamp(max=count - 1) + 1, count)
        dropped = torch.arange(count, device=kept.device)[:, None] >= kept
        return self.latents - (self.stages * _as_columns(dropped, self.stages.ndim)).sum(0).to(self.latents.dtype)


class Quantizer(nn.Module):
    """Features (B, ``feature_channels``, …) to ``Codes``, computed in float32."""

    def __init__(self, latent_channels: int, codebooks: int, vocabulary: int):
        super().__init__()
        if not 2 <= vocabulary < MAX_VOCABULARY:
            raise InputError(
                f"{vocabulary} codes in a codebook: a token needs 2 to 2^31 of them, so give more codebooks, or fewer "
                "latent channels"
            )
        self.latent_channels = self.feature_channels = latent_channels
        self.codebooks, self.vocabulary = codebooks, vocabulary

    def forward(self, features: Tensor) -> Codes:
        with torch.autocast(features.device.type, enabled=False):
            codes = self.quantize(features.float())
        return replace(codes, latents=codes.latents.to(features.dtype))

    def quantize(self, features: Tensor) -> Codes:
        raise NotImplementedError

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """Tokens (B, codebooks, …) to the latents (B, latent_channels, …), float32, that they stand for.

        Raises:
            InputError: tokens of another shape, kind or range.
        """
        raise NotImplementedError

    def _check_tokens(self, tokens: Tensor, fewest: int) -> None:
        if tokens.ndim < 2 or not fewest <= tokens.shape[1] <= self.codebooks or tokens.is_floating_point():
            raise InputError(
                f"tokens are integers (batch, {self.codebooks} codebooks, …), not {tokens.dtype} {tuple(tokens.shape)}"
            )
        if tokens.numel() and not (tokens.min() >= 0 and tokens.max() < self.vocabulary):
            raise InputError(
                f"tokens are 0 to {self.vocabulary - 1}, not {tokens.min().item()} to {tokens.max().item()}"
            )


class DigitQuantizer(Quantizer):
    """A quantizer that rounds each channel to one of its ``levels``; a token's digits are those of a codebook's
    channels, the first channel's the lowest."""

    def __init__(self, latent_channels: int, codebooks: int, levels: list[int]):
        super().__init__(latent_channels, codebooks, math.prod(levels))
        self.levels = tuple(levels)

    def pack(self, digits: Tensor) -> Tensor:
        """Digits (B, C, …), of channel c below ``levels[c mod C/codebooks]``, to tokens (B, codebooks, …)."""
        digits = digits.long().unflatten(1, (self.codebooks, len(self.levels)))
        tokens = torch.zeros_like(digits[:, :, 0])
        for channel in reversed(range(len(self.levels))):
            tokens = tokens * self.levels[channel] + digits[:, :, channel]
        return tokens

    def unpack(self, tokens: Tensor) -> Tensor:
        """The reverse of ``pack``."""
        digits = []
        for levels in self.levels:
            digits.append(tokens % levels)
            tokens = tokens // levels
        return torch.stack(digits, dim=2).flatten(1, 2)


class LFQ(DigitQuantizer):
    """Lookup-free quantization: the sign of each channel is a bit (Yu et al. 2023, MAGVIT-v2, arXiv 2310.05737,
    section 3.1). Latents are -1 or 1.

    Its own loss has that section's three terms, per channel and in nats: the entropy of each position's code, which is
    to be small; that of the codes' use over the batch, which is to be large, as what it falls short of log 2; and the
    commitment of the features to their codes. A feature z is a soft bit with probability sigmoid(4z) of 1, the softmax
    over both codes of minus the squared distance.
    """

    def __init__(self, latent_channels: int, codebooks: int):
        super().__init__(latent_channels, codebooks, [2] * _channels_each(latent_channels, codebooks))

    def quantize(self, features: Tensor) -> Codes:
        bits = features > 0
        signs = torch.where(bits, 1.0, -1.0)
        position, use = lfq_entropies(4 * features, len(self.levels))
        own_loss = position + (math.log(2) - use) + LFQ_COMMITMENT * F.mse_loss(features, signs)
        return Codes(_straight_through(features, signs), self.pack(bits), own_loss)

    def from_tokens(self, tokens: Tensor) -> Tensor:
        self._check_tokens(tokens, self.codebooks)
        return 2.0 * self.unpack(tokens) - 1


def lfq_entropies(logits: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Logits (B, C, …) of soft bits, of which every ``bits`` neighbours make a code, to two scalars, nats per bit.

    Returns the mean entropy of a position's code, and the entropy of a code drawn at a random position: its use. Bits
    are independent at each position, but not over positions: use is that of whole codes, in pieces of ``JOINT_BITS``.
    """
    position = (F.softplus(logits) - logits * torch.sigmoid(logits)).mean()
    chances = torch.sigmoid(logits).movedim(1, -1).flatten(0, -2)
    use = logits.new_zeros(())
    for code in chances.split(bits, dim=1):
        for piece in code.split(JOINT_BITS, dim=1):
            # The joint chances of two halves, averaged over positions, are one matrix product: no table for each.
            halves = [_code_chances(half) for half in piece.tensor_split(2, dim=1)]
            average = halves[0].T @ halves[1] / len(piece)
            use = use - torch.xlogy(average, average.clamp_min(1e-20)).sum()
    return position, use / chances.shape[1]


def _code_chances(chances: Tensor) -> Tensor:
    """Chances (N, d) that independent bits are 1, to those (N, 2^d) of every code; the first bit is the lowest."""
    codes = chances.new_ones(len(chances), 1)
    for bit in chances.unbind(1):
        codes = torch.cat([codes * (1 - bit[:, None]), codes * bit[:, None]], dim=1)
    return codes


class FSQ(DigitQuantizer):
    """Finite scalar quantization: each channel is squashed and rounded to a few levels (Mentzer et al. 2023,
    arXiv 2309.15505, section 3.1 and appendix A.1). Latents are in [-1, 1]; there is no loss of its own.

    Args:
        levels: of each channel of a codebook, at least 3; 5 or more are advised there. By default 5 for each.
    """

    def __init__(self, latent_channels: int, codebooks: int, levels: list[int] | None = None):
        each = _channels_each(latent_channels, codebooks)
        levels = [5] * each if levels is None else list(levels)
        if len(levels) != each or min(levels) < 3 or max(levels) > 1000:
            raise InputError(
                f"levels {levels} do not fit: give {each} numbers from 3 to 1000, one for each channel of a codebook"
            )
        super().__init__(latent_channels, codebooks, levels)

    def quantize(self, features: Tensor) -> Codes:
        levels = self._column(features)
        # An even number of levels has none at the middle: half a step aside, and zero still falls on a level.
        half = (levels - 1) * 1.001 / 2
        offset = 0.5 * (levels % 2 == 0)
        bounded = torch.tanh(features + torch.atanh(offset / half)) * half - offset
        steps = torch.round(bounded)
        middle = levels // 2
        latents = _straight_through(bounded, steps) / middle
        return Codes(latents, self.pack(steps + middle), features.new_zeros(()))

    def from_tokens(self, tokens: Tensor) -> Tensor:
        self._check_tokens(tokens, self.codebooks)
        digits = self.unpack(tokens).float()
        middle = self._column(digits) // 2
        return (digits - middle) / middle

    def _column(self, like: Tensor) -> Tensor:
        """``levels`` of each of the latent channels, (C, 1, …)."""
        levels = torch.tensor(self.levels * self.codebooks, dtype=torch.float32, device=like.device)
        return _as_columns(levels, like.ndim - 1)


class RVQ(Quantizer):
    """Residual vector quantization: each codebook codes what those before it left over (Zeghidour et al. 2021,
    SoundStream, arXiv 2107.03312, section III-C; Défossez et al. 2022, EnCodec, arXiv 2210.13438, section 3.2).

    Codebooks follow the mean of what they code (van den Oord et al. 2017, arXiv 1711.00937, appendix A.1), in training
    mode only; the gradient passes straight through, and the own loss commits the features to each codebook. A code
    that is hardly used moves to a vector that is coded badly; so codebooks also begin. Several processes
    keep the same codebooks.

    Args:
        codebook_size: codes in each codebook.
        decay: of the running means, per step.
        dead_share: a code used less than this share of its equal part is dead.
    """

    vectors: Tensor
    uses: Tensor

    def __init__(
        self, latent_channels: int, codebooks: int, codebook_size: int, decay: float = 0.99, dead_share: float = 0.1
    ):
        _check_codebooks(codebooks)
        super().__init__(latent_channels, codebooks, codebook_size)
        self.decay, self.dead_share = decay, dead_share
        self.register_buffer("vectors", torch.zeros(codebooks, codebook_size, latent_channels))
        self.register_buffer("uses", torch.zeros(codebooks, codebook_size))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves and casts as any module, except that uses stay in float32: half precision ends at 65504 of them."""
        uses = self.uses
        super()._apply(fn, recurse)
        self.uses = uses.to(self.vectors.device)
        return self

    def quantize(self, features: Tensor) -> Codes:
        columns = features.movedim(1, -1)
        target = columns.flatten(0, -2).float()  # under autocast, half precision would count no further than 256
        residual, tokens, stages, misses = target, [], [], []
        for stage in range(self.codebooks):
            if self.training:
                self._revive(stage, residual.detach())
            chosen = self._nearest(stage, residual.detach())
            vectors = self.vectors[stage].float()[chosen]
            if self.training:
                self._follow(stage, residual.detach(), chosen)
            residual = residual - vectors
            tokens.append(chosen)
            stages.append(vectors)
            misses.append(residual.square().mean())

        def shaped(rows: Tensor) -> Tensor:  # (N, C) to (B, C, …)
            return rows.view(columns.shape).movedim(-1, 1)

        summed = torch.stack(stages)
        return ResidualCodes(
            _straight_through(features, shaped(summed.sum(0))),
            torch.stack([chosen.view(columns.shape[:-1]) for chosen in tokens], dim=1),
            torch.stack(misses).mean(),
            torch.stack([shaped(rows) for rows in stages]),
        )

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """As of ``Quantizer``; tokens of the first codebooks alone will do, for a lower bit rate."""
        self._check_tokens(tokens, 1)
        chosen = [self.vectors[stage].float()[tokens[:, stage].long()] for stage in range(tokens.shape[1])]
        return torch.stack(chosen).sum(0).movedim(-1, 1)

    def _nearest(self, stage: int, rows: Tensor) -> Tensor:
        vectors = self.vectors[stage].float()
        return (vectors.square().sum(1) - 2 * rows @ vectors.T).argmin(1)

    @torch.no_grad()
    def _revive(self, stage: int, rows: Tensor) -> None:
        """Put some of the dead codes where rows (N, C) are, drawn in proportion to their squared errors as k-means++
        does (Arthur & Vassilvitskii 2007), but evenly instead of at random, so that every run does the same. Only some
        each step: the errors then tell where the rest is wanted."""
        equal_part = len(rows) * _processes() / self.vocabulary
        dead = (self.uses[stage] < self.dead_share * equal_part).nonzero()[:, 0]
        if not len(dead):
            return
        dead = dead[: max(1, min(len(dead) // 4, len(rows) // 8))]
        errors = (rows - self.vectors[stage].float()[self._nearest(stage, rows)]).square().sum(1)
        marks = (torch.arange(len(dead), device=rows.device) + 0.5) / len(dead) * errors.sum()
        drawn = rows[torch.searchsorted(errors.cumsum(0), marks).clamp(max=len(rows) - 1)].contiguous()
        if _processes() > 1:
            dist.broadcast(drawn, src=0)
        self.vectors[stage, dead] = drawn.to(self.vectors.dtype)
        self.uses[stage, dead] = equal_part

    @torch.no_grad()
    def _follow(self, stage: int, rows: Tensor, chosen: Tensor) -> None:
        """Move each code towards the mean of the rows (N, C) that chose it."""
        counts = torch.bincount(chosen, minlength=self.vocabulary).to(rows.dtype)
        sums = torch.zeros_like(self.vectors[stage], dtype=rows.dtype).index_add_(0, chosen, rows)
        if _processes() > 1:
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        before = self.decay * self.uses[stage]
        after = before + (1 - self.decay) * counts
        moved = (before[:, None] * self.vectors[stage] + (1 - self.decay) * sums) / after[:, None].clamp_min(1e-12)
        self.vectors[stage] = torch.where(counts[:, None] > 0, moved, self.vectors[stage])
        self.uses[stage] = after


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _straight_through(continuous: Tensor, quantized: Tensor) -> Tensor:
    """The quantized value with the gradient of the continuous one (Bengio et al. 2013, arXiv 1308.3432, section 4)."""
    return quantized.detach() + (continuous - continuous.detach())


def _as_columns(values: Tensor, ndim: int) -> Tensor:
    return values.view(*values.shape, *[1] * (ndim - values.ndim))


def _check_codebooks(codebooks: int) -> None:
    if codebooks < 1:
        raise InputError(f"{codebooks} codebooks: give at least 1")


def _channels_each(latent_channels: int, codebooks: int) -> int:
    _check_codebooks(codebooks)
    if latent_channels % codebooks:
        raise InputError(f"{latent_channels} latent channels cannot be shared out among {codebooks} codebooks")
    return latent_channels // codebooks
