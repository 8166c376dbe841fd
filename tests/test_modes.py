"""The measure of what a model makes of given material, on outputs of which the answer is known."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from eval import modes
from eval.modes import Outcome, judge, summarise, table
from eval.modes_tasks import TASKS, RealClip, given_back_db, middle_frame, psnr_db, sound_kept
from eval.verifier import Seen
from vidgen.clip import ClipSpec
from vidgen.errors import InputError
from vidgen.generation import GenerationConfig

SPEC = ClipSpec(num_frames=25, height=32, width=32)
BODY = {"colour": "red", "material": "metal", "shape": "ball", "size": "small"}


def clip(moments_s: list[float], shade: int = 0, action: str = "drops") -> RealClip:
    """Blows at known moments, in frames and sound that tell them from every other clip's."""
    frames = np.full((25, 32, 32, 3), shade, np.uint8)
    waveform = np.random.default_rng(shade).uniform(-0.5, 0.5, SPEC.num_samples).astype(np.float32)
    truth = {"bodies": [BODY], "action": action, "events": [{"time_s": moment} for moment in moments_s]}
    return RealClip(frames, waveform, "a ball drops", truth, [[moment] for moment in moments_s])


def seen(moments_s: list[float], action: str = "drops") -> Seen:
    return Seen([], 1, "wooden", "static", action, "", np.array(moments_s, float))


def test_sound_made_for_a_picture_is_held_against_every_blow_to_be_heard():
    asked = clip([0.2, 0.5, 0.8])
    heard_s = np.array([0.21, 0.53, 0.95])
    row = judge(TASKS["foley"], asked, Outcome(asked.frames, asked.waveform, None, heard_s, "metal"), SPEC)
    assert row["offset_ms"] == pytest.approx([10, 30, 150])
    assert row["heard"] == [1, 1, 0]
    assert row["sounds_true"] == [1, 1, 0]
    assert row["material_right"] == [1]
    assert "action_right" not in row
    assert "seen" not in row
    mute = judge(TASKS["foley"], asked, Outcome(asked.frames, asked.waveform, None, np.zeros(0), "wooden"), SPEC)
    assert mute["offset_ms"] == pytest.approx([1000 * SPEC.duration_s] * 3), "silence is no way out"
    assert mute["heard"] == [0, 0, 0]
    assert mute["sounds_true"] == []
    assert mute["material_right"] == [0]


def test_a_picture_made_for_a_sound_is_held_against_every_blow_that_is_heard():
    asked = clip([0.2, 0.5, 0.55, 0.9])  # the second and third are one to the eye
    near, far = 0.2 + 1.4 / 24, 0.9 + 1.6 / 24
    row = judge(TASKS["sound-to-video"], asked, Outcome(asked.frames, asked.waveform, seen([near, 0.54, far])), SPEC)
    assert row["seen"] == [1, 1, 0]
    assert row["impacts_true"] == [1, 1, 0]
    assert row["action_right"] == [1]
    assert row["sound_kept"] == [1]
    still = judge(TASKS["sound-to-video"], asked, Outcome(asked.frames, asked.waveform, seen([], "rests")), SPEC)
    assert still["seen"] == [0, 0, 0], "a picture in which nothing strikes counts"
    assert still["action_right"] == [0]


@pytest.mark.parametrize("name", TASKS)
def test_what_was_given_is_compared_and_nothing_else(name):
    """What is not given may be anything; one level of error in what is given is seen."""
    real = clip([0.2], shade=90)
    given = TASKS[name].given(real, SPEC)
    given.check(SPEC)
    pixels = np.zeros(real.frames.shape[:3], bool)
    middle = middle_frame(SPEC)
    where = {
        "foley": np.s_[:], "first-frame": np.s_[:1], "first-and-last": np.s_[[0, 24]], "keyframe": np.s_[[middle]],
        "extend": np.s_[:middle], "lead-up": np.s_[middle:], "mask": np.s_[:, :, 16:],
    }  # fmt: skip
    if name in where:
        pixels[where[name]] = True
    elif name == "replace":
        pixels[:] = True
        pixels[5:17] = False  # 0.347 to 0.694 s: frames 8 to 16, with latent frames 2 to 4
    made = np.where(pixels[..., None], real.frames, 255 - real.frames)
    figures = given_back_db(given, real.frames, made, SPEC)
    assert bool(figures) == (name != "sound-to-video")
    assert all(values[0] > 70 for values in figures.values())
    worse = np.where(pixels[..., None], real.frames + 10, real.frames)
    expected = pytest.approx(20 * np.log10(255 / 10), abs=0.1)
    assert all(values == [expected] for values in given_back_db(given, real.frames, worse, SPEC).values())

    if given.waveform is None:
        assert sound_kept(given, real.waveform, SPEC) == {}
        return
    known = given.samples_mask(SPEC)
    other = np.where(known, real.waveform, 0)
    assert sound_kept(given, other, SPEC) == {"sound_kept": [1]}
    other[np.flatnonzero(known)[-1]] += 1e-6
    assert sound_kept(given, other, SPEC) == {"sound_kept": [0]}


