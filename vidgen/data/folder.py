"""A folder of the user's own clips as a training source."""

import warnings
from pathlib import Path
from typing import Any

from ..clip import ClipSpec
from ..errors import InputError
from ..media import CLIP_SUFFIXES, IMAGE_SUFFIXES, SOUND_SUFFIXES, probe
from .captions import read_captions, sidecar_caption
from .probing import read_image, survey_sound
from .recordings import Recording, Recordings

__all__ = ["CLIP_SUFFIXES", "ClipFolder"]


class ClipFolder(Recordings):
    """Clips under a folder, as they are. Decoding them anew each time is slow: ``vidgen.data.prepare`` makes shards.

    Captions come from ``metadata.jsonl`` or ``metadata.csv`` (``read_captions``), else from a text file of the same
    name, else they are empty. Files that cannot be read are left out with a warning. Arguments are those of
    ``Recordings``.

    Raises:
        InputError: no such folder, no readable clip in it, or a broken ``metadata.jsonl``.
    """

    def __init__(self, folder: Path, spec: ClipSpec, **options: Any) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder of clips")
        captions = read_captions(folder)
        recordings = []
        for path in sorted(folder.rglob("*")):
            try:
                recording = _recording(path, captions.get(path.relative_to(folder).as_posix(), []))
            except InputError as error:
                warnings.warn(f"left out: {error}", stacklevel=2)
                continue
            if recording is not None:
                recordings.append(recording)
        super().__init__(recordings, spec, **options)
        if not self.recordings:
            wanted = "clip" if self.with_video else "clip with sound"
            raise InputError(f"{folder} holds no readable {wanted} ({', '.join(sorted(CLIP_SUFFIXES))})")


def _recording(path: Path, captions: list[str]) -> Recording | None:
    """None for what is no media file by its name."""
    suffix = path.suffix.lower()
    if suffix in CLIP_SUFFIXES:
        info = probe(path)
        shape = ("video", path, info.duration_s, info.height, info.width, info.has_audio)
    elif suffix in IMAGE_SUFFIXES:
        image = read_image(path)
        shape = ("image", path, 0.0, image.height, image.width, False)
    elif suffix in SOUND_SUFFIXES:
        shape = ("sound", path, survey_sound(path).shots[-1].end_s, 0, 0, True)
    else:
        return None
    return Recording(*shape, captions or sidecar_caption(path))
