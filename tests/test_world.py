"""Truth about the tabletop world: impacts and their offset, controls, material by sound, lists of prompts, physics."""

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from eval import accuracy, films, judge, prompt_lists, subject
from eval import measure as eval_measure
from eval.controls import follow
from eval.generate import Asked, Made, load_prompts, sampled
from eval.impacts import (
    SHIFTS_S,
    Tally,
    audible_groups,
    grouped,
    onset_levels,
    pattern_offset_s,
    shifted,
    tally,
    visible_groups,
)
from eval.networks import PICTURE, TRACK_FEATURES, ImpactReader
from eval.physical import HORIZON_PX, figures, measure, shuffled, spliced
from eval.physical import table as physical_table
from eval.sound import FEATURES, SoundReader, features, fit
from eval.sound import WEIGHTS as SOUND_WEIGHTS
from eval.tabletop import Observation, observe, summarise, table
from eval.train_sound import confusion, hear, worn
from eval.train_verifier import impact_loss
from eval.verifier import WEIGHTS, Found, Seen, Verifier, weights_sha256
from eval.verifier_data import blows, make_tracks
from tests.test_eval import ASKED, bounced, finding, scene
from tests.test_onsets import bouncing
from vidgen.errors import InputError
from vidgen.tabletop.captions import SYNONYMS
from vidgen.tabletop.render import camera_path, render
from vidgen.tabletop.scene import COLOURS, FLOORS, MATERIALS, Body, Contact, Look, is_held_out
from vidgen.tabletop.sound import synthesise

RATE_HZ = 24000
MASS_KG = 120 * 4 / 3 * np.pi * 0.33**3
"""Of ``scene``'s big metal ball."""


# --- impacts --------------------------------------------------------------------------------------------------------


def test_blows_in_quick_succession_are_one_event():
    assert grouped([0.5, 0.1, 0.14, 0.18], 0.05) == [[0.1, 0.14, 0.18], [0.5]]
    assert grouped([], 0.05) == []
    told = tally([[0.1, 0.14], [0.5], [0.9]], [0.1, 0.14, 0.5, 0.7, 0.9], np.array([0.145, 0.52, 0.7, 1.5]), 0.01)
    assert (told.asked, told.found, told.told, told.true) == (3, 1, 4, 2)  # 0.145 and 0.7 are true
    assert told.errors_s == pytest.approx((0.005, 0.02, 0.2))
    assert (told + Tally(1, 1, 1, 1, (0.0,))).found == 2
    nothing = tally([[0.1]], [0.1], np.zeros(0), 0.01)
    assert (nothing.asked, nothing.found, nothing.told, nothing.errors_s) == (1, 0, 0, ())


def test_impacts_to_be_seen_change_a_speed_and_lie_in_the_picture():
    contacts = [
        Contact(at_s, 0, -1, speed * MASS_KG) for at_s, speed in ((0.2, 1.0), (0.25, 0.9), (0.6, 0.1), (1.2, 3.0))
    ]
    trajectory = bounced(scene(x=(0, 0.2), contacts=contacts), 0.2)
    assert blows(trajectory, contacts[0])[0] == pytest.approx(1 / 0.6, rel=1e-3)
    assert visible_groups(trajectory, Look(("red",)), 0.0, 2.0) == [[0.2, 0.25]]
    assert visible_groups(trajectory, Look(("red",)), 0.1, 2.0) == [[pytest.approx(0.1), pytest.approx(0.15)]]
    assert visible_groups(trajectory, Look(("red",)), 0.0, 0.15) == []
    # The picture has to show how the body came and how it goes on: a step from frame to frame on either side.
    assert visible_groups(trajectory, Look(("red",)), 0.22, 2.0) == []
    assert visible_groups(trajectory, Look(("red",)), 0.0, 0.25 + 1 / 24) == [[0.2, 0.25]]
    assert visible_groups(trajectory, Look(("red",)), 0.0, 0.2 + 1 / 24) == []


