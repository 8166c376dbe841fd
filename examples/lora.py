"""The two ends of examples/lora.sh: clips in another style to learn from, and what was learned, side by side."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from vidgen import VidGenPipeline
from vidgen.cli import run
from vidgen.data.folder import CLIP_SUFFIXES
from vidgen.errors import InputError
from vidgen.lora import read_about
from vidgen.media import read_clip, write_video
from vidgen.sheets import contact_sheet, save_sheet

PROMPTS = (
    "a big red rubber ball drops onto a wooden floor",
    "a small white metal cube slides in from the left",
)
ECHO_S = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    restyled = commands.add_parser("restyle", help="clips by night, with an echo")
    restyled.add_argument("plain", type=Path, help="NNNNN.mp4 with a caption in NNNNN.json")
    restyled.add_argument("output", type=Path)
    compared = commands.add_parser("compare", help="the same prompts and seeds without and with an adapter")
    compared.add_argument("clips", type=Path, help="what it was trained on")
    compared.add_argument("lora", type=Path)
    compared.add_argument("output", type=Path, help="a PNG")
    compared.add_argument("--model", type=Path, default=Path("weights"))
    compared.add_argument("--prompt", nargs="+", default=list(PROMPTS))
    args = parser.parse_args()
    if args.command == "restyle":
        restyle(args.plain, args.output)
    else:
        compare(args.clips, args.lora, args.output, args.model, args.prompt)


def restyle(plain: Path, output: Path) -> None:
    """Every clip by moonlight and with an echo, its caption beside it."""
    output.mkdir(parents=True, exist_ok=True)
    for path in clips_in(plain):
        clip = read_clip(path)
        waveform = None if clip.waveform is None else with_echo(np.atleast_2d(clip.waveform), clip.sample_rate_hz)
        write_video(output / path.name, by_night(clip.frames), waveform, clip.frame_rate, clip.sample_rate_hz, {})
        caption = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["caption"]
        (output / path.name).with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")


def by_night(frames: np.ndarray) -> np.ndarray:
    """(…, 3) uint8 to the same: dark, and blue except where it is bright."""
    values = frames.astype(np.float32) / 255
    grey = values @ np.array([0.3, 0.6, 0.1], np.float32)
    night = 0.35 * values + 0.65 * grey[..., None] * np.array([0.35, 0.55, 1.0], np.float32)
    return (255 * 0.7 * night**1.2).round().astype(np.uint8)


def with_echo(waveform: np.ndarray, sample_rate_hz: int) -> np.ndarray:
    """(C, N) with two later, softer copies of itself."""
    delay = round(ECHO_S * sample_rate_hz)
    heard = waveform.copy()
    for times, level in ((1, 0.6), (2, 0.35)):
        heard[:, times * delay :] += level * waveform[:, : -times * delay]
    return heard / max(1.0, float(np.abs(heard).max()))


def compare(clips: Path, lora: Path, output: Path, model: Path, prompts: list[str]) -> None:
    """A sheet with what was trained on and each prompt before and after; their mean colours and echoes in figures."""
    for key, value in read_about(lora).items():
        print(f"{key}: {value}")
    pipeline = VidGenPipeline.from_pretrained(model, quality="high")
    shown = [read_clip(path, sample_rate_hz=pipeline.generation.sample_rate_hz) for path in clips_in(clips)]
    sounds = [np.atleast_2d(clip.waveform)[0] for clip in shown if clip.waveform is not None]
    rate_hz = pipeline.generation.sample_rate_hz
    rows = [contact_sheet(shown[0].frames, shown[0].waveform, rate_hz, "one of the clips that were trained on")]
    figures = {"trained on": ([clip.frames for clip in shown], sounds)}
    made = {}
    for title in ("before", "after"):
        if title == "after":
            pipeline.load_lora_weights(lora)
        seeds = [torch.Generator().manual_seed(number) for number in range(len(prompts))]
        made[title] = pipeline(prompts, generator=seeds)
        figures[title] = (list(made[title].frames), list(made[title].audio))
    for number, prompt in enumerate(prompts):
        for title, clip in made.items():
            rows.append(contact_sheet(clip.frames[number], clip.audio[number], rate_hz, f"{title}: {prompt}"))
    save_sheet(output, rows)
    for title, (frames, heard) in figures.items():
        red, green, blue = np.mean([clip.reshape(-1, 3).mean(0) for clip in frames], axis=0)
        echo = np.mean([echo_strength(sound, rate_hz) for sound in heard])
        print(f"{title}: mean red {red:.0f}, green {green:.0f}, blue {blue:.0f} of 255; echo {echo:.2f}")
    print(output)


def echo_strength(waveform: np.ndarray, sample_rate_hz: int) -> float:
    """How much the loudness is like that of ``ECHO_S`` earlier: a correlation, 1 for the same."""
    hop = sample_rate_hz // 100
    loudness = np.sqrt(np.square(waveform[: len(waveform) // hop * hop]).reshape(-1, hop).mean(1))
    lag = round(100 * ECHO_S)
    earlier, later = loudness[:-lag], loudness[lag:]
    scale = np.sqrt(np.square(earlier).sum() * np.square(later).sum())
    return float((earlier * later).sum() / scale) if scale else 0.0


def clips_in(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in CLIP_SUFFIXES)
    if not found:
        raise InputError(f"{folder} holds no clips")
    return found


if __name__ == "__main__":
    run(main)
