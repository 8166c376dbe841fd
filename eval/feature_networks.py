"""The networks of other people's measures, written out so that their weights can be plain safetensors files.

All in inference mode; every class says whose it is. Names of parameters are those that ``eval.fetch`` writes.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Unit3D(nn.Module):
    """Convolution with TensorFlow's SAME padding, normalisation without scale, ReLU."""

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int = 1):
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.conv = nn.Conv3d(channels_in, channels, kernel, stride, bias=False)
        self.norm = _Shift(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(same_padding(x, (self.kernel,) * 3, (self.stride,) * 3))))


class _Shift(nn.Module):
    """Batch normalisation at inference, without a scale, ε = 0.001."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, None, self.bias, eps=1e-3)


def same_padding(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """Zeros around the last axes so that each comes out at ceil(length / stride); an odd one goes to the end."""
    padding: list[int] = []
    for length, size, step in zip(x.shape[-len(kernel) :], kernel, stride, strict=True):
        total = max((-(-length // step) - 1) * step + size - length, 0)
        padding = [total // 2, total - total // 2, *padding]
    return F.pad(x, padding)


def _same_pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    return F.max_pool3d(same_padding(x, kernel, stride), kernel, stride)  # x is not negative, so zeros do not show


class _Mixed3D(nn.Module):
    def __init__(self, channels_in: int, channels: Sequence[int]):
        super().__init__()
        first, narrow, wide, narrower, second, pooled = channels

        def branch(*units: tuple[str, _Unit3D]) -> nn.Sequential:
            return nn.Sequential(OrderedDict(units))

        self.Branch_0 = branch(("Conv3d_0a_1x1", _Unit3D(channels_in, first, 1)))
        self.Branch_1 = branch(
            ("Conv3d_0a_1x1", _Unit3D(channels_in, narrow, 1)), ("Conv3d_0b_3x3", _Unit3D(narrow, wide, 3))
        )
        self.Branch_2 = branch(
            ("Conv3d_0a_1x1", _Unit3D(channels_in, narrower, 1)), ("Conv3d_0b_3x3", _Unit3D(narrower, second, 3))
        )
        self.Branch_3 = branch(("Conv3d_0b_1x1", _Unit3D(channels_in, pooled, 1)))

    def forward(self, x: Tensor) -> Tensor:
        pooled = _same_pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.Branch_0(x), self.Branch_1(x), self.Branch_2(x), self.Branch_3(pooled)], 1)


class I3D(nn.Module):
    """Inflated Inception (Carreira & Zisserman 2017, arXiv 1705.07750, figure 3), RGB, 400 classes.

    (B, 3, T, 224, 224) in [-1, 1], T at least 9, to logits (B, 400).
    """

    MIXED = (
        ("3b", 192, (64, 96, 128, 16, 32, 32)),
        ("3c", 256, (128, 128, 192, 32, 96, 64)),
        ("4b", 480, (192, 96, 208, 16, 48, 64)),
        ("4c", 512, (160, 112, 224, 24, 64, 64)),
        ("4d", 512, (128, 128, 256, 24, 64, 64)),
        ("4e", 512, (112, 144, 288, 32, 64, 64)),
        ("4f", 528, (256, 160, 320, 32, 128, 128)),
        ("5b", 832, (256, 160, 320, 32, 128, 128)),
        ("5c", 832, (384, 192, 384, 48, 128, 128)),
    )

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = _Unit3D(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = _Unit3D(64, 64, 1)
        self.Conv3d_2c_3x3 = _Unit3D(64, 192, 3)
        for name, channels_in, channels in self.MIXED:
            self.add_module(f"Mixed_{name}", _Mixed3D(channels_in, channels))
        last = nn.ModuleDict({"conv": nn.Conv3d(1024, 400, 1)})
        self.Logits = nn.ModuleDict({"Conv3d_0c_1x1": last})

    def forward(self, video: Tensor) -> Tensor:
        x = _same_pool(self.Conv3d_1a_7x7(video), (1, 3, 3), (1, 2, 2))
        x = _same_pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name, _, _ in self.MIXED:
            if name == "4b":
                x = _same_pool(x, (3, 3, 3), (2, 2, 2))
            elif name == "5b":
                x = _same_pool(x, (2, 2, 2), (2, 2, 2))
            x = self.get_submodule(f"Mixed_{name}")(x)
        x = F.avg_pool3d(x, (2, 7, 7), 1)
        return self.get_submodule("Logits.Conv3d_0c_1x1.conv")(x).mean((2, 3, 4))


class _Conv(nn.Module):
    """Convolution without bias, normalisation without scale, ReLU."""

    mean: Tensor
    var: Tensor

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] | None = None,
    ):
        super().__init__()
        height, width = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        self.stride, self.padding = stride, (height // 2, width // 2) if padding is None else padding
        self.weight = nn.Parameter(torch.zeros(channels, channels_in, height, width))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, None, self.stride, self.padding)
        return F.relu(F.batch_norm(x, self.mean, self.var, None, self.beta, eps=1e-3))


def _tower(channels_in: int, *layers: tuple) -> nn.Sequential:
    """Convolutions one after the other, named conv, conv_1, …; a layer is (channels, kernel[, stride, padding])."""
    units: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (channels, *rest) in enumerate(layers):
        units[f"conv_{number}" if number else "conv"] = _Conv(channels_in, channels, *rest)
        channels_in = channels
    return nn.Sequential(units)


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class _Block(nn.Module):
    """Parallel towers; the last, where there is one, starts by averaging, or a maximum pool is passed on as it is."""

    def __init__(self, conv: _Conv | None, *towers: nn.Sequential, pooled: nn.Sequential | None = None):
        super().__init__()
        if conv is not None:
            self.conv = conv
        for number, tower in enumerate(towers):
            self.add_module(f"tower_{number}" if number else "tower", tower)
        self.pooled = f"tower_{len(towers)}" if pooled is not None else None
        if pooled is not None:
            self.add_module(f"tower_{len(towers)}", pooled)

    def forward(self, x: Tensor) -> Tensor:
        outputs = [module(_average(x) if name == self.pooled else x) for name, module in self.named_children()]
        if self.pooled is None:
            outputs.append(F.max_pool2d(x, 3, 2))
        return torch.cat(outputs, 1)


class _LastBlock(nn.Module):
    def __init__(self, channels_in: int, maximum: bool):
        super().__init__()
        self.maximum = maximum
        self.conv = _Conv(channels_in, 320, 1)
        self.tower_conv = _Conv(channels_in, 384, 1)
        self.tower_mixed_conv = _Conv(384, 384, (1, 3))
        self.tower_mixed_conv_1 = _Conv(384, 384, (3, 1))
        self.tower_1_conv = _Conv(channels_in, 448, 1)
        self.tower_1_conv_1 = _Conv(448, 384, 3)
        self.tower_1_mixed_conv = _Conv(384, 384, (1, 3))
        self.tower_1_mixed_conv_1 = _Conv(384, 384, (3, 1))
        self.tower_2_conv = _Conv(channels_in, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.tower_conv(x), self.tower_1_conv_1(self.tower_1_conv(x))
        outputs = [self.conv(x), self.tower_mixed_conv(first), self.tower_mixed_conv_1(first)]
        outputs += [self.tower_1_mixed_conv(second), self.tower_1_mixed_conv_1(second)]
        pooled = F.max_pool2d(x, 3, 1, 1) if self.maximum else _average(x)
        return torch.cat([*outputs, self.tower_2_conv(pooled)], 1)


class Inception(nn.Module):
    """The Inception-v3 of FID (Szegedy et al. 2016, arXiv 1512.00567, as in TensorFlow's graph of 2015-12-05).

    (B, 3, 299, 299) in [-1, 1) to features (B, 2048).
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = _Conv(3, 32, 3, 2, 0)
        self.conv_1 = _Conv(32, 32, 3, 1, 0)
        self.conv_2 = _Conv(32, 64, 3)
        self.conv_3 = _Conv(64, 80, 1)
        self.conv_4 = _Conv(80, 192, 3, 1, 0)

        def small(channels: int, pooled: int) -> _Block:
            towers = _tower(channels, (48, 1), (64, 5)), _tower(channels, (64, 1), (96, 3), (96, 3))
            return _Block(_Conv(channels, 64, 1), *towers, pooled=_tower(channels, (pooled, 1)))

        def large(width: int) -> _Block:
            row, column = (1, 7), (7, 1)
            first = _tower(768, (width, 1), (width, row), (192, column))
            second = _tower(768, (width, 1), (width, column), (width, row), (width, column), (192, row))
            return _Block(_Conv(768, 192, 1), first, second, pooled=_tower(768, (192, 1)))

        self.mixed, self.mixed_1, self.mixed_2 = small(192, 32), small(256, 64), small(288, 64)
        self.mixed_3 = _Block(_Conv(288, 384, 3, 2, 0), _tower(288, (64, 1), (96, 3), (96, 3, 2, 0)))
        self.mixed_4, self.mixed_5, self.mixed_6, self.mixed_7 = large(128), large(160), large(160), large(192)
        self.mixed_8 = _Block(
            None,
            _tower(768, (192, 1), (320, 3, 2, 0)),
            _tower(768, (192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2, 0)),
        )
        self.mixed_9, self.mixed_10 = _LastBlock(1280, maximum=False), _LastBlock(2048, maximum=True)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv_2(self.conv_1(self.conv(images))), 3, 2)
        x = F.max_pool2d(self.conv_4(self.conv_3(x)), 3, 2)
        for number in range(11):
            x = self.get_submodule(f"mixed_{number}" if number else "mixed")(x)
        return x.mean((2, 3))


