"""The nodes without ComfyUI, against stand-ins for the few functions of it that they use."""

import asyncio
import sys
from dataclasses import dataclass
from fractions import Fraction
from types import ModuleType, SimpleNamespace
from typing import ClassVar
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

import vidgen
from vidgen.comfy.inputs import to_bytes
from vidgen.errors import InputError

from .test_comfy import images
from .test_pipeline import make_pipeline

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
    assert "no few-step student" in nodes["LoadModel"].validate_inputs("tiny", "fast")

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


def test_a_few_step_student_and_its_teacher(fake, tmp_path):
    pytest.importorskip("peft")
    from vidgen.lora import add_lora
    from vidgen.model_folder import save_with_student

    student = make_pipeline().transformer
    add_lora(student, rank=2)
    sampling = {"num_inference_steps": 1, "guidance_scale": 1.0, "audio_guidance_scale": 1.0, "model_version": "quick"}
    save_with_student(tmp_path / "tiny", tmp_path / "both", student, sampling, {})
    node = {node.__name__: node for node in asyncio.run(extension_nodes())}["LoadModel"]
    assert node.validate_inputs("both", "fast") is True
    versions = {
        words: node.execute("both", *words).values[0].generation.model_version
        for words in [(), ("fast if there is",), ("fast",), ("high",)]
    }
    assert versions == {(): "quick", ("fast if there is",): "quick", ("fast",): "quick", ("high",): "tiny"}


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
