"""A page of unpicked samples:  python -m eval.gallery --model weights --output docs/gallery

One clip for each of the first 24 fixed prompts, with seeds 0 to 23: frames, waveform and spectrogram, its prompt below.
"""

import argparse
import io
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from vidgen.cli import keep_freed_memory, run
from vidgen.errors import InputError
from vidgen.files import replacing
from vidgen.generation import QUALITIES, SHIPPED_MODEL
from vidgen.sheets import contact_sheet

from .prompts import tabletop_prompts

QUALITY = 80
"""Of the JPEG files."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.gallery", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, help="folder of a model (default: the shipped)")
    parser.add_argument("--output", type=Path, required=True, help="folder for README.md and its pictures")
    parser.add_argument("--quality", choices=QUALITIES, help="of a model with a few-step student: it, or its teacher")
    parser.add_argument("--count", type=int, default=24, help="samples (default: %(default)s)")
    args = parser.parse_args()
    prompts = [entry["prompt"] for entry in tabletop_prompts()]
    if not 1 <= args.count <= len(prompts):
        raise InputError(f"--count lies between 1 and {len(prompts)}, not at {args.count}")
    from vidgen.pipeline import VidGenPipeline

    keep_freed_memory()
    pipeline = VidGenPipeline.from_pretrained(args.model, quality=args.quality)
    args.output.mkdir(parents=True, exist_ok=True)
    version = pipeline.generation.model_version
    lines = [
        f"# {args.count} samples of {version}, not picked",
        "",
        f"By `python -m eval.gallery`: the first {args.count} prompts of `eval/prompts_tabletop.json`, with seeds 0",
        f"to {args.count - 1}. Frames over waveform and spectrogram, on one time axis.",
        "",
    ]
    for seed, prompt in enumerate(tqdm(prompts[: args.count], unit="clip", disable=None)):
        made = pipeline(prompt, generator=torch.Generator().manual_seed(seed))
        sheet = contact_sheet(made.frames[0], made.audio[0], made.sample_rate, prompt)
        name = f"{seed:02d}.jpg"
        with replacing(args.output / name) as temporary:
            temporary.write_bytes(as_jpeg(sheet))
        lines += [f"![{prompt}]({name})", "", f"{seed}: {prompt}", ""]
    with replacing(args.output / "README.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    print(args.output / "README.md")


def as_jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    run(main)
