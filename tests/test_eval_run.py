"""The command that scores models: making, measuring, judging, results, comparisons and the page."""

import json
import re
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eval import compare, contenders, generate, judge, measure, models, optional, report, results, vbench
from eval import run as eval_run
from eval.generate import Asked, Made
from eval.measure import Measure, Measured
from eval.tabletop import Observation
from eval.verifier import Seen
from tests.test_eval import ASKED, scene
from tests.test_pipeline import make_pipeline
from vidgen.errors import InputError
from vidgen.files import labels
from vidgen.generation import GenerationConfig
from vidgen.media import read_clip, write_video
from vidgen.published import PublishedModel
from vidgen.tabletop.archive import save_trajectories

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
FPS, RATE_HZ = Fraction(24), 24000


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def moving(step: int = 1, num_frames: int = 18, side: int = 48) -> np.ndarray:
    """A smooth pattern that moves so many pixels a frame."""
    x = np.arange(side)
    waves = [120 + 80 * np.sin((x[None] - step * k) / 5) * np.cos(x[:, None] / 7) for k in range(num_frames)]
    return np.repeat(np.stack(waves)[..., None], 3, -1).astype(np.uint8)


def click(num_frames: int = 18) -> np.ndarray:
    sound = np.zeros(round(num_frames / FPS * RATE_HZ), np.float32)
    sound[6000:6400] = 0.5 * np.sin(np.arange(400) / 3)
    return sound


class FakeModel:
    """Stands in for a pipeline: a clip whose speed is the seed's, broken where the prompt says so."""

    def __call__(self, prompts, generator):
        if any("impossible" in prompt for prompt in prompts):
            raise RuntimeError("out of memory")

        class Output:
            frames = np.stack([moving(source.initial_seed() % 3) for source in generator])
            audio = np.stack([click() for _ in generator])
            frame_rate, sample_rate = FPS, RATE_HZ

        return Output


@pytest.fixture
def fake(monkeypatch):
    """Models that are folders with a configuration; returns the calls that loaded one."""
    loaded = []

    def load(model, device):
        loaded.append(model)
        return FakeModel()

    monkeypatch.setattr(models, "load_pipeline", load)
    return loaded


def model_folder(path: Path, version: str = "one") -> Path:
    path.mkdir(parents=True)
    GenerationConfig(model_version=version).save(path)
    return path


def prompt_file(path: Path, *prompts: str) -> Path:
    path.write_text(json.dumps([{"prompt": p, "seed": 7 + i, "attributes": ASKED} for i, p in enumerate(prompts)]))
    return path


def call(monkeypatch, module, *arguments) -> None:
    monkeypatch.setattr("sys.argv", ["program", *map(str, arguments)])
    module.main()


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


# --- results --------------------------------------------------------------------------------------------------------


def test_results_of_one_model_through_the_command(tmp_path, fake, monkeypatch, capsys):
    prompts = prompt_file(tmp_path / "p.json", "a red ball", "an impossible cube", "a blue ball")
    arguments = ["--model", model_folder(tmp_path / "m"), "--prompts", prompts, "--output", tmp_path / "out"]
    call(monkeypatch, eval_run, *arguments, "--samples", "2", "--limit", "2")
    found = results.read(tmp_path / "out" / "results.json")
    model = found["models"][0]
    assert model["counts"] == {"expected": 4, "made": 2, "scored": 2, "failed": 2}
    assert [row["prompt"] for row in model["rows"]] == ["a red ball"] * 2 + ["an impossible cube"] * 2
    assert model["rows"][3]["failures"] == {"file": "RuntimeError: out of memory"}
    # The two that failed are wrong; the quality of what is there is the mean over what is there.
    assert model["estimates"]["tabletop.colour"]["n"] == model["judgement"]["summary"]["attributes"]["colour"]["n"] == 4
    assert model["estimates"]["quality.sharpness"]["n"] == 2
    assert set(found["measures"]) == {"quality", "tabletop", "physical"}
    assert ["python -m eval.fetch efficientnet" in line for line in found["missing"]] == [True]
    assert found["environment"]["versions"]["torch"]
    told = capsys.readouterr().out
    assert "2 of 4 clips scored, 2 failed, the first: RuntimeError: out of memory" in told
    assert "no distances" in told

    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out" / "m").glob("*.mp4"))]
    call(monkeypatch, eval_run, *arguments, "--samples", "2", "--limit", "2")
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "out" / "m").glob("*.mp4"))] == before
    assert results.read(tmp_path / "out" / "results.json")["models"][0]["rows"] == model["rows"]


