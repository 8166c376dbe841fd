"""Which words a model heeds, in a minute and without making a single clip:

    python -m eval.word_use --model weights --latents runs/out/latents

The flow-matching loss on clips of a latent cache is measured with the true captions, and with captions in which the
words of one kind are exchanged for others of that kind, on the same noise. A model that heeds a word pays for a false
one; one that does not is as good with either. This tells what is being learned long before samples show it. The cache
must be of the model's own autoencoders and clip length; a cache that the model was trained on will do, since what is
compared are captions.
"""

import argparse
import math
import random
import re
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from vidgen.cli import run
from vidgen.data.latents import LatentClips
from vidgen.errors import InputError
from vidgen.flow import FlowConfig, flow_loss
from vidgen.generation import SHIPPED_MODEL
from vidgen.pipeline import VidGenPipeline
from vidgen.tabletop.scene import COLOURS, FLOORS, MATERIALS, SHAPES, SIZES

KINDS = {
    "colour": (COLOURS, r""),
    "shape": (SHAPES, r""),
    "material": (MATERIALS, r"(?! floor)"),
    "size": (SIZES, r""),
    "floor": (FLOORS, r"(?= floor)"),
    "direction": (("left", "right"), r""),
}
"""Words of a kind, and what must follow them: a floor may be wooden, too."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.word_use", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=SHIPPED_MODEL, help="folder of a model")
    parser.add_argument("--latents", type=Path, required=True, help="a latent cache that train.py dit has made")
    parser.add_argument("--clips", type=int, default=128, help="how many of its clips, from the end")
    parser.add_argument("--sigma", type=float, nargs="+", default=[0.95, 0.85, 0.7], help="noise levels")
    parser.add_argument("--latent-frames", type=int, default=0, help="single latent frames, as in training; 0: clips")
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    if args.clips < 1 or args.batch < 1 or not all(0 < sigma < 1 for sigma in args.sigma):
        raise InputError("--clips and --batch must be at least 1, and noise levels between 0 and 1")
    pipeline = VidGenPipeline.from_pretrained(args.model, quality="high")
    clips = LatentClips(args.latents, latent_frames=args.latent_frames)
    chosen = range(max(0, len(clips) - args.clips), len(clips))
    captions = {"true": [clips.captions[index][0] for index in chosen]}
    captions |= {kind: [exchanged(text, kind, index) for index, text in enumerate(captions["true"])] for kind in KINDS}

    print(f"{'sigma':>8} {'true loss':>18} " + " ".join(f"{kind:>16}" for kind in KINDS))
    for sigma in tqdm(args.sigma, disable=None, leave=False):
        losses = {kind: loss(pipeline, clips, chosen, texts, sigma, args.batch) for kind, texts in captions.items()}
        true = losses.pop("true")
        rises = " ".join(
            f"{_shown([1000 * (a - b) for a, b in zip(x, true, strict=True)], 1):>16}" for x in losses.values()
        )
        print(f"{sigma:8.2f} {_shown(true, 4):>18} {rises}")
    print("by how much the loss (video / audio) rises when the words of a kind are false, in thousandths")


def exchanged(caption: str, kind: str, seed: int) -> str:
    """The caption with every word of ``kind`` exchanged for another of that kind."""
    words, following = KINDS[kind]
    rng = random.Random(seed)
    pattern = rf"\b({'|'.join(words)})\b{following}"
    return re.sub(pattern, lambda match: rng.choice([word for word in words if word != match[1]]), caption)


@torch.inference_mode()
def loss(
    pipeline: VidGenPipeline, clips: LatentClips, chosen: range, captions: list[str], sigma: float, batch_size: int
) -> list[float]:
    """Mean squared errors of the video's and (for whole clips) the audio's velocities, all at one noise level."""
    spec = pipeline.generation.spec()
    video_times_s, audio_times_s = map(torch.tensor, (spec.video_latent_times_s(), spec.audio_latent_times_s()))
    level = FlowConfig(
        logit_mean=math.log(sigma / (1 - sigma)), logit_std=0, shared=1, per_modality=0, per_frame=0, region=0
    )
    totals: Tensor | None = None
    for start in range(0, len(chosen), batch_size):
        indices = chosen[start : start + batch_size]
        batch = clips[[(index, index) for index in indices]]
        text, mask = pipeline.text_encoder.encode(captions[start : start + batch_size])
        _, parts = flow_loss(
            pipeline.transformer, batch["video"], batch.get("audio"), text, text_mask=mask,
            has_audio=batch.get("has_audio"),
            video_times_s=video_times_s[batch["frames"]] if "frames" in batch else video_times_s,
            audio_times_s=audio_times_s, seeds=list(indices), config=level,
        )  # fmt: skip
        sums = len(indices) * torch.stack(list(parts.values()))
        totals = sums if totals is None else totals + sums
    assert totals is not None
    return (totals / len(chosen)).tolist()


def _shown(values: list[float], digits: int) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in values)


if __name__ == "__main__":
    run(main)
