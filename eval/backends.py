"""Scores of synchrony and of sound against words that need other people's weights: CLAP, Synchformer, ImageBind.

Each is optional, and says what it lacks. Weights are given by a path or, for CLAP, by a name on the hub; they are read
from safetensors, TorchScript, or as plain tensors, and nothing is unpickled.
"""

import pickle
import tempfile
import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidgen.errors import InputError
from vidgen.media import Clip, read_clip

from .extractors import load_script
from .motion import require

CLAP_RATE_HZ = 48000
CLAP_WINDOW_S = 10.0

SYNC_FRAME_RATE = 25
SYNC_RATE_HZ = 16000
SYNC_SIDE_PX = 224
SYNC_SEGMENTS = 14
SEGMENT_FRAMES, SEGMENT_STEP_FRAMES = 16, 8
SEGMENT_SAMPLES, SEGMENT_STEP_SAMPLES = 10240, 5120
MEL_FRAMES, MEL_BANDS = 66, 128
OFFSETS_S = np.linspace(-2, 2, 21)
"""What Synchformer's classes say of the sound's offset."""


class Clap:
    """How well a sound fits a text: cosine of CLAP's two embeddings (Wu et al. 2023, arXiv 2211.06687).

    Args:
        model: folder in the transformers layout with safetensors, or a name on the hub (laion/clap-htsat-unfused).

    Raises:
        InputError: there is no such model, or it cannot be reached.
    """

    def __init__(self, model: str | Path):
        from transformers import ClapModel, ClapProcessor

        try:
            self.model = ClapModel.from_pretrained(str(model), use_safetensors=True).eval()
            self.processor = ClapProcessor.from_pretrained(str(model))
        except (OSError, ValueError) as error:
            raise InputError(
                f"CLAP cannot be loaded from {model}: give a folder with model.safetensors and the processor's files,"
                f" or a name on the hub, such as laion/clap-htsat-unfused ({str(error).splitlines()[0]})"
            ) from error

    @torch.inference_mode()
    def score(self, waveform: np.ndarray, sample_rate_hz: int, text: str) -> float:
        """Cosine, in [-1, 1], of a waveform (N,) or (C, N) and a text. Longer sounds are the mean of 10 s windows.

        Raises:
            InputError: no sound, or values that are not finite.
        """
        sound = _mono(waveform, sample_rate_hz, CLAP_RATE_HZ)
        length = round(CLAP_WINDOW_S * CLAP_RATE_HZ)
        windows = [sound[start : start + length] for start in range(0, max(1, len(sound) - length // 2), length)]
        # CLAP's own cut of what is longer is a random one, and so is what its fused variant does to several at once.
        heard = torch.cat([self._heard(window) for window in windows]).mean(0)
        given = self.processor(text=[text], return_tensors="pt", padding=True, truncation=True)
        return float(F.cosine_similarity(heard, self._embedding(self.model.get_text_features(**given))[0], dim=0))

    def _heard(self, window: np.ndarray) -> Tensor:
        given = self.processor(audio=window, sampling_rate=CLAP_RATE_HZ, return_tensors="pt")
        return F.normalize(self._embedding(self.model.get_audio_features(**given)), dim=-1)

    @staticmethod
    def _embedding(found: Any) -> Tensor:
        """(B, d); transformers 5 wraps it, 4 does not."""
        return found if isinstance(found, Tensor) else found.pooler_output


class Synchformer:
    """DeSync: by how much the sound is off, in seconds, by Synchformer (Iashin et al. 2024, arXiv 2401.16423).

    As MMAudio's evaluation takes it: 14 segments of 0.64 s, 0.32 s apart, at the beginning and at the end of the clip.

    Args:
        script: a TorchScript file of a module that takes frames (1, 14, 16, 3, 224, 224) in [-1, 1] and log-mel
            spectrograms (1, 14, 1, 128, 66), as Synchformer's own ``forward`` does, and returns logits (1, 21), or a
            tuple that ends in them.

    Raises:
        InputError: no such file, or no TorchScript.
    """

    def __init__(self, script: Path):
        self.model = load_script(script)

    @torch.inference_mode()
    def offsets_s(self, path: Path) -> np.ndarray:
        """(2,) offsets of a file's beginning and end, positive or negative, as Synchformer's classes have it.

        Raises:
            InputError: the file cannot be read, has no sound, or is shorter than 4.8 s.
        """
        clip = read_clip(path, frame_rate=SYNC_FRAME_RATE, sample_rate_hz=SYNC_RATE_HZ)
        frames, sounds = sync_segments(clip)
        offsets = []
        for part in (slice(None, SYNC_SEGMENTS), slice(-SYNC_SEGMENTS, None)):
            found = self.model(frames[None, part], sounds[None, part])
            offsets.append(offset_s(found if isinstance(found, Tensor) else found[-1]))
        return np.concatenate(offsets)

    def desync_s(self, path: Path) -> float:
        """Mean magnitude of the offsets, 0 for a clip in sync. Raises as ``offsets_s``."""
        return float(np.abs(self.offsets_s(path)).mean())


def offset_s(logits: Tensor) -> np.ndarray:
    """(B,) seconds of the likeliest of Synchformer's classes, from logits (B, 21).

    Raises:
        InputError: another number of classes, or values that are not finite.
    """
    if logits.ndim != 2 or logits.shape[-1] != len(OFFSETS_S):
        raise InputError(f"Synchformer's logits are (B, {len(OFFSETS_S)}), not {tuple(logits.shape)}")
    if not torch.isfinite(logits).all():
        raise InputError("Synchformer's logits are not finite")
    return OFFSETS_S[logits.argmax(-1).cpu().numpy()]


def sync_segments(clip: Clip) -> tuple[Tensor, Tensor]:
    """Frames (S, 16, 3, 224, 224) in [-1, 1] and log-mel spectrograms (S, 1, 128, 66) of a clip's overlapping segments.

    The picture is scaled to 224 at its shorter side and cropped centrally.

    Raises:
        InputError: no sound, another rate than 25 frames and 16,000 samples a second, or fewer than 14 segments.
    """
    if clip.frame_rate != SYNC_FRAME_RATE or clip.sample_rate_hz != SYNC_RATE_HZ:
        raise InputError(f"Synchformer takes {SYNC_FRAME_RATE} frames and {SYNC_RATE_HZ} samples a second")
    frames = torch.from_numpy(np.ascontiguousarray(clip.frames)).movedim(-1, 1).float()
    height, width = frames.shape[-2:]
    scale = SYNC_SIDE_PX / min(height, width)
    size = (max(SYNC_SIDE_PX, round(height * scale)), max(SYNC_SIDE_PX, round(width * scale)))
    frames = F.interpolate(frames, size, mode="bicubic", antialias=True).clamp(0, 255)
    top, left = (size[0] - SYNC_SIDE_PX) // 2, (size[1] - SYNC_SIDE_PX) // 2
    frames = frames[..., top : top + SYNC_SIDE_PX, left : left + SYNC_SIDE_PX] / 127.5 - 1
    sound = torch.from_numpy(_mono(clip.waveform, clip.sample_rate_hz, SYNC_RATE_HZ))
    count = min(
        (len(frames) - SEGMENT_FRAMES) // SEGMENT_STEP_FRAMES, (len(sound) - SEGMENT_SAMPLES) // SEGMENT_STEP_SAMPLES
    ) + 1  # fmt: skip
    if count < SYNC_SEGMENTS:
        needed_s = ((SYNC_SEGMENTS - 1) * SEGMENT_STEP_FRAMES + SEGMENT_FRAMES) / SYNC_FRAME_RATE
        raise InputError(f"Synchformer needs {needed_s:g} s of picture and sound")
    pictures = frames.unfold(0, SEGMENT_FRAMES, SEGMENT_STEP_FRAMES)[:count].movedim(-1, 1)
    return pictures.contiguous(), _log_mel(sound.unfold(0, SEGMENT_SAMPLES, SEGMENT_STEP_SAMPLES)[:count])[:, None]


def _log_mel(sound: Tensor) -> Tensor:
    """(S, N) samples at 16 kHz to (S, 128, 66): Synchformer's, that is torchaudio's mel scale and AST's statistics."""
    from transformers.audio_utils import mel_filter_bank

    window = F.pad(torch.hann_window(400), (312, 312))
    spectrum = torch.stft(sound, 1024, 160, 1024, window, center=True, pad_mode="reflect", return_complex=True)
    filters = mel_filter_bank(513, MEL_BANDS, 0.0, SYNC_RATE_HZ / 2, SYNC_RATE_HZ, norm=None, mel_scale="htk")
    mel = torch.from_numpy(filters).float().T @ spectrum.abs().square()
    mel = F.pad(torch.log(mel + 1e-6), (0, max(0, MEL_FRAMES - mel.shape[-1])))[..., :MEL_FRAMES]
    return (mel + 4.2677393) / (2 * 4.5689974)


class ImageBind:
    """How well sound and picture go together: cosine of ImageBind's embeddings (Girdhar et al. 2023, arXiv 2305.05665).

    Args:
        weights: ``imagebind_huge.pth``, read as plain tensors.

    Raises:
        InputError: the package ``imagebind`` is missing, or the file is, or it is another model's.
    """

    def __init__(self, weights: Path):
        try:
            from imagebind import data
            from imagebind.models import imagebind_model
        except ImportError as error:
            raise InputError(
                "the package imagebind is missing or does not load: pip install"
                f" git+https://github.com/facebookresearch/ImageBind ({error})"
            ) from error
        if not weights.is_file():
            raise InputError(
                f"{weights}: no such file; it is https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth"
            )
        self.data, self.kinds = data, imagebind_model.ModalityType
        self.model = imagebind_model.imagebind_huge(pretrained=False)
        try:
            self.model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except (RuntimeError, ValueError, TypeError, EOFError, pickle.UnpicklingError) as error:
            raise InputError(f"{weights}: is not ImageBind's state dict ({str(error).splitlines()[0]})") from error
        self.model.eval()

    @torch.inference_mode()
    def score(self, path: Path) -> float:
        """Cosine, in [-1, 1], of a file's picture and sound.

        Raises:
            InputError: the file cannot be read or has no sound.
        """
        clip = read_clip(path, sample_rate_hz=SYNC_RATE_HZ)
        sound = _mono(clip.waveform, clip.sample_rate_hz, SYNC_RATE_HZ)
        with tempfile.TemporaryDirectory() as folder:
            heard = Path(folder) / "sound.wav"
            with wave.open(str(heard), "wb") as file:
                file.setparams((1, 2, SYNC_RATE_HZ, 0, "NONE", ""))
                file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
            given = {
                self.kinds.VISION: self.data.load_and_transform_video_data([str(path)], "cpu"),
                self.kinds.AUDIO: self.data.load_and_transform_audio_data([str(heard)], "cpu"),
            }
        found = self.model(given)
        return float(F.cosine_similarity(found[self.kinds.VISION][0], found[self.kinds.AUDIO][0], dim=0))


def _mono(waveform: np.ndarray | None, sample_rate_hz: int, rate_hz: int) -> np.ndarray:
    """(N,) float32 at another rate."""
    if waveform is None or not np.size(waveform):
        raise InputError("the clip has no sound")
    sound = np.atleast_2d(np.asarray(waveform, np.float32)).mean(0)
    if not np.isfinite(sound).all():
        raise InputError("the sound holds values that are not finite numbers")
    if sample_rate_hz == rate_hz:
        return sound
    divisor = int(np.gcd(sample_rate_hz, rate_hz))
    resampled = require("scipy.signal").resample_poly(sound, rate_hz // divisor, sample_rate_hz // divisor)
    return resampled.astype(np.float32)
