"""From a clip to the features that distances between sets are taken in, and a name for exactly how that was done."""

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from vidgen.errors import InputError
from vidgen.media import Clip

from .feature_networks import I3D, Inception, SoundNet
from .fetch import weights_path

I3D_FRAMES = 16
SOUNDNET_RATE_HZ = 22050
SOUNDNET_SAMPLES = 20 * SOUNDNET_RATE_HZ


@dataclass(frozen=True)
class Extractor:
    """``features`` turns a clip into one row (d,) float32; the two strings say what is comparable with what."""

    name: str
    """Of the network, with the checksum of its weights."""
    preprocessing: str
    features: Callable[[Clip], np.ndarray]
    sound_rate_hz: int | None = None
    """Clips are to be read at this sample rate; None where sound does not matter."""
    max_frames: int | None = None
    """It looks at no more frames of a clip than its first so many."""


def i3d(torchscript: Path | None = None) -> Extractor:
    """Logits of I3D on a clip's first 16 frames, as StyleGAN-V takes them for FVD (Skorokhodov et al. 2022).

    Args:
        torchscript: the ``i3d_torchscript.pt`` that most FVD code uses, in place of the fetched weights.

    Raises:
        InputError: the weights are not at hand or cannot be used.
    """
    if torchscript is None:
        path = weights_path("i3d")
        network: nn.Module = _loaded(I3D(), path)
        options = {}
    else:
        path = torchscript
        network = load_script(path)
        options = {"rescale": False, "resize": False, "return_features": True}

    @torch.inference_mode()
    def features(clip: Clip) -> np.ndarray:
        if len(clip.frames) < I3D_FRAMES:
            raise InputError(f"FVD and KVD need {I3D_FRAMES} frames of a clip, and one has {len(clip.frames)}")
        frames = _images(clip.frames[:I3D_FRAMES])
        frames = F.interpolate(frames, (224, 224), mode="bilinear", align_corners=False) / 127.5 - 1
        return network(frames.movedim(0, 1)[None], **options).flatten().numpy()

    return Extractor(
        _name("i3d-kinetics400", path),
        "first 16 frames, bilinear to 224×224, x/127.5-1, logits",
        features,
        max_frames=I3D_FRAMES,
    )


def inception() -> Extractor:
    """Pooled features of FID's Inception on the middle frame of a clip: frame FID and KID.

    One frame a clip, because frames of one clip are no independent samples.

    Raises:
        InputError: the weights are not at hand.
    """
    path = weights_path("inception")
    network = _loaded(Inception(), path)

    @torch.inference_mode()
    def features(clip: Clip) -> np.ndarray:
        middle = len(clip.frames) // 2
        image = tensorflow_resize(_images(clip.frames[middle : middle + 1]), 299)
        return network((image - 128) / 128)[0].numpy()

    how = "middle frame, TensorFlow's bilinear to 299×299, (x-128)/128, pooled"
    return Extractor(_name("inception-2015-12-05", path), how, features)


def soundnet() -> Extractor:
    """Mean over time of SoundNet's seventh layer: an audio distance of our own choice of features, not FAD.

    Sounds shorter than 20 s are repeated up to that, as SoundNet's port does.

    Raises:
        InputError: the weights are not at hand.
    """
    path = weights_path("soundnet")
    network = _loaded(SoundNet(), path)

    @torch.inference_mode()
    def features(clip: Clip) -> np.ndarray:
        if clip.waveform is None or not np.size(clip.waveform):
            raise InputError("an audio distance needs sound in every clip, and one has none")
        if clip.sample_rate_hz != SOUNDNET_RATE_HZ:
            raise InputError(f"SoundNet takes sound at {SOUNDNET_RATE_HZ} Hz, not {clip.sample_rate_hz}")
        waveform = np.atleast_2d(clip.waveform).mean(0).astype(np.float32)
        repeated = np.resize(waveform, max(len(waveform), SOUNDNET_SAMPLES))
        return network(256 * torch.from_numpy(repeated)[None])[0].mean(-1).numpy()

    how = "mono 22050 Hz, ×256, repeated to 20 s, layer 7 after ReLU, mean over time"
    return Extractor(_name("soundnet8", path), how, features, SOUNDNET_RATE_HZ)


def tensorflow_resize(images: Tensor, side: int) -> Tensor:
    """Bilinear as TensorFlow 1 did it (corner to corner at the top left, no smoothing): FID's. (B, C, H, W) float."""
    height, width = images.shape[-2:]
    sampled = images
    for axis, length in ((-2, height), (-1, width)):
        position = torch.arange(side) * (length / side)
        low = position.long().clamp(max=length - 1)
        high = (low + 1).clamp(max=length - 1)
        weight = (position - low).reshape([-1, 1] if axis == -2 else [-1])
        sampled = sampled.index_select(axis, low) * (1 - weight) + sampled.index_select(axis, high) * weight
    return sampled


def _images(frames: np.ndarray) -> Tensor:
    """(T, H, W, 3) uint8 to (T, 3, H, W) float32."""
    return torch.from_numpy(np.ascontiguousarray(frames)).movedim(-1, 1).float()


def _loaded(network: nn.Module, path: Path) -> nn.Module:
    network.load_state_dict(load_file(path))
    return network.eval().requires_grad_(False)


def load_script(path: Path) -> nn.Module:
    """A TorchScript file, ready for inference on the CPU. Raises InputError if it is none."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return torch.jit.load(path, map_location="cpu").eval()
        except RuntimeError as error:
            raise InputError(f"{path}: is no TorchScript file") from error


def _name(network: str, path: Path) -> str:
    return f"{network} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
