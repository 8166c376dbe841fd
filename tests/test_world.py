"""Lists of prompts, what bodies do, and the likeness of frames."""

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from eval import judge, prompt_lists, subject
from eval.generate import Asked, Made, load_prompts, sampled
from eval.networks import PICTURE
from eval.physical import HORIZON_PX, figures, measure, shuffled, spliced
from eval.physical import table as physical_table
from eval.verifier import Found, Verifier
from tests.test_eval import ASKED, finding, scene
from vidgen.errors import InputError
from vidgen.tabletop.captions import SYNONYMS
from vidgen.tabletop.render import render
from vidgen.tabletop.scene import COLOURS, Look, is_held_out
from vidgen.tabletop.shot import camera_path

# --- lists of prompts -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lists():
    return {name: prompt_lists.prompt_list([name]) for name in prompt_lists.LISTS}


def test_the_file_of_lists_is_what_the_code_composes(lists):
    assert json.loads(prompt_lists.FILE.read_text()) == prompt_lists.compose()
    assert {len(entries) for entries in lists.values()} == {64}
    with pytest.raises(InputError, match="held_out, seen"):
        prompt_lists.prompt_list(["heard"])


def test_twins_ask_for_the_same_scene(lists):
    for held_out, seen in zip(lists["held_out"], lists["seen"], strict=True):
        assert held_out["seed"] == seen["seed"]
        ours, theirs = held_out["attributes"], seen["attributes"]
        for key in ("count", "action", "direction", "floor", "camera", "twin"):
            assert ours[key] == theirs[key]
        assert ours["held_out"]
        assert not theirs["held_out"]
        for body, twin in zip(ours["bodies"], theirs["bodies"], strict=True):
            assert not is_held_out(twin["colour"], twin["material"], twin["shape"])
            assert sum(body[key] != twin[key] for key in body) <= 1
            assert " ".join(twin[key] for key in ("size", "colour", "material", "shape")) in seen["prompt"]
        assert len({body["colour"] for body in theirs["bodies"]}) == theirs["count"]
    for name in prompt_lists.PARAPHRASES:
        for seen, other in zip(lists["seen"], lists[name], strict=True):
            assert other["prompt"] != seen["prompt"]
            assert other["seed"] == seen["seed"]
            assert other["attributes"] | {"list": "seen"} == seen["attributes"]


def test_paraphrases_are_what_they_are_called(lists):
    def words(text):
        return Counter(re.findall(r"[\w-]+", text))

    known = {"in", "from", "the", "left", "right", "and", "a", "an", "on", "onto", "floor", "while", "as", "camera"}
    for entries in (lists["seen"], [{"prompt": " ".join(words)} for words in SYNONYMS.values()]):
        known |= {word for entry in entries for word in words(entry["prompt"])}
    known |= {word for others in prompt_lists.DEEDS.values() for other in others for word in words(other)}
    for k in range(64):
        seen = words(lists["seen"][k]["prompt"])
        moved = words(lists["reordered"][k]["prompt"])
        assert not seen - moved
        assert set(moved - seen) <= {"in", "while", "as"}
        changed = words(lists["synonyms"][k]["prompt"])
        assert set(changed) <= known
        assert len(seen - changed) >= 2
        new = words(lists["new_words"][k]["prompt"])
        bodies = lists["seen"][k]["attributes"]["bodies"]
        assert len([word for word in (new - seen).elements() if word not in known]) >= 2 * len(bodies) - 1
    every = {word for others in prompt_lists.NEW_WORDS.values() for other in others for word in other.split()}
    assert every & known <= {"block"}  # a square block is still new


def test_lists_are_chosen_by_name_and_their_files_do_not_clash():
    asked = load_prompts(None, ("held_out", "seen", "new_words"))
    assert [entry.seed for entry in load_prompts(None)] == [entry.seed for entry in asked[:64]]
    assert asked[0].name == ""
    assert asked[64].name == "seen-0000.mp4"
    names = [entry.name for entry in sampled(asked[64:], 3)]
    assert len(set(names)) == len(names) == 3 * 128


def test_gaps_are_paired_by_twins():
    made, scores = [], []
    for twin in range(40):
        for name, right in (("seen", True), ("held_out", twin % 4 != 0), ("synonyms", True)):
            asked = ASKED | {"list": name, "twin": twin}
            made.append(Made(Asked(f"{name} {twin}", twin, asked), None))
            rights = dict.fromkeys(("colour", "shape"), True) | {"size": None, "action": right}
            scores.append({"right": rights})
    gaps = judge.gaps(made, scores)
    assert [(gap["first"], gap["second"], gap["prompts"]) for gap in gaps] == [
        ("seen", "held_out", 40), ("seen", "synonyms", 40),
    ]  # fmt: skip
    held_out = gaps[0]["differences"]
    assert held_out["action"]["value"] == pytest.approx(-0.25)
    assert held_out["all"]["value"] == pytest.approx(-0.25 / 3)
    assert held_out["action"]["low"] < -0.25 < held_out["action"]["high"] < 0
    assert "size" not in held_out
    assert gaps[1]["differences"]["all"]["value"] == 0
    assert judge.gaps(made[1:2], scores[1:2]) == []


