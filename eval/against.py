"""A model's clips against reference clips as distributions, with the floors beside which a distance is to be read:
halves of the reference against one another, and the reference after the model's own autoencoders.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from vidgen.data.source import to_float, to_uint8
from vidgen.errors import InputError
from vidgen.media import read_clip, read_metadata, write_video

from .cache import sha256
from .distribution import METRICS, compare, extractor_for, folder_features
from .models import load_pipeline
from .workers import spread


def distances(
    files: Sequence[Path],
    reference: Sequence[Path],
    metrics: Sequence[str] = tuple(METRICS),
    *,
    torchscript: Path | None = None,
    reconstructed: Callable[[], Sequence[Path]] | None = None,
) -> dict[str, Any]:
    """Kernel and Fréchet distances of clips from reference clips, each with n and floors.

    Args:
        metrics: of ``distribution.METRICS``.
        torchscript: I3D as most FVD code uses it, in the place of the fetched weights.
        reconstructed: makes the reference clips as a model's autoencoders give them back; called if a network is there.

    Returns:
        reference: number of clips and a checksum of them; metrics: for each ``extractor``, ``preprocessing``,
        ``distances``, ``notes`` and ``failures``; missing: for each that could not be had, why, and what to do.
    """
    contents = hashlib.sha256("".join(sorted(sha256(path) for path in reference)).encode()).hexdigest()
    results: dict[str, Any] = {"reference": {"clips": len(reference), "sha256": contents}, "metrics": {}, "missing": []}
    extractors = {}
    for metric in metrics:
        try:
            extractors[metric] = extractor_for(metric, torchscript)
        except InputError as error:
            results["missing"].append(f"{' and '.join(METRICS[metric])}: {error}")
    again_files = reconstructed() if extractors and reconstructed is not None else []
    for metric, extractor in extractors.items():
        names, gaussian = METRICS[metric], metric == "sound"
        try:
            if len(files) < 2:
                raise InputError(f"{len(files)} clips are there, and a distance needs two or more")
            real, failures_real = folder_features(list(reference), extractor)
            model, failures = folder_features(list(files), extractor)
            outcome = compare(real, model, names, gaussian=gaussian)
            if again_files:
                again, _ = folder_features(list(again_files), extractor)
                floor = compare(real, again, names, half_samples=200, gaussian=gaussian)["distances"]
                outcome["distances"] += [
                    replace(one, name=f"{one.name} of the reference through the model's autoencoders")
                    for one in floor
                    if one.name in names
                ]
        except InputError as error:
            results["missing"].append(f"{' and '.join(names)}: {error}")
            continue
        results["metrics"][metric] = {
            "extractor": extractor.name,
            "preprocessing": extractor.preprocessing,
            "distances": [asdict(distance) for distance in outcome["distances"]],
            "notes": outcome["notes"],
            "failures": {"reference": failures_real, "model": failures},
        }
    return results


def lines(results: dict[str, Any]) -> list[str]:
    """What ``distances`` found, a line each."""
    told = []
    for found in results["metrics"].values():
        for one in found["distances"]:
            spread_text = " [{:.4g}, {:.4g}]".format(*one["interval"]) if one["interval"] else ""
            sizes = f"(n = {one['num_first']}, {one['num_second']})"
            told.append(f"{one['name']} {one['value']:.4g}{spread_text} {sizes}")
        told += [f"  {note}" for note in found["notes"]]
        for side, failures in found["failures"].items():
            if failures:
                told.append(f"  {len(failures)} {side} clips failed, the first: {failures[0]}")
    return told + [f"without {missing}" for missing in results["missing"]]


def reconstruct(model: Path, device: str, reference: Sequence[Path], folder: Path) -> list[Path]:
    """The reference clips, cut and scaled to the model's, through its two autoencoders; made where missing.

    Raises:
        InputError: no such model.
    """
    pipeline = load_pipeline(model, device)
    version = pipeline.generation.model_version
    spec = pipeline.generation.spec()
    step = spec.compression.frames

    @torch.inference_mode()
    def make(job: tuple[Path, Path]) -> Path | None:
        source, path = job
        tags = {"source": sha256(source), "model_version": version}
        if path.exists() and {key: read_metadata(path).get(key) for key in tags} == tags:
            return path
        try:
            clip = read_clip(
                source, height=spec.height, width=spec.width, frame_rate=spec.frame_rate,
                sample_rate_hz=spec.sample_rate_hz, max_frames=spec.num_frames,
            )  # fmt: skip
        except InputError:
            return None  # its failure is told where the reference itself is read
        frames = torch.from_numpy(clip.frames[: 1 + (len(clip.frames) - 1) // step * step])[None]
        video = to_float(frames.to(pipeline.device)).to(pipeline.vae.dtype)
        decoded = to_uint8(pipeline.vae.from_latents(pipeline.vae.to_latents(video)))[0].cpu().numpy()
        waveform = None
        if clip.waveform is not None:
            sound = torch.from_numpy(clip.waveform)[None, None].to(pipeline.device)
            heard = pipeline.codec.from_latents(pipeline.codec.to_latents(sound), sound.shape[-1])
            waveform = heard[0, 0].float().clamp(-1, 1).cpu().numpy()
        return write_video(path, decoded, waveform, spec.frame_rate, spec.sample_rate_hz, tags)

    jobs = [(source, folder / f"{index:04d}.mp4") for index, source in enumerate(reference)]
    return [path for path in spread(make, jobs, desc="through the autoencoders") if path is not None]
