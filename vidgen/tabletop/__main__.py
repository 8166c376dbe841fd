"""Make clips of the tabletop world: an mp4 and its truth as JSON each, captions that ``train.py --data`` reads, and one
sheet of all of them to look at."""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..cli import run
from ..clip import ClipSpec
from ..errors import InputError
from ..media import save_sheet, write_video
from ..sheets import contact_sheet
from .captions import SPLITS, can_be_held_out
from .physics import simulate
from .scene import ACTIONS, POSE_RATE_HZ, SHAPES, Trajectory
from .source import TabletopClips

MAX_ON_SHEET = 40


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vidgen.tabletop", description=__doc__)
    parser.add_argument(
        "--output", type=Path, required=True, help="a folder, beside which the sheet is put: OUTPUT.png"
    )
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same clips")
    parser.add_argument("--size", type=int, default=256, help="pixels a side")
    parser.add_argument("--frames", type=int, default=49, help="at 24 frames a second, 24 to 480")
    parser.add_argument("--split", choices=SPLITS, default="any", help="colour, material, shape triples to show")
    parser.add_argument("--action", choices=ACTIONS)
    parser.add_argument("--shape", choices=SHAPES, help="of the body that acts")
    args = parser.parse_args()
    if args.count < 1 or args.seed < 0:
        raise InputError("count must be at least 1, and the seed not negative")
    if not POSE_RATE_HZ <= args.frames <= 20 * POSE_RATE_HZ:
        raise InputError(f"{args.frames} frames cannot be made: give {POSE_RATE_HZ} to {20 * POSE_RATE_HZ}")
    spec = ClipSpec(num_frames=args.frames, height=args.size, width=args.size)
    args.output.mkdir(parents=True, exist_ok=True)
    pages: list[Image.Image] = []
    lines = []
    for index in tqdm(range(args.count), disable=None, unit="clip"):
        trajectory = _scene(args, index)
        clip = TabletopClips([trajectory], spec, args.split, args.seed, variants=1)[[(0, index)]]
        wordings, truth = clip["captions"][0], clip["truth"][0]
        caption = wordings[-1]
        frames, waveform = clip["video"][0].numpy(), clip["audio"][0, 0].numpy()
        path = args.output / f"{index:05d}.mp4"
        write_video(path, frames, waveform, spec.frame_rate, spec.sample_rate_hz, {"comment": caption})
        facts = {"caption": caption, "canonical": wordings[0], **truth}
        path.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")
        lines.append(json.dumps({"file_name": path.name, "text": wordings}) + "\n")
        if len(pages) < MAX_ON_SHEET:
            pages.append(contact_sheet(frames, waveform, spec.sample_rate_hz, caption))
    (args.output / "metadata.jsonl").write_text("".join(lines))
    folder = args.output.resolve()
    # Not in the folder, where it would be taken for one more picture to learn from.
    save_sheet(folder.with_name(f"{folder.name}.png"), pages)


def _scene(args: argparse.Namespace, index: int) -> Trajectory:
    rng = np.random.default_rng((args.seed, index))
    while True:
        trajectory = simulate(rng, action=args.action, shape=args.shape, duration_s=args.frames / POSE_RATE_HZ)
        if args.split != "held_out" or can_be_held_out(trajectory):
            return trajectory


if __name__ == "__main__":
    run(main)
