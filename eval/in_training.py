"""The figures that need no weights, of the clips beside a training run's sheets."""

import csv
from functools import lru_cache
from pathlib import Path

from vidgen.errors import InputError
from vidgen.files import replacing

from . import motion, quality


def measure_sheet(sheet: Path) -> dict[str, float]:
    """Measure the clips ``NAME-0.mp4``, … beside a sheet ``NAME.png`` into ``NAME.csv``, a row for each.

    Returns:
        means over the clips that have a figure, for a log; nothing if there are no clips, or if the packages of the
        ``eval`` extra are missing, which is said once.
    """
    clips = sorted(sheet.parent.glob(f"{sheet.stem}-*.mp4"))
    try:
        for module in ("cv2", "pyloudnorm", "scipy.signal"):
            motion.require(module)
    except InputError as error:
        if clips:
            _tell(f"samples are not measured: {error}")
        return {}
    rows: dict[str, dict[str, float | None]] = {}
    for clip in clips:
        try:
            rows[clip.name] = quality.measure_file(clip)
        except InputError as error:
            _tell(f"not measured: {error}")
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    if names:
        with replacing(sheet.with_suffix(".csv")) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["clip", *names])
            for clip_name, figures in rows.items():
                values = (figures.get(name) for name in names)
                writer.writerow([clip_name, *("" if value is None else f"{value:.6g}" for value in values)])
    means = {}
    for name in names:
        known = [value for figures in rows.values() if (value := figures.get(name)) is not None]
        if known:
            means[name] = sum(known) / len(known)
    return means


@lru_cache
def _tell(message: str) -> None:
    """Once."""
    print(message)
