"""Seconds by stage of the default sample, and our networks beside diffusers' classes of the same size, in one run.

    python -m bench.speed [--model weights] [--repeats 5] [--threads N]

The peers are built with random weights at our width, depth, number of tokens and compression; times are medians of
alternating repeats, so that a busy machine slows all alike, and what counts is their ratio.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from vidgen import cli
from vidgen.clip import ClipSpec
from vidgen.generation import QUALITIES, SHIPPED_MODEL
from vidgen.media import write_video
from vidgen.pipeline import VidGenPipeline

PROMPT = "a small red metal ball drops onto a wooden floor"
TEXT_TOKENS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL)
    parser.add_argument("--quality", choices=QUALITIES, help="of a model with a few-step student: it, or its teacher")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: as many as torch takes")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench.mp4"))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    cli.keep_freed_memory()
    pipe = VidGenPipeline.from_pretrained(args.model, quality=args.quality)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    default_sample(pipe, args.repeats, args.output)
    with torch.inference_mode():
        transformers(pipe, args.repeats)
        autoencoders(pipe, args.repeats)


def default_sample(pipe: VidGenPipeline, repeats: int, path: Path) -> None:
    runs = []
    for seed in range(repeats + 1):
        clip = pipe(PROMPT, generator=torch.Generator().manual_seed(seed))
        start = time.perf_counter()
        write_video(path, clip.frames[0], clip.audio[0], clip.frame_rate, clip.sample_rate)
        runs.append(clip.seconds | {"mux": time.perf_counter() - start})
    settings = pipe.generation
    clip_s = settings.spec().duration_s
    seconds = {stage: statistics.median(run[stage] for run in runs[1:]) for stage in runs[0]}
    total = sum(seconds.values())
    print(f"\ndefault sample: {settings.num_frames} frames {settings.width}x{settings.height}, {clip_s:.2f} s of clip")
    for stage, value in seconds.items():
        print(f"  {stage:14}{value:8.3f} s")
    steps = settings.num_inference_steps
    print(f"  one step      {seconds['denoise'] / steps:8.3f} s  ({steps} steps, guidance {settings.guidance_scale:g})")
    print(f"  all           {total:8.3f} s = {total / clip_s:.2f} of the clip's length")
    print(f"  peak memory   {cli.peak_memory_mib()} MiB")


def transformers(pipe: VidGenPipeline, repeats: int) -> None:
    from diffusers.models.transformers.transformer_ltx2 import LTX2VideoTransformer3DModel
    from diffusers.models.transformers.transformer_wan import WanTransformer3DModel

    ours, spec = pipe.transformer, pipe.generation.spec()
    config = ours.config
    heads, head_dim = config.heads, config.width // config.heads
    video = torch.randn(1, config.video_channels, spec.latent_frames, spec.latent_height, spec.latent_width)
    audio = torch.randn(1, config.audio_channels, spec.audio_latents)
    text, sigma = torch.randn(1, TEXT_TOKENS, config.text_dim), torch.full((1, 1), 0.5)
    video_times_s = torch.tensor(spec.video_latent_times_s())
    audio_times_s = torch.tensor(spec.audio_latent_times_s())
    rows, columns = spec.latent_height // config.patch, spec.latent_width // config.patch
    tokens = spec.latent_frames * rows * columns

    def run_ours(with_audio: bool) -> Callable[[], object]:
        return lambda: ours(
            video, audio if with_audio else None, text, video_sigma=sigma[..., None, None], audio_sigma=sigma,
            video_times_s=video_times_s, audio_times_s=audio_times_s,
        )  # fmt: skip

    wan = WanTransformer3DModel(
        patch_size=(1, config.patch, config.patch), num_attention_heads=heads, attention_head_dim=head_dim,
        in_channels=config.video_channels, out_channels=config.video_channels, text_dim=config.text_dim,
        ffn_dim=4 * config.width, num_layers=config.depth,
    )  # fmt: skip
    patch_channels = config.video_channels * config.patch**2
    ltx2 = LTX2VideoTransformer3DModel(
        in_channels=patch_channels, out_channels=patch_channels, num_attention_heads=heads, attention_head_dim=head_dim,
        cross_attention_dim=config.width, audio_in_channels=config.audio_channels,
        audio_out_channels=config.audio_channels, audio_num_attention_heads=heads, audio_attention_head_dim=head_dim,
        audio_cross_attention_dim=config.width, num_layers=config.depth, caption_channels=config.text_dim,
        vae_scale_factors=(spec.compression.frames, spec.compression.pixels, spec.compression.pixels),
    )  # fmt: skip
    flat_video, flat_audio = torch.randn(1, tokens, patch_channels), audio.transpose(1, 2)
    timestep = torch.full((1,), 500.0)
    print(
        f"\nDiT forward, width {config.width}, depth {config.depth}, {tokens} video tokens, {audio.shape[2]} of audio"
    )
    compare(
        {
            "vidgen, video + audio": (ours, run_ours(True)),
            "diffusers LTX2, video + audio": (
                ltx2,
                lambda: ltx2(
                    flat_video, flat_audio, text, text, timestep, num_frames=spec.latent_frames, height=rows,
                    width=columns, audio_num_frames=flat_audio.shape[1],
                ),
            ),
        },
        repeats,
    )  # fmt: skip
    compare(
        {
            "vidgen, video alone": (ours, run_ours(False)),
            "diffusers Wan, video alone": (wan, lambda: wan(video, timestep, text)),
        },
        repeats,
    )


def autoencoders(pipe: VidGenPipeline, repeats: int) -> None:
    from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    spec: ClipSpec = pipe.generation.spec()
    channels = pipe.vae.config.latent_channels
    latents = torch.randn(1, channels, spec.latent_frames, spec.latent_height, spec.latent_width)
    ltx2 = AutoencoderKLLTX2Video(
        latent_channels=channels, block_out_channels=(64, 128), decoder_block_out_channels=(64, 128),
        down_block_types=("LTX2VideoDownBlock3D",) * 2, layers_per_block=(2, 2, 2), decoder_layers_per_block=(2, 2, 2),
        spatio_temporal_scaling=(True, True), decoder_spatio_temporal_scaling=(True, True),
        decoder_inject_noise=(False,) * 3, downsample_type=("spatiotemporal",) * 2,
        upsample_type=("spatiotemporal",) * 2, upsample_residual=(True, True), upsample_factor=(2, 2), patch_size=4,
    )  # fmt: skip
    wan = AutoencoderKLWan(
        base_dim=32, z_dim=channels, num_res_blocks=1, in_channels=12, out_channels=12, patch_size=2,
        latents_mean=[0.0] * channels, latents_std=[1.0] * channels, scale_factor_spatial=16,
    )  # fmt: skip
    print(
        f"\nVAE decode to {spec.padded_frames}x{spec.height}x{spec.width}, 16x16x4 compression (parameters: decoders')"
    )
    compare(
        {
            "vidgen SpacetimeVAE": (pipe.vae.decoder, lambda: pipe.vae.decode(latents)),
            "diffusers LTX2 VAE": (ltx2.decoder, lambda: ltx2.decode(latents).sample),
            "diffusers Wan VAE": (wan.decoder, lambda: wan.decode(latents).sample),
        },
        repeats,
    )


def compare(contenders: dict[str, tuple[nn.Module, Callable[[], object]]], repeats: int) -> None:
    """Print median seconds of each, and how many times as long as the first it takes."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, (network, call) in contenders.items():
            network.eval()
            start = time.perf_counter()
            made = call()
            if repeat:  # the first is a warm-up
                seconds[name].append(time.perf_counter() - start)
            elif isinstance(made, Tensor):
                assert made.isfinite().all(), name
    first = statistics.median(next(iter(seconds.values())))
    for name, values in seconds.items():
        size = sum(p.numel() for p in contenders[name][0].parameters()) / 1e6
        median = statistics.median(values)
        print(f"  {name:32}{size:7.1f} M parameters{median:9.3f} s   {median / first:5.2f}x")


if __name__ == "__main__":
    cli.run(main)