def test_a_model_that_makes_nothing_is_scored_all_the_same(tmp_path, fake, monkeypatch, capsys):
    prompts = prompt_file(tmp_path / "p.json", "an impossible ball", "an impossible cube")
    write_video(tmp_path / "real" / "a.mp4", moving(), None, FPS)
    torch.jit.script(Colours()).save(tmp_path / "i3d.pt")
    arguments = ["--model", model_folder(tmp_path / "m"), "--prompts", prompts, "--output", tmp_path / "out"]
    monkeypatch.setattr(eval_run, "is_vidgen", lambda _: False)  # has no autoencoders
    call(monkeypatch, eval_run, *arguments, "--reference", tmp_path / "real", "--i3d", tmp_path / "i3d.pt")
    model = results.read(tmp_path / "out" / "results.json")["models"][0]
    assert model["counts"] == {"expected": 2, "made": 0, "scored": 0, "failed": 2}
    assert model["estimates"]["tabletop.colour"]["value"] == 0
    assert not any(name.startswith("quality.") for name in model["estimates"])
    assert any("0 clips are there" in line for line in model["distances"]["missing"])
    assert "0 of 2 clips scored" in capsys.readouterr().out


def test_generator_clips_through_the_command(monkeypatch, tmp_path, capsys):
    rolling, resting = scene(action="rolls", direction="left"), scene(x=(0.2, 0.2), action="rests")
    save_trajectories(tmp_path / "two.npz", [rolling, resting])
    arguments = ["--real", tmp_path / "two.npz", "--output", tmp_path / "out", "--limit", "2"]
    call(monkeypatch, eval_run, *arguments)
    model = results.read(tmp_path / "out" / "results.json")["models"][0]
    assert model["counts"]["scored"] == 2
    assert model["judgement"]["summary"]["attributes"]["colour"]["n"] == 2
    assert {row["asked"]["action"] for row in model["rows"]} == {"rolls", "rests"}
    assert "colour" in capsys.readouterr().out
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out" / "real").iterdir())]
    call(monkeypatch, eval_run, *arguments)
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "out" / "real").iterdir())] == before
    with pytest.raises(InputError, match="other scenes"):
        call(monkeypatch, eval_run, *arguments, "--seed", "1")


@pytest.fixture
def clips(tmp_path):
    """A folder of four clips with captions, of different speeds, and one that is broken."""
    for index in range(4):
        tags = {"prompt": f"pattern {index}"}
        write_video(tmp_path / "clips" / f"{index}.mp4", moving(index), click(), FPS, RATE_HZ, tags)
    (tmp_path / "clips" / "broken.mp4").write_bytes(b"no video")
    return tmp_path / "clips"


def test_any_folder_gets_what_needs_no_truth(clips, tmp_path, monkeypatch):
    call(monkeypatch, eval_run, "--suite", clips, "--output", tmp_path / "out")
    found = results.read(tmp_path / "out" / "results.json")
    model = found["models"][0]
    assert (found["suite"], model["name"], list(found["measures"])) == ("folder", "clips", ["quality"])
    assert model["counts"] == {"expected": 5, "made": 5, "scored": 4, "failed": 1}
    speeds = [row["values"]["quality.motion_sides_per_s"] for row in model["rows"] if row["values"]]
    assert speeds == sorted(speeds)
    assert model["estimates"]["quality.motion_sides_per_s"]["value"] == pytest.approx(np.mean(speeds))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"results.json", "report.html"}


