"""What the tabletop instrument learns from: films and their tracks, places of bodies; and that a clip is seen once."""

from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from eval import films, measure, physical, train_verifier
from eval.films import film, read_tracks, struck
from eval.networks import MAX_BODIES, TRACK_FEATURES, WIDE, ImpactReader, PlaceReader
from eval.tracks import Track
from eval.train_verifier import batches, impact_losses, place_loss, place_losses
from eval.verifier import WEIGHTS, Verifier
from eval.verifier_data import JITTER, SHOTS, make_wide, projected
from tests.test_eval import scene
from vidgen.errors import InputError
from vidgen.media import Clip, read_clip
from vidgen.tabletop.archive import save_trajectories
from vidgen.tabletop.captions import sample_look
from vidgen.tabletop.render import render
from vidgen.tabletop.scene import Contact, Look

MASS_KG = 120 * 4 / 3 * np.pi * 0.33**3


def bouncing(bounce_s: float = 1.0):
    """A big metal ball that falls 1 m and bounces at a known moment."""
    time_s = np.arange(50) / 24 - bounce_s
    heights = np.where(time_s < 0, 0.33 - 4.0 * time_s, 0.33 + 2.5 * time_s)
    trajectory = scene(x=(0.1, 0.1), contacts=(Contact(bounce_s, 0, -1, 6.5 * MASS_KG),))
    trajectory.positions_m[:, 0, 2] = np.minimum(heights, 1.4)
    return trajectory


def test_films_are_made_once_and_tell_the_truth(tmp_path, monkeypatch):
    scenes = [bouncing(), scene(shape="cube")]
    made = film(scenes, 2, tmp_path, 4)
    assert [one.path.name for one in made] == ["real-0000.mp4", "real-0001.mp4"]
    made.sort(key=lambda one: -len(one.truth["events"]))
    assert made[0].look == sample_look(np.random.default_rng((4, 0, 0)), scenes[0], "any")
    assert [event["time_s"] for event in made[0].truth["events"]] == [1.0]
    assert read_clip(made[1].path).frames.shape == (49, 128, 128, 3)
    content = made[0].path.read_bytes()
    made[1].path.unlink()
    written = []
    write = films.write_video
    monkeypatch.setattr(films, "write_video", lambda path, *rest: written.append(path.name) or write(path, *rest))
    film(scenes, 2, tmp_path, 4)
    assert written == [made[1].path.name]
    assert made[0].path.read_bytes() == content
    with pytest.raises(InputError, match="other scenes"):
        film(scenes, 2, tmp_path, 5)

    tracks = read_tracks(Verifier.load(), made)
    assert tracks["features"].shape == (2, MAX_BODIES, TRACK_FEATURES, 49)
    assert tracks["impacts"][0].amax(0).argmax() == 24
    assert tracks["impacts"][0, 1:].sum() == 0
    assert tracks["impacts"][1].sum() == 0
    height = tracks["features"][0, 0, 2]
    assert height.argmax() in (23, 24, 25)  # the track is lowest in the picture where the blow is


def test_a_blow_goes_to_the_track_that_is_there():
    trajectory, look = bouncing(), Look(("red",))
    filmed = films.Film(trajectory, look, "", {"start_s": 0.5}, Path())
    places = projected(trajectory, look, 0.5 + np.arange(37) / 24)[0][:, 0]
    follows = Track(list(range(37)), list(places), [0.9] * 37, [{}] * 37)
    elsewhere = Track(list(range(37)), list(places + 40), [0.9] * 37, [{}] * 37)
    lost = Track(list(range(5)), list(places[:5]), [0.9] * 5, [{}] * 5)
    impacts, weights = struck(filmed, [elsewhere, follows, lost], 37)
    assert impacts[1].argmax() == 12  # half a second into the clip
    assert impacts[[0, 2]].sum() == 0
    assert (weights == 1).all()
    weak = replace(trajectory, contacts=(Contact(1.0, 0, -1, 0.4 * MASS_KG),))
    impacts, weights = struck(filmed._replace(trajectory=weak), [follows], 37)
    assert impacts.sum() == 0
    assert weights[0, 11:14].sum() == 0 < weights[0, 10]
    assert struck(filmed, [], 37)[0].sum() == 0


def test_wide_pieces_lie_around_the_bodies():
    trajectories = [scene(x=(-0.4, 0.2), z=(0.6, 0.9)), scene(x=(0.3, 0.5))]
    wide = make_wide(trajectories, 4, seed=0)
    side = WIDE // 2 + 2 * JITTER
    assert wide["pieces"].shape == (4 * SHOTS, side, side, 3)
    assert (np.abs(wide["told"][:, :2]) <= 1).all()
    columns, rows = np.meshgrid(np.arange(side) + 0.5 - side / 2, np.arange(side) + 0.5 - side / 2)
    checked = 0
    for piece, (x, y, half) in zip(wide["pieces"].astype(int), wide["told"], strict=True):
        strong = piece.max(-1) - piece.min(-1) > 90
        disc = np.hypot(2 * columns - x, 2 * rows - y) < 0.8 * half
        if strong[disc].mean() > 0.9 and strong.mean() < 0.5:  # a ball of a loud colour fills the disc that is told
            checked += 1
            assert abs(2 * np.median(columns[strong]) - x) < 3
    assert checked >= 8


