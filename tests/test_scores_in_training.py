"""What a run measures of itself: the clips it makes are those that are compared, with as many real ones."""

import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from eval import extractors, in_training
from eval.extractors import Extractor
from tests.test_pipeline import make_pipeline
from vidgen.errors import InputError
from vidgen.media import write_video
from vidgen.validation import check_scoring


@pytest.fixture
def stand_ins(monkeypatch, tmp_path):
    """Features that need no fetched weights: mean colours of frames, and loudness."""
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path / "cache"))
    looked_at = []

    def colours(clip):
        looked_at.append(clip)
        return clip.frames.reshape(-1, 3).mean(0).astype(np.float32)

    def loudness(clip):
        return np.array([np.abs(clip.waveform).mean(), np.square(clip.waveform).mean()], np.float32)

    monkeypatch.setattr(extractors, "i3d", lambda: Extractor("colours", "none", colours))
    monkeypatch.setattr(extractors, "soundnet", lambda: Extractor("loudness", "none", loudness, 24000))
    return looked_at


def test_clips_from_the_prompts_are_held_against_as_many_real_ones(stand_ins, tmp_path):
    real, rng = tmp_path / "real", np.random.default_rng(0)
    for number in range(7):
        frames = np.full((9, 32, 64, 3), 30 * number, np.uint8)
        write_video(real / f"{number}.mp4", frames, 0.1 * rng.standard_normal(9000), Fraction(24), 24000, {})
    prompts = ["a red ball", "a blue cube", "a ball", "a cube", "red"]
    pipeline = make_pipeline()
    scores = in_training.score(pipeline, prompts, real, tmp_path / "made")
    assert scores["clips"] == len(list((tmp_path / "made").glob("*.mp4"))) == 5
    assert len(stand_ins) == 10
    assert {"KVD", "FVD", "SoundNet_KD", "SoundNet_FD"} <= set(scores)
    assert all(math.isfinite(scores[name]) for name in ("KVD", "FVD", "SoundNet_KD", "SoundNet_FD"))
    again = in_training.score(pipeline, prompts, tmp_path / "made", tmp_path / "same")
    assert again["FVD"] < 1e-6 * scores["FVD"]  # the same prompts and seeds make the same clips


def test_what_scoring_lacks_is_told_before_training(stand_ins, monkeypatch, tmp_path):
    real = tmp_path / "real"
    for number in range(2):
        with pytest.raises(InputError, match="clips"):  # none, then one
            in_training.check(["a", "b"], real, 49)
        write_video(real / f"{number}.mp4", np.zeros((9, 32, 64, 3), np.uint8), None, Fraction(24))
    stage = SimpleNamespace(validation=SimpleNamespace(captions=[["a ball", "it rolls"], [" "], []]))
    with pytest.raises(InputError, match="two captions at least, and there is 1"):
        check_scoring(stage, real, 49)
    stage.validation.captions[2] = ["a cube"]
    check_scoring(stage, real, 49)
    with pytest.raises(InputError, match=r"16 frames at least.*have 9"):
        check_scoring(stage, real, 9)
    monkeypatch.undo()
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"python -m eval\.fetch i3d"):
        check_scoring(stage, real, 49)
