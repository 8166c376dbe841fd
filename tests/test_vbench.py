"""VBench: its list, names and sums; the package as a process, played by a stand-in and, where there is one, itself."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from eval import fetch, vbench, vbench_jobs
from eval.doctor import findings, told
from eval.generate import Asked, Made
from eval.quality import measure_file
from eval.vbench_needs import NEEDS, missing
from eval.vbench_prompts import (
    SAMPLES,
    STATIC_SAMPLES,
    VBenchPrompt,
    clip_name,
    full_info,
    vbench_asked,
    vbench_paths,
    vbench_prompts,
)
from eval.vbench_runner import PACKAGES
from eval.vbench_scores import QUALITY, SEMANTIC, Score, read_scores
from vidgen.errors import InputError
from vidgen.media import write_video

DRIFT = Path(__file__).parent / "data" / "drift.mp4"
DRIFT_SCORE = 0.9544873218910367
"""Of the official vbench 0.1.5 with OpenCV 5.0.0: python -m eval.vbench tests/data --custom --output out
--dimensions temporal_flickering --vbench-python PYTHON"""
REAL = os.environ.get(vbench.PYTHON_VARIABLE)
STILL, MOVING = "a still cup, on a table.", "a dog runs"
INFO = [
    {"prompt_en": STILL, "dimension": ["temporal_flickering"]},
    {"prompt_en": MOVING, "dimension": ["dynamic_degree", "motion_smoothness"]},
    {"prompt_en": MOVING, "dimension": ["aesthetic_quality", "motion_smoothness"]},
]


def listed(tmp_path, entries=INFO):
    path = tmp_path / "info.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def test_a_prompt_stands_once_with_all_its_dimensions(tmp_path):
    path = listed(tmp_path)
    still, moving = vbench_prompts(path)
    assert still == VBenchPrompt(STILL, ("temporal_flickering",))
    assert moving == VBenchPrompt(MOVING, ("dynamic_degree", "motion_smoothness", "aesthetic_quality"))
    assert vbench_prompts(path, ["dynamic_degree"]) == [VBenchPrompt(MOVING, ("dynamic_degree",))]
    with pytest.raises(InputError, match="no dimension taste"):
        vbench_prompts(path, ["taste"])
    with pytest.raises(InputError, match="no prompt of color"):
        vbench_prompts(path, ["color"])


def test_clips_have_the_names_and_numbers_that_the_package_expects(tmp_path):
    prompts = vbench_prompts(listed(tmp_path))
    asked = vbench_asked(prompts)
    assert [entry.name for entry in asked] == [f"{STILL}-{k}.mp4" for k in range(STATIC_SAMPLES)] + [
        f"{MOVING}-{k}.mp4" for k in range(SAMPLES)
    ]
    assert len({entry.seed for entry in asked}) == len(asked)
    assert vbench_paths(prompts, tmp_path)[-1] == tmp_path / f"{MOVING}-4.mp4"
    # A part of the list is made as it is within the whole; another seed makes others.
    assert vbench_asked(prompts[1:]) == asked[STATIC_SAMPLES:]
    assert not {entry.seed for entry in vbench_asked(prompts, seed=1)} & {entry.seed for entry in asked}


@pytest.mark.parametrize("prompt", ["either/or", "x" * 250, "façade " * 33, "", ".hidden"])
def test_a_prompt_that_is_no_files_name_is_refused(tmp_path, prompt):
    with pytest.raises(InputError, match="finds clips by their prompt, but"):
        vbench_prompts(listed(tmp_path, [{"prompt_en": prompt, "dimension": ["color"]}]))


def test_what_is_no_list_is_refused(tmp_path):
    for content in ("{", '[{"prompt": "a"}]', "3"):
        (tmp_path / "info.json").write_text(content)
        with pytest.raises(InputError, match="not a list of"):
            vbench_prompts(tmp_path / "info.json")
    with pytest.raises(InputError, match="no such file"):
        vbench_prompts(tmp_path / "nowhere.json")


def test_the_list_comes_from_the_pinned_wheel(tmp_path, monkeypatch):
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path))
    source = fetch.SOURCES["vbench"]
    with pytest.raises(InputError, match=r"python -m eval\.fetch vbench"):
        full_info()
    wheel = tmp_path / "vbench.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(source.member, json.dumps(INFO))
    monkeypatch.setattr(fetch, "_download", lambda *_: wheel)
    assert fetch.fetch("vbench", source) == full_info()
    assert len(vbench_prompts()) == 2


STAND_IN = """
import json, os, time
class VBench:
    def __init__(self, device, info, output):
        self.output = output
        assert json.load(open(info)) if info else True
    def evaluate(self, videos_path, name, prompt_list, dimension_list, local, read_frame, mode, **options):
        (dimension,) = dimension_list
        if dimension == "dynamic_degree":
            raise RuntimeError("CUDA is not there")
        if dimension == "motion_smoothness":
            time.sleep(600)
        names = os.listdir(videos_path)
        assert local and not read_frame
        assert all(os.path.getsize(os.path.join(videos_path, each)) for each in names)
        entries = [{"video_path": os.path.join(videos_path, each), "video_results": 0.9} for each in names]
        with open(os.path.join(self.output, "calls"), "a") as file:
            file.write(json.dumps([mode, sorted(names), prompt_list, sorted(options)]) + "\\n")
        results = {dimension: [0.9, entries]}
        json.dump(results, open(os.path.join(self.output, name + "_eval_results.json"), "w"))
