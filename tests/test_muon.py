"""Muon against the singular value decomposition and against PyTorch's own."""

import pytest
import torch

from vidgen.muon import Muon, orthogonal


def matrices():
    generator = torch.Generator().manual_seed(0)
    shapes = [(48, 32), (32, 64), (48, 32), (32, 32)]
    return [torch.nn.Parameter(torch.randn(*shape, generator=generator)) for shape in shapes]


@pytest.mark.parametrize("shape", [(48, 32), (32, 64)])
def test_a_step_keeps_the_singular_vectors_and_levels_the_values(shape):
    given = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(given, full_matrices=False)
    answer = left.mT @ orthogonal(given, 5).float() @ right.mT
    values = answer.diagonal(dim1=1, dim2=2)
    assert (answer - torch.diag_embed(values)).abs().max() < 0.08  # bfloat16
    assert values.min() > 0.5
    assert values.max() < 1.35


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon to compare with")
def test_together_they_go_as_one_after_the_other_does_in_torch():
    ours, theirs = matrices(), matrices()
    ours.append(torch.nn.Parameter(torch.ones(32, 32)))  # without a gradient: left alone
    optimizer = Muon(ours, lr=0.02, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = [matrix.detach().clone() for matrix in theirs]
    for step in range(5):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=False)):
            one.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(10 * step + number))
            other.grad = one.grad.clone()
        optimizer.step()
        reference.step()
    for one, other, before in zip(ours, theirs, start, strict=False):
        assert (one - other).norm() < 0.02 * (other - before).norm()
    assert torch.equal(ours[-1].detach(), torch.ones(32, 32))
    for name, state in reference.state_dict()["state"].items():
        assert torch.allclose(optimizer.state_dict()["state"][name]["momentum_buffer"], state["momentum_buffer"])
