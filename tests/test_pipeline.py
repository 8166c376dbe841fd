import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from vidgen import media
from vidgen.audio_sync.codec import AudioCodec
from vidgen.clip import ClipSpec
from vidgen.dit.model import JointDiT
from vidgen.errors import InputError
from vidgen.generation import GenerationConfig
from vidgen.loading import choose_device
from vidgen.pipeline import VidGenPipeline
from vidgen.text import WordVectorEncoder
from vidgen.vae3d.autoencoder import SpacetimeVAE

ROOT = Path(sample.__file__).parent
SPEC = ClipSpec(num_frames=9, height=32, width=64)
WORDS = ["a", "red", "blue", "ball", "cube"]


def make_pipeline(heads=1):
    torch.manual_seed(0)
    transformer = JointDiT(text_dim=8, width=32, depth=2, heads=heads, text_layers=1)
    for parameter in transformer.parameters():  # a fresh one is zero at its outputs and would hide mistakes
        torch.nn.init.normal_(parameter, std=0.1)
    return VidGenPipeline.assemble(
        SpacetimeVAE(width=32, encoder_depth=1, decoder_depth=1, image_channels=8),
        AudioCodec(encoder_channels=16, encoder_blocks=1, decoder_channels=16, decoder_blocks=1),
        transformer,
        WordVectorEncoder.from_table(WORDS, torch.randn(len(WORDS), 8)),
        SPEC,
        video_shift=2.0,
        num_inference_steps=2,
        model_version="tiny",
    )


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pipeline.save_pretrained(folder, dtype=None, max_shard_size="60KB")
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    import shutil

    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_ancestral_noise_leaves_what_is_given_and_follows_from_what_is_drawn(pipeline):
    """Rounding of what is given, on another device say, must not lead to other noise."""

    def latents(brightness, seed):
        image = np.full((32, 64, 3), brightness, np.uint8)
        generator = torch.Generator().manual_seed(seed)
        made = pipeline("a red ball", image=image, solver="euler_ancestral", num_inference_steps=4,
                        generator=generator, output_type="latent")  # fmt: skip
        return made.frames

    first, like, other = latents(100, 1), latents(101, 1), latents(100, 2)
    assert torch.equal(first[:, :, 0], other[:, :, 0])
    assert not torch.equal(first[:, :, 0], like[:, :, 0])
    new, rounded, drawn_anew = (x[:, :, 1:] for x in (first, like, other))
    assert (new - rounded).std() < 0.2 * (new - drawn_anew).std()


def test_a_folder_tells_the_compression_of_its_autoencoders(tmp_path):
    parts = make_pipeline().components
    parts["vae"] = SpacetimeVAE(temporal_compression=2, width=32, encoder_depth=1, decoder_depth=1, image_channels=8)
    VidGenPipeline(**parts).save_pretrained(tmp_path)
    spec = GenerationConfig.load(tmp_path).spec(duration_s=9 / 24, height=32, width=64)
    assert (spec.compression.frames, spec.latent_frames) == (2, 5)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def same(first, second):
    return np.array_equal(first.frames, second.frames) and np.array_equal(first.audio, second.audio)


def test_output_has_the_asked_shape_and_its_stages_are_timed(pipeline):
    output = pipeline("a red ball", generator=seeded(0))
    assert output.frames.shape == (1, 9, 32, 64, 3)
    assert output.frames.dtype == np.uint8
    assert output.audio.shape == (1, 9000)
    assert output.audio.dtype == np.float32
    assert np.abs(output.audio).max() <= 1
    assert (output.sample_rate, output.frame_rate) == (24000, 24)
    assert set(output.seconds) == {"text", "denoise", "decode_video", "decode_audio"}


@pytest.mark.parametrize("num_frames", [1, 2, 10])
def test_any_number_of_frames(pipeline, num_frames):
    output = pipeline("a red ball", num_frames=num_frames, frame_rate=Fraction(24000, 1001))
    assert output.frames.shape[1] == num_frames
    assert output.audio.shape[1] == round(num_frames * 1001)


def test_duration_and_size(pipeline):
    output = pipeline("a red ball", duration_s=0.5, frame_rate=12, height=64, width=32, num_inference_steps=1)
    assert output.frames.shape == (1, 6, 64, 32, 3)
    assert output.audio.shape == (1, 12000)


def test_the_seed_and_the_prompt_decide(pipeline):
    clip = pipeline("a red ball", generator=seeded(3))
    assert same(clip, pipeline("a red ball", generator=seeded(3)))
    assert not same(clip, pipeline("a red ball", generator=seeded(4)))
    assert not same(clip, pipeline("a blue cube", generator=seeded(3)))