"""

STAND_IN_FILTER = """
import json, os, shutil, torch
DEVICE = "cuda"
def static_filter(args):
    assert DEVICE == "cpu" and os.path.exists(args.model) and args.filter_scope == "temporal_flickering"
    target = os.path.join(args.result_path, "filtered_videos")
    os.makedirs(target)
    paths = [os.path.join(args.videos_path, name) for name in sorted(os.listdir(args.videos_path))[-5:]]
    prompt = os.path.basename(paths[0]).rpartition("-")[0]
    for index, path in enumerate(paths):
        shutil.copy(path, os.path.join(target, f"{prompt}-{index}.mp4"))
    with open(os.path.join(args.result_path, args.store_name), "w") as file:
        json.dump({prompt: {"static_count": len(paths), "static_path": paths}}, file)
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A Python whose vbench package does as the official one does, as far as it can be seen from outside."""
    folder = tmp_path_factory.mktemp("env")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in ("vbench", "torch", "torchvision", "decord", "cv2", "easydict", "omegaconf", "vbench2_beta_long"):
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("")
    for name in ("scenedetect", "moviepy", "scipy", "yaml"):
        (site / f"{name}.py").write_text("")
    (site / "torch" / "__init__.py").write_text("device = str\nload = None\n")
    (site / "easydict" / "__init__.py").write_text("from types import SimpleNamespace as EasyDict\n")
    (site / "vbench" / "cli").mkdir()
    (site / "vbench" / "cli" / "static_filter.py").write_text(STAND_IN_FILTER)
    (site / "vbench" / "__init__.py").write_text(STAND_IN)
    (site / "vbench2_beta_long" / "__init__.py").write_text("from vbench import VBench as VBenchLong\n")
    return folder / "bin" / "python"


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Files where the package looks for weights."""
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "weights"))
    for name in ("dynamic_degree", "motion_smoothness"):
        for each in NEEDS[name].weights:
            each.path.parent.mkdir(parents=True, exist_ok=True)
            each.path.touch()


def made_clips(tmp_path, prompts, leave_out=()):
    """Clips of all prompts, as ``generate`` makes them, those left out having failed."""
    asked, made = vbench_asked(prompts), []
    for entry, path in zip(asked, vbench_paths(prompts, tmp_path / "clips"), strict=True):
        if entry.name in leave_out:
            made.append(Made(entry, path, "RuntimeError: out of memory"))
            continue
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(DRIFT, path)
        made.append(Made(entry, path))
    (tmp_path / "clips" / "0 stray.txt").write_text("the package takes the first name's suffix for that of all")
    return made


