"""Published text-to-video models, with sound or without, behind one function: any video pipeline of diffusers.

What a pipeline can be told is read from its signature, and its output from the fields that it has. What neither tells
stands in the table below.
"""

import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import InputError
from .published_folders import default_dtype, first_line, is_vidgen, load_pipeline, local_folder

if TYPE_CHECKING:
    from PIL.Image import Image

NATIVE_FRAME_RATES = {
    "allegro": 15, "animatediff": 8, "anyflow": 16, "chronoedit": 16, "cogvideo": 8, "cosmos": 16, "easyanimate": 8,
    "helios": 24, "hunyuan_video": 24, "hunyuan_video1_5": 24, "kandinsky5": 24, "latte": 8, "mochi": 30,
    "motif_video": 24, "sana_video": 16, "skyreels_v2": 24, "wan": 16,
}  # fmt: skip
"""Frames a second by diffusers subpackage, for pipelines that are not told a rate: their cards and examples say it."""
FROM_PICTURES = re.compile(r"ImageToVideo|Image2Video|(?<!T)I2V")

NAMES = {
    "height": ("height",), "width": ("width",), "num_frames": ("num_frames", "frames", "video_length"),
    "frame_rate": ("frame_rate", "fps"), "negative_prompt": ("negative_prompt",),
    "num_inference_steps": ("num_inference_steps",), "guidance_scale": ("guidance_scale",),
    "audio_guidance_scale": ("audio_guidance_scale",), "image": ("image", "cond_image"),
    "last_image": ("last_image",), "generator": ("generator",),
}  # fmt: skip
"""What is asked for, and what pipelines call it."""
FLAGS = {
    "height": "--size", "width": "--size", "num_frames": "--duration", "duration_s": "--duration",
    "frame_rate": "--fps", "negative_prompt": "--negative-prompt", "num_inference_steps": "--steps",
    "guidance_scale": "--guidance", "audio_guidance_scale": "--audio-guidance", "image": "--image",
    "last_image": "--last-image", "generator": "--seed",
}  # fmt: skip
GUIDERS = {"guidance_scale": "guider", "audio_guidance_scale": "audio_guider"}
"""Where a pipeline keeps its guidance as a part."""
SOUND_SWITCHES = ("sample_audio", "enable_sound")
FRAME_FIELDS, SOUND_FIELDS, RATE_FIELDS = ("frames", "videos", "video"), ("audio", "sound"), ("sampling_rate",)
SOUND_PARTS = ("vocoder", "sound_tokenizer", "audio_vae", "codec")
"""Whatever makes the waveform comes before what only makes its spectrogram, which may run at another rate."""
SOUND_RATES = ("output_sampling_rate", "sampling_rate", "sample_rate", "sample_rate_hz")
TIME_COMPRESSIONS = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio", "vae_temporal_scale_factor")


@dataclass(frozen=True)
class Asked:
    """What a clip should be; None leaves a value to the model. ``seed`` is always heeded, ``image`` and ``last_image``
    are PIL pictures of any size."""

    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    duration_s: float | None = None
    frame_rate: Fraction | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    audio_guidance_scale: float | None = None
    image: "Image | None" = None
    last_image: "Image | None" = None
    with_audio: bool = True
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Made:
    """``frames`` (T, H, W, 3) uint8; ``waveform`` (C, N) float32 in [-1, 1], or None from a silent model."""

    frames: np.ndarray
    frame_rate: Fraction
    waveform: np.ndarray | None
    sample_rate_hz: int


