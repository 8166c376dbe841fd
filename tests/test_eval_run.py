"""The command that scores models: results, comparisons and the page."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from eval import compare, measure, optional, report, results, vbench
from eval import run as eval_run
from tests.scoring import FPS, RATE_HZ, call, click, model_folder, moving, prompt_file
from tests.test_eval import scene
from tests.test_pipeline import make_pipeline
from vidgen.errors import InputError
from vidgen.media import read_clip, write_video
from vidgen.tabletop.archive import save_trajectories

pytestmark = [
    pytest.mark.usefixtures("own_cache"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]


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
