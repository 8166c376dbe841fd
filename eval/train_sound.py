"""How the weights of ``sound`` are fitted, from trajectories, on one CPU core in about two minutes:

    python -m vidgen.tabletop.physics --count 6000 --seed 1 --output train.npz
    python -m eval.train_sound --trajectories train.npz --output eval/weights/sound.safetensors

Only scenes of one body are heard, for in others several materials sound at once. The last fifth is kept to test on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vidgen.cli import run
from vidgen.errors import InputError
from vidgen.tabletop.physics import load_trajectories
from vidgen.tabletop.scene import MATERIALS, POSE_RATE_HZ, Trajectory
from vidgen.tabletop.sound import synthesise

from .sound import RATE_HZ, WEIGHTS, SoundReader, features, fit


def hear(trajectories: Sequence[Trajectory], seed: int, faults: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, FEATURES) and indices of materials (N,) of the scenes of one body that are not silent.

    With ``faults`` each sound is heard once as it is and once as generated and compressed ones are (``worn``).
    """
    rng = np.random.default_rng(seed)
    rows, materials = [], []
    alone = [trajectory for trajectory in trajectories if len(trajectory.bodies) == 1]
    for trajectory in tqdm(alone, desc="sounds", disable=None):
        length = round((len(trajectory.positions_m) - 1) / POSE_RATE_HZ * RATE_HZ)
        sound = synthesise(trajectory, num_samples=length, sample_rate_hz=RATE_HZ, seed=int(rng.integers(2**31)))
        for heard in (sound, worn(sound, rng)) if faults else (sound,):
            row = features(heard, RATE_HZ)
            if row is not None:
                rows.append(row)
                materials.append(MATERIALS.index(trajectory.bodies[0].material))
    return np.array(rows), np.array(materials)


def worn(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A sound (N,) with a tilted spectrum (within 3 dB an octave), less treble, some noise, and another start."""
    frequencies = np.fft.rfftfreq(len(sound), 1 / RATE_HZ)
    tilt = 10 ** (rng.uniform(-3, 3) / 20 * np.log2(np.maximum(frequencies, 40) / 1000))
    lowpass = 1 / (1 + (frequencies / rng.uniform(5000, 20000)) ** 4)
    changed = np.fft.irfft(np.fft.rfft(sound) * tilt * lowpass, len(sound))
    changed *= np.abs(sound).max() / max(np.abs(changed).max(), 1e-9)
    changed += 10 ** (rng.uniform(-80, -50) / 20) * rng.standard_normal(len(sound))
    return np.roll(changed, int(rng.integers(-2400, 2400)))


def confusion(reader: SoundReader, rows: np.ndarray, materials: np.ndarray) -> np.ndarray:
    """(4, 4) counts: true material by the one heard."""
    heard = np.argmax((rows - reader.mean) / reader.scale @ reader.weights + reader.bias, 1)
    table = np.zeros((len(MATERIALS), len(MATERIALS)), int)
    np.add.at(table, (materials, heard), 1)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.train_sound", description=__doc__.split("\n")[0].rstrip(":"))
    parser.add_argument("--trajectories", type=Path, required=True, help="as vidgen.tabletop.physics writes them")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="a .safetensors file")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    trajectories = load_trajectories(args.trajectories)
    kept = len(trajectories) // 5
    rows, materials = hear(trajectories[: len(trajectories) - kept], args.seed, faults=True)
    if len(rows) < 64:
        raise InputError(f"{args.trajectories}: only {len(rows)} sounds to learn from; simulate some hundred scenes")
    reader = fit(rows, materials)
    reader.save(args.output)
    for name, faults in (("as they are", False), ("as they are and with faults", True)):
        table = confusion(reader, *hear(trajectories[len(trajectories) - kept :], args.seed + 1, faults))
        print(f"sounds kept back, {name}: {100 * np.trace(table) / table.sum():.1f} % of {table.sum()} right")
        for material, row in zip(MATERIALS, table, strict=True):
            heard = ", ".join(f"{other} {count}" for other, count in zip(MATERIALS, row, strict=True))
            print(f"  {material}: heard as {heard}")


if __name__ == "__main__":
    run(main)
