"""Clips of the tabletop world against what their prompts ask for: which of it is seen, and whether sound fits picture.

Reading a clip (``observe``) knows nothing of the prompt; only ``compare`` does. So the same readings serve for the
controls: prompts dealt to other clips, and sounds moved in time.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from vidgen.audio_sync.onsets import match_onsets, onset_times_s
from vidgen.tabletop.scene import ACTIONS, CAMERAS, COLOURS, FLOORS, MATERIALS, SHAPES, SIZES

from .verifier import Seen, Verifier

IN_SYNC_S = 0.080
SILENT_PEAK = 0.02
"""What stays below this is silence; a codec's noise does."""
ONSET_RISE_DB = 1.5
"""A little below the usual: soft bodies that meet while one rolls are hardly louder than the rolling."""

OF_A_BODY = ("colour", "material", "shape", "size")
CHANCE = {
    "colour": 1 / len(COLOURS),
    "shape": 1 / len(SHAPES),
    "material": 1 / len(MATERIALS),
    "size": 1 / len(SIZES),
    "bodies": None,
    "count": 1 / 3,
    "floor": 1 / len(FLOORS),
    "camera": 1 / len(CAMERAS),
    "action": 1 / len(ACTIONS),
    "direction": 1 / 2,
    "silence": None,
    "impact": None,
    "sync": None,
}
"""What a blind guess among all words gets right, for everything that is judged; see ``compare``."""
STRIKING = ("drops", "is tossed", "hits", "knocks")
"""Actions in which something must be seen to strike."""


@dataclass(frozen=True)
class Observation:
    """What is seen and heard in a clip, whatever was asked for."""

    seen: Seen
    heard_s: np.ndarray
    """(K,) moments at which a sound begins."""
    peak: float
    """Greatest magnitude of the waveform; 0 without sound."""
    duration_s: float


def observe(
    verifier: Verifier, frames: np.ndarray, waveform: np.ndarray | None, frame_rate: float, sample_rate_hz: int
) -> Observation:
    """Read frames (T, H, W, 3) uint8 and a waveform (N,) or (C, N) in [-1, 1], or None without sound."""
    seen = verifier.read(frames, float(frame_rate))
    heard_s, peak = np.zeros(0), 0.0
    if waveform is not None and waveform.size:
        peak = float(np.abs(waveform).max())
        if peak >= SILENT_PEAK:
            heard_s = onset_times_s(waveform, sample_rate_hz, threshold_db=ONSET_RISE_DB)
    return Observation(seen, heard_s, peak, len(frames) / float(frame_rate))


def score(
    verifier: Verifier,
    frames: np.ndarray,
    waveform: np.ndarray | None,
    frame_rate: float,
    sample_rate_hz: int,
    attributes: dict,
) -> dict:
    """``compare`` of what a clip shows with ``attributes``, as ``vidgen.tabletop.captions.attributes`` gives them."""
    return compare(observe(verifier, frames, waveform, frame_rate, sample_rate_hz), attributes)


def compare(observed: Observation, attributes: dict) -> dict:
    """What is right about a clip, ready for JSON.

    Returns:
        right: true, false or, where the question does not arise, None, for each of ``CHANCE``:
            colour, material, shape, size of the body that acts; ``bodies``: the colours and shapes of all bodies,
            none missing, none too many; count, floor, camera, action, direction; ``silence`` of a body at rest;
            ``impact``: one is seen where there must be one; ``sync``: the first impact seen has a sound within 80 ms.
            What the prompt leaves open (a key that is missing, None or empty) is not judged.
        seen: what was seen, in the same words.
        sync: impacts and onsets in seconds, the offset of the first impact's nearest onset (positive: the sound is
            late), impacts without a sound (missing) and sounds without an impact (surplus).
    """
    seen = observed.seen
    asked_bodies = attributes.get("bodies") or []
    right: dict[str, bool | None] = dict.fromkeys(CHANCE)
    if asked_bodies:
        found = seen.bodies[0] if seen.bodies else {}
        for name in OF_A_BODY:
            if asked_bodies[0].get(name):
                right[name] = found.get(name) == asked_bodies[0][name]
        if all(body.get("colour") and body.get("shape") for body in asked_bodies):
            right["bodies"] = seen.count == len(asked_bodies) and _looks(seen.bodies) == _looks(asked_bodies)
    for name in ("count", "floor", "camera", "action", "direction"):
        if attributes.get(name):
            right[name] = getattr(seen, name) == attributes[name]
    impacts_s, heard_s = seen.impacts_s, observed.heard_s
    action = attributes.get("action")
    if action == "rests":
        right["silence"] = observed.peak < SILENT_PEAK
    if action in STRIKING:
        right["impact"] = len(impacts_s) > 0
    offset_s = None
    if len(impacts_s):
        if len(heard_s):
            offset_s = float(heard_s[np.abs(heard_s - impacts_s[0]).argmin()] - impacts_s[0])
        right["sync"] = offset_s is not None and abs(offset_s) <= IN_SYNC_S
    match = match_onsets(impacts_s, heard_s, IN_SYNC_S)
    return {
        "right": right,
        "seen": {key: value for key, value in asdict(seen).items() if key != "impacts_s"},
        "sync": {
            "impacts_s": [round(float(moment), 3) for moment in impacts_s],
            "onsets_s": [round(float(moment), 3) for moment in heard_s],
            "first_offset_s": None if offset_s is None else round(offset_s, 4),
            "missing": len(match.missing_s),
            "surplus": len(match.surplus_s),
        },
    }


