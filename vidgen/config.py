"""Training presets: frozen dataclasses in one table, and overrides from the command line."""

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, TypeVar

from .errors import InputError


@dataclass(frozen=True)
class TrainConfig:
    """What every stage has in common. ``batch_size`` is per process and per accumulation step."""

    num_frames: int = 49
    height: int = 128
    width: int = 128
    frame_rate: float = 24.0
    sample_rate_hz: int = 24000

    buckets: bool = False
    """Show each recording in a shape near its own, of at most ``num_frames`` and about ``height`` × ``width`` pixels:
    nothing is stretched, images are clips of one frame, sound alone trains the sound. Otherwise every clip is cropped
    to the one shape. A batch has clips of one shape."""

    steps: int = 2000
    batch_size: int = 4
    accumulate: int = 1
    optimizer: str = "adamw"
    """``adamw``, or ``muon``: Muon for the matrices, AdamW for the rest, at one learning rate."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    beta2: float = 0.99
    warmup_steps: int = 100
    cooldown: float = 0.3
    """Fraction of the steps, at the end, over which the learning rate falls linearly to zero."""
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: str = "no"
    """``no`` or ``bf16``. On a CPU the latter can be the slower one; see docs/training.md."""
    compile: bool = False
    """Compile each repeated block of the network (regional compilation)."""
    gradient_checkpointing: bool = False
    """dit, distill: keep only each block's input and compute the block again in the backward pass."""
    shard: bool = False
    """dit, distill: share the network out over the processes (FSDP2) instead of copying it to each."""
    context_parallel: int = 1
    """dit, distill: share each clip's tokens out over so many processes, for clips that do not fit one (1: over none).
    The batch is that of all of them together: eight processes at 2 train on four batches a step."""
    seed: int = 0
    workers: int = 0
    """Data loading processes for each training process."""
    log_every: int = 20
    sample_every: int = 500
    checkpoint_every: int = 250
    keep_checkpoints: int = 2
    """How many of the newest; the one with the lowest validation loss stays, too."""
    validation_clips: int = 64
    """How many clips of ``--validation`` to look at, at every checkpoint."""
    divergence_factor: float = 10.0
    """Training stops when the loss exceeds this many times its running mean."""


@dataclass(frozen=True)
class AutoencoderConfig(TrainConfig):
    """What both autoencoders have in common."""

    bottleneck: str = "kl"
    """``kl``, or a quantizer, whose codes are tokens: ``lfq``, ``fsq`` or ``rvq`` (``vidgen.quantizers``)."""
    codebooks: int = 4
    """Of a quantizer: tokens at each latent position."""
    codebook_size: int = 1024
    """Codes in each of RVQ's codebooks."""
    levels: str = ""
    """Of FSQ: the levels of each channel of a codebook, as 8,5,5,5; empty for 5 each."""
    quantizer_weight: float = 0.02
    """Of a quantizer's own loss, which takes the place of the divergence of ``kl_weight``."""

    def bottleneck_arguments(self) -> dict[str, Any]:
        """Arguments of an autoencoder that choose its bottleneck.

        Raises:
            InputError: levels that are no whole numbers.
        """
        if self.bottleneck == "kl":
            return {"bottleneck": "kl"}
        try:
            levels = [int(number) for number in self.levels.split(",")] if self.levels else None
        except ValueError as error:
            raise InputError(f"levels are whole numbers with commas, as 8,5,5,5, not {self.levels!r}") from error
        numbers = {"codebooks": self.codebooks, "codebook_size": self.codebook_size, "levels": levels}
        return {"bottleneck": self.bottleneck, **numbers}


