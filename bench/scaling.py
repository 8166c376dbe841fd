"""What training the transformer of a preset takes, by formula: tokens, FLOPs, memory, traffic and days.

    python -m bench.scaling [--preset 1.3b 14b] [--gpus 8 64 512] [--mfu 0.4] [--peak-tflops 989] [--clips 2e7]

Nothing is run: the network is built without data on the meta device and its parameters are counted. ``docs/scaling.md``
explains the formulas and what the tables leave out. ``--peak-tflops`` is a GPU's dense bf16 rate as its maker states
it (989 for an H100 SXM), ``--mfu`` the share of it that training is assumed to use.
"""

import argparse
from dataclasses import dataclass

import torch

from vidgen import config
from vidgen.cli import run
from vidgen.clip import ClipSpec
from vidgen.config import DiTConfig
from vidgen.dit.blocks import block_flops
from vidgen.dit.model import JointDiT
from vidgen.errors import InputError
from vidgen.stages import clip_spec

TEXT_TOKENS = 128
TEXT_DIM = 4096
"""Width of a large frozen text encoder's features (T5-XXL's)."""
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
    args = parser.parse_args()
    if not 0 < args.mfu <= 1 or args.peak_tflops <= 0 or args.clips <= 0 or min(args.gpus) < 1:
        raise InputError("--mfu is more than 0 and at most 1; the peak, clips and GPUs are positive")
    for name in args.preset:
        settings = config.load(name, "dit", [])
        assert isinstance(settings, DiTConfig)
        report(name, settings, args.gpus, args.mfu * args.peak_tflops * 1e12, args.clips)


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


def clip_cost(settings: DiTConfig) -> Cost:
    """Parameters, tokens, FLOPs (forward and backward, no recomputation counted) and activation memory of a clip."""
    spec = clip_spec(settings)
    parameters = sum(parameter.numel() for parameter in meta_transformer(settings).parameters())
    tokens = clip_tokens(settings, spec)
    activations = tokens * settings.model_width * (CHECKPOINT_BYTES * settings.depth + BLOCK_BYTES)
    return Cost(parameters, tokens, 3 * forward_flops(settings, tokens), activations)


def meta_transformer(settings: DiTConfig) -> JointDiT:
    with torch.device("meta"):
        return JointDiT(
            video_channels=48,
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
