"""What a clip says of itself, and the command that makes it again:

python -m vidgen.inspect outputs/clip.mp4
"""

import json
import shlex
from pathlib import Path
from typing import Any

from .cli import run
from .errors import InputError
from .options import Parser

FLAGS = {
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "audio_guidance_scale": "--audio-guidance",
    "modality_scale": "--modality-guidance",
    "solver": "--solver",
    "negative_prompt": "--negative-prompt",
    "frame_rate": "--fps",
    "dtype": "--dtype",
    "model": "--model",
    "quality": "--quality",
    "add_audio": "--add-audio",
    "camera": "--camera",
}
"""Recorded settings that a flag of ``sample.py`` sets to just this value."""
GIVEN_FLAGS = {
    "image": "--image",
    "last_image": "--last-image",
    "video": "--video",
    "audio": "--audio",
    "extend_s": "--extend",
    "mask": "--mask",
    "strength": "--strength",
    "only": "--only",
}


def command(tags: dict[str, str]) -> str:
    """The command line that makes the clip with these metadata again; what was given of it, by file name.

    Raises:
        InputError: the metadata are not those of a clip that ``sample.py`` made.
    """
    try:
        prompt, seed, settings = tags["prompt"], int(tags["seed"]), json.loads(tags["settings"])
        prompts = [f"{from_s:g}s: {text}" for from_s, text in settings.get("story", [])] or [prompt]
        words: list[Any] = ["python", "sample.py", "--prompt", *prompts, "--seed", seed]
        words += ["--size", f"{settings['width']}x{settings['height']}"]
        given = settings.get("given", {})
        if not {"extend_s", "replaced_s", "mask", "strength"} & set(given):  # there the given clip's length decides
            rate_numerator, _, rate_denominator = settings["frame_rate"].partition("/")
            seconds = settings["num_frames"] * int(rate_denominator or 1) / int(rate_numerator)
            words += ["--duration", f"{seconds:.6g}"]
        for name, flag in FLAGS.items():
            if settings.get(name) not in (None, ""):
                words += [flag, settings[name]]
        if settings.get("lora"):
            words += ["--lora", *settings["lora"]]
        for name, flag in GIVEN_FLAGS.items():
            if name in given:
                words += [flag, given[name]]
        if "replaced_s" in given:
            words += ["--replace", "{}-{}".format(*given["replaced_s"])]
        for frame, picture in given.get("keyframes", {}).items():
            words += ["--keyframe", f"{frame}={picture}"]
        if settings.get("with_audio") is False:
            words.append("--no-audio")
        if settings.get("loop"):
            words.append("--loop")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError("this clip does not say how it was made: sample.py did not make it, or its metadata were "
                         "lost when it was converted") from error  # fmt: skip
    return shlex.join(str(word) for word in words)


def main() -> None:
    parser = Parser(prog="python -m vidgen.inspect", description=__doc__.split("\n")[0])
    parser.add_argument("clips", nargs="+", type=Path, metavar="CLIP", help="mp4 files that sample.py wrote")
    args = parser.parse_args()
    from .media import read_metadata

    for path in args.clips:
        tags = read_metadata(path)
        try:
            again = command(tags)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        print(f"{path}\n  model  {tags.get('model_version', 'unknown')}\n  again  {again}")


if __name__ == "__main__":
    run(main)