def test_the_package_is_fed_links_and_its_failures_are_told(tmp_path, stand_in, weights):
    path = listed(tmp_path)
    prompts = vbench_prompts(path)
    made = made_clips(tmp_path, prompts, leave_out=[clip_name(STILL, 2)])
    outcome = vbench.evaluate(made, tmp_path / "out", prompts=prompts, info=path, python=stand_in, dimensions=[
        "temporal_flickering", "dynamic_degree", "aesthetic_quality", "color",
    ])  # fmt: skip
    assert outcome.scores == {"temporal_flickering": Score(0.9, 24, 25)}  # the filter is given all
    call = json.loads((tmp_path / "out/official/standard/temporal_flickering/calls").read_text())
    assert call[1] == [clip_name(STILL, k) for k in range(5)]  # and keeps five, the stand-in the last by their names
    assert sorted(outcome.per_clip["temporal_flickering"]) == sorted(clip_name(STILL, k) for k in (5, 6, 7, 8, 9))
    assert len(list((tmp_path / "out/links/standard/temporal_flickering").iterdir())) == 24
    assert outcome.notes == []
    assert outcome.failures == {clip_name(STILL, 2): "RuntimeError: out of memory"}
    assert "CUDA is not there" in outcome.reasons["dynamic_degree"]
    assert "needs the package clip: pip install openai-clip" in outcome.reasons["aesthetic_quality"]
    assert outcome.reasons["color"] == "no prompt of it was asked for"
    assert outcome.totals.total is None
    assert "24 of 25" in vbench.told(outcome, tmp_path / "clips", tmp_path / "out")
    links = tmp_path / "out/links/standard/dynamic_degree"
    assert sorted(link.name for link in links.iterdir()) == [clip_name(MOVING, k) for k in range(5)]


def filter_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "nothing"))


def test_without_the_filter_five_clips_are_scored_and_once_only(tmp_path, stand_in, monkeypatch):
    filter_is_missing(monkeypatch, tmp_path)
    path = listed(tmp_path)
    prompts = vbench_prompts(path, ["temporal_flickering"])
    made = made_clips(tmp_path, prompts, leave_out=[clip_name(STILL, 0)])

    def evaluated():
        return vbench.evaluate(made, tmp_path / "out", prompts=prompts, info=path, python=stand_in)

    first = evaluated()
    assert first.scores == {"temporal_flickering": Score(0.9, 4, 5)}
    assert any("official filter" in note for note in first.notes)
    again = evaluated()
    assert again.scores == first.scores
    calls = (tmp_path / "out/official/standard/temporal_flickering/calls").read_text().splitlines()
    assert [json.loads(call) for call in calls] == [
        ["vbench_standard", [clip_name(STILL, k) for k in (1, 2, 3, 4)], [], []]
    ]
    # Another clip under a name that was scored is scored anew.
    made[1].path.unlink()
    write_video(made[1].path, np.zeros((4, 32, 32, 3), np.uint8), None, 4)
    evaluated()
    assert json.loads((tmp_path / "out/official/standard/temporal_flickering/job.json").read_text())["clips"][0][1] != (
        DRIFT.stat().st_size
    )
    (result,) = (tmp_path / "out/official").rglob("*_eval_results.json")
    assert read_scores([result]) == {"temporal_flickering": Score(0.9)}


def test_a_dimension_that_takes_too_long_is_ended(tmp_path, stand_in, weights):
    path = listed(tmp_path)
    prompts = vbench_prompts(path, ["motion_smoothness"])
    outcome = vbench.evaluate(
        made_clips(tmp_path, prompts), tmp_path / "out", prompts=prompts, info=path, python=stand_in, time_limit_s=1
    )
    assert outcome.reasons["motion_smoothness"].startswith("took longer than 1 s")