def test_two_models_are_compared_prompt_by_prompt(clips, tmp_path, fake, monkeypatch, capsys):
    models = ["--model", model_folder(tmp_path / "one"), "--model", model_folder(tmp_path / "other", "two")]
    models += ["--clips", clips]
    call(monkeypatch, eval_run, *models, "--suite", clips, "--output", tmp_path / "out", "--distances", "sound")
    found = results.read(tmp_path / "out" / "results.json")
    assert [(model["name"], model["counts"]["scored"]) for model in found["models"]] == [
        ("one", 4), ("other", 4), ("clips", 4),
    ]  # fmt: skip
    assert len(found["comparisons"]) == 3
    comparison = found["comparisons"][0]
    assert (comparison["first"], comparison["second"], comparison["prompts"]) == ("one", "other", 4)
    same = comparison["differences"]["quality.sharpness"]  # the fake models differ in nothing
    assert (same["value"], same["low"], same["high"], same["prompts"]) == (0, 0, 0, 4)
    told = capsys.readouterr().out
    assert "other minus one, 4 prompts in pairs" in told
    assert "python -m eval.fetch soundnet" in told


def test_vbench_through_the_command(tmp_path, fake, monkeypatch, capsys):
    info = tmp_path / "info.json"
    entries = [("a dog runs", "dynamic_degree"), ("an impossible cat", "color"), ("not made", "scene")]
    info.write_text(json.dumps([{"prompt_en": prompt, "dimension": [name]} for prompt, name in entries]))
    arguments = ["--model", model_folder(tmp_path / "m"), "--suite", "vbench", "--prompts", info, "--limit", "2"]
    call(monkeypatch, eval_run, *arguments, "--output", tmp_path / "out")
    model = results.read(tmp_path / "out" / "results.json")["models"][0]
    assert sorted(path.name for path in (tmp_path / "out" / "m").glob("*.mp4")) == [
        f"a dog runs-{k}.mp4" for k in range(5)
    ]
    assert model["counts"] == {"expected": 10, "made": 5, "scored": 5, "failed": 5}
    assert (model["vbench"]["total"], len(model["vbench"]["failures"])) == (None, 5)
    laid_out = tmp_path / "out" / "m-vbench" / "links" / "standard" / "dynamic_degree"
    assert len(list(laid_out.iterdir())) == 5
    assert "--vbench-python PYTHON" in capsys.readouterr().out
    assert "--vbench-python PYTHON" in (tmp_path / "out" / "report.html").read_text()

    outcome = vbench.Outcome("standard", per_clip={"dynamic_degree": {f"a dog runs-{k}.mp4": k / 4 for k in range(5)}})
    monkeypatch.setattr(vbench, "evaluate", lambda *_, **__: outcome)
    call(monkeypatch, eval_run, *arguments, "--output", tmp_path / "out")
    model = results.read(tmp_path / "out" / "results.json")["models"][0]
    assert [row["values"]["vbench.dynamic_degree"] for row in model["rows"][:5]] == [0, 0.25, 0.5, 0.75, 1]
    assert model["estimates"]["vbench.dynamic_degree"]["value"] == 0.5


def test_back_ends_take_the_prompt_and_are_asked_again_for_another(tmp_path, monkeypatch):
    asked: list = []

    class Clap:
        def score(self, waveform, sample_rate_hz, text):
            asked.append(text)
            return 0.25

    monkeypatch.setattr(optional, "_clap", lambda model: Clap())
    paths = [write_video(tmp_path / f"{k}.mp4", moving(k), click() if k else None, FPS, RATE_HZ) for k in range(3)]
    measures = optional.optional_measures("some/model", None, None)
    for prompts in (["a", "b", ""], ["a", "b", ""], ["a", "c", ""]):
        found = measure.measure_files(paths, measures, prompts=prompts)
    assert asked == ["b", "c"]  # not of the clip without sound, nor of the one without a caption
    assert [one.values["clap"]["text_sound"] for one in found] == [None, 0.25, None]
    assert optional.optional_measures(None, None, None) == []
    for missing in ((None, tmp_path / "none.pt", None), (None, None, tmp_path / "none.pth")):
        with pytest.raises(InputError):
            optional.optional_measures(*missing)


def rows_of(values: dict[str, list[float]]) -> list[dict]:
    return [
        {"prompt": prompt, "seed": k, "file": f"{prompt}{k}", "sha256": "x", "failures": {}, "values": {"v": value}}
        for prompt, column in values.items()
        for k, value in enumerate(column)
    ]


