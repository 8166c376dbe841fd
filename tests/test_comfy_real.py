"""The nodes in a real ComfyUI, headless on a CPU, by its HTTP API; the files that its native node saves are read back.

    VIDGEN_COMFYUI=/path/to/ComfyUI python -m pytest tests/test_comfy_real.py

in an environment with vidgen and ComfyUI's requirements.
"""

import itertools
import time
from typing import Any

import numpy as np
import pytest

from vidgen import media

from .comfy_server import CHECKOUT, ROOT, WORKFLOWS, started, workflow, write_examples

pytestmark = pytest.mark.skipif(not CHECKOUT, reason="VIDGEN_COMFYUI does not name a checkout of ComfyUI")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with started(tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@pytest.fixture(scope="module")
def example(server):
    return write_examples(server)


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Mean, in levels of 255."""
    return float(np.abs(first.astype(float) - second).mean())


def likeness(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two sounds, best over a few milliseconds: coders shift."""
    length = min(len(first), len(second)) - 200
    return max(float(np.corrcoef(first[:length], second[shift : shift + length])[0, 1]) for shift in range(0, 200, 2))


def test_a_prompt_becomes_a_file_with_both_streams(server):
    run = server.run(workflow("text_to_video", num_inference_steps=4))
    clip = run.clip
    assert clip.frames.shape == (49, 128, 128, 3)
    assert clip.frame_rate == 24
    assert clip.waveform is not None
    assert (clip.sample_rate_hz, len(clip.waveform)) == (24000, 49000)
    assert clip.frames.std() > 10
    assert np.sqrt((clip.waveform**2).mean()) > 1e-3
    assert run.steps == [1, 2, 3, 4]
    assert [preview.size for preview in run.previews] == [(4 * 128, 128)] * 4
    moments = np.concatenate(clip.frames[[0, 16, 32, 48]], axis=1)
    assert difference(np.asarray(run.previews[-1].convert("RGB")), moments) < 12, "nearly what it became"


def test_it_is_the_clip_that_the_pipeline_makes(server):
    import torch

    from vidgen.pipeline import VidGenPipeline

    nodes = workflow("text_to_video", num_inference_steps=3, seed=11)
    clip = server.run(nodes).clip
    pipeline = VidGenPipeline.from_pretrained(ROOT / "weights")
    prompt = nodes["2"]["inputs"]["prompt"]
    made = pipeline(prompt, num_inference_steps=3, generator=torch.Generator().manual_seed(11))
    assert difference(clip.frames, made.frames[0]) < 4, "but for the coder"
    assert clip.waveform is not None
    assert likeness(clip.waveform, made.audio[0]) > 0.97


def test_steps_in_nodes_of_their_own_and_a_batch(server):
    both = server.run(workflow("text_to_video_in_steps", seed=5))
    assert both.error is None
    clips = [media.read_clip(path) for path in both.files]
    assert len(clips) == 2
    prompt = workflow("text_to_video_in_steps")["2"]["inputs"]["prompt"]
    for seed, clip in zip((5, 6), clips, strict=True):
        alone = server.run(workflow("text_to_video", prompt=prompt, seed=seed)).clip
        assert difference(clip.frames, alone.frames) < 1
        assert likeness(clip.waveform, alone.waveform) > 0.99
    assert difference(clips[0].frames, clips[1].frames) > 3


def test_the_model_stays_loaded_until_memory_is_asked_for(server, example):
    before = server.times_loaded()
    run = server.run(workflow("text_to_video", seed=101))
    assert "1" in run.cached
    assert server.times_loaded() == before
    seeds = itertools.count(102)
    for question in ({"unload_models": True}, {"unload_models": True, "free_memory": True}):
        for _ in range(10):  # it is done when ComfyUI rests, which on a busy machine may be after the next prompt
            server.ask("/free", question)
            time.sleep(1.5)
            run = server.run(workflow("text_to_video", seed=next(seeds)))
            assert run.clip.frames.std() > 10
            if server.times_loaded() > before:
                break
        assert ("1" in run.cached) == ("free_memory" not in question)
        before += 1
        assert server.times_loaded() == before


def test_a_run_stops_at_the_next_step(server):
    run = server.run(workflow("text_to_video", num_inference_steps=400, seed=3), interrupt_at_step=3)
    assert run.is_interrupted
    assert 3 <= max(run.steps) <= 10
    assert not run.files
    assert server.run(workflow("text_to_video", seed=4)).clip.frames.shape == (49, 128, 128, 3)


def test_an_image_comes_to_life(server, example):
    clip = server.run(workflow("image_to_video")).clip
    other = server.run(workflow("text_to_video", prompt="a big red cube slides in from the left", seed=1)).clip
    assert difference(clip.frames[0], example.frames[0]) < 8 < difference(other.frames[0], example.frames[0])


def test_last_image_and_keyframes(server, example):
    nodes = workflow("image_to_video", last_image=["2", 0], keyframes=["2", 0], keyframe_places="22")
    clip = server.run(nodes).clip
    for frame in (0, 22, 48):
        assert difference(clip.frames[frame], example.frames[0]) < 12


def test_a_clip_goes_on(server, example):
    clip = server.run(workflow("extend_video")).clip
    assert len(clip.frames) == 49 + 24
    assert difference(clip.frames[:49], example.frames) < 10
    assert likeness(example.waveform, clip.waveform) > 0.95, "given sound is kept"
    lead = server.run(workflow("extend_video", video_task="lead up to it")).clip
    added = len(lead.frames) - 49
    assert 24 <= added < 28
    assert difference(lead.frames[added:], example.frames) < 10


def test_a_video_is_given_sound(server, example):
    clip = server.run(workflow("video_to_sound")).clip
    assert difference(clip.frames, example.frames) < 10
    assert clip.waveform is not None
    assert likeness(example.waveform, clip.waveform) < 0.9, "it is another sound"
    assert np.sqrt((clip.waveform**2).mean()) > 1e-4


def test_pictures_in_a_batch_are_a_video_too(server, example):
    nodes = workflow("video_to_sound") | {"9": {"class_type": "GetVideoComponents", "inputs": {"video": ["2", 0]}}}
    nodes["3"]["inputs"] |= {"video": ["9", 0], "video_frame_rate": ["9", 2]}
    assert difference(server.run(nodes).clip.frames, example.frames) < 10
    nodes["3"]["inputs"] |= {"audio": ["9", 1], "video_task": "go on after it"}
    longer = server.run(nodes).clip
    assert len(longer.frames) == 49 + 24
    assert likeness(example.waveform, longer.waveform) > 0.95


def test_a_sound_is_given_a_picture(server, example):
    clip = server.run(workflow("sound_to_video")).clip
    assert abs(len(clip.frames) - 49) <= 1  # the end of coded sound is padded
    assert likeness(example.waveform, clip.waveform) > 0.95
    assert clip.frames.std() > 10


def test_parts_are_made_anew(server, example):
    clip = server.run(workflow("replace_part")).clip
    changes = np.array([difference(made, given) for made, given in zip(clip.frames, example.frames, strict=True)])
    assert changes[:10].max() < 10
    assert changes[28:].max() < 10
    assert likeness(example.waveform[:11000], clip.waveform[:11000]) > 0.95
    nodes = workflow("replace_part", replace_to_s=0.0, replace_from_s=0.0, replace_in="picture", mask=["9", 0])
    nodes["7"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 64, "height": 128}}
    nodes["8"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 128, "height": 128}}
    nodes["9"] = {
        "class_type": "MaskComposite",
        "inputs": {"destination": ["8", 0], "source": ["7", 0], "x": 64, "y": 0, "operation": "add"},
    }
    clip = server.run(nodes).clip
    left = difference(clip.frames[:, :, :40], example.frames[:, :, :40])
    assert left < 10
    assert difference(clip.frames[:, :, 80:], example.frames[:, :, 80:]) > left
    assert likeness(example.waveform, clip.waveform) > 0.95


