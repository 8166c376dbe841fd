"""Captions by a vision-language model of transformers: any that ``AutoModelForImageTextToText`` loads.

Several captions a clip: a long one, a short one, and one that tells what is heard. Such models see frames and hear
nothing; so what was measured of the sound is put into the request for the last (``heard``).
"""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..audio_sync.onsets import onset_times_s
from ..errors import InputError
from ..loading import choose_device
from ..media import read_clip
from .conform import Made

FRAMES = 4
REQUESTS = {
    "long": "These are frames of one video clip, in order. Describe it in two or three sentences: what is seen, how it "
    "moves, and how the camera moves.",
    "short": "These are frames of one video clip, in order. Describe it in at most ten words.",
    "sound": "These are frames of one video clip, in order. {heard} Describe in one or two sentences what is seen and "
    "what is heard.",
}


class Captioner:
    """A model, its processor and the device that they run on.

    Args:
        name: a folder or a hub id; weights are safetensors.

    Raises:
        InputError: there is no such model, or it is of another kind.
    """

    def __init__(self, name: str, device: str = "auto", max_new_tokens: int = 160) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.device, self.max_new_tokens = choose_device(device), max_new_tokens
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        try:
            self.processor: Any = AutoProcessor.from_pretrained(name)
            self.model: Any = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, use_safetensors=True)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"--captioner {name} cannot be loaded as a vision-language model: {reason}") from error
        self.model.eval().to(self.device)

    def describe(self, clip: Made) -> list[str]:
        """Captions: long, short and, if it has sound, one with it. A model that takes no request gives one. Sound
        without a picture gets none."""
        if clip.facts["kind"] == "sound":
            return []
        pictures, about_sound = frames_and_sound(clip)
        if not getattr(self.processor, "chat_template", None):
            return self._answer(self.processor(images=pictures[len(pictures) // 2], return_tensors="pt"))
        captions = []
        for kind, request in REQUESTS.items():
            if kind != "sound" or about_sound:
                text = request.format(heard=about_sound)
                content = [{"type": "image", "image": picture} for picture in pictures] + [
                    {"type": "text", "text": text}
                ]
                inputs = self.processor.apply_chat_template(
                    [{"role": "user", "content": content}],
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=True,
                    return_tensors="pt",
                )
                captions += self._answer(inputs)
        return captions

    @torch.no_grad()
    def _answer(self, inputs: Any) -> list[str]:
        inputs = inputs.to(self.device, self.model.dtype)  # leaves whole numbers as they are
        made = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
        if "input_ids" in inputs:
            made = made[:, inputs["input_ids"].shape[1] :]
        text = " ".join(self.processor.batch_decode(made, skip_special_tokens=True)[0].split())
        return [text] if text else []


def frames_and_sound(clip: Made) -> tuple[list[Image.Image], str]:
    """Frames evenly over a clip, and what can be said of its sound (``heard``), empty where it has none."""
    if clip.facts["kind"] == "image":
        return [Image.open(io.BytesIO(clip.data)).convert("RGB")], ""
    read = read_clip(clip.data)
    places = ((np.arange(FRAMES) + 0.5) / FRAMES * len(read.frames)).astype(int)
    pictures = [Image.fromarray(read.frames[place]) for place in np.unique(places)]
    return pictures, "" if read.waveform is None else heard(read.waveform, read.sample_rate_hz)


def heard(waveform: np.ndarray, rate_hz: int) -> str:
    """What was measured of a sound, in words: how loud it is, and when something begins to sound."""
    level_db = 10 * np.log10(np.mean(np.square(waveform, dtype=np.float64)) + 1e-20)
    loudness = "loud" if level_db > -20 else "of middle loudness" if level_db > -35 else "quiet"
    onsets = onset_times_s(waveform, rate_hz)
    moments = ", ".join(f"{time_s:.1f}" for time_s in onsets[:12])
    begins = f"something begins to sound at {moments} seconds" if len(onsets) else "it has no sudden beginnings"
    return f"The sound of the clip is {loudness}; {begins}."
