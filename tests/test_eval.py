"""The tabletop measurement: projection, tracks, impacts, verdicts, summaries, and the shipped instrument."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from eval.controls import moved_sounds, shuffled_prompts
from eval.networks import CELLS, CLOSE_UP, CROP, LOOKS, MAPS, PICTURE, SMALL, CameraReader
from eval.tabletop import Observation, compare, observe, summarise, table
from eval.tracks import link, track_features
from eval.train_verifier import body_loss, map_loss
from eval.verifier import WEIGHTS, Seen, Verifier, as_pictures, impact_times_s
from eval.verifier_data import JITTER, TOLD, make_pairs, make_tracks, projected, visible_impacts_s, worn
from vidgen.clip import ClipSpec
from vidgen.errors import InputError
from vidgen.tabletop.captions import attributes
from vidgen.tabletop.render import render
from vidgen.tabletop.scene import CAMERAS, COLOURS, Body, Contact, Look, Trajectory
from vidgen.tabletop.source import TabletopClips

POSES = 50


def scene(x=(-0.6, 0.6), z=(0.33, 0.33), shape="ball", contacts=(), action="drops", direction="") -> Trajectory:
    """One big metal body that moves evenly along a line."""
    along = np.linspace(0, 1, POSES)[:, None]
    ends = np.array([[x[0], 0.1, z[0]], [x[1], 0.1, z[1]]])
    positions = ends[0] * (1 - along) + ends[1] * along
    rotations = np.tile(np.float32([1, 0, 0, 0]), (POSES, 1, 1))
    still = np.zeros((POSES, 1), np.float32)
    return Trajectory(
        (Body(shape, "metal", "big"),), "concrete", action, direction, positions[:, None].astype(np.float32), rotations,
        tuple(contacts), still, still,
    )  # fmt: skip


def bounced(trajectory: Trajectory, at_s: float, speed_m_s: float = 1.5) -> Trajectory:
    """The scene with all bodies coming down until a moment, and going up after it."""
    positions = trajectory.positions_m.copy()
    positions[..., 2] += speed_m_s * np.abs(np.arange(len(positions)) / 24 - at_s)[:, None].astype(np.float32)
    return replace(trajectory, positions_m=positions)


def finding(x: float, y: float, colour: int, score: float = 0.9):
    odds = np.full(len(COLOURS), -5.0)
    odds[colour] = -0.01
    even = {"shape": np.log(np.full(3, 1 / 3)), "material": np.log(np.full(4, 0.25))}
    return np.array([x, y]), score, {"colour": odds, "extent": np.array([12.0]), "upright": np.array([0.5])} | even


@pytest.mark.parametrize("camera", CAMERAS)
@pytest.mark.parametrize("mirrored", [False, True])
def test_bodies_are_where_the_renderer_draws_them(camera, mirrored):
    trajectory = scene(z=(0.5, 1.0))
    look = Look(("red",), camera, mirrored, seed=3)
    frames = render([trajectory], [look], num_frames=2, height=PICTURE, width=PICTURE, frame_rate=1).numpy()[0]
    places, half_sizes, _ = projected(trajectory, look, np.array([0.0, 1.0]))
    for frame, (x, y), half in zip(frames.astype(int), places[:, 0], half_sizes[:, 0], strict=True):
        red = frame[..., 0] - frame[..., 1:].max(-1) > 50
        rows, columns = np.nonzero(red)
        assert abs(np.median(columns) + 0.5 - x) < 2.5
        assert abs(np.median(rows) + 0.5 - y) < 3.5
        assert np.ptp(columns) / 2 == pytest.approx(half, abs=3)


def test_only_strong_impacts_in_the_picture_are_to_be_seen():
    mass_kg = 120 * 4 / 3 * np.pi * 0.33**3
    contacts = [Contact(at_s, 0, -1, speed * mass_kg) for at_s, speed in ((0.2, 1.0), (0.5, 0.1), (1.9, 3.0))]
    trajectory = scene(x=(0, 4.0), contacts=contacts)
    assert visible_impacts_s(bounced(trajectory, 0.2), Look(("red",))) == [0.2]
    assert visible_impacts_s(bounced(trajectory, 0.5), Look(("red",))) == []  # at 0.2 s it goes on as it came
    assert visible_impacts_s(bounced(trajectory, 1.9), Look(("red",))) == []  # out of the picture


def test_tracks_keep_bodies_apart_where_they_cross():
    found = [[finding(10 + 4 * t, 60, 0), finding(110 - 4 * t, 64, 2)] for t in range(25)]
    found[12] = found[12][:1]  # one hides the other
    found[5] = [*found[5], finding(64, 10, 4, 0.35)]  # a passing illusion
    tracks = link(found)
    assert len(tracks) == 2
    for track, (colour, step) in zip(sorted(tracks, key=lambda t: t.places[0][0]), ((0, 4), (2, -4)), strict=True):
        assert int(track.likelihoods("colour").argmax()) == colour
        assert np.allclose(np.diff([p[0] for p in track.places]) / np.diff(track.frames), step)


def test_a_body_that_leaves_and_returns_is_one_track():
    found = [[finding(60, 60, 1)] if t < 8 or t > 20 else [] for t in range(30)]
    assert len(link(found)) == 1
    assert link([[] for _ in range(30)]) == []


def test_track_features_interpolate_what_was_not_found():
    features = track_features(
        [0, 2], np.array([[0.0, 64.0], [128.0, 64.0]]), np.full(2, 16.0), np.eye(3)[[0, 0]], np.zeros(2), 4
    )
    assert features[0].tolist() == [1, 0, 1, 0]
    assert np.allclose(features[1], [-1, 0, 1, 1])
    assert np.allclose(features[3], [0, 10, 10, 0])


@pytest.mark.parametrize("moment", [7.0, 7.3, 7.49, 0.0])
def test_impacts_are_placed_between_frames(moment):
    logits = 3 - (np.arange(20) - moment) ** 2
    assert impact_times_s(logits, 24.0) == pytest.approx([moment / 24], abs=1e-6)
    assert len(impact_times_s(logits - 10, 24.0)) == 0


def test_losses_are_least_at_the_truth():
    bodies = torch.zeros(1, 3, len(TOLD))
    bodies[0, 0] = torch.tensor([44.0, 52.0, 16.0, 1.0, 3, 2, 1])
    maps = {name: torch.zeros(1, size, CELLS, CELLS) for name, size in MAPS.items()} | {"floor": torch.zeros(1, 3)}
    guess = map_loss(maps, bodies, torch.tensor([1]))
    maps["heat"] -= 8
    maps["heat"][0, 0, 6, 5] = 8
    maps["floor"][:, 1] = 12
    centres = torch.arange(CELLS) * 8 + 4
    maps["place"][:, 0], maps["place"][:, 1] = (44 - centres) / 8, ((52 - centres) / 8)[:, None]
    right = map_loss(maps, bodies, torch.tensor([1]))
    assert right < 0.05 < guess
    assert map_loss(maps, bodies, torch.tensor([0])) > right + 1
    assert torch.isfinite(map_loss(maps, torch.zeros(1, 3, len(TOLD)), torch.tensor([1])))

    said = {name: torch.zeros(1, size) for name, size in CLOSE_UP.items()}
    told = torch.tensor([[2.0, -1.0, 16.0, 1.0, 3, 2, 1]])
    guess = body_loss(said, told)
    said |= {"shift": torch.tensor([[0.125, -0.0625]]), "upright": torch.tensor([[12.0]])}
    said |= {name: 12 * torch.eye(said[name].shape[1])[[word]] for name, word in zip(LOOKS, (3, 2, 1), strict=True)}
    assert body_loss(said, told) < 0.01 < guess


@pytest.mark.parametrize(("x", "y"), [(0, 0), (2, 0), (-3, 1), (0, -2)])
def test_blocks_find_their_displacement(x, y):
    generator = torch.Generator().manual_seed(0)
    large = torch.rand(1, 3, SMALL + 16, SMALL + 16, generator=generator)
    large = torch.nn.functional.avg_pool2d(large, 3, 1, 1)
    pair = torch.stack([large[..., 8:-8, 8:-8], large[..., 8 - y : 8 - y + SMALL, 8 - x : 8 - x + SMALL]], 1)
    fits = CameraReader.fits(pair)
    across, down = CameraReader.REACH
    assert torch.allclose(fits.sum(1), torch.ones(1, 8, 8))
    assert (fits[0, :, 1:-1, 1:-1].argmax(0) == (y + down) * (2 * across + 1) + x + across).all()


def test_training_pictures_and_their_truth_agree():
    trajectories = [scene(x=(-0.4, 0.2), z=(0.6, 0.9)), scene(shape="cube")]
    pairs = make_pairs(trajectories, 6, seed=0)
    assert pairs["pictures"].shape == (6, 2, SMALL, SMALL, 3)
    assert pairs["pieces"].shape == (12, CROP + 2 * JITTER, CROP + 2 * JITTER, 3)
    assert (np.abs(pairs["told"][:, :2]) <= 0.5).all()
    for piece, picture, (x, y) in zip(
        pairs["pieces"],
        pairs["pictures"].reshape(12, SMALL, SMALL, 3),
        pairs["bodies"][..., 0, :2].reshape(12, 2),
        strict=True,
    ):
        middle = piece[25:31, 25:31].mean((0, 1))
        column, row = int(x / 2), int(y / 2)
        assert np.abs(picture[row - 1 : row + 2, column - 1 : column + 2].mean((0, 1)) - middle).max() < 25


def test_training_tracks_carry_the_truth():
    mass_kg = 120 * 4 / 3 * np.pi * 0.33**3
    trajectory = scene(contacts=[Contact(1.0, 0, -1, mass_kg)], action="rolls", direction="left")
    tracks = make_tracks([bounced(trajectory, 1.0)], 6, 49, seed=0)
    rows = torch.arange(6)
    struck = tracks["impacts"][rows, tracks["main"]]
    assert (struck.argmax(1) == 24).all()
    assert (tracks["impacts"].sum(1) == struck).all()  # nobody else is struck
    assert (tracks["weights"] == 1).all()
    features = tracks["features"][rows, tracks["main"]]
    assert (tracks["size"][rows, tracks["main"]] == 1).all()
    assert ((tracks["size"] >= 0).sum(1) == 1).all()
    rightward = features[:, 1, 40] > features[:, 1, 5]
    assert torch.equal(rightward, tracks["direction"] == 0)  # what comes from the left moves to the right


def test_wear_keeps_pictures_pictures():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.rand(4, 3, PICTURE, PICTURE, generator=generator)
    for _ in range(8):
        out = worn(pictures, generator)
        assert out.shape == pictures.shape
        assert 0 <= out.min() <= out.max() <= 1


def test_pictures_are_taken_at_24_a_second_from_the_central_square():
    frames = np.zeros((10, 64, 100, 3), np.uint8)
    frames[:, :, 18:82] = np.arange(10, dtype=np.uint8)[:, None, None, None] * 20
    pictures = as_pictures(frames, 48.0)
    assert pictures.shape == (5, 3, PICTURE, PICTURE)
    assert torch.allclose(pictures.mean((1, 2, 3)) * 255, torch.tensor([0.0, 40, 80, 120, 160]), atol=0.5)
    assert as_pictures(frames, 12.0).shape[0] == 20


def test_untrained_instrument_survives_anything_and_its_files_come_back(tmp_path):
    torch.manual_seed(0)
    verifier = Verifier(locator=8, body=8, motion=8, camera=8).eval()
    verifier.save(tmp_path)
    again = Verifier.load(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (15, 40, 60, 3), dtype=np.uint8)
    for frames in (noise, np.zeros((1, 128, 128, 3), np.uint8)):
        verifier.locator.maps.bias.data[0] = again.locator.maps.bias.data[0] = 0.0  # it sees ghosts everywhere
        one, other = verifier.half().float().read(frames, 24.0), again.read(frames, 24.0)
        assert (one.bodies, one.action, one.camera) == (other.bodies, other.action, other.camera)
    with pytest.raises(ValueError, match="uint8"):
        verifier.read(noise.astype(np.float32), 24.0)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="damaged"):
        Verifier.load(tmp_path)
    with pytest.raises(InputError, match="missing"):
        Verifier.load(tmp_path / "nowhere")


ASKED = {
    "bodies": [
        {"colour": "red", "material": "metal", "shape": "ball", "size": "big"},
        {"colour": "blue", "material": "glass", "shape": "cube", "size": "small"},
    ],
    "count": 2, "action": "hits", "direction": "left", "floor": "tiled", "camera": "static", "held_out": False,
}  # fmt: skip


def observation(**changes) -> Observation:
    seen = Seen([dict(body) for body in ASKED["bodies"]], 2, "tiled", "static", "hits", "left", np.array([0.5, 1.2]))
    return Observation(replace(seen, **changes), np.array([0.53, 1.6]), 0.4, 2.0)


def test_verdicts():
    verdict = compare(observation(), ASKED)
    unasked = ("silence", "material_heard")  # at rest only, and of one body only
    assert all(verdict["right"][name] for name in verdict["right"] if name not in unasked)
    assert all(verdict["right"][name] is None for name in unasked)
    alone = ASKED | {"bodies": ASKED["bodies"][:1], "count": 1}
    assert compare(replace(observation(), material_heard="metal"), alone)["right"]["material_heard"] is True
    assert compare(replace(observation(), material_heard="glass"), alone)["right"]["material_heard"] is False
    assert compare(replace(observation(), material_heard=None), alone)["right"]["material_heard"] is False
    assert verdict["sync"] == {
        "impacts_s": [0.5, 1.2], "onsets_s": [0.53, 1.6], "first_offset_s": 0.03, "offset_s": 0.03,
        "missing": 1, "surplus": 1,
    }  # fmt: skip
    json.dumps(verdict)

    bodies = [dict(ASKED["bodies"][0], colour="cyan"), ASKED["bodies"][1]]
    wrong = compare(observation(bodies=bodies, action="slides", direction="right", impacts_s=np.array([0.9])), ASKED)
    assert [name for name, right in wrong["right"].items() if right is False] == [
        "colour", "bodies", "action", "direction", "sync",
    ]  # fmt: skip
    nothing = compare(observation(bodies=[], count=0, action=None, direction="", impacts_s=np.zeros(0)), ASKED)
    assert nothing["right"]["colour"] is False
    assert nothing["right"]["impact"] is False
    assert nothing["right"]["sync"] is None
    # A false impact before the first does not matter to the whole; sounds that are late by a quarter second do.
    struck = observation(impacts_s=np.array([0.2, 0.5, 1.2]))
    fits = [compare(replace(struck, heard_s=np.array([0.53, 1.22]) + late_s), ASKED) for late_s in (0, 0.25)]
    assert [told["right"]["sync"] for told in fits] == [True, False]
    assert [told["sync"]["offset_s"] for told in fits] == pytest.approx([0.025, 0.275])
    assert compare(observation(is_struck=False), ASKED)["right"]["sync"] is None
    vague = compare(observation(), {"bodies": [{"colour": "red"}], "action": "rests"})
    assert (vague["right"]["colour"], vague["right"]["shape"], vague["right"]["floor"]) == (True, None, None)
    assert vague["right"]["silence"] is False


def test_summary_has_shares_with_intervals_and_controls_fall_apart():
    rng = np.random.default_rng(0)
    asked, observed = [], []
    for index in range(200):
        colour = COLOURS[rng.integers(len(COLOURS))]
        wanted = ASKED | {"bodies": [dict(ASKED["bodies"][0], colour=colour), ASKED["bodies"][1]]}
        shown = colour if index % 4 else ("red" if colour != "red" else "blue")
        asked.append(wanted)
        moment = rng.uniform(0.2, 1.8)
        clip = observation(bodies=[dict(ASKED["bodies"][0], colour=shown), ASKED["bodies"][1]],
                           impacts_s=np.array([moment]))  # fmt: skip
        observed.append(replace(clip, heard_s=np.array([moment + 0.02])))
    summary = summarise([compare(o, a) for o, a in zip(observed, asked, strict=True)])
    row = summary["attributes"]["colour"]
    assert row["share"] == 0.75
    assert row["n"] == 200
    # The half width of the normal approximation is 1.96 sqrt(0.75 · 0.25 / 200) = 0.060.
    assert row["high"] - row["low"] == pytest.approx(0.12, abs=0.02)
    assert summary["offsets"]["median_s"] == pytest.approx(0.02, abs=1e-3)
    shuffled, moved = summarise(shuffled_prompts(observed, asked)), summarise(moved_sounds(observed, asked))
    assert shuffled["attributes"]["colour"]["share"] < 0.3
    assert summary["attributes"]["sync"]["share"] == 1
    assert moved["attributes"]["sync"]["share"] < 0.2
    assert "colour" in table(summary, shuffled, moved)
    assert summarise([])["attributes"] == {}


@pytest.fixture(scope="module")
def instrument() -> Verifier:
    return Verifier.load(WEIGHTS)


def test_shipped_instrument_sees_what_is_there(instrument):
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) < 2e6
    falling = scene(x=(0.1, 0.1), z=(1.6, 0.33))
    fall = falling.positions_m.copy()
    time_s = np.arange(POSES) / 24
    fall[:, 0, 2] = np.maximum(0.33, 1.7 - 9.81 / 2 * time_s**2)
    impact_s = float(np.sqrt(2 * (1.7 - 0.33) / 9.81))
    falling = replace(falling, positions_m=fall, contacts=(Contact(impact_s, 0, -1, 50.0),))
    clips = TabletopClips([falling], ClipSpec(), "any", seed=1, compiled=False)
    batch = clips[(0, 0)]
    frames, waveform = batch["video"][0].numpy(), batch["audio"][0, 0].numpy()
    verdict = compare(observe(instrument, frames, waveform, 24.0, 24000), batch["truth"][0])
    right = verdict["right"]
    assert right["colour"]
    assert right["shape"]
    assert right["action"]
    assert right["count"]
    assert right["sync"]
    assert verdict["sync"]["impacts_s"][0] == pytest.approx(impact_s, abs=0.05)
    other = dict(batch["truth"][0], bodies=[{"colour": "nothing", "shape": "cube"}], action="rolls")
    assert not any(compare(observe(instrument, frames, waveform, 24.0, 24000), other)["right"][name]
                   for name in ("colour", "shape", "action"))  # fmt: skip


def test_attributes_of_a_scene_are_what_is_compared():
    truth = attributes(scene(action="rolls", direction="left"), Look(("red",), "pans left", True))
    seen = Seen(truth["bodies"], 1, "concrete", "pans right", "rolls", "right", np.zeros(0))
    assert compare(Observation(seen, np.zeros(0), 0.0, 2.0), truth)["right"]["camera"]
    assert compare(Observation(seen, np.zeros(0), 0.0, 2.0), truth)["right"]["direction"]