def test_a_blow_outside_the_picture_is_not_asked_for_because_of_a_faint_one_inside():
    light, heavy = Body("ball", "metal", "small"), Body("ball", "metal", "big")
    positions = np.zeros((50, 2, 3), np.float32)
    positions[:, :, 2] = 0.3 + 1.5 * np.abs(np.arange(50) / 24 - 1)[:, None]
    positions[:, 0, 0], positions[:, 1, 0] = 3.0, 0.3  # the light one is out of view
    one = scene()
    small_kg = 120 * 4 / 3 * np.pi * 0.21**3
    trajectory = replace(
        one, bodies=(light, heavy), positions_m=positions, rotations=np.repeat(one.rotations, 2, 1),
        contacts=(Contact(1.0, 0, 1, 0.3 * small_kg),),
    )  # fmt: skip
    look = Look(("red", "blue"))
    strengths = blows(trajectory, trajectory.contacts[0])
    assert strengths[0] >= 1 > strengths[1]
    assert visible_groups(trajectory, look, 0.0, 2.0) == []
    positions[:, 0, 0] = -0.3
    assert visible_groups(trajectory, look, 0.0, 2.0) == [[1.0]]


def test_impacts_to_be_heard_are_louder_than_what_rings():
    blow, faint = 20.0, 1e-5
    contacts = [Contact(at_s, 0, -1, ns) for at_s, ns in ((0.3, blow), (0.33, blow), (0.45, faint), (1.0, blow))]
    trajectory = scene(contacts=contacts)
    assert audible_groups(trajectory, 0.0, 2.0, seed=1) == [[0.3, 0.33], [1.0]]
    alone = scene(contacts=contacts[2:3])  # in silence the faint one is heard
    assert audible_groups(alone, 0.0, 2.0, seed=1) == [[0.45]]
    assert audible_groups(alone, 0.4499, 1.0, seed=1) == []  # within the first 10 ms
    assert audible_groups(scene(), 0.0, 2.0, seed=1) == []


@pytest.mark.parametrize("shift_s", [-0.16, -0.04, 0.0, 0.08, 0.16])
def test_the_offset_of_a_pattern_is_found_past_the_next_impact(shift_s):
    seen = np.array([0.4, 0.75, 0.93, 1.02])
    heard = seen + shift_s
    assert pattern_offset_s(seen, heard) == pytest.approx(shift_s, abs=1e-9)
    assert pattern_offset_s(seen, np.append(heard[:3], [1.7])) == pytest.approx(shift_s, abs=1e-9)


def test_of_two_offsets_the_louder_sound_decides():
    heard = np.array([0.5, 0.62])
    assert pattern_offset_s(np.array([0.55]), heard, np.array([0.01, 0.5])) == pytest.approx(0.07)
    assert pattern_offset_s(np.array([0.55]), heard, np.array([0.5, 0.01])) == pytest.approx(-0.05)
    assert pattern_offset_s(np.zeros(0), heard) is None
    assert pattern_offset_s(np.array([0.5]), np.zeros(0)) is None
    assert pattern_offset_s(np.array([0.5]), np.array([1.6])) is None  # out of reach


def test_a_moved_sound_is_moved_by_so_many_samples():
    sound = np.arange(1.0, 6.0)
    np.testing.assert_array_equal(shifted(sound, 2), [0, 0, 1, 2, 3])
    np.testing.assert_array_equal(shifted(sound, -2), [3, 4, 5, 0, 0])
    np.testing.assert_array_equal(shifted(np.stack([sound, sound]), 0), [sound, sound])
    assert not shifted(sound, 7).any()
    steps = np.repeat([0.0, 0.5, 0.1], 1000)
    np.testing.assert_allclose(onset_levels(steps, RATE_HZ, np.array([1000, 2000]) / RATE_HZ), [0.5, 0.1])


class Eyes:
    """Stands in for the instrument: sees what it is told."""

    sound = None

    def __init__(self, impacts_s):
        self.seen = Seen([], 1, "tiled", "static", "drops", "", np.array(impacts_s))

    def read(self, frames, frame_rate):
        return self.seen


