"""Clips encoded once by both autoencoders, kept on disk, and served to the transformer from memory."""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
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
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Encode ``num_clips`` samples of ``dataset`` into shards under ``folder``; whole shards already there are kept.

    Sample n has key (n mod length, n): asking for more clips than the dataset has shows its clips in new looks. What
    ``encode`` gets are the dataset's batches, with their ``keys``, loaded by ``workers`` processes. Of several
    processes each writes every ``world_size``-th shard; ``complete_cache`` ends the work of all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = [
        (folder / name, range(start, min(start + CLIPS_PER_SHARD, num_clips)))
        for name, start in zip(_shard_names(num_clips), range(0, num_clips, CLIPS_PER_SHARD), strict=True)
    ][rank::world_size]
    total = sum(len(clips) for _, clips in shards)
    missing = [(path, clips) for path, clips in shards if _clips_in_shard(path) != len(clips)]
    keys = [
        [(n % len(dataset), n) for n in clips[start : start + batch_size]]
        for _, clips in missing
        for start in range(0, len(clips), batch_size)
    ]
    loader = DataLoader(_Keyed(dataset), sampler=keys, batch_size=None, num_workers=workers)  # type: ignore[arg-type]
    done = total - sum(len(clips) for _, clips in missing)
    with tqdm(
        total=total, initial=done, desc="caching latents", unit="clip", disable=None if rank == 0 else True
    ) as progress:
        batches = iter(loader)
        for path, clips in missing:
            _write_shard(itertools.islice(batches, -(-len(clips) // batch_size)), encode, path, progress)


class _Keyed(Dataset):
    """A dataset whose batches also tell their keys."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, keys: list[tuple[int, int]]) -> dict[str, Any]:
        return {**self.dataset[keys], "keys": keys}


def clips_in_cache(folder: Path) -> int:
    """How many clips a complete cache holds; 0 where there is none or it is not complete."""
    index = folder / "index.json"
    return json.loads(index.read_text())["clips"] if index.exists() else 0


def _clips_in_shard(path: Path) -> int:
    """0 where there is none, or a damaged one."""
    try:
        with safe_open(path, framework="pt") as shard:
            return len(json.loads(shard.metadata()["captions"]))
    except (FileNotFoundError, SafetensorError):
        return 0


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


def _write_shard(batches: Iterable[dict[str, Any]], encode: Encoder, path: Path, progress: "tqdm[Any]") -> None:
    videos, audios, has_audio, captions = [], [], [], []
    for batch in batches:
        video, audio = encode(batch)
        videos.append(video.half())
        audios.append(audio.half())
        has_audio.append(batch["has_audio"])
        captions.extend(batch["captions"])
        progress.update(len(batch["keys"]))
    parts = {"video": videos, "audio": audios, "has_audio": has_audio}
    tensors = {name: torch.cat(values).cpu().contiguous() for name, values in parts.items()}
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={"captions": json.dumps(captions)})
    os.replace(part, path)


class LatentChoices(Dataset):
    """What a batch of keys shows of a latent cache, without the latents: for loading processes to work out.

    A batch: ``clips`` int (B,), ``captions`` list[str], and ``frames`` int (B, n) where single frames are shown;
    ``LatentClips`` tells what they mean and adds the latents.
    """

    def __init__(
        self, captions: list[list[str]], total_frames: int, *, seed: int, caption_dropout: float, latent_frames: int
    ) -> None:
        self.captions, self.total_frames = captions, total_frames
        self.seed, self.caption_dropout, self.latent_frames = seed, caption_dropout, latent_frames

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, keys: list[tuple[int, int]]) -> dict[str, Any]:
        captions, frames = [], []
        for index, draw in keys:
            rng = np.random.default_rng((self.seed, draw))
            wording = self.captions[index][rng.integers(len(self.captions[index]))]
            captions.append("" if rng.random() < self.caption_dropout else wording)
            if self.latent_frames:
                frames.append(np.sort(rng.choice(self.total_frames, self.latent_frames, replace=False)))
        chosen = {"clips": torch.tensor([index for index, _ in keys]), "captions": captions}
        return {**chosen, "frames": torch.from_numpy(np.stack(frames))} if self.latent_frames else chosen


class LatentClips(Dataset):
    """A latent cache in memory; a batch of keys in, a batch out.

    A batch: ``video`` float32 (B, C, t, h, w), ``audio`` float32 (B, C_a, L), ``has_audio`` bool (B,), ``captions``
    list[str] (one of the clip's wordings each; empty at the rate ``caption_dropout``).

    With ``latent_frames`` = n > 0 a sample shows n latent frames of its clip, chosen at random, in order, and no sound:
    ``video`` is (B, C, n, h, w), ``frames`` int (B, n) tells which they are, and there is no ``audio``.

    The same in two steps, so that the latents can stay on a GPU: ``choices[keys]``, then ``gather`` where they lie.

    Raises:
        InputError: the cache is incomplete or damaged.
    """

    def __init__(self, folder: Path, *, seed: int = 0, caption_dropout: float = 0.0, latent_frames: int = 0) -> None:
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
        self.choices = LatentChoices(
            self.captions, self.video.shape[2], seed=seed, caption_dropout=caption_dropout, latent_frames=latent_frames
        )

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, keys: list[tuple[int, int]]) -> dict[str, Any]:
        return self.gather(self.choices[keys])

    @property
    def size_bytes(self) -> int:
        return self.video.nbytes + self.audio.nbytes

    def to(self, device: torch.device) -> "LatentClips":
        """Move the latents, which then can only be gathered there."""
        self.video, self.audio, self.has_audio = (part.to(device) for part in (self.video, self.audio, self.has_audio))
        return self

    def gather(self, choice: dict[str, Any]) -> dict[str, Any]:
        """A batch of ``choices``, its indices on the device of the latents, with the latents added."""
        clips = choice["clips"]
        rest = {key: value for key, value in choice.items() if key != "clips"}
        if "frames" in choice:
            video = self.video[clips[:, None], :, choice["frames"]].transpose(1, 2)
            return {**rest, "video": video.float()}
        return {
            **rest,
            "video": self.video[clips].float(),
            "audio": self.audio[clips].float(),
            "has_audio": self.has_audio[clips],
        }
