"""Low-rank adapters of the transformer (LoRA, Hu et al. 2021, arXiv 2106.09685): W x + (alpha / rank)·B A x.

Made by ``train.py dit --lora-rank``, kept as one safetensors file in diffusers' layout: its names begin with
``transformer.``, its alpha stands in the metadata (``lora_adapter_metadata``), and the metadata says what it is for.
Training one needs peft, and so does taking one out again; ``load_loras(…, fuse=True)`` does not.
"""

import dataclasses
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import InputError
from .files import replacing

FILE_NAME = "pytorch_lora_weights.safetensors"
PREFIX = "transformer"
ALPHA_KEY = "lora_adapter_metadata"
TARGETS = ("attn.qkv", "attn.proj", "mlp.up", "mlp.down")
"""The linear layers of every block, of the text refiner's as well."""
STORED = ("r", "lora_alpha", "target_modules", "rank_pattern", "alpha_pattern")
"""Of peft's configuration: what decides the output. The rest grows with each release, and older ones refuse it."""
SCALE_KEYS = {"r", "lora_alpha"}
SAYS_NOTHING = {"target_modules", "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode",
                "lora_dropout", "megatron_core", "peft_version"}  # fmt: skip
"""Of peft's configuration: what does not change how the products are added to the weights."""


@dataclass(frozen=True)
class Lora:
    """A file, or the folder that ``train.py`` leaves, and how strongly it is to work: 1 as trained, 0 not at all."""

    path: Path
    scale: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Lora":
        """``PATH[:SCALE]``, as on a command line.

        Raises:
            InputError: an empty path, or a scale that is not finite.
        """
        path, _, number = text.rpartition(":")
        try:
            scale = float(number) if path else 1.0
        except ValueError:  # the colon belongs to the path
            path, scale = "", 1.0
        if not (path or text) or not math.isfinite(scale):
            raise InputError(f"a LoRA is PATH or PATH:SCALE, as style.safetensors:0.8, not {text!r}")
        return cls(Path(path or text), scale)

    @property
    def file(self) -> Path:
        return self.path / FILE_NAME if self.path.is_dir() else self.path


def add_lora(network: Any, rank: int, alpha: float | None = None) -> None:
    """Give a ``JointDiT`` an adapter to train and freeze the rest; it changes nothing until it is trained.

    Args:
        alpha: the adapter works at ``alpha / rank``; None takes the rank.

    Raises:
        InputError: a rank below 1, an alpha that is not positive, or peft is not installed.
    """
    if rank < 1 or (alpha is not None and not 0 < alpha < math.inf):
        raise InputError(f"a LoRA has a rank of at least 1 and a positive alpha, not {rank} and {alpha}")
    config = _peft().LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=list(TARGETS))
    network.requires_grad_(False)
    network.add_adapter(config)


def save_lora(network: Any, path: Path, about: dict[str, str], dtype: torch.dtype | None = None) -> None:
    """Write the one adapter of a network.

    Args:
        path: a ``.safetensors`` file.
        about: what it is for, as it stands in the file's metadata.
        dtype: what it is stored as; None keeps that of training.
    """
    (name,) = network.peft_config
    values = _peft().get_peft_model_state_dict(network, adapter_name=name)
    own = network.peft_config[name].to_dict()
    own = {key: sorted(own[key]) if isinstance(own[key], set) else own[key] for key in STORED if key in own}
    metadata = {"format": "pt", ALPHA_KEY: json.dumps({f"{PREFIX}.{key}": value for key, value in own.items()})}
    tensors = {f"{PREFIX}.{key}": value.detach().to("cpu", dtype).contiguous() for key, value in values.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata | about)


def purpose(base: str, title: str, captions: Sequence[Sequence[str]], steps: int) -> dict[str, str]:
    """What an adapter is for, as its file says it; names of the modelspec that tools for pictures read.

    Args:
        base: the model that it was trained over.
        captions: wordings of each clip that it was trained on.
    """
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "vidgen-joint-dit/lora",
        "modelspec.title": title,
        "modelspec.description": f"{steps} steps on {len(captions)} clips, such as: {captions[0][0]}",
        "vidgen.base_model": base,
    }