def test_the_offset_follows_a_sound_that_is_moved():
    trajectory = bouncing("wooden", "concrete")
    sound = synthesise(trajectory, num_samples=2 * RATE_HZ)
    frames = np.zeros((48, 8, 8, 3), np.uint8)
    seen_s = [contact.time_s for contact in trajectory.contacts if contact.time_s < 2]
    observed = [observe(Eyes(seen_s), frames, sound, 24.0, RATE_HZ)]
    np.testing.assert_allclose(observed[0].shifted_s, [0, *SHIFTS_S], atol=0.005)
    late = observe(Eyes(seen_s), frames, shifted(sound, 1200), 24.0, RATE_HZ)
    np.testing.assert_allclose(late.shifted_s[0], 0.05, atol=0.005)
    follows = follow([*observed, late])
    assert follows["slope"] == pytest.approx(1, abs=0.03)
    assert (follows["clips"], follows["within_20_ms"]) == (2, 1)

    deaf = replace(observed[0], shifted_s=[0.01] * (1 + len(SHIFTS_S)))
    assert follow([deaf])["slope"] == 0
    assert follow([deaf])["low"] is None
    halved = replace(deaf, shifted_s=[0.0, *(shift / 2 for shift in SHIFTS_S[:-1]), None])
    assert (follow([halved])["slope"], follow([halved])["lost"]) == (pytest.approx(0.5), 1)
    assert follow([replace(deaf, shifted_s=[])]) is None


def test_a_pattern_that_fits_twice_is_counted_and_does_not_bend_the_slope():
    shifts = np.array(SHIFTS_S)
    seen = Eyes([0.5]).seen

    def clips(*offsets):
        return [Observation(seen, np.zeros(1), 0.5, 2.0, np.zeros(1), None, [0.0, *row]) for row in offsets]

    assert follow(clips(1.1 * shifts, 1.1 * shifts))["slope"] == pytest.approx(1.1)
    jumps = np.where(np.arange(6) == 5, -0.7, shifts)
    found = follow(clips(shifts, shifts, jumps))
    assert found["slope"] == pytest.approx(1)
    assert found["within_20_ms"] == pytest.approx(17 / 18)
    assert (found["low"], found["high"]) == (None, None), "an interval without width would say that all follow"
    spread = follow(clips(0.9 * shifts, 1.1 * shifts))
    assert (spread["low"], spread["high"]) == (pytest.approx(0.9), pytest.approx(1.1))
    assert follow(clips(0 * shifts, shifts / 2, 0 * shifts))["slope"] == pytest.approx(0)  # nothing follows
    lost = follow(clips([*shifts[:-1], None]))
    assert (lost["slope"], lost["lost"], lost["low"]) == (pytest.approx(1), 1, None)


def test_silence_one_frame_and_broken_sound():
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    for sound in (None, np.zeros(0), np.zeros(RATE_HZ), np.zeros((2, RATE_HZ))):
        quiet = observe(Eyes([0.5]), frames, sound, 24.0, RATE_HZ)
        assert (len(quiet.heard_s), quiet.peak, quiet.material_heard) == (0, 0.0, None)
        assert follow([quiet]) is None
    with pytest.raises(InputError, match="finite"):
        observe(Eyes([0.5]), frames, np.full(RATE_HZ, np.nan), 24.0, RATE_HZ)


def test_the_impact_network_reads_each_body_by_itself_and_sees_its_neighbour():
    torch.manual_seed(0)
    network = ImpactReader(8)
    tracks = torch.zeros(2, 3, TRACK_FEATURES, 20)
    tracks[:, 0] = torch.rand(TRACK_FEATURES, 20)
    tracks[1, 2] = torch.rand(TRACK_FEATURES, 20)
    logits = network(tracks)
    assert logits.shape == (2, 3, 20)
    assert (logits[0, 1:] == -30).all()
    assert (logits[1, 1] == -30).all()
    assert not torch.equal(logits[0, 0], logits[1, 0])  # the other body matters
    given = network.inputs(tracks)
    way = tracks[1, 2, 1:3] - tracks[1, 0, 1:3]
    torch.testing.assert_close(given[1, 0, -3:-1], way)
    torch.testing.assert_close(given[1, 2, -3:-1], -way)
    assert not given[0, :, -3:].any()
    straight = torch.zeros(1, 1, TRACK_FEATURES, 9)
    straight[0, 0, 3] = torch.tensor([2.0] * 5 + [-2.0] * 4)  # turns between frames 4 and 5
    assert network.inputs(straight)[0, 0, TRACK_FEATURES].nonzero().flatten().tolist() == [4]

    contacts = (Contact(1.0, 0, -1, MASS_KG), Contact(1.5, 0, -1, 0.3 * MASS_KG))
    truth = make_tracks([bounced(scene(contacts=contacts), 1.0)], 4, 49, seed=0)
    rows = torch.arange(4)
    assert (truth["impacts"][rows, truth["main"]][:, 24] == 1).all()
    assert (truth["weights"][rows, truth["main"]][:, 36] == 0).all()  # too weak to be asked for, and not wrong
    right = torch.where(truth["impacts"] > 0.5, 8.0, -8.0)
    right[..., 36] = 8.0
    assert impact_loss(right, truth) < impact_loss(torch.zeros_like(right), truth)


