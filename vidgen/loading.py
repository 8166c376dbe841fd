"""Networks from their folders, strictly and without unpickling, and the device that they go to."""

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .errors import InputError

WEIGHTS = "diffusion_pytorch_model.safetensors"
Method = TypeVar("Method", bound=Callable[..., Any])


def offloadable(method: Method) -> Method:
    """For a network's methods other than ``forward``: an offloading hook fetches the weights, and moves the inputs, for
    them too. (diffusers' ``apply_forward_hook`` leaves the inputs where they are.)"""

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        hook = getattr(self, "_hf_hook", None)
        if hook is not None:
            args, kwargs = hook.pre_forward(self, *args, **kwargs)
        return method(self, *args, **kwargs)

    return call  # type: ignore[return-value]


def execution_device(module: Any) -> torch.device:
    """Where a network computes: under offloading, not where its weights rest."""
    hooks = (getattr(part, "_hf_hook", None) for part in module.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    return torch.device(next((device for device in devices if device is not None), module.device))


def load_network(network_class: type[ModelMixin], folder: Path) -> Any:
    """A network in float32 and eval mode from its ``config.json`` and safetensors, sharded or not, strictly.

    Raises:
        InputError: a file is missing or damaged, or holds other weights than the network has.
    """
    config = read_json(folder / "config.json")
    index = folder / f"{WEIGHTS}.index.json"
    try:
        names = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else [WEIGHTS]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is damaged") from error
    weights: dict[str, Tensor] = {}
    for name in names:
        try:
            weights |= load_file(folder / name)
        except FileNotFoundError as error:
            raise InputError(f"{folder / name} is missing: the model's folder is not complete") from error
        except SafetensorError as error:
            raise InputError(f"{folder / name} is damaged ({error}): get it again") from error
    try:
        network = network_class.from_config(config)  # type: ignore[attr-defined]
        network.load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{folder}: weights and config do not fit {network_class.__name__}: {reason}") from error
    return cast(network, torch.float32).eval()


def load_or_make(network: Any, folder: Path | None, measured: dict[str, Any] | None = None, **arguments: Any) -> Any:
    """Weights to go on from, or a new network; ``measured`` are arguments taken from the data, for a new one only.

    Raises:
        InputError: the network of the weights is not the one that the settings ask for.
    """
    if folder is None:
        return network(**arguments, **(measured or {}))
    loaded = load_network(network, folder)
    for name, value in arguments.items():
        if loaded.config[name] != value:
            raise InputError(
                f"{folder} has {name}={loaded.config[name]}, the settings ask for {value}: "
                "set what the weights have, or start without --init"
            )
    return loaded


def load_frozen(network: Any, folder: Path) -> Any:
    return load_network(network, folder).requires_grad_(False)


def cast(network: nn.Module, dtype: torch.dtype) -> Any:
    """Without the warning that diffusers' own method gives for every network."""
    return nn.Module.to(network, dtype)


def choose_device(name: str) -> torch.device:
    """``auto`` is the first of cuda, mps and cpu that there is.

    Raises:
        InputError: a device that torch does not know or that this machine lacks.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object.

    Raises:
        InputError: the file is missing, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: the model's folder is not complete") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} is damaged: it should hold one JSON object")
    return values
