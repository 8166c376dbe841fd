"""The nodes without ComfyUI: what they make of its tensors and numbers, and how they use what it documents.

``test_comfy_real.py`` runs them in ComfyUI itself.
"""

import json
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import vidgen
from vidgen.comfy.inputs import (
    EXTEND,
    FOLEY,
    LEAD_UP,
    REPLACE,
    SHIPPED,
    Shelf,
    exact_rate,
    read_request,
    to_bytes,
    to_image,
)
from vidgen.errors import InputError
from vidgen.generation import SHIPPED_MODEL, GenerationConfig
from vidgen.published_folders import is_published, is_vidgen

ROOT = Path(__file__).resolve().parents[1]
OWN = GenerationConfig(num_frames=17, height=32, width=64)
RATE_HZ = OWN.sample_rate_hz


def images(count, height=32, width=64, seed=0):
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(seed))


def sound(num_samples, channels=1, rate_hz=RATE_HZ):
    waveform = torch.rand(1, channels, num_samples, generator=torch.Generator().manual_seed(1)) - 0.5
    return {"waveform": waveform, "sample_rate": rate_hz}


def test_the_package_is_imported_without_comfyui_and_without_torch():
    code = "import sys, vidgen.comfy; assert callable(vidgen.comfy.comfy_entrypoint); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_registry_is_told_the_version_of_the_package():
    described = (ROOT / "comfyui" / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'^version = "(.*)"$', described, re.MULTILINE) == [vidgen.__version__]


def test_pictures_survive_the_way_to_comfyui_and_back():
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert np.array_equal(to_bytes(to_image(every)), every)
    assert np.array_equal((to_image(every) * 255).byte().numpy(), every), "ComfyUI's own writer cuts off"


@pytest.mark.parametrize(
    ("value", "rate"),
    [(0.0, None), (24.0, Fraction(24)), (23.976, Fraction(24000, 1001)), (29.97, Fraction(30000, 1001)), (12.5, 12.5)],
)
def test_rates_are_exact(value, rate):
    assert exact_rate(value) == rate
    if rate is not None:
        assert read_request(OWN, frame_rate=value)[0].frame_rate == rate


def test_nothing_said_is_the_models_own():
    spec, given, notes = read_request(OWN)
    assert (spec, given, notes) == (OWN.spec(), None, [])
    spec, given, _ = read_request(OWN, width=32, height=64, duration_s=0.5, frame_rate=12.0)
    assert (spec.width, spec.height, spec.num_frames, given) == (32, 64, 6, None)


def test_pictures_at_their_frames():
    keys = images(2, seed=1)
    spec, given, _ = read_request(
        OWN, image=images(1), last_image=images(3, seed=2), keyframes=keys, keyframe_places="5, 9"
    )
    assert sorted(given.keyframes) == [0, 5, 9, 16]
    for frame, picture in ((0, images(1)[0]), (5, keys[0]), (9, keys[1]), (16, images(3, seed=2)[0])):
        assert np.array_equal(given.keyframes[frame], to_bytes(picture[None])[0])
    assert spec.num_frames == 17


def test_pictures_of_another_size_are_cropped_and_scaled():
    picture = torch.zeros(1, 64, 64, 4)  # with transparency
    picture[:, 16:48, :, 0] = 1
    _, given, _ = read_request(OWN, image=picture)
    assert given.keyframes[0].shape == (32, 64, 3)
    assert given.keyframes[0][2:-2, :, 0].min() > 250


def test_frames_go_on():
    video = images(9)
    spec, given, _ = read_request(OWN, video=video, extend_s=8 / 24, audio=sound(9000))
    assert spec.num_frames == 17
    assert np.array_equal(given.video, to_bytes(video))
    assert len(given.waveform) == 9000
    assert given.video_mask(spec).flatten().tolist() == [True] * 3 + [False] * 2
    spec, given, _ = read_request(OWN, video=video, video_task=LEAD_UP, extend_s=9 / 24)
    assert (spec.num_frames, given.start_frame) == (18, 9)


def test_a_video_brings_its_rate_and_sound():
    parts = SimpleNamespace(images=images(12), audio=sound(24000, 2, 48000), frame_rate=Fraction(24))
    spec, given, notes = read_request(OWN, video=SimpleNamespace(get_components=lambda: parts), extend_s=4 / 24)
    assert spec.num_frames == 16
    assert len(given.waveform) == 12000
    parts.frame_rate = Fraction(12)
    spec, given, notes = read_request(OWN, video=SimpleNamespace(get_components=lambda: parts), extend_s=4 / 24)
    assert len(given.video) == 24
    assert np.array_equal(given.video[::2], given.video[1::2])
    assert "12 to 24 fps" in notes[0]


def test_sound_for_frames_and_frames_for_sound():
    spec, given, _ = read_request(OWN, video=images(12), video_task=FOLEY)
    assert (spec.num_frames, given.waveform) == (12, None)
    assert given.video_mask(spec).all()
    spec, given, _ = read_request(OWN, audio=sound(24000, 2, 48000))
    assert (spec.num_frames, given.video, len(given.waveform)) == (12, None, 12000)
    spec, given, _ = read_request(OWN, audio=sound(24000), duration_s=0.25)
    assert (spec.num_frames, len(given.waveform)) == (6, 6000)


