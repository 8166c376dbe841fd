"""What moves the weights in training: optimisers, their learning rate, and the average kept of the weights."""

from typing import Any

import torch
from torch import nn

from . import config
from .errors import InputError
from .muon import Muon
from .parallel import own_part


def make_optimizers(model: nn.Module, settings: config.TrainConfig) -> dict[str, torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the blocks' matrices and AdamW for the rest.

    Muon: Jordan et al. 2024; its step is scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so that
    one learning rate serves both.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if settings.optimizer == "adamw":
        return {"adamw": adamw(parameters.values(), settings)}
    if settings.optimizer != "muon":
        raise InputError(f"optimizer is 'adamw' or 'muon', not {settings.optimizer!r}")
    matrices = [p for name, p in parameters.items() if p.ndim == 2 and "blocks." in name and min(p.shape) >= 32]
    if not matrices:
        return {"adamw": adamw(parameters.values(), settings)}
    chosen = {id(p) for p in matrices}
    muon = Muon(matrices, settings.learning_rate, settings.weight_decay)
    return {"muon": muon, "adamw": adamw([p for p in parameters.values() if id(p) not in chosen], settings)}


def adamw(parameters: Any, settings: config.TrainConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels, none on vectors."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, settings.beta2))


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: config.TrainConfig, step: int) -> None:
    """Linear warm-up, a plateau, linear fall to zero over the last ``cooldown`` of the steps."""
    rise = (step + 1) / max(1, settings.warmup_steps)
    fall = (settings.steps - step) / max(1.0, settings.cooldown * settings.steps)
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * min(1.0, rise, fall)


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Exponential moving average of the weights; buffers are copied."""
    pairs = [(old, new) for old, new in zip(average.parameters(), model.parameters(), strict=True) if new.requires_grad]
    old, new = ([own_part(parameter) for parameter in side] for side in zip(*pairs, strict=True))
    torch._foreach_lerp_(old, new, 1 - decay)
    for buffer, current in zip(average.buffers(), model.buffers(), strict=True):
        buffer.copy_(current)
