"""What is scored: prompts, the clips that models make of them or that are there, what is measured and judged."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from eval import contenders, generate, judge, measure, models, results
from eval import run as eval_run
from eval.generate import Asked, Made
from eval.measure import Measure, Measured
from eval.tabletop import Observation
from eval.verifier import Seen
from tests.scoring import FPS, RATE_HZ, FakeModel, call, click, model_folder, moving, prompt_file
from tests.test_eval import ASKED
from vidgen.errors import InputError
from vidgen.files import labels
from vidgen.generation import GenerationConfig
from vidgen.media import read_clip, write_video
from vidgen.published import PublishedModel

pytestmark = pytest.mark.usefixtures("own_cache")


# --- what is asked for and made -------------------------------------------------------------------------------------


def test_prompts_come_from_a_file(tmp_path):
    path = prompt_file(tmp_path / "prompts.json", "a red ball")
    assert generate.load_prompts(path)[0].seed == 7
    for text in ("[]", "{", '[{"prompt": "x"}]'):
        path.write_text(text)
        with pytest.raises(InputError):
            generate.load_prompts(path)
    with pytest.raises(InputError, match="no such file"):
        generate.load_prompts(tmp_path / "none.json")


def test_samples_of_a_prompt_have_seeds_of_their_own():
    asked = generate.sampled([Asked("a", 1), Asked("b", 2)], 3)
    assert [entry.prompt for entry in asked] == list("aaabbb")
    assert len({entry.seed for entry in asked}) == 6
    assert generate.sampled([Asked("a", 1)], 1) == [Asked("a", 1)]


def test_bad_arguments_end_in_one_line(monkeypatch, tmp_path):
    model = tmp_path / "m"
    for arguments in (
        [], ["--model", model, "--limit", "0"], ["--model", model, "--samples", "0"],
        ["--model", model, "--real", "x.npz"], ["--model", model, "--suite", tmp_path / "none"],
        ["--model", model_folder(model), "--part", "3/2"], ["--suite", tmp_path / "m"],
        ["--model", model, "--reference", "a", "--reference-scenes", "b"],
    ):  # fmt: skip
        with pytest.raises(InputError):
            call(monkeypatch, eval_run, "--output", tmp_path / "out", *arguments)


def test_clips_of_another_model_or_prompt_are_not_scored(tmp_path, fake):
    model, other = model_folder(tmp_path / "a"), model_folder(tmp_path / "b", "two")
    asked = [Asked("a red ball", 1)]
    made, facts = generate.generate(model, asked, tmp_path / "clips")
    assert made[0].path.is_file()
    assert facts["version"] == "one"
    assert facts["sampler"]["num_inference_steps"] == GenerationConfig().num_inference_steps
    fake.clear()
    generate.generate(model, asked, tmp_path / "clips")
    assert not fake  # nothing is missing, so no model is loaded
    for wrong in ((other, asked), (model, [Asked("a red ball", 2)]), (model, [Asked("a blue ball", 1)])):
        with pytest.raises(InputError, match="another model or for another prompt"):
            generate.generate(*wrong, tmp_path / "clips")


def test_a_clip_that_fails_takes_no_other_along_and_is_tried_again(tmp_path, fake, monkeypatch):
    model = model_folder(tmp_path / "a")
    asked = [Asked("a ball", 1), Asked("an impossible ball", 2), Asked("a cube", 3)]
    made, _ = generate.generate(model, asked, tmp_path / "clips")
    assert [clip.failure for clip in made] == [None, "RuntimeError: out of memory", None]
    monkeypatch.setattr(models, "load_pipeline", lambda *_: lambda prompts, generator: FakeModel()(["x"], generator))
    made, _ = generate.generate(model, asked, tmp_path / "clips")
    assert [clip.failure for clip in made] == [None, None, None]
    assert not list((tmp_path / "clips").glob("*.failed"))


def test_parts_are_disjoint_and_complete(tmp_path, fake):
    model = model_folder(tmp_path / "a")
    asked = [Asked(f"ball {index}", index) for index in range(5)]
    generate.generate(model, asked, tmp_path / "clips", part=(1, 2), batch=1)
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["0001.mp4", "0003.mp4"]
    made, _ = generate.generate(model, asked, tmp_path / "clips", part=(0, 1))
    assert not any(clip.failure for clip in made)
    assert contenders.part("2/4") == (1, 4)


def test_a_batch_broken_off_is_computed_whole(tmp_path, monkeypatch):
    """Rounding depends on a batch's size: what is made later is what would have been made at once."""
    batches = []

    def model(prompts, generator):
        batches.append(prompts)
        return FakeModel()(prompts, generator)

    monkeypatch.setattr(models, "load_pipeline", lambda *_: model)
    folder, asked = model_folder(tmp_path / "a"), [Asked(f"ball {index}", index) for index in range(5)]
    made, _ = generate.generate(folder, asked, tmp_path / "clips", batch=3)
    before = made[0].path.stat().st_mtime_ns
    made[1].path.unlink()
    generate.generate(folder, asked, tmp_path / "clips", batch=3)
    assert batches == [["ball 0", "ball 1", "ball 2"], ["ball 3", "ball 4"], ["ball 0", "ball 1", "ball 2"]]
    assert made[1].path.is_file()
    assert made[0].path.stat().st_mtime_ns == before


