"""Clips encoded once by both autoencoders, kept on disk, and served to the transformer from memory."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from ..clip import ClipSpec
from ..errors import InputError

CLIPS_PER_SHARD = 256

Encoder = Callable[[dict[str, Any]], tuple[Tensor, Tensor]]
"""A data batch in; normalised video latents (B, C, t, h, w) and audio latents (B, C_a, L) out."""


def digest(data: Path, spec: ClipSpec, *networks: nn.Module) -> str:
    """What a latent cache depends on, as one hash: the data's files, the clip's shape, the autoencoders.

    Another seed draws other looks of the same data, which any run may learn from: it does not count. Of a folder,
    names and sizes count, and the captions' text; clips are not read.
    """
    made_from = hashlib.sha256(str(spec).encode())
    for path in sorted(data.rglob("*")) if data.is_dir() else [data]:
        if path.is_file():
            made_from.update(f"{path.relative_to(data)} {path.stat().st_size}".encode())
            if path == data or path.suffix in (".jsonl", ".txt"):
                made_from.update(path.read_bytes())
    for network in networks:
        for name, tensor in network.state_dict().items():
            made_from.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return made_from.hexdigest()


def claim_cache(folder: Path, made_from: str) -> None:
    """Note in ``folder`` what its latents are made from (``digest``).

    Raises:
        InputError: it holds latents that were made from something else.
    """
    note = folder / "made_from"
    if note.exists() or (folder / "index.json").exists():
        if not note.exists() or note.read_text() != made_from:
            raise InputError(
                f"{folder} holds latents of other data, clips or autoencoders: delete it, or name another folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".made_from-{os.getpid()}"
    part.write_text(made_from)
    os.replace(part, note)


def cache_latents(
    dataset: Any,
    num_clips: int,
    encode: Encoder,
    folder: Path,
    *,
    batch_size: int = 4,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Encode ``num_clips`` samples of ``dataset`` into shards under ``folder``; shards already there are kept.

    Sample n has key (n mod length, n): asking for more clips than the dataset has shows its clips in new looks. Of
    several processes each writes every ``world_size``-th shard; ``complete_cache`` ends the work of all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = [
        (folder / name, range(start, min(start + CLIPS_PER_SHARD, num_clips)))
        for name, start in zip(_shard_names(num_clips), range(0, num_clips, CLIPS_PER_SHARD), strict=True)
    ][rank::world_size]
    total = sum(len(clips) for _, clips in shards)
    with tqdm(total=total, desc="caching latents", unit="clip", disable=None if rank == 0 else True) as progress:
        for path, clips in shards:
            if path.exists():
                progress.update(len(clips))
            else:
                _write_shard(dataset, clips, encode, path, batch_size, progress)


def complete_cache(num_clips: int, folder: Path) -> None:
    """Write ``index.json``, without which a folder of latents is incomplete.

    Raises:
        InputError: a shard is missing.
    """
    names = _shard_names(num_clips)
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise InputError(f"{folder} lacks {missing[0]}: cache again")
    (folder / "index.json.part").write_text(json.dumps({"clips": num_clips, "shards": names}))
    os.replace(folder / "index.json.part", folder / "index.json")


def _shard_names(num_clips: int) -> list[str]:
    return [f"latents-{number:05d}.safetensors" for number in range(-(-num_clips // CLIPS_PER_SHARD))]


def _write_shard(
    dataset: Any, clips: range, encode: Encoder, path: Path, batch_size: int, progress: "tqdm[Any]"
) -> None:
    videos, audios, has_audio, captions = [], [], [], []
    for start in range(clips.start, clips.stop, batch_size):
        numbers = range(start, min(start + batch_size, clips.stop))
        batch = dataset[[(number % len(dataset), number) for number in numbers]]
        video, audio = encode(batch)
        videos.append(video.half().cpu())
        audios.append(audio.half().cpu())
        has_audio.append(batch["has_audio"])
        captions.extend(batch["captions"])
        progress.update(len(numbers))
    parts = {"video": videos, "audio": audios, "has_audio": has_audio}
    tensors = {name: torch.cat(values).contiguous() for name, values in parts.items()}
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={"captions": json.dumps(captions)})
    os.replace(part, path)


class LatentClips(Dataset):
    """A latent cache in memory; a batch of keys in, a batch out.

    A batch: ``video`` float32 (B, C, t, h, w), ``audio`` float32 (B, C_a, L), ``has_audio`` bool (B,), ``captions``
    list[str] (one of the clip's wordings each; empty at the rate ``caption_dropout``).

    With ``latent_frames`` = n > 0 a sample shows n latent frames of its clip, chosen at random, in order, and no sound:
    ``video`` is (B, C, n, h, w), ``frames`` int (B, n) tells which they are, and there is no ``audio``.

    Raises:
        InputError: the cache is incomplete or damaged.
    """

    def __init__(self, folder: Path, *, seed: int = 0, caption_dropout: float = 0.0, latent_frames: int = 0) -> None:
        self.seed, self.caption_dropout, self.latent_frames = seed, caption_dropout, latent_frames
        if not (folder / "index.json").is_file():
            raise InputError(f"{folder} has no index.json: the latent cache is incomplete")
        names = json.loads((folder / "index.json").read_text())["shards"]
        tensors: dict[str, list[Tensor]] = {"video": [], "audio": [], "has_audio": []}
        self.captions: list[list[str]] = []
        for name in names:
            try:
                with safe_open(folder / name, framework="pt") as shard:
                    for key, parts in tensors.items():
                        parts.append(shard.get_tensor(key))
                    self.captions.extend(json.loads(shard.metadata()["captions"]))
            except (SafetensorError, FileNotFoundError) as error:
                raise InputError(f"{folder / name} is damaged or missing: delete it and cache again") from error
        self.video, self.audio, self.has_audio = (torch.cat(parts) for parts in tensors.values())
        if not 0 <= latent_frames <= self.video.shape[2]:
            raise InputError(f"latent_frames is 0 (all) or up to {self.video.shape[2]}, not {latent_frames}")

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, keys: list[tuple[int, int]]) -> dict[str, Any]:
        indices = [index for index, _ in keys]
        captions, frames = [], []
        for index, draw in keys:
            rng = np.random.default_rng((self.seed, draw))
            wording = self.captions[index][rng.integers(len(self.captions[index]))]
            captions.append("" if rng.random() < self.caption_dropout else wording)
            if self.latent_frames:
                frames.append(np.sort(rng.choice(self.video.shape[2], self.latent_frames, replace=False)))
        if self.latent_frames:
            chosen = torch.from_numpy(np.stack(frames))
            video = torch.stack([self.video[index][:, rows] for index, rows in zip(indices, chosen, strict=True)])
            return {"video": video.float(), "frames": chosen, "captions": captions}
        return {
            "video": self.video[indices].float(),
            "audio": self.audio[indices].float(),
            "has_audio": self.has_audio[indices],
            "captions": captions,
        }
