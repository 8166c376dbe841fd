"""From a prompt to frames and a waveform, and from a model's folder to a pipeline and back."""

import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor, nn

from .audio_sync.codec import AudioCodec
from .clip import ClipSpec, Compression
from .conditioning import Conditioning, Text, encode_given, guided_velocity
from .data.source import to_uint8
from .dit.model import JointDiT
from .errors import InputError
from .generation import GenerationConfig
from .given import Given
from .loading import cast, load_network
from .loop import close_loop, looped_spec
from .lora import LoraPipeline
from .solvers import State, euler, heun, midpoint, sigma_schedule
from .text import TransformersEncoder, WordVectorEncoder, load_text_encoder
from .vae3d.autoencoder import SpacetimeVAE

if TYPE_CHECKING:
    from .streaming import Chunk

MAX_SHARD_SIZE = "15MB"
SOLVERS = {"euler": euler, "heun": heun, "midpoint": midpoint}
DECODED_AT_ONCE = 16  # latent frames; decoding in turns gives the same frames in bounded memory


@dataclass
class VidGenOutput:
    """What a pipeline made, for B prompts.

    ``frames`` (B, T, H, W, 3) uint8 and ``audio`` (B, N) float32 in [-1, 1], as numpy arrays; with output_type "pt"
    tensors, frames as (B, 3, T, H, W) float in [-1, 1]; with "latent" the normalised latents. ``audio`` is None where
    it was not wanted. ``seconds`` by stage.
    """

    frames: Any
    audio: Any
    sample_rate: int
    frame_rate: Fraction
    seconds: dict[str, float]


@dataclass(frozen=True)
class Sampling:
    """How latents are denoised: steps of which solver, and how strongly the prompt rules each stream."""

    steps: int
    guidance_scale: float
    audio_guidance_scale: float
    solver: str

    @property
    def is_guided(self) -> bool:
        return not self.guidance_scale == self.audio_guidance_scale == 1


