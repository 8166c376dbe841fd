"""Solvers of the flow's differential equation dx/dσ = v(x, σ), from noise (σ = 1) to clean (σ = 0).

They know no prompts and no networks. The state is a tuple of streams, (video, audio) here, of which any may be None;
all solvers have one signature: ``solver(velocity_fn, x, sigmas, callback) -> x``.

    velocity_fn(x, sigma): velocities of the streams at ``x``, where ``sigma`` is a tuple with one entry a stream.
    sigmas: a descending schedule (steps + 1, …), or a tuple with one schedule a stream. What follows the first axis
        broadcasts against the stream, so that every token can have its own schedule; a schedule of zeros leaves its
        tokens exactly as they are.
    callback(step, clean, x): called after each step with its number, from 0, the clean streams as estimated at the
        beginning of the step, x − σ·v, and the state that the step came to; a state that it returns takes its place.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .errors import InputError
from .flow import shift_sigma
from .noise import seeded_normal

State = tuple[Tensor | None, ...]
Sigmas = Tensor | tuple[Tensor, ...]
VelocityFn = Callable[[State, tuple[Tensor, ...]], State]
Seeds = tuple[list[int] | None, ...]
Callback = Callable[[int, State, State], State | None]


def sigma_schedule(steps: int, shift: float = 1.0) -> Tensor:
    """Noise levels (steps + 1,) from exactly 1 to exactly 0: evenly spaced, then shifted (see ``flow.shift_sigma``).

    Raises:
        InputError: fewer than one step, or a shift that is not positive.
    """
    if steps < 1:
        raise InputError(f"{steps} steps make no sample: give at least 1")
    if shift <= 0:
        raise InputError(f"a shift of {shift} is not positive")
    return shift_sigma(torch.linspace(1, 0, steps + 1), shift)


def euler(velocity_fn: VelocityFn, x: State, sigmas: Sigmas, callback: Callback | None = None) -> State:
    """First order, one evaluation a step; exact where the paths are straight."""
    schedules = _schedules(x, sigmas)
    for step in range(len(schedules[0]) - 1):
        sigma, following = _at(schedules, step), _at(schedules, step + 1)
        velocity = velocity_fn(x, sigma)
        x = _report(callback, step, x, sigma, velocity, _move(x, sigma, following, velocity))
    return x


def heun(velocity_fn: VelocityFn, x: State, sigmas: Sigmas, callback: Callback | None = None) -> State:
    """Second order, two evaluations a step: the mean of the velocities at both ends (Karras et al. 2022, arXiv
    2206.00364, algorithm 1). The last step is an Euler step, since networks are not trained at σ = 0."""
    schedules = _schedules(x, sigmas)
    steps = len(schedules[0]) - 1
    for step in range(steps):
        sigma, following = _at(schedules, step), _at(schedules, step + 1)
        velocity = mean = velocity_fn(x, sigma)
        if step < steps - 1:
            ahead = velocity_fn(_move(x, sigma, following, velocity), following)
            pairs = zip(velocity, ahead, strict=True)
            mean = tuple(None if v is None or w is None else (v + w) / 2 for v, w in pairs)
        x = _report(callback, step, x, sigma, velocity, _move(x, sigma, following, mean))
    return x


def midpoint(velocity_fn: VelocityFn, x: State, sigmas: Sigmas, callback: Callback | None = None) -> State:
    """Second order, two evaluations a step: the velocity half-way, which is never at σ = 0."""
    schedules = _schedules(x, sigmas)
    for step in range(len(schedules[0]) - 1):
        sigma, following = _at(schedules, step), _at(schedules, step + 1)
        middle = tuple((a + b) / 2 for a, b in zip(sigma, following, strict=True))
        velocity = velocity_fn(x, sigma)
        half_way = velocity_fn(_move(x, sigma, middle, velocity), middle)
        x = _report(callback, step, x, sigma, velocity, _move(x, sigma, following, half_way))
    return x


def euler_ancestral(
    velocity_fn: VelocityFn, x: State, sigmas: Sigmas, callback: Callback | None = None, seeds: Seeds | None = None
) -> State:
    """An Euler step that goes too far, to σ'²/σ, and back to σ' by fresh noise: the errors of earlier steps fade with
    the noise that they stood in (ancestral sampling, Song et al. 2021, arXiv 2011.13456, appendix F, on this path).

    All latents with a noise level get noise, those with a velocity of 0 as well.

    Args:
        seeds: of that noise, for each stream one a sample; None takes the ``fingerprints`` of the state.
    """
    schedules = _schedules(x, sigmas)
    seeds = fingerprints(x) if seeds is None else seeds
    for step in range(len(schedules[0]) - 1):
        sigma, following = _at(schedules, step), _at(schedules, step + 1)
        below = tuple(end * end / start.clamp(min=1e-12) for start, end in zip(sigma, following, strict=True))
        velocity = velocity_fn(x, sigma)
        streams = zip(_move(x, sigma, below, velocity), below, following, seeds, strict=True)
        noisy = tuple(
            None if stream is None or seed is None else _renoised(stream, low, level, seed, step * len(x) + place)
            for place, (stream, low, level, seed) in enumerate(streams)
        )
        x = _report(callback, step, x, sigma, velocity, noisy)
    return x


def _renoised(x: Tensor, start: Tensor, end: Tensor, seeds: list[int], draw: int) -> Tensor:
    """From a noise level up to another one, where both stand on the path; exactly the same where they are equal."""
    scale = (1 - end) / (1 - start)
    spread = (end**2 - (scale * start) ** 2).clamp(min=0).sqrt()
    return scale * x + spread * seeded_normal(seeds, x.shape[1:], x.device, stream=draw).to(x)


def fingerprints(x: State) -> Seeds:
    """A seed for each sample of each stream, from all its bits."""
    bits = (None if stream is None else stream.float().contiguous().view(torch.int32) for stream in x)
    return tuple(None if b is None else b.reshape(len(b), -1).sum(1, dtype=torch.int64).abs().tolist() for b in bits)


def _schedules(x: State, sigmas: Sigmas) -> tuple[Tensor, ...]:
    schedules = sigmas if isinstance(sigmas, tuple) else (sigmas,) * len(x)
    if len(schedules) != len(x):
        raise InputError(f"{len(x)} streams need as many schedules, not {len(schedules)}")
    lengths = {len(schedule) for schedule in schedules}
    if len(lengths) != 1 or lengths.pop() < 2:
        raise InputError("schedules need two noise levels or more, and the same number for all streams")
    device = next(stream.device for stream in x if stream is not None)
    return tuple(schedule.to(device) for schedule in schedules)


def _at(schedules: tuple[Tensor, ...], step: int) -> tuple[Tensor, ...]:
    return tuple(schedule[step] for schedule in schedules)


def _move(x: State, start: tuple[Tensor, ...], end: tuple[Tensor, ...], velocity: State) -> State:
    streams = zip(x, start, end, velocity, strict=True)
    return tuple(None if s is None or v is None else s + (b - a) * v for s, a, b, v in streams)


def _report(
    callback: Callback | None, step: int, x: State, sigma: tuple[Tensor, ...], velocity: State, following: State
) -> State:
    """The state to go on with: ``following``, or what the callback makes of it."""
    if callback is None:
        return following
    clean = _move(x, sigma, tuple(torch.zeros_like(level) for level in sigma), velocity)
    changed = callback(step, clean, following)
    return following if changed is None else changed
