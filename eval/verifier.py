"""An instrument that looks at a clip of the tabletop world and says what it shows, from pixels alone.

Six small networks (``networks``): one finds bodies in a small picture, as points (Zhou et al., "Objects as Points",
2019); one says what each body looks like close up, and one where exactly its middle is; what they find is linked over
time into tracks; one reads motion off the tracks and one impacts; and one reads the camera's motion off the
displacement of the picture's blocks.
``train_verifier`` is how they came about.
"""

import hashlib
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
from vidgen.tabletop.scene import ACTIONS, CAMERAS, FLOORS, SIZES

from .networks import (
    CELLS,
    CROP,
    DIRECTIONS,
    FRAME_RATE_HZ,
    LOOKS,
    MAX_BODIES,
    PAIR_FRAMES,
    PICTURE,
    SMALL,
    WIDE,
    BodyReader,
    CameraReader,
    ImpactReader,
    Locator,
    MotionReader,
    PlaceReader,
)
from .sound import WEIGHTS as SOUND
from .sound import SoundReader
from .tracks import Finding, distinct, link, track_rows

WEIGHTS = Path(__file__).resolve().parent / "weights"
GLANCES = ((0, 0, False), (3, -3, False), (-3, 0, True), (0, 3, True))
"""A body is looked at close up four times, moved by so many pixels across and down, and mirrored: the mean of what is
said wanders less with the body's posture."""
ASIDE = ((0, 0, False), (1, 0, True), (0, 1, True), (1, 1, False))
"""... and for its middle, at half size, four times, moved by one pixel, so that another four make up one."""
CERTAIN = 0.5
"""The logit from which on an impact counts: with 0 instead, 160 tuning clips tell six more, none asked for."""
BEYOND_DOUBT = 2.0
"""The logit that one of a clip's impacts has to reach for the sound to be held against them: of 115 of those tuning
clips that show a blow, 114 reach it, and none that shows none."""


def weights_sha256(folder: Path = WEIGHTS) -> str:
    """Of the instrument as a whole: its networks and what tells material by sound."""
    digest = hashlib.sha256()
    for path in (folder / "model.safetensors", folder / SOUND.name):
        digest.update(path.read_bytes() if path.is_file() else b"none")
    return digest.hexdigest()


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
    is_struck: bool = True
    """Whether one of the impacts, where there are any, is beyond doubt."""


@dataclass(frozen=True)
class Found:
    """What was found in each frame of a clip, from which all else is read."""

    pictures: Tensor
    """(T, 3, 128, 128), see ``as_pictures``."""
    findings: list[list[Finding]]
    floor: int


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


