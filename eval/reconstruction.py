"""What the two autoencoders of a model lose:

    python -m vidgen.tabletop.physics --count 400 --seed 2 --output test-scenes.npz --workers 2
    python -m eval.reconstruction --model weights --data test-scenes.npz

Bring clips that the autoencoders were not trained on: nothing here can know.
``--data`` is a file of simulated scenes or a folder of clips, as for train.py. Sound is compared where a clip has any.

``--vae`` and ``--codec`` take the place of the model's own, as ``train.py vae3d`` and ``train.py audio`` leave them. Of
one with a quantizer the use of its codebooks and its bit rate are told. To compare one with a KL bottleneck at the same
rate, ``--video-kbps`` and ``--audio-kbps`` round its latents as coarsely as that rate asks:

    python -m eval.reconstruction --data test-scenes.npz --vae runs/out/vae3d-lfq/model
    python -m eval.reconstruction --data test-scenes.npz --vae runs/out/vae3d/model --video-kbps 19
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from vidgen.audio_sync.codec import AudioCodec
from vidgen.audio_sync.losses import spectral_distances
from vidgen.audio_sync.onsets import match_onsets, onset_times_s
from vidgen.cli import run
from vidgen.clip import Compression
from vidgen.data.source import open_clips, to_float, to_uint8
from vidgen.errors import InputError
from vidgen.generation import SHIPPED_MODEL
from vidgen.loading import load_network
from vidgen.pipeline import VidGenPipeline
from vidgen.quantizers import Quantizer
from vidgen.vae3d.autoencoder import SpacetimeVAE
from vidgen.vae3d.losses import perceptual_loss

from . import fidelity
from .bitrate import RoundedLatents, rounded_kbit_per_s, step_for_rate, token_figures

MOVING_LEVELS = 8
"""A pixel moves where a channel changes by more than this many of 255 levels from the frame before."""
SAME_ONSET_S = 0.05
"""How far the onset of a decoded sound may be from the original's and still be the same one."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.reconstruction", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, help="folder of a model")
    parser.add_argument("--data", type=Path, required=True, help="simulated scenes (.npz) or a folder of clips")
    parser.add_argument("--vae", type=Path, help="folder of a video autoencoder instead of the model's")
    parser.add_argument("--codec", type=Path, help="folder of an audio codec instead of the model's")
    parser.add_argument("--video-kbps", type=float, help="round the latents of a KL bottleneck to so many kbit/s")
    parser.add_argument("--audio-kbps", type=float, help="the same for sound")
    parser.add_argument("--clips", type=int, default=32, help="how many clips")
    parser.add_argument("--seed", type=int, default=0, help="of the looks of simulated scenes")
    parser.add_argument("--output", type=Path, help="write the figures as JSON, too")
    args = parser.parse_args()
    if args.clips < 1:
        raise InputError("--clips must be at least 1")
    pipeline = VidGenPipeline.from_pretrained(args.model)
    vae = load_network(SpacetimeVAE, args.vae) if args.vae else pipeline.vae
    codec = load_network(AudioCodec, args.codec) if args.codec else pipeline.codec
    compression = Compression(vae.config.temporal_compression, vae.config.spatial_compression, codec.config.hop_samples)
    rate_hz = codec.config.sample_rate_hz
    spec = replace(pipeline.generation, compression=compression, sample_rate_hz=rate_hz).spec()
    clips: Any = open_clips(args.data, spec, seed=args.seed, split="any")
    keys = [(index, 0) for index in range(min(args.clips, len(clips)))]
    figures: dict[str, float] = {}
    for name, wanted in (("video", args.video_kbps), ("audio", args.audio_kbps)):
        network = vae if name == "video" else codec
        if wanted is None and not isinstance(network.to_posterior, Quantizer):
            continue
        signals = (signal(clips[[key]], name) for key in tqdm(keys, desc=f"{name} rate", unit="clip", disable=None))
        heard = [clip for clip in signals if clip is not None]
        if not heard:
            continue
        network, rates = at_rate(network, heard, len(heard) * spec.duration_s, wanted)
        figures |= {f"{name}_{key}": value for key, value in rates.items()}
        vae, codec = (network, codec) if name == "video" else (vae, network)
    pictures, sounds = [], []
    for key in tqdm(keys, unit="clip", disable=None):
        batch = clips[[key]]
        pictures.append(picture_figures(vae, batch["video"]))
        if batch["has_audio"].item():
            sounds.append(sound_figures(codec, batch["audio"], rate_hz))
    figures |= summary(pictures, sounds) | {"held_frame_flicker_levels": held_frame_flicker(vae, batch["video"])}
    if sounds:
        figures["silence_dbfs"] = silence_dbfs(codec, batch["audio"].shape[-1])
    print("\n".join(f"{name.replace('_', ' '):34} {value:.4g}" for name, value in figures.items()))
    if args.output is not None:
        args.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def signal(batch: dict[str, Any], name: str) -> Tensor | None:
    """What the named autoencoder takes of a batch of one clip; None where the clip has no sound."""
    if name == "video":
        return to_float(batch["video"])
    return batch["audio"] if batch["has_audio"].item() else None


