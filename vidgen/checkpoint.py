"""Training checkpoints: safetensors only, written to a temporary name and renamed, the oldest rotated away.

Everything random in training follows from the seed and the step (see ``vidgen.data.sampling``), so weights, optimiser
state and the step are all that an exact resume needs.
"""

import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .errors import InputError


def save(
    folder: Path, step: int, modules: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer], keep: int
) -> None:
    """Write ``folder/step-NNNNNNN`` with one file for each module and optimiser; keep the newest ``keep``.

    Raises:
        InputError: it cannot be written, as on a full disk; the checkpoints before it are left as they were.
    """
    target = folder / f"step-{step:07d}"
    part = folder / f".part-{step:07d}"
    shutil.rmtree(part, ignore_errors=True)
    tensors = {name: _trained(module) for name, module in modules.items()}
    tensors |= {name: _flatten(optimizer) for name, optimizer in optimizers.items()}
    try:
        part.mkdir(parents=True)
        for name, values in tensors.items():
            save_file({key: value.contiguous() for key, value in values.items()}, part / f"{name}.safetensors")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise InputError(f"the checkpoint of step {step} cannot be written to {folder}: {error}") from error
    if target.exists():
        shutil.rmtree(target)
    os.replace(part, target)
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


def load_latest(folder: Path, modules: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer]) -> int:
    """Load the newest checkpoint into the modules and optimisers; return its step, 0 when there is none.

    Raises:
        InputError: a file of the checkpoint is damaged or missing, or belongs to another network.
    """
    checkpoints = _checkpoints(folder)
    if not checkpoints:
        return 0
    latest = checkpoints[-1]
    try:
        for name, module in modules.items():
            values = load_file(latest / f"{name}.safetensors")
            if values.keys() == _trained(module).keys():
                values = module.state_dict() | values
            module.load_state_dict(values)
        for name, optimizer in optimizers.items():
            _unflatten(optimizer, load_file(latest / f"{name}.safetensors"))
    except (SafetensorError, OSError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"checkpoint {latest} does not fit this run or is damaged ({reason}): delete it") from error
    return int(latest.name.removeprefix("step-"))


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _trained(module: nn.Module) -> dict[str, Tensor]:
    """Of a network with adapters (``vidgen.lora``) these alone: what they adapt stays as it was at the start."""
    tensors = module.state_dict()
    return {key: value for key, value in tensors.items() if ".lora_" in key} or tensors


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser state as flat tensors: ``<parameter index>.<name>``."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.as_tensor(value) for index, entry in state.items() for name, value in entry.items()
    }


def _unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
