"""What a training run may spend, and when its losses are read."""

import csv
import dataclasses
import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from vidgen import progress
from vidgen.config import TrainConfig
from vidgen.errors import InputError
from vidgen.parallel import Meeting
from vidgen.progress import Allowance, Log, Unread, Work
from vidgen.trackers import open_trackers


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def steps_made(allowance, clock, seconds_a_step, start=0, most=10**6):
    settings, step, meeting = TrainConfig(cooldown=0.3), start, Meeting(Accelerator(cpu=True))
    while step < most and step < allowance.apply(settings, step, meeting).steps:
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


def test_what_several_processes_measured_is_read_as_their_mean_in_one_exchange(tmp_path):
    exchanged = []

    def reduce(values, reduction):
        exchanged.append(reduction)
        return values + 1.0  # the other process had 2 more in everything

    unread = Unread(TrainConfig(), tmp_path, SimpleNamespace(num_processes=2, reduce=reduce))
    for step in (1, 2):
        unread.add(step, {"loss": torch.tensor(float(step)), "gradient_norm": torch.tensor(0.5)}, {"wait_s": 0.25})
    assert unread.read() == [(step, {"loss": step + 1, "gradient_norm": 1.5, "wait_s": 1.25}) for step in (1, 2)]
    assert exchanged == ["mean"]


def test_a_row_has_rates_means_by_level_and_what_the_devices_could_do(tmp_path, clock):
    tracked = []
    tracker = SimpleNamespace(log=lambda row, step: tracked.append((step, row)), close=lambda: None)
    work = Work(tokens=100, flops=3e9, peak_flops_per_s=1e12)
    log = Log(tmp_path, True, 2, 0, 4, work, [tracker])
    for step, (error, seen) in enumerate(((6.0, 2.0), (0.0, 0.0)), start=1):
        clock[0] += 0.5
        levels = {"video_noise_1_of_2": error, "video_noise_1_of_2_seen": seen}
        levels |= {"video_noise_2_of_2": 0.0, "video_noise_2_of_2_seen": 0.0}
        log.step(step, {"loss": 1.0 * step, **levels, "clips": 8.0, "wait_s": 0.1}, 4)
    ((step, row),) = tracked
    assert step == 2
    assert (row["loss"], row["wait_s"]) == (1.5, pytest.approx(0.1))
    assert (row["clips_per_s"], row["tokens_per_s"]) == (16.0, 1600.0)
    assert row["mfu"] == pytest.approx(16 * 3e9 / 1e12)
    assert row["video_noise_1_of_2"] == 3.0  # six in two, though the other step had none
    assert math.isnan(row["video_noise_2_of_2"])
    assert row["memory_gib"] > 0
    assert "clips" not in row
    log.aside("validation", 2, {"loss": 0.5})
    log.close()
    assert (tmp_path / "validation.csv").read_text().splitlines() == ["step,validation_loss", "2,0.5"]
    with (tmp_path / "log.csv").open() as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == [1.5]


def test_rows_fit_the_columns_that_a_log_began_with_and_later_ones_are_forgotten(tmp_path, clock):
    (tmp_path / "log.csv").write_text("step,loss,old\n1,3,4\n2,2,5\n3,9,9\n")
    log = Log(tmp_path, True, 1, 2, 4)
    clock[0] += 1
    log.step(3, {"loss": 1.0, "clips": 1.0}, 4)
    log.close()
    assert (tmp_path / "log.csv").read_text().splitlines() == ["step,loss,old", "1,3,4", "2,2,5", "3,1,"]


def test_a_tracker_is_opened_by_name_given_every_row_and_closed(tmp_path, monkeypatch):
    calls = []
    stand_in = SimpleNamespace(
        init=lambda **settings: calls.append(settings),
        log=lambda values, step: calls.append((step, values)),
        finish=lambda: calls.append("finished"),
    )
    monkeypatch.setitem(sys.modules, "trackio", stand_in)
    (tracker,) = open_trackers(["trackio"], tmp_path / "run", {"steps": 3}, 0)
    tracker.log({"loss": 1.0}, 5)
    tracker.close()
    assert calls == [{"project": "vidgen", "name": "run", "config": {"steps": 3}}, (5, {"loss": 1.0}), "finished"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="pip install wandb"):
        open_trackers(["wandb"], tmp_path, {}, 0)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert open_trackers(None, tmp_path, {}, 0) == []


def test_a_run_that_goes_on_keeps_its_checkpoints_own_row_and_drops_later_ones(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for resumed_at, steps in ((0, (1, 2, 3)), (2, (3,))):
        (tracker,) = open_trackers(["tensorboard"], tmp_path, {}, resumed_at)
        for step in steps:
            tracker.log({"loss": float(step + 10 * resumed_at)}, step)
        tracker.close()
        for file in (tmp_path / "tensorboard").glob(
            "events.out.tfevents.??????????.*"
        ):  # files are read by their second
            file.rename(file.with_name(f"events.out.tfevents.{resumed_at + 1}.run"))
    shown = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert [(row.step, row.value) for row in shown.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 23.0)]
