"""VBench's dimensions, and how their scores make Quality, Semantic and Total.

Ranges, weights and formulas are those of the official ``scripts/constant.py`` and ``scripts/cal_final_score.py``
(Vchitect/VBench, Huang et al. 2024, arXiv 2311.17982). Two things differ: the official script counts a dimension that
is missing as 0, here the sums that need it are None, "incomplete"; and clips that could not be made or read, which the
package leaves out of its means, count as the worst of the range here.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vidgen.errors import InputError


@dataclass(frozen=True)
class Dimension:
    """``low`` and ``high`` are the raw scores that become 0 and 1."""

    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0


QUALITY = {
    "subject_consistency": Dimension(0.1462),
    "background_consistency": Dimension(0.2615),
    "temporal_flickering": Dimension(0.6293),
    "motion_smoothness": Dimension(0.706, 0.9975),
    "dynamic_degree": Dimension(weight=0.5),
    "aesthetic_quality": Dimension(),
    "imaging_quality": Dimension(),
}
SEMANTIC = {
    "object_class": Dimension(),
    "multiple_objects": Dimension(),
    "human_action": Dimension(),
    "color": Dimension(),
    "spatial_relationship": Dimension(),
    "scene": Dimension(high=0.8222),
    "appearance_style": Dimension(0.0009, 0.2855),
    "temporal_style": Dimension(high=0.364),
    "overall_consistency": Dimension(high=0.364),
}
DIMENSIONS = QUALITY | SEMANTIC
QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4, 1
INCOMPLETE = "incomplete"


@dataclass(frozen=True)
class Score:
    """One dimension: the package's mean over the clips that it was given, and how many were to be there."""

    raw: float
    scored: int | None = None
    expected: int | None = None

    def normalised(self, dimension: Dimension) -> float:
        """In the official range; a clip that is missing counts as 0 there (or as the others, if they are below)."""
        value = (self.raw - dimension.low) / (dimension.high - dimension.low)
        if self.scored is None or not self.expected:
            return value
        share = self.scored / self.expected
        return value * share + min(0.0, value) * (1 - share)


@dataclass(frozen=True)
class Totals:
    """``normalised`` by dimension; quality, semantic and total are None where a dimension that they need is missing."""

    normalised: dict[str, float]
    quality: float | None
    semantic: float | None
    total: float | None
    missing: tuple[str, ...]


def total_scores(scores: Mapping[str, Score]) -> Totals:
    """Quality, Semantic and Total of what there is.

    Raises:
        InputError: a dimension that VBench does not have, or a score that is none.
    """
    unknown = sorted(set(scores) - set(DIMENSIONS))
    if unknown:
        raise InputError(f"VBench has no dimension {', '.join(unknown)}; it has {', '.join(DIMENSIONS)}")
    for name, score in scores.items():
        if not math.isfinite(score.raw) or not -1 <= score.raw <= 1:  # similarities may be negative
            raise InputError(f"{name} is {score.raw}: raw scores lie between 0 and 1 (are these percentages?)")
        if score.expected is not None and not 0 <= (score.scored or 0) <= score.expected:
            raise InputError(f"{name}: {score.scored} of {score.expected} clips were scored")
    normalised = {name: score.normalised(DIMENSIONS[name]) for name, score in scores.items()}
    quality, semantic = (_mean(normalised, group) for group in (QUALITY, SEMANTIC))
    total = None
    if quality is not None and semantic is not None:
        total = (QUALITY_WEIGHT * quality + SEMANTIC_WEIGHT * semantic) / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)
    missing = tuple(name for name in DIMENSIONS if name not in normalised)
    return Totals(normalised, quality, semantic, total, missing)


def _mean(normalised: Mapping[str, float], group: Mapping[str, Dimension]) -> float | None:
    if any(name not in normalised for name in group):
        return None
    weights = sum(dimension.weight for dimension in group.values())
    return sum(dimension.weight * normalised[name] for name, dimension in group.items()) / weights


def read_scores(files: Iterable[Path]) -> dict[str, Score]:
    """Scores of the package's ``*_eval_results.json``; of a folder, those that lie in it.

    Raises:
        InputError: no such file, one that holds no results, or two that hold the same dimension.
    """
    scores: dict[str, Score] = {}
    for given in files:
        found = sorted(given.rglob("*_eval_results.json")) if given.is_dir() else [given]
        if not found:
            raise InputError(f"{given}: holds no *_eval_results.json")
        for path in found:
            for name, raw in _read(path).items():
                if name in scores:
                    raise InputError(f"{path}: {name} was in another file, too")
                scores[name] = Score(raw)
    return scores


def _read(path: Path) -> dict[str, float]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        # {dimension: [mean, one entry a clip]}; the long variant has a third list of means over a clip's pieces.
        return {name.replace(" ", "_"): float(entry[0]) for name, entry in results.items()}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise InputError(f"{path}: is no results file of VBench, {{dimension: [mean, [clips]]}} ({error})") from error


def table(scores: Mapping[str, Score], totals: Totals, reasons: Mapping[str, str] | None = None) -> str:
    """For a terminal: a line for each dimension, its clips or why it has no score; then the three sums."""
    lines = [f"{'':24}{'raw':>9}{'in range':>10}{'clips':>14}"]
    for name in DIMENSIONS:
        if name in scores:
            score = scores[name]
            clips = "" if score.expected is None else f"{score.scored} of {score.expected}"
            lines.append(f"{name:24}{score.raw:9.4f}{totals.normalised[name]:10.4f}{clips:>14}")
        else:
            lines.append(f"{name:24} not scored: {(reasons or {}).get(name, 'not asked for')}")
    for label, value in (("Quality", totals.quality), ("Semantic", totals.semantic), ("Total", totals.total)):
        lines.append(f"{label:24}{INCOMPLETE if value is None else f'{value:.4f}':>19}")
    if any(score.expected and score.scored != score.expected for score in scores.values()):
        lines.append("clips that are missing count as the worst of the range; VBench's own means leave them out")
    return "\n".join(lines)
