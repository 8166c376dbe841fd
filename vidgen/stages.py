"""The stages of training: what each learns, from which data, and what it shows and leaves behind.

``train.py`` runs them; a stage is a network with its data, its loss, a sheet of samples and an ending. Those of the
transformer are here, those of the autoencoders in ``autoencoder_stages``.
"""

import argparse
import dataclasses
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from . import config
from .caching import at_hand, held_back_latents, latent_clips, latent_deviations
from .clip import ClipSpec, Compression
from .errors import InputError
from .generation import FEW_WORDS, HIGH, SHIPPED_MODEL, GenerationConfig, words_known, words_of
from .loading import load_frozen, load_network, load_or_make
from .parallel import is_sharded, shard
from .sheets import prompt_sheet, some_captions

SAMPLING: dict[str, Any] = {
    "num_inference_steps": 24, "guidance_scale": 2.5, "audio_guidance_scale": 5.0, "solver": "euler_ancestral",
}  # fmt: skip
"""How a new model is sampled, as suited the shipped one best (docs/log.md); its folder tells, and may be edited."""
SAMPLING_SHIFT = 2.0
"""Sampling stays longer near noise than training does, and leaves the last details to one step."""
Loss = Callable[[nn.Module, dict[str, Any]], tuple[Tensor, dict[str, Tensor]]]
"""Model and batch in; the loss and its parts out. Parts that are not single numbers go into the batch, for the
discriminator: a loss must not change the batch itself, since distributed wrappers may hand it a copy."""


@dataclasses.dataclass
class Stage:
    """What the training loop needs to know of a stage."""

    model: nn.Module
    dataset: Dataset
    loss: Loss
    sheet: Callable[[Any, Path], None]
    """Draw what the given (averaged) model does now into a PNG."""
    finish: Callable[[Any, Path, int], None]
    """Save the given (averaged) model, trained for so many steps, into a folder, ready for use."""
    discriminator: nn.Module | None = None
    discriminator_loss: Loss | None = None
    validation: Dataset | None = None
    """Clips that are never trained on; whole batches for the loss, as ``dataset`` gives them or with more in them."""
    tokens: int = 0
    """Latent tokens of a clip; 0 where none are counted."""
    flops: float = 0.0
    """Of a clip in training, forward and backward, without what is computed again."""
    pipeline: Callable[[Any], Any] | None = None
    """The ``VidGenPipeline`` of a transformer, where the stage trains one."""


