"""The measure of drift, on ends of which the change is known."""

from fractions import Fraction

import numpy as np
import pytest

from eval import drift
from eval.drift import ends, measure
from eval.tabletop import Observation
from eval.verifier import Seen, Verifier
from vidgen.errors import InputError
from vidgen.media import Clip, write_video

RATE = Fraction(24)


def clip(colour=(200, 30, 30), half=16, background=120, gain=1.0, blur=1) -> Clip:
    """A square body on a checked floor, with a tone."""
    rows, columns = np.mgrid[:128, :128]
    checks = background + 20 * ((rows // 8 + columns // 8) % 2)
    frame = np.repeat(checks[..., None], 3, axis=2).astype(np.uint8)
    if blur > 1:
        frame = np.repeat(np.repeat(frame.reshape(128 // blur, blur, 128 // blur, blur, 3).mean((1, 3)), blur, 0),
                          blur, 1).astype(np.uint8)  # fmt: skip
    frame[64 - half : 64 + half, 64 - half : 64 + half] = colour
    tone = gain * 0.2 * np.sin(2 * np.pi * 500 * np.arange(24000) / 24000)
    return Clip(np.repeat(frame[None], 24, axis=0), tone.astype(np.float32), RATE, 24000)


@pytest.fixture(scope="module")
def finder():
    """Finds the body by its saturation, so that the measure is tested and not the instrument."""

    class Finder(Verifier):
        def detect(self, pictures, threshold=0.3):
            found = []
            for shown in pictures.numpy():
                rows, columns = np.nonzero(shown.max(0) - shown.min(0) > 0.2)
                reading = {"extent": np.array([np.ptp(rows) / 2 if len(rows) else 0.0])}
                found.append([(np.array([columns.mean(), rows.mean()]), 0.9, reading)] if len(rows) else [])
            return found, 0

    return Finder(4, 4, 4, 4)


@pytest.fixture(autouse=True)
def impacts(monkeypatch):
    """Two impacts are seen in each clip; those are heard that the list says, clip by clip (both where it is empty)."""
    heard: list[list[float]] = []

    def observe(_verifier, frames, *_sound):
        seen = Seen([], 1, "wooden", "static", "drops", "", np.array([0.2, 0.6]))
        return Observation(seen, np.array(heard.pop(0) if heard else [0.2, 0.6]), 0.5, len(frames) / 24)

    monkeypatch.setattr(drift, "observe", observe)
    return heard


@pytest.mark.parametrize(("heard_s", "lost"), [([0.25], 0.5), ([0.3, 0.7], 1.0), ([], 1.0), ([0.1, 0.2, 0.6], 0.0)])
def test_impacts_that_are_no_longer_heard_are_told(finder, impacts, heard_s, lost):
    impacts += [[0.2, 0.6], heard_s]
    assert measure(clip(), clip(), finder)["sync"] == pytest.approx(lost)


def test_nothing_changes_between_equal_ends(finder):
    assert all(change == pytest.approx(0, abs=1e-6) for change in measure(clip(), clip(), finder).values())


@pytest.mark.parametrize(("changed", "name", "share"), [
    ({"colour": (149, 81, 81)}, "object_colour", 0.2),
    ({"half": 24}, "object_size", 0.5),
    ({"gain": 0.5}, "loudness", 0.5),
    ({"background": 171}, "background_colour", 0.19),
    ({"blur": 16}, "sharpness", 0.5),
])  # fmt: skip
def test_each_figure_moves_with_what_it_is_about_and_the_others_do_not(finder, changed, name, share):
    changes = measure(clip(), clip(**changed), finder)
    assert changes[name] >= 0.9 * share
    if name != "sharpness":
        assert changes[name] <= 1.1 * share
    others = {"object_colour", "object_size", "loudness"} - {name}
    assert all(changes[other] < 0.05 for other in others)


def test_what_is_not_there_has_no_figure(finder):
    bare = clip(colour=(120, 120, 120))
    silent = Clip(bare.frames, None, RATE, 24000)
    changes = measure(clip(), silent, finder)
    assert changes["object_colour"] is None
    assert changes["object_size"] is None
    assert changes["loudness"] is None
    assert changes["background_colour"] < 0.05


def test_ends_of_a_file(tmp_path):
    frames = np.repeat(np.arange(72, dtype=np.uint8)[:, None, None, None] * 3, 32 * 32 * 3, 1).reshape(72, 32, 32, 3)
    write_video(tmp_path / "clip.mp4", frames, None, 24)
    first, last = ends(tmp_path / "clip.mp4", 1.0)
    assert len(first.frames) == len(last.frames) == 24
    assert first.frames.mean() == pytest.approx(11.5 * 3, abs=3)
    assert last.frames.mean() == pytest.approx(59.5 * 3, abs=3)
    with pytest.raises(InputError, match="too short"):
        ends(tmp_path / "clip.mp4", 2.0)
