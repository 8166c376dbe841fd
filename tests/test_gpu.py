"""Training on a bare machine: without media and simulation libraries, in legs, and onward from what was taken home."""

import csv
import getpass
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from runs import pack
from vidgen import checkpoint
from vidgen.clip import ClipSpec
from vidgen.data.latents import LatentClips, cache_latents, complete_cache
from vidgen.data.source import open_clips
from vidgen.tabletop.physics import main as simulate_scenes

ROOT = Path(__file__).parent.parent
ABSENT = ("av", "mujoco", "imageio", "tensorboard", "scipy", "cv2", "skvideo")
BARE = f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.split(".")[0] in {ABSENT} else find(name, *rest)
"""
"""As sitecustomize.py: a Python in which those libraries are not installed."""
TINY = "num_frames=5 height=32 width=32 model_width=32 depth=1 batch_size=2 steps=2 log_every=1 sample_every=2"
STAGES = """
import sys, train
data, out = sys.argv[1:]
vae = f"{out}/vae3d/model"
latents = ["--latents", f"{out}/latents"]
stages = [
    ("vae3d", "window_frames=5 {tiny}", []),
    ("audio", "window_s=0.25 batch_size=2 steps=2", []),
    ("dit", "workers=1 {tiny}", ["--vae", vae, "--codec", f"{out}/audio/model", *latents]),
    ("distill", "steps=1", ["--teacher", f"{out}/dit/model", *latents]),
]
for stage, settings, rest in stages:
    command = ["--config", "toy", "--data", data, "--output", f"{out}/{stage}"]
    sys.argv = ["train.py", stage, *command, "--set", *settings.split(), *rest]
    train.main()
