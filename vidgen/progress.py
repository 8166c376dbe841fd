"""How a training run goes: its losses, read late and logged, and the time that it may take."""

import csv
import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from . import cli, config
from .errors import InputError
from .files import replacing
from .parallel import Meeting
from .trackers import Tracker

FAR_AWAY = 1 << 40
"""Steps that lie ahead while nobody knows how many there will be: no fall of the learning rate is in sight."""


class Unread:
    """Losses that are still on the training device, to be read many steps at a time: each read waits for the device.

    The sum of what is read is checked too: a loss that has left its running mean far behind ends the training.
    """

    def __init__(self, settings: config.TrainConfig, output: Path, accelerator: Accelerator | None = None) -> None:
        """With ``accelerator``, what is read is the mean over its processes: all must read at the same steps."""
        self.settings, self.output, self.accelerator = settings, output, accelerator
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
        numbers = torch.stack([value.float() for _, measured, _ in self.rows for value in measured.values()])
        if self.accelerator is not None and self.accelerator.num_processes > 1:
            others = [value for _, _, known in self.rows for value in known.values()]
            numbers = torch.cat((numbers, torch.tensor(others, device=numbers.device)))
            numbers = self.accelerator.reduce(numbers, reduction="mean")
        values = iter(numbers.tolist())
        read = [(step, {key: next(values) for key in measured}) for step, measured, _ in self.rows]
        for (_, row), (_, _, known) in zip(read, self.rows, strict=True):
            row |= {key: next(values, value) for key, value in known.items()}
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

    def apply(self, settings: config.TrainConfig, step: int, meeting: Meeting) -> config.TrainConfig:
        """The settings with as many steps as time allows; to be called before each step, in every process."""
        if self.spend_s is None:
            return settings
        now = time.perf_counter()
        if self.since is not None:
            self.spent_s += now - self.since
        # The first step of a run compiles, which says nothing of its speed.
        self.has_begun, self.since = True, now if self.has_begun else None
        plateau_over = self.spent_s >= (1 - self.cooldown) * self.spend_s
        if self.steps is None and step > 0 and meeting.is_any(step, plateau_over):
            self.steps = step + max(1, round(step * self.cooldown / (1 - self.cooldown)))
        return dataclasses.replace(settings, steps=self.steps or FAR_AWAY)

    def note(self, step: int) -> None:
        """Keep for the next run what is spent and settled; belongs beside every checkpoint."""
        if self.spend_s is not None:
            kept = {"step": step, "spend_s": self.spend_s, "spent_s": round(self.spent_s, 1), "steps": self.steps}
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps(kept))


@dataclasses.dataclass(frozen=True)
class Work:
    """What a clip takes to train: tokens and floating-point operations; 0 where that is not counted."""

    tokens: int = 0
    flops: float = 0.0
    peak_flops_per_s: float = 0.0
    """Of all devices together, as stated or measured."""


def measured_peak_flops_per_s(device: torch.device, bf16: bool) -> float:
    """How fast a device multiplies large matrices: the best of some tries, in the precision of training."""
    size = 4096 if device.type == "cuda" else 1024
    matrix = torch.ones(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    fastest_s = math.inf
    for _ in range(5):
        started = time.perf_counter()
        product = matrix @ matrix
        float(product[0, 0])  # waits for the device
        fastest_s = min(fastest_s, time.perf_counter() - started)
    return 2 * size**3 / fastest_s


def by_level(values: dict[str, float]) -> dict[str, float]:
    """Sums of errors and how many they were (``…_seen``) become means; nan where there were none."""
    means = {
        key: (value / values[f"{key}_seen"] if values[f"{key}_seen"] else math.nan)
        if f"{key}_seen" in values
        else value
        for key, value in values.items()
    }
    return {key: value for key, value in means.items() if not key.endswith("_seen")}


class Log:
    """Losses by part, as a progress bar, a CSV file and whatever trackers there are."""

    def __init__(
        self,
        output: Path,
        active: bool,
        log_every: int,
        step: int,
        steps: int | None,
        work: Work | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self.active, self.every, self.work, self.trackers = active, log_every, work or Work(), trackers
        self.sums: dict[str, float] = {}
        self.count, self.since = 0, time.perf_counter()
        self.bar = tqdm(total=steps, initial=step, unit="step", disable=None if active else True)
        self.output, self.path = output, output / "log.csv"
        for name in ("log", "validation", "samples", "scores") if active else ():
            self._forget_after(output / f"{name}.csv", step)

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
        row = by_level({key: value / self.count for key, value in self.sums.items()})
        row["clips_per_s"] = self.sums["clips"] / seconds
        del row["clips"]
        if self.work.tokens:
            row["tokens_per_s"] = row["clips_per_s"] * self.work.tokens
        if self.work.flops and self.work.peak_flops_per_s:
            row["mfu"] = row["clips_per_s"] * self.work.flops / self.work.peak_flops_per_s
        row["memory_gib"] = peak_memory_gib()
        self.bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
        self._write(self.path, step, row)
        self.sums, self.count, self.since = {}, 0, time.perf_counter()

    def aside(
        self, name: str, step: int, values: dict[str, float], seconds: float = 0.0, printed: bool = False
    ) -> None:
        """What is measured now and then, in a file of its own; ``seconds`` that it took are not training."""
        self.since += seconds
        if printed:
            told = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
            self.bar.write(f"{name} at step {step}: {told}")
        if self.active:
            self._write(self.output / f"{name}.csv", step, {f"{name}_{key}": value for key, value in values.items()})

    def _write(self, path: Path, step: int, row: dict[str, float]) -> None:
        """A row; columns that an earlier version of the file lacks are left out."""
        columns = ["step", *row]
        if path.exists():
            with path.open(newline="") as file:
                columns = next(csv.reader(file), columns)
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow({"step": step, **{key: f"{value:.6g}" for key, value in row.items()}})
        for tracker in self.trackers:
            tracker.log(row, step)

    @staticmethod
    def _forget_after(path: Path, step: int) -> None:
        """Drop what a killed run had logged beyond the checkpoint that this one resumes from."""
        if path.exists() and path.stat().st_size == 0:
            path.unlink()  # a full disk left it
        if path.exists():
            header, *rows = path.read_text().splitlines()
            kept = [row for row in rows if int(row.split(",", 1)[0]) <= step]
            path.write_text("\n".join([header, *kept]) + "\n")

    def close(self) -> None:
        self.bar.close()
        for tracker in self.trackers:
            tracker.close()


def peak_memory_gib() -> float:
    """The most that was held at once: on the GPU where there is one, else of main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return (cli.peak_memory_mib() or 0) / 1024
