"""What a training run may spend, and when its losses are read."""

import dataclasses
import json

import pytest
import torch
from accelerate import Accelerator

from vidgen import progress
from vidgen.config import TrainConfig
from vidgen.errors import InputError
from vidgen.parallel import Meeting
from vidgen.progress import Allowance, Unread


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def steps_made(allowance, clock, seconds_a_step, start=0, most=10**6):
    settings, step = TrainConfig(cooldown=0.3), start
    while step < most and step < allowance.apply(settings, step, Meeting(Accelerator(cpu=True))).steps:
        clock[0] += seconds_a_step
        step += 1
    return step


@pytest.mark.parametrize("seconds_a_step", [0.02, 1.0])
def test_a_stage_ends_when_its_time_is_spent_whatever_the_speed(tmp_path, clock, seconds_a_step):
    steps = steps_made(Allowance(60, tmp_path, 0.3), clock, seconds_a_step)
    # The first step, which does not count, lengthens the plateau, and the fall of the learning rate with it.
    assert steps * seconds_a_step == pytest.approx(60 + seconds_a_step / 0.7, abs=2 * seconds_a_step)


def test_what_earlier_runs_spent_counts_and_a_settled_number_of_steps_stays(tmp_path, clock):
    first = Allowance(60, tmp_path, 0.3)
    assert steps_made(first, clock, 1.0, most=30) == 30
    first.note(30)
    clock[0] += 1000  # the pause between two runs is not training
    second = Allowance(60, tmp_path, 0.3, 30)
    assert not second.decided
    assert steps_made(second, clock, 1.0, start=30, most=50) == 50
    second.note(50)
    assert second.decided
    third = Allowance(60, tmp_path, 0.3, 50)
    assert third.decided
    assert (
        steps_made(third, clock, 7.0, start=50) == second.steps == pytest.approx(60 + 2 / 0.7, abs=2)
    )  # two first steps
    assert json.loads((tmp_path / "allowance.json").read_text())["steps"] == second.steps
    assert not Allowance(90, tmp_path, 0.3, 50).decided  # more time than was settled for
    lost = Allowance(60, tmp_path, 0.3, 49)  # an older checkpoint than the time belongs to
    assert (lost.spent_s, lost.decided) == (0, False)


def test_the_first_step_of_a_run_compiles_and_does_not_count(tmp_path, clock):
    allowance = Allowance(60, tmp_path, 0.3)
    for step, seconds in enumerate((500.0, 1.0, 1.0)):
        allowance.apply(TrainConfig(), step, Meeting(Accelerator(cpu=True)))
        clock[0] += seconds
    allowance.apply(TrainConfig(), 3, Meeting(Accelerator(cpu=True)))
    assert allowance.spent_s == 2.0


def test_without_an_allowance_the_settings_rule(tmp_path, clock):
    allowance = Allowance(None, tmp_path, 1.0)
    settings = TrainConfig(steps=7)
    assert allowance.apply(settings, 3, Meeting(Accelerator(cpu=True))) is settings
    allowance.note(3)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="plateau"):
        Allowance(10, tmp_path, 1.0)


def test_losses_are_read_in_order_and_all_at_once(tmp_path):
    unread = Unread(TrainConfig(), tmp_path)
    for step in (1, 2, 3):
        values = {"loss": torch.tensor(1.0 * step), "gradient_norm": torch.tensor(0.5, dtype=torch.bfloat16)}
        unread.add(step, values, {"clips": 4})
    read = unread.read()
    assert read == [(step, {"loss": step, "gradient_norm": 0.5, "clips": 4}) for step in (1, 2, 3)]
    assert unread.read() == []


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (1.0, float("inf")), (11.0, 1.0)])
def test_the_step_that_diverged_is_named_however_late_it_is_read(tmp_path, loss, norm):
    unread = Unread(dataclasses.replace(TrainConfig(), warmup_steps=2, divergence_factor=10), tmp_path)
    for step in range(1, 9):
        values = (loss, norm) if step == 6 else (1.0, 1.0)
        unread.add(step, dict(zip(("loss", "gradient_norm"), map(torch.tensor, values), strict=True)), {})
    with pytest.raises(InputError, match="diverged at step 5"):
        unread.read()