class VidGenPipeline(LoraPipeline, DiffusionPipeline):
    """Text to video with sound.

    Args:
        vae, codec: the two autoencoders.
        transformer: the joint denoiser of their latents.
        text_encoder: see ``vidgen.text``.
        generation: how the model wants to be sampled.
    """

    def __init__(
        self,
        vae: SpacetimeVAE,
        codec: AudioCodec,
        transformer: JointDiT,
        text_encoder: WordVectorEncoder | TransformersEncoder,
        generation: GenerationConfig | None = None,
    ):
        super().__init__()
        self.register_modules(vae=vae, codec=codec, transformer=transformer, text_encoder=text_encoder)
        self.generation = replace(
            generation or GenerationConfig(),
            sample_rate_hz=codec.config.sample_rate_hz,
            size_multiple=vae.config.spatial_compression * transformer.config.patch,
            compression=Compression(
                vae.config.temporal_compression, vae.config.spatial_compression, codec.config.hop_samples
            ),
        )
        for module in self.components.values():
            module.eval()

    def register_modules(self, **modules: nn.Module) -> None:
        """Record each component by the full path of its module.

        diffusers itself shortens the path of a module that lies in a folder named like one of its own pipelines, as
        ``dit`` is, and could then not find it again.
        """
        for name, module in modules.items():
            setattr(self, name, module)
            self.register_to_config(**{name: (type(module).__module__, type(module).__name__)})

    @classmethod
    def assemble(
        cls,
        vae: SpacetimeVAE,
        codec: AudioCodec,
        transformer: JointDiT,
        text_encoder: WordVectorEncoder | TransformersEncoder,
        spec: ClipSpec,
        video_shift: float = 1.0,
        audio_shift: float = 1.0,
        **settings: Any,
    ) -> "VidGenPipeline":
        """A pipeline from freshly trained parts; ``spec`` is the clip that they were trained on, ``settings`` further
        entries of ``GenerationConfig``."""
        generation = GenerationConfig(
            num_frames=spec.num_frames,
            height=spec.height,
            width=spec.width,
            frame_rate=str(spec.frame_rate),
            video_shift=video_shift,
            audio_shift=audio_shift,
            **settings,
        )
        return cls(vae, codec, transformer, text_encoder, generation)

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        *,
        given: Given | None = None,
        with_audio: bool = True,
        loop: bool = False,
        camera: str | None = None,
        num_frames: int | None = None,
        duration_s: float | None = None,
        height: int | None = None,
        width: int | None = None,
        frame_rate: Fraction | float | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        audio_guidance_scale: float | None = None,
        solver: str | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        output_type: str = "np",
    ) -> VidGenOutput:
        """Make a clip for each prompt. What is left out is the model's own (``self.generation``).

        Args:
            negative_prompt: one for all, or one for each prompt.
            given: pictures, a video or a sound that the clip is to have, in every prompt's clip. Given sound comes
                back sample by sample, given frames as the VAE reconstructs them; a keyframe that is not frame 0 is held
                for the four frames of the latent frame that it falls in. See ``Given``.
            with_audio: False denoises the picture alone, without its sound.
            loop: after the last frame of the clip comes its first.
            camera: a move that the model knows by name (``self.generation.cameras``), put into words.
            num_frames, duration_s: give one of them at most.
            guidance_scale, audio_guidance_scale: 1 turns guidance off; the second defaults to the first, if given.
            solver: "euler", "heun" or "midpoint".
            generator: on the CPU; one for all, or one for each prompt, which makes each clip independent of the others.
            callback_on_step_end: called as in diffusers, with (pipeline, step, noise level, {"video_latents",
                "audio_latents"}): the clean latents as estimated so far. What it returns is not used.
            output_type: "np", "pt" or "latent", see ``VidGenOutput``.

        Raises:
            InputError: an empty prompt, a clip that cannot be made, or settings out of range.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else list(negative_prompt)
        if not prompts or not all(text.strip() for text in prompts):
            raise InputError("a prompt is empty")
        if len(negatives) != len(prompts):
            raise InputError(f"{len(prompts)} prompts need as many negative prompts, not {len(negatives)}")
        defaults = self.generation
        if camera is not None:
            prompts = [defaults.with_camera(text, camera) for text in prompts]
        sampling = self.sampling(num_inference_steps, guidance_scale, audio_guidance_scale, solver)
        if output_type not in ("np", "pt", "latent"):
            raise InputError(f"output_type {output_type!r} is not known: use np, pt or latent")
        spec = defaults.spec(
            num_frames=num_frames, duration_s=duration_s, height=height, width=width, frame_rate=frame_rate
        )

        stages = _Stopwatch(self.device)
        text = self.encode_text(prompts)
        negative_text = self.encode_text(negatives) if sampling.is_guided else None
        stages.end("text")
        conditioning = Conditioning()
        if given is not None:
            conditioning = self.encode_given(given, looped_spec(spec) if loop else spec)
            stages.end("encode")
        video, audio = self.denoise_clips(
            spec,
            len(prompts),
            text,
            negative_text,
            sampling,
            conditioning,
            with_audio=with_audio,
            loop=loop,
            generator=generator,
            callback_on_step_end=callback_on_step_end,
        )
        stages.end("denoise")

        frames: Any = video
        waveform: Any = audio
        if output_type != "latent":
            frames = self.decode_video(video, spec, as_bytes=output_type == "np")
            stages.end("decode_video")
            if audio is not None:
                waveform = self.decode_audio(audio, spec, given, as_array=output_type == "np")
                stages.end("decode_audio")
        return VidGenOutput(frames, waveform, spec.sample_rate_hz, spec.frame_rate, stages.seconds)

    def stream(
        self, prompt: str | Sequence[tuple[float, str]], duration_s: float, **settings: Any
    ) -> Iterator["Chunk"]:
        """A clip of any length, part by part as it is made; see ``vidgen.streaming.stream``."""
        from .streaming import stream

        return stream(self, prompt, duration_s, **settings)

    def sampling(
        self,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        audio_guidance_scale: float | None = None,
        solver: str | None = None,
    ) -> Sampling:
        """What was asked for, and the model's own for the rest; a guidance scale alone serves both streams.

        Raises:
            InputError: an unknown solver, or fewer than one step.
        """
        own = self.generation
        solver = solver or own.solver
        if solver not in SOLVERS:
            raise InputError(f"solver {solver!r} is not known: use {', '.join(SOLVERS)}")
        if audio_guidance_scale is None:
            audio_guidance_scale = own.audio_guidance_scale if guidance_scale is None else guidance_scale
        if guidance_scale is None:
            guidance_scale = own.guidance_scale
        steps = own.num_inference_steps if num_inference_steps is None else num_inference_steps
        if steps < 1:
            raise InputError(f"{steps} steps make no sample: give at least 1")
        return Sampling(steps, guidance_scale, audio_guidance_scale, solver)

    def denoise_clips(
        self,
        spec: ClipSpec,
        batch: int,
        text: Text,
        negative_text: Text | None,
        sampling: Sampling,
        conditioning: Conditioning,
        *,
        with_audio: bool = True,
        loop: bool = False,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """From noise to the normalised latents of B clips: picture (B, C, t, h, w), and sound (B, C_a, L) or None.

        Args:
            text, negative_text: as ``encode_text`` returns them, of B prompts each; the second under guidance only.
            conditioning: what is given of the clip ``spec``, or of ``looped_spec(spec)`` for a loop.
            generator, loop, callback_on_step_end: as in ``__call__``.
        """
        made = looped_spec(spec) if loop else spec
        video_noise, audio_noise = self.noise(made, batch, generator)
        if loop:

            def make_first() -> Tensor:
                alone = (video_noise[:, :, :1], None)
                first, _ = self.denoise(alone, text, negative_text, sampling, [0.0], (), Conditioning())
                assert first is not None
                return first

            conditioning = close_loop(conditioning, made, self.vae, make_first)
        video, audio = self.denoise(
            (video_noise, audio_noise if with_audio else None),
            text,
            negative_text,
            sampling,
            made.video_latent_times_s(),
            made.audio_latent_times_s(),
            conditioning,
            callback_on_step_end,
        )
        assert video is not None
        return video[:, :, : spec.latent_frames], None if audio is None else audio[:, :, : spec.audio_latents]

    def denoise(
        self,
        noise: State,
        text: Text,
        negative_text: Text | None,
        sampling: Sampling,
        video_times_s: Sequence[float],
        audio_times_s: Sequence[float],
        conditioning: Conditioning,
        callback_on_step_end: Callable[..., Any] | None = None,
    ) -> State:
        """From noise (video, audio), where a stream may be None, to normalised latents of the same shapes.

        Args:
            text, negative_text: as ``encode_text`` returns them; the second is needed under guidance only.
            video_times_s, audio_times_s: when each latent frame and each audio latent is seen and heard.
            conditioning: what is given.
            callback_on_step_end: as in ``__call__``.
        """
        velocity_fn = guided_velocity(
            self.transformer,
            text,
            negative_text,
            video_guidance=sampling.guidance_scale,
            audio_guidance=sampling.audio_guidance_scale,
            video_times_s=torch.tensor(video_times_s, device=self.device),
            audio_times_s=torch.tensor(audio_times_s, device=self.device),
            conditioning=conditioning,
        )
        sigmas = (
            conditioning.video_strength * sigma_schedule(sampling.steps, self.generation.video_shift),
            conditioning.audio_strength * sigma_schedule(sampling.steps, self.generation.audio_shift),
        )

        def velocity(x: State, sigma: tuple[Tensor, ...]) -> State:
            """The state stays in float32: rounding of small steps would add up."""
            lower = tuple(None if stream is None else stream.to(self.dtype) for stream in x)
            return tuple(None if stream is None else stream.float() for stream in velocity_fn(lower, sigma))

        def on_step(step: int, clean: State) -> None:
            if callback_on_step_end is not None:
                latents = {"video_latents": clean[0], "audio_latents": clean[1]}
                callback_on_step_end(self, step, sigmas[0][step], latents)

        return SOLVERS[sampling.solver](velocity, conditioning.start(noise), sigmas, on_step)

    def encode_text(self, prompts: list[str]) -> Text:
        """Features and mask of prompts, as the transformer wants them."""
        features, mask = self.text_encoder.encode(prompts)
        return features.to(self.device, self.dtype), mask.to(self.device)

    def encode_given(self, given: Given, spec: ClipSpec) -> Conditioning:
        """Clean latents and masks of what is given; see ``conditioning.encode_given``."""
        return encode_given(given, spec, self.vae, self.codec)

    def noise(
        self, spec: ClipSpec, batch: int, generator: torch.Generator | Sequence[torch.Generator] | None
    ) -> tuple[Tensor, Tensor]:
        """Drawn on the CPU, clip by clip: the same on every device, and in every batch given a generator each."""
        if generator is None or isinstance(generator, torch.Generator):
            generators = [generator] * batch
        else:
            generators = list(generator)
            if len(generators) != batch:
                raise InputError(f"{batch} prompts need one generator or as many, not {len(generators)}")
        video_shape = (self.vae.config.latent_channels, spec.latent_frames, spec.latent_height, spec.latent_width)
        audio_shape = (self.codec.config.latent_channels, spec.audio_latents)
        videos, audios = [], []
        for source in generators:
            videos.append(torch.randn(video_shape, generator=source))
            audios.append(torch.randn(audio_shape, generator=source))
        return torch.stack(videos).to(self.device), torch.stack(audios).to(self.device)

    def decode_video(self, latents: Tensor, spec: ClipSpec, as_bytes: bool) -> Any:
        """Frames of ``denoise``'s latents: (B, T, H, W, 3) uint8 array, or a (B, 3, T, H, W) tensor in [-1, 1]."""
        latents = self.vae.denormalise(latents.to(self.vae.dtype))
        parts = []
        for video in self.vae.decode_stream(latents.split(DECODED_AT_ONCE, dim=2)):
            video = video.float().clamp(-1, 1)
            parts.append(to_uint8(video).cpu() if as_bytes else video)
        if as_bytes:
            return np.ascontiguousarray(torch.cat(parts, dim=1)[:, : spec.num_frames].numpy())
        return torch.cat(parts, dim=2)[:, :, : spec.num_frames]

    def decode_audio(self, latents: Tensor, spec: ClipSpec, given: Given | None, as_array: bool) -> Any:
        """Sound (B, N) float32 of ``denoise``'s latents, an array or a tensor; given sound is put back into it."""
        waveform = self.codec.from_latents(latents.to(self.codec.dtype), spec.num_samples)[:, 0].float().clamp(-1, 1)
        if given is not None:
            waveform = torch.from_numpy(given.put_back(waveform.cpu().numpy(), spec)).to(waveform.device)
        return waveform.cpu().numpy() if as_array else waveform

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        dtype: torch.dtype | None = torch.float16,
        max_shard_size: str | int = MAX_SHARD_SIZE,
    ) -> None:
        """Write the model's folder: ``model_index.json``, ``generation_config.json``, a folder for each component.

        Args:
            dtype: what weights are stored as; None keeps that of each component.
            max_shard_size: of a weights file.

        Raises:
            InputError: the transformer has adapters, which are files of their own.
        """
        if getattr(self.transformer, "peft_config", None):
            raise InputError("a model is saved without its LoRAs: fuse_lora() or unload_lora_weights() first")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.register_modules(**self.components)
        for name, module in self.components.items():
            target = folder / name
            for stale in target.glob("*.safetensors*"):
                stale.unlink()
            stored: Any = module if dtype is None else cast(deepcopy(module), dtype)
            if isinstance(stored, TransformersEncoder):
                stored.tokenizer.save_pretrained(target)
                stored = stored.model
            stored.save_pretrained(target, max_shard_size=max_shard_size)
        self.generation.save(folder)
        self.save_config(folder)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> "VidGenPipeline":
        """Load a folder that ``save_pretrained`` wrote; every weight must be there, and no other.

        Args:
            torch_dtype: of the transformer; None takes float32 on a CPU and bfloat16 elsewhere. The autoencoders, a
                small part of the work, always compute in float32: the eight bits of bfloat16 would be heard.

        Raises:
            InputError: a file is missing, damaged, or does not fit the networks; the message names it.
        """
        folder = Path(pretrained_model_name_or_path)
        generation = GenerationConfig.load(folder)
        device = torch.device(device)
        dtype = torch_dtype or (torch.float32 if device.type == "cpu" else torch.bfloat16)
        for name in ("vae", "codec", "transformer", "text_encoder"):
            if not (folder / name).is_dir():
                raise InputError(f"{folder / name} is missing: the model's folder is not complete")
        return cls(
            load_network(SpacetimeVAE, folder / "vae").to(device),
            load_network(AudioCodec, folder / "codec").to(device),
            cast(load_network(JointDiT, folder / "transformer"), dtype).to(device),
            load_text_encoder(folder / "text_encoder", device=device),
            generation,
        )


class _Stopwatch:
    """Seconds by stage; waits for the device, so that a stage is charged for its own work."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def end(self, stage: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[stage] = now - self.last
        self.last = now
