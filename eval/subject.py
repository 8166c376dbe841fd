"""Does what a clip shows stay the same? By the likeness of its frames to a network trained on ImageNet.

VBench's subject consistency (Huang et al. 2023, arXiv 2311.17982, section 4.1) takes DINO's features; these are
EfficientNet-lite0's, whose weights ``eval.fetch`` gets from a package, so it goes by another name here.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from .feature_networks import same_padding
from .fetch import weights_path

SIDE_PX = 224
MAX_FRAMES = 8
STAGES = ((1, 3, 1, 1, 16), (6, 3, 2, 2, 24), (6, 5, 2, 2, 40), (6, 3, 3, 2, 80), (6, 5, 3, 1, 112), (6, 5, 4, 2, 192),
          (6, 3, 1, 1, 320))  # fmt: skip
"""Expansion, kernel, blocks, stride of the first, channels."""


class _Convolution(nn.Conv2d):
    """With TensorFlow's SAME padding, without bias."""

    def __init__(self, channels_in: int, channels: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        super().__init__(channels_in, channels, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        size, step = self.kernel_size[0], self.stride[0]
        return super().forward(same_padding(x, (size, size), (step, step)))


class _Block(nn.Module):
    """An inverted residual without squeeze and excitation."""

    def __init__(self, expansion: int, kernel: int, stride: int, channels_in: int, channels: int):
        super().__init__()
        wide = expansion * channels_in
        if expansion > 1:
            self.expand_conv, self.bn0 = _Convolution(channels_in, wide), nn.BatchNorm2d(wide, eps=1e-3)
        self.expands, self.adds = expansion > 1, stride == 1 and channels_in == channels
        self.depthwise_conv, self.bn1 = _Convolution(wide, wide, kernel, stride, wide), nn.BatchNorm2d(wide, eps=1e-3)
        self.project_conv, self.bn2 = _Convolution(wide, channels), nn.BatchNorm2d(channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        narrow = self.bn2(self.project_conv(F.relu6(self.bn1(self.depthwise_conv(wide)))))
        return x + narrow if self.adds else narrow


class EfficientNetLite0(nn.Module):
    """EfficientNet-lite0 (Tan & Le 2019, arXiv 1905.11946; the lite variant has ReLU6 and no squeeze and excitation).

    (B, 3, 224, 224) in [0, 255] -> (B, 1280) features before the classifier.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = _Convolution(3, 32, 3, 2), nn.BatchNorm2d(32, eps=1e-3)
        blocks, channels_in = [], 32
        for expansion, kernel, count, stride, channels in STAGES:
            for index in range(count):
                blocks.append(_Block(expansion, kernel, stride if index == 0 else 1, channels_in, channels))
                channels_in = channels
        self.blocks = nn.ModuleList(blocks)
        self.conv_head, self.bn1 = _Convolution(channels_in, 1280), nn.BatchNorm2d(1280, eps=1e-3)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu6(self.bn0(self.conv_stem((images - 127) / 128)))
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.bn1(self.conv_head(x))).mean((2, 3))


def named(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The package's names without their leading underscores, and without the classifier."""
    plain = {".".join(part.lstrip("_") for part in name.split(".")): value for name, value in weights.items()}
    return {name: value for name, value in plain.items() if not name.startswith("fc.")}


def load() -> EfficientNetLite0:
    """The network with the fetched weights.

    Raises:
        InputError: the weights are not at hand; the message says how to get them.
    """
    network = EfficientNetLite0()
    network.load_state_dict(named(load_file(weights_path("efficientnet"))))
    return network.eval().requires_grad_(False)


@torch.inference_mode()
def measure(network: Callable[[Tensor], Tensor], frames: np.ndarray) -> dict[str, float | None]:
    """Likeness of a clip's frames (T, H, W, 3) uint8; at most ``MAX_FRAMES`` of them, evenly spaced.

    Returns:
        subject_consistency: mean over the frames from the second on of the cosine of a frame's features with the first
            frame's and of that with the frame's before it, negative ones as 0, and of the two the mean; 1 for a still
            picture. None for one frame.
    """
    if len(frames) < 2:
        return {"subject_consistency": None}
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), MAX_FRAMES)).round().astype(int))
    images = torch.from_numpy(np.ascontiguousarray(frames[chosen])).movedim(-1, 1).float()
    images = F.interpolate(images, (SIDE_PX, SIDE_PX), mode="bilinear", antialias=True)
    features = F.normalize(network(images), dim=1)
    first, before = (features[1:] @ features[0]), (features[1:] * features[:-1]).sum(1)
    return {"subject_consistency": float((first.clamp(min=0) + before.clamp(min=0)).mean() / 2)}