class SoundNet(nn.Module):
    """SoundNet's first seven layers (Aytar et al. 2016, arXiv 1610.09001), as its Keras port computes them, unpadded.

    Mono sound (B, N) at 22,050 Hz, in [-256, 256], to features (B, 1024, frames).
    """

    LAYERS = (
        (1, 16, 64, 2, 1),
        (16, 32, 32, 2, 1),
        (32, 64, 16, 2, 1),
        (64, 128, 8, 2, 1),
        (128, 256, 4, 2, 1),
        (256, 512, 4, 1, 2),
        (512, 1024, 4, 1, 2),
    )
    """Channels in and out, kernel, stride, dilation."""
    POOLS: ClassVar = {0: (8, 8), 1: (8, 8), 4: (4, 2)}

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for channels_in, channels, kernel, stride, dilation in self.LAYERS:
            conv = nn.Conv1d(channels_in, channels, kernel, stride, dilation=dilation)
            layer = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm1d(channels, eps=1e-3)))
            self.layers.append(layer)

    def forward(self, sound: Tensor) -> Tensor:
        x = sound[:, None]
        for number, layer in enumerate(self.layers):
            x = F.relu(layer(x))
            if number in self.POOLS:
                x = F.max_pool1d(x, *self.POOLS[number])
        return x


class LPIPS(nn.Module):
    """Learned perceptual distance, version 0.1 with AlexNet (Zhang et al. 2018, arXiv 1801.03924, equation 1).

    Two batches of images (B, 3, H, W) in [-1, 1], at least 32 pixels a side, to distances (B,).
    """

    CONVS = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(*arguments) for arguments in self.CONVS)
        self.heads = nn.ModuleList(nn.Conv2d(arguments[1], 1, 1, bias=False) for arguments in self.CONVS)

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        total = images.new_zeros(len(images))
        for head, ours, theirs in zip(self.heads, self._features(images), self._features(targets), strict=True):
            total = total + head((ours - theirs).square()).mean((1, 2, 3))
        return total

    def _features(self, images: Tensor) -> list[Tensor]:
        shift, scale = images.new_tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])[:, :, None, None]
        x, features = (images - shift) / scale, []
        for number, conv in enumerate(self.convs):
            x = F.relu(conv(F.max_pool2d(x, 3, 2) if number in (1, 2) else x))
            features.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return features