def read_about(path: Path) -> dict[str, str]:
    """What a LoRA file's metadata say of it: rank and alpha, and what it is for.

    Raises:
        InputError: no such file, or a damaged one.
    """
    _, settings, about = _read(Lora(path).file)
    numbers = {name: str(settings[key]) for name, key in (("rank", "r"), ("alpha", "lora_alpha")) if key in settings}
    return numbers | about


def load_loras(network: Any, loras: Sequence[Lora], *, names: Sequence[str] | None = None, fuse: bool = False) -> None:
    """Add adapters to a ``JointDiT``, beside those that it has.

    Args:
        names: one for each, to be called by in ``set_adapters``; numbered by default.
        fuse: add them into the weights at once. The output is the same but for rounding, and as fast as without; they
            cannot be taken out again. Needs no peft where a file asks for nothing but scale·alpha/rank·B A.

    Raises:
        InputError: peft is needed and not installed, a file is missing or damaged, or made for another network.
    """
    if not loras:
        return
    read = [_read(lora.file) for lora in loras]
    for lora, (tensors, _, about) in zip(loras, read, strict=True):
        _check_fit(network, lora.file, tensors, about)
    if fuse and not getattr(network, "peft_config", None):
        products = [_products(tensors, settings) for tensors, settings, _ in read]
        if all(product is not None for product in products):
            for lora, product in zip(loras, products, strict=True):
                _add_products(network, product or {}, lora.scale)
            network.requires_grad_(False).eval()
            return
    known = {field.name for field in dataclasses.fields(_peft().LoraConfig)}
    active = _active_adapters(network)
    taken = getattr(network, "peft_config", {})
    free = (name for name in (f"lora_{number}" for number in range(10**6)) if name not in taken)
    for lora, name, (tensors, settings, _) in zip(loras, names or list(islice(free, len(loras))), read, strict=True):
        prefixed = {f"{PREFIX}.{key}": value for key, value in settings.items() if key in known} or None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are meant
            network.load_lora_adapter(tensors, prefix=PREFIX, adapter_name=name, metadata=prefixed)
        active[name] = lora.scale
    for module in _adapted_layers(network):
        module.set_adapter(list(active))
        for name, scale in active.items():
            if scale is not None:
                module.set_scale(name, scale)
    network.requires_grad_(False).eval()
    if fuse:
        network.fuse_lora()
        network.unload_lora()


class LoraPipeline:
    """diffusers' methods for adapters, of a pipeline that has its ``transformer``."""

    transformer: Any

    def load_lora_weights(self, path: str | Path, adapter_name: str | None = None, scale: float = 1.0) -> None:
        """Add the adapter in a file or folder; see ``load_loras``."""
        names = None if adapter_name is None else [adapter_name]
        load_loras(self.transformer, [Lora(Path(path), scale)], names=names)

    def use_loras(self, loras: Sequence[Lora]) -> None:
        """Let these adapters be in the transformer, and no others."""
        self.unload_lora_weights()
        load_loras(self.transformer, loras)

    def set_adapters(self, names: str | Sequence[str], scales: float | Sequence[float] = 1.0) -> None:
        """Let only these adapters work, at these scales."""
        names = [names] if isinstance(names, str) else list(names)
        given = [scales] * len(names) if isinstance(scales, int | float) else list(scales)
        unknown = [name for name in names if name not in getattr(self.transformer, "peft_config", {})]
        if unknown or len(given) != len(names):
            raise InputError(f"no adapter is called {unknown[0]!r}" if unknown else "give a scale for each adapter")
        self.transformer.set_adapters(names, given)

    def fuse_lora(self) -> None:
        """Add the adapters at work into the weights, for good."""
        self.transformer.fuse_lora()
        self.transformer.unload_lora()

    def unload_lora_weights(self) -> None:
        """Take all adapters out again."""
        if getattr(self.transformer, "peft_config", None):
            self.transformer.unload_lora()


