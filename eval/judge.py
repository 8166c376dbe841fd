"""The tabletop suite's judgement of a model: what its clips show, against what they were asked for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vidgen.tabletop.scene import ACTIONS, CAMERAS, COLOURS, FLOORS, MATERIALS, SHAPES, SIZES

from .controls import follow, moved_sounds, shuffled_prompts
from .generate import Made
from .intervals import paired_difference
from .measure import Measured, observation
from .prompt_lists import LISTS
from .tabletop import CHANCE, STRIKING, Observation, compare, summarise
from .verifier import Seen

WORDS: dict[str, tuple] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "material": MATERIALS,
    "material_heard": MATERIALS,
    "size": SIZES,
    "floor": FLOORS,
    "camera": CAMERAS,
    "action": ACTIONS,
    "direction": ("left", "right"),
    "count": (1, 2, 3),
}
OF_A_BODY = ("colour", "shape", "material", "size")
NOTHING = Observation(Seen([], 0, "", "", None, "", np.zeros(0)), np.zeros(0), 0.0, 1.0)


def verdicts(made: Sequence[Made], measured: Sequence[Measured]) -> list[dict]:
    """``compare`` of every clip with its prompt. One that is not there or could not be read is wrong in everything that
    was asked of it."""
    scores = []
    for clip, found in zip(made, measured, strict=True):
        asked = clip.asked.attributes
        value = found.values.get("tabletop")
        score = compare(NOTHING if value is None else observation(value), asked)
        if value is None:
            score["right"] = {name: None if right is None else False for name, right in score["right"].items()}
            if asked.get("action") in STRIKING:
                score["right"]["sync"] = False
        scores.append(score)
    return scores


def judgement(made: Sequence[Made], measured: Sequence[Measured], scores: Sequence[dict]) -> dict[str, Any]:
    """The summary, that of clips with and without a held-out triple, the two controls, and what is taken for what."""
    pairs = [
        (observation(found.values["tabletop"]), clip.asked.attributes)
        for clip, found in zip(made, measured, strict=True)
        if "tabletop" in found.values
    ]
    observed, truths = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    summary = summarise(scores)
    # Where there is no clip there are no impacts and no sounds to count.
    there = [score for score, found in zip(scores, measured, strict=True) if "tabletop" in found.values]
    for name in ("missing", "surplus"):
        summary[name] = float(np.mean([score["sync"][name] for score in there])) if there else None
    results: dict[str, Any] = {
        "summary": summary,
        "shuffled_prompts": summarise(shuffled_prompts(observed, truths), resamples=200),
        "moved_sounds": summarise(moved_sounds(observed, truths), resamples=200),
        "follows": follow(observed),
    }
    for name, wanted in (("held_out", True), ("not_held_out", False)):
        part = [score for score, clip in zip(scores, made, strict=True)
                if clip.asked.attributes.get("held_out") is wanted]  # fmt: skip
        if part:
            results[name] = summarise(part)
    results["gaps"] = gaps(made, scores)
    return results | {"confusion": confusion([clip.asked.attributes for clip in made], scores)}


def gaps(made: Sequence[Made], scores: Sequence[dict]) -> list[dict[str, Any]]:
    """What other triples and other words cost: the other lists of ``prompt_lists`` minus ``seen``, twin by twin.

    Returns:
        As ``results.differences``: ``first`` (seen), ``second``, ``prompts``, and ``differences`` of the share that is
        right, for each attribute and for ``all`` (the mean over what was judged of a clip). Empty without ``seen``.
    """
    lists: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for clip, score in zip(made, scores, strict=True):
        told = clip.asked.attributes
        if "list" in told:
            rights = {name: float(right) for name, right in score["right"].items() if right is not None}
            row = rights | ({"all": float(np.mean(list(rights.values())))} if rights else {})
            lists.setdefault(told["list"], []).append((told["twin"], row))
    found = []
    for name in lists.keys() - {"seen"} if "seen" in lists else ():
        sides = [([twin for twin, _ in rows], [row for _, row in rows]) for rows in (lists["seen"], lists[name])]
        differences = {}
        for key in ("all", *CHANCE):
            ours, theirs = (([row.get(key) for row in rows], twins) for twins, rows in sides)
            estimate = paired_difference(ours, theirs)
            if estimate is not None:
                differences[key] = asdict(estimate)
        if differences:
            twins = len(set(sides[0][0]) & set(sides[1][0]))
            found.append({"first": "seen", "second": name, "prompts": twins, "differences": differences})
    return sorted(found, key=lambda gap: LISTS.index(gap["second"]))


def confusion(asked: Sequence[dict], scores: Sequence[dict]) -> dict[str, dict[str, Any]]:
    """For each attribute: ``words``, and how often each was seen where each was asked for.

    ``counts[i][j]``: word i was asked for and word j seen; the last column is anything else, or nothing.
    """
    tables = {}
    for name, words in WORDS.items():
        seen: Counter = Counter()
        for attributes, score in zip(asked, scores, strict=True):
            wanted, found = (
                ((side.get("bodies") or [{}])[0] if name in OF_A_BODY else side).get(name)
                for side in (attributes, score["seen"])
            )
            if name == "material_heard":  # asked for as the body's material, where it is judged
                wanted = attributes["bodies"][0]["material"] if score["right"][name] is not None else None
            if wanted in words:
                seen[wanted, found if found in words else None] += 1
        if seen:
            counts = [[seen[wanted, found] for found in (*words, None)] for wanted in words]
            tables[name] = {"words": list(words), "counts": counts}
    return tables
