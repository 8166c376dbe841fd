import errno

import pytest
import torch
from safetensors.torch import load_file, save_file

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


def test_the_best_by_validation_loss_is_never_rotated_away(tmp_path):
    model = torch.nn.Linear(2, 2)
    for step, loss in ((1, 0.9), (2, 0.3), (3, 0.5), (4, 0.4), (5, None)):
        notes = {} if loss is None else {"validation": loss}
        checkpoint.save(tmp_path, step, {"model": model}, {}, keep=1, notes=notes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000002", "step-0000005"]
    checkpoint.save(tmp_path, 6, {"model": model}, {}, keep=1, notes={"validation": 0.2})
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000006"]


def test_notes_come_back_and_checkpoints_from_before_there_were_any_still_load(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint.save(tmp_path, 7, {"model": model}, {"adamw": optimizer}, keep=1, notes={"clips_seen": 28})
    assert checkpoint.load_latest(tmp_path, {"model": model}, {"adamw": optimizer}) == (7, {"clips_seen": 28})
    folder = tmp_path / "step-0000007"
    (folder / "notes.json").unlink()
    stored = load_file(folder / "adamw.safetensors")
    save_file({key: value[0] if key.endswith(".step") else value for key, value in stored.items()},
              folder / "adamw.safetensors")  # fmt: skip
    other = torch.optim.AdamW(model.parameters(), lr=0.1)
    assert checkpoint.load_latest(tmp_path, {"model": model}, {"adamw": other}) == (7, {})
    before, after = (list(adamw.state_dict()["state"].values()) for adamw in (optimizer, other))
    assert all(torch.equal(old[key], new[key]) for old, new in zip(before, after, strict=True) for key in old)


def test_a_checkpoint_that_lost_a_file_or_fits_another_network_is_an_input_error(tmp_path):
    checkpoint.save(tmp_path, 1, {"model": torch.nn.Linear(2, 2), "average": torch.nn.Linear(2, 2)}, {}, keep=1)
    wider = {"model": torch.nn.Linear(2, 3), "average": torch.nn.Linear(2, 2)}
    with pytest.raises(InputError, match=r"model: \w+ is \(2.*not \(3"):
        checkpoint.load_latest(tmp_path, wider, {})
    with pytest.raises(InputError, match="model has other tensors, such as bias"):
        checkpoint.load_latest(tmp_path, {"model": torch.nn.Linear(2, 2, bias=False)}, {})
    (tmp_path / "step-0000001" / "average.safetensors").unlink()
    with pytest.raises(InputError, match=r"average\.safetensors is missing"):
        checkpoint.load_latest(tmp_path, {"model": torch.nn.Linear(2, 2)}, {})