# --- material by sound ----------------------------------------------------------------------------------------------


def test_features_do_not_depend_on_loudness_channels_or_rate():
    sound = synthesise(bouncing("wooden", "tiled"), num_samples=2 * RATE_HZ).astype(np.float64)
    row = features(sound, RATE_HZ)
    assert row.shape == (FEATURES,)
    np.testing.assert_allclose(features(0.3 * sound, RATE_HZ), row, atol=1e-6)
    np.testing.assert_allclose(features(np.stack([sound, sound]), RATE_HZ), row)
    assert features(np.zeros(RATE_HZ), RATE_HZ) is None
    assert features(sound[:1000], RATE_HZ) is None
    with pytest.raises(InputError, match="finite"):
        features(np.full(RATE_HZ, np.inf), RATE_HZ)
    with pytest.raises(InputError, match="16000"):
        features(sound, 8000)
    time_s = np.arange(44100) / 44100
    tone = 0.5 * np.sin(2 * np.pi * 1000 * time_s)
    spectrum = features(tone, 44100)[:36]
    assert abs(np.geomspace(50, 11000, 37)[spectrum.argmax()] - 1000) < 160


def test_how_fast_a_sound_fades_is_measured():
    time_s = np.arange(RATE_HZ) / RATE_HZ
    sounds = [np.where(time_s < 0.3, 0, 0.5 * np.sin(2 * np.pi * 1000 * time_s) * 10 ** (-3 * (time_s - 0.3) / t60_s))
              for t60_s in (0.2, 0.8)]  # fmt: skip
    short, long = (features(sound, RATE_HZ)[72:].reshape(3, 12) for sound in sounds)
    band = 6  # 744 to 1165 Hz
    # 60 dB per T60: between 0.03 and 0.07 s after the blow 12 dB and 3 dB.
    assert short[0, band] - short[1, band] == pytest.approx(12, abs=1.5)
    assert long[0, band] - long[1, band] == pytest.approx(3, abs=0.75)


