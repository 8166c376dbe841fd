"""Whether a long clip ends as it began: its last seconds against its first.

    python -m eval.drift story.mp4 --seconds 5

Colour and size of the body that is seen most, colour of the background, loudness, sharpness, and how many of the
impacts that are seen are heard. Every figure is a change as a share: 0.1 is a tenth of what it was at first, or of full
scale for colours.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from vidgen.audio_sync.onsets import match_onsets
from vidgen.cli import run
from vidgen.errors import InputError
from vidgen.media import Clip, probe, read_clip

from .quality import picture, sound
from .tabletop import IN_SYNC_S, observe
from .tracks import Finding
from .verifier import Verifier, as_pictures

HOLD = 0.10
"""What may change, as a share."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.drift", description=__doc__.split("\n")[0])
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP")
    parser.add_argument("--seconds", type=float, default=5.0, help="at either end (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each clip")
    args = parser.parse_args()
    if args.seconds <= 0:
        raise InputError("--seconds must be positive")
    verifier = Verifier.load()
    for path in args.clips:
        changes = measure(*ends(path, args.seconds), verifier)
        if args.json:
            print(json.dumps({"path": str(path)} | changes))
            continue
        print(f"{path}: the last {args.seconds:g} s against the first")
        for name, change in changes.items():
            verdict = "not to be seen or heard" if change is None else f"{100 * change:6.1f} %"
            print(f"  {name:18} {verdict}" + ("  more than a tenth" if change is not None and change > HOLD else ""))


def ends(path: Path, seconds: float) -> tuple[Clip, Clip]:
    """The first and the last so many seconds of a file.

    Raises:
        InputError: the clip is shorter than both together.
    """
    info = probe(path)
    if info.duration_s < 2 * seconds:
        raise InputError(f"{path}: lasts {info.duration_s:.3g} s, too short for {seconds:g} s at either end")
    count = round(seconds * info.frame_rate)
    last_start_s = info.duration_s - float(count / info.frame_rate)
    return read_clip(path, max_frames=count), read_clip(path, start_s=last_start_s, max_frames=count)


def measure(first: Clip, last: Clip, verifier: Verifier) -> dict[str, float | None]:
    """How far ``last`` departs from ``first``; None where a figure does not exist.

    object_colour, background_colour: distance of mean colours, as a share of full scale in each channel.
    object_size: of the mean extent of the body that is seen most. sharpness: as in ``eval.quality``.
    loudness: of the amplitude that the loudness in LUFS stands for. sync: by how much the share of ``heard`` impacts is
    smaller in the end.
    """
    bodies = [_body(clip, verifier) for clip in (first, last)]
    backgrounds = [np.median(clip.frames.astype(np.float32), axis=0).mean((0, 1)) for clip in (first, last)]
    sharpness = [picture(clip.frames, clip.frame_rate, None)["sharpness"] for clip in (first, last)]
    loudness = [sound(clip)["loudness_lufs"] for clip in (first, last)]
    (colour, size), (later_colour, later_size) = bodies
    share, later_share = heard(first, verifier), heard(last, verifier)
    return {
        "object_colour": None if colour is None or later_colour is None else _distance(colour, later_colour),
        "object_size": _change(size, later_size),
        "background_colour": _distance(*backgrounds),
        "loudness": _change(*(None if level is None else 10 ** (level / 20) for level in loudness)),
        "sharpness": _change(*sharpness),
        "sync": None if share is None or later_share is None else max(0.0, share - later_share),
    }


def heard(clip: Clip, verifier: Verifier) -> float | None:
    """The share of the impacts seen that have a sound of their own within 80 ms; None where none is seen."""
    observed = observe(verifier, clip.frames, clip.waveform, float(clip.frame_rate), clip.sample_rate_hz)
    impacts_s = observed.seen.impacts_s
    if not len(impacts_s):
        return None
    return 1 - len(match_onsets(impacts_s, observed.heard_s, IN_SYNC_S).missing_s) / len(impacts_s)


def _body(clip: Clip, verifier: Verifier) -> tuple[np.ndarray | None, float | None]:
    """Mean colour (3,) of 0 to 255 and mean extent in pixels of the surest finding of each frame, or None."""
    pictures = as_pictures(clip.frames, float(clip.frame_rate))
    found, _ = verifier.detect(pictures)
    colours, extents = [], []
    for shown, findings in zip(pictures.numpy(), found, strict=True):
        if findings:
            surest: Finding = max(findings, key=lambda finding: finding[1])
            extent = float(surest[2]["extent"][0])
            colours.append(_middle(shown, surest[0], extent))
            extents.append(extent)
    if not colours:
        return None, None
    return 255 * np.mean(colours, axis=0), float(np.mean(extents))


def _middle(shown: np.ndarray, place: np.ndarray, extent: float) -> np.ndarray:
    """Median colour (3,) of a picture (3, H, W) within half the extent around a place (x, y)."""
    reach = max(1, round(extent / 2))
    column, row = (
        int(np.clip(round(float(at)), 0, size - 1)) for at, size in zip(place, shown.shape[:0:-1], strict=True)
    )
    inside = shown[:, max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1]
    return np.median(inside, axis=(1, 2))


def _distance(colour: np.ndarray, other: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(colour - other))) / 255)


def _change(first: float | None, last: float | None) -> float | None:
    return None if first is None or last is None or first == 0 else abs(last / first - 1)


if __name__ == "__main__":
    run(main)
