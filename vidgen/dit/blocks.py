"""The transformer's parts: attention, feed-forward, the joint block and the text refiner's block."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from .rope import apply_rotary

NORM_EPS = 1e-6


class AttentionProcessor:
    """Scaled dot-product attention over (B, N, heads, head_dim); ``mask`` (B, 1, 1, N) is true where to look.

    The one place where attention is computed, by the kernel that ``model.set_attention_backend`` chose: torch's own,
    flash-attention, flex, sage, xformers, … (see diffusers' ``attention_dispatch``).
    """

    _attention_backend: Any = None
    _parallel_config: Any = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        kind = value.dtype
        if value.device.type == "cpu":
            # The CPU kernel is faster in float32 than in bfloat16, which it has to convert (measured, forward +
            # backward).
            query, key, value = query.float(), key.float(), value.float()
        return dispatch_attention_fn(
            query, key, value, attn_mask=mask, backend=self._attention_backend, parallel_config=self._parallel_config
        ).to(kind)


class SelfAttention(nn.Module, AttentionModuleMixin):
    """Self-attention with normalised queries and keys (Dehghani et al. 2023, arXiv 2302.05442, section 2), without
    learned gains: the attention logits stay within ±√head_dim."""

    processor: AttentionProcessor
    _default_processor_cls = AttentionProcessor
    _available_processors = (AttentionProcessor,)
    _supports_qkv_fusion = False  # there is one projection already

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.processor = AttentionProcessor()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, width) to the same; ``cos`` and ``sin`` are (N, head_dim / 2), or (B, N, head_dim / 2)."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, self.head_dim)
        query_key, value = qkv[:, :, :2], qkv[:, :, 2]
        query_key = F.layer_norm(query_key, (self.head_dim,), eps=NORM_EPS)
        # One angle serves query and key of all heads.
        query_key = apply_rotary(query_key, cos[..., None, None, :], sin[..., None, None, :])
        query, key = query_key.to(value.dtype).unbind(2)
        return self.proj(self.processor(query, key, value, mask).reshape(batch, tokens, width))


class FeedForward(nn.Module):
    """Linear, squared ReLU (So et al. 2021, arXiv 2109.08668, section 4), linear."""

    def __init__(self, width: int, ratio: float):
        super().__init__()
        hidden = round(width * ratio)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)).square())


def spread(per_level: Tensor, tokens: int) -> Tensor:
    """(B, u, D) to (B, tokens, D): each of the u vectors serves tokens / u consecutive tokens."""
    batch, levels, width = per_level.shape
    return per_level.unsqueeze(2).expand(batch, levels, tokens // levels, width).reshape(batch, tokens, width)


class JointBlock(nn.Module):
    """One transformer block over the joint sequence, its weights shared by all modalities.

    What a modality has of its own is the modulation, in PixArt-alpha's adaLN-single form (Chen et al. 2023, arXiv
    2310.00426, section 2.3): six vectors from the noise level, computed once for all blocks, plus a learned table
    of this block for each modality. Both branches start at zero, so that a fresh block changes nothing.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, modalities: int):
        super().__init__()
        self.attn = SelfAttention(width, heads)
        self.mlp = FeedForward(width, mlp_ratio)
        self.modulation_table = nn.Parameter(torch.zeros(modalities, 6 * width))
        for layer in (self.attn.proj, self.mlp.down):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, x: Tensor, modulations: Sequence[Tensor], kinds: Sequence[int], sizes: Sequence[int], cos: Tensor,
        sin: Tensor, mask: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """(B, N, width) to the same.

        Args:
            modulations: for each modality present (B, u, 6·width), where u divides its number of tokens: shift,
                scale and gate of the attention, then of the feed-forward layers.
            kinds: which row of the table each of them has.
            sizes: tokens of each of them; they sum to N.
        """
        modulation = torch.cat([
            spread(vectors + self.modulation_table[kind], size)
            for vectors, kind, size in zip(modulations, kinds, sizes, strict=True)
        ], dim=1)  # fmt: skip
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=-1)
        x = torch.addcmul(x, gate_attn, self.attn(modulate(x, shift_attn, scale_attn), cos, sin, mask))
        return torch.addcmul(x, gate_mlp, self.mlp(modulate(x, shift_mlp, scale_mlp)))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Normalise without learned scale, then scale and shift (Peebles & Xie 2022, arXiv 2212.09748, section 3.2)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), scale)


def block_flops(width: int, tokens: int) -> float:
    """Of one joint block's forward pass: 2 a weight and token, and 4 a channel and pair of tokens."""
    weights = (4 + 2 * 4) * width**2  # query, key, value, projection; two layers with 4 times the width between them
    return 2.0 * tokens * weights + 4.0 * tokens**2 * width


class TextBlock(nn.Module):
    """A pre-norm transformer block that lets the prompt's tokens read one another, in both directions."""

    def __init__(self, width: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.norm_attn = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = SelfAttention(width, heads)
        self.norm_mlp = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = FeedForward(width, mlp_ratio)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm_attn(x), cos, sin, mask)
        return x + self.mlp(self.norm_mlp(x))


class NoiseLevelEmbedding(nn.Module):
    """Noise levels (…,) in [0, 1] to vectors (…, width): sinusoids, then a two-layer network."""

    def __init__(self, width: int, frequencies: int = 64):
        super().__init__()
        self.frequencies = frequencies
        self.up = nn.Linear(2 * frequencies, width)
        self.down = nn.Linear(width, width)

    def forward(self, sigma: Tensor) -> Tensor:
        steps = torch.linspace(0, 1, self.frequencies, device=sigma.device, dtype=torch.float32)
        # From half a turn over the whole range to a turn for each hundredth of it.
        angles = sigma.float()[..., None] * (math.pi * 200**steps)
        sinusoids = torch.cat((angles.cos(), angles.sin()), dim=-1).to(self.up.weight.dtype)
        return self.down(F.silu(self.up(sinusoids)))
