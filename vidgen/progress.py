"""How a training run goes: its losses, read late and logged, and the time that it may take."""

import contextlib
import csv
import dataclasses
import json
import math
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from . import config
from .errors import InputError
from .files import replacing

FAR_AWAY = 1 << 40
"""Steps that lie ahead while nobody knows how many there will be: no fall of the learning rate is in sight."""


class Unread:
    """Losses that are still on the training device, to be read many steps at a time: each read waits for the device.

    The sum of what is read is checked too: a loss that has left its running mean far behind ends the training.
    """

    def __init__(self, settings: config.TrainConfig, output: Path) -> None:
        self.settings, self.output = settings, output
        self.running: float | None = None
        self.rows: list[tuple[int, dict[str, Tensor], dict[str, float]]] = []

    def add(self, step: int, measured: dict[str, Tensor], known: dict[str, float]) -> None:
        self.rows.append((step, measured, known))

    def read(self) -> list[tuple[int, dict[str, float]]]:
        """Every step added since the last time, with its values.

        Raises:
            InputError: a loss or a gradient is not finite, or the loss has left its running mean far behind. No
                checkpoint has been written since, so the last one is sound.
        """
        if not self.rows:
            return []
        numbers = torch.stack([value.float() for _, measured, _ in self.rows for value in measured.values()]).tolist()
        values = iter(numbers)
        read = [(step, {**{key: next(values) for key in measured}, **known}) for step, measured, known in self.rows]
        self.rows = []
        for step, row in read:
            self._check(step - 1, row["loss"], row["gradient_norm"])
        return read

    def _check(self, step: int, loss: float, norm: float) -> None:
        running, limit = self.running, self.settings.divergence_factor
        if not (math.isfinite(loss) and math.isfinite(norm)):
            trouble = f"loss {loss} and gradient norm {norm}"
        elif running is not None and step > self.settings.warmup_steps and loss > limit * abs(running):
            trouble = f"a loss of {loss:.4g} against a running mean of {running:.4g}"
        else:
            self.running = loss if running is None else running + 0.05 * (loss - running)
            return
        raise InputError(
            f"training diverged at step {step}: {trouble}. The last checkpoint under {self.output / 'checkpoints'} is "
            "sound; lower learning_rate with --set and run the command again."
        )


class Allowance:
    """A stage's share of time, instead of a number of steps: whatever the machine, it ends when its time is spent.

    A learning rate on its plateau does not depend on how many steps there will be. So steps are counted until the
    plateau's share of the time is spent, and as many are added as the fall of the learning rate takes at the speed
    seen. What earlier runs spent, and the number of steps once it is settled, are kept beside the checkpoints.
    """

    def __init__(self, spend_s: float | None, output: Path, cooldown: float, step: int = 0) -> None:
        """``step`` is that of the checkpoint which training goes on from."""
        if spend_s is not None and not 0 <= cooldown < 1:
            raise InputError(f"--spend needs a plateau of the learning rate: cooldown is {cooldown}, give less than 1")
        self.spend_s, self.cooldown, self.path = spend_s, cooldown, output / "allowance.json"
        kept = json.loads(self.path.read_text()) if spend_s is not None and self.path.exists() else {}
        if kept.get("step", 0) > step:  # the checkpoint that it was kept beside is gone
            kept = {}
        self.spent_s = kept.get("spent_s", 0.0)
        self.steps = kept.get("steps") if kept.get("spend_s") == spend_s else None
        self.has_begun = False
        self.since: float | None = None

    @property
    def decided(self) -> bool:
        """Whether the number of steps is settled."""
        return self.spend_s is None or self.steps is not None

    def apply(self, settings: config.TrainConfig, step: int, accelerator: Accelerator) -> config.TrainConfig:
        """The settings with as many steps as time allows; to be called before each step, in every process."""
        if self.spend_s is None:
            return settings
        now = time.perf_counter()
        if self.since is not None:
            self.spent_s += now - self.since
        # The first step of a run compiles, which says nothing of its speed.
        self.has_begun, self.since = True, now if self.has_begun else None
        plateau_over = self.spent_s >= (1 - self.cooldown) * self.spend_s
        if self.steps is None and step > 0 and is_any(plateau_over, accelerator):
            self.steps = step + max(1, round(step * self.cooldown / (1 - self.cooldown)))
        return dataclasses.replace(settings, steps=self.steps or FAR_AWAY)

    def note(self, step: int) -> None:
        """Keep for the next run what is spent and settled; belongs beside every checkpoint."""
        if self.spend_s is not None:
            kept = {"step": step, "spend_s": self.spend_s, "spent_s": round(self.spent_s, 1), "steps": self.steps}
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps(kept))


def is_any(flag: bool, accelerator: Accelerator) -> bool:
    """Whether the flag is set in any process, so that all act alike."""
    if accelerator.num_processes == 1:
        return flag  # without asking the device
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), reduction="sum") > 0)


class Log:
    """Losses by part, as a progress bar, a CSV file and, where it is installed, TensorBoard."""

    def __init__(self, output: Path, active: bool, log_every: int, step: int, steps: int | None) -> None:
        self.active, self.every = active, log_every
        self.sums: dict[str, float] = {}
        self.count, self.since = 0, time.perf_counter()
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=None if active else True)
        self.path = output / "log.csv"
        self.board = None
        if active:
            self._forget_after(step)
        if active:
            with contextlib.suppress(ImportError):
                from torch.utils.tensorboard import SummaryWriter

                self.board = SummaryWriter(str(output / "tensorboard"), purge_step=step)

    def step(self, step: int, values: dict[str, float], steps: int | None) -> None:
        """One step's losses, its ``clips`` and ``wait_s``; ``steps`` are all there will be, where that is known."""
        for key, value in values.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        self.bar.total = steps
        self.count += 1
        self.bar.update(1)
        if step % self.every or not self.active:
            return
        seconds = time.perf_counter() - self.since
        row = {key: value / self.count for key, value in self.sums.items()}
        row["clips_per_s"] = self.sums["clips"] / seconds
        del row["clips"]
        self.bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, ["step", *row])
            if new:
                writer.writeheader()
            writer.writerow({"step": step, **{key: f"{value:.6g}" for key, value in row.items()}})
        if self.board is not None:
            for key, value in row.items():
                self.board.add_scalar(key, value, step)
        self.sums, self.count, self.since = {}, 0, time.perf_counter()

    def samples(self, step: int, figures: dict[str, float]) -> None:
        """What was measured of sample clips, for TensorBoard."""
        if self.board is not None:
            for key, value in figures.items():
                self.board.add_scalar(f"samples/{key}", value, step)

    def _forget_after(self, step: int) -> None:
        """Drop what a killed run had logged beyond the checkpoint that this one resumes from."""
        if self.path.exists() and self.path.stat().st_size == 0:
            self.path.unlink()  # a full disk left it
        if self.path.exists():
            header, *rows = self.path.read_text().splitlines()
            kept = [row for row in rows if int(row.split(",", 1)[0]) <= step]
            self.path.write_text("\n".join([header, *kept]) + "\n")

    def close(self) -> None:
        self.bar.close()
        if self.board is not None:
            self.board.close()
