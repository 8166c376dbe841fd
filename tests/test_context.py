"""A clip's tokens shared out over two gloo processes: the same velocities and gradients as of one that has them all."""

import multiprocessing
import socket

import pytest
import torch
import torch.distributed as dist

from vidgen.dit import context
from vidgen.dit.model import JointDiT
from vidgen.errors import InputError

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["vidgen.dit.model"])


def transformer():
    """One whose every part has something to say."""
    torch.manual_seed(5)
    network = JointDiT(text_dim=8, width=32, depth=2, heads=4, text_layers=1, local_width=4, video_std=[0.7] * 24)
    network = network.double().train()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network


def inputs(kind):
    """Streams that do not divide evenly, padded prompts, and levels of the clip, of frames or of single tokens."""
    chance = torch.Generator().manual_seed(7)
    video, audio = torch.randn(2, 24, 3, 2, 6, generator=chance).double(), torch.randn(2, 32, 5, generator=chance)
    given = {
        "video": video,
        "audio": audio.double(),
        "text": torch.randn(2, 6, 8, generator=chance).double(),
        "text_mask": torch.tensor([[True] * 6, [True] * 2 + [False] * 4]),
        "video_sigma": torch.rand(2, *{"clip": (1, 1, 1), "frames": (3, 1, 1)}.get(kind, (3, 2, 6)), generator=chance),
        "audio_sigma": torch.rand(2, 1 if kind == "clip" else 5, generator=chance),
        "video_times_s": torch.arange(3.0) / 6,
        "audio_times_s": torch.arange(5.0) / 25,
    }
    if kind == "sound":
        del given["text_mask"]
        given |= {"video": None, "video_sigma": None, "audio": given["audio"][..., :4], "audio_times_s": torch.ones(4)}
        given |= {"audio_sigma": given["audio_sigma"][:, :4], "text": given["text"][:, :5]}  # nothing to fill up
    return given


def answer(network, given):
    """Velocities and gradients of a loss."""
    network.zero_grad(set_to_none=True)
    velocities = [part for part in network(**given) if part is not None]
    sum((part * torch.linspace(-1, 1, part.numel()).view_as(part)).sum() for part in velocities).backward()
    return [part.detach() for part in velocities], [parameter.grad for parameter in network.parameters()]


def one_rank(rank, size, port, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    network = transformer()
    context.share_tokens(network, dist.group.WORLD)
    found = {}
    for kind in KINDS:
        if kind == "frames":
            network.enable_gradient_checkpointing()
        velocities, gradients = answer(network, inputs(kind))
        for gradient in gradients:
            if gradient is not None:  # as DDP does
                dist.all_reduce(gradient)
                gradient /= size
        found[kind] = velocities, gradients
    torch.save(found, results / f"{rank}.pt")
    dist.destroy_process_group()


KINDS = ("clip", "frames", "tokens", "sound")


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_together_answer_and_learn_as_one_does(tmp_path, size):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [PROCESSES.Process(target=one_rank, args=(rank, size, port, tmp_path)) for rank in range(size)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0] * size
    network = transformer()
    for kind in KINDS:
        velocities, gradients = answer(network, inputs(kind))
        assert all(part.abs().max() > 1e-2 for part in velocities)
        for rank in range(size):
            together, learned = torch.load(tmp_path / f"{rank}.pt", weights_only=True)[kind]
            for one, other in zip(velocities, together, strict=True):
                torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-6)
            for (name, _), one, other in zip(network.named_parameters(), gradients, learned, strict=True):
                assert (one is None) == (other is None), name
                if one is not None:
                    torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-6 * float(one.abs().max()), msg=name)


def test_heads_that_cannot_be_shared_out_are_told(monkeypatch):
    monkeypatch.setattr(dist, "get_world_size", lambda group: 3)
    monkeypatch.setattr(dist, "get_rank", lambda group: 0)
    with pytest.raises(InputError, match="heads cannot be shared out over context_parallel=3"):
        context.share_tokens(JointDiT(width=32, depth=1, heads=4), None)
