"""Training clips made on the spot: a stored trajectory with a look, words and a moment drawn anew each time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..clip import ClipSpec
from ..errors import InputError
from .captions import SPLITS, attributes, can_be_held_out, describe, events, sample_look
from .render import render
from .scene import POSE_RATE_HZ, Trajectory
from .shot import body_rectangles
from .sound import synthesise

Key = tuple[int, int]
"""Which trajectory, and which draw of its look, wording and moment."""


class TabletopClips(Dataset):
    """Batches of clips of the tabletop world, keyed by (index, draw).

    All chance in an item comes from ``np.random.default_rng((seed, index, draw))``: an item is the same whichever
    batch, process or machine makes it. A clip shorter than its trajectory is a random stretch of it; its caption then
    still tells of the whole scene.

    Args:
        trajectories: as ``load_trajectories`` returns them.
        spec: size and rates of the clips.
        split: ``train``, ``held_out`` (only trajectories that can show a held-out triple are kept) or ``any``.
        device: where pictures are rendered; sound is made on the CPU.
        with_video, with_audio: leave out what is not needed.
        with_focus: tell where the bodies are.
        variants: how many wordings besides the canonical one.
        compiled: see ``render``.

    Raises:
        InputError: an unknown split, no trajectory to show, or one that is shorter than the clip.
    """

    def __init__(
        self,
        trajectories: Sequence[Trajectory],
        spec: ClipSpec,
        split: str = "train",
        seed: int = 0,
        device: str | torch.device = "cpu",
        *,
        with_video: bool = True,
        with_audio: bool = True,
        with_focus: bool = False,
        variants: int = 3,
        compiled: bool | None = None,
    ):
        if split not in SPLITS:
            raise InputError(f"unknown split {split!r}: give one of {', '.join(SPLITS)}")
        self.trajectories = [t for t in trajectories if split != "held_out" or can_be_held_out(t)]
        if not self.trajectories:
            raise InputError(f"there is no trajectory for the split {split!r}")
        shortest_s = min(len(t.positions_m) for t in self.trajectories) / POSE_RATE_HZ
        if spec.duration_s > shortest_s + 1e-6:
            raise InputError(f"a clip of {spec.duration_s:.3f} s is longer than a trajectory of {shortest_s:.3f} s")
        self.spec, self.split, self.seed, self.device = spec, split, seed, device
        self.with_video, self.with_audio, self.with_focus = with_video, with_audio, with_focus
        self.variants, self.compiled = variants, compiled

    def __len__(self) -> int:
        return len(self.trajectories)

    def __getitem__(self, keys: Sequence[Key] | Key | int) -> dict:
        """A batch for a list of keys; one key, or an index for its draw 0, is a batch of one.

        Returns:
            video: (B, T, H, W, 3) uint8 on ``device``, unless left out.
            audio: (B, 1, N) float32 in [-1, 1], unless left out.
            focus: (B, t, h, w) bool over video latents, if asked for: those which a body may touch.
            has_audio: (B,) bool, true: silence is this world's true sound where nothing touches.
            captions: for each clip a list of wordings, the canonical one first.
            truth: B dicts as ``captions.attributes`` returns them, with ``start_s`` and the ``events`` in the clip.
        """
        if isinstance(keys, int):
            keys = (keys, 0)
        if isinstance(keys, tuple) and len(keys) == 2 and isinstance(keys[0], int):
            keys = [keys]
        spec = self.spec
        shown, looks, starts_s, captions, truth, sounds = [], [], [], [], [], []
        for index, draw in keys:
            rng = np.random.default_rng((self.seed, index, draw))
            trajectory = self.trajectories[index]
            look = sample_look(rng, trajectory, self.split)
            wordings = [describe(trajectory, look), *(describe(trajectory, look, rng) for _ in range(self.variants))]
            start_s = self._start_s(rng, trajectory)
            shown.append(trajectory)
            looks.append(look)
            captions.append(wordings)
            starts_s.append(start_s)
            clip_events = events(trajectory, start_s, spec.duration_s)
            truth.append(attributes(trajectory, look) | {"start_s": start_s, "events": clip_events})
            if self.with_audio:
                sounds.append(
                    synthesise(
                        trajectory,
                        num_samples=spec.num_samples,
                        sample_rate_hz=spec.sample_rate_hz,
                        start_s=start_s,
                        seed=look.seed,
                    )
                )
        batch = {"has_audio": torch.full((len(shown),), self.with_audio), "captions": captions, "truth": truth}
        size = {"num_frames": spec.num_frames, "height": spec.height, "width": spec.width}
        film: dict[str, Any] = size | {"frame_rate": float(spec.frame_rate), "start_times_s": starts_s}
        if self.with_video:
            batch["video"] = render(shown, looks, **film, device=self.device, compiled=self.compiled)
        if self.with_focus:
            batch["focus"] = torch.from_numpy(touched_latents(body_rectangles(shown, looks, **film), spec))
        if self.with_audio:
            batch["audio"] = torch.from_numpy(np.stack(sounds))[:, None]
        return batch

    def _start_s(self, rng: np.random.Generator, trajectory: Trajectory) -> float:
        """A moment on the clip's frame grid from which the clip fits into the trajectory."""
        rate = float(self.spec.frame_rate)
        spare_frames = int((len(trajectory.positions_m) - 1) / POSE_RATE_HZ * rate + 1e-6) - self.spec.num_frames
        return int(rng.integers(max(0, spare_frames) + 1)) / rate


def touched_latents(rectangles: np.ndarray, spec: ClipSpec) -> np.ndarray:
    """Which video latents (B, t, h, w) stand for pixels in one of the rectangles (B, T, n, 4) of their frames.

    A rectangle is left, top, right, bottom in pixels, its right left of its left where there is none.
    """
    left, top, right, bottom = (rectangles[..., side, None] for side in range(4))
    edge = spec.compression.pixels
    columns, rows = np.arange(spec.latent_width) * edge, np.arange(spec.latent_height) * edge
    across = (left < columns + edge) & (right > columns) & (left <= right)
    down = (top < rows + edge) & (bottom > rows) & (top <= bottom)
    touched = np.einsum("btnh,btnw->bthw", down, across)  # of booleans: any
    owner = np.array([spec.latent_frame(frame) for frame in range(rectangles.shape[1])])
    return np.stack([touched[:, owner == latent].any(1) for latent in range(spec.latent_frames)], 1)