def test_anybodys_clips_keep_their_names_and_bring_their_captions(tmp_path, stand_in, monkeypatch):
    filter_is_missing(monkeypatch, tmp_path)
    (tmp_path / "clips").mkdir()
    shutil.copyfile(DRIFT, (tmp_path / "clips" / "my_first.mov"))
    (tmp_path / "clips" / "broken.mp4").write_bytes(b"no video")
    made = [Made(Asked("a pattern", 0, name=path.name), path) for path in sorted((tmp_path / "clips").iterdir())]
    outcome = vbench.evaluate(made, tmp_path / "out", python=stand_in)
    assert outcome.mode == "custom"
    assert outcome.scores == {"temporal_flickering": Score(0.9, 1, 2)}
    assert outcome.per_clip == {"temporal_flickering": {"my_first.mov": 0.9}}
    assert "cannot be read as a video" in outcome.failures["broken.mp4"]
    assert set(outcome.reasons) == set(vbench.CUSTOM) - {"temporal_flickering"}
    assert outcome.totals.quality is None
    call = json.loads((tmp_path / "out/official/custom/temporal_flickering/calls").read_text())
    assert call == ["custom_input", ["clip-00001.mp4"], {"clip-00001.mp4": "a pattern"}, []]
    untold = [Made(Asked("", 0, name=made[1].asked.name), made[1].path)]
    silent = vbench.evaluate(untold, tmp_path / "more", dimensions=["overall_consistency", "color"])
    assert silent.reasons == {
        "overall_consistency": "needs a caption for every clip",
        "color": "needs what VBench says of its own prompts",
    }


def test_clips_of_five_seconds_go_to_the_long_variant(tmp_path, stand_in, monkeypatch):
    filter_is_missing(monkeypatch, tmp_path)
    path = listed(tmp_path)
    prompts = vbench_prompts(path, ["temporal_flickering"])
    (tmp_path / "clips").mkdir()
    asked = vbench_asked(prompts)[:2]
    made = [Made(entry, tmp_path / "clips" / entry.name) for entry in asked]
    for clip in made:
        write_video(clip.path, np.zeros((20, 32, 32, 3), np.uint8), None, 4)
    outcome = vbench.evaluate(made, tmp_path / "out", prompts=prompts, info=path, python=stand_in)
    assert outcome.mode == "long standard"
    assert outcome.scores == {"temporal_flickering": Score(0.9, 2, 2)}
    place = tmp_path / "out/official/long-standard/temporal_flickering"
    mode, names, _, options = json.loads((place / "calls").read_text())
    assert (mode, names) == ("long_vbench_standard", [entry.name for entry in asked])
    assert {"clip_length_config", "num_of_samples_per_prompt", "use_semantic_splitting"} <= set(options)
    assert "overall_consistency: 10.0" in (place / "clip_length.yaml").read_text()
    made[1].path.unlink()
    shutil.copyfile(DRIFT, made[1].path)
    mixed = vbench.evaluate(made, tmp_path / "out", prompts=prompts, info=path, python=stand_in)
    assert mixed.scores == {}
    assert "long variant, which gives other values" in mixed.reasons["temporal_flickering"]