class PublishedModel:
    """A loaded pipeline, whatever its family, or vidgen's own; use ``open_model``.

    Attributes:
        name: of the pipeline's class.
        accepts: what a call may be given, with the defaults; ``inspect.Parameter.empty`` where there is none.
        placement: where the weights are, in words.
    """

    def __init__(self, pipeline: Any, placement: str = "") -> None:
        self.pipeline, self.placement = pipeline, placement
        self.name = type(pipeline).__name__
        self.accepts = accepted(pipeline)
        guiders = {part: getattr(pipeline, part, None) for part in GUIDERS.values()}
        self.own_scales = {
            part: getattr(guider, "guidance_scale")  # noqa: B009
            for part, guider in guiders.items()
            if hasattr(guider, "guidance_scale")
        }
        if not any(name in self.accepts for name in NAMES["num_frames"]) or "prompt" not in self.accepts:
            raise InputError(f"{self.name} does not make a video from a prompt: give another --model")

    def make(self, prompt: str, asked: Asked | None = None, on_step: Callable[[int], None] | None = None) -> Made:
        """A clip for one prompt.

        Args:
            on_step: called with the number of each step that ends, from 0, if the pipeline tells.

        Raises:
            InputError: something was asked for that this pipeline cannot do, or that it refuses; or memory ran out.
        """
        import torch

        asked = asked or Asked()
        rate = self.frame_rate(asked)
        arguments = {"prompt": prompt} | self.arguments(asked, rate)
        if on_step is not None and "callback_on_step_end" in self.accepts:

            def on_step_end(_pipeline: Any, step: int, _time: Any, values: dict) -> dict:
                on_step(step)
                return values

            arguments["callback_on_step_end"] = on_step_end
        try:
            with torch.no_grad():
                output = self.pipeline(**arguments)
        except InputError:
            raise
        except ValueError as error:  # how diffusers refuses what it was given
            raise InputError(f"{self.name}: {first_line(error)}") from error
        except (NameError, ImportError) as error:  # of the former kind where diffusers guards an import
            if not error.name or find_spec(error.name.split(".")[0]):
                raise
            raise InputError(f"{self.name} needs a package that is not here: pip install {error.name}") from error
        except torch.OutOfMemoryError as error:
            raise InputError(f"{self.name}: memory ran out; ask for a smaller --size or --duration") from error
        frames = as_frames(_field(output, FRAME_FIELDS))
        sound = _field(output, SOUND_FIELDS) if asked.with_audio else None
        waveform = None if sound is None else as_waveform(sound)
        sample_rate_hz = 0 if waveform is None else self.sample_rate_hz(output)
        return Made(frames, rate, waveform, sample_rate_hz)

    def frame_rate(self, asked: Asked) -> Fraction:
        """Frames a second: as asked, else the pipeline's default, else its family's.

        Raises:
            InputError: nothing tells.
        """
        name = self._own_name("frame_rate")
        if asked.frame_rate is not None:
            return asked.frame_rate
        own = getattr(self.pipeline, "generation", None)  # vidgen's
        default = self.accepts.get(name) if name else None
        if own is not None:
            return Fraction(own.frame_rate)
        if isinstance(default, int | float):
            return Fraction(default).limit_denominator(1001)
        config = getattr(getattr(self.pipeline, "transformer", None), "config", {})
        if getattr(self.pipeline, "config", {}).get("expand_timesteps"):  # Wan 2.2 5B
            return Fraction(24)
        if "CogVideoX" in self.name and config.get("patch_size_t") is not None:  # CogVideoX 1.5
            return Fraction(16)
        packages = type(self.pipeline).__module__.split(".")
        rate = getattr(self.pipeline, "fps", None) or next(
            (NATIVE_FRAME_RATES[package] for package in packages if package in NATIVE_FRAME_RATES), None
        )
        if rate is None:
            raise InputError(f"{self.name} does not tell how many frames a second it makes: give --fps")
        return Fraction(rate)

    def arguments(self, asked: Asked, rate: Fraction) -> dict[str, Any]:
        """``asked`` in this pipeline's own names; what is None is left to its defaults.

        Raises:
            InputError: something that this pipeline does not take, or that it needs and was not given.
        """
        import torch

        values = {field.name: getattr(asked, field.name) for field in fields(asked)}
        seed, duration_s, with_audio = values.pop("seed"), values.pop("duration_s"), values.pop("with_audio")
        if duration_s is not None:
            values["num_frames"] = self.whole_latents(max(1, round(duration_s * rate)))
        if values["frame_rate"] is not None:
            if self._own_name("frame_rate") is None:  # frames come at the pipeline's pace, and are played at this one
                values["frame_rate"] = None
            elif values["frame_rate"].denominator == 1:
                values["frame_rate"] = int(values["frame_rate"])
            else:
                values["frame_rate"] = float(values["frame_rate"])
        values["generator"] = torch.Generator().manual_seed(seed)
        for part, scale in self.own_scales.items():  # what an earlier clip asked for is not the model's own
            getattr(self.pipeline, part).guidance_scale = scale
        arguments: dict[str, Any] = {}
        for name, value in values.items():
            own = self._own_name(name)
            if value is None or (name == "negative_prompt" and not value):
                continue
            if own is not None:
                arguments[own] = value
            elif hasattr(getattr(self.pipeline, GUIDERS.get(name, ""), None), "guidance_scale"):
                getattr(self.pipeline, GUIDERS[name]).guidance_scale = value
            else:
                raise InputError(f"{self.name} does not take {FLAGS[name]}: leave it out")
        if "negative_prompt" in arguments and self.accepts.get("true_cfg_scale") == 1.0:
            raise InputError(f"{self.name} is distilled and heeds no --negative-prompt: leave it out")
        for switch in SOUND_SWITCHES:
            if switch in self.accepts:
                arguments[switch] = with_audio and self.has_sound
        if "use_resolution_binning" in self.accepts and asked.height is not None:
            arguments["use_resolution_binning"] = False  # which would make another size, and scale it
        if "with_audio" in self.accepts:  # vidgen's
            arguments["with_audio"] = with_audio
        if "output_type" in self.accepts:
            arguments["output_type"] = "np"
        if FROM_PICTURES.search(self.name) and asked.image is None:
            raise InputError(f"{self.name} needs --image")
        for name, default in self.accepts.items():
            if default is inspect.Parameter.empty and name not in (*arguments, "prompt"):
                flag = next((FLAGS[asked_for] for asked_for, names in NAMES.items() if name in names), None)
                raise InputError(f"{self.name} needs {flag}" if flag else
                                 f"{self.name} needs {name!r}, which cannot be given here")  # fmt: skip
        return arguments

    def load_loras(self, texts: Sequence[str]) -> None:
        """Add adapters, each ``PATH[:SCALE]``, in the format of the pipeline's family.

        Raises:
            InputError: the pipeline takes none, peft is missing, or a file does not fit.
        """
        if not texts:
            return
        from .lora import Lora

        if not hasattr(self.pipeline, "load_lora_weights"):
            raise InputError(f"{self.name} does not take --lora: leave it out")
        loras = [Lora.parse(text) for text in texts]
        names = [f"lora_{number}" for number in range(len(loras))]
        for name, lora in zip(names, loras, strict=True):
            if not lora.file.is_file():
                raise InputError(f"{lora.file}: no such file")
            if lora.file.suffix != ".safetensors":
                raise InputError(f"{lora.file}: only safetensors are read")
            place = {"weight_name": lora.file.name, "adapter_name": name}
            try:
                self.pipeline.load_lora_weights(str(lora.file.parent), **place)
            except (ValueError, RuntimeError, OSError, KeyError) as error:
                raise InputError(f"{lora.file}: no LoRA for {self.name}: {first_line(error)}") from error
        self.pipeline.set_adapters(names, [lora.scale for lora in loras])

    @property
    def has_sound(self) -> bool:
        """Whether the pipeline has parts that make sound."""
        return any(getattr(self.pipeline, name, None) is not None for name in SOUND_PARTS)

    def whole_latents(self, num_frames: int) -> int:
        """The nearest number of frames that fills latent frames, 1 + n·(the VAE's compression in time)."""
        for name in TIME_COMPRESSIONS:
            group = getattr(self.pipeline, name, None)
            if isinstance(group, int) and group > 1:
                return 1 + max(1, round((num_frames - 1) / group)) * group
        return num_frames

    def sample_rate_hz(self, output: Any) -> int:
        """Of the sound in ``output``: as it says, or as the part that made the waveform does.

        Raises:
            InputError: nothing tells.
        """
        stated = _field(output, (*RATE_FIELDS, "sample_rate"))
        if stated:
            return int(stated)
        for part in SOUND_PARTS:
            config = getattr(getattr(self.pipeline, part, None), "config", None) or {}
            for name in SOUND_RATES:
                if config.get(name):
                    return int(config[name])
        raise InputError(f"{self.name} made sound without telling its sample rate: give --no-audio")

    def _own_name(self, name: str) -> str | None:
        return next((own for own in NAMES[name] if own in self.accepts), None)