class Verifier(nn.Module):
    """The networks together. ``Verifier.load()`` gives the trained instrument."""

    def __init__(self, locator: int = 32, body: int = 48, place: int = 24, motion: int = 48, camera: int = 32,
                 impact: int = 48):  # fmt: skip
        super().__init__()
        self.widths = {"locator": locator, "body": body, "place": place, "motion": motion, "camera": camera,
                       "impact": impact}  # fmt: skip
        self.locator = Locator(locator)
        self.body = BodyReader(body)
        self.place = PlaceReader(place)
        self.motion = MotionReader(motion)
        self.camera = CameraReader(camera)
        self.impact = ImpactReader(impact)
        self.sound: SoundReader | None = None
        """Tells material by sound, where the folder of the weights holds its own."""

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
            if (folder / SOUND.name).is_file():
                verifier.sound = SoundReader.load(folder / SOUND.name)
        except FileNotFoundError as error:
            raise InputError(f"{error.filename or folder} is missing: train it with eval.train_verifier") from error
        except (SafetensorError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{folder}: damaged or of another version ({reason})") from error
        return verifier.eval()

    def read(self, frames: np.ndarray, frame_rate: float) -> Seen:
        """What frames (T, H, W, 3) uint8 at ``frame_rate`` a second show; they are taken at 24 a second at most.

        Raises:
            ValueError: frames of another shape or type.
        """
        return self.tell(self.find(frames, frame_rate))

    def find(self, frames: np.ndarray, frame_rate: float) -> Found:
        """The bodies in every frame, which is most of the work of ``read``; arguments and errors as there."""
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
            raise ValueError(f"frames must be (T, H, W, 3) uint8, not {frames.shape} {frames.dtype}")
        pictures = as_pictures(frames, float(frame_rate))
        return Found(pictures, *self.detect(pictures))

    @torch.inference_mode()
    def tell(self, found: Found) -> Seen:
        """What a clip shows, from what was found in it."""
        tracks, num_frames = link(found.findings), len(found.pictures)
        camera = self.camera_motion(found.pictures)
        count = len(tracks)
        tracks = tracks[:MAX_BODIES]
        sizes: list[str] = []
        action, direction, impacts_s, is_struck = None, "", np.zeros(0), False
        if tracks:
            given = torch.from_numpy(track_rows(tracks, num_frames))[None]
            told = {name: value[0] for name, value in self.motion(given).items()}
            action = ACTIONS[int(told["action"].argmax())]
            if action not in ("rests", "drops"):
                direction = DIRECTIONS[int(told["direction"].argmax())]
            logits = self.impact(given)[0].amax(0).numpy()
            impacts_s = impact_times_s(logits, FRAME_RATE_HZ, CERTAIN)
            is_struck = bool(logits.max() >= BEYOND_DOUBT)
            sizes = [SIZES[index] for index in told["size"].argmax(1).tolist()][: len(tracks)]
            main = int(told["main"].argmax())
            tracks.insert(0, tracks.pop(main))
            sizes.insert(0, sizes.pop(main))
        bodies = [
            {name: words[int(track.likelihoods(name).argmax())] for name, words in LOOKS.items()} | {"size": size}
            for track, size in zip(tracks, sizes, strict=True)
        ]
        return Seen(bodies, count, FLOORS[found.floor], camera, action, direction, impacts_s, is_struck)

    @torch.inference_mode()
    def detect(self, pictures: Tensor, threshold: float = 0.3) -> tuple[list[list[Finding]], int]:
        """The bodies found in each of (T, 3, 128, 128) pictures, and the index of the floor of them all."""
        maps = self.locator(F.avg_pool2d(pictures, PICTURE // SMALL))
        heat = maps["heat"][:, 0].sigmoid()
        peaks = ((heat == F.max_pool2d(heat[:, None], 3, 1, 1)[:, 0]) & (heat > threshold)).nonzero()
        found: list[list[Finding]] = [[] for _ in pictures]
        if len(peaks):
            frame, row, column = peaks.unbind(1)
            middles = torch.stack([column, row], 1) + 0.5 + maps["place"][frame, :, row, column].clamp(-1, 1)
            corners = (middles * (PICTURE / CELLS)).round().long()  # of the padded pictures
            padded = F.pad(pictures, (CROP // 2,) * 4, mode="replicate")
            places, readings = self._close_up(padded, frame.tolist(), corners)
            places, readings["extent"] = self._middles(pictures, frame.tolist(), places)
            scores = heat[frame, row, column].tolist()
            for index, at in enumerate(frame.tolist()):
                reading = {name: values[index] for name, values in readings.items()}
                found[at].append((places[index], scores[index], reading))
        return [distinct(findings) for findings in found], int(maps["floor"].log_softmax(1).mean(0).argmax())

    def _close_up(self, padded: Tensor, frames: list[int], corners: Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Places (K, 2) in pixels and readings (``Track.readings``) of bodies near (K, 2) pixels, by ``GLANCES``."""
        places, said = torch.zeros(len(frames), 2), dict.fromkeys((*LOOKS, "extent", "upright"), torch.zeros(1))
        for across, down, mirrored in GLANCES:
            at = (corners + torch.tensor([across, down])).clamp(0, PICTURE)
            pieces = torch.stack([
                padded[index, :, y : y + CROP, x : x + CROP] for index, (x, y) in zip(frames, at.tolist(), strict=True)
            ])  # fmt: skip
            told = self.body(pieces.flip(3) if mirrored else pieces)
            places += at + 16 * told["shift"].clamp(-0.6, 0.6) * torch.tensor([-1.0 if mirrored else 1.0, 1.0])
            told = {name: told[name].log_softmax(1) for name in LOOKS} | {
                "extent": told["extent"], "upright": told["upright"].sigmoid(),
            }  # fmt: skip
            said = {name: said[name] + told[name] / len(GLANCES) for name in said}
        readings = {name: value.numpy() for name, value in said.items()}
        return places.numpy() / len(GLANCES), readings

    def _middles(self, pictures: Tensor, frames: list[int], places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places (K, 2) and half sizes (K, 1) in pixels of bodies that were seen at ``places`` (K, 2), seen whole."""
        padded = F.pad(pictures, (WIDE // 2 + 1,) * 4, mode="replicate")
        near = torch.from_numpy(places).round().long().clamp(0, PICTURE)
        middles, extents = torch.zeros(len(frames), 2), torch.zeros(len(frames), 1)
        for across, down, mirrored in ASIDE:
            at = near + torch.tensor([across, down])
            pieces = torch.stack([
                padded[index, :, y + 1 : y + 1 + WIDE, x + 1 : x + 1 + WIDE]
                for index, (x, y) in zip(frames, at.tolist(), strict=True)
            ])  # fmt: skip
            pieces = F.avg_pool2d(pieces, 2)
            told = self.place(pieces.flip(3) if mirrored else pieces)
            shift = told[:, :2].clamp(-1.5, 1.5) * torch.tensor([-1.0 if mirrored else 1.0, 1.0])
            middles += (at + 16 * shift) / len(ASIDE)
            extents += told[:, 2:] / len(ASIDE)
        return middles.numpy(), np.clip(16 * extents.exp().numpy(), 2, 64)

    @torch.inference_mode()
    def camera_motion(self, pictures: Tensor) -> str:
        """One of ``CAMERAS``: the mean verdict over pairs of pictures; a short clip is taken to be static."""
        starts = torch.arange(0, max(0, len(pictures) - PAIR_FRAMES), 4)
        if not len(starts):
            return "static"
        small = F.avg_pool2d(pictures, PICTURE // SMALL)
        fits = self.camera.fits(torch.stack([small[starts], small[starts + PAIR_FRAMES]], 1))
        return CAMERAS[int(self.camera(fits).log_softmax(1).mean(0).argmax())]


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
