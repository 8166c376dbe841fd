"""What models pay in each mode of training, on the same clips and the same noise:

    python -m eval.mode_loss --model plain/model mixed/model --latents plain/validation-latents

The flow-matching loss of clips in a latent cache, once with one noise level for the whole clip (text to video with
sound) and once in each of the modes in which something is given. Every further model is compared with the first clip by
clip, so that a small difference shows. The cache must be of the models' own autoencoders and clip length, and of clips
that none of them was trained on: ``train.py dit --validation`` leaves one.
"""

import argparse
import zlib
from pathlib import Path

import torch
from tqdm import tqdm

from vidgen.cli import run
from vidgen.data.latents import LatentClips
from vidgen.errors import InputError
from vidgen.flow import MODES, FlowConfig, flow_loss
from vidgen.pipeline import VidGenPipeline

from .intervals import Estimate, clustered_mean, paired_difference

NAMES = {"shared": "text to both"}
"""Of ``flow.MODES``; the others keep their names."""
Losses = dict[str, list[float | None]]
"""Of each draw of each clip, by stream; None where the stream was given whole."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.mode_loss", description=__doc__.split("\n")[0].rstrip(":"))
    parser.add_argument("--model", type=Path, nargs="+", required=True, help="folders; the first one is compared with")
    parser.add_argument("--latents", type=Path, required=True, help="a latent cache of clips that were not trained on")
    parser.add_argument("--clips", type=int, default=128, help="how many of its clips (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=4, help="of noise and its levels for each (default: %(default)s)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="default: all")
    args = parser.parse_args()
    if args.clips < 2 or args.draws < 1:
        raise InputError("--clips must be at least 2, and --draws at least 1")
    clips = LatentClips(args.latents)
    count = min(args.clips, len(clips))
    clip_of_draw = [index for index in range(count) for _ in range(args.draws)]
    first: dict[str, Losses] = {}
    print(f"{'':30} {'mode':14} {'stream':6} {'loss':>8} {'95 % interval':>18} {'against the first':>20}")
    with tqdm(total=len(args.model) * len(args.modes) * len(clip_of_draw), disable=None, leave=False) as bar:
        for place, model in enumerate(args.model):
            pipeline = VidGenPipeline.from_pretrained(model, quality="high")
            for mode in args.modes:
                found = losses(pipeline, clips, clip_of_draw, mode, bar)
                own = first.setdefault(mode, found)
                for stream, values in found.items():
                    mean = clustered_mean(values, clip_of_draw)
                    against = paired_difference((own[stream], clip_of_draw), (values, clip_of_draw))
                    bar.write(f"{str(model)[-30:]:30} {NAMES.get(mode, mode):14} {stream:6} {_shown(mean, '.4f'):>27} "
                              f"{_shown(against, '+.4f') if place else '':>20}")  # fmt: skip


@torch.inference_mode()
def losses(
    pipeline: VidGenPipeline, clips: LatentClips, clip_of_draw: list[int], mode: str, bar: tqdm | None = None
) -> Losses:
    """Mean squared errors of the velocities, in video and audio, in one mode of ``flow.draw_noise_levels``."""
    spec, own = pipeline.generation.spec(), pipeline.generation
    video_times_s, audio_times_s = map(torch.tensor, (spec.video_latent_times_s(), spec.audio_latent_times_s()))
    alone = {name: float(name == mode) for name in MODES}
    # The noise levels at which a model was trained are those that it is sampled at.
    config = FlowConfig(video_shift=own.video_shift, audio_shift=own.audio_shift, given=1.0, **alone)
    found: Losses = {"video": [], "audio": []}
    for draw, index in enumerate(clip_of_draw):
        batch = clips[[(index, index)]]
        text, mask = pipeline.text_encoder.encode([clips.captions[index][0]])
        seed = zlib.crc32(f"{mode} {index} {draw}".encode())
        _, parts = flow_loss(
            pipeline.transformer, batch["video"], batch.get("audio"), text, text_mask=mask,
            has_audio=batch.get("has_audio"), video_times_s=video_times_s, audio_times_s=audio_times_s, seeds=[seed],
            config=config,
        )  # fmt: skip
        for stream, values in found.items():
            loss = float(parts[stream]) if stream in parts else 0.0
            values.append(loss or None)  # exactly 0 is the loss where nothing was to be made
        if bar is not None:
            bar.update()
    return found


def _shown(estimate: Estimate | None, digits: str) -> str:
    if estimate is None:
        return "none"
    interval = "" if estimate.low is None else f" [{estimate.low:{digits}}, {estimate.high:{digits}}]"
    return f"{estimate.value:{digits}}{interval}"


if __name__ == "__main__":
    run(main)
