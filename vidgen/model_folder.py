"""A pipeline's folder, in the diffusers layout: written, read strictly, found by diffusers' own loader, and shared.

``VidGenPipeline.from_pretrained(folder)`` checks every file. diffusers' ``DiffusionPipeline.from_pretrained(folder)``
gives the same pipeline once ``from vidgen import VidGenPipeline`` has run; without it, the stub ``pipeline.py`` in the
folder serves: ``DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)``.

A folder may hold a model and its few-step student, an adapter in ``fast``; diffusers' own loader gives the model.
"""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from .audio_sync.codec import AudioCodec
from .clip import ClipSpec
from .dit.model import JointDiT
from .errors import InputError
from .generation import FAST, GenerationConfig, chosen_quality
from .generation import FILE_NAME as GENERATION_CONFIG
from .loading import cast, load_network
from .lora import FILE_NAME as LORA
from .lora import Lora, load_loras, save_lora
from .published_folders import HUB_NAME, local_folder
from .text import TransformersEncoder, WordVectorEncoder, load_text_encoder
from .vae3d.autoencoder import SpacetimeVAE

MAX_SHARD_SIZE = "15MB"
STUB = '''"""Lets diffusers find the pipeline's class: custom_pipeline=THIS FOLDER, trust_remote_code=True."""

from vidgen.pipeline import VidGenPipeline  # noqa: F401
'''
CARD = """---
library_name: vidgen
pipeline_tag: text-to-video
license: apache-2.0
tags: [text-to-video, text-to-audio, video-generation, vidgen, diffusers]
---
# {version}

Text to video with the sound that belongs to it, by [vidgen](https://pypi.org/project/vidgen/): clips of {frames} frames
of {width}×{height} at {rate} frames a second, with {sample_rate} Hz sound; {parameters:.1f} M parameters of the
transformer.

```python
from vidgen import VidGenPipeline
from vidgen.media import write_video

pipe = VidGenPipeline.from_pretrained("{repo}")
clip = pipe("a small red metal ball drops onto a wooden floor")
write_video("clip.mp4", clip.frames[0], clip.audio[0], clip.frame_rate, clip.sample_rate)
```
"""


def save_with_student(
    teacher: Path, folder: Path, student: JointDiT, sampling: Mapping[str, Any], about: dict[str, str]
) -> None:
    """A model's folder with its few-step student in it: the teacher's files as they are, and ``fast``.

    Args:
        teacher: the folder of a model; a student that is in it already is left out.
        student: the teacher's transformer with an adapter.
        sampling: entries of ``GenerationConfig`` that are the student's own.
        about: what the adapter is for, as its file's metadata say it.
    """
    shutil.copytree(teacher, folder, ignore=lambda place, _: [FAST] if Path(place) == Path(teacher) else [])
    fast = folder / FAST
    fast.mkdir()
    (fast / GENERATION_CONFIG).write_text(json.dumps(dict(sampling), indent=2) + "\n", encoding="utf-8")
    save_lora(student, fast / LORA, about, torch.float16)