# --- physics --------------------------------------------------------------------------------------------------------


def bounce(restitution=0.6, num_frames=60, floor=100.0, x_step=0.5):
    """Places of a body of half size 12 px that drops and bounces; y points down."""
    height, speed, places = 70.0, 0.0, []
    for frame in range(num_frames):
        places.append((30 + x_step * frame, floor - height))
        speed -= 1.2
        height += speed
        if height < 0:
            height, speed = -height * restitution, -speed * restitution
    return places


def clip_of(*bodies, colours=(0, 2, 4)):
    """Findings of bodies, each a list of places, or None where it is not found."""
    return [
        [finding(*place, colour) for place, colour in zip(places, colours, strict=False) if place is not None]
        for places in zip(*bodies, strict=True)
    ]


def test_a_bouncing_body_breaks_no_law():
    told = figures(clip_of(bounce()), True)
    assert told["bounce_gain"] == 0
    assert told["vanishing"] == told["surplus"] == 0
    assert told["colour_drift"] == pytest.approx(0, abs=1e-6)
    assert told["size_drift"] == 0
    assert told["jerk"] < 0.8
    assert told["sinking"] < 0.2
    assert told["overlap"] is None


def test_frames_in_reverse_or_random_order_break_them():
    found = clip_of(bounce())
    assert figures(found[::-1], True)["bounce_gain"] > 1
    order = np.random.default_rng(0).permutation(len(found))
    shuffled = figures([found[k] for k in order], True)
    assert shuffled["jerk"] > 1.3
    higher = clip_of(bounce(restitution=1.15))
    assert figures(higher, True)["bounce_gain"] > 0.4


def test_what_vanishes_or_multiplies_is_told():
    places = bounce()
    gone = clip_of([place if k < 36 else None for k, place in enumerate(places)])
    assert figures(gone, True)["vanishing"] == pytest.approx(24 / 60, abs=0.02)
    leaving = [(30 + 2.5 * k, 60.0) if 30 + 2.5 * k < 120 else None for k in range(60)]
    assert figures(clip_of(leaving), True)["vanishing"] == 0
    double = clip_of(places, [None if k < 30 else (100.0, 40.0) for k in range(60)], colours=(0, 0))
    assert figures(double, True)["vanishing"] == pytest.approx(0.5, abs=0.02)
    hidden = clip_of([(64.0, 64.0)] * 60, [(50.0, 62.0) if not 20 <= k < 30 else None for k in range(60)])
    assert figures(hidden, True)["vanishing"] == 0
    spliced = clip_of(places[:30] + [None] * 30, [None] * 30 + places[30:])  # turns blue, where it is
    assert figures(spliced, True)["vanishing"] > 0.4
    flash = clip_of(places)
    flash[20] = [*flash[20], finding(100, 30, 5, 0.95)]
    assert figures(flash, True)["surplus"] == pytest.approx(1 / 60)


def test_growing_fading_and_reaching_into_one_another_are_told():
    found = clip_of([(64.0, 64.0)] * 60)
    for k, frame in enumerate(found):
        frame[0][2]["extent"] = np.array([12.0 if k < 30 else 18.0])
    assert figures(found, True)["size_drift"] == pytest.approx(np.log(1.5), abs=0.05)
    fading = clip_of([(64.0, 64.0)] * 60)
    for k, frame in enumerate(fading):
        share = k / 59
        odds = np.full(len(COLOURS), 0.01)
        odds[0], odds[1] = 1 - 0.8 * share, 0.01 + 0.8 * share
        frame[0][2]["colour"] = np.log(odds / odds.sum())
    assert figures(fading, True)["colour_drift"] > 0.4

    side_by_side = clip_of([(40.0, 64.0)] * 60, [(65.0, 64.0)] * 60)
    assert figures(side_by_side, True)["overlap"] == 0
    through = clip_of([(40.0 + min(k, 40) / 2, 64.0) for k in range(60)], [(70.0, 64.0)] * 60)
    assert figures(through, True)["overlap"] == pytest.approx(1 - 10 / 24, abs=0.12)
    behind = clip_of([(55.0, 50.0)] * 60, [(65.0, 64.0)] * 60)
    assert figures(behind, True)["overlap"] == 0


def test_sinking_needs_a_camera_that_stands_still_and_a_ground():
    sinks = clip_of([(64.0, 64.0 + max(0, k - 20) * 0.3) for k in range(60)])
    assert figures(sinks, True)["sinking"] > 0.7
    assert figures(sinks, False)["sinking"] is None
    rests = figures(clip_of([(64.0, 64.0)] * 60), True)
    assert (rests["sinking"], rests["jerk"], rests["bounce_gain"]) == (0, 0, None)


