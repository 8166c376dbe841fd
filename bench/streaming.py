"""How long clips are made: seconds to the first part, seconds of clip a second, and memory, for several lengths:

    python -m bench.streaming --seconds 10 60

Each length is measured in a process of its own, so that its peak memory is its own. What is made is not written.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from vidgen.cli import keep_freed_memory, peak_memory_mib, run
from vidgen.generation import HIGH, QUALITIES, SHIPPED_MODEL


def measure(model: Path, duration_s: float, steps: int | None, quality: str | None) -> dict[str, float]:
    """Make one clip in this process. Sustained is what comes after the first part, over the time that it takes."""
    import torch

    from vidgen.loading import choose_device
    from vidgen.pipeline import VidGenPipeline

    keep_freed_memory()
    pipeline = VidGenPipeline.from_pretrained(model, device=choose_device("auto"), quality=quality)
    rate = float(pipeline.generation.spec().frame_rate)
    chunks = pipeline.stream(
        "a big red rubber ball rolls in from the left",
        duration_s,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
    )
    start_s = time.perf_counter()
    first = len(next(chunks).frames)
    first_s = time.perf_counter() - start_s
    rest = sum(len(chunk.frames) for chunk in chunks)
    rest_s = time.perf_counter() - start_s - first_s
    return {
        "clip_s": (first + rest) / rate,
        "first_part_s": first_s,
        "first_part_clip_s": first / rate,
        "sustained": rest / rate / rest_s if rest else float("nan"),
        "peak_memory_mib": float(peak_memory_mib() or 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.streaming", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL)
    parser.add_argument(
        "--quality",
        choices=QUALITIES,
        default=HIGH,
        help="of a model with a few-step student: it, or its teacher (default)",
    )
    parser.add_argument("--seconds", type=float, nargs="+", default=[10.0, 60.0], help="lengths of clips")
    parser.add_argument("--steps", type=int, help="of the solver (default: the model's own)")
    parser.add_argument("--json", action="store_true", help="measure the first length in this process; print a line")
    args = parser.parse_args()
    if args.json:
        print(json.dumps(measure(args.model, args.seconds[0], args.steps, args.quality)))
        return
    print(f"{'clip s':>8} {'first part after s':>19} {'it lasts s':>11} {'then clip s a second':>21} {'peak MiB':>9}")
    for duration_s in args.seconds:
        command = [sys.executable, "-m", "bench.streaming", "--json", "--model", args.model, "--seconds", duration_s]
        command += [] if args.steps is None else ["--steps", args.steps]
        command += [] if args.quality is None else ["--quality", args.quality]
        made = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True)
        row = json.loads(made.stdout)
        print(
            f"{row['clip_s']:8.1f} {row['first_part_s']:19.2f} {row['first_part_clip_s']:11.2f} "
            f"{row['sustained']:21.2f} {row['peak_memory_mib']:9.0f}",
            flush=True,
        )


if __name__ == "__main__":
    run(main)