class FolderPipeline(DiffusionPipeline):
    """How a pipeline of vidgen's networks is saved and loaded; ``VidGenPipeline`` is one."""

    generation: GenerationConfig

    def register_modules(self, **modules: nn.Module) -> None:
        """Record each component by the full path of its module.

        diffusers itself shortens the path of a module that lies in a folder named like one of its own pipelines, as
        ``dit`` is, and could then not find it again.
        """
        for name, module in modules.items():
            setattr(self, name, module)
            self.register_to_config(**{name: (type(module).__module__, type(module).__name__)})

    @classmethod
    def assemble(
        cls,
        vae: SpacetimeVAE,
        codec: AudioCodec,
        transformer: JointDiT,
        text_encoder: WordVectorEncoder | TransformersEncoder,
        spec: ClipSpec,
        video_shift: float = 1.0,
        audio_shift: float = 1.0,
        **settings: Any,
    ) -> Any:
        """A pipeline from freshly trained parts; ``spec`` is the clip that they were trained on, ``settings`` further
        entries of ``GenerationConfig``."""
        generation = GenerationConfig(
            num_frames=spec.num_frames,
            height=spec.height,
            width=spec.width,
            frame_rate=str(spec.frame_rate),
            video_shift=video_shift,
            audio_shift=audio_shift,
            **settings,
        )
        networks: dict[str, Any] = {
            "vae": vae,
            "codec": codec,
            "transformer": transformer,
            "text_encoder": text_encoder,
        }
        return cls(**networks, generation=generation)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        dtype: torch.dtype | None = torch.float16,
        max_shard_size: str | int = MAX_SHARD_SIZE,
        safe_serialization: bool = True,
        variant: str | None = None,
    ) -> None:
        """Write the model's folder: ``model_index.json``, ``generation_config.json``, a folder for each component.

        A pipeline is saved as what it is: of a folder with a teacher and its few-step student the one that was loaded,
        as a model of its own. A student that lay in ``save_directory`` belonged to what is replaced, and goes with it.

        Args:
            dtype: what weights are stored as; None keeps that of each component.
            max_shard_size: of a weights file.
            safe_serialization, variant: there for diffusers' callers; weights are always safetensors, of one variant.

        Raises:
            InputError: pickled weights or a variant are asked for, or the transformer has adapters, which are files of
                their own.
        """
        if getattr(self.transformer, "peft_config", None):
            raise InputError("a model is saved without its LoRAs: fuse_lora() or unload_lora_weights() first")
        if not safe_serialization or variant is not None:
            raise InputError("weights are saved as safetensors, without variants")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.register_modules(**self.components)
        for name in (GENERATION_CONFIG, LORA):
            (folder / FAST / name).unlink(missing_ok=True)
        for name, module in self.components.items():
            target = folder / name
            for stale in target.glob("*.safetensors*"):
                stale.unlink()
            stored: Any = module if dtype is None else cast(deepcopy(module), dtype)
            if isinstance(stored, TransformersEncoder):
                stored.tokenizer.save_pretrained(target)
                stored = stored.model
            stored.save_pretrained(target, max_shard_size=max_shard_size)
        self.generation.save(folder)
        self.register_to_config(generation=dataclasses.asdict(self.generation))  # for diffusers' loader
        self.save_config(folder)
        (folder / "pipeline.py").write_text(STUB, encoding="utf-8")

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        quality: str | None = None,
    ) -> Any:
        """Load a folder that ``save_pretrained`` or ``train.py`` wrote; every weight must be there, and no other.

        Args:
            pretrained_model_name_or_path: a folder, or a name on the Hugging Face hub.
            torch_dtype, dtype: of the transformer; None takes float32 on a CPU and bfloat16 elsewhere. The
                autoencoders, a small part of the work, always compute in float32: the eight bits of bfloat16 would be
                heard.
            quality: ``fast`` loads the model's few-step student, ``high`` its teacher; None takes the student if there
                is one.

        Raises:
            InputError: a file is missing, damaged, or does not fit the networks, or there is no student where one is
                asked for; the message names it.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.exists() and HUB_NAME.fullmatch(str(folder)):
            folder = local_folder(folder)
        generation = GenerationConfig.load(folder, quality)
        device = torch.device(device)
        chosen = torch_dtype or dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
        for name in ("vae", "codec", "transformer", "text_encoder"):
            if not (folder / name).is_dir():
                raise InputError(f"{folder / name} is missing: the model's folder is not complete")
        transformer = load_network(JointDiT, folder / "transformer")
        if chosen_quality(folder, quality) == FAST:
            load_loras(transformer, [Lora(folder / FAST)], fuse=True)
        networks = {
            "vae": load_network(SpacetimeVAE, folder / "vae").to(device),
            "codec": load_network(AudioCodec, folder / "codec").to(device),
            "transformer": cast(transformer, chosen).to(device),
            "text_encoder": load_text_encoder(folder / "text_encoder", device=device),
        }
        return cls(**networks, generation=generation)

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        **saving: Any,
    ) -> str:
        """Upload the folder that ``save_pretrained(**saving)`` writes, with a model card; the address of the commit."""
        from huggingface_hub import HfApi

        hub = HfApi(token=token)
        repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **saving)
            if not hub.file_exists(repo_id, "README.md"):  # a card that somebody wrote stays
                (Path(folder) / "README.md").write_text(self.model_card(repo_id), encoding="utf-8")
            message = commit_message or f"Upload {type(self).__name__}"
            commit = hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, create_pr=create_pr)
        return str(commit.commit_url)

    def model_card(self, repo_id: str) -> str:
        """What the model is and how it is used, in Markdown, from its settings."""
        own = self.generation
        return CARD.format(
            version=own.model_version, frames=own.num_frames, width=own.width, height=own.height, rate=own.frame_rate,
            sample_rate=own.sample_rate_hz, repo=repo_id,
            parameters=sum(parameter.numel() for parameter in self.transformer.parameters()) / 1e6,
        )  # fmt: skip
