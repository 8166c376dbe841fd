"""The notebooks of ``examples/``, cell by cell, at toy size."""

import json
import sys
from pathlib import Path

import pytest

from vidgen import media

EXAMPLES = Path(__file__).parent.parent / "examples"


def execute(name, folder, monkeypatch, **values):
    """All code cells of a notebook in one namespace, as a kernel runs them; ``values`` take the place of those in the
    cell tagged "parameters"."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["notebook"])
    cells = [cell for cell in json.loads((EXAMPLES / name).read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["metadata"].get("tags") for cell in cells].count(["parameters"]) == 1
    names: dict = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        assert not cell["outputs"]
        assert cell["execution_count"] is None
        exec(compile("".join(cell["source"]), f"{name}, cell {number}", "exec"), names)
        if cell["metadata"].get("tags") == ["parameters"]:
            assert set(values) <= set(names)
            names |= values
    return names


def test_every_notebook_is_tested():
    assert sorted(path.name for path in EXAMPLES.glob("*.ipynb")) == sorted(
        ["1_clips.ipynb", "2_training.ipynb", "3_measuring.ipynb"]
    )


def test_clips(tmp_path, monkeypatch):
    names = execute("1_clips.ipynb", tmp_path, monkeypatch, steps=1, long_s=4.5)
    lengths = {path.stem: len(media.read_clip(path).frames) for path in Path("outputs/examples").glob("*.mp4")}
    assert set(lengths) == {
        "ball", "from-a-picture", "between-two-pictures", "extended", "new-sound", "new-picture", "mended", "camera",
        "loop", "story", "watched",
    }  # fmt: skip
    assert (lengths["ball"], lengths["extended"], lengths["story"]) == (49, 73, 108)
    assert len(names["rows"]) == 1


def test_training(tmp_path, monkeypatch):
    settings = ["steps=2", "batch_size=1", "log_every=1", "sample_every=2", "checkpoint_every=2", "warmup_steps=1"]
    names = execute("2_training.ipynb", tmp_path, monkeypatch, settings=settings, count=2)
    assert names["clip"].frames.shape == (1, 9, 64, 64, 3)
    assert Path("outputs/training-example/distill/model/model_index.json").is_file()


def test_measuring(tmp_path, monkeypatch):
    pytest.importorskip("cv2")
    names = execute("3_measuring.ipynb", tmp_path, monkeypatch, limit=1)
    assert names["figures"]["sharpness"] > 0
    assert Path("outputs/measuring-example/folder/results.json").is_file()