@torch.inference_mode()
def at_rate(
    network: Any, signals: list[Tensor], duration_s: float, wanted_kbps: float | None
) -> tuple[Any, dict[str, float]]:
    """An autoencoder that has a bit rate, and figures of that rate on these signals.

    One with a quantizer is returned as it is, another rounds its latents to the wanted rate.

    Raises:
        InputError: a rate is wanted of a quantizer, or cannot be reached.
    """
    if isinstance(network.to_posterior, Quantizer):
        if wanted_kbps is not None:
            raise InputError("a quantizer's bit rate is fixed: a rate can be chosen for a KL bottleneck only")
        tokens = [network.encode(one).tokens for one in signals]
        return network, token_figures(tokens, network.to_posterior.vocabulary, duration_s)
    latents = [network.to_latents(one) for one in signals]
    step = step_for_rate(latents, wanted_kbps or 0.0, duration_s)
    rates = {"rounding_step": step, "entropy_kbit_per_s": rounded_kbit_per_s(latents, step, duration_s)}
    return RoundedLatents(network, step), rates


@torch.inference_mode()
def picture_figures(vae: Any, frames: Tensor) -> dict[str, float]:
    """Of one clip (1, T, H, W, 3) uint8: squared errors, feature distance and what moves before and after."""
    video = to_float(frames)
    decoded = vae.from_latents(vae.to_latents(video))
    ours, theirs = to_uint8(decoded).float(), frames.float()
    error = (ours - theirs).square()
    changes = theirs.diff(dim=1).abs()
    moving = (changes > MOVING_LEVELS).any(-1)
    moving_error = error[:, 1:][moving]
    ours_again, theirs_again = (stream[0].movedim(1, 0) for stream in (decoded.clamp(-1, 1), video))
    return {
        "psnr_db": _psnr_db(float(error.mean())),
        "moving_psnr_db": _psnr_db(float(moving_error.mean())) if len(moving_error) else float("nan"),
        "feature_distance": float(perceptual_loss(ours_again, theirs_again)),
        **_standard_figures(to_uint8(decoded)[0], frames[0]),
        "frame_difference": float(changes.mean()),
        "decoded_frame_difference": float(ours.diff(dim=1).abs().mean()),
    }


def _standard_figures(frames: Tensor, targets: Tensor) -> dict[str, float]:
    """SSIM, and LPIPS if ``python -m eval.fetch lpips`` has been run; of (T, H, W, 3) uint8."""
    network = fidelity.lpips_network() if min(targets.shape[1:3]) >= 32 else None
    figures = {"ssim": fidelity.ssim(frames, targets)}
    return figures if network is None else figures | {"lpips": fidelity.lpips(network, frames, targets)}


@torch.inference_mode()
def held_frame_flicker(vae: Any, frames: Tensor) -> float:
    """Mean change between decoded frames, in levels of 255, when the input shows one frame all the time."""
    still = to_float(frames[:, :1].expand_as(frames))
    return float(to_uint8(vae.from_latents(vae.to_latents(still))).float().diff(dim=1).abs().mean())


@torch.inference_mode()
def sound_figures(codec: Any, waveform: Tensor, sample_rate_hz: int) -> dict[str, Any]:
    """Of one waveform (1, C, N): spectral distances, and what becomes of its onsets."""
    decoded = codec.from_latents(codec.to_latents(waveform), waveform.shape[-1])
    convergence, log_magnitude, _ = spectral_distances(decoded, waveform)
    heard, wanted = (onset_times_s(signal[0].numpy(), sample_rate_hz) for signal in (decoded, waveform))
    match = match_onsets(wanted, heard, SAME_ONSET_S)
    return {
        "spectral_convergence": float(convergence),
        "log_magnitude_nats": float(log_magnitude),
        "stft_distance": fidelity.stft_distance(decoded, waveform),
        "onset_errors_s": np.abs(match.offsets_s),
        "lost": len(match.missing_s),
        "added": len(match.surplus_s),
    }


@torch.inference_mode()
def silence_dbfs(codec: Any, num_samples: int) -> float:
    """What silence decodes to, as RMS in decibels below full scale."""
    silence = torch.zeros(1, codec.config.channels, num_samples)
    rms = codec.from_latents(codec.to_latents(silence), num_samples).square().mean().sqrt()
    return float(20 * torch.log10(rms.clamp(min=1e-10)))


def summary(pictures: list[dict[str, float]], sounds: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the clips; onsets are pooled."""
    figures: dict[str, float] = {"clips": len(pictures)}
    for name in ("psnr_db", "moving_psnr_db", "feature_distance", "ssim", "lpips"):
        known = [clip[name] for clip in pictures if np.isfinite(clip.get(name, np.nan))]
        if known:
            figures[name] = float(np.mean(known))
    before, after = (sum(clip[name] for clip in pictures) for name in ("frame_difference", "decoded_frame_difference"))
    figures["frame_difference_ratio"] = after / max(before, 1e-9)
    if not sounds:
        return figures
    for name in ("spectral_convergence", "log_magnitude_nats", "stft_distance"):
        known = [sound[name] for sound in sounds if sound[name] is not None]
        if known:
            figures[name] = float(np.mean(known))
    errors_s = np.concatenate([sound["onset_errors_s"] for sound in sounds])
    lost, added = (sum(sound[name] for sound in sounds) for name in ("lost", "added"))
    figures |= {"onsets": len(errors_s) + lost, "onsets_lost": lost, "onsets_added": added}
    if len(errors_s):
        figures |= {
            "onset_error_median_ms": 1000 * float(np.median(errors_s)),
            "onset_error_95_percent_ms": 1000 * float(np.quantile(errors_s, 0.95)),
            "onsets_within_5_ms_percent": 100 * float((errors_s <= 0.005).mean()),
        }
    return figures


def _psnr_db(mean_square: float) -> float:
    return 10 * float(np.log10(255**2 / max(mean_square, 1e-6)))


if __name__ == "__main__":
    run(main)
