"""How fast training data comes, from films to latents, beside a training step on the same machine.

    python -m bench.loading INPUT… [--model weights] [--workers 0] [--seconds 8] [--batch-size 8] [--clips 64]

The same recordings are read as they are (decoded on the fly), from shards of ``vidgen.data.prepare`` (short GOPs, the
size of training), as latents from a cache, and as latents that stay in the training device's memory (train.py keeps
them there if they fit; here they must); then a transformer is trained on those latents. Everything goes through the
sampler and the loader that train.py uses. A loader should bring at least three times the tokens that a step uses up
(``AMPLE``); so for each is told how fast a device it keeps busy, and how many loading processes a GPU ``--faster``
times as fast as this machine would take, if each brings what one brought here.
"""

import argparse
import itertools
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from vidgen import cli
from vidgen.data import prepare
from vidgen.data.folder import ClipFolder
from vidgen.data.latents import LatentClips, cache_latents, complete_cache
from vidgen.data.recordings import Recordings, shard_recordings
from vidgen.data.sampling import KeyedBatches, Layout, SeededBatches
from vidgen.data.source import to_float
from vidgen.errors import InputError
from vidgen.flow import FlowConfig, flow_loss
from vidgen.generation import SHIPPED_MODEL
from vidgen.loading import choose_device
from vidgen.noise import to_device
from vidgen.pipeline import VidGenPipeline

AMPLE = 3
"""How many times what a step uses up is enough."""
WARM_UP = 2
"""Batches before the clock starts: processes start, files enter the system's cache."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT", help="folders of videos")
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, help="whose autoencoders and transformer are used")
    parser.add_argument("--workers", type=int, default=0, help="loading processes")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--clips", type=int, default=64, help="in the latent cache")
    parser.add_argument("--device", default="auto", help="of the training step")
    parser.add_argument("--faster", type=float, default=100.0, help="than this machine's step is the GPU to plan for")
    args = parser.parse_args()
    cli.keep_freed_memory()
    device = choose_device(args.device)
    pipe = VidGenPipeline.from_pretrained(args.model, device=device, quality="high")
    spec = pipe.generation.spec()
    patch = pipe.transformer.config.patch
    tokens = spec.latent_frames * spec.latent_height * spec.latent_width // patch**2 + spec.audio_latents
    print(f"{spec.num_frames} frames {spec.width}x{spec.height} with sound, {tokens} tokens a clip")
    print(f"batches of {args.batch_size}, {args.workers} workers, {torch.get_num_threads()} threads, {device}")
    measured = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for folder in args.inputs:
            if not folder.is_dir():
                raise InputError(f"{folder} is not a folder of videos")
        originals = [recording for folder in args.inputs for recording in ClipFolder(folder, spec).recordings]
        size = round((spec.height * spec.width) ** 0.5)
        names = [str(folder) for folder in args.inputs]
        prepare.main([*names, "--output", str(work / "shards"), "--size", str(size), "--min-motion", "0"])
        prepared = Recordings(shard_recordings(work / "shards"), spec)
        cache(pipe, prepared, work / "latents", args.clips)
        latents = LatentClips(work / "latents")
        for name, dataset in (
            ("originals, decoded on the fly", Recordings(originals, spec)),
            ("prepared shards", prepared),
            ("latent cache", latents),
        ):
            measured[name] = loaded(dataset, args.batch_size, args.workers, args.seconds)
        held = LatentClips(work / "latents").to(device)
        name = "latents in memory"
        measured[name] = loaded(held.choices, args.batch_size, args.workers, args.seconds, held.gather)
        measured["training step"] = trained(pipe, latents, args.batch_size, args.seconds, device)
    slowest = measured["originals, decoded on the fly"]
    for name, clips_per_s in measured.items():
        print(f"{name:32}{clips_per_s:10.2f} clips/s{clips_per_s * tokens:12.0f} tokens/s{clips_per_s / slowest:9.1f}x")
    for line in judgement(measured, args.workers, args.faster):
        print(line)


def judgement(clips_per_s: dict[str, float], workers: int, faster: float) -> list[str]:
    """For each loader, what it brings against the ``training step``, and what a step ``faster`` times as fast asks."""
    step = clips_per_s["training step"]
    lines = []
    for name, brought in clips_per_s.items():
        if name != "training step":
            times = brought / step
            needed = math.ceil(faster * AMPLE * max(1, workers) / times)
            lines.append(
                f"{name}: {times:.1f} times what a step uses up, {'enough' if times >= AMPLE else 'too little'} "
                f"(asked: {AMPLE}); enough for a step up to {times / AMPLE:.1f} times as fast; "
                f"one {faster:.0f} times as fast takes {needed} loading process{'es' * (needed != 1)}"
            )
    return lines


def cache(pipe: VidGenPipeline, clips: Recordings, folder: Path, count: int) -> None:
    @torch.no_grad()
    def encode(batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        video, audio = (to_device(batch[name], pipe.device) for name in ("video", "audio"))
        return pipe.vae.to_latents(to_float(video)), pipe.codec.to_latents(audio)

    cache_latents(clips, count, encode, folder)
    complete_cache(count, folder)


def batches(dataset: Any, batch_size: int, workers: int) -> Any:
    sampler = KeyedBatches(len(dataset), batch_size, seed=0, layout=Layout.of(dataset))
    return iter(DataLoader(SeededBatches(dataset, 0), sampler=sampler, batch_size=None, num_workers=workers))


def loaded(
    dataset: Any, batch_size: int, workers: int, seconds: float, gather: Callable[[Any], Any] = lambda batch: batch
) -> float:
    """Clips a second that come out of the loader, and of ``gather`` after it, which is not the workers' part."""
    source = batches(dataset, batch_size, workers)
    for batch in itertools.islice(source, WARM_UP):
        gather(batch)
    start, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - start) < seconds:
        gather(next(source))
        count += batch_size
    return count / elapsed


def trained(pipe: VidGenPipeline, clips: LatentClips, batch_size: int, seconds: float, device: torch.device) -> float:
    """Clips a second that forward, backward and optimizer get through, once they are loaded."""
    spec, model = pipe.generation.spec(), pipe.transformer.float().train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    times_s = {
        "video_times_s": torch.tensor(spec.video_latent_times_s(), device=device),
        "audio_times_s": torch.tensor(spec.audio_latent_times_s(), device=device),
    }
    source = batches(clips, batch_size, 0)
    spent, count = 0.0, 0
    for number in itertools.count():
        batch = next(source)
        video, audio, has_audio = (to_device(batch[name], device) for name in ("video", "audio", "has_audio"))
        start = time.perf_counter()
        text, mask = pipe.text_encoder.encode(batch["captions"])
        loss, _ = flow_loss(model, video, audio, text, text_mask=mask, has_audio=has_audio, seeds=batch["seeds"],
                            config=FlowConfig(), **times_s)  # fmt: skip
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # waits for the device
        if number >= WARM_UP:
            spent, count = spent + time.perf_counter() - start, count + batch_size
        if spent > seconds:
            break
    return count / spent


if __name__ == "__main__":
    cli.run(main)
