"""Clips of the tabletop world for each second: physics, pictures and sound apart.

python -m bench.tabletop [--clips 16] [--size 128] [--device cpu]
"""

import argparse
import time

import numpy as np
import torch

from vidgen import cli
from vidgen.tabletop.captions import sample_look
from vidgen.tabletop.physics import simulate
from vidgen.tabletop.render import render
from vidgen.tabletop.sound import synthesise

NUM_FRAMES, FRAME_RATE, SAMPLE_RATE_HZ = 49, 24, 24000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--device", default="cpu", help="where pictures are drawn")
    args = parser.parse_args()
    torch.set_num_threads(1)

    start = time.perf_counter()
    scenes = [simulate(np.random.default_rng(n)) for n in range(args.clips)]
    report("physics", args.clips, time.perf_counter() - start)
    looks = [sample_look(np.random.default_rng(n), scene) for n, scene in enumerate(scenes)]
    sizes = {"num_frames": NUM_FRAMES, "height": args.size, "width": args.size, "frame_rate": FRAME_RATE}
    for compiled in (False, True):
        render(scenes[:1], looks[:1], **sizes, device=args.device, compiled=compiled)
        start = time.perf_counter()
        render(scenes, looks, **sizes, device=args.device, compiled=compiled)
        name = f"pictures {args.size}x{args.size}, {'compiled' if compiled else 'eager'}, {args.device}"
        report(name, args.clips, time.perf_counter() - start)
    start = time.perf_counter()
    for scene in scenes:
        synthesise(scene, num_samples=NUM_FRAMES * SAMPLE_RATE_HZ // FRAME_RATE, sample_rate_hz=SAMPLE_RATE_HZ)
    report("sound", args.clips, time.perf_counter() - start)


def report(what: str, clips: int, seconds: float) -> None:
    print(f"{what:40}{clips / seconds:8.1f} clips/s a core ({clips * NUM_FRAMES / seconds:.0f} frames/s)")


if __name__ == "__main__":
    cli.run(main)