def test_a_clip_does_not_depend_on_its_batch(pipeline):
    both = pipeline(["a red ball", "a blue cube"], generator=[seeded(1), seeded(2)], output_type="latent")
    alone = pipeline("a blue cube", generator=seeded(2), output_type="latent")
    torch.testing.assert_close(both.frames[1:], alone.frames, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both.audio[1:], alone.audio, atol=1e-4, rtol=1e-4)


def test_guidance_scales_act_on_their_own_modality(pipeline):
    def first_step(**guidance):
        return pipeline("a red ball", generator=seeded(0), num_inference_steps=1, output_type="latent", **guidance)

    plain = first_step(guidance_scale=1.0)
    loud = first_step(guidance_scale=1.0, audio_guidance_scale=5.0)
    torch.testing.assert_close(plain.frames, loud.frames, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(plain.audio, loud.audio, atol=1e-3)
    bare = first_step(guidance_scale=0.0)
    negative = pipeline("a blue cube", "a red ball", generator=seeded(0), num_inference_steps=1, guidance_scale=0.0,
                        output_type="latent")  # fmt: skip
    torch.testing.assert_close(negative.frames, plain.frames, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(bare.frames, plain.frames, atol=1e-3)


def test_latents_are_those_that_are_decoded(pipeline):
    latents = pipeline("a red ball", generator=seeded(0), output_type="latent")
    tensors = pipeline("a red ball", generator=seeded(0), output_type="pt")
    arrays = pipeline("a red ball", generator=seeded(0))
    with torch.no_grad():
        video = pipeline.vae.from_latents(latents.frames).clamp(-1, 1)
    torch.testing.assert_close(tensors.frames, video, atol=1e-5, rtol=1e-5)
    expected = ((video[0].permute(1, 2, 3, 0) + 1) * 127.5).numpy()
    assert np.abs(arrays.frames[0] - expected).max() <= 0.51


def test_long_clips_are_decoded_in_turns_without_a_seam(pipeline, monkeypatch):
    whole = pipeline("a red ball", generator=seeded(0), num_frames=33, num_inference_steps=1)
    monkeypatch.setattr("vidgen.pipeline.DECODED_AT_ONCE", 2)
    parts = pipeline("a red ball", generator=seeded(0), num_frames=33, num_inference_steps=1)
    assert np.abs(whole.frames.astype(int) - parts.frames).max() <= 1


def test_callback_sees_every_step(pipeline):
    seen = []

    def on_step_end(pipe, step, level, values):
        assert pipe is pipeline
        seen.append((step, float(level), values["video_latents"].shape))
        return values

    pipeline("a red ball", num_inference_steps=3, solver="heun", callback_on_step_end=on_step_end)
    assert [step for step, _, _ in seen] == [0, 1, 2]
    assert seen[0][1] == 1.0
    assert seen[0][2] == (1, 24, 3, 2, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prompt": " "},
        {"prompt": []},
        {"prompt": ["a", "b"], "negative_prompt": ["c"]},
        {"prompt": ["a", "b"], "generator": [torch.Generator()]},
        {"prompt": "a", "height": 48},
        {"prompt": "a", "num_frames": 0},
        {"prompt": "a", "num_frames": 5, "duration_s": 1.0},
        {"prompt": "a", "duration_s": -1.0},
        {"prompt": "a", "solver": "magic"},
        {"prompt": "a", "num_inference_steps": 0},
        {"prompt": "a", "output_type": "gif"},
        {"prompt": "a", "image": "picture.png"},
        {"prompt": "a", "callback_on_step_end_tensor_inputs": ["latents"]},
    ],
)
def test_bad_arguments(pipeline, wrong):
    with pytest.raises(InputError):
        pipeline(**wrong)


def test_model_index_names_real_modules(saved):
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == "VidGenPipeline"
    assert index["transformer"] == ["vidgen.dit.model", "JointDiT"]
    assert index["vae"] == ["vidgen.vae3d.autoencoder", "SpacetimeVAE"]
    assert index["codec"] == ["vidgen.audio_sync.codec", "AudioCodec"]
    assert index["text_encoder"] == ["vidgen.text", "WordVectorEncoder"]
    assert len(list((saved / "transformer").glob("*.safetensors"))) > 1


def test_round_trip_in_a_fresh_process_is_exact(pipeline, saved, tmp_path):
    expected = pipeline("a red ball", generator=seeded(5), output_type="latent")
    code = """
import sys, torch
from vidgen.pipeline import VidGenPipeline
pipeline = VidGenPipeline.from_pretrained(sys.argv[1])
assert not any(module.training for module in pipeline.components.values())
output = pipeline("a red ball", generator=torch.Generator().manual_seed(5), output_type="latent")
from safetensors.torch import save_file
save_file({"video": output.frames.contiguous(), "audio": output.audio.contiguous()}, sys.argv[2])
pipeline.save_pretrained(sys.argv[3], dtype=None)
"""
    again = tmp_path / "again"
    subprocess.run([sys.executable, "-c", code, saved, tmp_path / "out.safetensors", again], cwd=ROOT, check=True)
    from safetensors.torch import load_file

    output = load_file(tmp_path / "out.safetensors")
    torch.testing.assert_close(output["video"], expected.frames, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output["audio"], expected.audio, atol=1e-5, rtol=1e-5)
    for name in ("model_index.json", "generation_config.json"):
        assert (again / name).read_text() == (saved / name).read_text()


def test_half_precision_on_disk(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "half")
    loaded = VidGenPipeline.from_pretrained(tmp_path / "half")
    assert pipeline.dtype == loaded.dtype == torch.float32
    size = sum(path.stat().st_size for path in (tmp_path / "half" / "transformer").glob("*.safetensors"))
    assert size < 2.2 * sum(parameter.numel() for parameter in pipeline.transformer.parameters())
    first, second = (pipe("a red ball", generator=seeded(0), output_type="latent") for pipe in (pipeline, loaded))
    torch.testing.assert_close(first.frames, second.frames, atol=0.05, rtol=0.05)


def test_saving_over_another_model_leaves_nothing_of_it(pipeline, saved, copied):
    pipeline.save_pretrained(copied, dtype=None)
    assert same(VidGenPipeline.from_pretrained(copied)("a", generator=seeded(0)), pipeline("a", generator=seeded(0)))
    assert [path.name for path in (copied / "transformer").glob("*.safetensors*")] == [
        "diffusion_pytorch_model.safetensors"
    ]


def test_bfloat16_transformer(saved):
    pipeline = VidGenPipeline.from_pretrained(saved, torch_dtype=torch.bfloat16)
    assert pipeline.dtype == torch.bfloat16
    assert pipeline.vae.dtype == torch.float32
    assert np.isfinite(pipeline("a red ball").audio).all()


PARTS = [
    "model_index.json", "generation_config.json", "vae/config.json", "vae/diffusion_pytorch_model*.safetensors",
    "codec/config.json", "codec/diffusion_pytorch_model*.safetensors", "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors.index.json", "transformer/diffusion_pytorch_model-*.safetensors",
    "text_encoder/config.json", "text_encoder/tokenizer.json", "text_encoder/diffusion_pytorch_model.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("part", PARTS[1:])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_a_missing_or_damaged_file_is_named(copied, part, damage):
    path = sorted(copied.glob(part))[0]
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else path.read_bytes()[:-20])
    # Without its index a sharded component looks like one whose only file is missing; the folder is named then.
    with pytest.raises(InputError, match=path.parent.name):
        VidGenPipeline.from_pretrained(copied)


def test_weights_of_another_network_are_refused(copied):
    config = copied / "codec" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"decoder_channels": 24}))
    with pytest.raises(InputError, match="codec"):
        VidGenPipeline.from_pretrained(copied)


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(InputError, match="toaster"):
        choose_device("toaster")


