import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from vidgen.clip import ClipSpec, Compression
from vidgen.data.folder import ClipFolder
from vidgen.errors import InputError
from vidgen.tabletop import __main__ as command
from vidgen.tabletop.captions import attributes, can_be_held_out, describe, events, sample_look
from vidgen.tabletop.physics import load_trajectories, save_trajectories, simulate, simulate_many
from vidgen.tabletop.scene import COLOURS, Body, Contact, Look, Trajectory, is_held_out
from vidgen.tabletop.source import TabletopClips, touched_latents
from vidgen.tabletop.staging import GRAVITY_M_S2, MIXTURE, VIEW_X_M

SPEC = ClipSpec(num_frames=5, height=32, width=32)


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Trajectory]]:
    counts = {action: 1 if action == "knocks" else 2 for action in MIXTURE}
    return {
        action: [simulate(np.random.default_rng((7, i)), action=action) for i in range(count)]
        for action, count in counts.items()
    }


def trajectory(*bodies: Body, action: str = "drops", direction: str = "", floor: str = "wooden") -> Trajectory:
    poses, count = 50, len(bodies)
    rolling = np.ones((poses, count), np.float32)
    contacts = (Contact(0.5, 0, 1, 3.0), Contact(1.0, 1, -1, 2.0)) if count > 1 else (Contact(0.5, 0, -1, 3.0),)
    return Trajectory(bodies, floor, action, direction, np.zeros((poses, count, 3), np.float32),
                      np.tile(np.float32([1, 0, 0, 0]), (poses, count, 1)), contacts, rolling, 0 * rolling)  # fmt: skip


BALL, CUBE, CYLINDER = Body("ball", "metal", "small"), Body("cube", "glass", "big"), Body("cylinder", "wooden", "big")


def test_a_drop_lands_when_free_fall_says_so():
    for seed in range(8):
        scene = simulate(np.random.default_rng(seed), action="drops", shape="ball")
        heights_m = scene.positions_m[:, 0, 2]
        released_s = (np.flatnonzero(heights_m < heights_m[0])[0] - 1) / 24
        fall_s = math.sqrt(2 * (heights_m[0] - scene.bodies[0].half_size_m) / GRAVITY_M_S2)
        assert scene.contacts[0].time_s == pytest.approx(released_s + fall_s, abs=0.01)
        assert (scene.contacts[0].body, scene.contacts[0].other) == (0, -1)


def test_a_bounce_passes_on_the_momentum_of_the_fall():
    """The impulse is m · v · (1 + e), with e from the height of the rebound."""
    scene = next(
        scene
        for scene in (simulate(np.random.default_rng(seed), action="drops", shape="ball") for seed in range(100))
        if scene.bodies[0].material == "rubber" and len(scene.contacts) > 1
    )
    first, second = scene.contacts[:2]
    half_m = scene.bodies[0].half_size_m
    mass_kg = 60.0 * 4 / 3 * math.pi * half_m**3
    down = math.sqrt(2 * GRAVITY_M_S2 * (scene.positions_m[0, 0, 2] - half_m))
    up = GRAVITY_M_S2 * (second.time_s - first.time_s - 0.008) / 2
    assert first.impulse_ns == pytest.approx(mass_kg * (down + up), rel=0.05)
    assert 0.7 < up / down < 0.9


def test_every_action_happens_in_view(scenes):
    for action, examples in scenes.items():
        for scene in examples:
            first = scene.positions_m[:, 0, 0]
            assert scene.action == action
            assert len(scene.bodies) == MIXTURE[action][1]
            assert scene.positions_m.shape == (50, len(scene.bodies), 3)
            assert np.isfinite(scene.positions_m).all()
            assert np.allclose(np.linalg.norm(scene.rotations, axis=-1), 1, atol=1e-4)
            assert (np.abs(first) <= VIEW_X_M).mean() >= 0.5
            lowest = scene.positions_m[..., 2] - [body.half_size_m for body in scene.bodies]
            assert lowest.min() > -0.02, "no body sinks into the floor"
            if scene.direction:
                assert np.sign(first[0]) == {"left": -1, "right": 1}[scene.direction]
            if action in ("hits", "knocks"):
                assert any((contact.body, contact.other) == (0, 1) for contact in scene.contacts)
            if action == "knocks":
                assert any((contact.body, contact.other) == (1, -1) for contact in scene.contacts)


def test_what_rests_is_silent_and_what_rolls_or_slides_says_so(scenes):
    for scene in scenes["rests"]:
        assert scene.contacts == ()
        assert np.ptp(scene.positions_m, axis=0).max() < 1e-3
        assert not scene.rolling.any()
        assert not scene.sliding.any()
    assert all((scene.rolling > 0).mean() > 0.6 and not scene.sliding.any() for scene in scenes["rolls"])
    for scene in scenes["slides"]:
        sliding = scene.sliding[:, 0]
        last = np.flatnonzero(sliding)[-1]
        assert np.count_nonzero(sliding[:last]) > 0.9 * last, "no gaps in the slide"
        assert sliding[0] > sliding[last]


