"""Clips encoded once by both autoencoders, kept on disk, and served to the transformer from memory."""

import hashlib
import itertools
import json
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
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
from ..noise import to_device
from .captions import vary_caption
from .sampling import Layout
from .shards import INDEX

CLIPS_PER_SHARD = 256

Encoder = Callable[[dict[str, Any]], tuple[Tensor | None, Tensor]]
"""A data batch in; normalised latents out: of video (B, C, t, h, w), None for sound alone, and audio (B, C_a, L)."""


def digest(data: Path | Sequence[Path], spec: ClipSpec, *networks: nn.Module, in_buckets: bool = False) -> str:
    """What a latent cache depends on, as one hash: the data's files, the clip's shape, the autoencoders.

    Another seed draws other looks of the same data, which any run may learn from: it does not count, nor do the weights
    of several sources. Of a folder, names and sizes count, and the captions' text; clips are not read. Of shards,
    their index counts.
    """
    made_from = hashlib.sha256(str(spec).encode() + b" in buckets" * in_buckets)
    for source in [data] if isinstance(data, Path) else data:
        index = source / INDEX
        for path in [index] if index.is_file() else sorted(source.rglob("*")) if source.is_dir() else [source]:
            if path.is_file():
                bare = str(path.relative_to(source)).encode("utf-8", "surrogateescape")
                made_from.update(bare + f" {path.stat().st_size}".encode())
                if path == source or path.suffix in (".jsonl", ".csv", ".txt"):
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
    part = folder / f".made_from-{os.getpid()}-{secrets.token_hex(4)}"
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

    Sample n has key (n mod length, n): asking for more clips than the dataset has shows its clips in new looks. A shard
    holds clips of one shape (a group of the dataset's layout). What ``encode`` gets are the dataset's batches, with
    their ``keys``, loaded by ``workers`` processes. Of several processes each writes every ``world_size``-th shard;
    ``complete_cache`` ends the work of all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    layout = Layout.of(dataset)
    shards = [(folder / name, clips) for name, clips in plan_shards(layout, num_clips)][rank::world_size]
    total = sum(len(clips) for _, clips in shards)
    missing = [(path, clips) for path, clips in shards if _clips_in_shard(path) != len(clips)]
    keys = [
        [(int(n) % len(dataset), int(n)) for n in clips[start : start + batch_size]]
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
            sources = layout.sources[clips % len(layout.sources)]
            _write_shard(itertools.islice(batches, -(-len(clips) // batch_size)), encode, path, sources, progress)


def plan_shards(layout: Layout, num_clips: int) -> list[tuple[str, np.ndarray]]:
    """The name of each shard of a cache and the samples in it. A group's shards stay the same when a cache grows."""
    samples = np.arange(num_clips)
    group_of = layout.groups[samples % len(layout.groups)]
    groups = np.unique(layout.groups)
    plan = []
    for group in groups:
        members = samples[group_of == group]
        prefix = "latents" if len(groups) == 1 else f"latents-{group:03d}"
        for number, start in enumerate(range(0, len(members), CLIPS_PER_SHARD)):
            plan.append((f"{prefix}-{number:05d}.safetensors", members[start : start + CLIPS_PER_SHARD]))
    return plan


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


def complete_cache(num_clips: int, folder: Path, layout: Layout | None = None) -> None:
    """Write ``index.json``, without which a folder of latents is incomplete; ``layout`` is the dataset's.

    Raises:
        InputError: a shard is missing.
    """
    names = [name for name, _ in plan_shards(layout or Layout.plain(1), num_clips)]
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise InputError(f"{folder} lacks {missing[0]}: cache again")
    (folder / "index.json.part").write_text(json.dumps({"clips": num_clips, "shards": names}))
    os.replace(folder / "index.json.part", folder / "index.json")


def _write_shard(
    batches: Iterable[dict[str, Any]], encode: Encoder, path: Path, sources: np.ndarray, progress: "tqdm[Any]"
) -> None:
    parts: dict[str, list[Tensor]] = {"audio": [], "has_audio": [], "video": [], "focus": []}
    captions = []
    for batch in batches:
        video, audio = encode(batch)
        parts["audio"].append(audio.half())
        parts["has_audio"].append(batch["has_audio"])
        if video is not None:
            parts["video"].append(video.half())
        if "focus" in batch:
            parts["focus"].append(batch["focus"])
        captions.extend(batch["captions"])
        progress.update(len(batch["keys"]))
    if len(parts["focus"]) < len(parts["video"]):  # some of several sources do not tell
        parts["focus"] = []
    tensors = {name: torch.cat(values).cpu().contiguous() for name, values in parts.items() if values}
    tensors["sources"] = torch.from_numpy(np.ascontiguousarray(sources))
    part = path.with_suffix(".part")
    save_file(tensors, part, metadata={"captions": json.dumps(captions)})
    os.replace(part, path)


class LatentChoices(Dataset):
    """What a batch of keys shows of a latent cache, without the latents: for loading processes to work out.

    A batch: ``clips`` list[int] (which stays on the host, so that no device is waited for), ``captions`` list[str], and
    ``frames`` int (B, n) where single frames are shown; ``LatentClips`` tells what they mean and adds the latents.
    """

    def __init__(
        self,
        captions: list[list[str]],
        total_frames: np.ndarray,
        layout: Layout,
        *,
        seed: int,
        latent_frames: int,
        rates: dict[str, float],
    ) -> None:
        """``total_frames`` (N,) are each clip's; ``rates`` are those of ``captions.vary_caption``."""
        self.captions, self.total_frames, self.layout = captions, total_frames, layout
        self.seed, self.latent_frames, self.rates = seed, latent_frames, rates

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, keys: list[tuple[int, int]]) -> dict[str, Any]:
        captions, frames = [], []
        for index, draw in keys:
            rng = np.random.default_rng((self.seed, draw))
            captions.append(vary_caption(self.captions[index], rng, **self.rates))
            if self.latent_frames:
                total = int(self.total_frames[index])
                frames.append(np.sort(rng.choice(total, min(total, self.latent_frames), replace=False)))
        chosen = {"clips": [index for index, _ in keys], "captions": captions}
        return {**chosen, "frames": torch.from_numpy(np.stack(frames))} if self.latent_frames else chosen


class LatentClips(Dataset):
    """A latent cache; a batch of keys in, a batch out. Shards are mapped into memory, and read where they are used.

    A batch: ``video`` float32 (B, C, t, h, w), ``audio`` float32 (B, C_a, L), ``has_audio`` bool (B,), ``captions``
    list[str] (one of the clip's wordings each, varied as ``captions.vary_caption`` tells), and ``focus`` bool
    (B, t, h, w) where all of the data tell which latents show a body (``has_focus``). Sound alone has no ``video``, an
    image no ``audio``. All keys of a batch are of one group of ``layout``: clips of one shape.

    With ``latent_frames`` = n > 0 a sample shows n latent frames of its clip, chosen at random, in order, and no sound:
    ``video`` is (B, C, n, h, w), ``frames`` int (B, n) tells which they are, and there is no ``audio``.

    The same in two steps, so that the latents can stay on a GPU: ``choices[keys]``, then ``gather`` where they lie.

    Args:
        weights: of the sources that the cache was made from; None draws every clip as often as any other.
        only_videos: leave out images and sound alone.

    Raises:
        InputError: the cache is incomplete or damaged, or has nothing to show as asked.
    """

    def __init__(
        self,
        folder: Path,
        *,
        seed: int = 0,
        caption_dropout: float = 0.0,
        caption_shorten: float = 0.0,
        caption_swap: float = 1.0,
        latent_frames: int = 0,
        weights: tuple[float, ...] | None = None,
        only_videos: bool = False,
    ) -> None:
        if not (folder / "index.json").is_file():
            raise InputError(f"{folder} has no index.json: the latent cache is incomplete")
        names = json.loads((folder / "index.json").read_text())["shards"]
        self.parts: list[dict[str, Tensor]] = []
        self.captions: list[list[str]] = []
        for name in names:
            try:
                with safe_open(folder / name, framework="pt") as shard:
                    part = {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118
                    captions = json.loads(shard.metadata()["captions"])
            except (SafetensorError, FileNotFoundError) as error:
                raise InputError(f"{folder / name} is damaged or missing: delete it and cache again") from error
            if "video" in part and part["video"].shape[2] == 1 and not part["has_audio"].any():
                part = {name: part[name] for name in ("video", "sources") if name in part}
            if (not only_videos or part.keys() >= {"video", "audio"}) and (not latent_frames or "video" in part):
                self.parts.append(part)
                self.captions.extend(captions)
        if not self.parts:
            raise InputError(f"{folder} has no clips of the wanted kind")
        self.has_focus = all("focus" in part for part in self.parts if "video" in part)
        if not self.has_focus:  # told of some sources only, it would count by chance of the batch
            self.parts = [{name: part[name] for name in part if name != "focus"} for part in self.parts]
        # The shape of a batch: of picture and sound, each with a size of 0 where there is none.
        shapes = [
            (*(part["video"].shape[1:] if "video" in part else [0]), part["audio"].shape[2] if "audio" in part else 0)
            for part in self.parts
        ]
        counts = [len(next(iter(part.values()))) for part in self.parts]
        numbers = {shape: number for number, shape in enumerate(sorted(set(shapes)))}
        groups = np.repeat([numbers[shape] for shape in shapes], counts)
        self.shards = np.repeat(np.arange(len(counts)), counts)
        self.rows = np.concatenate([np.arange(count) for count in counts])
        sources = np.concatenate([_sources(part) for part in self.parts])
        self.layout = Layout(groups, sources, self.shards, weights)
        total = np.repeat([part["video"].shape[2] if "video" in part else 0 for part in self.parts], counts)
        if not 0 <= latent_frames <= total.max():
            raise InputError(f"latent_frames is 0 (all) or up to {total.max()}, not {latent_frames}")
        rates = {"dropout": caption_dropout, "shorten": caption_shorten, "swap": caption_swap}
        self.choices = LatentChoices(
            self.captions, total, self.layout, seed=seed, latent_frames=latent_frames, rates=rates
        )

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, keys: list[tuple[int, int]]) -> dict[str, Any]:
        return self.gather(self.choices[keys])

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for part in self.parts for tensor in part.values())

    @property
    def video(self) -> Tensor:
        """The video latents (N, C, t, h, w) of all clips, which must be of one shape."""
        return torch.cat([part["video"] for part in self.parts])

    @property
    def audio(self) -> Tensor:
        """The audio latents (N, C_a, L) of all clips, which must be of one shape."""
        return torch.cat([part["audio"] for part in self.parts])

    @property
    def has_audio(self) -> Tensor:
        return torch.cat([part["has_audio"] for part in self.parts])

    def to(self, device: torch.device) -> "LatentClips":
        """Move the latents, those of one shape together, which then can only be gathered there."""
        joined: list[dict[str, Tensor]] = []
        shards, rows = self.shards.copy(), self.rows.copy()
        for number, group in enumerate(np.unique(self.layout.groups)):
            members = np.flatnonzero(self.layout.groups == group)
            parts = [self.parts[shard] for shard in np.unique(self.shards[members])]
            joined.append({name: torch.cat([part[name] for part in parts]).to(device) for name in parts[0]})
            shards[members], rows[members] = number, np.arange(len(members))
        self.parts, self.shards, self.rows = joined, shards, rows
        return self

    def gather(self, choice: dict[str, Any]) -> dict[str, Any]:
        """A batch of ``choices``, with the latents added, on the device where they lie."""
        clips = np.array(choice["clips"])
        rest = {key: value for key, value in choice.items() if key != "clips"}
        part = self.parts[self.shards[clips[0]]]
        names = [name for name in ("video", "audio", "has_audio", "focus") if name in part]
        batch = {name: self._rows(name, clips) for name in names}
        if "frames" in choice:
            frames = choice["frames"].to(batch["video"].device)
            places = torch.arange(len(clips), device=frames.device)[:, None]
            shown = {"video": batch["video"][places, :, frames].transpose(1, 2).float()}
            if "focus" in batch:
                shown["focus"] = batch["focus"][places, frames]
            return {**rest, **shown}
        batch |= {name: batch[name].float() for name in ("video", "audio") if name in batch}
        return {**rest, **batch}

    def _rows(self, name: str, clips: np.ndarray) -> Tensor:
        shards = self.shards[clips]
        if (shards == shards[0]).all():
            part = self.parts[shards[0]][name]
            return part[to_device(torch.from_numpy(self.rows[clips]), part.device)]
        return torch.stack([self.parts[shard][name][row] for shard, row in zip(shards, self.rows[clips], strict=True)])


def _sources(part: dict[str, Tensor]) -> np.ndarray:
    """Caches of one source have no note of it."""
    return part["sources"].numpy() if "sources" in part else np.zeros(len(part["video"]), np.int64)
