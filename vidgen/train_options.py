"""What ``train.py`` may be told. ``vidgen train`` reads it before torch is imported: help and mistakes come at once."""

import argparse
from pathlib import Path

from . import config
from .options import Parser
from .trackers import TRACKERS

STAGES = ("vae3d", "audio", "dit", "distill")
DESCRIPTION = """Train one stage of vidgen, from scratch or onward from its own last checkpoint.

    accelerate launch train.py vae3d --config tabletop-cpu --data scenes.npz --output out/vae3d
    accelerate launch train.py audio --config tabletop-cpu --data scenes.npz --output out/audio
    accelerate launch train.py dit   --config tabletop-cpu --data scenes.npz --output out/dit \\
        --vae out/vae3d/model --codec out/audio/model
    accelerate launch train.py distill --config tabletop-cpu --data scenes.npz --output out/student \\
        --teacher out/dit/model

``--data`` is a folder of shards (python -m vidgen.data.prepare) or of clips (captions in metadata.jsonl or same-named
.txt files; sound is optional), or a file of simulated tabletop scenes (python -m vidgen.tabletop.physics); several are
mixed, ``--data A:0.7 B:0.3`` by weight. To resume after a stop, run the same command again: data,
noise and schedule follow from the seed and the step, so the run goes on as if it had not stopped. SIGTERM, which
schedulers send, ends a run with a checkpoint. The dit and distill stages end in a complete model folder for
sample.py --model.
"""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The options of ``train.py``.

    Raises:
        InputError: options that cannot be read, or settings that the preset does not have.
    """
    parser = Parser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    what = parser.add_argument_group("what is learned, and where it goes")
    onward = parser.add_argument_group("from weights that are there")
    watched = parser.add_argument_group("how long, and how it is watched")
    what.add_argument("--config", required=True, help=f"a preset: {', '.join(config.PRESETS)}")
    what.add_argument(
        "--data", required=True, nargs="+", action="extend", metavar="PATH[:WEIGHT]",
        help="shards (vidgen.data.prepare), a folder of clips, or a .npz of simulated scenes; several are mixed",
    )  # fmt: skip
    what.add_argument("--output", required=True, type=Path, help="checkpoints, log, sheets and the model go here")
    what.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override a setting")
    onward.add_argument("--init", type=Path, help="start from the weights in this folder instead of random ones")
    watched.add_argument("--stop-after", type=float, metavar="SECONDS", help="write a checkpoint and end soon after")
    watched.add_argument(
        "--spend",
        type=float,
        metavar="SECONDS",
        help="training time of the whole stage, in all runs together, instead of a number of steps",
    )
    onward.add_argument("--model", type=Path, help="dit: a whole model's folder, for --vae, --codec, --text and --init")
    onward.add_argument(
        "--lora-rank", type=int, metavar="R", help="train an adapter (LoRA) of --model or --init; distill: of --teacher"
    )
    onward.add_argument("--lora-alpha", type=float, metavar="A", help="the adapter works at A / R (default R)")
    onward.add_argument("--vae", type=Path, help="dit: folder of a trained vae3d")
    onward.add_argument("--codec", type=Path, help="dit: folder of a trained audio codec")
    onward.add_argument("--teacher", type=Path, help="distill: model folder of the teacher")
    what.add_argument("--latents", type=Path, help="dit, distill: latent cache, made if missing (OUTPUT/latents)")
    what.add_argument(
        "--text", help="dit: text encoder, a folder or a hub id (default: that of --model, else of the shipped model)"
    )
    what.add_argument(
        "--validation", type=Path, help="clips as in --data, never trained on; decide the best checkpoint"
    )
    watched.add_argument(
        "--score-every", type=int, metavar="STEPS", help="FVD, sound distance, sync against --validation"
    )
    watched.add_argument("--log-with", nargs="+", choices=TRACKERS, help="show the run there (default: tensorboard)")
    watched.add_argument(
        "--peak-tflops", type=float, help="of one device, for the MFU (default: as measured at the start)"
    )
    watched.add_argument("--prompt", nargs="+", default=[], action="extend", help="prompts of the sample sheets")
    args = parser.parse_args(argv)
    for key in ("lora_rank", "lora_alpha"):
        if getattr(args, key) is not None:
            args.set.append(f"{key}={getattr(args, key)}")
    config.load(args.config, args.stage, args.set)
    return args
