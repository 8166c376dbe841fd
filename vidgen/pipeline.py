"""From a prompt to frames and a waveform."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from .audio_sync.codec import AudioCodec
from .clip import ClipSpec, Compression
from .conditioning import Conditioning, Text, encode_given, guided_velocity
from .data.source import to_float, to_uint8
from .dit.model import JointDiT
from .errors import InputError
from .generation import GenerationConfig, Sampling
from .given import Given
from .loading import execution_device
from .loop import close_loop, looped_spec
from .lora import LoraPipeline
from .model_folder import FolderPipeline
from .output import (
    CLEAN,
    NOISY,
    OUTPUT_TYPES,
    Interrupted,
    Stopwatch,
    VidGenOutput,
    as_pictures,
    changed_state,
    chosen_latents,
    with_pictures,
)
from .solvers import State, euler, euler_ancestral, fingerprints, heun, midpoint, sigma_schedule
from .text import TransformersEncoder, WordVectorEncoder
from .vae3d.autoencoder import SpacetimeVAE

if TYPE_CHECKING:
    from .streaming import Chunk

SOLVERS = {"euler": euler, "euler_ancestral": euler_ancestral, "heun": heun, "midpoint": midpoint}
DECODED_AT_ONCE = 16  # latent frames; decoding in turns gives the same frames in bounded memory


class VidGenPipeline(LoraPipeline, FolderPipeline):
    """Text to video with sound.

    Args:
        vae, codec: the two autoencoders.
        transformer: the joint denoiser of their latents.
        text_encoder: see ``vidgen.text``.
        generation: how the model wants to be sampled; as a mapping where diffusers loads it.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae->codec"
    _callback_tensor_inputs = (*CLEAN, *NOISY)
    _interrupt = False

    def __init__(
        self,
        vae: SpacetimeVAE,
        codec: AudioCodec,
        transformer: JointDiT,
        text_encoder: WordVectorEncoder | TransformersEncoder,
        generation: GenerationConfig | Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.register_modules(vae=vae, codec=codec, transformer=transformer, text_encoder=text_encoder)
        if isinstance(generation, Mapping):
            generation = GenerationConfig.from_dict(generation)
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

    @property
    def device(self) -> torch.device:
        """Where the transformer computes: under offloading, not where its weights rest."""
        return execution_device(self.transformer)

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        *,
        image: Any = None,
        last_image: Any = None,
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
        modality_scale: float | None = None,
        solver: str | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = CLEAN,
        output_type: str = "np",
        return_dict: bool = True,
    ) -> VidGenOutput:
        """Make a clip for each prompt. What is left out is the model's own (``self.generation``).

        Args:
            negative_prompt: one for all, or one for each prompt.
            image, last_image: the first and the last frame: PIL, arrays or tensors of any size (see ``output.fitted``).
            given: pictures, a video or a sound that the clip is to have, in every prompt's clip. A sound, and a picture
                that is given whole, come back exactly; other frames as the VAE reconstructs them. See ``Given``.
            with_audio: False denoises the picture alone, without its sound.
            loop: after the last frame of the clip comes its first.
            camera: a move that the model knows by name (``self.generation.cameras``), put into words.
            num_frames, duration_s: give one of them at most.
            guidance_scale, audio_guidance_scale: 1 turns guidance off; the second defaults to the first, if given.
            modality_scale: how strongly picture and sound heed one another; 1 is as the model does by itself, and
                faster.
            solver: "euler", "euler_ancestral", "heun" or "midpoint".
            generator: one for all, or one for each prompt, which makes each clip independent of the others. On the
                CPU it gives the same clip on every device.
            callback_on_step_end: called as in diffusers, with (pipeline, step, noise level, latents by name). What it
                returns by the names of noisy latents takes their place. Setting ``pipeline._interrupt`` ends
                denoising: the clip is then what it was estimated to become.
            callback_on_step_end_tensor_inputs: of "video_latents" and "audio_latents", the clean latents as estimated
                so far, and "noisy_video_latents" and "noisy_audio_latents", those that the step came to.
            output_type: "np", "pil", "pt" or "latent", see ``VidGenOutput``.
            return_dict: False returns (frames, audio).

        Raises:
            InputError: an empty prompt, a clip that cannot be made, or settings out of range.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else list(negative_prompt)
        if not prompts or not all(text.strip() for text in prompts):
            raise InputError("a prompt is empty")
        if len(negatives) != len(prompts):
            raise InputError(f"{len(prompts)} prompts need as many negative prompts, not {len(negatives)}")
        if camera is not None:
            prompts = [self.generation.with_camera(text, camera) for text in prompts]
        sampling = self.sampling(num_inference_steps, guidance_scale, audio_guidance_scale, modality_scale, solver)
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"output_type {output_type!r} is not known: use {', '.join(OUTPUT_TYPES)}")
        if unknown := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise InputError(f"a callback gets {', '.join(self._callback_tensor_inputs)}, not {', '.join(unknown)}")
        self._interrupt = False
        spec = self.generation.spec(
            num_frames=num_frames, duration_s=duration_s, height=height, width=width, frame_rate=frame_rate
        )
        given = with_pictures(given, spec, image, last_image, loop)
        stages = Stopwatch(self.device)
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
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        stages.end("denoise")
        frames: Any = video
        waveform: Any = audio
        if output_type != "latent":
            frames = self.decode_video(video, spec, as_bytes=output_type != "pt", given=given)
            frames = as_pictures(frames) if output_type == "pil" else frames
            stages.end("decode_video")
            if audio is not None:
                waveform = self.decode_audio(audio, spec, given, as_array=output_type != "pt")
                stages.end("decode_audio")
        if not return_dict:
            return frames, waveform  # type: ignore[return-value]
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
        modality_scale: float | None = None,
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
        if modality_scale is None:
            modality_scale = own.modality_scale
        return Sampling(steps, guidance_scale, audio_guidance_scale, modality_scale, solver)

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
        callback_on_step_end_tensor_inputs: Sequence[str] = CLEAN,
    ) -> tuple[Tensor, Tensor | None]:
        """From noise to the normalised latents of B clips: picture (B, C, t, h, w), and sound (B, C_a, L) or None.

        Args:
            text, negative_text: as ``encode_text`` returns them, of B prompts each; the second under guidance only.
            conditioning: what is given of the clip ``spec``, or of ``looped_spec(spec)`` for a loop.
            with_audio and what follows: as in ``__call__``.
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
            callback_on_step_end_tensor_inputs,
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
        callback_on_step_end_tensor_inputs: Sequence[str] = CLEAN,
    ) -> State:
        """From noise (video, audio), where a stream may be None, to normalised latents of the same shapes.

        Args:
            text, negative_text: as ``encode_text`` returns them; the second is needed under guidance only.
            video_times_s, audio_times_s: when each latent frame and each audio latent is seen and heard.
            conditioning: what is given.
            callback_on_step_end, callback_on_step_end_tensor_inputs: as in ``__call__``.
        """
        velocity_fn = guided_velocity(
            self.transformer,
            text,
            negative_text,
            video_guidance=sampling.guidance_scale,
            audio_guidance=sampling.audio_guidance_scale,
            modality_scale=sampling.modality_scale,
            video_times_s=torch.tensor(video_times_s, device=self.device),
            audio_times_s=torch.tensor(audio_times_s, device=self.device),
            conditioning=conditioning,
            noise=noise,
        )
        sigmas = (
            conditioning.video_strength * sigma_schedule(sampling.steps, self.generation.video_shift),
            conditioning.audio_strength * sigma_schedule(sampling.steps, self.generation.audio_shift),
        )

        def velocity(x: State, sigma: tuple[Tensor, ...]) -> State:
            """The state stays in float32: rounding of small steps would add up."""
            lower = tuple(None if stream is None else stream.to(self.dtype) for stream in x)
            return tuple(None if stream is None else stream.float() for stream in velocity_fn(lower, sigma))

        def on_step(step: int, clean: State, noisy: State) -> State | None:
            noisy = conditioning.kept(noisy)  # some solvers add noise to all latents
            if callback_on_step_end is None:
                return noisy
            latents = chosen_latents(callback_on_step_end_tensor_inputs, clean, noisy)
            returned = callback_on_step_end(self, step, sigmas[0][step], latents)
            if self._interrupt:
                raise Interrupted(clean)
            return changed_state(returned, noisy) or noisy

        solver = SOLVERS[sampling.solver]
        if solver is euler_ancestral:  # by what was drawn, not by what is given, which depends on rounding
            solver = partial(solver, seeds=fingerprints(noise))
        try:
            return solver(velocity, conditioning.start(noise), sigmas, on_step)
        except Interrupted as interrupted:
            return interrupted.clean

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
            drawn_on = "cpu" if source is None else source.device
            videos.append(torch.randn(video_shape, generator=source, device=drawn_on))
            audios.append(torch.randn(audio_shape, generator=source, device=drawn_on))
        return torch.stack(videos).to(self.device), torch.stack(audios).to(self.device)

    def decode_video(self, latents: Tensor, spec: ClipSpec, as_bytes: bool, given: Given | None = None) -> Any:
        """Frames of ``denoise``'s latents: (B, T, H, W, 3) uint8 array, or a (B, 3, T, H, W) tensor in [-1, 1]."""
        if given is not None and (whole := given.whole_picture(spec)) is not None:  # it comes back as it is
            frames = np.repeat(whole[None], len(latents), axis=0)
            return frames if as_bytes else to_float(torch.from_numpy(frames)).to(latents.device)
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


# Where diffusers' own loader looks for the class that a folder names.
diffusers.VidGenPipeline = VidGenPipeline  # type: ignore[attr-defined]