@dataclass(frozen=True)
class VAEConfig(AutoencoderConfig):
    window_frames: int = 17
    crop: int = 0
    """Edge in pixels of the square that each step sees of a window; 0 shows all. Small crops buy more steps."""
    latent_channels: int = 24
    model_width: int = 256
    depth: int = 4
    l1_weight: float = 1.0
    l2_weight: float = 1.0
    perceptual_weight: float = 0.1
    temporal_weight: float = 0.5
    kl_weight: float = 1e-4
    adversarial_weight: float = 0.0
    """The discriminator is trained only when this is positive."""
    latent_scale_power: float = 0.5
    """How far normalised latents keep the size of what they do to the picture: 0 makes all channels equally large."""


@dataclass(frozen=True)
class AudioConfig(AutoencoderConfig):
    window_s: float = 1.0
    latent_channels: int = 32
    hop_samples: int = 960
    """Audio samples that one latent stands for."""
    codebooks: int = 8
    quantizer_weight: float = 0.25
    kl_weight: float = 1e-4
    adversarial_weight: float = 0.0


@dataclass(frozen=True)
class DiTConfig(TrainConfig):
    model_width: int = 256
    depth: int = 8
    heads: int = 4
    patch: int = 2
    text_layers: int = 2
    local_width: int = 96
    """Channels of the convolutions over latents around the transformer, 0 for none."""
    precondition: bool = True
    """Leave to the network only what a linear guess of the velocity leaves open (``flow.preconditioning``)."""
    caption_dropout: float = 0.1
    """How often a sample has no caption."""
    caption_shorten: float = 0.0
    """How often only the first clause of the caption is shown."""
    caption_swap: float = 1.0
    """How often any of the clip's wordings, each as likely, stands in for the first."""
    video_shift: float = 1.0
    """How far noise levels move towards 1 (``flow.shift_sigma``). Where a thing is gets decided at the level where all
    its latents together still tell it: the more latents it has, the nearer to 1 (see docs/log.md)."""
    audio_shift: float = 1.0
    logit_std: float = 1.0
    """How far noise levels spread, before their shift."""
    video_weight: float = 1.0
    audio_weight: float = 1.0
    focus_weight: float = 1.0
    """How much a latent that shows a body counts beside one of its surroundings, where the data tell which do."""
    shared_noise: float = 0.9
    """How often the clip has one noise level; else a third each one a modality, one a latent frame, and a region."""
    latent_frames: int = 0
    """How many latent frames of a clip a sample shows, chosen at random and without their sound; 0 shows the clip.
    Single frames teach what things look like at a fraction of a clip's cost: train on them first, then on clips.
    """
    cached_clips: int = 0
    """How many clips to encode into the latent cache; 0 takes every clip of the data once."""
    lora_rank: int = 0
    """Train an adapter of this rank instead of the network (``vidgen.lora``); 0 trains the network."""
    lora_alpha: float = 0.0
    """The adapter works at alpha / rank; 0 takes the rank."""


@dataclass(frozen=True)
class DistillConfig(TrainConfig):
    """The clip, its size and the noise levels' shifts are the teacher's."""

    student_steps: int = 4
    teacher_substeps: int = 4
    """Guided steps of the teacher in each step of the student."""
    guidance_scale: float = 0.0
    audio_guidance_scale: float = 0.0
    """Of the teacher; 0 takes its own."""
    video_weight: float = 1.0
    audio_weight: float = 1.0
    cached_clips: int = 0
    """As in ``DiTConfig``."""
    lora_rank: int = 0
    """Keep the student as an adapter of this rank over its teacher, in the teacher's folder; 0 makes it a model."""
    lora_alpha: float = 0.0
    """As in ``DiTConfig``."""


@dataclass(frozen=True)
class Preset:
    vae3d: VAEConfig
    audio: AudioConfig
    dit: DiTConfig
    distill: DistillConfig


