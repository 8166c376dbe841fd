"""The pipeline as diffusers' users know pipelines: its names, loaders, offloading, backends, casting, sharing."""

import base64
import json
import subprocess
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from vidgen.audio_sync.codec import AudioCodec
from vidgen.errors import InputError
from vidgen.generation import GenerationConfig
from vidgen.given import Given
from vidgen.pipeline import VidGenPipeline
from vidgen.vae3d.autoencoder import SpacetimeVAE

from .test_pipeline import ROOT, make_pipeline, seeded


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pipeline.save_pretrained(folder, dtype=None)
    return folder


def latents(pipeline, **settings):
    output = pipeline("a red ball", generator=seeded(5), output_type="latent", num_inference_steps=2, **settings)
    return output.frames, output.audio


# --- calls ----------------------------------------------------------------------------------------------------------


def test_outputs_as_diffusers_gives_them(pipeline):
    arrays = pipeline("a red ball", generator=seeded(0))
    pictures = pipeline("a red ball", generator=seeded(0), output_type="pil").frames
    assert np.array_equal(np.stack([np.asarray(picture) for picture in pictures[0]]), arrays.frames[0])
    frames, audio = pipeline("a red ball", generator=seeded(0), return_dict=False)
    assert np.array_equal(frames, arrays.frames)
    assert np.array_equal(audio, arrays["audio"])
    assert arrays[0] is arrays.frames


def test_pictures_in_every_form(pipeline):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (32, 64, 3), dtype=np.uint8)
    forms = [Image.fromarray(array), array, array / 255, torch.from_numpy(array / 255).permute(2, 0, 1)]
    made = [latents(pipeline, image=form)[0] for form in forms]
    assert all(torch.equal(made[0], other) for other in made[1:])
    video = torch.from_numpy(array)[None].permute(0, 3, 1, 2)[:, :, None].float() / 127.5 - 1
    with torch.no_grad():
        torch.testing.assert_close(made[0][:, :, :1], pipeline.vae.to_latents(video), atol=1e-4, rtol=1e-4)
    last, _ = latents(pipeline, last_image=array)
    assert not torch.allclose(last[:, :, :1], made[0][:, :, :1])
    larger = Image.fromarray(array).resize((640, 320))
    assert latents(pipeline, image=larger, last_image=larger)[0].shape == last.shape
    with pytest.raises(InputError, match="twice"):
        pipeline("a", image=array, last_image=array, num_frames=1)


def test_a_callback_may_change_the_state(pipeline):
    seen = []

    def silence(pipe, step, level, values):
        seen.append((step, set(values)))
        return {"noisy_audio_latents": torch.zeros_like(values["noisy_audio_latents"])} if step == 1 else values

    names = ["video_latents", "noisy_video_latents", "noisy_audio_latents"]
    video, audio = latents(pipeline, callback_on_step_end=silence, callback_on_step_end_tensor_inputs=names)
    plain_video, _ = latents(pipeline)
    assert seen == [(0, set(names)), (1, set(names))]
    assert torch.equal(video, plain_video)
    assert not audio.any()


def test_an_interrupted_clip_is_what_it_was_estimated_to_become(pipeline):
    estimates = []

    def stop(pipe, step, level, values):
        estimates.append(values)
        pipe._interrupt = step == 1
        return {}

    output = pipeline("a", generator=seeded(1), num_inference_steps=5, callback_on_step_end=stop, output_type="latent")
    video, audio = output.frames, output.audio
    assert len(estimates) == 2
    assert torch.equal(video, estimates[-1]["video_latents"])
    assert torch.equal(audio, estimates[-1]["audio_latents"])
    count = len(estimates)
    pipeline("a", num_inference_steps=3, callback_on_step_end=lambda *_: estimates.append(None))
    assert len(estimates) == count + 3  # the next call runs to its end


# --- loading and sharing --------------------------------------------------------------------------------------------

LOAD = """
import sys, torch
from safetensors.torch import save_file
{load}
assert type(pipeline).__name__ == "VidGenPipeline", type(pipeline)
assert pipeline.generation.num_frames == 9 and pipeline.generation.model_version == "tiny"
output = pipeline("a red ball", generator=torch.Generator().manual_seed(5), output_type="latent", num_inference_steps=2)
save_file({{"video": output.frames.contiguous(), "audio": output.audio.contiguous()}}, sys.argv[2])
"""
WAYS = {
    "import": "from diffusers import DiffusionPipeline\nimport vidgen\n"
    "pipeline = DiffusionPipeline.from_pretrained(sys.argv[1])",
    "stub": "from diffusers import DiffusionPipeline\nassert 'vidgen' not in sys.modules\n"
    "pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], custom_pipeline=sys.argv[1], trust_remote_code=True)",
}