def dit_stage(args: argparse.Namespace, settings: config.DiTConfig, accelerator: Accelerator) -> Stage:
    from .audio_sync.codec import AudioCodec
    from .dit.model import JointDiT
    from .flow import FlowConfig, flow_loss
    from .lora import FILE_NAME, add_lora, purpose, save_lora
    from .text import load_text_encoder
    from .vae3d.autoencoder import SpacetimeVAE

    if args.model is not None:
        args.vae, args.codec = args.vae or args.model / "vae", args.codec or args.model / "codec"
        args.text, args.init = args.text or str(args.model / "text_encoder"), args.init or args.model / "transformer"
    if args.vae is None or args.codec is None:
        raise InputError("the dit stage needs --vae and --codec: the model folders of the vae3d and audio stages")
    if settings.lora_rank and args.init is None:
        raise InputError(
            "an adapter is trained over a model: give its folder as --model, or its transformer's as --init"
        )
    device = accelerator.device
    vae = load_frozen(SpacetimeVAE, args.vae).to(device)
    codec = load_frozen(AudioCodec, args.codec).to(device)
    text_encoder = load_text_encoder(args.text or str(SHIPPED_MODEL / "text_encoder")).to(device)
    compression = Compression(vae.config.temporal_compression, vae.config.spatial_compression, codec.config.hop_samples)
    spec = clip_spec(settings, compression=compression)
    dataset = latent_clips(
        args, settings, accelerator, vae, codec, spec,
        caption_dropout=settings.caption_dropout, caption_shorten=settings.caption_shorten,
        caption_swap=settings.caption_swap, latent_frames=settings.latent_frames,
    )  # fmt: skip
    if settings.focus_weight != 1 and not dataset.has_focus:
        accelerator.print("focus_weight has no effect: the data, or the latent cache, do not tell what shows a body")
    validation = held_back_latents(args, settings, accelerator, vae, codec, spec, latent_frames=settings.latent_frames)

    given = {
        "video_channels": vae.config.latent_channels,
        "audio_channels": codec.config.latent_channels,
        "text_dim": text_encoder.dim,
    }
    if args.model is None:  # else its size is the model's
        given |= {
            "width": settings.model_width,
            "depth": settings.depth,
            "heads": settings.heads,
            "patch": settings.patch,
            "text_layers": settings.text_layers,
            "local_width": settings.local_width,
        }
    measured = latent_deviations(dataset) if settings.precondition else None
    transformer = load_or_make(JointDiT, args.init, measured, **given)
    if settings.lora_rank:
        add_lora(transformer, settings.lora_rank, settings.lora_alpha or None)
    elif settings.latent_frames:
        for part in (transformer.audio_in, transformer.audio_head):
            part.requires_grad_(False)  # there is no sound to learn from
    flow = FlowConfig(
        video_shift=settings.video_shift,
        audio_shift=settings.audio_shift,
        logit_std=settings.logit_std,
        video_weight=settings.video_weight,
        audio_weight=settings.audio_weight,
        focus_weight=settings.focus_weight,
        shared=settings.shared_noise,
        per_modality=(1 - settings.shared_noise) / 3,
        per_frame=(1 - settings.shared_noise) / 3,
        region=(1 - settings.shared_noise) / 3,
    )
    video_times_s = torch.tensor(spec.video_latent_times_s(), device=device)
    audio_times_s = torch.tensor(spec.audio_latent_times_s(), device=device)

    def loss(model: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        batch = dataset.gather(batch) if "clips" in batch else batch
        text, text_mask = text_encoder.encode(batch["captions"])
        video, audio = batch.get("video"), batch.get("audio")
        times_s = video_times_s[batch["frames"]] if "frames" in batch else first(video_times_s, video)
        loss, parts = flow_loss(
            model,
            video,
            audio,
            text,
            text_mask=text_mask,
            has_audio=batch.get("has_audio"),
            focus=batch.get("focus"),
            video_times_s=times_s,
            audio_times_s=first(audio_times_s, audio),
            seeds=batch["seeds"],
            config=flow,
            levels=4,
        )
        if not settings.buckets:
            return loss, parts
        # Every process logs the same parts in one order, and every weight has a gradient, whichever modality is absent.
        unused = {"video": (model.video_in, model.video_head), "audio": (model.audio_in, model.audio_head)}
        for name in unused.keys() - parts.keys():
            other = "audio" if name == "video" else "video"
            parts |= {key.replace(other, name): torch.zeros_like(value) for key, value in parts.items()}
            loss = loss + 0 * sum(weight.sum() for part in unused[name] for weight in part.parameters())
        return loss, dict(sorted(parts.items()))

    own = GenerationConfig(
        **SAMPLING, video_shift=SAMPLING_SHIFT * settings.video_shift, audio_shift=settings.audio_shift
    )
    if args.model is not None:
        own = GenerationConfig.load(args.model, HIGH)
    words = words_of(dataset.captions)
    if args.init is not None:  # and what was learned before, if that is known
        known = own.words or words_known(args.init.parent)
        words = sorted({*words, *known}) if known else []
    own = dataclasses.replace(own, words=words if len(words) <= FEW_WORDS else [])

    def pipeline(average: Any, version: str = "in training") -> Any:
        from .pipeline import VidGenPipeline

        shape = {name: getattr(spec, name) for name in ("num_frames", "height", "width")}
        generation = dataclasses.replace(own, **shape, frame_rate=str(spec.frame_rate), model_version=version)
        return VidGenPipeline(vae, codec, average, text_encoder, generation)

    def finish(average: Any, folder: Path, steps: int) -> None:
        if settings.lora_rank:
            base = own.model_version if args.model else str(args.init)
            save_lora(average, folder / FILE_NAME, purpose(base, args.output.name, dataset.captions, steps))
        else:
            pipeline(average, f"{args.config}, {steps} steps").save_pretrained(folder)

    passes = 2 if settings.lora_rank else 3  # what an adapter is added to has no gradients of weights
    stage = transformer_stage(
        transformer, dataset, loss, finish, pipeline, args, spec, device, passes, settings.latent_frames
    )
    stage.validation = validation
    return stage


def distill_stage(args: argparse.Namespace, settings: config.DistillConfig, accelerator: Accelerator) -> Stage:
    from .distill import DistillConfig, distillation_loss
    from .lora import add_lora, purpose
    from .model_folder import save_with_student
    from .pipeline import VidGenPipeline

    if args.teacher is None:
        raise InputError("the distill stage needs --teacher: a complete model folder, as the dit stage leaves it")
    device = accelerator.device
    if settings.lora_rank and args.init is not None:
        raise InputError("the adapter of a student is one over its --teacher: leave out --init")
    teacher = VidGenPipeline.from_pretrained(args.teacher, torch_dtype=torch.float32, device=device, quality=HIGH)
    # A network of its own: what is learned must not change what it is learned from.
    student = load_network(type(teacher.transformer), args.init or args.teacher / "transformer").float()
    teacher.transformer.requires_grad_(False)
    if settings.lora_rank:
        add_lora(student, settings.lora_rank, settings.lora_alpha or None)
    if is_sharded(settings, accelerator):
        shard(teacher.transformer, accelerator)
    own = teacher.generation
    spec = own.spec()
    dataset = latent_clips(args, settings, accelerator, teacher.vae, teacher.codec, spec, only_videos=True)
    plan = DistillConfig(
        student_steps=settings.student_steps,
        teacher_substeps=settings.teacher_substeps,
        video_guidance=settings.guidance_scale or own.guidance_scale,
        audio_guidance=settings.audio_guidance_scale or own.audio_guidance_scale,
        video_shift=own.video_shift,
        audio_shift=own.audio_shift,
        video_weight=settings.video_weight,
        audio_weight=settings.audio_weight,
    )
    video_times_s = torch.tensor(spec.video_latent_times_s(), device=device)
    audio_times_s = torch.tensor(spec.audio_latent_times_s(), device=device)

    def loss(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        batch = dataset.gather(batch) if "clips" in batch else batch
        captions = batch["captions"]
        return distillation_loss(
            model,
            teacher.transformer,
            batch["video"],
            batch["audio"],
            teacher.text_encoder.encode(captions),
            teacher.text_encoder.encode([""] * len(captions)),
            has_audio=batch["has_audio"],
            video_times_s=first(video_times_s, batch["video"]),
            audio_times_s=first(audio_times_s, batch["audio"]),
            seeds=batch["seeds"],
            config=plan,
        )

    sampling: dict[str, Any] = {
        "num_inference_steps": settings.student_steps,
        "guidance_scale": 1.0,
        "audio_guidance_scale": 1.0,
        "modality_scale": 1.0,
        "video_shift": own.video_shift,
        "audio_shift": own.audio_shift,
        "solver": "euler",
        "model_version": f"{own.model_version}, {settings.student_steps}-step student",
    }

    def pipeline(average: Any) -> Any:
        generation = dataclasses.replace(own, **sampling)
        return VidGenPipeline(teacher.vae, teacher.codec, average, teacher.text_encoder, generation)

    def finish(average: Any, folder: Path, steps: int) -> None:
        if settings.lora_rank:
            about = purpose(own.model_version, sampling["model_version"], dataset.captions, steps)
            save_with_student(args.teacher, folder, average, sampling, about)
        else:
            pipeline(average).save_pretrained(folder)

    passes = (2 if settings.lora_rank else 3) + 2 * settings.teacher_substeps
    stage = transformer_stage(student, dataset, loss, finish, pipeline, args, spec, device, passes)
    stage.validation = held_back_latents(
        args, settings, accelerator, teacher.vae, teacher.codec, spec, only_videos=True
    )
    return stage


def transformer_stage(
    transformer: Any, dataset: Any, loss: Loss, finish: Callable[[Any, Path, int], None],
    pipeline: Callable[[Any], Any], args: argparse.Namespace, spec: ClipSpec, device: torch.device, passes: int,
    latent_frames: int = 0,
) -> Stage:  # fmt: skip
    """A stage that learns from latents.

    Args:
        pipeline: the ``VidGenPipeline`` of a transformer.
        passes: what a clip takes to train, in forward passes of the transformer.
        latent_frames: how many of a clip are seen, without its sound; 0 for all and the sound.
    """
    from .dit.blocks import block_flops

    size = transformer.config
    tokens = (latent_frames or spec.latent_frames) * spec.latent_height * spec.latent_width // size.patch**2
    tokens += 0 if latent_frames else spec.audio_latents
    return Stage(
        transformer,
        at_hand(dataset, device),
        loss,
        prompt_sheet(args.prompt or some_captions(dataset), pipeline),
        finish,
        tokens=tokens,
        flops=passes * size.depth * block_flops(size.width, tokens),
        pipeline=pipeline,
    )


def clip_spec(
    settings: config.TrainConfig, num_frames: int | None = None, compression: Compression | None = None
) -> ClipSpec:
    rate = Fraction(settings.frame_rate).limit_denominator(1001)
    frames = num_frames or settings.num_frames
    size = (settings.height, settings.width)
    return ClipSpec(frames, *size, rate, settings.sample_rate_hz, compression or Compression())


def source(settings: config.TrainConfig, accelerator: Accelerator) -> dict[str, Any]:
    """Seed and device of the clips: loading processes draw on the CPU."""
    return {"seed": settings.seed, "device": accelerator.device if settings.workers == 0 else "cpu"}


def first(times_s: Tensor, latents: Tensor | None) -> Any:
    """The times of latents (B, C, t, …) or (B, C, L) that begin with the clip; times do not depend on its length."""
    return None if latents is None else times_s[: latents.shape[2]]