def open_model(
    model: str | Path, device: Any = "auto", dtype: str = "auto", for_picture: bool = False, quality: str | None = None
) -> PublishedModel:
    """Load any text-to-video pipeline, vidgen's own among them: a folder, or a name on the Hugging Face hub.

    Args:
        device: as ``loading.choose_device`` takes it.
        dtype: of the weights: "float32", "bfloat16", "float16" or "auto".
        for_picture: a first picture will be given.
        quality: of a model of vidgen's own, see ``VidGenPipeline.from_pretrained``.

    Raises:
        InputError: there is no such model, it is damaged, or the installed diffusers does not know it.
    """
    import torch

    from .loading import choose_device

    device = choose_device(str(device))
    folder = local_folder(model)
    if is_vidgen(folder):
        from .pipeline import VidGenPipeline

        chosen = None if dtype == "auto" else getattr(torch, dtype)
        own = VidGenPipeline.from_pretrained(folder, torch_dtype=chosen, device=device, quality=quality)
        return PublishedModel(own, f"on {device}")
    kind = getattr(torch, dtype) if dtype != "auto" else default_dtype(folder, device)
    pipeline = load_pipeline(folder, kind, for_picture)
    from .placement import place

    placement = place(pipeline, device)
    if hasattr(pipeline, "set_progress_bar_config"):
        pipeline.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)
    return PublishedModel(pipeline, f"{placement}, {str(kind).removeprefix('torch.')}")