def test_the_places_loss_is_least_at_the_truth_and_is_learnt():
    told = torch.tensor([[3.0, -2.0, 20.0], [0.0, 0.5, 10.0]])
    right = torch.cat([told[:, :2] / 16, torch.log(told[:, 2:] / 16)], 1)
    assert place_loss(right, told) == 0 < place_loss(right + 0.05, told) < place_loss(right + 0.1, told)

    # A bright square on black: a small network finds its middle to a fraction of what blind guessing misses it by.
    rng = np.random.default_rng(0)
    pieces = np.zeros((64, 48, 48, 3), np.uint8)
    for piece in pieces:
        piece[14:34, 14:34] = rng.integers(120, 255)
    wide = {"pieces": pieces, "told": np.tile(np.float32([0, 0, 20]), (64, 1))}
    torch.manual_seed(0)
    network = PlaceReader(8)
    optimiser = torch.optim.AdamW(network.parameters(), 4e-3)
    losses = []
    for loss in islice(place_losses(network, wide, 32, 0), 40):
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.4 * losses[0]


def test_the_mirror_turns_places_and_steps_only():
    torch.manual_seed(0)
    rows = {"features": torch.rand(4, 1, TRACK_FEATURES, 12), "impacts": torch.zeros(4, 1, 12)}
    rows["weights"] = torch.ones(4, 1, 12)
    given = []

    class Spy(ImpactReader):
        def forward(self, tracks):
            given.append(tracks.clone())
            return super().forward(tracks)

    made = {name: tensor.clone() for name, tensor in rows.items()}
    for _ in islice(impact_losses(Spy(4), made, rows, 8, 0), 2):
        pass
    straight, mirrored = given
    assert straight.min() >= 0
    assert (mirrored[:, :, [1, 3]] <= 0).all()
    assert (mirrored[:, :, [0, 2, *range(4, TRACK_FEATURES)]] >= 0).all()
    assert made["features"].min() >= 0  # what is learnt from stays as it is


@pytest.mark.parametrize("shape", ["ball", "cube"])
def test_the_shipped_instrument_tells_where_bodies_are_to_a_pixel(shape):
    trajectory = scene(x=(-0.5, 0.5), z=(0.6, 0.9), shape=shape)
    turn = np.linspace(0, 2, 50)
    trajectory.rotations[:, 0] = np.stack(
        [np.cos(turn / 2), 0.6 * np.sin(turn / 2), 0.8 * np.sin(turn / 2), 0 * turn], 1
    )
    look = Look(("red",), seed=2)
    shown = render([trajectory], [look], num_frames=12, height=128, width=128, frame_rate=6).numpy()[0]
    places = projected(trajectory, look, np.arange(12) / 6)[0][:, 0]
    verifier = Verifier.load()
    found = verifier.find(shown, 24.0).findings
    errors = np.array([findings[0][0] - place for findings, place in zip(found, places, strict=True)])
    assert np.median(np.abs(errors)) < 1
    assert np.quantile(np.abs(errors), 0.9) < 2


def test_too_few_scenes_are_refused_before_anything_is_made(tmp_path, monkeypatch):
    save_trajectories(tmp_path / "few.npz", [scene()] * 63)
    words = ["--trajectories", tmp_path / "few.npz", "--output", tmp_path / "none", "--only", "impact"]
    monkeypatch.setattr("sys.argv", ["train_verifier", *map(str, words)])
    with pytest.raises(InputError, match="holds 63 scenes; at least 64"):
        train_verifier.main()
    with pytest.raises(InputError, match="31 examples are too few for steps of 32"):
        next(batches(31, 32, 0))
    assert sorted(next(batches(32, 32, 0))) == list(range(32))
    with pytest.raises(InputError, match="no scenes"):
        film([], 2, tmp_path / "films", 0)


@pytest.mark.parametrize("limit", ["0", "-1"])
def test_figures_of_no_clips_are_refused(tmp_path, monkeypatch, limit):
    film([scene()], 1, tmp_path, 0)
    monkeypatch.setattr("sys.argv", ["physical", str(tmp_path), "--limit", limit])
    with pytest.raises(InputError, match="--limit must be at least 1"):
        physical.main()


def test_a_clip_is_looked_at_once_for_all_measures(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path / "cache"))
    calls = []
    find = Verifier.find
    monkeypatch.setattr(Verifier, "find", lambda self, *given: calls.append(1) or find(self, *given))
    sight = measure.Sight(WEIGHTS)
    clips = [Clip(np.full((4, 32, 32, 3), level, np.uint8), None, Fraction(24), 24000) for level in (0, 200)]
    tabletop, physical = measure.tabletop_measure(sight), measure.physical_measure(sight)
    for clip in clips:
        seen = tabletop.compute(tmp_path, clip)
        assert seen.duration_s == pytest.approx(4 / 24)
        assert physical.compute(tmp_path, clip)["sinking"] is None
    assert len(calls) == 2
    plain = measure.tabletop_measure(measure.Sight(WEIGHTS, 1.0))
    assert plain.version != tabletop.version