def test_clips_stand_beside_their_shuffled_and_spliced_selves():
    found = [Found(torch.arange(60.0).reshape(60, 1, 1, 1), clip_of(bounce()), 0) for _ in range(2)]
    found[1] = replace(found[1], findings=clip_of(bounce(), colours=(3,)))
    mixed = shuffled(found[0], 1)
    order = mixed.pictures.flatten().int().tolist()
    assert sorted(order) == list(range(60)) != order
    assert mixed.findings == [found[0].findings[frame] for frame in order]  # pictures and findings go together
    assert figures(mixed.findings, True)["jerk"] > 3 * figures(found[0].findings, True)["jerk"]
    joined = spliced(*found)
    assert joined.findings[29] is found[0].findings[29]
    assert joined.findings[30] is found[1].findings[30]
    assert figures(joined.findings, True)["vanishing"] > 0.4
    told = physical_table({"one": [{"x": 1.0, "y": None}, {"x": 2.0, "y": None}]})
    assert "1.500 (1.950), 2" in told
    assert told.splitlines()[-1].split() == ["y", "-"]


def test_what_comes_nearer_on_the_floor_does_not_sink():
    path = camera_path(Look(("red",)), np.zeros(1), 1.0)
    ahead = path.axes[0] @ np.array([0.0, 1.0, 0.0])
    horizon = PICTURE / 2 * (1 + ahead[1] / ahead[2] / path.half_width[0])
    assert horizon == pytest.approx(HORIZON_PX, abs=2)
    nearer = 1 + 0.3 * np.clip((np.arange(60) - 10) / 40, 0, 1)
    found = clip_of([(64.0, HORIZON_PX + 40 * factor) for factor in nearer])
    assert figures(found, True)["sinking"] > 0.8  # of a constant size it would sink
    for findings, factor in zip(found, nearer, strict=True):
        findings[0][2]["extent"] = np.array([12.0 * factor])
    assert figures(found, True)["sinking"] < 0.05


def test_nothing_gives_no_number():
    for found in ([], [[]], [[]] * 30):
        assert all(value in (None, 0) for value in figures(found, True).values())
        assert figures(found, True)["jerk"] is None
    assert figures(clip_of([(64.0, 64.0)]), True)["vanishing"] is None


def test_the_shipped_instrument_sees_a_ball_sink_and_a_splice():
    verifier, look = Verifier.load(), Look(("red",), seed=1)
    resting = scene(x=(0.1, 0.1), action="rests")
    sinking = scene(x=(0.1, 0.1), z=(0.33, -0.15))
    other = replace(scene(x=(-0.7, -0.7)), floor=resting.floor)
    sizes = {"num_frames": 49, "height": PICTURE, "width": PICTURE, "frame_rate": 24}
    clips = render([resting, sinking, other], [look, look, Look(("blue",), seed=1)], **sizes).numpy()
    still, sunk = (measure(verifier, verifier.find(clip, 24.0)) for clip in clips[:2])
    assert still["vanishing"] == still["surplus"] == 0
    assert still["sinking"] < 0.1
    assert still["jerk"] < 0.2
    assert sunk["sinking"] > 0.4
    spliced = measure(verifier, verifier.find(np.concatenate([clips[0][:25], clips[2][25:]]), 24.0))
    assert spliced["vanishing"] > 0.3


# --- the likeness of frames -----------------------------------------------------------------------------------------


def test_subject_consistency_is_the_mean_likeness_with_the_first_frame_and_the_last():
    directions = {0: [1.0, 0.0], 100: [0.0, 1.0], 200: [-1.0, 0.0]}

    def network(images):
        return torch.tensor([directions[round(float(image.mean()))] for image in images])

    def frames(*levels):
        return np.stack([np.full((8, 8, 3), level, np.uint8) for level in levels])

    assert subject.measure(network, frames(0, 0, 0)) == {"subject_consistency": 1.0}
    assert subject.measure(network, frames(0, 100, 100))["subject_consistency"] == pytest.approx((0 + 0 + 0 + 1) / 4)
    assert subject.measure(network, frames(0, 200))["subject_consistency"] == 0
    assert subject.measure(network, frames(0)) == {"subject_consistency": None}


def test_the_image_net_takes_the_packages_names(monkeypatch, tmp_path):
    torch.manual_seed(0)
    network = subject.EfficientNetLite0().eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008 - 1_281_000  # less the classifier
    with torch.no_grad():
        assert network(torch.rand(1, 3, 224, 224) * 255).shape == (1, 1280)
    theirs = {"_blocks.0._bn1.weight": torch.ones(1), "_conv_stem.weight": torch.ones(2), "_fc.bias": torch.ones(3)}
    assert sorted(subject.named(theirs)) == ["blocks.0.bn1.weight", "conv_stem.weight"]
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"eval\.fetch efficientnet"):
        subject.load()