def test_several_processes_measure_the_same(tmp_path):
    paths = [write_video(tmp_path / f"{k}.mp4", moving(k), click(), FPS, RATE_HZ) for k in range(3)]
    alone = measure.measure_files(paths, [measure.quality_measure()])
    together = measure.measure_files(paths, [replace(measure.quality_measure(), version="anew")], workers=2)
    assert [found.values for found in together] == [found.values for found in alone]


def test_captions_of_a_folder_come_from_what_is_there(tmp_path):
    for name, tags in (("a", {}), ("b", {"prompt": "tagged", "seed": "12"}), ("c", {"prompt": "not this"}), ("d", {})):
        write_video(tmp_path / f"{name}.mp4", moving(), None, FPS, metadata=tags)
    (tmp_path / "c.txt").write_text("beside it\n")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "d.mp4", "text": ["listed", "or so"]}) + "\n")
    (tmp_path / "e.mp4").write_bytes(b"no video")
    clips = generate.folder_clips(tmp_path)
    assert [clip.asked.prompt for clip in clips] == ["", "tagged", "beside it", "listed", ""]
    assert clips[1].asked.seed == 12
    assert "cannot be read" in clips[4].failure
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not a folder with clips"):
        generate.folder_clips(tmp_path / "empty")


class Published:
    """Stands in for a pipeline of diffusers."""

    def __call__(self, prompt, num_frames=18, frame_rate=24.0, generator=None, output_type="np"):
        frames = moving(generator.initial_seed(), num_frames).astype(np.float32) / 255
        return SimpleNamespace(frames=frames[None])


def test_a_published_pipeline_makes_clips_by_its_own_defaults(tmp_path, monkeypatch):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model_index.json").write_text('{"_class_name": "TheirPipeline"}')
    monkeypatch.setattr(models, "load_pipeline", lambda *_: PublishedModel(Published()))
    asked = [Asked("a", 1), Asked("b", 3)]
    made, facts = generate.generate(tmp_path / "theirs", asked, tmp_path / "clips")
    assert [clip.failure for clip in made] == [None, None]
    clip = read_clip(made[1].path)
    assert np.abs(clip.frames.astype(int) - moving(3)).mean() < 6
    assert (clip.frame_rate, clip.waveform) == (24, None)
    assert facts["version"] == "TheirPipeline"
    assert facts["sampler"]["defaults_of"].startswith("TheirPipeline of diffusers ")
    with pytest.raises(InputError, match="no such model folder"):
        generate.generate(tmp_path / "none", asked, tmp_path / "clips")


def test_clips_of_another_program_are_found_by_their_captions(tmp_path):
    for name, caption in (("x", "a RED  ball"), ("y", "a red ball"), ("z", "a dog")):
        write_video(tmp_path / "theirs" / f"{name}.mp4", moving(), None, FPS, metadata={"prompt": caption})
    asked = generate.sampled([Asked("a red ball", 1), Asked("a blue ball", 2)], 2)
    made = generate.matched(tmp_path / "theirs", asked)
    assert [clip.path.name for clip in made[:2]] == ["x.mp4", "y.mp4"]
    assert [clip.failure for clip in made] == [None, None, "no clip has this caption", "no clip has this caption"]
    with pytest.raises(InputError, match="has one of the suite's prompts"):
        generate.matched(tmp_path / "theirs", [Asked("a cat", 1)])


def test_models_of_the_same_name_are_told_apart(tmp_path):
    assert labels([tmp_path / "weights"]) == ["weights"]
    assert labels([tmp_path / "dit/model", tmp_path / "student/model"]) == ["dit-model", "student-model"]
    assert len(set(labels([tmp_path / "x/a", tmp_path / "y/a", tmp_path / "y/x/a"]))) == 3


# --- measuring ------------------------------------------------------------------------------------------------------


def counting(name: str, calls: list, value=1.0, version: str = "1") -> Measure:
    return Measure(name, version, lambda path, clip: calls.append(name) or value)