def test_without_the_package_the_folders_are_laid_out_and_the_commands_told(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv(vbench.PYTHON_VARIABLE, raising=False)
    path = listed(tmp_path)
    made_clips(tmp_path, vbench_prompts(path))
    arguments = [str(tmp_path / "clips"), "--info", str(path), "--output", str(tmp_path / "out"), "--limit", "2"]
    monkeypatch.setattr("sys.argv", ["eval.vbench", *arguments])
    vbench.main()
    told = capsys.readouterr().out
    assert "--vbench-python PYTHON" in told
    assert f"vbench evaluate --videos_path '{tmp_path}/out/links/standard'/DIMENSION" in told
    links = tmp_path / "out/links/standard/aesthetic_quality"
    assert sorted(link.name for link in links.iterdir()) == [clip_name(MOVING, k) for k in range(SAMPLES)]
    written = json.loads((tmp_path / "out/vbench.json").read_text())
    assert written["total"] is None
    assert written["not_scored"]["aesthetic_quality"] == vbench.LAID_OUT
    monkeypatch.setattr("sys.argv", ["eval.vbench", str(tmp_path), *arguments[1:]])
    with pytest.raises(InputError, match="--custom"):
        vbench.main()


def test_what_is_no_python_is_refused(tmp_path):
    for python in (tmp_path / "nowhere", Path("/bin/true")):
        with pytest.raises(InputError, match="not a Python that can run VBench"):
            vbench_jobs.check(python)


def test_our_reading_of_temporal_flickering_is_the_packages():
    assert vbench.temporal_flickering(DRIFT) == pytest.approx(DRIFT_SCORE, abs=1e-4)
    assert measure_file(DRIFT)["temporal_flickering"] == pytest.approx(DRIFT_SCORE, abs=1e-4)


def test_a_single_frame_does_not_flicker(tmp_path):
    path = write_video(tmp_path / "one.mp4", np.zeros((1, 32, 32, 3), np.uint8), None, 4)
    with pytest.raises(InputError, match="no two frames"):
        vbench.temporal_flickering(path)
    outcome = vbench.evaluate([Made(Asked("", 0), path)], tmp_path / "out")
    assert "one frame only" in outcome.failures["one.mp4"]
    assert set(outcome.reasons.values()) == {"none of its clips is there"}


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason=f"{vbench.PYTHON_VARIABLE} names no Python with vbench")
def test_the_official_package_gives_what_we_read(tmp_path):
    path = listed(tmp_path)
    prompts = vbench_prompts(path, ["temporal_flickering"])
    made = made_clips(tmp_path, prompts, leave_out=[clip_name(STILL, 4)])
    own = {clip.path.name: vbench.temporal_flickering(DRIFT) for clip in made[:4]}
    noise = np.random.default_rng(0).integers(0, 255, (6, 48, 48, 3), dtype=np.uint8)
    made[3].path.unlink()
    write_video(made[3].path, noise, None, 8)
    own[made[3].path.name] = vbench.temporal_flickering(made[3].path)
    outcome = vbench.evaluate(made, tmp_path / "out", prompts=prompts, info=path, python=Path(REAL))
    assert "temporal_flickering" not in outcome.reasons
    assert outcome.per_clip["temporal_flickering"] == pytest.approx(own, abs=1e-6)
    assert outcome.per_clip["temporal_flickering"][clip_name(STILL, 0)] == pytest.approx(DRIFT_SCORE, abs=1e-6)
    score = outcome.scores["temporal_flickering"]
    assert score.raw == pytest.approx(np.mean(list(own.values())), abs=1e-6)
    assert (score.scored, score.expected) == (4, 5)
    anybodys = vbench.evaluate(
        [Made(Asked("", 0), DRIFT)], tmp_path / "custom", python=Path(REAL), dimensions=["temporal_flickering"]
    )
    assert anybodys.scores["temporal_flickering"].raw == pytest.approx(DRIFT_SCORE, abs=1e-6)


def test_every_dimension_says_what_it_needs(tmp_path, monkeypatch):
    filter_is_missing(monkeypatch, tmp_path)
    assert set(NEEDS) == set(QUALITY) | set(SEMANTIC)
    full = dict.fromkeys(PACKAGES, "1.0")
    assert missing("temporal_flickering", full) == []
    ((weights_file, command),) = missing("dynamic_degree", full)
    assert weights_file.endswith("raft-things.pth")
    assert "models.zip" in command
    ((lacking, command), _) = missing("color", full | {"detectron2": None})
    assert lacking == "the package detectron2"
    assert "facebookresearch/detectron2" in command
    for dimension in NEEDS:
        for _, command in missing(dimension, {}, long=True):
            assert "{" not in command


def test_the_doctor_names_what_is_missing_and_the_command(tmp_path, stand_in, monkeypatch, capsys):
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path))
    filter_is_missing(monkeypatch, tmp_path)
    found = {finding.name: finding for finding in findings(stand_in)}
    assert found["cv2"].state is not None
    assert found["verifier"].state is not None
    assert (found["i3d"].state, found["i3d"].get) == (None, "python -m eval.fetch i3d")
    assert found["temporal_flickering"].state == "ready"
    assert found["long variant"].state == "ready"
    assert f"{stand_in} -m pip install openai-clip" in found["aesthetic_quality"].get
    text = told(list(found.values()))
    assert "- i3d would add KVD and FVD\n      python -m eval.fetch i3d" in text
    assert "+ temporal_flickering: ready" in text
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "i3d.safetensors").touch()
    (tmp_path / "weights" / "vbench.json").write_text(json.dumps(INFO))
    found = {finding.name: finding for finding in findings(clap=str(tmp_path))}
    assert found["i3d"].state is not None
    assert found["prompts"].state.endswith("2 prompts")
    assert found["package"].state is found["CLAP"].state is None