def test_parts_are_replaced():
    settings = {"video": images(17), "video_task": REPLACE, "audio": sound(17000)}
    spec, given, _ = read_request(OWN, **settings, replace_from_s=5 / 24, replace_to_s=9 / 24)
    assert given.video_mask(spec).flatten().tolist() == [True, True, False, True, True]
    assert given.samples_mask(spec).sum() == 17000 - 4000
    _, given, _ = read_request(OWN, **settings, replace_from_s=0.2, replace_to_s=0.4, replace_in="sound")
    assert given.video_mask(spec).all()
    mask = torch.zeros(1, 32, 64)
    mask[:, :, 32:] = 1
    _, given, _ = read_request(OWN, **settings, mask=mask, replace_in="picture")
    assert given.samples_mask(spec).all()
    assert given.video_mask(spec).tolist() == [[[True, True, False, False]] * 2] * 5
    _, given, _ = read_request(OWN, **settings, strength=0.4, replace_in="picture")
    assert given.strength == 0.4
    assert not given.video_mask(spec).any()
    assert given.samples_mask(spec).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"height": 40}, "multiple of 32"),
        ({"frame_rate": 500.0}, "frame rate"),
        ({"keyframes": images(2), "keyframe_places": "4"}, "2 keyframes need"),
        ({"keyframe_places": "4"}, "0 keyframes need"),
        ({"keyframes": images(1), "keyframe_places": "four"}, "numbers of frames"),
        ({"keyframes": images(1), "keyframe_places": "99"}, "outside the clip"),
        ({"image": images(1), "keyframes": images(1), "keyframe_places": "0"}, "twice"),
        ({"image": torch.zeros(32, 64, 3)}, "pictures are"),
        ({"mask": torch.ones(1, 32, 64)}, "connect a video"),
        ({"strength": 0.5}, "connect a video"),
        ({"loop": True, "last_image": images(1)}, "a loop ends with"),
        ({"video": images(9), "strength": 0.5}, "mask and strength go with"),
        ({"video": images(9), "mask": torch.ones(1, 32, 64)}, "mask and strength go with"),
        ({"video": images(9), "mask": torch.ones(3, 32, 64), "video_task": REPLACE}, "one for each frame"),
        ({"video": images(9), "video_task": REPLACE}, "nothing is to be replaced"),
        ({"video": images(9), "video_task": REPLACE, "replace_to_s": 9.0}, "does not lie in the clip"),
        ({"video": images(9), "video_task": REPLACE, "replace_to_s": 0.1, "replace_in": "sound"}, "no sound that"),
        ({"video": images(9), "video_task": FOLEY, "audio": sound(9)}, "leave one"),
        ({"video": images(9), "video_task": FOLEY, "with_audio": False}, "no sound is wanted"),
        ({"video": images(9), "video_task": "dance"}, "not known"),
        ({"video": images(9), "video_task": EXTEND, "duration_s": 1.0}, "set duration_s to 0"),
        ({"video": images(9), "video_task": EXTEND, "extend_s": 60.0}, "too long"),
        ({"video": images(2), "video_task": EXTEND}, "too short"),
        ({"video": images(0), "video_task": EXTEND}, "no frames"),
        ({"audio": sound(0)}, "empty"),
        ({"audio": sound(9), "with_audio": False}, "no sound is wanted"),
    ],
)
def test_bad_input(settings, message):
    with pytest.raises(InputError, match=message):
        read_request(OWN, **settings)


def test_models_are_found_by_name(tmp_path):
    for name in ("one", "org/two", "foreign", "foreign/text_encoder"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("one", "org/two", "foreign"):
        (tmp_path / name / "model_index.json").touch()
    for name in ("one", "org/two", "foreign/text_encoder"):
        (tmp_path / name / "generation_config.json").touch()
    (tmp_path / "linked").symlink_to(SHIPPED_MODEL)
    folders = [str(tmp_path), str(tmp_path / "absent")]
    shelf = Shelf(lambda: folders, is_vidgen)
    assert shelf.names() == [SHIPPED, "linked", "one", "org/two"]
    assert Shelf(lambda: folders, is_published).names() == ["foreign"]
    assert shelf.find("org/two") == tmp_path / "org" / "two"
    assert Shelf(lambda: folders, is_published).find("foreign") == tmp_path / "foreign"
    assert shelf.find(SHIPPED) == SHIPPED_MODEL
    for wrong in ("", "two", "three", "foreign", "../" + tmp_path.name + "/one", str(tmp_path / "one" / "..")):
        with pytest.raises(InputError, match="no model"):
            shelf.find(wrong)


def test_examples_come_in_both_formats_and_use_nodes_that_there_are():
    folder = ROOT / "comfyui" / "example_workflows"
    source = (ROOT / "vidgen" / "comfy" / "nodes.py").read_text(encoding="utf-8")
    drawn = sorted(folder.glob("*.json"))
    assert [path.name for path in drawn] == sorted(path.name for path in (folder / "api").glob("*.json"))
    assert len(drawn) >= 7
    for path in drawn:
        types = [node["type"] for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]]
        prompt = json.loads((folder / "api" / path.name).read_text(encoding="utf-8"))
        assert types == [node["class_type"] for node in prompt.values()]
        assert all(f'node_id="{name}"' in source for name in types if name.startswith("VidGen"))
