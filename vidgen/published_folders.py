"""Folders of published pipelines, plain and modular: found, had from the hub, and loaded by diffusers."""

import re
import sys
import warnings
from pathlib import Path
from typing import Any

from .errors import InputError
from .generation import FAST
from .generation import FILE_NAME as GENERATION_CONFIG

PLAIN_INDEX, MODULAR_INDEX = "model_index.json", "modular_model_index.json"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_FILES = ["*.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.model", "*/*.jinja"]

FOR_PICTURES = {"LTXPipeline": "LTXImageToVideoPipeline", "LTX2Pipeline": "LTX2ImageToVideoPipeline"}
"""Pipelines whose weights also serve one that takes a first picture."""


def is_published(model: str | Path) -> bool:
    """Whether this is a diffusers pipeline of another kind than vidgen's: its folder, or a name on a hub."""
    folder = Path(model)
    if folder.is_dir():
        names = {PLAIN_INDEX, MODULAR_INDEX}
        return not is_vidgen(folder) and any((folder / name).exists() for name in names)
    return not folder.exists() and HUB_NAME.fullmatch(str(model)) is not None


def is_vidgen(folder: Path) -> bool:
    """Whether this is a folder of a model of vidgen's own."""
    return (folder / GENERATION_CONFIG).exists()


def local_folder(model: str | Path) -> Path:
    """The folder of a model, downloaded first where ``model`` is a name on the hub.

    Raises:
        InputError: there is neither.
    """
    folder = Path(model)
    if folder.exists() or not HUB_NAME.fullmatch(str(model)):
        if not any((folder / name).exists() for name in (PLAIN_INDEX, MODULAR_INDEX)):
            raise InputError(f"{folder}: no such model folder (neither {PLAIN_INDEX} nor {MODULAR_INDEX} is there)")
        return folder
    import huggingface_hub

    name, found = str(model), None
    try:
        for index in (PLAIN_INDEX, MODULAR_INDEX):
            if huggingface_hub.file_exists(name, index):
                found = index
                break
        if found == PLAIN_INDEX:
            from diffusers.pipelines.pipeline_utils import DiffusionPipeline

            folder = Path(DiffusionPipeline.download(name, use_safetensors=True))
            if is_vidgen(folder):  # a few-step student is none of the parts that diffusers knows
                huggingface_hub.snapshot_download(name, allow_patterns=[f"{FAST}/*"])
            return folder
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub's client raises its own, and those of whichever HTTP library it uses
        raise InputError(f"{name}: there is no such folder, and no such model on the hub can be had: "
                         f"{first_line(error)}") from error  # fmt: skip


def load_pipeline(folder: Path, dtype: Any, for_picture: bool) -> Any:
    """The pipeline in ``folder``, on the CPU; never by code of the folder's own, never by unpickling.

    Raises:
        InputError: the installed diffusers does not know it, or it is damaged.
    """
    import diffusers
    from torch import nn

    from .loading import read_json

    is_modular = not (folder / PLAIN_INDEX).exists()
    index = read_json(folder / (MODULAR_INDEX if is_modular else PLAIN_INDEX))
    name = index.get("_class_name")
    if not isinstance(name, str) or "auto_map" in index:
        raise InputError(f"{folder} brings its own code, which is not run: give a model that diffusers knows")
    name = FOR_PICTURES.get(name, name) if for_picture else name
    pipeline_class = getattr(diffusers, name, None)
    if pipeline_class is None:
        raise InputError(f"{folder} is a {name}, which diffusers {diffusers.__version__} does not have: "
                         "pip install --upgrade diffusers")  # fmt: skip
    _keep_quiet()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # older versions know only the old name of the dtype
            if not is_modular:
                return pipeline_class.from_pretrained(str(folder), torch_dtype=dtype, use_safetensors=True)
            pipeline = diffusers.ModularPipeline.from_pretrained(str(folder))
            if workflow := _workflow(pipeline.blocks, for_picture):
                pruned = diffusers.ModularPipeline.from_pretrained(str(folder), workflow=workflow)
                can_be_told_length = any(entry.name == "num_frames" for entry in pruned.blocks.inputs)
                pipeline = pruned if can_be_told_length else pipeline
            parts = [part for part in pipeline.pretrained_component_names if (index.get(part) or [None, None])[1]]
            specs = {part: pipeline.get_component_spec(part).type_hint for part in parts}
            networks = [part for part, kind in specs.items() if isinstance(kind, type) and issubclass(kind, nn.Module)]
            safely = dict.fromkeys(networks, True)  # else what has no safetensors would be unpickled
            pipeline.load_components(names=parts, torch_dtype=dtype, use_safetensors=safely)
    except (OSError, ValueError, ImportError, RuntimeError, TypeError) as error:
        raise InputError(f"{folder} cannot be loaded as a {name}: {first_line(error)}") from error
    for part in parts:
        if getattr(pipeline, part, None) is None:  # which diffusers only logs
            try:
                pipeline.get_component_spec(part).load()
                reason = "missing or damaged"
            except Exception as error:
                reason = first_line(error)
            raise InputError(f"{folder} cannot be loaded as a {name}: {part}: {reason}")
    return pipeline


def _workflow(blocks: Any, for_picture: bool) -> str | None:
    """Of blocks that know several tasks, the one wanted: parts that only others need (MiniMax-H3's second transformer
    of 62 GB) are then not loaded. None where all belong together, or where one of them switches sound on."""
    workflows = getattr(blocks, "_workflow_map", None) or {}
    spellings = {name: triggers if isinstance(triggers, tuple) else (triggers,) for name, triggers in workflows.items()}
    if any("enable_sound" in inputs for triggers in spellings.values() for inputs in triggers):
        return None
    wanted = {"prompt", "image"} if for_picture else {"prompt"}
    return next(
        (name for name, triggers in spellings.items() if any(set(inputs) == wanted for inputs in triggers)), None
    )


def _keep_quiet() -> None:
    """No progress bars of the loading libraries where nobody watches."""
    if sys.stderr.isatty():
        return
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def default_dtype(folder: Path, device: Any) -> Any:
    """bfloat16 on an accelerator; float32 on a CPU while main memory holds it (stored weights are at least half)."""
    import psutil
    import torch

    stored = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    fits = 2.5 * stored < psutil.virtual_memory().available
    return torch.float32 if device.type == "cpu" and fits else torch.bfloat16


def first_line(error: BaseException) -> str:
    """What an error says, short."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