def test_ridge_regression_tells_what_differs(tmp_path):
    rng = np.random.default_rng(0)
    materials = rng.integers(0, 4, 400)
    rows = rng.standard_normal((400, FEATURES)) + 4 * np.eye(FEATURES)[materials]
    reader = fit(rows[:300], materials[:300])
    told = confusion(reader, rows[300:], materials[300:])
    assert told.sum() == 100
    assert np.trace(told) >= 95
    # The penalised normal equations: what ridge regression means.
    x = (rows[:300] - reader.mean) / reader.scale
    wanted = np.eye(4)[materials[:300]] - reader.bias
    np.testing.assert_allclose(x.T @ (wanted - x @ reader.weights), 3.0 * reader.weights, atol=1e-6)
    reader.save(tmp_path / "sound.safetensors")
    again = SoundReader.load(tmp_path / "sound.safetensors")
    np.testing.assert_allclose(again.weights, reader.weights, atol=1e-6)
    (tmp_path / "sound.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="damaged"):
        SoundReader.load(tmp_path / "sound.safetensors")
    with pytest.raises(InputError, match=r"eval\.train_sound"):
        SoundReader.load(tmp_path / "none.safetensors")


def test_the_shipped_ear_tells_materials_and_hears_none_in_silence():
    reader, rng = SoundReader.load(SOUND_WEIGHTS), np.random.default_rng(5)
    right = 0
    for index, material in enumerate(MATERIALS * 6):
        shape = ("ball", "cube", "cylinder")[index // 4 % 3]
        sound = synthesise(bouncing(material, FLOORS[index % 3], shape), num_samples=2 * RATE_HZ, seed=100 + index)
        right += reader.material(worn(sound, rng) if index % 2 else sound, RATE_HZ) == material
    assert right >= 23
    assert reader.material(np.zeros(RATE_HZ), RATE_HZ) is None
    assert reader.material(None, RATE_HZ) is None


def test_only_scenes_of_one_body_that_sound_are_learnt_from():
    pair = replace(scene(), bodies=scene().bodies * 2)
    rows, materials = hear([bouncing("glass", "tiled"), scene(action="rests"), pair], 0, faults=True)
    assert rows.shape == (2, FEATURES)
    assert materials.tolist() == [MATERIALS.index("glass")] * 2
    assert not np.array_equal(rows[0], rows[1])


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


# --- the instrument's own accuracy, and the likeness of frames ------------------------------------------------------


def test_accuracy_is_measured_on_clips_and_goes_with_the_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path / "cache"))
    contact = Contact(0.5, 0, -1, 2 * MASS_KG)
    falling = scene(x=(0.1, 0.1))
    heights = np.maximum(0.33, 0.33 + 9.81 / 2 * 0.25 - 9.81 / 2 * (np.arange(50) / 24) ** 2)
    falling.positions_m[:, 0, 2] = heights
    scenes = [replace(falling, contacts=(contact,)), scene(x=(0.2, 0.2), action="rests")]
    found = accuracy.measure(WEIGHTS, scenes, 3, tmp_path / "films")
    assert found["attributes"]["colour"] == {"share": 1.0, "low": 1.0, "high": 1.0, "n": 2, "chance": 1 / 8}
    assert found["attributes"]["material_heard"]["n"] == 1
    for side, within_s in (("seen", 1 / 24), ("heard", 0.005)):
        row = found["impacts"][side]
        assert (row["asked"], row["found"]) == (1, 1)
        assert row["told"] * row["true"] == pytest.approx(1)  # of what was told one is the blow
        assert row["median_s"] <= row["tolerance_s"] == pytest.approx(within_s)
    assert found["follows"]["n"] == 6
    with monkeypatch.context() as patch:  # broken off and started again, it films and reads nothing twice
        patch.setattr(films, "write_video", None)
        patch.setattr(eval_measure, "read_clip", None)
        assert accuracy.measure(WEIGHTS, scenes, 3, tmp_path / "films") == found

    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert accuracy.stored(tmp_path) is None
    row = {"clips": 2, "seed": 3, "weights_sha256": weights_sha256(tmp_path)} | found
    (tmp_path / accuracy.FILE).write_text(json.dumps(row))
    assert accuracy.stored(tmp_path)["seed"] == 3
    assert any("impacts heard: 100.0 % of 1 found within 5.0 ms" in line for line in accuracy.lines(row))
    (tmp_path / "sound.safetensors").write_bytes(b"other")
    assert accuracy.stored(tmp_path) is None
    (tmp_path / accuracy.FILE).write_text("{")
    with pytest.raises(InputError, match="damaged"):
        accuracy.stored(tmp_path)


def test_accuracy_stands_beside_the_score():
    score = {"right": dict.fromkeys(("colour", "sync"), True), "sync": {"first_offset_s": 0.01, "offset_s": 0.02,
             "missing": 0, "surplus": 0}}  # fmt: skip
    score["right"] = dict.fromkeys(judge.CHANCE) | score["right"]
    summary = summarise([score, score])
    own = {"clips": 500, "attributes": {"colour": {"share": 0.985}},
           "impacts": {"seen": {"found": 0.97}, "heard": {"found": 0.98}}}  # fmt: skip
    follows = {"slope": 0.98, "low": 0.9, "high": 1.0, "within_20_ms": 0.9, "n": 12}
    text = table(summary, summary, summary, follows, own)
    colour = next(line for line in text.splitlines() if line.startswith("colour"))
    assert "98.5 %" in colour
    assert "unknown" in next(line for line in text.splitlines() if line.startswith("sync"))
    assert "slope 0.98 (0.90 to 1.00)" in text
    assert "500 generator clips finds 97.0 %" in text
    assert "unknown" in table(summary, summary, summary)


def test_shipped_accuracy_belongs_to_the_shipped_weights():
    found = accuracy.stored()
    assert found is not None, "measure it: python -m eval.accuracy"
    assert found["clips"] >= 48
    assert {"colour", "shape", "material", "material_heard", "size", "floor", "camera", "action"} <= set(
        found["attributes"]
    )


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
