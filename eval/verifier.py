"""An instrument that looks at a clip of the tabletop world and says what it shows, from pixels alone.

Three small networks: a detector for still pictures (bodies as points, Zhou et al., "Objects as Points", 2019), whose
findings are linked over time into tracks; a network that reads motion and impacts off the tracks; and one that reads
the camera's motion off the displacement of the picture's blocks. ``train_verifier`` is how they came about.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vidgen.errors import InputError
from vidgen.tabletop.scene import ACTIONS, CAMERAS, COLOURS, FLOORS, MATERIALS, SHAPES, SIZES

WEIGHTS = Path(__file__).resolve().parent / "weights"
PICTURE = 128
"""Pixels to a side of what the networks see; other pictures are cropped to a square and resized."""
STRIDE = 8
FRAME_RATE_HZ = 24.0
MAX_BODIES = 3
PAIR_FRAMES = 12
"""Distance of the two pictures that camera motion is read from."""

LOOKS = {"colour": COLOURS, "shape": SHAPES, "material": MATERIALS, "size": SIZES}
"""What is said of a body, and the words to choose from."""
HEADS = {"heat": 1, "place": 2, "extent": 1, "upright": 1} | {name: len(words) for name, words in LOOKS.items()}
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


class StillDetector(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] -> maps at an eighth of the size, and the floor of the whole picture.

    ``heat`` is the logit of a body's centre, ``place`` the centre's (x, y) from the middle of the cell in cells,
    ``extent`` the logarithm of the half size in pixels over 16, ``upright`` the logit of a cylinder that stands;
    the rest are logits over the words of ``LOOKS``. ``floor`` is (B, 3).
    """

    def __init__(self, width: int = 72):
        super().__init__()
        half = width // 2
        self.trunk = nn.Sequential(
            _convolution(3, 16, 2), _convolution(16, half, 2), Residual(half), _convolution(half, width, 2),
            Residual(width), Residual(width),
        )  # fmt: skip
        self.heads = nn.Conv2d(width, sum(HEADS.values()), 1)
        self.floor = nn.Linear(width, len(FLOORS))
        nn.init.constant_(self.heads.bias[:1], -4.0)  # few cells hold a centre (Zhou et al., section 5)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        x = self.trunk((pictures - 0.5) * 4)
        maps = dict(zip(HEADS, self.heads(x).split(tuple(HEADS.values()), 1), strict=True))
        return maps | {"floor": self.floor(x.mean((2, 3)))}


class MotionReader(nn.Module):
    """Tracks (B, K, TRACK_FEATURES, T), absent ones all zero -> what happens.

    Returns ``action`` (B, 7) and ``direction`` (B, 2) logits, ``main`` (B, K) logits of being the body that acts,
    ``impact`` (B, T) logits of an impact at each frame.
    """

    def __init__(self, width: int = 64):
        super().__init__()
        self.alone = nn.Sequential(
            nn.Conv1d(TRACK_FEATURES, width, 5, padding=2), nn.ReLU(), nn.Conv1d(width, width, 3, padding=1), nn.ReLU()
        )
        self.together = nn.ModuleList(
            nn.Conv1d(2 * width, width, 3, padding=dilation, dilation=dilation) for dilation in (1, 2, 4, 8)
        )
        self.impact = nn.Conv1d(width, 1, 3, padding=1)
        self.main = nn.Linear(2 * width, 1)
        self.verdict = nn.Sequential(nn.Linear(4 * width, width), nn.ReLU(), nn.Linear(width, len(ACTIONS) + 2))

    def forward(self, tracks: Tensor) -> dict[str, Tensor]:
        batch, count = tracks.shape[:2]
        there = (tracks.abs().amax((2, 3)) > 0)[:, :, None, None]  # (B, K, 1, 1)
        x = self.alone(tracks.flatten(0, 1)).unflatten(0, (batch, count)) * there
        for layer in self.together:
            company = torch.cat([x, x.amax(1, keepdim=True).expand_as(x)], 2)
            x = (x + F.relu(layer(company.flatten(0, 1))).unflatten(0, (batch, count))) * there
        scene = x.amax(1)
        pooled = torch.cat([x.mean(3), x.amax(3)], 2)  # (B, K, 2 width)
        main = self.main(pooled)[..., 0].masked_fill(~there[..., 0, 0], -30.0)
        acting = (main.softmax(1)[..., None] * pooled).sum(1)
        verdict = self.verdict(torch.cat([acting, pooled.amax(1)], 1))
        return {
            "action": verdict[:, : len(ACTIONS)],
            "direction": verdict[:, len(ACTIONS) :],
            "main": main,
            "impact": self.impact(scene)[:, 0],
        }