PRESETS = {
    "toy": Preset(
        vae3d=VAEConfig(steps=20, batch_size=2, num_frames=9, window_frames=9, height=64, width=64, model_width=32,
                        depth=1, warmup_steps=5, log_every=5, sample_every=20, checkpoint_every=10),
        audio=AudioConfig(steps=20, batch_size=2, window_s=0.5, warmup_steps=5, log_every=5, sample_every=20,
                          checkpoint_every=10),
        dit=DiTConfig(steps=20, batch_size=4, num_frames=9, height=64, width=64, model_width=64, depth=2, heads=2,
                      warmup_steps=5, log_every=5, sample_every=20, checkpoint_every=10),
        distill=DistillConfig(steps=10, batch_size=2, student_steps=2, teacher_substeps=2, warmup_steps=2, log_every=5,
                              sample_every=10, checkpoint_every=5),
    ),
    "tabletop-cpu": Preset(
        vae3d=VAEConfig(steps=440, batch_size=8, window_frames=9, crop=64, latent_channels=48, optimizer="muon",
                        learning_rate=8e-4, kl_weight=2e-4, cooldown=0.4),
        audio=AudioConfig(steps=700, batch_size=8),
        dit=DiTConfig(steps=2200, batch_size=24, optimizer="muon", learning_rate=1.5e-3, depth=6, ema_decay=0.995,
                      shared_noise=0.8, video_shift=12.0, audio_shift=5.0, logit_std=1.4, focus_weight=3.0,
                      cached_clips=8192, cooldown=0.35, warmup_steps=50, log_every=10, checkpoint_every=50),
        distill=DistillConfig(steps=400, batch_size=16, optimizer="muon", learning_rate=5e-4, ema_decay=0.98,
                              cached_clips=8192, warmup_steps=20, cooldown=0.5, log_every=10, checkpoint_every=50),
    ),
    # For runs/cpu.sh: every stage in minutes on two cores.
    "tabletop-mini": Preset(
        vae3d=VAEConfig(num_frames=25, height=96, width=96, frame_rate=12, batch_size=8, window_frames=9, crop=64,
                        latent_channels=32, model_width=128, depth=2, optimizer="muon", learning_rate=8e-4,
                        kl_weight=2e-4, warmup_steps=20, cooldown=0.4, log_every=10),
        audio=AudioConfig(num_frames=25, frame_rate=12, batch_size=8, warmup_steps=20, cooldown=0.4, log_every=10),
        dit=DiTConfig(num_frames=25, height=96, width=96, frame_rate=12, batch_size=48, optimizer="muon",
                      learning_rate=2e-3, model_width=192, depth=4, heads=3, local_width=64, ema_decay=0.98,
                      shared_noise=0.9, video_shift=10.0, audio_shift=5.0, logit_std=1.4, video_weight=0.5,
                      focus_weight=3.0,
                      cached_clips=2048, cooldown=0.4, warmup_steps=20, log_every=10, checkpoint_every=50),
        distill=DistillConfig(batch_size=32, optimizer="muon", learning_rate=5e-4, ema_decay=0.98, cached_clips=2048,
                              warmup_steps=10, cooldown=0.5, log_every=10, checkpoint_every=50),
    ),
    # Sized so that all weights together, 22.3 M and the word vectors, stay under 48 MiB in half precision.
    "tabletop-gpu": Preset(
        vae3d=VAEConfig(num_frames=97, height=256, width=256, steps=20000, batch_size=32, mixed_precision="bf16",
                        compile=True, latent_channels=48, adversarial_weight=0.05, log_every=50, sample_every=1000,
                        checkpoint_every=1000),
        audio=AudioConfig(num_frames=97, steps=15000, batch_size=64, adversarial_weight=0.05, workers=14, log_every=50,
                          sample_every=1000, checkpoint_every=1000),
        dit=DiTConfig(num_frames=97, height=256, width=256, steps=60000, batch_size=128, optimizer="muon",
                      mixed_precision="bf16", compile=True, model_width=320, depth=7, heads=5, ema_decay=0.9995,
                      shared_noise=0.8, video_shift=24.0, audio_shift=7.0, logit_std=1.4, focus_weight=3.0,
                      cached_clips=16384, workers=8, log_every=50, sample_every=2000, checkpoint_every=2000),
        distill=DistillConfig(steps=10000, batch_size=128, optimizer="muon", learning_rate=5e-4, ema_decay=0.999,
                              mixed_precision="bf16", compile=True, cooldown=0.5, cached_clips=16384, workers=8,
                              sample_every=1000, checkpoint_every=1000),
    ),
    # Untrained: sizes to plan with (docs/scaling.md). The autoencoders see crops, so theirs cost no more than above.
    "1.3b": Preset(
        vae3d=VAEConfig(num_frames=121, height=480, width=832, steps=100000, batch_size=16, mixed_precision="bf16",
                        compile=True, crop=256, latent_channels=48, model_width=512, depth=6, adversarial_weight=0.05,
                        workers=8),
        audio=AudioConfig(num_frames=121, steps=100000, batch_size=64, adversarial_weight=0.05, workers=8),
        dit=DiTConfig(num_frames=121, height=480, width=832, steps=160000, batch_size=1,
                      learning_rate=2e-4, mixed_precision="bf16", compile=True, gradient_checkpointing=True,
                      model_width=2048, depth=23, heads=16, local_width=192, ema_decay=0.9999, shared_noise=0.8,
                      video_shift=5.0, audio_shift=2.0, workers=8),
        distill=DistillConfig(steps=10000, batch_size=1, learning_rate=5e-5, ema_decay=0.999,
                              mixed_precision="bf16", compile=True, gradient_checkpointing=True, cooldown=0.5,
                              workers=8),
    ),
    "14b": Preset(
        vae3d=VAEConfig(num_frames=121, height=704, width=1280, steps=100000, batch_size=16, mixed_precision="bf16",
                        compile=True, crop=256, latent_channels=48, model_width=512, depth=6, adversarial_weight=0.05,
                        workers=8),
        audio=AudioConfig(num_frames=121, steps=100000, batch_size=64, adversarial_weight=0.05, workers=8),
        dit=DiTConfig(num_frames=121, height=704, width=1280, steps=200000, batch_size=1,
                      learning_rate=1e-4, mixed_precision="bf16", compile=True, gradient_checkpointing=True,
                      shard=True, model_width=5120, depth=42, heads=40, local_width=256, ema_decay=0.9999,
                      shared_noise=0.8, video_shift=7.0, audio_shift=2.0, workers=8),
        distill=DistillConfig(steps=10000, batch_size=1, learning_rate=2e-5, ema_decay=0.999,
                              mixed_precision="bf16", compile=True, gradient_checkpointing=True, shard=True,
                              cooldown=0.5, workers=8),
    ),
}  # fmt: skip

Config = TypeVar("Config", bound=TrainConfig)


def load(preset: str, stage: str, overrides: list[str]) -> VAEConfig | AudioConfig | DiTConfig | DistillConfig:
    """The configuration of one stage of a preset with ``key=value`` overrides applied.

    Raises:
        InputError: an unknown preset or key (the nearest one is named), or a value of another type.
    """
    if preset not in PRESETS:
        raise InputError(f"no preset is called {preset!r}: {_suggest(preset, list(PRESETS))}")
    config = getattr(PRESETS[preset], stage)
    changes: dict[str, Any] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise InputError(f"--set takes key=value, not {override!r}")
        key = key.replace("-", "_")
        names = [field.name for field in dataclasses.fields(config)]
        if key not in names:
            raise InputError(f"{stage} has no setting {key!r}: {_suggest(key, names)}")
        changes[key] = _parse(key, text, type(getattr(config, key)))
    return dataclasses.replace(config, **changes)


def _suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"


def _parse(key: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() in ("true", "1", "yes", "on", "false", "0", "no", "off"):
            return text.lower() in ("true", "1", "yes", "on")
    else:
        try:
            return kind(text)
        except ValueError:
            pass
    raise InputError(f"{key} takes a value of type {kind.__name__}, not {text!r}")
