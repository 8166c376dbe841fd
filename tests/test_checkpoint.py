import errno

import pytest
import torch

from vidgen import checkpoint
from vidgen.errors import InputError


def trained(steps, resume_from=None, save_to=None, save_at=None):
    """Weights after some steps on a fixed problem, optionally by way of a checkpoint."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step = 0
    if resume_from:
        step, _ = checkpoint.load_latest(resume_from, {"model": model}, {"adamw": optimizer})
    while step < steps:
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(inputs) - inputs).square().mean().backward()
        optimizer.step()
        step += 1
        if step == save_at:
            checkpoint.save(save_to, step, {"model": model}, {"adamw": optimizer}, keep=1)
    return model.weight.detach()


def test_resumed_training_is_bit_equal_to_uninterrupted(tmp_path):
    whole = trained(9, save_to=tmp_path, save_at=4)
    assert torch.equal(trained(9, resume_from=tmp_path), whole)


def test_old_checkpoints_are_rotated_and_no_part_is_left(tmp_path):
    model = torch.nn.Linear(2, 2)
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, {"model": model}, {}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000002", "step-0000003"]


def test_a_damaged_checkpoint_is_an_input_error(tmp_path):
    model = torch.nn.Linear(2, 2)
    checkpoint.save(tmp_path, 1, {"model": model}, {}, keep=1)
    file = tmp_path / "step-0000001" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(InputError, match="step-0000001"):
        checkpoint.load_latest(tmp_path, {"model": model}, {})


def test_a_full_disk_is_an_input_error_and_spares_the_last_checkpoint(monkeypatch, tmp_path):
    model, written = torch.nn.Linear(2, 2), []
    checkpoint.save(tmp_path, 1, {"model": model}, {}, keep=1)
    before = (tmp_path / "step-0000001" / "model.safetensors").read_bytes()

    def save_file(tensors, path):
        written.append(path)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_bytes(b"half")

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    with pytest.raises(InputError, match=r"step 2 cannot be written.*No space left"):
        checkpoint.save(tmp_path, 2, {"model": model, "average": model}, {}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
    assert (tmp_path / "step-0000001" / "model.safetensors").read_bytes() == before