@pytest.mark.parametrize("way", ["import", pytest.param("stub", marks=pytest.mark.slow)])
def test_diffusers_own_loader_in_a_fresh_process(way, pipeline, saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    code = LOAD.format(load=WAYS[way])
    output = tmp_path / "out.safetensors"
    subprocess.run([sys.executable, "-c", code, saved, output], cwd=ROOT, check=True, timeout=300)
    made = load_file(output)
    video, audio = latents(pipeline)
    torch.testing.assert_close(made["video"], video, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made["audio"], audio, atol=1e-5, rtol=1e-5)


def test_the_index_carries_the_settings(saved):
    index = json.loads((saved / "model_index.json").read_text())
    assert GenerationConfig.from_dict(index["generation"]) == GenerationConfig.load(saved)
    with pytest.raises(InputError, match="safetensors"):
        make_pipeline().save_pretrained(saved, safe_serialization=False)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as its client needs to make a repository and to upload small files to it."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_HEAD(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()

    do_GET = do_HEAD

    def do_POST(self):
        assert self.headers["Authorization"] == "Bearer secret"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address = f"http://{self.headers['Host']}/me/tiny"
        answer = {"url": address, "name": "me/tiny", "id": "me/tiny"}
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {
                "files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            }
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {
                "success": True,
                "commitOid": "0" * 40,
                "commitUrl": f"{address}/commit/{'0' * 40}",
                "hookOutput": "",
            }
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


def test_a_model_is_uploaded_with_its_card(pipeline, monkeypatch, tmp_path):
    """By the hub's own client, to a hub on this machine; what arrives there is the model."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", here)
    files = f"{here}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
    try:
        address = pipeline.push_to_hub("tiny", token="secret", dtype=None)
    finally:
        server.shutdown()
        server.server_close()
    assert address.endswith("/me/tiny/commit/" + "0" * 40)
    for name, data in Hub.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    card = (tmp_path / "README.md").read_text()
    assert 'from_pretrained("me/tiny")' in card
    assert "pipeline_tag: text-to-video" in card
    there = latents(VidGenPipeline.from_pretrained(tmp_path))
    assert all(torch.equal(*pair) for pair in zip(there, latents(pipeline), strict=True))


def test_parts_load_alone_in_half_precision(pipeline, saved):
    """diffusers builds them with half precision as torch's default; what is computed from the config must not mind."""
    codec = AudioCodec.from_pretrained(saved / "codec", torch_dtype=torch.float16)
    assert next(codec.parameters()).dtype == torch.float16
    for name in ("code_analysis", "code_synthesis"):
        built, expected = getattr(codec, name).float(), getattr(pipeline.codec, name)
        torch.testing.assert_close(built, expected, atol=1e-3, rtol=2e-3)
    vae = SpacetimeVAE.from_pretrained(saved / "vae", torch_dtype=torch.bfloat16)
    torch.testing.assert_close(
        vae.encoder.cosine_code.state_dict(), pipeline.vae.encoder.cosine_code.state_dict(), atol=0.01, rtol=0.01,
        check_dtype=False,
    )  # fmt: skip


def test_networks_return_what_diffusers_networks_do_when_asked(pipeline):
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    with torch.no_grad():
        assert torch.equal(pipeline.vae(video, return_dict=True).sample, pipeline.vae(video)[0])
        sound = torch.rand(1, 1, 2000) - 0.5
        assert torch.equal(pipeline.codec(sound, return_dict=True).sample, pipeline.codec(sound)[0])
        inputs = {
            "video": torch.randn(1, 24, 1, 2, 2), "audio": None, "text": torch.randn(1, 2, 8),
            "video_sigma": torch.ones(1, 1, 1, 1), "video_times_s": torch.zeros(1),
        }  # fmt: skip
        output = pipeline.transformer(**inputs, return_dict=True)
        assert torch.equal(output.video, pipeline.transformer(**inputs)[0])
        assert output.audio is None


# --- memory and speed -----------------------------------------------------------------------------------------------


BLACK = np.zeros((32, 64, 3), np.uint8)


def test_model_offloading_fetches_every_part_when_it_is_needed(pipeline, saved):
    """diffusers' own method and order; on the CPU, where fetching moves nothing."""
    parts = VidGenPipeline.from_pretrained(saved)
    assert set(parts.model_cpu_offload_seq.split("->")) == set(parts.components)
    parts.enable_model_cpu_offload(device="cpu")
    fetched = []
    for name, part in parts.components.items():
        hook = part._hf_hook
        plain = hook.pre_forward

        def pre_forward(module, *args, _name=name, _plain=plain, **kwargs):
            fetched.append(_name)
            return _plain(module, *args, **kwargs)

        hook.pre_forward = pre_forward
    assert parts.device.type == "cpu"
    made = latents(parts, image=BLACK)
    assert [name for index, name in enumerate(fetched) if index == 0 or fetched[index - 1] != name] == [
        "text_encoder", "vae", "transformer",
    ]  # fmt: skip
    parts("a red ball", num_inference_steps=1)
    assert fetched[-1] == "codec"
    assert all(torch.equal(*pair) for pair in zip(made, latents(pipeline, image=BLACK), strict=True))


def by_layers(pipeline):
    """What ``enable_sequential_cpu_offload`` does to each part; diffusers itself refuses to do it on a CPU."""
    from accelerate import cpu_offload

    for part in pipeline.components.values():
        cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)
    assert pipeline.transformer.blocks[0].attn.qkv.weight.device.type == "meta"


def by_groups(pipeline, **how):
    cpu = torch.device("cpu")
    pipeline.enable_group_offload(onload_device=cpu, offload_device=cpu, **how)


@pytest.mark.parametrize(
    "offload",
    [
        by_layers,
        partial(by_groups, offload_type="block_level", num_blocks_per_group=1),
        partial(by_groups, offload_type="leaf_level"),
    ],
    ids=["layers", "blocks", "leaves"],
)
def test_finer_offloading_changes_nothing_of_the_clip(pipeline, saved, offload):
    parts = VidGenPipeline.from_pretrained(saved)
    offload(parts)
    settings = {"num_inference_steps": 2, "image": BLACK, "given": Given(waveform=np.full(5000, 0.1, np.float32))}
    for _ in range(2):  # what was fetched has gone again
        output = parts("a red ball", generator=seeded(5), **settings)
    expected = pipeline("a red ball", generator=seeded(5), **settings)
    assert np.array_equal(output.frames, expected.frames)
    assert np.array_equal(output.audio, expected.audio)


@pytest.mark.parametrize("backend", ["native", "_native_math", pytest.param("flex", marks=pytest.mark.slow)])
def test_attention_backends_agree(backend):
    from diffusers.models.attention_dispatch import attention_backend

    pipeline = make_pipeline()
    plain = latents(pipeline, guidance_scale=1.0)
    used = [module for module in pipeline.transformer.modules() if hasattr(module, "processor")]
    assert len(used) == 3  # two joint blocks and one of the text
    with attention_backend("native"):  # which also restores what set_attention_backend sets for all
        pipeline.transformer.set_attention_backend(backend)
        assert all(module.processor._attention_backend == backend for module in used)
        for first, second in zip(plain, latents(pipeline, guidance_scale=1.0), strict=True):
            torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)
        with pytest.raises(ValueError, match="backend"):
            pipeline.transformer.set_attention_backend("magic")