def _looks(bodies: Sequence[dict]) -> list[tuple[str, str]]:
    return sorted((body["colour"], body["shape"]) for body in bodies)


def summarise(scores: Sequence[dict], resamples: int = 2000) -> dict:
    """Shares with 95 % bootstrap intervals over clips (Efron's percentile method), from what ``compare`` returns.

    Returns:
        attributes: for each of ``CHANCE`` that arose: share, low, high, n clips, chance (None where it has no meaning).
        offsets: over clips with an impact and a sound: n, the median of the offset's magnitude with its interval,
            95th percentile, and the share within 45 ms; None if there is no such clip.
        missing, surplus: mean number of impacts without a sound, and of sounds without an impact, a clip.
    """
    rng = np.random.default_rng(0)
    attributes = {}
    for name, chance in CHANCE.items():
        answers = np.array([s["right"][name] for s in scores if s["right"][name] is not None], float)
        if len(answers):
            low, high = _interval(answers, np.mean, resamples, rng)
            attributes[name] = {"share": float(answers.mean()), "low": low, "high": high, "n": len(answers),
                                "chance": chance}  # fmt: skip
    offsets = np.abs([s["sync"]["first_offset_s"] for s in scores if s["sync"]["first_offset_s"] is not None])
    summary: dict = {"attributes": attributes, "offsets": None}
    if len(offsets):
        low, high = _interval(offsets, np.median, resamples, rng)
        summary["offsets"] = {
            "n": len(offsets),
            "median_s": float(np.median(offsets)),
            "low_s": low,
            "high_s": high,
            "p95_s": float(np.quantile(offsets, 0.95)),
            "within_45_ms": float((offsets <= 0.045).mean()),
        }
    for name in ("missing", "surplus"):
        summary[name] = float(np.mean([s["sync"][name] for s in scores])) if len(scores) else None
    return summary


def _interval(values: np.ndarray, statistic: Callable, resamples: int, rng: np.random.Generator) -> tuple[float, float]:
    drawn = values[rng.integers(len(values), size=(resamples, len(values)))]
    low, high = np.quantile(statistic(drawn, axis=1), (0.025, 0.975))
    return float(low), float(high)


def shuffled_prompts(observed: Sequence[Observation], asked: Sequence[dict], rounds: int = 10) -> list[dict]:
    """Control: every clip compared with other clips' prompts. What stays right is right by chance."""
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(rounds if len(asked) > 1 else 0):
        turn = int(rng.integers(1, len(asked)))
        order = rng.permutation(len(asked))  # a random cycle: no clip keeps its own prompt
        for index, clip in enumerate(order):
            scores.append(compare(observed[clip], asked[order[(index + turn) % len(asked)]]))
    return scores


def moved_sounds(observed: Sequence[Observation], asked: Sequence[dict], steps: int = 7) -> list[dict]:
    """Control: every clip with its own sound moved around the clip by an eighth of its length, two eighths, …"""
    scores = []
    for step in range(1, steps + 1):
        for clip, attributes in zip(observed, asked, strict=True):
            moved = np.sort((clip.heard_s + clip.duration_s * step / (steps + 1)) % clip.duration_s)
            scores.append(compare(replace(clip, heard_s=moved), attributes))
    return scores


def table(summary: dict, shuffled: dict, moved: dict) -> str:
    """The report for a terminal: one line for each thing judged, beside chance and the controls."""
    lines = [f"{'':10} {'right':>7} {'95 % interval':>16} {'n':>5} {'blind':>6} {'other prompts':>14}"]
    for name, row in summary["attributes"].items():
        interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        blind = "" if row["chance"] is None else f"{100 * row['chance']:.0f} %"
        control = (moved if name == "sync" else shuffled)["attributes"].get(name)
        other = "" if control is None else f"{100 * control['share']:.1f} %" + (" (moved)" if name == "sync" else "")
        lines.append(f"{name:10} {100 * row['share']:5.1f} % {interval:>16} {row['n']:5} {blind:>6} {other:>14}")
    offsets = summary["offsets"]
    if offsets:
        lines.append(
            f"sound against first impact: median {1000 * offsets['median_s']:.0f} ms, 95 % within "
            f"{1000 * offsets['p95_s']:.0f} ms, {100 * offsets['within_45_ms']:.1f} % within 45 ms (n {offsets['n']})"
        )
        lines.append(f"a clip: {summary['missing']:.2f} impacts unheard, {summary['surplus']:.2f} sounds unseen")
    return "\n".join(lines)