def accepted(pipeline: Any) -> dict[str, Any]:
    """What a pipeline's call may be given, and the defaults; ``inspect.Parameter.empty`` for what must be given."""
    if hasattr(pipeline, "blocks"):
        return {
            entry.name: entry.default  # ``required`` may mean one of several workflows only
            for entry in pipeline.blocks.inputs
            if entry.name is not None
        }
    parameters = inspect.signature(type(pipeline).__call__).parameters.values()
    return {
        parameter.name: parameter.default
        for parameter in list(parameters)[1:]
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


def as_frames(video: Any) -> np.ndarray:
    """The first clip of a pipeline's output as (T, H, W, 3) uint8: arrays or tensors in [0, 1], or PIL pictures."""
    if isinstance(video, list | tuple) and video and isinstance(video[0], list | tuple):
        video = video[0]
    if isinstance(video, list | tuple):
        video = np.stack([np.asarray(picture) for picture in video])
    if hasattr(video, "detach"):
        video = video.detach().float().cpu().numpy()
    frames = np.asarray(video)
    if frames.ndim == 5:
        frames = frames[0]
    if frames.ndim != 4 or 3 not in (frames.shape[-1], frames.shape[1]):
        raise InputError(f"the pipeline's output of shape {frames.shape} is not a video")
    if frames.shape[-1] != 3:
        frames = frames.transpose(0, 2, 3, 1)
    if frames.dtype != np.uint8:
        frames = np.rint(np.nan_to_num(frames).clip(0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(frames)


def as_waveform(sound: Any) -> np.ndarray:
    """The sound of one clip as (C, N) float32 in [-1, 1], with one or two channels; a batch axis of one may lead."""
    if isinstance(sound, list | tuple):
        sound = sound[0]
    if hasattr(sound, "detach"):
        sound = sound.detach().float().cpu().numpy()
    waveform = np.atleast_2d(np.asarray(sound, dtype=np.float32))
    if waveform.ndim == 3:
        waveform = waveform[0]
    if waveform.ndim != 2 or not 1 <= len(waveform) <= 2:
        raise InputError(f"sound of shape {waveform.shape} is neither mono nor stereo")
    return np.nan_to_num(waveform).clip(-1, 1)


def _field(output: Any, names: tuple[str, ...]) -> Any:
    """The first of these that ``output`` (an output class, a modular pipeline's state, or a mapping) has."""
    for name in names:
        value = output.get(name) if isinstance(output, Mapping) or hasattr(output, "kwargs_mapping") else None
        value = getattr(output, name, None) if value is None else value
        if value is not None:
            return value
    return None