def test_a_video_is_made_anew_in_its_own_likeness(server, example):
    nodes = workflow("replace_part", replace_to_s=0.0, replace_from_s=0.0, replace_in="picture", strength=0.3)
    near = server.run(nodes).clip
    nodes["3"]["inputs"]["strength"] = 0.95
    far = server.run(nodes).clip
    assert difference(near.frames, example.frames) < difference(far.frames, example.frames)
    assert likeness(example.waveform, near.waveform) > 0.95


def test_a_loop(server):
    clip = server.run(workflow("text_to_video", loop=True)).clip
    assert len(clip.frames) == 49
    steps = [difference(first, second) for first, second in itertools.pairwise(clip.frames)]
    assert difference(clip.frames[-1], clip.frames[0]) < 2 * max(steps)


def test_a_long_clip_is_made_in_parts(server):
    run = server.run(workflow("text_to_video", duration_s=5.0, num_inference_steps=2, camera="zooms-in"))
    assert len(run.clip.frames) == 120
    assert len(run.clip.waveform) == 120000
    assert len(run.steps) >= 6, "in three windows or more"
    stopped = server.run(workflow("text_to_video", duration_s=60.0, seed=8), interrupt_at_step=40)
    assert stopped.is_interrupted
    assert not stopped.files


def test_a_lora(server, example):
    plain = server.run(workflow("text_to_video")).clip
    nodes = workflow("with_lora")
    styled = server.run(nodes).clip
    assert difference(plain.frames, styled.frames) > 2
    nodes["2"]["inputs"]["strength"] = 0.0
    nodes["3"]["inputs"] |= {"prompt": workflow("text_to_video")["2"]["inputs"]["prompt"], "seed": 7}
    assert difference(plain.frames, server.run(nodes).clip.frames) < 1
    nodes["2"]["inputs"]["lora"] = "absent.safetensors"
    error = server.run(nodes).error
    assert error is not None
    assert "there is no LoRA 'absent.safetensors'" in error


