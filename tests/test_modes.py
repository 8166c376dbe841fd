"""The measure of what a model makes of given material, on outputs of which the answer is known."""

from types import SimpleNamespace

import numpy as np
import pytest

from eval import modes
from eval.modes import TASKS, RealClip, judge, psnr_db, summarise, table
from eval.tabletop import Observation
from eval.verifier import Seen
from vidgen.clip import ClipSpec

SPEC = ClipSpec(num_frames=25, height=32, width=32)
PIPELINE = SimpleNamespace(generation=SimpleNamespace(spec=lambda: SPEC))
TASK = {task.name: task for task in TASKS}


def clip(moment_s: float, shade: int) -> RealClip:
    """An impact at a moment that frames and sound tell the stand-in below."""
    frames = np.full((25, 32, 32, 3), shade, np.uint8)
    frames[:, 0, 0, 0] = round(100 * moment_s)
    return RealClip(frames, np.full(100, moment_s, np.float32), "a ball drops", {"action": "drops"})


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    def observe(_verifier, frames, waveform, _rate, _sample_rate_hz):
        seen = Seen([], 1, "wooden", "static", "drops" if frames[0, 0, 0, 0] else "rolls", "",
                    np.array([frames[0, 0, 0, 0] / 100]))  # fmt: skip
        return Observation(seen, waveform[:1].astype(float), 0.5, 25 / 24)

    monkeypatch.setattr(modes, "observe", observe)


CLIPS = [clip(moment, 40 * index) for index, moment in enumerate((0.2, 0.4, 0.6, 0.8))]


def test_sound_made_for_a_picture_is_held_against_the_picture_it_was_made_for():
    made = [(np.zeros_like(real.frames), real.waveform + 0.03) for real in CLIPS]
    summary = summarise(judge(TASK["foley"], CLIPS, made, None, PIPELINE))
    assert summary["offset_ms"]["value"] == pytest.approx(30, abs=1)
    assert summary["offset_ms"]["control"] >= 170
    assert summary["in_sync"]["value"] == 1
    assert summary["in_sync"]["control"] == 0
    assert "action_right" not in summary
    late = [(frames, sound + 0.05) for frames, sound in made]  # two frames in all
    assert summarise(judge(TASK["foley"], CLIPS, late, None, PIPELINE))["in_sync"]["value"] == 0


def test_a_picture_made_for_a_sound_is_held_against_the_sound():
    made = [(np.roll(real.frames, 0), np.zeros(100)) for real in CLIPS]
    made[3][0][:, 0, 0, 0] = 0  # an impact at another moment, and another action
    summary = summarise(judge(TASK["sound to video"], CLIPS, made, None, PIPELINE))
    assert summary["in_sync"]["value"] == 0.75
    assert summary["action_right"]["value"] == 0.75
    assert summary["action_right"]["n"] == 4
    assert "0.75" in table({"sound to video": summary})


def test_given_pictures_are_compared_with_the_frames_at_their_place():
    made = []
    for real in CLIPS:
        frames = real.frames.copy()
        frames[-1] += 10
        made.append((frames, real.waveform))
    summary = summarise(judge(TASK["first and last frame"], CLIPS, made, None, PIPELINE))
    assert summary["first_frame_db"]["value"] > 70
    assert summary["last_frame_db"]["value"] == pytest.approx(20 * np.log10(255 / 10), abs=0.1)
    assert summary["last_frame_db"]["control"] < 20
    assert "last_frame_db" not in summarise(judge(TASK["first frame"], CLIPS, made, None, PIPELINE))


def test_psnr_of_a_known_error():
    assert psnr_db(np.full((4, 4, 3), 10), np.full((4, 4, 3), 20)) == pytest.approx(20 * np.log10(25.5))
