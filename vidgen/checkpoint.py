"""Training checkpoints: safetensors only, written to a temporary name and renamed, old ones rotated away.

Everything random in training follows from the seed and the step (see ``vidgen.data.sampling``), so weights, optimiser
state and the step are all that an exact resume needs. Of a network that is shared out over processes each writes its
own part (torch.distributed.checkpoint, in safetensors); any number of processes can go on from either kind.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor, distribute_tensor

from .errors import InputError

NOTES = "notes.json"
SHARDS = "shards"


def save(
    folder: Path,
    step: int,
    modules: dict[str, nn.Module],
    optimizers: dict[str, torch.optim.Optimizer],
    keep: int,
    notes: dict[str, Any] | None = None,
) -> None:
    """Write ``folder/step-NNNNNNN``; keep the newest ``keep``, and the best.

    One process calls this, or all of them where the network is shared out over them.

    Args:
        notes: further numbers to keep. The best checkpoint is that with the lowest ``validation`` among them, if any.

    Raises:
        InputError: it cannot be written, as on a full disk; the checkpoints before it are left as they were.
    """
    target = folder / f"step-{step:07d}"
    part = folder / f".part-{step:07d}"
    tensors = {name: _trained(module) for name, module in modules.items()}
    tensors |= {name: _flatten(optimizer) for name, optimizer in optimizers.items()}
    sharded = any(isinstance(value, DTensor) for values in tensors.values() for value in values.values())
    leads = not sharded or dist.get_rank() == 0
    try:
        if leads:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True, exist_ok=True)  # another process may be at its shards already
        if sharded:
            _save_shards(tensors, part / SHARDS)
        else:
            for name, values in tensors.items():
                save_file({key: value.contiguous() for key, value in values.items()}, part / f"{name}.safetensors")
        if leads:
            files = sorted(path.name for path in part.rglob("*.safetensors"))
            (part / NOTES).write_text(json.dumps({**(notes or {}), "files": files}) + "\n")
    except (OSError, SafetensorError, CheckpointException) as error:
        if leads:
            shutil.rmtree(part, ignore_errors=True)
        raise InputError(f"the checkpoint of step {step} cannot be written to {folder}: {_reason(error)}") from error
    if not leads:
        return
    if target.exists():
        shutil.rmtree(target)
    os.replace(part, target)
    best = _best(folder)
    for old in _checkpoints(folder)[: -max(1, keep)]:
        if old != best:
            shutil.rmtree(old)


def load_latest(
    folder: Path, modules: dict[str, nn.Module], optimizers: dict[str, torch.optim.Optimizer]
) -> tuple[int, dict[str, Any]]:
    """Load the newest checkpoint into the modules and optimisers, by every process; return its step and notes.

    Step 0 and no notes when there is none.

    Raises:
        InputError: a file of the checkpoint is damaged or missing, or belongs to another network.
    """
    checkpoints = _checkpoints(folder)
    if not checkpoints:
        return 0, {}
    latest = checkpoints[-1]
    try:
        notes = _notes(latest)
        missing = {*notes.pop("files", [])} - {path.name for path in latest.rglob("*.safetensors")}
        if missing:
            raise KeyError(f"{min(missing)} is missing")
        for name, module in modules.items():
            _read(latest, name, _trained(module))  # which are the module's own tensors
        for name, optimizer in optimizers.items():
            targets = _state_targets(latest, name, optimizer)
            _read(latest, name, targets)
            _unflatten(optimizer, targets)
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, CheckpointException) as error:
        reason = f"checkpoint {latest} does not fit this run or is damaged ({_reason(error)}): delete it"
        raise InputError(reason) from error
    return int(latest.name.removeprefix("step-")), notes


def _read(checkpoint: Path, name: str, targets: dict[str, Tensor]) -> None:
    """Fill the targets, whole tensors or parts of them, from a checkpoint of either kind.

    Raises:
        KeyError: it has other tensors. ValueError: of other shapes.
    """
    stored = _stored(checkpoint, name)
    if stored.keys() != targets.keys():
        raise KeyError(f"{name} has other tensors, such as {min(stored.keys() ^ targets.keys())}")
    for key, target in targets.items():
        if stored[key] != target.shape:
            raise ValueError(f"{name}: {key} is {tuple(stored[key])}, not {tuple(target.shape)}")
    if (checkpoint / SHARDS).is_dir():
        from torch.distributed.checkpoint import HuggingFaceStorageReader, load

        reader = HuggingFaceStorageReader(str(checkpoint / SHARDS))
        load({f"{name}/{key}": target for key, target in targets.items()}, storage_reader=reader)
        return
    for key, value in load_file(checkpoint / f"{name}.safetensors").items():
        target = targets[key]
        if isinstance(target, DTensor):
            local = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
            target.to_local().copy_(local.to_local())
        else:
            target.copy_(value)


def _stored(checkpoint: Path, name: str) -> dict[str, torch.Size]:
    """The shapes of what a checkpoint holds under a name."""
    if (checkpoint / SHARDS).is_dir():
        from torch.distributed.checkpoint import HuggingFaceStorageReader

        found = HuggingFaceStorageReader(str(checkpoint / SHARDS)).read_metadata().state_dict_metadata
        prefix = f"{name}/"
        return {key.removeprefix(prefix): value.size for key, value in found.items() if key.startswith(prefix)}  # type: ignore[union-attr]
    with safe_open(checkpoint / f"{name}.safetensors", framework="pt") as file:
        return {key: torch.Size(file.get_slice(key).get_shape() or (1,)) for key in file.keys()}  # noqa: SIM118


def _save_shards(tensors: dict[str, dict[str, Tensor]], folder: Path) -> None:
    try:
        from torch.distributed.checkpoint import HuggingFaceStorageWriter, save
    except ImportError as error:
        raise InputError("sharded checkpoints need torch 2.8 or newer: pip install --upgrade torch") from error
    flat = {f"{name}/{key}": value.detach() for name, values in tensors.items() for key, value in values.items()}
    save(flat, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _notes(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / NOTES
    return json.loads(path.read_text()) if path.exists() else {}


def _best(folder: Path) -> Path | None:
    """The checkpoint with the lowest validation loss, if any has one."""
    losses = {path: _notes(path).get("validation") for path in _checkpoints(folder)}
    known = {path: loss for path, loss in losses.items() if loss is not None}
    return min(known, key=lambda path: known[path]) if known else None


def _trained(module: nn.Module) -> dict[str, Tensor]:
    """Of a network with adapters (``vidgen.lora``) these alone: what they adapt stays as it was at the start."""
    tensors = module.state_dict()
    return {key: value for key, value in tensors.items() if ".lora_" in key} or tensors


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Optimiser state as flat tensors: ``<parameter index>.<name>``; single numbers have one axis."""
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": torch.atleast_1d(torch.as_tensor(value))
        for index, entry in state.items()
        for name, value in entry.items()
    }


def _state_targets(checkpoint: Path, name: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Empty tensors for the optimiser state in a checkpoint, cut as the parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    targets = {}
    for key, shape in _stored(checkpoint, name).items():
        number, _, entry = key.partition(".")
        index = int(number)
        if index >= len(parameters):
            raise KeyError(f"{name} has state of {index + 1} parameters or more, not of {len(parameters)}")
        like = parameters[index].detach()
        targets[key] = torch.zeros(shape) if entry == "step" else torch.zeros_like(like)
    return targets


def _unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value[0] if name == "step" else value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        failures = list(error.failures.values())
        error = failures[0][0] if failures else error
    return (str(error).splitlines() or [type(error).__name__])[0].strip("'\"")
