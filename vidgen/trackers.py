"""Where the course of a run is shown: TensorBoard, trackio or Weights & Biases."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from .errors import InputError

TRACKERS = ("tensorboard", "trackio", "wandb")


class Tracker(Protocol):
    def log(self, values: dict[str, float], step: int) -> None:
        """Numbers of one step."""

    def close(self) -> None:
        """Write what is not written yet."""


def open_trackers(names: Sequence[str] | None, output: Path, settings: dict[str, Any], step: int) -> list[Tracker]:
    """Trackers by name; None is TensorBoard where it is installed.

    Args:
        output: the run's folder, whose name the run is given.
        settings: shown beside the run.
        step: what an earlier run logged beyond it is dropped, where the tracker can do so.

    Raises:
        InputError: an unknown tracker, or one that is not installed.
    """
    opened: list[Tracker] = []
    for name in ("tensorboard",) if names is None else names:
        if name not in TRACKERS:
            raise InputError(f"a run is shown by {', '.join(TRACKERS)}, not by {name!r}")
        try:
            opened.append(_TensorBoard(output, step) if name == "tensorboard" else _Online(name, output, settings))
        except ImportError as error:
            if names is not None:
                raise InputError(f"{name} is not installed: pip install {name}") from error
    return opened


class _TensorBoard:
    def __init__(self, output: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(output / "tensorboard"), purge_step=step + 1)

    def log(self, values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            self.writer.add_scalar(key, value, step)

    def close(self) -> None:
        self.writer.close()


class _Online:
    """trackio and wandb have the same three functions."""

    def __init__(self, name: str, output: Path, settings: dict[str, Any]) -> None:
        self.module = importlib.import_module(name)
        self.module.init(project="vidgen", name=output.resolve().name, config=settings)

    def log(self, values: dict[str, float], step: int) -> None:
        self.module.log(values, step=step)

    def close(self) -> None:
        self.module.finish()
