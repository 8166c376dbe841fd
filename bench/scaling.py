"""What training the transformer of a preset takes, by formula: tokens, FLOPs, memory, traffic and days.

    python -m bench.scaling [--preset 1.3b 14b] [--gpus 8 64 512] [--mfu 0.4] [--peak-tflops 989] [--clips 2e7]
    python -m bench.scaling --measure tabletop-cpu [--batch-size 8] [--seconds 20]

For the tables nothing is run: the network is built without data on the meta device and its parameters are counted.
``docs/scaling.md`` explains the formulas and what the tables leave out. ``--peak-tflops`` is a GPU's dense bf16 rate as
its maker states it (989 for an H100 SXM), ``--mfu`` the share of it that training is assumed to use. ``--measure``
takes training steps of a preset on this machine, with random latents, and tells which share of its own peak they reach.
"""

import argparse
import dataclasses
import itertools
import time
from dataclasses import dataclass

import torch

from vidgen import config
from vidgen.cli import keep_freed_memory, run
from vidgen.clip import ClipSpec
from vidgen.config import DiTConfig
from vidgen.dit.blocks import block_flops
from vidgen.dit.model import JointDiT
from vidgen.errors import InputError
from vidgen.flow import FlowConfig, flow_loss
from vidgen.loading import choose_device
from vidgen.optimizers import make_optimizers
from vidgen.progress import measured_peak_flops_per_s
from vidgen.stages import clip_spec

TEXT_TOKENS = 128
TEXT_DIM = 4096
"""Width of a large frozen text encoder's features (T5-XXL's)."""
VIDEO_CHANNELS = 48
AUDIO_CHANNELS = 32
STATE_BYTES = 4 + 4 + 8 + 4
"""A parameter in training: float32 weight, gradient, two Adam moments, and the averaged weight."""
CHECKPOINT_BYTES = 2
"""For each token and channel, what a checkpointed block keeps: its input in bf16."""
BLOCK_BYTES = 2 * 34
"""For each token and channel, what the block that is being recomputed holds, in bf16: its input and both norms, twice
modulated (5), six modulations, query, key and value as made and as rotated (6), the attention's and its projection's
output (2), 3 hidden layers 4 times as wide (12), the output and its gradients (3)."""
TRAFFIC_BYTES = 2 + 2 + 4
"""A parameter in a step of FSDP: gathered in bf16 forward and backward, its float32 gradient scattered."""
WARM_UP = 2
"""Steps before the clock starts."""


