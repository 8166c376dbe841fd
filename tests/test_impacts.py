"""Impacts seen and heard, and their offset; material by sound; how often the instrument itself is right."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from eval import accuracy, films, judge
from eval import measure as eval_measure
from eval.controls import follow
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
from eval.networks import TRACK_FEATURES, ImpactReader
from eval.sound import FEATURES, SoundReader, features, fit
from eval.sound import WEIGHTS as SOUND_WEIGHTS
from eval.tabletop import Observation, observe, summarise, table
from eval.train_sound import confusion, hear, worn
from eval.train_verifier import impact_loss
from eval.verifier import WEIGHTS, Seen, weights_sha256
from eval.verifier_data import blows, make_tracks
from tests.test_eval import bounced, scene
from tests.test_onsets import bouncing
from vidgen.errors import InputError
from vidgen.tabletop.scene import FLOORS, MATERIALS, Body, Contact, Look
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


# --- the instrument's own accuracy ----------------------------------------------------------------------------------


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
    own = {"clips": 500, "attributes": {"colour": {"share": 0.985}}, "missing": 0.12, "surplus": 0.34,
           "impacts": {"seen": {"found": 0.97}, "heard": {"found": 0.98}}}  # fmt: skip
    follows = {"slope": 0.98, "low": 0.9, "high": 1.0, "within_20_ms": 0.9, "n": 12}
    text = table(summary, summary, summary, follows, own)
    colour = next(line for line in text.splitlines() if line.startswith("colour"))
    assert "98.5 %" in colour
    assert "unknown" in next(line for line in text.splitlines() if line.startswith("sync"))
    assert "slope 0.98 (0.90 to 1.00)" in text
    assert "0.00 impacts unheard, 0.00 sounds unseen (true clips: 0.12 and 0.34)" in text
    assert "500 generator clips finds 97.0 %" in text
    assert "unknown" in table(summary, summary, summary)


def test_shipped_accuracy_belongs_to_the_shipped_weights():
    found = accuracy.stored()
    assert found is not None, "measure it: python -m eval.accuracy"
    assert found["clips"] >= 48
    assert {"colour", "shape", "material", "material_heard", "size", "floor", "camera", "action"} <= set(
        found["attributes"]
    )
