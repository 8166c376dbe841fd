"""A folder of the user's own clips as a training source."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..clip import ClipSpec
from ..errors import InputError
from ..media import probe, read_clip

CLIP_SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif"}


class ClipFolder(Dataset):
    """Clips under a folder, conformed to ``spec``; a batch of keys in, a batch out.

    Captions come from ``metadata.jsonl`` (``{"file_name": …, "text": …}`` a line; ``text`` may be a list of wordings),
    else from a text file of the same name, else they are empty. A clip without sound gives silence and
    ``has_audio`` False. Files that cannot be read are left out with a warning.

    A batch: ``video`` uint8 (B, T, H, W, 3), ``audio`` float32 (B, 1, N), ``has_audio`` bool (B,), ``captions``
    (a list of wordings for each clip).

    Raises:
        InputError: no such folder, no readable clip in it, or a broken ``metadata.jsonl``.
    """

    def __init__(
        self, folder: Path, spec: ClipSpec, *, seed: int = 0, with_video: bool = True, with_audio: bool = True
    ):
        self.spec, self.seed, self.with_video, self.with_audio = spec, seed, with_video, with_audio
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder of clips")
        captions = read_captions(folder)
        self.clips: list[tuple[Path, float]] = []
        self.captions: list[list[str]] = []
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in CLIP_SUFFIXES):
            try:
                info = probe(path)
            except InputError as error:
                warnings.warn(f"left out: {error}", stacklevel=2)
                continue
            if not with_video and not info.has_audio:
                continue
            self.clips.append((path, info.duration_s))
            self.captions.append(captions.get(path.relative_to(folder).as_posix()) or sidecar_caption(path))
        if not self.clips:
            wanted = "clip" if with_video else "clip with sound"
            raise InputError(f"{folder} holds no readable {wanted} ({', '.join(sorted(CLIP_SUFFIXES))})")

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, keys: list[tuple[int, int]]) -> dict[str, Any]:
        spec = self.spec
        videos, sounds, has_audio = [], [], []
        for index, draw in keys:
            path, duration_s = self.clips[index]
            slack_s = max(0.0, duration_s - spec.duration_s)
            clip = read_clip(
                path,
                height=spec.height,
                width=spec.width,
                frame_rate=spec.frame_rate,
                sample_rate_hz=spec.sample_rate_hz,
                start_s=np.random.default_rng((self.seed, index, draw)).uniform(0, slack_s),
                max_frames=spec.num_frames,
            )
            videos.append(torch.from_numpy(_repeat_last(clip.frames, spec.num_frames)))
            sound = np.zeros(spec.num_samples, np.float32)
            if clip.waveform is not None:
                given = clip.waveform.reshape(-1)[: spec.num_samples]
                sound[: len(given)] = given
            sounds.append(torch.from_numpy(sound))
            has_audio.append(clip.waveform is not None)
        return {
            "video": torch.stack(videos),
            "audio": torch.stack(sounds)[:, None],
            "has_audio": torch.tensor(has_audio),
            "captions": [self.captions[index] for index, _ in keys],
        }


def _repeat_last(frames: np.ndarray, num_frames: int) -> np.ndarray:
    """A clip shorter than asked stands still at its end."""
    missing = num_frames - len(frames)
    return frames if missing <= 0 else np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])


def read_captions(folder: Path) -> dict[str, list[str]]:
    path = folder / "metadata.jsonl"
    captions: dict[str, list[str]] = {}
    if not path.is_file():
        return captions
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            text = entry["text"]
            captions[entry["file_name"]] = [text] if isinstance(text, str) else [str(wording) for wording in text]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f'{path}, line {number}: give {{"file_name": …, "text": …}} ({error})') from error
    return captions


def sidecar_caption(path: Path) -> list[str]:
    sidecar = path.with_suffix(".txt")
    return [sidecar.read_text(encoding="utf-8").strip()] if sidecar.is_file() else [""]
