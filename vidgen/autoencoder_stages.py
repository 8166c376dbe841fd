"""The stages that train the autoencoders: of pictures, and of sound."""

import argparse
import itertools
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from . import config
from .caching import channel_statistics, latent_scales
from .data.sampling import KeyedBatches, Layout, held_back_keys
from .data.source import open_clips, random_crops, to_float, to_uint8
from .loading import load_or_make
from .sheets import contact_sheet, save_sheet
from .stages import Stage, clip_spec, source


def vae_stage(args: argparse.Namespace, settings: config.VAEConfig, accelerator: Accelerator) -> Stage:
    from .vae3d.autoencoder import SpacetimeVAE
    from .vae3d.losses import VAELossWeights, VideoDiscriminator, discriminator_loss, vae_loss

    vae = load_or_make(SpacetimeVAE, args.init, latent_channels=settings.latent_channels, width=settings.model_width,
                       encoder_depth=settings.depth, decoder_depth=settings.depth,
                       **settings.bottleneck_arguments())  # fmt: skip
    spec = clip_spec(settings, num_frames=settings.window_frames)
    dataset = open_clips(args.data, spec, **source(settings, accelerator), with_audio=False,
                         in_buckets=settings.buckets)  # fmt: skip
    weights = VAELossWeights(
        l1=settings.l1_weight,
        l2=settings.l2_weight,
        perceptual=settings.perceptual_weight,
        temporal=settings.temporal_weight,
        kl=settings.kl_weight,
        quantizer=settings.quantizer_weight,
        adversarial=settings.adversarial_weight,
    )
    discriminator = VideoDiscriminator() if settings.adversarial_weight > 0 else None

    def loss(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        video = batch["video"]
        if settings.crop:
            video = random_crops(video, settings.crop, batch["seeds"])
        loss, parts = vae_loss(model, to_float(video), weights, batch["seeds"], discriminator)
        return loss, {**parts, "shown": video}

    def adversary_loss(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return discriminator_loss(model, to_float(batch["shown"]), batch["reconstruction"])

    @torch.no_grad()
    def sheet(average: Any, path: Path) -> None:
        rows = []
        shown = [dataset[[key]]["video"][0] for key in held_back_keys(dataset, 3)]  # of any shape
        for clip in shown:
            reconstruction = average(to_float(clip[None].to(accelerator.device)))[0][0]
            decibels = psnr_db(to_uint8(reconstruction), clip)
            for title, frames in (("clip", clip), (f"decoded, {decibels:.1f} dB", to_uint8(reconstruction))):
                rows.append(contact_sheet(frames.cpu().numpy(), None, settings.sample_rate_hz, title))
        save_sheet(path, rows)

    @torch.no_grad()
    def finish(average: Any, folder: Path, steps: int) -> None:
        latents = []
        clips = min(64, len(dataset))  # type: ignore[arg-type]
        batches = KeyedBatches(len(dataset), settings.batch_size, seed=0, layout=Layout.of(dataset))  # type: ignore[arg-type]
        for keys in itertools.islice(batches, -(-clips // settings.batch_size)):
            latents.append(average.encode(to_float(dataset[keys]["video"].to(accelerator.device))).mode())
        # Of several shapes, every position of each.
        mean, std = channel_statistics(torch.cat([part.movedim(1, 0).flatten(1).T for part in latents]))
        scale = latent_scales(average, latents[0], std, settings.latent_scale_power)
        average.set_latent_statistics(mean, std / scale)
        average.half().save_pretrained(folder)

    held_back = args.validation and open_clips(args.validation, spec, **source(settings, accelerator), with_audio=False)
    return Stage(vae, dataset, loss, sheet, finish, discriminator, adversary_loss, held_back)


def audio_stage(args: argparse.Namespace, settings: config.AudioConfig, accelerator: Accelerator) -> Stage:
    from .audio_sync.codec import AudioCodec
    from .audio_sync.losses import CodecLossWeights, SpectralDiscriminator, codec_loss, discriminator_loss

    codec = load_or_make(
        AudioCodec,
        args.init,
        latent_channels=settings.latent_channels,
        sample_rate_hz=settings.sample_rate_hz,
        hop_samples=settings.hop_samples,
        **settings.bottleneck_arguments(),
    )
    spec = clip_spec(settings, num_frames=round(settings.window_s * settings.frame_rate))
    dataset = open_clips(args.data, spec, **source(settings, accelerator), with_video=False)
    weights = CodecLossWeights(
        kl=settings.kl_weight, quantizer=settings.quantizer_weight, adversarial=settings.adversarial_weight
    )
    discriminator = SpectralDiscriminator() if settings.adversarial_weight > 0 else None

    def loss(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return codec_loss(model, batch["audio"], weights, batch["seeds"], discriminator)

    def adversary_loss(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return discriminator_loss(model, batch["audio"], batch["reconstruction"])

    @torch.no_grad()
    def sheet(average: Any, path: Path) -> None:
        rows = []
        for waveform in dataset[held_back_keys(dataset, 4)]["audio"]:
            decoded = average(waveform[None].to(accelerator.device))[0][0]
            for title, sound in (("sound", waveform), ("decoded", decoded)):
                rows.append(contact_sheet(None, sound[0].cpu().numpy(), settings.sample_rate_hz, title))
        save_sheet(path, rows)

    @torch.no_grad()
    def finish(average: Any, folder: Path, steps: int) -> None:
        latents = []
        for start in range(0, min(256, len(dataset)), 8):  # type: ignore[arg-type]
            batch = dataset[[(n % len(dataset), n) for n in range(start, start + 8)]]  # type: ignore[arg-type]
            latents.append(average.encode(batch["audio"].to(accelerator.device)).mode())
        average.set_latent_statistics(*channel_statistics(torch.cat(latents)))
        average.half().save_pretrained(folder)

    held_back = args.validation and open_clips(args.validation, spec, **source(settings, accelerator), with_video=False)
    return Stage(codec, dataset, loss, sheet, finish, discriminator, adversary_loss, held_back)


def psnr_db(frames: Tensor, reference: Tensor) -> float:
    error = (frames.float() - reference.to(frames.device).float()).square().mean()
    return float(10 * torch.log10(255**2 / error.clamp(min=1e-6)))
