"""The networks of the tabletop instrument, each with what goes in and what comes out. ``verifier`` puts them to use."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidgen.tabletop.scene import ACTIONS, CAMERAS, COLOURS, FLOORS, MATERIALS, SHAPES, SIZES

PICTURE = 128
"""Pixels to a side of what the networks see; other pictures are cropped to a square and resized."""
SMALL = 64
"""Pixels to a side of the picture that bodies are looked for in, and that the camera's motion is read from."""
CELLS = 16
"""Cells to a side of the map of bodies."""
CROP = 48
"""Pixels to a side of what is cut out around a body."""
WIDE = 80
"""... and to find its middle: a big cube that stands on a corner is wider than ``CROP``."""
FRAME_RATE_HZ = 24.0
MAX_BODIES = 3
PAIR_FRAMES = 12
"""Distance of the two pictures that camera motion is read from."""

LOOKS = {"colour": COLOURS, "shape": SHAPES, "material": MATERIALS}
"""What is said of a body close up, and the words to choose from."""
MAPS = {"heat": 1, "place": 2}
CLOSE_UP = {"shift": 2, "extent": 1, "upright": 1} | {name: len(words) for name, words in LOOKS.items()}
TRACK_FEATURES = 7 + len(SHAPES)
DIRECTIONS = ("left", "right")


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.first = _convolution(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class Locator(nn.Module):
    """Pictures (B, 3, 64, 64) in [0, 1] -> maps (B, ·, 16, 16) of bodies, and the floor of the whole picture.

    ``heat`` is the logit of a body's centre, ``place`` the centre's (x, y) from the middle of the cell in cells,
    ``floor`` (B, 3) logits over ``FLOORS``.
    """

    def __init__(self, width: int = 32):
        super().__init__()
        self.trunk = nn.Sequential(_convolution(3, 16, 2), _convolution(16, width, 2), Residual(width), Residual(width))
        self.maps = nn.Conv2d(width, sum(MAPS.values()), 1)
        self.floor = nn.Sequential(
            _convolution(width, 2 * width, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, len(FLOORS))
        )
        with torch.no_grad():
            self.maps.bias[:1] = -4.0  # type: ignore[index]  # few cells hold a centre (Zhou et al., section 5)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        x = self.trunk((pictures - 0.5) * 4)
        maps = dict(zip(MAPS, self.maps(x).split(tuple(MAPS.values()), 1), strict=True))
        return maps | {"floor": self.floor(x)}


class BodyReader(nn.Module):
    """Pieces of pictures (B, 3, 48, 48) in [0, 1], each around a body -> what the body looks like.

    ``shift`` is the body's centre (x, y) from the middle of the piece over 16 pixels, ``extent`` the logarithm of the
    half size in pixels over 16, ``upright`` the logit of a cylinder that stands; the rest are logits over ``LOOKS``.
    """

    def __init__(self, width: int = 48):
        super().__init__()
        self.trunk = nn.Sequential(
            _convolution(3, width // 2, 2), _convolution(width // 2, width, 2), Residual(width),
            _convolution(width, 2 * width, 2), Residual(2 * width), nn.AvgPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.heads = nn.Linear(2 * width * (CROP // 16) ** 2, sum(CLOSE_UP.values()))

    def forward(self, pieces: Tensor) -> dict[str, Tensor]:
        told = self.heads(self.trunk((pieces - 0.5) * 4))
        return dict(zip(CLOSE_UP, told.split(tuple(CLOSE_UP.values()), 1), strict=True))


class PlaceReader(nn.Module):
    """Wider pieces of pictures at half their size (B, 3, 40, 40) in [0, 1] -> (B, 3): where the body's middle is.

    Its (x, y) from the middle of the piece over 16 pixels of the picture, and the logarithm of the half size in
    pixels over 16. Impacts are read off how bodies move, so a middle that wanders while a cube turns reads as a blow:
    the whole outline has to be seen.
    """

    def __init__(self, width: int = 32):
        super().__init__()
        self.layers = nn.Sequential(
            _convolution(3, width, 2), Residual(width), _convolution(width, 2 * width, 2), Residual(2 * width),
            nn.Conv2d(2 * width, width, 1), nn.ReLU(), nn.Flatten(), nn.Linear(width * (WIDE // 8) ** 2, 64), nn.ReLU(),
            nn.Linear(64, 3),
        )  # fmt: skip

    def forward(self, pieces: Tensor) -> Tensor:
        return self.layers((pieces - 0.5) * 4)


class MotionReader(nn.Module):
    """Tracks (B, K, TRACK_FEATURES, T), absent ones all zero -> what happens.

    Returns ``action`` (B, 7) and ``direction`` (B, 2) logits, ``main`` (B, K) logits of being the body that acts,
    ``size`` (B, K, 2) logits for each body.
    """

    def __init__(self, width: int = 48):
        super().__init__()
        self.alone = nn.Conv1d(TRACK_FEATURES, width, 5, padding=2)
        reaches = (1, 2, 4, 8)
        self.own = nn.ModuleList(nn.Conv1d(width, width, 3, padding=reach, dilation=reach) for reach in reaches)
        self.others = nn.ModuleList(nn.Conv1d(width, width, 3, padding=reach, dilation=reach) for reach in reaches)
        self.body = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, 1 + len(SIZES)))
        self.verdict = nn.Sequential(nn.Linear(4 * width, width), nn.ReLU(), nn.Linear(width, len(ACTIONS) + 2))

    def forward(self, tracks: Tensor) -> dict[str, Tensor]:
        batch, count = tracks.shape[:2]
        there = (tracks.abs().amax((2, 3)) > 0)[:, :, None, None]  # (B, K, 1, 1)
        x = F.relu(self.alone(tracks.flatten(0, 1))).unflatten(0, (batch, count)) * there
        for own, others in zip(self.own, self.others, strict=True):
            company = others(x.amax(1))[:, None]
            x = (x + F.relu(own(x.flatten(0, 1)).unflatten(0, (batch, count)) + company)) * there
        pooled = torch.cat([x.mean(3), x.amax(3)], 2)  # (B, K, 2 width)
        body = self.body(pooled)
        main = body[..., 0].masked_fill(~there[..., 0, 0], -30.0)
        acting = (main.softmax(1)[..., None] * pooled).sum(1)
        verdict = self.verdict(torch.cat([acting, pooled.amax(1)], 1))
        return {
            "action": verdict[:, : len(ACTIONS)],
            "direction": verdict[:, len(ACTIONS) :],
            "main": main,
            "size": body[..., 1:],
        }


class ImpactReader(nn.Module):
    """Tracks (B, K, TRACK_FEATURES, T), absent ones all zero -> (B, K, T) logits of each body being struck in a frame.

    A blow is a kink in a track. So each body is read by itself, with its acceleration and its way to the nearest
    other body, which tells a blow from another body from an error of the track.
    """

    INPUTS = TRACK_FEATURES + 5
    REACHES = (1, 1, 2, 4, 1)

    def __init__(self, width: int = 48):
        super().__init__()
        self.first = nn.Conv1d(self.INPUTS, width, 5, padding=2)
        self.own = nn.ModuleList(
            nn.Conv1d(width, width, 5, padding=2 * reach, dilation=reach) for reach in self.REACHES
        )
        self.impact = nn.Conv1d(width, 1, 3, padding=1)

    @staticmethod
    def inputs(tracks: Tensor) -> Tensor:
        """(B, K, INPUTS, T): the tracks, the change of the step, and x, y and distance to the nearest other body.

        The way is in half pictures, the distance in sums of the two half sizes; 0, 0, 0 where there is no other body.
        """
        there = tracks.abs().amax((2, 3)) > 0  # (B, K)
        step = tracks[:, :, 3:5]
        bend = 3 * (torch.cat([step[..., 1:], step[..., -1:]], 3) - step)
        place, extent = tracks[:, :, 1:3], 16 / (PICTURE / 2) * tracks[:, :, 5].exp()
        way = place[:, None] - place[:, :, None]  # (B, K, K, 2, T), from the first body to the second
        apart = way.norm(dim=3) / (extent[:, None] + extent[:, :, None])
        alone = ~(there[:, None] & there[:, :, None]) | torch.eye(tracks.shape[1], dtype=torch.bool)
        apart = apart.masked_fill(alone[..., None], torch.inf)
        nearest, which = apart.min(2)  # (B, K, T)
        to_it = way.gather(2, which[:, :, None, None].expand(-1, -1, 1, 2, -1))[:, :, 0]
        company = torch.cat([to_it, nearest.clamp(max=4)[:, :, None]], 2)
        return torch.cat([tracks, bend, company * nearest.isfinite()[:, :, None]], 2)

    def forward(self, tracks: Tensor) -> Tensor:
        there = tracks.abs().amax((2, 3)) > 0
        x = F.relu(self.first(self.inputs(tracks)[there]))
        for own in self.own:
            x = x + F.relu(own(x))
        logits = tracks.new_full((*there.shape, tracks.shape[-1]), -30.0)
        logits[there] = self.impact(x)[:, 0]
        return logits


class CameraReader(nn.Module):
    """How well displacements fit, as ``fits`` tells, (B, shifts, 8, 8) -> logits (B, 7) over ``CAMERAS``.

    Each block of a picture is compared with another one, half a second later, at every displacement within reach; the
    network sees only how well each displacement fits, so what the picture shows does not matter.
    """

    GRID = 8
    REACH = (5, 2)
    """Horizontal and vertical displacement in pixels."""

    def __init__(self, width: int = 32):
        super().__init__()
        shifts = (2 * self.REACH[0] + 1) * (2 * self.REACH[1] + 1)
        self.layers = nn.Sequential(
            nn.Conv2d(shifts, width, 1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(width * self.GRID**2, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, len(CAMERAS)),
        )  # fmt: skip

    @classmethod
    def fits(cls, pairs: Tensor) -> Tensor:
        """(B, shifts, 8, 8), each block a distribution over displacements, from pairs (B, 2, 3, 64, 64) in [0, 1]."""
        grey = pairs.mean(2)
        grey = grey - F.avg_pool2d(F.pad(grey, (4, 4, 4, 4), mode="replicate"), 9, 1)  # local contrast
        first, second = grey[:, :1], grey[:, 1:]
        across, down = cls.REACH
        padded = F.pad(second, (across, across, down, down), mode="replicate")
        misfit = torch.cat([
            F.avg_pool2d((first - padded[:, :, y : y + SMALL, x : x + SMALL]).abs(), SMALL // cls.GRID)
            for y in range(2 * down + 1) for x in range(2 * across + 1)
        ], 1)  # fmt: skip
        return (-8 * misfit / (misfit.mean(1, keepdim=True) + 2e-3)).softmax(1)

    def forward(self, fits: Tensor) -> Tensor:
        return self.layers(fits * 10)
