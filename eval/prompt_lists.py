"""The fixed prompts in other words, and with triples that were trained on: what generalising costs, in pairs.

``held_out`` are the prompts of ``prompts``. ``seen`` asks for the same scenes, but each acting body is of a triple that
was trained on. The paraphrases ask for the scenes of ``seen`` in another word order (``reordered``), in other words of
the training captions (``synonyms``), and in words that no caption had (``new_words``). The k-th prompts of all lists
are twins: same scene, same seed. ``python -m eval.prompt_lists`` writes the file anew, the same every time.
"""

import json
import random
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from vidgen.cli import run
from vidgen.errors import InputError
from vidgen.tabletop.captions import SYNONYMS
from vidgen.tabletop.scene import COLOURS, MATERIALS, SHAPES, is_held_out
from vidgen.tabletop.staging import FIRST_SHAPES

from .prompts import tabletop_prompts

FILE = Path(__file__).with_name("prompts_lists.json")
LISTS = ("held_out", "seen", "reordered", "synonyms", "new_words")
PARAPHRASES = ("reordered", "synonyms", "new_words")

DEEDS = {
    "drops": ("falls", "is dropped"),
    "is tossed in": ("is thrown",),
    "rolls in": ("comes rolling",),
    "slides in": ("comes sliding",),
    "hits": ("strikes", "bumps into", "collides with"),
    "rests": ("lies still", "stays still"),
}
"""What the captions say besides, as ``vidgen.tabletop.captions`` says it."""
NEW_WORDS = {
    "ball": ("orb", "globe"),
    "cube": ("die", "square block"),
    "cylinder": ("barrel", "can"),
    "metal": ("iron", "chrome"),
    "wooden": ("timber", "oak"),
    "glass": ("crystal",),
    "rubber": ("latex",),
    "red": ("crimson", "scarlet"),
    "green": ("emerald",),
    "blue": ("azure", "cobalt"),
    "yellow": ("lemon-coloured",),
    "purple": ("violet",),
    "orange": ("tangerine",),
    "cyan": ("turquoise",),
    "white": ("snowy",),
}
"""Words of the same meaning that no training caption holds."""
CANONICAL = re.compile(r"(?P<deed>.*?) (?P<floor>on(?:to)? an? \w+ floor)(?:, (?P<camera>the camera .*))?")


def prompt_list(names: Sequence[str]) -> list[dict[str, Any]]:
    """The prompts of some of ``LISTS``, one list after the other: ``prompt``, ``seed``, ``attributes``.

    ``attributes`` also hold ``list`` and ``twin``, the number that twins share.

    Raises:
        InputError: an unknown list.
    """
    unknown = sorted(set(names) - set(LISTS))
    if unknown or not names:
        raise InputError(f"there is no list of prompts {', '.join(unknown)!r}; there are {', '.join(LISTS)}")
    stored = json.loads(FILE.read_text(encoding="utf-8"))
    entries = []
    for name in names:
        listed = tabletop_prompts() if name == "held_out" else stored[name]
        for twin, entry in enumerate(listed):
            entries.append(entry | {"attributes": entry["attributes"] | {"list": name, "twin": twin}})
    return entries


def compose() -> dict[str, list[dict[str, Any]]]:
    """All lists but ``held_out``, without ``list`` and ``twin``."""
    rng = random.Random(0)
    lists: dict[str, list[dict[str, Any]]] = {"seen": [_seen(entry, rng) for entry in tabletop_prompts()]}
    ways = {"reordered": reordered, "synonyms": synonyms, "new_words": new_words}
    for name in PARAPHRASES:
        lists[name] = [entry | {"prompt": ways[name](entry, index, rng)} for index, entry in enumerate(lists["seen"])]
    return lists


def _seen(entry: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The same scene, every body whose triple is held out in another colour, material or shape."""
    prompt, asked = entry["prompt"], entry["attributes"]
    bodies = [dict(body) for body in asked["bodies"]]
    for index, body in enumerate(bodies):
        shapes: tuple[str, ...] = FIRST_SHAPES.get(asked["action"], SHAPES) if index == 0 else SHAPES
        if asked["action"] == "hits" and index == 0:  # a cube slides where others roll: the deed must stay true
            shapes = tuple(shape for shape in SHAPES if (shape == "cube") == (body["shape"] == "cube"))
        others = {other["colour"] for other in bodies if other is not body}
        triple = tuple(body[key] for key in ("colour", "material", "shape"))
        if not is_held_out(*triple):
            continue
        near = [
            other
            for other in product(COLOURS, MATERIALS, shapes)
            if not is_held_out(*other) and other[0] not in others
            and sum(a != b for a, b in zip(other, triple, strict=True)) == 1
        ]  # fmt: skip
        chosen = rng.choice(near)
        prompt = prompt.replace(" ".join(triple), " ".join(chosen), 1)
        body |= dict(zip(("colour", "material", "shape"), chosen, strict=True))
    return {"prompt": prompt, "seed": entry["seed"], "attributes": asked | {"bodies": bodies, "held_out": False}}


def reordered(entry: dict[str, Any], index: int, rng: random.Random) -> str:
    """The same words in another order: camera first, or floor first; every other body with its colour last."""
    match = CANONICAL.fullmatch(entry["prompt"])
    assert match is not None, entry["prompt"]
    deed, floor, camera = match["deed"], match["floor"], match["camera"]
    if index % 2:
        for body in entry["attributes"]["bodies"]:
            words = [body[key] for key in ("size", "colour", "material", "shape")]
            size, colour, material, shape = words
            deed = deed.replace(" ".join(words), f"{size} {material} {shape} in {colour}", 1)
    if camera and index % 4 < 2:
        return f"{camera} as {deed} {floor}"
    return f"{floor}, {deed}" + (f" while {camera}" if camera else "")


def synonyms(entry: dict[str, Any], index: int, rng: random.Random) -> str:
    """Every word that the training captions have another for in that other; the deed, too."""
    prompt = entry["prompt"]
    for deed, others in DEEDS.items():
        prompt = re.sub(rf"\b{deed}\b", rng.choice(others), prompt)
    for word, known in SYNONYMS.items():
        others = tuple(other for other in known if other != word)
        if others:
            prompt = re.sub(rf"\b{word}\b", rng.choice(others), prompt)
    return prompt


def new_words(entry: dict[str, Any], index: int, rng: random.Random) -> str:
    """Two of colour, material and shape of every body in words that were never trained on."""
    prompt = entry["prompt"]
    for body in entry["attributes"]["bodies"]:
        words = [body[key] for key in ("colour", "material", "shape")]
        said = list(words)
        for place in {(0, 1, 2)[index % 3], (1, 2, 0)[index % 3]}:
            said[place] = rng.choice(NEW_WORDS[words[place]])
        prompt = prompt.replace(" ".join(words), " ".join(said), 1)
    return prompt


def main() -> None:
    lists = compose()
    parts = []
    for name, entries in lists.items():
        rows = ",\n".join(json.dumps(entry) for entry in entries)
        parts.append(f'"{name}": [\n{rows}\n]')
    FILE.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    print(f"{FILE}: {', '.join(f'{name} {len(entries)}' for name, entries in lists.items())}")


if __name__ == "__main__":
    run(main)
