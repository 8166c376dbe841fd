"""A clip's tokens shared out over processes (context parallel), for clips whose activations do not fit one device.

Each process carries its share of every stream's tokens through the blocks. For attention, processes trade tokens for
heads, so that each has all tokens of a few heads, and back (DeepSpeed-Ulysses, Jacobs et al. 2023, arXiv 2309.14509,
section 3.1): any attention kernel serves, with masks. What lies before and after the blocks is done by every process.

Every process then has the whole loss of the clip, and the gradients of what it did alone count once for each of them:
their mean over the processes, which DDP and FSDP take, is the gradient of one process with the whole clip.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ..errors import InputError
from .blocks import AttentionProcessor


class Context:
    """The processes that share out the same clips, and this one's place among them."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.size, self.rank = group, dist.get_world_size(group), dist.get_rank(group)

    def part(self, x: Tensor, dim: int = 1) -> Tensor:
        """This process's tokens of all that are along ``dim``; zeros stand in where they do not divide evenly."""
        each = -(-x.shape[dim] // self.size)
        start = min(self.rank * each, x.shape[dim])
        return _filled(x.narrow(dim, start, min(each, x.shape[dim] - start)), each, dim)

    def whole(self, part: Tensor, tokens: int) -> Tensor:
        """All ``tokens`` (B, tokens, D) of what processes have parts (B, n, D) of, in each of them."""
        parts = self.exchange(part.expand(self.size, *part.shape))
        return rearrange(parts, "c b n d -> b (c n) d")[:, :tokens]

    def mask(self, mask: Tensor | None, sizes: Sequence[int], device: torch.device) -> Tensor | None:
        """Where to look, bool (B, 1, 1, N), once the processes' tokens are together, in their order then.

        Args:
            mask: the same for streams of ``sizes`` tokens, one after another; None if all is to be looked at.
        """
        if mask is None:
            if not any(size % self.size for size in sizes):
                return None
            mask = torch.ones(1, 1, 1, sum(sizes), dtype=torch.bool, device=device)
        streams = [_filled(part, -(-part.shape[-1] // self.size) * self.size, -1) for part in mask.split(sizes, dim=-1)]
        return torch.cat([part.unflatten(-1, (self.size, -1)) for part in streams], dim=-1).flatten(-2)

    def of_tokens(self, levels: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """For each stream, of vectors (B, u, D) that serve tokens / u consecutive tokens each, those of this process's.

        (B, n, D), or (B, 1, D) where one vector serves all.
        """
        own = []
        for vectors, tokens in zip(levels, sizes, strict=False):
            if vectors.shape[1] > 1:
                places = torch.arange(tokens, device=vectors.device) // (tokens // vectors.shape[1])
                vectors = vectors[:, self.part(places, dim=0)]
            own.append(vectors)
        return own

    @torch.compiler.disable
    def exchange(self, parts: Tensor) -> Tensor:
        """(size, …), a part for each process, to what each had for this one; differentiable."""
        return _Exchange.apply(parts, self.group)


class _Exchange(torch.autograd.Function):
    """An all-to-all, whose gradient goes the way back."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        received = torch.empty_like(parts, memory_format=torch.contiguous_format)
        dist.all_to_all_single(received, parts.contiguous(), group=group)
        return received

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _Exchange.apply(gradient, ctx.group), None


class ContextAttention(AttentionProcessor):
    """Attention over all tokens of the processes, each of which has some: (B, n, heads, head_dim) to the same."""

    def __init__(self, context: Context, backend: Any) -> None:
        self.context, self._attention_backend = context, backend

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        tokens, size = torch.stack((query, key, value)), self.context.size
        heads = self.context.exchange(rearrange(tokens, "q b n (c h) d -> c q b n h d", c=size))
        query, key, value = rearrange(heads, "c q b n h d -> q b (c n) h d")
        attended = super().__call__(query, key, value, mask)
        tokens = self.context.exchange(rearrange(attended, "b (c n) h d -> c b n h d", c=size))
        return rearrange(tokens, "c b n h d -> b n (c h) d")


def share_tokens(model: Any, group: dist.ProcessGroup) -> None:
    """Let a ``JointDiT`` share out its tokens over the processes of a group, which must all give it the same clips.

    Raises:
        InputError: the heads cannot be shared out evenly.
    """
    context = Context(group)
    for block in model.blocks:
        if block.attn.heads % context.size:
            raise InputError(f"{block.attn.heads} heads cannot be shared out over context_parallel={context.size}")
        block.attn.processor = ContextAttention(context, block.attn.processor._attention_backend)
    model.context = context


def _filled(x: Tensor, size: int, dim: int) -> Tensor:
    """Zeros at the end of ``dim``, up to ``size``."""
    missing = size - x.shape[dim]
    return F.pad(x, (0, 0) * (x.ndim - 1 - dim % x.ndim) + (0, missing)) if missing else x
