"""Models that are scored without any being loaded: clips of a known speed, a stand-in for a pipeline, the command."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np

from tests.test_eval import ASKED
from vidgen.generation import GenerationConfig

FPS, RATE_HZ = Fraction(24), 24000


def moving(step: int = 1, num_frames: int = 18, side: int = 48) -> np.ndarray:
    """A smooth pattern that moves so many pixels a frame."""
    x = np.arange(side)
    waves = [120 + 80 * np.sin((x[None] - step * k) / 5) * np.cos(x[:, None] / 7) for k in range(num_frames)]
    return np.repeat(np.stack(waves)[..., None], 3, -1).astype(np.uint8)


def click(num_frames: int = 18) -> np.ndarray:
    sound = np.zeros(round(num_frames / FPS * RATE_HZ), np.float32)
    sound[6000:6400] = 0.5 * np.sin(np.arange(400) / 3)
    return sound


class FakeModel:
    """Stands in for a pipeline: a clip whose speed is the seed's, broken where the prompt says so."""

    def __call__(self, prompts, generator):
        if any("impossible" in prompt for prompt in prompts):
            raise RuntimeError("out of memory")

        class Output:
            frames = np.stack([moving(source.initial_seed() % 3) for source in generator])
            audio = np.stack([click() for _ in generator])
            frame_rate, sample_rate = FPS, RATE_HZ

        return Output


def model_folder(path: Path, version: str = "one") -> Path:
    path.mkdir(parents=True)
    GenerationConfig(model_version=version).save(path)
    return path


def prompt_file(path: Path, *prompts: str) -> Path:
    path.write_text(json.dumps([{"prompt": p, "seed": 7 + i, "attributes": ASKED} for i, p in enumerate(prompts)]))
    return path


def call(monkeypatch, module, *arguments) -> None:
    monkeypatch.setattr("sys.argv", ["program", *map(str, arguments)])
    module.main()
