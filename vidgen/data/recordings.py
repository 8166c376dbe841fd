"""Recordings as training data, wherever their bytes lie: conformed, cut at random, and put together in batches."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..clip import ClipSpec
from ..media import read_clip, read_sound
from .buckets import Bucket, fitting_frames, fitting_size
from .conform import crop_to
from .probing import read_image
from .sampling import Layout
from .shards import Slice, read_index

BUCKET_MULTIPLE = 32
"""Pixels: the shapes of buckets are multiples of it, for autoencoders with 16 and transformers with patches of 2."""
MIN_SOUND_S = 0.1


@dataclass(frozen=True)
class Recording:
    """A clip somewhere: a ``video``, an ``image`` or a ``sound``. Height and width are those shown, 0 for sound."""

    kind: str
    source: Path | Slice
    duration_s: float
    height: int
    width: int
    has_audio: bool
    captions: list[str]
    shard: int = 0


class Recordings(Dataset):
    """Recordings conformed to ``spec``; a batch of keys in, a batch out.

    A batch: ``video`` uint8 (B, T, H, W, 3), ``audio`` float32 (B, 1, N), ``has_audio`` bool (B,), ``captions``
    (a list of wordings for each clip). A clip without sound gives silence and ``has_audio`` False.

    Without buckets every video is cropped to the spec's shape, shorter ones stand still at their end, and images and
    sounds are left out. With buckets (``in_buckets``) a clip has a shape near its own, of the spec's area and at most
    its length; images are clips of one frame; sound alone gives batches without ``video``. All keys of a batch are
    then of one group of ``layout``.

    Args:
        with_video: False takes the sound of whatever has one, in the spec's length, and no picture.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        spec: ClipSpec,
        *,
        seed: int = 0,
        with_video: bool = True,
        with_audio: bool = True,
        in_buckets: bool = False,
    ) -> None:
        self.spec, self.seed, self.with_video, self.with_audio = spec, seed, with_video, with_audio
        self.in_buckets = in_buckets and with_video
        if not with_video:
            wanted = [recording for recording in recordings if recording.has_audio]
        elif self.in_buckets:
            wanted = [recording for recording in recordings if with_audio or recording.kind != "sound"]
        else:
            wanted = [recording for recording in recordings if recording.kind == "video"]
        self.recordings = wanted
        self.captions = [recording.captions or [""] for recording in wanted]
        self.buckets = [self._bucket(recording) for recording in wanted]
        numbers = {bucket: number for number, bucket in enumerate(sorted(set(self.buckets)))}
        groups = np.array([numbers[bucket] for bucket in self.buckets], np.int64)
        shards = np.array([recording.shard for recording in wanted], np.int64)
        self.layout = Layout(groups, np.zeros(len(wanted), np.int64), shards)

    def __len__(self) -> int:
        return len(self.recordings)

    def _bucket(self, recording: Recording) -> Bucket:
        spec = self.spec
        if not self.in_buckets:
            return Bucket(spec.num_frames, spec.height, spec.width)
        frames = round(recording.duration_s * float(spec.frame_rate))
        length = 1 if recording.kind == "image" else fitting_frames(frames, spec.num_frames, spec.compression.frames)
        if recording.kind == "sound":
            return Bucket(max(length, round(MIN_SOUND_S * float(spec.frame_rate))), 0, 0)
        area = spec.height * spec.width
        return Bucket(length, *fitting_size(recording.height, recording.width, area, BUCKET_MULTIPLE))

    def __getitem__(self, keys: list[tuple[int, int]]) -> dict[str, Any]:
        bucket = self.buckets[keys[0][0]]
        num_samples = self.spec.samples_until(bucket.frames)
        videos, sounds, has_audio = [], [], []
        for index, draw in keys:
            recording = self.recordings[index]
            frames, waveform = self._read(recording, bucket, np.random.default_rng((self.seed, index, draw)))
            if frames is not None:
                videos.append(torch.from_numpy(frames))
            sound = np.zeros(num_samples, np.float32)
            if waveform is not None:
                given = waveform.reshape(-1)[:num_samples]
                sound[: len(given)] = given
            sounds.append(torch.from_numpy(sound))
            has_audio.append(waveform is not None)
        batch: dict[str, Any] = {
            "audio": torch.stack(sounds)[:, None],
            "has_audio": torch.tensor(has_audio),
            "captions": [self.captions[index] for index, _ in keys],
        }
        return batch if not videos else {"video": torch.stack(videos), **batch}

    def _read(
        self, recording: Recording, bucket: Bucket, rng: np.random.Generator
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Frames (T, H, W, 3) and waveform (N,) of a random part of a recording, as far as there are any."""
        spec, source = self.spec, recording.source
        content = source.read() if isinstance(source, Slice) else source
        if recording.kind == "image":
            image = Image.open(io.BytesIO(content)) if isinstance(content, bytes) else read_image(content)
            picture = np.asarray(crop_to(image.convert("RGB"), bucket.height, bucket.width))
            return np.repeat(picture[None], bucket.frames, axis=0), None
        lasts_s = bucket.frames / float(spec.frame_rate)
        start_s = rng.uniform(0, max(0.0, recording.duration_s - lasts_s))
        if not self.with_video or recording.kind == "sound":
            return None, read_sound(content, spec.sample_rate_hz, lasts_s, start_s)
        clip = read_clip(
            content,
            height=bucket.height,
            width=bucket.width,
            frame_rate=spec.frame_rate,
            sample_rate_hz=spec.sample_rate_hz,
            start_s=start_s,
            max_frames=bucket.frames,
            with_sound=self.with_audio and recording.has_audio and bucket.frames > 1,
        )
        return _repeat_last(clip.frames, bucket.frames), clip.waveform


def _repeat_last(frames: np.ndarray, num_frames: int) -> np.ndarray:
    """A clip shorter than asked stands still at its end."""
    missing = num_frames - len(frames)
    return frames if missing <= 0 else np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])


def shard_recordings(folder: Path) -> list[Recording]:
    """What ``vidgen.data.prepare`` left in a folder.

    Raises:
        InputError: no index, or a damaged one.
    """
    shards: dict[str, int] = {}
    return [
        Recording(
            entry["kind"],
            Slice(folder / entry["shard"], entry["offset"], entry["bytes"]),
            entry["duration_s"],
            entry["height"],
            entry["width"],
            entry["has_audio"],
            entry["captions"],
            shards.setdefault(entry["shard"], len(shards)),
        )
        for entry in read_index(folder)
    ]


class Mixture(Dataset):
    """Several sources as one, each drawn as often as its weight says; None draws every clip as often as any other.

    A batch has what the batches of all its parts have.
    """

    def __init__(
        self, parts: Sequence[Any], weights: tuple[float, ...] | None, buckets: Sequence[list[Bucket]]
    ) -> None:
        """``buckets`` are the shapes of each part's clips: of those that are alike, clips may share a batch."""
        self.parts = list(parts)
        self.starts = np.cumsum([0, *(len(part) for part in parts)])
        self.captions = [wordings for part in parts for wordings in _captions(part)]
        self.buckets = [bucket for part in buckets for bucket in part]
        numbers = {bucket: number for number, bucket in enumerate(sorted(set(self.buckets)))}
        groups = np.array([numbers[bucket] for bucket in self.buckets], np.int64)
        sources = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        shards, offset = [], 0
        for part in parts:
            own = Layout.of(part).shards
            shards.append(own + offset)
            offset += int(own.max()) + 1
        self.layout = Layout(groups, sources, np.concatenate(shards), weights)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, keys: list[tuple[int, int]]) -> dict[str, Any]:
        numbers = [int(np.searchsorted(self.starts, index, side="right")) - 1 for index, _ in keys]
        batches, places = [], []
        for number in sorted(set(numbers)):
            rows = [row for row, part in enumerate(numbers) if part == number]
            inner = [(keys[row][0] - int(self.starts[number]), keys[row][1]) for row in rows]
            batches.append(self.parts[number][inner])
            places += rows
        if len(batches) == 1:
            return batches[0]
        order = np.argsort(places)
        common = set.intersection(*(set(batch) for batch in batches))
        return {name: _joined([batch[name] for batch in batches], order) for name in sorted(common)}


def _joined(parts: list[Any], order: np.ndarray) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat([part.cpu() for part in parts])[torch.from_numpy(order)]
    together = [value for part in parts for value in part]
    return [together[place] for place in order]


def _captions(part: Any) -> list[list[str]]:
    """Simulated scenes have their words made as they are drawn."""
    return getattr(part, "captions", None) or [[""]] * len(part)