def test_figures_are_over_blows_and_intervals_over_clips():
    rows = [{"offset_ms": [10.0, 20.0, 30.0], "heard": [1.0]}, {"offset_ms": [100.0]}, {"offset_ms": []}]
    summary = summarise(rows, {"other_clip": [{"offset_ms": [200.0]}, {}]})
    assert summary["offset_ms"]["value"] == 25
    assert summary["offset_ms"]["n"] == 4
    assert summary["offset_ms"]["other_clip"] == 200
    assert (summary["offset_ms"]["low"], summary["offset_ms"]["high"]) == (20, 100)
    assert summary["heard"]["n"] == 1
    assert summary["heard"]["other_clip"] is None
    assert "25.00" in table({"foley": summary})


@pytest.fixture
def world(monkeypatch):
    """A model that makes of a clip's material what the material says: a shade in the picture, noise in the sound."""
    clips = [clip([0.2], 10, "drops"), clip([0.4], 20, "rolls"), clip([0.6], 30, "hits")]
    by_shade = {real.frames[0, 0, 0, 0]: real for real in clips}
    calls = []

    def look_at(task, outcome, _verifier, _pipeline):
        source = by_shade[outcome.frames[0, 0, 0, 0]]
        made_seen = seen([group[0] for group in source.blows_s], source.truth["action"])
        return Outcome(outcome.frames, outcome.waveform, made_seen if task.asks_of_picture else None)

    def pipeline(_prompt, given, generator):
        calls.append(given)
        source = by_shade[given.keyframes[0][0, 0, 0]]
        return SimpleNamespace(frames=source.frames[None], audio=source.waveform[None])

    monkeypatch.setattr(modes, "look_at", look_at)
    monkeypatch.setattr(modes, "coded", lambda real, _pipeline: Outcome(real.frames, real.waveform))
    pipeline.generation = SimpleNamespace(spec=lambda: SPEC, sample_rate_hz=24000)
    return clips, pipeline, calls


def test_a_model_that_follows_its_material_fails_with_another_clips(world):
    clips, pipeline, calls = world
    done = []
    made, summary = modes.measure(pipeline, TASKS["first-frame"], clips, 0, None, done.append)
    assert [outcome.frames[0, 0, 0, 0] for outcome in made] == [10, 20, 30]
    assert summary["action_right"]["value"] == 1
    assert summary["action_right"]["other_material"] == 0
    assert summary["action_right"]["other_clip"] == 0
    assert summary["action_right"]["autoencoders"] == 1
    assert summary["first_frame_db"]["value"] > 70 > 35 > summary["first_frame_db"]["other_material"]
    assert len(calls) == len(done) == 6


def test_a_run_goes_on_and_refuses_what_is_not_its_own(tmp_path):
    header = {"model_version": "x", "real": "a.npz", "clips": 2, "seed": 0}
    path = tmp_path / "modes.json"
    assert modes._known(path, header) == {}
    path.write_text(json.dumps(header | {"tasks": {"foley": {}}}))
    assert modes._known(path, header) == {"foley": {}}
    with pytest.raises(InputError, match="another model"):
        modes._known(path, header | {"seed": 1})
    path.write_text("[]")
    with pytest.raises(InputError, match="damaged"):
        modes._known(path, header)


@pytest.mark.parametrize("changed", ["transformer/diffusion_pytorch_model.safetensors", "generation_config.json"])
def test_a_kept_table_is_not_taken_for_another_models_of_the_same_version(world, tmp_path, monkeypatch, changed):
    clips, pipeline, calls = world
    monkeypatch.setattr(modes.Verifier, "load", lambda: None)
    monkeypatch.setattr("vidgen.pipeline.VidGenPipeline.from_pretrained", lambda _, quality: pipeline)
    monkeypatch.setattr(modes, "real_clips", lambda *_: clips)
    monkeypatch.setattr(modes, "save", lambda *_: None)
    model = tmp_path / "model"
    weights = model / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"one")
    GenerationConfig(model_version="x").save(model)
    words = ["--model", model, "--real", "a", "--output", tmp_path / "out", "--limit", "3", "--tasks", "first-frame"]
    monkeypatch.setattr("sys.argv", ["modes", *map(str, words)])
    modes.main()
    modes.main()
    assert len(calls) == 6, "the second run takes what the first one kept"
    if changed.startswith("transformer"):
        weights.write_bytes(b"two")
    else:
        GenerationConfig(model_version="x", guidance_scale=9.0).save(model)
    with pytest.raises(InputError, match="another model"):
        modes.main()


def test_psnr_of_a_known_error():
    assert psnr_db(np.full((4, 4, 3), 10), np.full((4, 4, 3), 20)) == pytest.approx(20 * np.log10(25.5))