@dataclass(frozen=True)
class Cost:
    """Of one clip in one training step."""

    parameters: int
    tokens: int
    train_flops: float
    activation_bytes: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__.split("\n")[0])
    parser.add_argument("--preset", nargs="+", default=["1.3b", "14b"])
    parser.add_argument("--gpus", nargs="+", type=int, default=[8, 64, 512])
    parser.add_argument("--mfu", type=float, default=0.4, help="assumed share of the peak, 0 to 1")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of one GPU, dense bf16")
    parser.add_argument("--clips", type=float, default=2e7, help="clips to train on, repetitions counted")
    parser.add_argument("--measure", nargs="+", default=[], metavar="PRESET", help="train these here for a while")
    parser.add_argument("--batch-size", type=int, help="of the steps measured (default: the preset's)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    parser.add_argument("--device", default="auto", help="of the measurements")
    args = parser.parse_args()
    if not 0 < args.mfu <= 1 or args.peak_tflops <= 0 or args.clips <= 0 or min(args.gpus) < 1:
        raise InputError("--mfu is more than 0 and at most 1; the peak, clips and GPUs are positive")
    if args.measure:
        keep_freed_memory()
        for name in args.measure:
            measure(name, preset(name), args.batch_size, args.seconds, choose_device(args.device))
        return
    for name in args.preset:
        report(name, preset(name), args.gpus, args.mfu * args.peak_tflops * 1e12, args.clips)


def preset(name: str) -> DiTConfig:
    settings = config.load(name, "dit", [])
    assert isinstance(settings, DiTConfig)
    return settings


def report(name: str, settings: DiTConfig, gpus: list[int], flops_per_s: float, clips: float) -> None:
    cost, spec = clip_cost(settings), clip_spec(settings)
    print(f"\n{name}: {cost.parameters / 1e9:.2f} G parameters, {settings.model_width} wide, {settings.depth} deep")
    print(f"clip: {spec.num_frames} frames {spec.width}x{spec.height}, {spec.duration_s:.2f} s, {cost.tokens} tokens")
    print(f"a clip trained: {cost.train_flops / 1e15:.2f} PFLOP, {attention_share(settings):.0%} of it attention")
    print(f"state: {STATE_BYTES * cost.parameters / 2**30:.0f} GiB; ", end="")
    print(f"activations of a clip, every block checkpointed: {cost.activation_bytes / 2**30:.1f} GiB")
    print(f"{clips:.3g} clips: {clips * cost.train_flops / 1e21:.1f} ZFLOP, {clips * cost.tokens / 1e12:.2f} T tokens")
    print("  GPUs   GiB each   step, 1 clip each   traffic each   to hide it   days")
    for count in gpus:
        each = STATE_BYTES * cost.parameters / count + cost.activation_bytes
        step_s = cost.train_flops / flops_per_s
        traffic = TRAFFIC_BYTES * cost.parameters * (count - 1) / count
        days = clips * cost.train_flops / flops_per_s / count / 86400
        print(
            f"{count:6d} {each / 2**30:10.1f} {step_s:17.2f} s {traffic / 1e9:11.1f} GB "
            f"{traffic / 1e9 / step_s:7.1f} GB/s {days:6.1f}"
        )


def measure(name: str, settings: DiTConfig, batch_size: int | None, seconds: float, device: torch.device) -> None:
    settings = dataclasses.replace(settings, batch_size=batch_size or settings.batch_size)
    tokens = clip_tokens(settings, clip_spec(settings))
    peak = measured_peak_flops_per_s(device, settings.mixed_precision == "bf16" and device.type != "cpu")
    clips_per_s = trained_per_s(settings, seconds, device)
    used = clips_per_s * 3 * forward_flops(settings, tokens)
    print(
        f"{name}: batches of {settings.batch_size} clips of {tokens} tokens on {device}, {torch.get_num_threads()} "
        f"threads: {clips_per_s:.2f} clips/s, {clips_per_s * tokens:.0f} tokens/s, {used / 1e12:.3f} TFLOP/s, "
        f"{used / peak:.0%} of the {peak / 1e12:.3f} TFLOP/s of a large matrix product"
    )


def trained_per_s(settings: DiTConfig, seconds: float, device: torch.device) -> float:
    """Clips a second of whole training steps, with random latents that are on the device already."""
    spec, count = clip_spec(settings), settings.batch_size
    network = transformer(settings).to(device).train()
    if settings.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    if settings.compile:
        for block in network.blocks:
            block.compile()
    optimizers = make_optimizers(network, settings)
    shape = (spec.latent_frames, spec.latent_height, spec.latent_width)
    video = torch.randn(count, VIDEO_CHANNELS, *shape, device=device)
    audio = torch.randn(count, AUDIO_CHANNELS, spec.audio_latents, device=device)
    text = torch.randn(count, TEXT_TOKENS, TEXT_DIM, device=device)
    times_s = {
        "video_times_s": torch.tensor(spec.video_latent_times_s(), device=device),
        "audio_times_s": torch.tensor(spec.audio_latent_times_s(), device=device),
    }
    started = 0.0
    for step in itertools.count():
        if step == WARM_UP:
            started = time.perf_counter()
        seeds = range(step * count, (step + 1) * count)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.mixed_precision == "bf16"):
            loss, _ = flow_loss(network, video, audio, text, seeds=seeds, config=FlowConfig(), **times_s)
        loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        loss.item()  # waits for the device
        done, elapsed = step + 1 - WARM_UP, time.perf_counter() - started
        if done > 0 and elapsed > seconds:
            return done * count / elapsed
    raise AssertionError("not reached")


def clip_cost(settings: DiTConfig) -> Cost:
    """Parameters, tokens, FLOPs (forward and backward, no recomputation counted) and activation memory of a clip."""
    spec = clip_spec(settings)
    parameters = sum(parameter.numel() for parameter in meta_transformer(settings).parameters())
    tokens = clip_tokens(settings, spec)
    activations = tokens * settings.model_width * (CHECKPOINT_BYTES * settings.depth + BLOCK_BYTES)
    return Cost(parameters, tokens, 3 * forward_flops(settings, tokens), activations)


def meta_transformer(settings: DiTConfig) -> JointDiT:
    with torch.device("meta"):
        return transformer(settings)


def transformer(settings: DiTConfig) -> JointDiT:
    return JointDiT(
        video_channels=VIDEO_CHANNELS,
        audio_channels=AUDIO_CHANNELS,
        text_dim=TEXT_DIM,
        width=settings.model_width,
        depth=settings.depth,
        heads=settings.heads,
        patch=settings.patch,
        text_layers=settings.text_layers,
        local_width=settings.local_width,
    )


def clip_tokens(settings: DiTConfig, spec: ClipSpec) -> int:
    video = spec.latent_frames * spec.latent_height * spec.latent_width // settings.patch**2
    return video + spec.audio_latents + TEXT_TOKENS + 1


def forward_flops(settings: DiTConfig, tokens: int) -> float:
    """Of the blocks, in which nearly all is spent."""
    return settings.depth * block_flops(settings.model_width, tokens)


def attention_share(settings: DiTConfig) -> float:
    """How much of the FLOPs grow with the square of the tokens."""
    tokens = clip_tokens(settings, clip_spec(settings))
    return settings.depth * 4.0 * tokens**2 * settings.model_width / forward_flops(settings, tokens)


if __name__ == "__main__":
    run(main)
