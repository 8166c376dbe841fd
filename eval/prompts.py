"""The 64 fixed prompts of the tabletop evaluation, each with its seed and with what it asks for.

They lie in ``prompts_tabletop.json``, so that a score today and one in a year answer the same questions. The body that
acts is always of a (colour, material, shape) triple that was never trained on. ``python -m eval.prompts`` writes the
file anew, the same every time.
"""

import json
import random
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np

from vidgen.cli import run
from vidgen.errors import InputError
from vidgen.tabletop.captions import attributes, describe
from vidgen.tabletop.scene import (
    CAMERAS,
    COLOURS,
    FLOORS,
    MATERIALS,
    SHAPES,
    SIZES,
    Body,
    Contact,
    Look,
    Trajectory,
    is_held_out,
)
from vidgen.tabletop.staging import FIRST_SHAPES, MOVING

FILE = Path(__file__).with_name("prompts_tabletop.json")

COUNTS = {"drops": 24, "is tossed": 12, "rolls": 12, "slides": 8, "hits": 6, "rests": 2}
"""Prompts for each action, in about the shares in which the world shows them."""
MOVING_CAMERAS = 16


def tabletop_prompts(action: str | None = None) -> list[dict]:
    """The fixed prompts, or those of one action: ``prompt``, ``seed`` and ``attributes``.

    Attributes are as ``vidgen.tabletop.captions.attributes`` gives them for a clip.

    Raises:
        InputError: no prompt has this action.
    """
    if action is not None and action not in COUNTS:
        raise InputError(f"no prompt has the action {action!r}: give one of {', '.join(COUNTS)}")
    entries = json.loads(FILE.read_text(encoding="utf-8"))
    return [entry for entry in entries if action in (None, entry["attributes"]["action"])]


def compose() -> list[dict]:
    """Make the prompts: triples as even in colour, shape and material as the held-out rule lets them be."""
    rng = random.Random(0)
    total = sum(COUNTS.values())
    triples = [triple for triple in product(COLOURS, MATERIALS, SHAPES) if is_held_out(*triple)]
    used: Counter = Counter()
    cameras = _dealt(rng, CAMERAS[1:], MOVING_CAMERAS) + ["static"] * (total - MOVING_CAMERAS)
    rng.shuffle(cameras)
    floors, sizes = _dealt(rng, FLOORS, total), _dealt(rng, SIZES, total)
    others = _dealt(rng, COLOURS, total)
    entries: list[dict] = []
    # The choosiest actions first, so that the others can even out what they had to take.
    for action in sorted(COUNTS, key=lambda name: len(FIRST_SHAPES.get(name, SHAPES))):
        sides = _dealt(rng, ("left", "right"), COUNTS[action])
        for side in sides:
            able = [triple for triple in triples if triple[2] in FIRST_SHAPES.get(action, SHAPES)]
            rng.shuffle(able)
            triple = min(able, key=lambda words: (sum(used[word] for word in words), used[words], used[action, words]))
            used.update([*triple, triple, (action, triple)])
            colour, material, shape = triple
            bodies, colours = [Body(shape, material, sizes.pop())], [colour]
            if action == "hits":
                bodies.append(Body(rng.choice(SHAPES), rng.choice(MATERIALS), rng.choice(SIZES)))
                colours.append(next(other for other in others if other != colour))
                others.remove(colours[1])
            look = Look(tuple(colours), cameras.pop())
            asked = _asked(tuple(bodies), floors.pop(), action, side if action in MOVING else "")
            entries.append({"prompt": describe(asked, look), "attributes": attributes(asked, look)})
    entries.sort(key=lambda entry: list(COUNTS).index(entry["attributes"]["action"]))
    return [{"prompt": e["prompt"], "seed": 1000 + i, "attributes": e["attributes"]} for i, e in enumerate(entries)]


def _asked(bodies: tuple[Body, ...], floor: str, action: str, direction: str) -> Trajectory:
    """A scene in name only, for its words: it holds no motion but how body 0 comes to hit body 1."""
    poses = 3
    moving = np.ones((poses, len(bodies)), np.float32)
    still = np.zeros_like(moving)
    rolling, sliding = (still, moving) if bodies[0].shape == "cube" else (moving, still)
    positions = np.zeros((poses, len(bodies), 3), np.float32)
    rotations = np.tile(np.array([1, 0, 0, 0], np.float32), (poses, len(bodies), 1))
    contacts = (Contact(0.1, 0, 1, 1.0),) if action == "hits" else ()
    return Trajectory(bodies, floor, action, direction, positions, rotations, contacts, rolling, sliding)


def _dealt(rng: random.Random, words: tuple[str, ...], count: int) -> list[str]:
    """``count`` words, each as often as the next give or take one, in random order."""
    order = rng.sample(words, len(words))
    cards = [order[index % len(order)] for index in range(count)]
    rng.shuffle(cards)
    return cards


def main() -> None:
    entries = compose()
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    FILE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{FILE}: {len(entries)} prompts")


if __name__ == "__main__":
    run(main)