def test_same_seed_same_scenes_whatever_the_number_of_workers():
    one, two = simulate_many(3, seed=5), simulate_many(3, seed=5, workers=2)
    for a, b in zip(one, two, strict=True):
        assert (a.bodies, a.floor, a.action, a.contacts) == (b.bodies, b.floor, b.action, b.contacts)
        assert np.array_equal(a.positions_m, b.positions_m)


@pytest.mark.parametrize(
    "constraints",
    [{"action": "flies"}, {"shape": "cone"}, {"action": "slides", "shape": "ball"}, {"num_bodies": 4},
     {"action": "drops", "num_bodies": 2}, {"duration_s": 0.2}],
)  # fmt: skip
def test_impossible_scenes_are_refused(constraints):
    with pytest.raises(InputError):
        simulate(np.random.default_rng(0), **constraints)


def test_save_and_load(tmp_path, scenes):
    before = [scene for examples in scenes.values() for scene in examples]
    save_trajectories(tmp_path / "scenes.npz", before)
    after = load_trajectories(tmp_path / "scenes.npz")
    assert len(after) == len(before)
    for a, b in zip(before, after, strict=True):
        assert (a.bodies, a.floor, a.action, a.direction) == (b.bodies, b.floor, b.action, b.direction)
        assert np.allclose(a.positions_m, b.positions_m, atol=1e-3)
        assert np.allclose(a.rotations, b.rotations, atol=1e-3)
        assert np.allclose(a.sliding, b.sliding, atol=2e-3)
        assert [(c.body, c.other) for c in a.contacts] == [(c.body, c.other) for c in b.contacts]
        assert np.allclose([c.time_s for c in a.contacts], [c.time_s for c in b.contacts], atol=1e-6)