def _adapted_layers(network: nn.Module) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in network.modules() if isinstance(module, BaseTunerLayer)]


def _active_adapters(network: nn.Module) -> dict[str, float | None]:
    """Those at work, each with None: its scale stays what it is."""
    layers = _adapted_layers(network)
    return dict.fromkeys(layers[0].active_adapters) if layers else {}


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError('a LoRA needs peft: pip install "vidgen[lora]", or pip install peft') from error
    return peft


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    """Tensors, peft's settings (empty if the file has none), and the rest of the metadata."""
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = dict(opened.metadata() or {})
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 — it is no dictionary
        settings = json.loads(metadata.pop(ALPHA_KEY, "{}"))
        own = {key.removeprefix(f"{PREFIX}."): value for key, value in settings.items()}
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{file}: no such LoRA") from error
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise InputError(f"{file} is not a LoRA in safetensors, or damaged: {error}") from error
    if not any(key.startswith(f"{PREFIX}.") and ".lora_A." in key for key in tensors):
        raise InputError(f"{file} is not a LoRA of a transformer in diffusers' layout: its names do not say so")
    if not own:
        warnings.warn(f"{file} does not tell its alpha: it is taken for its rank", stacklevel=3)
    metadata.pop("format", None)
    return tensors, own, metadata


def _products(tensors: dict[str, Tensor], settings: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor, float]] | None:
    """B (out, rank), A (rank, in) and alpha / rank by layer; None for files whose layers differ in them, or that hold
    or ask for more than these products: those are peft's."""
    layers = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    names = {f"{layer}.lora_{part}.weight" for layer in layers for part in "AB"}
    if tensors.keys() != names or any(tensor.ndim != 2 for tensor in tensors.values()):
        return None
    pairs = {layer: (tensors[f"{layer}.lora_B.weight"], tensors[f"{layer}.lora_A.weight"]) for layer in layers}
    ranks = {side for up, down in pairs.values() for side in (up.shape[1], down.shape[0])}
    rank = settings.get("r", max(ranks))
    harmless: dict[str, Any] = {"init_lora_weights": True, "bias": "none"}
    asks_more = any(
        value and harmless.get(key) != value for key, value in settings.items() if key not in SCALE_KEYS | SAYS_NOTHING
    )
    if ranks != {rank} or asks_more or (settings and not settings.keys() >= SCALE_KEYS):
        return None
    scale = settings.get("lora_alpha", rank) / rank
    return {layer.removeprefix(f"{PREFIX}."): (*pair, scale) for layer, pair in pairs.items()}


@torch.no_grad()
def _add_products(network: nn.Module, products: dict[str, tuple[Tensor, Tensor, float]], strength: float) -> None:
    for layer, (up, down, scale) in products.items():
        weight: Any = network.get_submodule(layer).weight
        kind = torch.promote_types(weight.dtype, torch.float32)  # half would round the products
        up, down = up.to(weight.device, kind), down.to(weight.device, kind)
        weight.add_((strength * scale * (up @ down)).to(weight.dtype))


def _check_fit(network: Any, file: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    # An adapted layer keeps the layer itself as its base_layer.
    layers = {
        name.removesuffix(".base_layer"): module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }
    for key, tensor in tensors.items():
        name, _, part = key.removeprefix(f"{PREFIX}.").rpartition(".lora_")
        layer = layers.get(name)
        side = None if layer is None else layer.in_features if part.startswith("A") else layer.out_features
        if part.endswith("weight") and side != tensor.shape[1 if part.startswith("A") else 0]:
            made_for = f", made for {about['vidgen.base_model']}" if "vidgen.base_model" in about else ""
            raise InputError(f"{file} does not fit this model{made_for}: layer {name or key} is not there or other")
