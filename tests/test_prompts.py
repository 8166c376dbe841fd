import json
from collections import Counter

import pytest

from eval.prompts import COUNTS, FILE, compose, tabletop_prompts
from vidgen.errors import InputError
from vidgen.tabletop.scene import is_held_out
from vidgen.tabletop.staging import FIRST_SHAPES, MOVING


def test_the_file_is_what_the_code_composes() -> None:
    assert json.loads(FILE.read_text()) == compose() == tabletop_prompts()


def test_every_prompt_is_held_out_and_says_what_it_asks() -> None:
    entries = tabletop_prompts()
    assert len({entry["seed"] for entry in entries}) == len(entries) == 64
    for entry in entries:
        prompt, asked = entry["prompt"], entry["attributes"]
        first = asked["bodies"][0]
        assert is_held_out(first["colour"], first["material"], first["shape"])
        assert asked["held_out"]
        for body in asked["bodies"]:
            assert " ".join(body[key] for key in ("size", "colour", "material", "shape")) in prompt
        assert len({body["colour"] for body in asked["bodies"]}) == asked["count"]
        assert f"{asked['floor']} floor" in prompt
        assert (asked["action"] in MOVING) == (asked["direction"] != "")
        assert asked["direction"] in prompt
        assert asked["camera"] == "static" or asked["camera"] in prompt
        assert first["shape"] in FIRST_SHAPES.get(asked["action"], (first["shape"],))


def test_the_mixture_is_even() -> None:
    entries = tabletop_prompts()
    assert Counter(entry["attributes"]["action"] for entry in entries) == COUNTS
    for key in ("material", "shape", "size"):
        counts = Counter(entry["attributes"]["bodies"][0][key] for entry in entries)
        assert max(counts.values()) <= 1.3 * min(counts.values())
    floors = Counter(entry["attributes"]["floor"] for entry in entries)
    assert max(floors.values()) - min(floors.values()) <= 1


def test_one_action() -> None:
    assert len(tabletop_prompts("rolls")) == 12
    with pytest.raises(InputError, match="give one of"):
        tabletop_prompts("flies")
