"""Two folders of clips compared, with a toy network in the place of I3D."""

import json
import shutil
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch

from eval import distribution
from eval.extractors import Extractor
from vidgen.errors import InputError
from vidgen.media import write_video

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


class Colours(torch.nn.Module):
    """Features of a clip that follow from its colour."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool) -> torch.Tensor:
        mean = x.mean((2, 3, 4))
        return torch.cat([mean, mean.square()], 1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Folders ``real`` and ``alike`` of clips of random colours, and ``bright``; and the toy network's file."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for name, lowest in (("real", 20), ("alike", 20), ("bright", 150)):
        for index in range(8):
            frames = np.broadcast_to(rng.integers(lowest, lowest + 100, 3), (16, 32, 32, 3)).astype(np.uint8)
            write_video(folder / name / f"{index}.mp4", frames, None, Fraction(24))
    torch.jit.script(Colours()).save(folder / "i3d.pt")
    return folder


@pytest.fixture
def command(clips, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path / "cache"))

    def call(real, model, *more):
        output = tmp_path / "out.json"
        arguments = [str(real), str(model), "--i3d", str(clips / "i3d.pt"), "--output", str(output), *more]
        monkeypatch.setattr(sys, "argv", ["eval.distribution", *arguments])
        distribution.main()
        return json.loads(output.read_text()), capsys.readouterr().out

    return call


def test_other_clips_are_further_away_than_the_floor(clips, command):
    (near, told), (far, _) = command(clips / "real", clips / "alike"), command(clips / "real", clips / "bright")
    near, far = (result["metrics"]["video"]["distances"] for result in (near, far))
    names = [distance["name"] for distance in near]
    assert names == ["KVD", "KVD between halves of the real clips", "FVD", "FVD between halves of the real clips"]
    assert [(distance["num_first"], distance["num_second"]) for distance in near] == [(8, 8), (4, 4)] * 2
    assert near[0]["interval"][0] < 0.1
    assert far[0]["interval"][0] > 10 * abs(near[0]["value"])
    assert far[2]["value"] > 10 * near[2]["value"]
    lines = told.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["KVD", "KVD", "FVD", "FVD"]
    assert all("(n = " in line for line in lines[1:5])


def test_few_clips_for_the_dimensions_are_noted(clips, command):
    results, told = command(clips / "real", clips / "alike", "--limit", "3")
    assert "3 clips in 6 dimensions is mostly bias" in told
    assert "no interval" in told
    assert results["metrics"]["video"]["distances"][0]["interval"] is None
    assert results["real"]["expected"] == 3


def test_a_second_run_reads_no_clip_and_gives_the_same(clips, command, monkeypatch, tmp_path):
    first, _ = command(clips / "real", clips / "alike")
    cached = sorted((tmp_path / "cache" / "features").iterdir())
    assert len(cached) == 16
    cached[0].unlink()  # as an interruption leaves it
    read, calls = distribution.read_clip, []
    monkeypatch.setattr(distribution, "read_clip", lambda path, **how: calls.append(path) or read(path, **how))
    again, _ = command(clips / "real", clips / "alike")
    assert again == first
    assert len(calls) == 1


def test_clips_that_cannot_be_used_are_counted(clips, command, tmp_path):
    shutil.copytree(clips / "alike", tmp_path / "some")
    (tmp_path / "some" / "0.mp4").write_bytes(b"no video")
    write_video(tmp_path / "some" / "1.mp4", np.zeros((5, 32, 32, 3), np.uint8), None, Fraction(24))
    results, told = command(clips / "real", tmp_path / "some")
    assert "2 of 8 model clips failed, the first: 0.mp4" in told
    assert len(results["metrics"]["video"]["failures"]["model"]) == 2
    assert results["metrics"]["video"]["distances"][0]["num_second"] == 6


def test_a_clip_without_finite_features_is_counted_and_not_kept(clips, tmp_path, monkeypatch):
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path / "cache"))

    def features(clip):
        return np.full(3, np.nan if clip.frames.mean() > 150 else 1.0, np.float32)

    files = [*sorted((clips / "real").iterdir())[:3], *sorted((clips / "bright").iterdir())[:2]]
    found, failures = distribution.folder_features(files, Extractor("net 1", "as is", features))
    assert len(found) == 3
    assert [line.split(": ")[1] for line in failures] == ["net gave values that are not finite numbers"] * 2
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 3


def test_folders_without_usable_clips_are_refused(clips, command, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="not a folder with clips"):
        command(clips / "real", tmp_path / "empty")
    (tmp_path / "empty" / "0.mp4").write_bytes(b"no video")
    with pytest.raises(InputError, match="0 of 1 clips"):
        command(clips / "real", tmp_path / "empty")
    with pytest.raises(InputError, match=r"python -m eval\.fetch soundnet"):
        command(clips / "real", clips / "alike", "--metric", "sound")