class CameraReader(nn.Module):
    """Pairs of pictures (B, 2, 3, H, W) in [0, 1], half a second apart -> logits (B, 7) over ``CAMERAS``.

    Each block of the first picture is compared with the second one at every displacement within reach; the network
    sees only how well each displacement fits, so what the picture shows does not matter.
    """

    GRID = 8
    REACH = (5, 2)
    """Horizontal and vertical displacement, in pixels of a picture of 64×64."""

    def __init__(self, width: int = 32):
        super().__init__()
        shifts = (2 * self.REACH[0] + 1) * (2 * self.REACH[1] + 1)
        self.layers = nn.Sequential(
            nn.Conv2d(shifts, width, 1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(width * self.GRID**2, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, len(CAMERAS)),
        )  # fmt: skip

    def fits(self, pairs: Tensor) -> Tensor:
        """(B, shifts, GRID, GRID): how well each displacement fits, as a distribution over displacements."""
        size = 8 * self.GRID
        small = F.interpolate(pairs.mean(2), size=(size, size), mode="area")
        small = small - F.avg_pool2d(F.pad(small, (4, 4, 4, 4), mode="replicate"), 9, 1)  # local contrast
        first, second = small[:, :1], small[:, 1:]
        across, down = self.REACH
        padded = F.pad(second, (across, across, down, down), mode="replicate")
        misfit = torch.cat([
            F.avg_pool2d((first - padded[:, :, y : y + size, x : x + size]).abs(), 8)
            for y in range(2 * down + 1) for x in range(2 * across + 1)
        ], 1)  # fmt: skip
        return (-8 * misfit / (misfit.mean(1, keepdim=True) + 2e-3)).softmax(1)

    def forward(self, pairs: Tensor) -> Tensor:
        return self.layers(self.fits(pairs) * 10)


@dataclass
class Track:
    """One body over the frames in which it was found. F frames, in order."""

    frames: list[int]
    places: list[np.ndarray]
    """(x, y) in pixels of a picture of 128×128."""
    scores: list[float]
    readings: list[dict[str, np.ndarray]]
    """Of each frame: log-probabilities for each of ``LOOKS``, ``extent`` in pixels, ``upright`` from 0 to 1."""

    def expected(self, frame: int) -> np.ndarray:
        """Where it should be by its last two places; it is taken to stand still after a longer absence."""
        gap = frame - self.frames[-1]
        if len(self.frames) < 2 or gap > 3 or self.frames[-1] - self.frames[-2] > 2:
            return self.places[-1]
        velocity = (self.places[-1] - self.places[-2]) / (self.frames[-1] - self.frames[-2])
        return self.places[-1] + velocity * gap

    def likelihoods(self, name: str) -> np.ndarray:
        """Probabilities over ``LOOKS[name]``: the mean of the log-probabilities, by the detector's certainty."""
        mean = np.average([reading[name] for reading in self.readings], axis=0, weights=self.scores)
        odds = np.exp(mean - mean.max())
        return odds / odds.sum()


@dataclass(frozen=True)
class Seen:
    """What a clip shows. Words as in ``scene``; None where nothing was found."""

    bodies: list[dict[str, str]]
    """Colour, shape, material and size of each body, the one that acts first."""
    count: int
    floor: str
    camera: str
    action: str | None
    direction: str
    """``left`` or ``right``: where the acting body comes from; empty when it rests, drops, or was not found."""
    impacts_s: np.ndarray
    """(M,) ascending."""


def track_features(
    frames: list[int], places: np.ndarray, extents: np.ndarray, shapes: np.ndarray, upright: np.ndarray, num_frames: int
) -> np.ndarray:
    """(TRACK_FEATURES, T) from what was found at frames (F,): places (F, 2), extents (F,), shapes (F, 3), upright (F,).

    Presence, place, step to the next frame and from the last, extent and posture; what was not found is interpolated.
    """
    time = np.arange(num_frames)
    values = np.concatenate([places / (PICTURE / 2) - 1, np.log(extents / 16)[:, None], upright[:, None], shapes], 1)
    filled = np.stack([np.interp(time, frames, column) for column in values.T])
    presence = np.zeros(num_frames)
    presence[frames] = 1.0
    steps = np.diff(filled[:2], axis=1, prepend=filled[:2, :1]) * 10
    return np.concatenate([presence[None], filled[:2], steps, filled[2:]]).astype(np.float32)


def impact_times_s(logits: np.ndarray, frame_rate_hz: float, threshold: float = 0.0) -> np.ndarray:
    """Peaks of (T,) logits above ``threshold``, placed between frames by the parabola through three points."""
    found = []
    padded = np.pad(logits, 1, constant_values=-20.0)
    for frame, (before, here, after) in enumerate(zip(padded[:-2], padded[1:-1], padded[2:], strict=True)):
        if here > threshold and here >= before and here > after:
            bend = max(2 * here - before - after, 1e-6)
            shift = 0.0 if frame in (0, len(logits) - 1) else float(np.clip((after - before) / bend / 2, -0.5, 0.5))
            found.append((frame + shift) / frame_rate_hz)
    return np.array(found)


def link(found: list[list[tuple[np.ndarray, float, dict[str, np.ndarray]]]]) -> list[Track]:
    """Tracks through the findings (place, score, reading) of each frame, by nearness and likeness of colour.

    No more than ``MAX_BODIES + 1`` are kept, the best established first; what shows up in few frames is left out.
    """
    tracks: list[Track] = []
    for frame, findings in enumerate(found):
        costs = []
        for i, track in enumerate(tracks):
            usual = track.likelihoods("colour")
            reach = 8 + 3 * min(frame - track.frames[-1], 8)
            for j, (place, _, reading) in enumerate(findings):
                apart = min(float(np.linalg.norm(place - track.expected(frame))) / reach, 2.5)
                unlike = 1 - float(np.sqrt(usual * np.exp(reading["colour"])).sum())
                costs.append((apart + 4 * unlike, i, j))
        taken_tracks: set[int] = set()
        taken: set[int] = set()
        for cost, i, j in sorted(costs):
            if cost < 3 and i not in taken_tracks and j not in taken:
                taken_tracks.add(i)
                taken.add(j)
                _extend(tracks[i], frame, findings[j])
        for j, finding in enumerate(findings):
            if j not in taken:
                tracks.append(Track([], [], [], []))
                _extend(tracks[-1], frame, finding)
    enough = max(2, 0.08 * len(found)) if len(found) > 1 else 1
    kept = [track for track in tracks if len(track.frames) >= enough and sum(track.scores) >= 0.5 * enough]
    return sorted(kept, key=lambda track: -sum(track.scores))[: MAX_BODIES + 1]


def _extend(track: Track, frame: int, finding: tuple[np.ndarray, float, dict[str, np.ndarray]]) -> None:
    track.frames.append(frame)
    track.places.append(finding[0])
    track.scores.append(finding[1])
    track.readings.append(finding[2])


class Verifier(nn.Module):
    """The three networks together. ``Verifier.load()`` gives the trained instrument."""

    def __init__(self, detector_width: int = 72, motion_width: int = 64, camera_width: int = 32):
        super().__init__()
        self.widths = {
            "detector_width": detector_width, "motion_width": motion_width, "camera_width": camera_width
        }  # fmt: skip
        self.detector = StillDetector(detector_width)
        self.motion = MotionReader(motion_width)
        self.camera = CameraReader(camera_width)

    def save(self, folder: str | Path = WEIGHTS) -> None:
        """Write ``config.json`` and ``model.safetensors``, in half precision."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.widths, indent=2) + "\n", encoding="utf-8")
        tensors = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: str | Path = WEIGHTS) -> "Verifier":
        """The networks in ``folder``, in eval mode.

        Raises:
            InputError: files are missing or damaged, or do not fit each other.
        """
        folder = Path(folder)
        try:
            verifier = cls(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
            verifier.load_state_dict(load_file(folder / "model.safetensors"))
        except FileNotFoundError as error:
            raise InputError(f"{error.filename or folder} is missing: train it with eval.train_verifier") from error
        except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{folder}: damaged or of another version ({reason})") from error
        return verifier.eval()

    @torch.inference_mode()
    def read(self, frames: np.ndarray, frame_rate: float) -> Seen:
        """What frames (T, H, W, 3) uint8 at ``frame_rate`` a second show; they are taken at 24 a second at most.

        Raises:
            ValueError: frames of another shape or type.
        """
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise ValueError(f"frames must be (T, H, W, 3) uint8, not {frames.shape} {frames.dtype}")
        pictures = as_pictures(frames, float(frame_rate))
        found, floor = self.detect(pictures)
        tracks = link(found)
        camera = CAMERAS[int(self._camera(pictures))]
        count = len(tracks)
        tracks = tracks[:MAX_BODIES]
        action, direction, impacts_s = None, "", np.zeros(0)
        if tracks:
            features = np.zeros((MAX_BODIES, TRACK_FEATURES, len(pictures)), np.float32)
            for row, track in zip(features, tracks, strict=False):
                row[:] = _features(track, len(pictures))
            told = {name: value[0] for name, value in self.motion(torch.from_numpy(features)[None]).items()}
            action = ACTIONS[int(told["action"].argmax())]
            if action not in ("rests", "drops"):
                direction = DIRECTIONS[int(told["direction"].argmax())]
            impacts_s = impact_times_s(told["impact"].numpy(), FRAME_RATE_HZ)
            main = int(told["main"].argmax())
            tracks.insert(0, tracks.pop(main))
        bodies = [
            {name: words[int(track.likelihoods(name).argmax())] for name, words in LOOKS.items()} for track in tracks
        ]
        return Seen(bodies, count, FLOORS[floor], camera, action, direction, impacts_s)

    @torch.inference_mode()
    def detect(
        self, pictures: Tensor, threshold: float = 0.3
    ) -> tuple[list[list[tuple[np.ndarray, float, dict[str, np.ndarray]]]], int]:
        """What the detector finds in each of (T, 3, 128, 128) pictures, and the index of the floor of them all."""
        maps = {name: [] for name in (*HEADS, "floor")}
        for part in pictures.split(16):
            for name, value in self.detector(part).items():
                maps[name].append(value)
        out = {name: torch.cat(parts) for name, parts in maps.items()}
        heat = out["heat"][:, 0].sigmoid()
        peaks = (heat == F.max_pool2d(heat[:, None], 3, 1, 1)[:, 0]) & (heat > threshold)
        found: list[list[tuple[np.ndarray, float, dict[str, np.ndarray]]]] = [[] for _ in pictures]
        for frame, row, column in peaks.nonzero().tolist():
            at = {name: out[name][frame, :, row, column] for name in HEADS}
            place = (np.array([column + 0.5, row + 0.5]) + at["place"].clamp(-1, 1).numpy()) * STRIDE
            reading = {name: at[name].log_softmax(0).numpy() for name in LOOKS}
            reading["extent"] = np.clip(16 * np.exp(at["extent"].numpy()), 2, 64)
            reading["upright"] = at["upright"].sigmoid().numpy()
            found[frame].append((place, float(heat[frame, row, column]), reading))
        return found, int(out["floor"].log_softmax(1).mean(0).argmax())

    def _camera(self, pictures: Tensor) -> Tensor:
        """Index of the camera's motion: the mean verdict over pairs of pictures; a short clip is taken to be static."""
        starts = torch.arange(0, len(pictures) - PAIR_FRAMES, 6)
        if not len(starts):
            return torch.tensor(0)
        pairs = torch.stack([pictures[starts], pictures[starts + PAIR_FRAMES]], 1)
        return self.camera(pairs).log_softmax(1).mean(0).argmax()


def as_pictures(frames: np.ndarray, frame_rate: float) -> Tensor:
    """(T', 3, 128, 128) in [0, 1] at 24 frames a second from the central square of uint8 frames (T, H, W, 3)."""
    count = max(1, round(len(frames) / frame_rate * FRAME_RATE_HZ))
    chosen = np.minimum((np.arange(count) * frame_rate / FRAME_RATE_HZ + 1e-6).astype(int), len(frames) - 1)
    height, width = frames.shape[1:3]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = torch.from_numpy(np.ascontiguousarray(frames[chosen, top : top + side, left : left + side]))
    pictures = square.permute(0, 3, 1, 2).float() / 255
    if side != PICTURE:
        pictures = F.interpolate(pictures, size=(PICTURE, PICTURE), mode="bilinear", antialias=True)
    return pictures


def _features(track: Track, num_frames: int) -> np.ndarray:
    readings = track.readings
    return track_features(
        track.frames,
        np.stack(track.places),
        np.concatenate([reading["extent"] for reading in readings]),
        np.broadcast_to(track.likelihoods("shape"), (len(readings), len(SHAPES))),
        np.concatenate([reading["upright"] for reading in readings]),
        num_frames,
    )
