"""The nodes without ComfyUI: what they make of its tensors and numbers, and how they use what it documents.

``test_comfy_real.py`` runs them in ComfyUI itself.
"""

import asyncio
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar
from unittest.mock import MagicMock

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
    exact_rate,
    find_model,
    list_models,
    read_request,
    to_bytes,
    to_image,
)
from vidgen.errors import InputError
from vidgen.generation import SHIPPED_MODEL, GenerationConfig
from vidgen.published_folders import is_published, is_vidgen

from .test_pipeline import make_pipeline

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
    assert list_models(folders, is_vidgen) == [SHIPPED, "linked", "one", "org/two"]
    assert list_models(folders, is_published) == ["foreign"]
    assert find_model("org/two", folders, is_vidgen) == tmp_path / "org" / "two"
    assert find_model("foreign", folders, is_published) == tmp_path / "foreign"
    assert find_model(SHIPPED, folders, is_vidgen) == SHIPPED_MODEL
    for wrong in ("", "two", "three", "foreign", "../" + tmp_path.name + "/one", str(tmp_path / "one" / "..")):
        with pytest.raises(InputError, match="no model"):
            find_model(wrong, folders, is_vidgen)


NEED_COMFY = ("nodes", "published", "sampling", "schema")


class Interrupted(Exception):
    pass