def test_a_published_model(server):
    made = {"model": ["1", 0], "prompt": "a red ball", "negative_prompt": "", "seed": 3, "batch_size": 1, "width": 32,
            "height": 32, "duration_s": 0.4, "frame_rate": 0.0, "num_inference_steps": 2, "guidance_scale": -1.0,
            "audio_guidance_scale": -1.0, "with_audio": True}  # fmt: skip
    nodes = {
        "1": {"class_type": "VidGenLoadPublished", "inputs": {"model": "tiny-ltx", "for_picture": False}},
        "2": {"class_type": "VidGenGeneratePublished", "inputs": made},
        "3": workflow("text_to_video")["3"],
    }
    run = server.run(nodes)
    assert run.clip.frames.shape == (9, 32, 32, 3)
    assert run.clip.frame_rate == 25
    assert run.steps == [1, 2]
    made["audio_guidance_scale"] = 3.0
    error = server.run(nodes).error
    assert error is not None
    assert "LTXPipeline does not take --audio-guidance" in error


def test_no_sound(server):
    clip = server.run(workflow("text_to_video", with_audio=False)).clip
    assert clip.waveform is None


def test_the_exact_rate(server):
    run = server.run(workflow("text_to_video", frame_rate=23.976, duration_s=0.5))
    assert abs(float(run.clip.frame_rate) - 24000 / 1001) < 1e-4  # the native node itself rounds to thousandths
    assert len(run.clip.frames) == 12


def test_the_pack_is_loaded_without_complaint(server):
    told = server.log.read_text(encoding="utf-8", errors="replace")
    assert "custom_nodes/vidgen" in told
    assert "IMPORT FAILED" not in told
    assert "Unable to parse pyproject.toml" not in told


def test_models_of_the_folder_are_offered(server):
    options = server.ask("/object_info/VidGenLoadModel")["VidGenLoadModel"]["input"]["required"]["model"][1]["options"]
    assert options == ["shipped with vidgen", "mine", "others/one"]
    assert server.run(workflow("text_to_video", model="others/one", seed=77)).clip.frames.std() > 10


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"height": 100}, "height 100 is not a multiple of 32"),
        ({"model": "absent"}, "there is no model 'absent'"),
        ({"model": "../../weights"}, "there is no model"),
        ({"mask": ["9", 0]}, "connect a video too"),
        ({"guidance_scale": 500.0}, "bigger than max"),
    ],
)
def test_bad_input_is_told_at_the_node(server, inputs, message):
    nodes = workflow("text_to_video", **inputs)
    nodes["9"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 64, "height": 64}}
    run = server.run(nodes)
    assert run.error is not None
    assert message in run.error
    assert not run.files


def test_the_examples_for_people_are_those_that_ran(server):
    """Each file of the template browser, turned into a prompt as the front end does it, is its twin in api/."""
    assert sorted(server.ask("/api/workflow_templates")["vidgen"]) == WORKFLOWS
    known = server.ask("/object_info")
    for name in WORKFLOWS:
        drawn = server.ask(f"/api/workflow_templates/vidgen/{name}.json")
        assert as_prompt(drawn, known) == workflow(name, num_inference_steps=0), name


def as_prompt(drawn: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    links = {link[0]: [str(link[1]), link[2]] for link in drawn["links"]}
    prompt = {}
    for node in drawn["nodes"]:
        declared = known[node["type"]]["input"]
        specs = declared["required"] | declared.get("optional", {})
        sockets = {socket["name"]: socket for socket in node["inputs"]}
        values = iter(node["widgets_values"])
        inputs: dict[str, Any] = {}
        for name, spec in specs.items():
            if name not in sockets:
                continue
            link = sockets[name]["link"]
            if "widget" in sockets[name]:
                inputs[name] = next(values)
                if len(spec) > 1 and spec[1].get("control_after_generate"):
                    assert next(values) in ("fixed", "increment", "decrement", "randomize")
            if link is not None:
                inputs[name] = links[link]
        for link in drawn["links"]:
            target = next(other for other in drawn["nodes"] if other["id"] == link[3])
            assert target["inputs"][link[4]]["link"] == link[0]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt
