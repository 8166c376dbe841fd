import math

import pytest
import torch

from vidgen.errors import InputError
from vidgen.flow import preconditioning
from vidgen.solvers import euler, euler_ancestral, heun, midpoint, sigma_schedule

SOLVERS = [euler, heun, midpoint]
ALL_SOLVERS = [*SOLVERS, euler_ancestral]


def error_of(solver, steps: int) -> float:
    """dx/dσ = x·cos(3σ) has the solution x(σ) = x(1)·exp((sin 3σ − sin 3) / 3)."""
    start = torch.ones(1, dtype=torch.float64)

    def velocity(x, sigma):
        return (x[0] * torch.cos(3 * sigma[0]),)

    (end,) = solver(velocity, (start,), torch.linspace(1, 0, steps + 1, dtype=torch.float64))
    return abs(float(end) - math.exp(-math.sin(3) / 3))


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (heun, 2), (midpoint, 2)])
def test_convergence_order(solver, order):
    coarse, fine = error_of(solver, 200), error_of(solver, 400)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 3])
def test_straight_paths_are_exact_and_streams_keep_their_own_schedules(solver, steps):
    clean, noise = torch.randn(2, 2, 3, 4, dtype=torch.float64).unbind()

    def velocity(x, sigma):
        assert torch.allclose(x[0], clean + sigma[0] * (noise - clean))
        assert torch.allclose(x[1], noise + sigma[1] * (clean - noise))
        return noise - clean, clean - noise

    schedules = sigma_schedule(steps, 3.0).double(), sigma_schedule(steps, 0.5).double()
    video, audio = solver(velocity, (noise, clean), schedules)
    assert torch.allclose(video, clean)
    assert torch.allclose(audio, noise)


@pytest.mark.parametrize("solver", ALL_SOLVERS)
def test_tokens_with_a_schedule_of_zeros_stay_bit_for_bit(solver):
    x = torch.randn(2, 3, 5)
    wanted = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0])
    (end,) = solver(lambda x, sigma: (x[0] * 1e3,), (x,), sigma_schedule(4)[:, None] * wanted)
    assert torch.equal(end[..., wanted == 0], x[..., wanted == 0])
    assert not torch.isclose(end[..., wanted == 1], x[..., wanted == 1]).any()


@pytest.mark.parametrize("solver", ALL_SOLVERS)
def test_an_absent_stream_stays_absent(solver):
    video, audio = solver(lambda x, sigma: (x[0], None), (torch.ones(1), None), sigma_schedule(2))
    assert audio is None
    assert video.shape == (1,)


@pytest.mark.parametrize("solver", [heun, midpoint])
def test_networks_are_not_asked_at_sigma_zero(solver):
    asked = []
    solver(lambda x, sigma: (asked.append(float(sigma[0])), x)[1], (torch.ones(1),), sigma_schedule(3))
    assert min(asked) > 0


def gaussian_velocity(std):
    """Of clean values that are normal with this deviation: exact, as flow.preconditioning has it."""

    def velocity(x, sigma):
        return (preconditioning(sigma[0], torch.tensor(std)).skip * x[0],)

    return velocity


def ancestral_variances(std, steps):
    """Over the path's own, at each noise level; and how the end correlates with the start."""
    start = torch.randn(16, 1000, generator=torch.Generator().manual_seed(0))
    sigmas, spreads = sigma_schedule(steps, 3.0), []

    def note(step, _, x):
        spreads.append(float(x[0].var()))

    (end,) = euler_ancestral(gaussian_velocity(std), (start,), sigmas, note)
    path = (1 - sigmas[1:]) ** 2 * std**2 + sigmas[1:] ** 2
    return torch.tensor(spreads) / path, float(torch.corrcoef(torch.stack([start.flatten(), end.flatten()]))[0, 1])


def test_ancestral_steps_keep_the_variance_of_the_path_and_forget_the_start():
    """To first order in the step: four times the steps leave about a quarter of the error."""
    coarse, _ = ancestral_variances(0.3, 100)
    fine, correlation = ancestral_variances(0.3, 400)
    assert float((fine - 1).abs().max()) < 0.08
    assert float((coarse - 1).abs().max()) > 2 * float((fine - 1).abs().max())
    assert abs(correlation) < 0.05  # a plain Euler step keeps all of it


def test_ancestral_noise_is_each_sample_s_own():
    start = torch.randn(3, 50)
    (together,) = euler_ancestral(gaussian_velocity(1.0), (start,), sigma_schedule(4))
    alone = [euler_ancestral(gaussian_velocity(1.0), (start[n : n + 1],), sigma_schedule(4))[0] for n in range(3)]
    assert torch.equal(together, torch.cat(alone))
    (other,) = euler_ancestral(gaussian_velocity(1.0), (start + 1e-6,), sigma_schedule(4))
    assert (other - together).std() > 0.1


def test_callback_gets_the_clean_estimate():
    seen = []
    clean, noise = torch.zeros(3), torch.ones(3)

    def callback(step, estimate, x):
        seen.append((step, estimate[0]))

    euler(lambda x, sigma: (noise - clean,), (noise,), sigma_schedule(4), callback)
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert all(torch.allclose(estimate, clean, atol=1e-6) for _, estimate in seen)


@pytest.mark.parametrize("solver", [euler, heun, midpoint])
def test_what_a_callback_returns_goes_on(solver):
    """The state that the callback sees is the one that the step came to, and another one may take its place."""
    states = []

    def keep(step, _, x):
        states.append(float(x[0]))

    noise = torch.ones(())
    end = solver(lambda x, sigma: (noise,), (noise,), sigma_schedule(4), keep)
    assert states == pytest.approx([0.75, 0.5, 0.25, 0.0])
    assert float(end[0]) == pytest.approx(states[-1])
    moved = solver(lambda x, sigma: (noise,), (noise,), sigma_schedule(4), lambda step, _, x: (x[0] + 1,))
    assert float(moved[0]) == pytest.approx(4)


@pytest.mark.parametrize("shift", [0.3, 1.0, 12.0])
def test_schedule_ends_exactly_and_descends(shift):
    sigmas = sigma_schedule(7, shift)
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert len(sigmas) == 8
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize(("steps", "shift"), [(0, 1.0), (4, 0.0), (4, -1.0)])
def test_impossible_schedules_are_named(steps, shift):
    with pytest.raises(InputError):
        sigma_schedule(steps, shift)


def test_schedules_must_fit_the_streams():
    x = (torch.ones(1), torch.ones(1))
    with pytest.raises(InputError, match="schedules"):
        euler(lambda x, sigma: x, x, (sigma_schedule(2),))
    with pytest.raises(InputError, match="same number"):
        euler(lambda x, sigma: x, x, (sigma_schedule(2), sigma_schedule(3)))