print("modules", *sorted({name.split(".")[0] for name in sys.modules}))
""".replace("{tiny}", TINY)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenes") / "scenes.npz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["physics", "--count", "3", "--seed", "3", "--output", str(path)])
        simulate_scenes()
    return path


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Environment of a Python without the libraries."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(BARE)
    compiled = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"  # as in the other tests
    own = {"PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(compiled)}
    return os.environ | own


def test_every_stage_trains_without_media_simulation_and_board_libraries(scenes, bare, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", STAGES, str(scenes), str(tmp_path)], cwd=ROOT, env=bare, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.splitlines()[-1].split()
    assert "torch" in loaded
    assert not set(ABSENT) & set(loaded)
    assert (tmp_path / "distill" / "model" / "model_index.json").exists()
    assert len(list(tmp_path.glob("*/samples/*.png"))) == 4


def test_pictures_and_sounds_made_apart_and_by_other_processes_are_the_same_clips(scenes, tmp_path):
    spec = ClipSpec(num_frames=5, height=32, width=32)
    both = open_clips(scenes, spec, seed=4)
    sounds, pictures = (
        open_clips(scenes, spec, seed=4, with_video=False),
        open_clips(scenes, spec, seed=4, with_audio=False),
    )
    keys = [(2, 9), (0, 4)]
    whole = both[keys]
    assert torch.equal(pictures[keys]["video"], whole["video"])
    assert torch.equal(sounds[keys]["audio"], whole["audio"])
    assert sounds[keys]["captions"] == whole["captions"]

    def encode(batch):
        video = batch["video"] if "video" in batch else pictures[batch["keys"]]["video"]
        return video[:, :1, ::16, ::16].permute(0, 4, 1, 2, 3) / 255, batch["audio"][..., ::500]

    cache_latents(both, 7, encode, tmp_path / "one")
    cache_latents(sounds, 7, encode, tmp_path / "other", batch_size=2, workers=2)
    for folder in ("one", "other"):
        complete_cache(7, tmp_path / folder)
    one, other = LatentClips(tmp_path / "one"), LatentClips(tmp_path / "other")
    assert torch.equal(one.video, other.video)
    assert torch.equal(one.audio, other.audio)
    assert one.captions == other.captions
    assert other.has_audio.all()


def a_run(work):
    """As runs/gpu.sh leaves it after the first steps on clips."""
    for stage, names in (("vae3d", ("weights",)), ("audio", ("weights",)), ("frames", ("weights", "vae"))):
        (work / stage / "model").mkdir(parents=True)
        (work / stage / "log.csv").write_text("step,loss\n1,2\n")
        for name in names:
            content = (b"vae3d" if name == "vae" else stage.encode()) * 20000
            (work / stage / "model" / ("weights" if stage == "vae3d" else name)).write_bytes(content)
    network, average = nn.Linear(300, 300), nn.Linear(300, 300)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 300)).sum().backward()
    optimizer.step()
    checkpoint.save(work / "dit" / "checkpoints", 7, {"model": network, "average": average}, {"adamw": optimizer}, 2)
    (work / "dit" / "samples").mkdir()
    (work / "dit" / "samples" / "step-0000005.png").write_bytes(b"picture")
    return average


def unpacked(out, work):
    work.mkdir()
    subprocess.run(f"cat {out}/state.tar.* | tar -x -C {work}", shell=True, check=True)
    return {str(path.relative_to(work)): path.read_bytes() for path in work.rglob("*") if path.is_file()}


def packed(monkeypatch, work, out, limit_mb):
    monkeypatch.setattr(sys, "argv", ["pack.py", str(work), str(out), "--limit-mb", str(limit_mb)])
    pack.main()
    parts = sorted(out.glob("state.tar.*"))
    assert all(part.stat().st_size <= pack.PART_BYTES for part in parts)
    assert sum(part.stat().st_size for part in parts) <= limit_mb * 1e6
    return parts


def test_what_is_taken_home_puts_everything_back_or_a_lean_checkpoint_where_room_is_short(monkeypatch, tmp_path):
    work = tmp_path / "work"
    average = a_run(work)
    monkeypatch.setattr(pack, "PART_BYTES", 500_000)
    assert len(packed(monkeypatch, work, tmp_path / "out", 4)) > 1
    everything = unpacked(tmp_path / "out", tmp_path / "again")
    assert everything == {str(path.relative_to(work)): path.read_bytes() for path in work.rglob("*") if path.is_file()}
    assert (tmp_path / "out" / "newest.png").read_bytes() == b"picture"

    packed(monkeypatch, work, tmp_path / "out", 0.8)
    unpacked(tmp_path / "out", tmp_path / "short")
    network, mean = nn.Linear(300, 300), nn.Linear(300, 300)
    optimizer = torch.optim.AdamW(network.parameters())
    modules = {"model": network, "average": mean}
    assert checkpoint.load_latest(tmp_path / "short" / "dit" / "checkpoints", modules, {"adamw": optimizer})[0] == 7
    assert torch.equal(network.weight, average.weight.half().float())
    assert torch.equal(mean.weight, network.weight)
    network(torch.ones(1, 300)).sum().backward()
    optimizer.step()


def test_what_two_models_share_travels_once(monkeypatch, tmp_path):
    work = tmp_path / "work"
    a_run(work)
    (work / "dit").rename(tmp_path / "later")
    packed(monkeypatch, work, tmp_path / "out", 1)
    files = unpacked(tmp_path / "out", tmp_path / "again")
    assert files["frames/model/vae"] == files["vae3d/model/weights"] == b"vae3d" * 20000
    size = sum(part.stat().st_size for part in (tmp_path / "out").glob("state.tar.*"))
    assert size < sum(map(len, files.values()))


@pytest.mark.slow
def test_a_second_leg_goes_on_where_the_first_ended_and_a_third_from_what_was_taken_home(scenes, bare, tmp_path):
    def leg(work, **more):
        given = {
            "OUT": str(tmp_path / "out"),
            "SPEND": "1 1 1 1 1",
            "SETTINGS": "log_every=1",
            "PYTHON": sys.executable,
        }
        command = ["runs/gpu.sh", str(scenes), "toy", str(tmp_path / work)]
        done = subprocess.run(command, cwd=ROOT, env=bare | given | more, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def first_steps(work):
        with (tmp_path / work / "vae3d" / "log.csv").open() as file:
            return [int(row["step"]) for row in csv.DictReader(file)]

    said = leg("work", LEG="75", SPEND="10000 1 1 1 1")
    assert "stopped at step" in said
    made = first_steps("work")
    said = leg("work", LEG="300", RESUME=str(tmp_path / "out"))
    assert first_steps("work")[: len(made)] == made
    assert json.loads((tmp_path / "work" / "vae3d" / "allowance.json").read_text())["steps"] > len(made)
    weights = load_file(tmp_path / "work" / "vae3d" / "model" / "diffusion_pytorch_model.safetensors")
    home = tmp_path / "out"
    leg("elsewhere", LEG="500", OUT=str(tmp_path / "last"), RESUME=str(home))
    again = load_file(tmp_path / "elsewhere" / "vae3d" / "model" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert (tmp_path / "elsewhere" / "student" / "model" / "model_index.json").exists()
    assert (tmp_path / "elsewhere" / "student" / "model" / "fast" / "pytorch_lora_weights.safetensors").exists()