def document(rows, **changes) -> dict:
    found = {
        "schema": results.SCHEMA, "suite": "folder", "prompts_sha256": "p", "prompts_rewritten": False,
        "preprocessing": {"blur_px": 0.0}, "measures": {"quality": "1"}, "missing": [],
        "environment": {"versions": {}, "hardware": {}}, "models": [results.model_results("m", {}, rows)],
        "comparisons": [],
    }  # fmt: skip
    return found | changes


def test_results_of_different_making_are_not_compared(tmp_path, monkeypatch, capsys):
    first = document(rows_of({"a": [1.0], "b": [2.0], "c": [3.0], "only here": [9.0]}))
    second = document(rows_of({"a": [2.0], "b": [3.5], "c": [3.5]}), measures={"quality": "1", "new": "1"})
    results.write(first, tmp_path / "a.json")
    results.write(second, tmp_path / "b.json")
    call(monkeypatch, compare, tmp_path / "a.json", tmp_path / "b.json", "--output", tmp_path / "c.json")
    difference = json.loads((tmp_path / "c.json").read_text())["comparisons"][0]["differences"]["v"]
    assert difference["value"] == pytest.approx(1.0)
    assert 0.5 <= difference["low"] < 1 < difference["high"] <= 1.5
    assert re.search(r"^v +\+1 \[\+0\.5, \+1\.5\] \*$", capsys.readouterr().out, re.MULTILINE)
    for changes, what in (
        ({"preprocessing": {"blur_px": 1.0}}, r"different preprocessing .*blur_px"),
        ({"measures": {"quality": "2"}}, r"different measures .*quality"),
        ({"suite": "tabletop"}, "different suite"),
        ({"schema": {"name": "vidgen.eval", "version": 1}}, "this program reads"),
        ({"models": [results.model_results("m", {}, rows_of({"z": [1.0]}))]}, "no prompt in common"),
    ):
        results.write(document(rows_of({"a": [2.0]}), **changes), tmp_path / "b.json")
        with pytest.raises(InputError, match=what):
            call(monkeypatch, compare, tmp_path / "a.json", tmp_path / "b.json")
    (tmp_path / "b.json").write_text('{"clips": 3}')
    with pytest.raises(InputError, match="old version"):
        call(monkeypatch, compare, tmp_path / "a.json", tmp_path / "b.json")


def test_distances_from_other_references_are_not_compared():
    def model(**changes):
        entry = {"extractor": "net", "preprocessing": "as is", "distances": []} | changes
        return {"distances": {"reference": {"clips": 3, "sha256": changes.pop("of", "x")}, "metrics": {"video": entry}}}

    compare.check_distances(model(), model())
    compare.check_distances(model(), {})
    for changes, what in (
        ({"of": "y"}, "reference"),
        ({"extractor": "n"}, "extractor"),
        ({"preprocessing": "n"}, "pre"),
    ):
        with pytest.raises(InputError, match=what):
            compare.check_distances(model(), model(**changes))


def test_numbers_that_are_none_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        results.write({"x": float("nan")}, tmp_path / "r.json")
    assert not list(tmp_path.glob("*.json"))


# --- the page -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Sources and links, videos, and text of a page; every tag must be closed in order."""

    EMPTY = ("meta", "br", "img")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.EMPTY:
            self.open.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1] != "style":
            self.texts.append(data.strip())


@pytest.fixture
def scored(tmp_path, fake, monkeypatch):
    """The output folder of two models with three prompts, one of which fails."""
    prompts = prompt_file(tmp_path / "p.json", "a <red> ball", "an impossible cube", "a blue ball")
    models = ["--model", model_folder(tmp_path / "alpha"), "--model", model_folder(tmp_path / "omega", "two")]
    call(monkeypatch, eval_run, *models, "--prompts", prompts, "--output", tmp_path / "out")
    return tmp_path / "out"