def test_layerwise_casting_keeps_little_and_computes_in_full():
    pipeline = make_pipeline()
    plain, _ = latents(pipeline)
    pipeline.transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    block = pipeline.transformer.blocks[0]
    assert block.attn.qkv.weight.dtype == torch.bfloat16
    assert pipeline.transformer.video_head.proj.weight.dtype == torch.float32
    cast, _ = latents(pipeline)
    assert 0 < (cast - plain).abs().mean() < 0.05 * plain.abs().mean()


def test_int8_weights():
    pytest.importorskip("torchao")
    from vidgen.placement import quantize_int8

    pipeline = make_pipeline()
    plain, _ = latents(pipeline)
    quantize_int8(pipeline.transformer)
    weight = pipeline.transformer.blocks[0].mlp.up.weight
    assert weight.qdata.dtype == torch.int8
    quantized, _ = latents(pipeline)
    assert 0 < (quantized - plain).abs().mean() < 0.05 * plain.abs().mean()
    assert isinstance(pipeline.transformer.blocks[0].mlp.up, nn.Linear)


def test_a_lora_on_the_command_line_and_in_the_pipeline(saved, tmp_path, capsys):
    pytest.importorskip("peft")
    import sample
    from vidgen import inspect, media
    from vidgen.lora import add_lora, save_lora

    adapted = make_pipeline().transformer
    add_lora(adapted, 2, 8.0)
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=seeded(1))
    save_lora(adapted, tmp_path / "style.safetensors", {})

    def clip(name, *more):
        path = tmp_path / name
        arguments = ["--prompt", "a red ball", "--model", str(saved), "--seed", "5", "--output", str(path), *more]
        sample.main([*arguments, "--device", "cpu"])
        return media.read_clip(path).frames.astype(int), inspect.command(media.read_metadata(path))

    plain, _ = clip("plain.mp4")
    half, again = clip("half.mp4", "--lora", f"{tmp_path}/style.safetensors:0.5")
    whole, _ = clip("whole.mp4", "--lora", f"{tmp_path}/style.safetensors")
    assert f"--lora {tmp_path}/style.safetensors:0.5" in again
    differences = [np.abs(frames - plain).mean() for frames in (half, whole)]
    assert 0 < differences[0] < differences[1]
    loaded = VidGenPipeline.from_pretrained(saved)
    loaded.load_lora_weights(tmp_path / "style.safetensors", scale=0.5)
    expected = loaded("a red ball", generator=seeded(5)).frames[0].astype(int)
    media.write_video(tmp_path / "expected.mp4", expected.astype(np.uint8), None, 24)
    assert np.abs(media.read_clip(tmp_path / "expected.mp4").frames - half).mean() < 0.2  # rounding of fused weights