def test_sample_from_prompt_to_file(saved, tmp_path, capsys):
    arguments = ["--prompt", "a red ball", "a blue cube", "--model", str(saved), "--seed", "3", "--num-samples", "2",
                 "--output", str(tmp_path / "clips"), "--json", "--preview", "--device", "cpu"]  # fmt: skip
    sample.main(arguments)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["prompt"], line["seed"]) for line in lines] == [
        ("a red ball", 3), ("a red ball", 4), ("a blue cube", 3), ("a blue cube", 4),
    ]  # fmt: skip
    assert {"text", "denoise", "decode_video", "decode_audio", "mux"} < set(lines[0]["seconds"])
    assert lines[0]["peak_memory_mib"] > 100
    assert len(list((tmp_path / "clips").iterdir())) == 8
    clip = media.read_clip(lines[1]["path"])
    assert clip.frames.shape == (9, 32, 64, 3)
    assert clip.waveform is not None
    assert len(clip.waveform) == 9000
    tags = media.read_metadata(lines[1]["path"])
    assert (tags["prompt"], tags["seed"], tags["model_version"]) == ("a red ball", "4", "tiny")
    assert json.loads(tags["settings"]) == lines[1]["settings"]
    with Image.open(Path(lines[1]["path"]).with_suffix(".png")) as image:
        assert image.width == 960
    sample.main(
        [*arguments[:2], *arguments[3:5], "--seed", "4", "--output", str(tmp_path / "one.mp4"), "--size", "64x32"]
    )
    assert capsys.readouterr().out == f"{tmp_path / 'one.mp4'}\n"
    assert np.array_equal(media.read_clip(tmp_path / "one.mp4").frames, clip.frames)
