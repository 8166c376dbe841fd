"""Several processes over gloo: a network shared out over them, one of them killed, and going on with another number."""

import csv
import multiprocessing
import os
import signal
import socket
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import train
from tests.test_pipeline import make_pipeline
from vidgen import checkpoint, parallel
from vidgen.config import DiTConfig
from vidgen.data.latents import clips_in_cache
from vidgen.dit.model import JointDiT
from vidgen.errors import InputError
from vidgen.loading import load_network
from vidgen.parallel import Meeting
from vidgen.tabletop.physics import main as simulate_scenes

PROCESSES = multiprocessing.get_context("forkserver")  # imports once, and forks each process from that
PROCESSES.set_forkserver_preload(["train", "vidgen.pipeline", "vidgen.tabletop.source", "torch.utils.tensorboard"])


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Scenes, an untrained model and its latents: what the dit stage is given here."""
    folder = tmp_path_factory.mktemp("given")
    with pytest.MonkeyPatch.context() as patch:
        scenes = ["--count", "4", "--seed", "3", "--output", str(folder / "scenes.npz"), "--action", "drops"]
        patch.setattr(sys, "argv", ["physics", *scenes])
        simulate_scenes()
    make_pipeline(heads=2).save_pretrained(folder / "model", dtype=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidgen.tabletop.render.can_compile", lambda device: False)  # takes longer than all the rest
        patch.setattr(sys, "argv", ["train.py", *map(str, command(folder, folder / "first", 2, "steps=1"))])
        train.main()
    return folder


def command(given, output, batch_size, *settings):
    fixed = (
        "num_frames=5",
        "height=32",
        "width=32",
        "cached_clips=8",
        "log_every=1",
        "warmup_steps=1",
        "ema_decay=0.5",
    )
    return [
        "dit", "--config", "toy", "--data", given / "scenes.npz", "--model", given / "model", "--output", output,
        "--latents", given / "latents", "--prompt", "a red ball", "--peak-tflops", "1",
        "--set", *fixed, f"batch_size={batch_size}", *settings,
    ]  # fmt: skip


def one_rank(rank, count, port, arguments):
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({key: str(value) for key, value in place.items()})
    os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
    torch.set_num_threads(1)
    sys.argv = ["train.py", *map(str, arguments)]
    train.main()


def start(count, arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [PROCESSES.Process(target=one_rank, args=(rank, count, port, arguments)) for rank in range(count)]
    for process in started:
        process.start()
    return started


def run(count, arguments):
    started = start(count, arguments)
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * count


def kill_one_rank_once_a_checkpoint_is_there(count, arguments, output):
    started = start(count, arguments)
    while not list(output.glob("checkpoints/step-*")):
        assert all(process.is_alive() for process in started)
        time.sleep(0.02)
    os.kill(started[-1].pid, signal.SIGKILL)
    for process in started:  # the others find that it has gone, or the launcher ends them
        process.join(5)
        process.kill()
        process.join()
    assert started[-1].exitcode == -signal.SIGKILL


def losses(output, column="loss"):
    with (output / "log.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file)]


def state(output, given):
    """Weights and their average in the last checkpoint, read by one process."""
    model, average = (load_network(JointDiT, given / "model" / "transformer") for _ in range(2))
    checkpoint.load_latest(output / "checkpoints", {"model": model, "average": average}, {})
    parts = {"model": model, "average": average}
    return {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}


FOUR = pytest.param(4, "shard=true", marks=pytest.mark.slow)
COPIES = pytest.param(2, "shard=false", marks=pytest.mark.slow)


@pytest.mark.parametrize(("count", "shard"), [(2, "shard=true"), COPIES, FOUR])
def test_a_rank_killed_and_all_started_again_end_as_undisturbed(given, tmp_path, count, shard):
    settings = (shard, "steps=12", "checkpoint_every=2", "sample_every=100", "accumulate=2")
    whole, broken, other = tmp_path / "whole", tmp_path / "broken", tmp_path / "other"
    run(count, command(given, whole, 2, *settings))
    kill_one_rank_once_a_checkpoint_is_there(count, command(given, broken, 2, *settings), broken)
    assert not (broken / "model").exists()
    run(count, command(given, broken, 2, *settings))
    undisturbed, resumed = state(whole, given), state(broken, given)
    assert all(torch.equal(value, resumed[name]) for name, value in undisturbed.items())
    assert losses(whole) == losses(broken)
    stored = load_file(broken / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, undisturbed[f"average.{name}"].half()) for name, value in stored.items())
    first = load_network(JointDiT, given / "model" / "transformer").state_dict()
    assert any((undisturbed[f"model.{name}"] - value).abs().max() > 1e-3 for name, value in first.items())

    # One process with as many clips a step learns the same, and goes on from what the others had cut up.
    run(1, command(given, other, 2 * count, *settings, "steps=6"))
    assert losses(other) == pytest.approx(losses(whole)[:6], rel=1e-4)
    for later in sorted((whole / "checkpoints").glob("step-*"))[1:]:
        later.rename(later.with_name(f"later-{later.name}"))
    run(1, command(given, whole, 2 * count, *settings))
    assert losses(whole) == pytest.approx(losses(broken), rel=1e-3)


@pytest.mark.slow
def test_what_two_shared_out_four_go_on_with_and_one_after_them(given, tmp_path):
    settings = ("shard=true", "checkpoint_every=2", "sample_every=4")
    run(2, command(given, tmp_path / "some", 4, *settings, "steps=4"))
    run(4, command(given, tmp_path / "some", 2, *settings, "steps=8"))
    run(1, command(given, tmp_path / "some", 8, *settings, "steps=12"))
    run(1, command(given, tmp_path / "one", 8, *settings, "steps=4"))
    run(1, command(given, tmp_path / "one", 8, *settings, "steps=8"))
    run(1, command(given, tmp_path / "one", 8, *settings, "steps=12"))
    assert losses(tmp_path / "some") == pytest.approx(losses(tmp_path / "one"), rel=2e-3)
    assert len(list((tmp_path / "some" / "samples").glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("count", "shard"), [(2, "shard=false"), pytest.param(4, "shard=true", marks=pytest.mark.slow)]
)
def test_clips_shared_out_over_two_processes_are_learned_as_by_one(given, tmp_path, count, shard):
    settings = ("steps=6", "checkpoint_every=3", "sample_every=100", "gradient_checkpointing=true", "shared_noise=0.2")
    run(count, command(given, tmp_path / "shared", 2, *settings, shard, "context_parallel=2"))
    run(1, command(given, tmp_path / "one", count, *settings))
    shared, one = tmp_path / "shared", tmp_path / "one"
    assert losses(shared) == pytest.approx(losses(one), rel=1e-4)
    assert losses(shared, "gradient_norm") == pytest.approx(losses(one, "gradient_norm"), rel=1e-3)


def test_held_out_clips_decide_which_checkpoint_is_the_best(given, tmp_path, monkeypatch):
    monkeypatch.setattr("vidgen.tabletop.render.can_compile", lambda device: False)
    settings = ("steps=6", "checkpoint_every=2", "keep_checkpoints=1", "validation_clips=6", "sample_every=100")
    arguments = [
        *command(given, tmp_path, 4, *settings, "learning_rate=0.03", "divergence_factor=1e9"),
        "--validation",
        given / "scenes.npz",
    ]
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
    train.main()
    with (tmp_path / "validation.csv").open() as file:
        rows = list(csv.DictReader(file))
    validation = {int(row["step"]): float(row["validation_loss"]) for row in rows}
    assert clips_in_cache(tmp_path / "validation-latents") == 4  # no more than there are, each once
    assert list(validation) == [2, 4, 6]
    best = min(validation, key=validation.get)
    assert {int(path.name[-7:]) for path in (tmp_path / "checkpoints").iterdir()} == {best, 6}
    assert {"validation_video", "validation_audio", "validation_video_noise_1_of_4"} <= set(rows[0])
    with (tmp_path / "log.csv").open() as file:
        row = next(csv.DictReader(file))
    assert {"gradient_norm", "tokens_per_s", "mfu", "memory_gib", "wait_s", "audio_noise_4_of_4"} <= set(row)


def test_an_optimizer_that_needs_whole_matrices_cannot_be_shared_out(monkeypatch):
    accelerator = SimpleNamespace(num_processes=2, distributed_type="MULTI_CPU")
    with pytest.raises(InputError, match="optimizer=adamw"):
        parallel.is_sharded(DiTConfig(shard=True, optimizer="muon"), accelerator)
    assert parallel.is_sharded(DiTConfig(shard=True), accelerator)
    assert not parallel.is_sharded(DiTConfig(), accelerator)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # by accelerate launch with an FSDP config
    assert parallel.is_sharded(DiTConfig(), accelerator)
    accelerator.num_processes = 1
    assert not parallel.is_sharded(DiTConfig(shard=True), accelerator)


def test_clips_that_cannot_be_shared_out_are_told():
    accelerator = SimpleNamespace(num_processes=3, device=torch.device("cpu"))
    settings = DiTConfig(context_parallel=2)
    with pytest.raises(InputError, match="3 processes do not make groups of context_parallel=2"):
        parallel.share_tokens(make_pipeline().transformer, settings, accelerator)
    with pytest.raises(InputError, match="an autoencoder has no tokens"):
        parallel.share_tokens(torch.nn.Linear(2, 2), settings, accelerator)
    parallel.share_tokens(torch.nn.Linear(2, 2), DiTConfig(), accelerator)  # over none


def test_gradient_checkpointing_gives_the_same_gradients():
    network = make_pipeline().transformer.train()
    inputs = (torch.randn(2, 24, 3, 4, 4), torch.randn(2, 32, 5), torch.randn(2, 6, 8))
    times = {"video_times_s": torch.arange(3.0), "audio_times_s": torch.arange(5.0)}
    sigmas = {"video_sigma": torch.full((2, 1, 1, 1), 0.4), "audio_sigma": torch.full((2, 1), 0.8)}
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            network.enable_gradient_checkpointing()
        video, audio = network(*inputs, **times, **sigmas)
        wanted = list(network.parameters())
        gradients.append(torch.autograd.grad(video.square().sum() + audio.square().sum(), wanted))
    assert network.gradient_checkpointing
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])


def test_processes_meet_every_few_seconds_and_answer_alike(monkeypatch):
    now, asked = [0.0], []
    monkeypatch.setattr(parallel.time, "perf_counter", lambda: now[0])

    def reduce(values, reduction):
        asked.append(values)
        return 2 * values + torch.tensor([raised_elsewhere, 0.0])  # another process as fast as this one

    accelerator = SimpleNamespace(num_processes=2, device="cpu", reduce=reduce)
    meeting, raised_elsewhere, answers = Meeting(accelerator, every_s=5.0), 0.0, []
    for step in range(1, 25):
        raised_elsewhere = 1.0 if step >= 13 else 0.0
        answers.append(meeting.is_any(step, False))
        now[0] += 0.5
    assert len(asked) == 4  # steps 1 and 2, before the pace is known, then 12 and 22
    assert [step for step, answer in enumerate(answers, 1) if answer] == [22]
    alone = Meeting(SimpleNamespace(num_processes=1), every_s=5.0)
    assert [alone.is_any(step, step == 3) for step in (1, 2, 3)] == [False, False, True]
