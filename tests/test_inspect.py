"""A clip's metadata lead back to the command that makes it again."""

import json
import shlex
import sys

import numpy as np
import pytest

import sample
from vidgen import VidGenPipeline, inspect
from vidgen.errors import InputError
from vidgen.media import read_clip, read_metadata, write_video

ASKED = ["--prompt", 'a "big" red ball, it\'s rubber', "--seed", "11", "--steps", "1", "--duration", "0.4"]


@pytest.mark.parametrize(
    "further",
    [["--fps", "23.976", "--guidance", "1.5", "--no-audio"], ["--size", "64x96", "--loop", "--camera", "zooms-in"]],
)
def test_the_command_makes_the_same_clip_again(tmp_path, further):
    first, again = tmp_path / "first.mp4", tmp_path / "again.mp4"
    sample.main([*ASKED, *further, "--output", str(first)])
    words = shlex.split(inspect.command(read_metadata(first)))
    assert words[:2] == ["python", "sample.py"]
    sample.main([*words[2:], "--output", str(again)])
    assert read_metadata(first) == read_metadata(again)
    clips = read_clip(first), read_clip(again)
    assert np.array_equal(clips[0].frames, clips[1].frames)
    if "--no-audio" in further:
        assert clips[1].waveform is None
    else:
        assert np.array_equal(clips[0].waveform, clips[1].waveform)


def test_what_was_given_comes_back_as_flags():
    settings = {"width": 128, "height": 64, "num_frames": 49, "frame_rate": "24", "num_inference_steps": 3}
    given = {"video": "a clip.mp4", "replaced_s": [0.5, 1.25], "only": "video", "keyframes": {"8": "b.png"}}
    tags = {"prompt": "a ball", "seed": "3", "settings": json.dumps(settings | {"given": given})}
    args = sample.parse_args(shlex.split(inspect.command(tags))[2:])
    assert str(args.video) == "a clip.mp4"
    assert args.replace == (0.5, 1.25)
    assert (args.only, args.seed, args.steps, args.size) == ("video", 3, 3, (128, 64))
    assert [(frame, str(path)) for frame, path in args.keyframe] == [(8, "b.png")]
    assert args.duration is None


def test_an_edit_comes_back_as_flags():
    settings = {"width": 128, "height": 64, "num_frames": 49, "frame_rate": "24", "num_inference_steps": 3}
    given = {"video": "a.mp4", "mask": "m.png", "strength": 0.4}
    tags = {"prompt": "a ball", "seed": "3", "settings": json.dumps(settings | {"given": given})}
    args = sample.parse_args(shlex.split(inspect.command(tags))[2:])
    assert (str(args.mask), args.strength, args.duration, args.loop) == ("m.png", 0.4, None, False)


def test_other_files_are_input_errors(tmp_path, monkeypatch):
    path = tmp_path / "other.mp4"
    write_video(path, np.zeros((5, 32, 32, 3), np.uint8), None, 24, 24000, {"title": "holiday"})
    monkeypatch.setattr(sys, "argv", ["inspect", str(path)])
    with pytest.raises(InputError, match="does not say how it was made"):
        inspect.main()


def test_the_package_hands_out_its_pipeline():
    from vidgen.pipeline import VidGenPipeline as original

    assert VidGenPipeline is original