def test_files_that_are_no_trajectories(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_trajectories(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    for name in ("text.npz", "other.npz"):
        with pytest.raises(InputError, match="not a file of trajectories"):
            load_trajectories(tmp_path / name)


@pytest.mark.parametrize(
    ("scene", "look", "words"),
    [
        (trajectory(BALL), Look(("red",)), "a small red metal ball drops onto a wooden floor"),
        (
            trajectory(CUBE, action="slides", direction="left", floor="tiled"),
            Look(("blue",), "zooms out"),
            "a big blue glass cube slides in from the left on a tiled floor, the camera zooms out",
        ),
        (
            trajectory(CUBE, action="slides", direction="left", floor="tiled"),
            Look(("blue",), "orbits right", mirrored=True),
            "a big blue glass cube slides in from the right on a tiled floor, the camera orbits left",
        ),
        (
            trajectory(BALL, CUBE, action="hits", direction="right", floor="concrete"),
            Look(("yellow", "red")),
            "a small yellow metal ball rolls in from the right and hits a big red glass cube on a concrete floor",
        ),
        (
            trajectory(BALL, CUBE, CYLINDER, action="knocks", direction="left"),
            Look(("yellow", "red", "cyan")),
            "a small yellow metal ball flies in from the left and knocks a big red glass cube off a big cyan wooden "
            "cylinder on a wooden floor",
        ),
    ],
)
def test_canonical_words(scene, look, words):
    assert describe(scene, look) == words


def test_drawn_words_are_never_false():
    """No word of another colour, material, size, shape, floor, side or camera; the colour always stands."""
    scene = trajectory(CYLINDER, action="rolls", direction="left", floor="tiled")
    look = Look(("orange",), "pans left", mirrored=True)
    allowed = {"orange", "large", "big", "wooden", "wood", "cylinder", "drum", "tiled", "tile", "right", "pans"}
    other = {"red", "green", "blue", "yellow", "purple", "cyan", "white", "small", "little", "tiny", "metal", "steel",
             "metallic", "glass", "rubber", "ball", "sphere", "cube", "box", "block", "concrete", "left", "zooms",
             "orbits", "static", "drops", "slides"}  # fmt: skip
    drawn = {describe(scene, look, np.random.default_rng(seed)) for seed in range(300)}
    seen: set[str] = set()
    for text in drawn:
        words = set(text.lower().replace(",", " ").replace(".", " ").split())
        assert not words & other, text
        assert "orange" in words
        assert "a orange" not in text.lower()
        assert "  " not in text
        seen |= words
    assert len(drawn) > 150
    assert allowed <= seen


def test_looks_respect_what_is_held_out():
    bodies = [Body(shape, material, "big") for shape in ("ball", "cube", "cylinder") for material in ("glass", "metal")]
    rng = np.random.default_rng(0)
    for first in bodies:
        for second in bodies:
            scene = trajectory(first, second, action="hits", direction="left")

            def held(look, scene=scene):
                pairs = zip(look.colours, scene.bodies, strict=True)
                return [is_held_out(colour, body.material, body.shape) for colour, body in pairs]

            for _ in range(10):
                look = sample_look(rng, scene, "train")
                assert not any(held(look))
                assert look.colours[0] != look.colours[1]
                if can_be_held_out(scene):
                    assert any(held(sample_look(rng, scene, "held_out")))
    never = next(
        trajectory(Body("ball", material, "big"))
        for material in ("metal", "rubber")
        if not any(is_held_out(colour, material, "ball") for colour in COLOURS)
    )
    with pytest.raises(InputError, match="held out"):
        sample_look(rng, never, "held_out")
    with pytest.raises(InputError, match="split"):
        sample_look(rng, never, "test")


def test_attributes_and_events_are_what_is_seen():
    scene = trajectory(BALL, CUBE, action="hits", direction="left")
    truth = attributes(scene, Look(("red", "blue"), "pans left", mirrored=True))
    assert (truth["direction"], truth["camera"], truth["count"]) == ("right", "pans right", 2)
    assert truth["bodies"][1] == {"colour": "blue", "material": "glass", "shape": "cube", "size": "big"}
    assert json.loads(json.dumps(truth)) == truth
    assert events(scene, 0.75, 1.0) == [{"time_s": 0.25, "bodies": [1, -1], "impulse_ns": 2.0}]
    assert len(events(scene)) == 2


def test_clips_depend_on_their_key_alone(scenes):
    shown = [scenes["drops"][0], scenes["hits"][0], scenes["rolls"][0]]
    clips = TabletopClips(shown, SPEC, seed=3)
    batch = clips[[(0, 5), (1, 2), (1, 3)]]
    assert batch["video"].shape == (3, 5, 32, 32, 3)
    assert batch["video"].dtype == torch.uint8
    assert batch["audio"].shape == (3, 1, SPEC.num_samples)
    assert batch["audio"].dtype == torch.float32
    assert batch["has_audio"].tolist() == [True] * 3
    alone = clips[(1, 2)]
    assert torch.equal(alone["audio"][0], batch["audio"][1])
    assert (alone["video"][0].int() - batch["video"][1].int()).abs().max() <= 1
    assert alone["captions"] == batch["captions"][1:2]
    assert batch["truth"][1] != batch["truth"][2]
    assert all(0 <= event["time_s"] < SPEC.duration_s for truth in batch["truth"] for event in truth["events"])
    quiet = TabletopClips(shown, SPEC, with_video=False, with_audio=False)[[(0, 0)]]
    assert "video" not in quiet
    assert "audio" not in quiet


def test_touched_latents_are_those_whose_pixels_a_rectangle_reaches():
    spec = ClipSpec(num_frames=6, height=32, width=48, compression=Compression(frames=4, pixels=16))
    rectangles = np.zeros((1, 6, 2, 4))
    rectangles[..., 2:] = -1  # nowhere
    rectangles[0, 0, 0] = (17, 3, 31, 9)
    rectangles[0, 3, 0] = (-5, 15, 3, 17)
    rectangles[0, 5, 1] = (40, 30, 90, 90)
    touched = touched_latents(rectangles, spec)
    assert touched.shape == (1, 3, 2, 3)
    assert np.argwhere(touched[0]).tolist() == [[0, 0, 1], [1, 0, 0], [1, 1, 0], [2, 1, 2]]


def test_clips_that_cannot_be_made(scenes):
    with pytest.raises(InputError, match="longer"):
        TabletopClips(scenes["drops"], replace(SPEC, num_frames=99))
    with pytest.raises(InputError, match="split"):
        TabletopClips(scenes["drops"], SPEC, split="all")
    with pytest.raises(InputError, match="no trajectory"):
        TabletopClips([], SPEC)


def test_command_writes_clips_and_their_truth(tmp_path, monkeypatch):
    arguments = ["tabletop", "--count", "1", "--size", "32", "--frames", "25", "--seed", "4", "--action", "drops"]
    for name in ("a", "b"):
        monkeypatch.setattr("sys.argv", [*arguments, "--output", str(tmp_path / name)])
        command.main()
    truth = json.loads((tmp_path / "a" / "00000.json").read_text())
    assert truth["action"] == "drops"
    assert truth["events"]
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"00000.mp4", "00000.json", "metadata.jsonl"}
    assert (tmp_path / "a.png").is_file()
    folder = ClipFolder(tmp_path / "a", replace(SPEC, num_frames=9))
    assert len(folder.recordings) == 1
    assert truth["caption"] in folder.recordings[0].captions
    assert (tmp_path / "a" / "00000.json").read_bytes() == (tmp_path / "b" / "00000.json").read_bytes()
    for bad in (["--count", "0"], ["--size", "50"], ["--frames", "3"]):
        monkeypatch.setattr("sys.argv", [*arguments, "--output", str(tmp_path / "c"), *bad])
        with pytest.raises(InputError):
            command.main()
    assert not (tmp_path / "c").exists()
