"""Clips of the tabletop world against what their prompts ask for: which of it is seen, and whether sound fits picture.

Reading a clip (``observe``) knows nothing of the prompt; only ``compare`` does. So the same readings serve for the
controls (``controls``): prompts dealt to other clips, and sounds moved in time.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from vidgen.audio_sync.onsets import match_onsets, onset_times_s
from vidgen.errors import InputError
from vidgen.tabletop.scene import ACTIONS, CAMERAS, COLOURS, FLOORS, MATERIALS, SHAPES, SIZES

from .impacts import SHIFTS_S, onset_levels, pattern_offset_s, shifted
from .sound import MIN_SAMPLE_RATE_HZ, SILENT_PEAK
from .verifier import Seen, Verifier

IN_SYNC_S = 0.080
ONSET_RISE_DB = 2.0
"""A little below the usual: soft bodies that meet while one rolls are hardly louder than the rolling."""

OF_A_BODY = ("colour", "material", "shape", "size")
CHANCE = {
    "colour": 1 / len(COLOURS),
    "shape": 1 / len(SHAPES),
    "material": 1 / len(MATERIALS),
    "material_heard": 1 / len(MATERIALS),
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
    levels: np.ndarray | None = None
    """(K,) how loud each of the sounds begins; None: unknown."""
    material_heard: str | None = None
    """What the clip sounds of; None for silence."""
    shifted_s: Sequence[float | None] = ()
    """The offset of the sounds from the impacts, the sound moved by 0 and by each of ``SHIFTS_S``; see ``controls``."""


def observe(
    verifier: Verifier, frames: np.ndarray, waveform: np.ndarray | None, frame_rate: float, sample_rate_hz: int
) -> Observation:
    """Read frames (T, H, W, 3) uint8 and a waveform (N,) or (C, N) in [-1, 1], or None without sound.

    Raises:
        InputError: the sound holds values that are not finite.
        ValueError: frames of another shape or type.
    """
    return hear(verifier, verifier.read(frames, float(frame_rate)), waveform, len(frames) / frame_rate, sample_rate_hz)


def hear(
    verifier: Verifier, seen: Seen, waveform: np.ndarray | None, duration_s: float, sample_rate_hz: int
) -> Observation:
    """``observe`` where it has been seen already what the frames show."""
    if waveform is None or not np.size(waveform):
        return Observation(seen, np.zeros(0), 0.0, duration_s, np.zeros(0))
    if not np.isfinite(waveform).all():
        raise InputError("the sound holds values that are not finite numbers")
    peak = float(np.abs(waveform).max())
    if peak < SILENT_PEAK:
        return Observation(seen, np.zeros(0), peak, duration_s, np.zeros(0))
    heard_s, levels, offset_s = _hear(waveform, sample_rate_hz, seen.impacts_s)
    offsets_s = [offset_s]
    for shift_s in SHIFTS_S if len(seen.impacts_s) else ():
        offsets_s.append(_hear(waveform, sample_rate_hz, seen.impacts_s, shift_s)[2])
    reader = verifier.sound if sample_rate_hz >= MIN_SAMPLE_RATE_HZ else None
    material = None if reader is None else reader.material(waveform, sample_rate_hz)
    return Observation(seen, heard_s, peak, duration_s, levels, material, offsets_s)


def _hear(
    waveform: np.ndarray, sample_rate_hz: int, impacts_s: np.ndarray, shift_s: float = 0.0
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Onsets, how loud they are, and their offset from the impacts, the sound moved by so much."""
    moved = shifted(waveform, round(shift_s * sample_rate_hz))
    heard_s = onset_times_s(moved, sample_rate_hz, threshold_db=ONSET_RISE_DB)
    if shift_s > 0:  # the cut at which a moved sound begins is no onset of the clip's
        heard_s = heard_s[np.abs(heard_s - shift_s) > 0.01]
    levels = onset_levels(moved, sample_rate_hz, heard_s)
    return heard_s, levels, pattern_offset_s(impacts_s, heard_s, levels)


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
            colour, material, shape, size of the body that acts; ``material_heard``: the sound of a clip that asks for
            one body, and not at rest, is that of its material; ``bodies``: the colours and shapes of all bodies,
            none missing, none too many; count, floor, camera, action, direction; ``silence`` of a body at rest;
            ``impact``: one is seen where there must be one; ``sync``: where an impact is seen beyond doubt, the
            sounds as a whole are within 80 ms of the impacts as a whole (``offset_s`` below).
            What the prompt leaves open (a key that is missing, None or empty) is not judged.
        seen: what was seen, in the same words.
        sync: impacts and onsets in seconds, the offset of the first impact's nearest onset (positive: the sound is
            late), the offset of the whole pattern (``impacts.pattern_offset_s``), impacts without a sound (missing)
            and sounds without an impact (surplus).
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
    if len(asked_bodies) == 1 and asked_bodies[0].get("material") and action not in (None, "rests"):
        right["material_heard"] = observed.material_heard == asked_bodies[0]["material"]
    if action == "rests":
        right["silence"] = observed.peak < SILENT_PEAK
    if action in STRIKING:
        right["impact"] = len(impacts_s) > 0
    first_s = None
    if len(impacts_s) and len(heard_s):
        first_s = float(heard_s[np.abs(heard_s - impacts_s[0]).argmin()] - impacts_s[0])
    offset_s = pattern_offset_s(impacts_s, heard_s, observed.levels)
    if len(impacts_s) and seen.is_struck:
        right["sync"] = offset_s is not None and abs(offset_s) <= IN_SYNC_S
    match = match_onsets(impacts_s, heard_s, IN_SYNC_S)
    told = {key: value for key, value in asdict(seen).items() if key != "impacts_s"}
    return {
        "right": right,
        "seen": told | {"material_heard": observed.material_heard},
        "sync": {
            "impacts_s": [round(float(moment), 3) for moment in impacts_s],
            "onsets_s": [round(float(moment), 3) for moment in heard_s],
            "first_offset_s": None if first_s is None else round(first_s, 4),
            "offset_s": None if offset_s is None else round(offset_s, 4),
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
        offsets: over clips with an impact and a sound, of the sound nearest to the first impact: n, the median of the
            offset's magnitude with its interval, 95th percentile, and the share within 45 ms; None if there is no such
            clip. whole_offsets: the same of the pattern of all impacts and sounds.
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
    summary: dict = {"attributes": attributes}
    for name, key in (("offsets", "first_offset_s"), ("whole_offsets", "offset_s")):
        offsets = np.abs([s["sync"][key] for s in scores if s["sync"][key] is not None])
        summary[name] = None
        if len(offsets):
            low, high = _interval(offsets, np.median, resamples, rng)
            summary[name] = {
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


def table(summary: dict, shuffled: dict, moved: dict, follows: dict | None = None, accuracy: dict | None = None) -> str:
    """The report for a terminal: one line for each thing judged, beside chance, controls and the instrument's own.

    Args:
        shuffled, moved, follows: the controls, see ``controls.controls``.
        accuracy: as ``accuracy.stored`` gives it; None: unknown, and said so.
    """
    own = {} if accuracy is None else accuracy["attributes"]
    head = f"{'':14} {'right':>7} {'95 % interval':>16} {'n':>5} {'instrument':>11} {'blind':>6} {'other prompts':>14}"
    lines = [head]
    for name, row in summary["attributes"].items():
        interval = f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"
        blind = "" if row["chance"] is None else f"{100 * row['chance']:.0f} %"
        control = (moved if name == "sync" else shuffled)["attributes"].get(name)
        other = "" if control is None else f"{100 * control['share']:.1f} %" + (" (moved)" if name == "sync" else "")
        sure = f"{100 * own[name]['share']:.1f} %" if name in own else "unknown"
        share = f"{100 * row['share']:5.1f} %"
        lines.append(f"{name:14} {share} {interval:>16} {row['n']:5} {sure:>11} {blind:>6} {other:>14}")
    for key, what in (("offsets", "sound against first impact"), ("whole_offsets", "sounds against all impacts")):
        offsets = summary[key]
        if offsets:
            lines.append(
                f"{what}: median {1000 * offsets['median_s']:.0f} ms, 95 % within {1000 * offsets['p95_s']:.0f} ms, "
                f"{100 * offsets['within_45_ms']:.1f} % within 45 ms (n {offsets['n']})"
            )
    if summary["offsets"]:
        true = "" if accuracy is None else f" (true clips: {accuracy['missing']:.2f} and {accuracy['surplus']:.2f})"
        lines.append(f"a clip: {summary['missing']:.2f} impacts unheard, {summary['surplus']:.2f} sounds unseen{true}")
    if follows is not None:
        interval = "" if follows["low"] is None else f" ({follows['low']:.2f} to {follows['high']:.2f})"
        lines.append(
            f"sounds moved by up to {1000 * max(SHIFTS_S):.0f} ms: the offset follows with slope "
            f"{follows['slope']:.2f}{interval}, {100 * follows['within_20_ms']:.1f} % within 20 ms (n {follows['n']})"
        )
    if accuracy is not None:
        seen, heard = accuracy["impacts"]["seen"], accuracy["impacts"]["heard"]
        lines.append(
            f"the instrument on {accuracy['clips']} generator clips finds {100 * seen['found']:.1f} % of the impacts "
            f"to be seen within a frame, {100 * heard['found']:.1f} % of those to be heard within 5 ms"
        )
    return "\n".join(lines)