def test_a_measure_added_later_reads_nothing_again(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4", moving(), click(), FPS, RATE_HZ)
    calls: list = []
    first = counting("first", calls, {"x": 1.5, "none": None})
    assert measure.measure_files([path], [first])[0].values == {"first": {"x": 1.5, "none": None}}
    both = [first, counting("second", calls, {"y": 2})]
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / "b.mp4"
    copy.write_bytes(path.read_bytes())
    assert measure.measure_files([copy], both)[0].values == {"first": {"x": 1.5, "none": None}, "second": {"y": 2}}
    assert calls == ["first", "second"]
    with monkeypatch.context() as patch:
        patch.setattr(measure, "read_clip", None)  # would fail if anything were read
        measure.measure_files([path], both)
    measure.measure_files([path], [counting("first", calls, version="2")])
    assert calls == ["first", "second", "first"]


def test_no_number_without_grounds(tmp_path):
    """A value that is not finite, a file that is none and one that is missing are failures with their reasons."""
    path = write_video(tmp_path / "a.mp4", moving(), click(), FPS, RATE_HZ)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    bad = [counting("fine", []), counting("not", [], {"x": float("nan")}), counting("inf", [], [np.float32("inf")])]
    found = measure.measure_files([path, tmp_path / "b.mp4", tmp_path / "c.mp4"], bad)
    assert found[0].values == {"fine": 1.0}
    assert {name: "finite" in why for name, why in found[0].failures.items()} == {"not": True, "inf": True}
    assert "cannot be read" in found[1].failures["file"]
    assert found[2].failures == {"file": "not there"}
    assert found[2].sha256 is None


@pytest.mark.parametrize(
    ("frames", "sound", "absent"),
    [
        (moving(), np.zeros(18000, np.float32), {"loudness_lufs", "true_peak_dbtp", "bandwidth_hz"}),
        (moving(), None, {"loudness_lufs", "silence", "onset_sync", "duration_mismatch_s"}),
        (moving(num_frames=1), None, {"motion_sides_per_s", "temporal_flickering", "onset_sync", "repeated_frames"}),
    ],
    ids=["silent", "no sound", "one frame"],
)
def test_poor_clips_lack_figures_and_are_counted_out(tmp_path, frames, sound, absent):
    path = write_video(tmp_path / "a.mp4", frames, sound, FPS, RATE_HZ)
    made = [Made(Asked("a", 0), path)]
    rows = results.clip_rows(made, measure.measure_files([path], [measure.quality_measure()]), None, tmp_path)
    model = results.model_results("m", {}, rows)
    for name in absent:
        assert rows[0]["values"][f"quality.{name}"] is None
        assert f"quality.{name}" not in model["estimates"]
    assert model["counts"] == {"expected": 1, "made": 1, "scored": 1, "failed": 0}
    assert model["estimates"]["quality.sharpness"]["n"] == 1
    assert model["estimates"]["quality.sharpness"]["low"] is None  # one prompt has no spread


def test_observations_come_back_from_the_cache_as_they_were():
    bodies = [{"colour": "red", "shape": "ball"}]
    seen = Seen(bodies, 1, "tiled", "static", "drops", "", np.array([0.5]))
    before = Observation(seen, np.array([0.5, 1.25]), 0.4, 2.0)
    after = measure.observation(json.loads(json.dumps(measure._plain(before))))
    assert judge.compare(after, ASKED) == judge.compare(before, ASKED)
    assert isinstance(after.seen.impacts_s, np.ndarray)
    nothing = measure.observation(json.loads(json.dumps(measure._plain(judge.NOTHING))))
    assert nothing.heard_s.shape == (0,)


def test_a_failed_clip_stays_in_the_denominator():
    made = [Made(Asked("a", 0, ASKED), Path("a.mp4")), Made(Asked("b", 1, ASKED | {"action": "rests"}), Path("b.mp4"))]
    rights = [score["right"] for score in judge.verdicts(made, [Measured(), Measured()])]
    of_one_body = ("silence", "material_heard")  # ASKED has two
    assert all(rights[0][name] is False for name in rights[0] if name not in of_one_body)
    assert rights[1]["silence"] is False  # nothing was heard, but there was nothing to hear
    table = judge.confusion([ASKED], judge.verdicts(made[:1], [Measured()]))
    assert table["colour"]["counts"][table["colour"]["words"].index("red")][-1] == 1


def test_impacts_and_sounds_are_counted_on_clips_that_are_there():
    seen = Seen([], 0, "tiled", "static", None, "", np.array([0.5, 1.0]))
    kept = json.loads(json.dumps(measure._plain(Observation(seen, np.array([0.5, 1.5, 1.8]), 0.4, 2.0))))
    made = [Made(Asked("a", 0, ASKED), Path("a.mp4")), Made(Asked("b", 1, ASKED), Path("b.mp4"))]
    measured = [Measured(values={"tabletop": kept}), Measured()]
    judged = judge.judgement(made, measured, judge.verdicts(made, measured))
    assert (judged["summary"]["missing"], judged["summary"]["surplus"]) == (1, 2)
    assert judged["summary"]["attributes"]["impact"]["share"] == 0.5


def test_confusion_counts_what_was_taken_for_what():
    seen = [{"bodies": [{"colour": colour}], "action": action} for colour, action in (("blue", "hits"), ("red", None))]
    tables = judge.confusion([ASKED, ASKED], [{"seen": one, "right": {"material_heard": None}} for one in seen])
    words, counts = tables["colour"]["words"], tables["colour"]["counts"]
    assert counts[words.index("red")][words.index("blue")] == counts[words.index("red")][words.index("red")] == 1
    assert sum(map(sum, counts)) == 2
    assert tables["action"]["counts"][tables["action"]["words"].index("hits")][-1] == 1