def test_the_page_stands_alone(scored, monkeypatch):
    page = Page((scored / "report.html").read_text())
    assert len(page.sources) == 8  # two clips of each of two models, each with its spectrogram
    assert all(source.startswith(("data:video/mp4;base64,", "data:image/jpeg;base64,")) for source in page.sources)
    assert "a <red> ball" in page.texts
    assert any("RuntimeError: out of memory" in text for text in page.texts)
    assert any("omega minus alpha" in text for text in page.texts)
    assert any(text.startswith("colour: asked") for text in page.texts)

    call(monkeypatch, report, scored, "--embed-mib", "0")
    linked = [source for source in Page((scored / "report.html").read_text()).sources if "data:" not in source]
    assert linked == ["alpha/0000.mp4", "omega/0000.mp4", "alpha/0002.mp4", "omega/0002.mp4"]
    assert all((scored / source).is_file() for source in linked)


def test_a_blind_page_names_models_after_the_clips_only(scored, monkeypatch):
    call(monkeypatch, report, scored, "--blind")
    text = (scored / "report.html").read_text()
    gallery = text[: text.index("<h2>Scores</h2>")]
    assert not re.search("alpha|omega", gallery)
    key = Page(text).texts
    orders = {prompt: key[len(key) - 1 - key[::-1].index(prompt) + 1] for prompt in ("a <red> ball", "a blue ball")}
    for order in orders.values():
        assert {part.split()[0] for part in order.split(", ")} == {"alpha", "omega"}
    assert text == (call(monkeypatch, report, scored, "--blind"), (scored / "report.html").read_text())[1]


# --- with a real pipeline -------------------------------------------------------------------------------------------


class Colours(torch.nn.Module):
    """Stands in for I3D: features of a clip that follow from its colour."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        mean = x.mean((2, 3, 4))
        return torch.cat([mean, mean.square()], 1)


def test_a_real_model_is_sampled_and_set_beside_its_floors(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for index in range(5):
        frames = np.broadcast_to(rng.integers(20, 120, 3), (19, 40, 60, 3)).astype(np.uint8)
        tags = {"prompt": f"colour {index}"}
        write_video(tmp_path / "real" / f"{index}.mp4", frames, click(19) if index else None, FPS, RATE_HZ, tags)
    torch.jit.script(Colours()).save(tmp_path / "i3d.pt")
    pipeline = make_pipeline()
    pipeline.generation = replace(pipeline.generation, num_frames=17, height=64, width=64, num_inference_steps=2)
    pipeline.save_pretrained(tmp_path / "tiny")
    arguments = ["--model", tmp_path / "tiny", "--suite", tmp_path / "real", "--output", tmp_path / "out"]
    call(monkeypatch, eval_run, *arguments, "--i3d", tmp_path / "i3d.pt", "--batch", "2")
    model = results.read(tmp_path / "out" / "results.json")["models"][0]
    assert model["counts"] == {"expected": 5, "made": 5, "scored": 5, "failed": 0}
    assert model["clip"]["num_frames"] == 17
    made = read_clip(tmp_path / "out" / "tiny" / "0003.mp4")
    alone = pipeline("colour 3", generator=torch.Generator().manual_seed(3)).frames[0]
    assert np.abs(made.frames.astype(int) - alone).mean() < 6  # of 255; an mp4 is not lossless
    video = model["distances"]["metrics"]["video"]
    sizes = {one["name"]: (one["num_first"], one["num_second"]) for one in video["distances"]}
    assert sizes == {
        "KVD": (5, 5), "KVD between halves of the real clips": (2, 2),
        "FVD": (5, 5), "FVD between halves of the real clips": (2, 2),
        "KVD of the reference through the model's autoencoders": (5, 5),
        "FVD of the reference through the model's autoencoders": (5, 5),
    }  # fmt: skip
    assert any("5 clips in 6 dimensions is mostly bias" in note for note in video["notes"])
    assert len(model["distances"]["missing"]) == 2  # Inception and SoundNet have not been fetched
    told = capsys.readouterr().out
    assert "KVD of the reference through the model's autoencoders" in told
    assert "python -m eval.fetch inception" in told
    again = read_clip(tmp_path / "out" / "tiny-reconstructed" / "0001.mp4")
    assert again.frames.shape == (17, 64, 64, 3)
    assert len(again.waveform) == 17000
    assert read_clip(tmp_path / "out" / "tiny-reconstructed" / "0000.mp4").waveform is None