@dataclass
class FakeComfy:
    """Notes what it was asked for: only what ComfyUI documents of itself, and no more than the nodes use."""

    loads: int = 0
    updates: list = None
    interrupted: bool = False
    steps_until_interrupt: int = 1000


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """ComfyUI's modules, as thin as the nodes are."""
    state = FakeComfy(updates=[])

    def load(patchers, force_full_load):
        assert force_full_load
        assert all(patcher.load_device == torch.device("cpu") for patcher in patchers)
        state.loads += 1

    def check():
        state.steps_until_interrupt -= 1
        if state.steps_until_interrupt < 0:
            raise Interrupted

    class Patcher:
        def __init__(self, model, load_device, offload_device):
            assert isinstance(model, torch.nn.Module)
            self.model, self.load_device, self.offload_device = model, load_device, offload_device

    class Bar:
        def __init__(self, total):
            self.total = total

        def update_absolute(self, value, total, preview):
            state.updates.append((value, total, preview))

    class NodeOutput:
        def __init__(self, *values):
            self.values = values

    modules = {
        "comfy": {},
        "comfy.model_management": {
            "get_torch_device": lambda: torch.device("cpu"),
            "unet_offload_device": lambda: torch.device("cpu"),
            "is_device_cpu": lambda device: True,
            "load_models_gpu": load,
            "throw_exception_if_processing_interrupted": check,
            "unload_all_models": lambda: None,
            "soft_empty_cache": lambda: None,
        },
        "comfy.model_patcher": {"ModelPatcher": Patcher},
        "comfy.utils": {"ProgressBar": Bar},
        "comfy.cli_args": {
            "LatentPreviewMethod": SimpleNamespace(NoPreviews="none"),
            "args": SimpleNamespace(preview_method="auto", preview_size=512),
        },
        "folder_paths": {
            "models_dir": str(tmp_path),
            "add_model_folder_path": lambda name, path: None,
            "get_folder_paths": lambda name: [str(tmp_path)],
            "get_filename_list": lambda name: ["style.safetensors"],
            "get_full_path": lambda name, file: str(tmp_path / file) if (tmp_path / file).is_file() else None,
        },
        "comfy_api": {},
        "comfy_api.latest": {
            "ComfyExtension": object,
            "io": MagicMock(ComfyNode=object, NodeOutput=NodeOutput),
            "InputImpl": SimpleNamespace(VideoFromComponents=lambda parts: parts),
            "Types": SimpleNamespace(VideoComponents=SimpleNamespace),
        },
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    for name in NEED_COMFY:
        monkeypatch.delitem(sys.modules, f"vidgen.comfy.{name}", raising=False)
    make_pipeline().save_pretrained(tmp_path / "tiny", dtype=None)
    yield state
    for name in NEED_COMFY:
        sys.modules.pop(f"vidgen.comfy.{name}", None)
        vars(vidgen.comfy).pop(name, None)


SETTINGS = {
    "batch_size": 1, "width": 0, "height": 0, "duration_s": 0.0, "frame_rate": 0.0, "num_inference_steps": 0,
    "guidance_scale": -1.0, "audio_guidance_scale": -1.0, "solver": "the model's own", "with_audio": True,
    "loop": False,
}  # fmt: skip


def test_nodes(fake):
    nodes = {node.__name__: node for node in asyncio.run(extension_nodes())}
    (model,) = nodes["LoadModel"].execute("tiny").values
    (text,) = nodes["TextEncode"].execute(model, " a red\nball ", "").values
    (latents,) = nodes["Sampler"].execute(model, text, **SETTINGS | {"batch_size": 2}, seed=3).values
    pictures, sounds, videos = nodes["Decode"].execute(model, latents).values
    assert [tuple(clip.shape) for clip in pictures] == [(9, 32, 64, 3)] * 2
    assert [(tuple(clip["waveform"].shape), clip["sample_rate"]) for clip in sounds] == [((1, 1, 9000), 24000)] * 2
    assert [video.frame_rate for video in videos] == [Fraction(24)] * 2
    assert videos[1].images is pictures[1]
    assert videos[1].audio is sounds[1]
    assert fake.loads == 3
    assert [(step, total) for step, total, _ in fake.updates] == [(1, 2), (2, 2)]
    kind, preview, size = fake.updates[0][2]
    assert (kind, preview.size, size) == ("JPEG", (3 * 64, 32), 512)

    expected = make_pipeline()("a red ball", generator=torch.Generator().manual_seed(4))
    assert np.abs(to_bytes(pictures[1]).astype(int) - expected.frames[0]).max() <= 1
    torch.testing.assert_close(sounds[1]["waveform"][0, 0].numpy(), expected.audio[0], atol=1e-4, rtol=1e-3)

    one = nodes["Generate"].execute(model, "a red ball", "", **SETTINGS, seed=4).values
    assert np.abs(to_bytes(one[0][0]).astype(int) - expected.frames[0]).max() <= 1
    rated = {"with_audio": False, "frame_rate": 23.976, "num_inference_steps": 1}
    silent = nodes["Generate"].execute(model, "a red ball", "", **SETTINGS | rated, seed=4).values
    assert silent[1] == [None]
    assert silent[2][0].audio is None
    assert silent[2][0].frame_rate == Fraction(24000, 1001)

    with pytest.raises(InputError, match="camera move 'dances'"):
        nodes["TextEncode"].execute(model, "a red ball", "", camera="dances")
    for wrong in ({"solver": "magic"}, {"height": 40}):
        with pytest.raises(InputError):
            nodes["Sampler"].execute(model, text, **SETTINGS | wrong, seed=3)
    with pytest.raises(InputError, match="prompt is empty"):
        nodes["Generate"].execute(model, " \n", "", **SETTINGS, seed=4)
    assert nodes["LoadModel"].validate_inputs("tiny") is True
    assert "no model 'other'" in nodes["LoadModel"].validate_inputs("other")

    loop = nodes["Generate"].execute(model, "a red ball", "", **SETTINGS | {"loop": True}, seed=4).values
    expected = make_pipeline()("a red ball", loop=True, generator=torch.Generator().manual_seed(4))
    assert np.abs(to_bytes(loop[0][0]).astype(int) - expected.frames[0]).max() <= 1

    fake.updates.clear()
    long = nodes["Generate"].execute(model, "a red ball", "", **SETTINGS | {"duration_s": 1.0}, seed=4).values
    chunks = list(make_pipeline().stream("a red ball", 1.0, generator=torch.Generator().manual_seed(4)))
    assert np.abs(to_bytes(long[0][0]).astype(int) - np.concatenate([chunk.frames for chunk in chunks])).max() <= 1
    assert long[1][0]["waveform"].shape == (1, 1, 24000)
    assert fake.updates[-1][1] == 24
    assert 0 < fake.updates[-1][0] < 24, "frames that are done"

    fake.updates.clear()
    fake.steps_until_interrupt = 3
    with pytest.raises(Interrupted):
        nodes["Sampler"].execute(model, text, **SETTINGS | {"num_inference_steps": 50}, seed=3)
    assert len(fake.updates) == 2


def test_loras(fake, tmp_path):
    pytest.importorskip("peft")
    from vidgen.lora import add_lora, save_lora

    network = make_pipeline().transformer
    add_lora(network, rank=2)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    save_lora(network, tmp_path / "style.safetensors", {})
    nodes = {node.__name__: node for node in asyncio.run(extension_nodes())}
    (plain,) = nodes["LoadModel"].execute("tiny").values
    (styled,) = nodes["LoadLora"].execute(plain, "style.safetensors", 1.0).values

    def latents(model):
        (text,) = nodes["TextEncode"].execute(model, "a red ball", "").values
        return nodes["Sampler"].execute(model, text, **SETTINGS, seed=3).values[0].video

    first, changed, again = latents(plain), latents(styled), latents(plain)
    assert torch.equal(first, again), "the other branch of a graph has no LoRA"
    assert not torch.allclose(first, changed, atol=1e-2)
    expected = make_pipeline()
    expected.load_lora_weights(tmp_path / "style.safetensors", scale=0.5)
    (half,) = nodes["LoadLora"].execute(plain, "style.safetensors", 0.5).values
    made = expected("a red ball", generator=torch.Generator().manual_seed(3), output_type="latent").frames
    torch.testing.assert_close(latents(half), made, atol=1e-4, rtol=1e-3)
    assert nodes["LoadLora"].validate_inputs("style.safetensors") is True
    assert "no LoRA 'other'" in nodes["LoadLora"].validate_inputs("other")


def test_published_models(fake, tmp_path):
    from vidgen.published import Made

    from .tiny_pipelines import save

    save("ltx", tmp_path / "LTX")
    nodes = {node.__name__: node for node in asyncio.run(extension_nodes())}
    assert nodes["LoadPublished"].validate_inputs("LTX") is True
    assert "no model" in nodes["LoadPublished"].validate_inputs("tiny"), "that is vidgen's own"
    (model,) = nodes["LoadPublished"].execute("LTX", False).values
    settings = {name: value for name, value in SETTINGS.items() if name not in ("solver", "loop")}
    settings |= {"width": 32, "height": 32, "duration_s": 0.4, "frame_rate": 23.976, "num_inference_steps": 2}
    run = nodes["GeneratePublished"].execute
    pictures, sounds, videos = run(model, "a red ball", "", **settings | {"batch_size": 2}, seed=3).values
    assert [tuple(clip.shape) for clip in pictures] == [(9, 32, 32, 3)] * 2
    assert sounds == [None] * 2
    assert videos[0].frame_rate == Fraction(24000, 1001)
    assert [update[:2] for update in fake.updates] == [(1, 2), (2, 2)] * 2
    (alone,), _, _ = run(model, "a red ball", "", **settings, seed=4).values
    assert torch.equal(alone, pictures[1])
    assert not torch.equal(alone, pictures[0])
    with pytest.raises(InputError, match="LTXPipeline does not take --last-image"):
        run(model, "a red ball", "", **settings, seed=4, last_image=images(1))
    with pytest.raises(InputError, match="prompt is empty"):
        run(model, " ", "", **settings, seed=4)
    fake.steps_until_interrupt = 2
    with pytest.raises(Interrupted):
        run(model, "a red ball", "", **settings | {"num_inference_steps": 50}, seed=3)

    class Heard:
        accepts: ClassVar = {}

        def make(self, prompt, asked, on_step):
            return Made(np.zeros((2, 8, 8, 3), np.uint8), Fraction(25), np.ones((2, 3840), np.float32), 48000)

    fake.steps_until_interrupt = 1000
    _, (sound,), (video,) = run(Heard(), "a red ball", "", **settings, seed=4).values
    assert (tuple(sound["waveform"].shape), sound["sample_rate"], video.frame_rate) == ((1, 2, 3840), 48000, 25)


async def extension_nodes():
    from vidgen.comfy import comfy_entrypoint

    return await (await comfy_entrypoint()).get_node_list()


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
