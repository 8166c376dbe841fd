"""Where the parts of a large pipeline go: as fast as memory allows, decided from their sizes and said in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

GIB = 2**30
WORKING_SHARE, WORKING_BYTES = 0.15, 2 * GIB
"""What a device must have left for activations: this share of it, and no less than so many bytes."""
QUANTIZED = 0.52
"""Bytes of a part in int8, scales included, over those in bfloat16."""


@dataclass(frozen=True)
class Placement:
    """``mode``: "whole" (all parts on the device), "model" (one part at a time there), "quantized" (the same, with the
    largest parts in int8) or "layers" (one layer at a time). ``tiling``: the VAE works tile by tile."""

    mode: str
    tiling: bool
    quantized: tuple[str, ...] = ()


def choose(parts: Mapping[str, int], free_bytes: int, can_quantize: bool) -> Placement:
    """The fastest placement that fits.

    Args:
        parts: bytes of each part's weights, as they would be held.
        free_bytes: memory of the device that is free before anything is moved there.
        can_quantize: int8 is available.
    """
    room = free_bytes - max(WORKING_BYTES, int(WORKING_SHARE * free_bytes))
    if sum(parts.values()) <= room:
        return Placement("whole", tiling=sum(parts.values()) > room / 2)
    if max(parts.values()) <= room:
        return Placement("model", tiling=True)
    too_large = tuple(name for name, size in parts.items() if size > room)
    if can_quantize and all(parts[name] * QUANTIZED <= room for name in too_large):
        return Placement("quantized", tiling=True, quantized=too_large)
    return Placement("layers", tiling=True)


def place(pipeline: Any, device: Any) -> str:
    """Put a loaded diffusers pipeline where it fits on ``device``; what was done, in one line."""
    import torch

    device = torch.device(device)
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    sizes = {name: _bytes(module) for name, module in modules.items()}
    total = f"{sum(sizes.values()) / GIB:.1f} GiB of weights"
    if device.type in ("cpu", "mps"):
        import psutil

        # The weights are in main memory already, which both of them compute in.
        chosen = Placement("whole", tiling=sum(sizes.values()) > psutil.virtual_memory().available)
        where = "in main memory" if device.type == "cpu" else f"on {device}"
    else:
        free_bytes, _ = torch.cuda.mem_get_info(device) if device.type == "cuda" else (0, 0)
        chosen = choose(sizes, free_bytes, find_spec("torchao") is not None)
        where = f"on {device} with {free_bytes / GIB:.1f} GiB free"
    words = {
        "whole": f"all {where}",
        "model": f"one part at a time {where}",
        "quantized": f"{', '.join(chosen.quantized)} in int8, one part at a time {where}",
        "layers": f"one layer at a time {where} (slow; pip install torchao may help)",
    }[chosen.mode]
    for name in chosen.quantized:
        quantize_int8(modules[name])
    if chosen.mode == "whole":
        pipeline.to(device)
    elif hasattr(pipeline, "enable_sequential_cpu_offload"):
        if chosen.mode == "layers":
            pipeline.enable_sequential_cpu_offload(device=device)
        else:
            pipeline.enable_model_cpu_offload(device=device)
    else:  # a modular pipeline
        from diffusers import ComponentsManager

        words = f"what is needed at a time {where}"
        manager = ComponentsManager()
        for name, module in modules.items():
            manager.add(name, module)
        manager.enable_auto_cpu_offload(device=device)
    tiled = chosen.tiling and _tile(modules)
    return f"{total}: {words}{', pictures decoded in tiles' if tiled else ''}"


def quantize_int8(module: Any) -> None:
    """Linear layers' weights to int8, computing as before, in place (torchao).

    Raises:
        InputError: torchao is not installed.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        from .errors import InputError

        raise InputError('quantization needs torchao: pip install "vidgen[quantize]"') from error
    quantize_(module, Int8WeightOnlyConfig())


def _bytes(module: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _tile(modules: Mapping[str, Any]) -> bool:
    """Switch on tiled decoding in every part that offers it; whether any does."""
    tileable = [module for module in modules.values() if hasattr(module, "enable_tiling")]
    for module in tileable:
        module.enable_tiling()
    return bool(tileable)
