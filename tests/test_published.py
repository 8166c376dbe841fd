"""Published pipelines through ``sample.py``: their own diffusers classes, small and random, from a folder to an mp4."""

import json
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from vidgen import inspect as clip_inspect
from vidgen import media
from vidgen.errors import InputError
from vidgen.generation import SHIPPED_MODEL
from vidgen.placement import GIB, Placement, choose
from vidgen.published import Asked, PublishedModel, as_frames, as_waveform, open_model
from vidgen.published_folders import is_published

from .tiny_parts import TextOnlyProcessor
from .tiny_pipelines import save

SOUND = {"ltx2": 24000, "kandinsky6": 44100, "cosmos3": 16000}
RATES = {"ltx": 25, "wan": 16, "wan22": 16, "cogvideox": 8, "mochi": 30, "anyflow": 16, "sana_video": 16}
FRAMES = {
    "mochi": 13,
    "cogvideox": 8,
    "wan": 9,
    "wan22": 9,
    "hunyuan_video15": 13,
    "ltx": 13,
    "anyflow": 9,
    "sana_video": 9,
}
"""What half a second comes to, in whole latent frames of each family (CogVideoX pads to more)."""
IN_DEFAULT_SUITE = ("ltx", "wan")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("published")

    def folder(family):
        return root / family if (root / family).exists() else save(family, root / family)

    return folder


def run(folder, output, *more):
    size = "64x64" if folder.name == "mochi" else "32x32"
    arguments = ["--prompt", "a red ball", "--model", str(folder), "--seed", "3", "--steps", "2", "--size", size]
    sample.main([*arguments, "--output", str(output), "--json", "--device", "cpu", *more])
    return media.read_clip(output)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in IN_DEFAULT_SUITE else pytest.mark.slow)
        for name in ("ltx", "ltx2", "wan", "wan22", "cogvideox", "mochi", "hunyuan_video", "hunyuan_video15",
                     "kandinsky5", "kandinsky6", "cosmos3", "skyreels_v2", "anyflow", "sana_video")
    ],
)  # fmt: skip
def test_a_family_from_its_folder_to_a_file(family, folders, tmp_path, capsys):
    folder, output = folders(family), tmp_path / "clip.mp4"
    clip = run(folder, output, "--duration", "0.5")
    assert clip.frame_rate == RATES.get(family, 24)
    assert clip.frames.shape == (FRAMES.get(family, 13), *((64, 64) if family == "mochi" else (32, 32)), 3)
    captured = capsys.readouterr()
    line = json.loads(captured.out)
    assert "in main memory, float32" in captured.err
    assert line["settings"]["frame_rate"] == str(clip.frame_rate)
    if family in SOUND:
        assert clip.sample_rate_hz == line["settings"]["sample_rate_hz"] == SOUND[family]
        assert np.abs(clip.waveform).max() > 0
    else:
        assert clip.waveform is None
    tags = media.read_metadata(output)
    assert (tags["prompt"], tags["seed"]) == ("a red ball", "3")
    again = clip_inspect.command(tags)
    assert f"--model {folder}" in again
    assert "--steps 2" in again


def test_the_seed_decides_and_the_rate_is_heeded(folders, tmp_path):
    folder = folders("ltx")
    first = run(folder, tmp_path / "1.mp4", "--fps", "24000/1001", "--duration", "0.4")
    assert first.frame_rate == Fraction(24000, 1001)
    assert len(first.frames) == 9
    again = run(folder, tmp_path / "2.mp4", "--fps", "24000/1001", "--duration", "0.4")
    other = run(folder, tmp_path / "3.mp4", "--fps", "24000/1001", "--duration", "0.4", "--seed", "4")
    assert np.array_equal(first.frames, again.frames)
    assert not np.array_equal(first.frames, other.frames)


def test_a_first_picture_where_the_weights_serve_both(folders, tmp_path):
    Image.new("RGB", (50, 40), (250, 10, 10)).save(tmp_path / "red.png")
    model = open_model(folders("ltx"), "cpu", for_picture=True)
    assert model.name == "LTXImageToVideoPipeline"
    asked = Asked(height=32, width=32, num_frames=9, num_inference_steps=1)
    with pytest.raises(InputError, match="needs --image"):
        model.make("a ball", asked)
    with_picture = run(folders("ltx"), tmp_path / "a.mp4", "--image", str(tmp_path / "red.png"), "--duration", "0.3")
    without = run(folders("ltx"), tmp_path / "b.mp4", "--duration", "0.3")
    assert not np.array_equal(with_picture.frames, without.frames)
    tags = media.read_metadata(tmp_path / "a.mp4")
    assert "--image red.png" in clip_inspect.command(tags)


@pytest.mark.slow
def test_a_pipeline_that_starts_from_a_picture_alone(folders, tmp_path):
    with pytest.raises(InputError, match="WanImageToVideoPipeline needs --image"):
        run(folders("wan_i2v"), tmp_path / "none.mp4", "--duration", "0.5")
    clips = []
    for name, colour in (("red", (250, 10, 10)), ("blue", (10, 10, 250))):
        Image.new("RGB", (50, 40), colour).save(tmp_path / f"{name}.png")
        picture = ("--image", str(tmp_path / f"{name}.png"))
        clips.append(run(folders("wan_i2v"), tmp_path / f"{name}.mp4", "--duration", "0.5", *picture).frames)
    assert clips[0].shape == (9, 32, 32, 3)
    assert not np.array_equal(*clips)


def test_sound_is_left_out_or_made_by_another_model(folders, tmp_path, monkeypatch):
    assert run(folders("kandinsky6"), tmp_path / "silent.mp4", "--duration", "0.3", "--no-audio").waveform is None
    with pytest.raises(InputError, match="makes sound of its own"):
        run(folders("kandinsky6"), tmp_path / "two.mp4", "--duration", "0.3", "--add-audio")
    silent = run(folders("wan"), tmp_path / "wan.mp4", "--duration", "0.3")
    heard = run(folders("wan"), tmp_path / "heard.mp4", "--duration", "0.3", "--add-audio")  # the shipped model
    assert np.array_equal(silent.frames, heard.frames)
    assert heard.sample_rate_hz == 24000
    assert len(heard.waveform) == round(len(heard.frames) / 16 * 24000)
    assert np.abs(heard.waveform).max() > 0
    assert "--add-audio" in clip_inspect.command(media.read_metadata(tmp_path / "heard.mp4"))


def test_a_lora_in_the_format_of_its_family(folders, tmp_path):
    peft = pytest.importorskip("peft")
    from diffusers import LTXPipeline
    from peft.utils import get_peft_model_state_dict

    transformer = open_model(folders("ltx"), "cpu").pipeline.transformer
    transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    LTXPipeline.save_lora_weights(tmp_path / "style", transformer_lora_layers=get_peft_model_state_dict(transformer))
    file = tmp_path / "style" / "pytorch_lora_weights.safetensors"
    plain = run(folders("ltx"), tmp_path / "plain.mp4", "--duration", "0.3")
    styled = run(folders("ltx"), tmp_path / "styled.mp4", "--duration", "0.3", "--lora", f"{file}:0.7")
    off = run(folders("ltx"), tmp_path / "off.mp4", "--duration", "0.3", "--lora", f"{file}:0")
    assert not np.array_equal(plain.frames, styled.frames)
    assert np.array_equal(plain.frames, off.frames)
    assert f"--lora {file}:0.7" in clip_inspect.command(media.read_metadata(tmp_path / "styled.mp4"))
    with pytest.raises(InputError, match="no such file"):
        run(folders("ltx"), tmp_path / "x.mp4", "--lora", "absent.safetensors")
    other = save("wan", tmp_path / "wan")
    with pytest.raises(InputError, match="no LoRA for WanPipeline"):
        run(other, tmp_path / "x.mp4", "--lora", str(file))


REFUSED = [
    (["--audio-guidance", "3"], "LTXPipeline does not take --audio-guidance"),
    (["--last-image", "{picture}"], "LTXPipeline does not take --last-image"),
    (["--solver", "heun"], "--solver works with vidgen's own"),
    (["--keyframe", "3={picture}"], "--keyframe works with vidgen's own"),
    (["--size", "33x32"], "LTXPipeline: .*divisible by 32"),
    (["--image", "absent.png"], "absent.png: no such file"),
]


@pytest.mark.parametrize(("arguments", "reason"), REFUSED, ids=[arguments[0] for arguments, _ in REFUSED])
def test_what_a_pipeline_cannot_do_is_refused_by_name(arguments, reason, folders, tmp_path):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (32, 32)).save(picture)
    arguments = [argument.format(picture=picture) for argument in arguments]
    with pytest.raises(InputError, match=reason):
        run(folders("ltx"), tmp_path / "out.mp4", *arguments)
    assert not (tmp_path / "out.mp4").exists()


def test_folders_that_are_no_video_model(tmp_path, folders):
    folder = tmp_path / "model"
    folder.mkdir()
    index = folder / "model_index.json"
    index.write_text('{"_class_name": "WonderPipeline"}')
    with pytest.raises(InputError, match=r"WonderPipeline, which diffusers .* does not have"):
        open_model(folder)
    index.write_text('{"_class_name": ["pipeline", "Mine"]}')
    with pytest.raises(InputError, match="brings its own code"):
        open_model(folder)
    index.write_text("{")
    with pytest.raises(InputError, match="damaged"):
        open_model(folder)
    index.write_text('{"_class_name": "LTXPipeline", "vae": ["diffusers", "AutoencoderKLLTXVideo"]}')
    with pytest.raises(InputError, match="cannot be loaded as a LTXPipeline"):
        open_model(folder)
    with pytest.raises(InputError, match="does not make a video"):
        PublishedModel(SimpleNamespace())


def test_what_is_a_published_model(tmp_path, folders, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_published(folders("ltx"))
    assert is_published("Lightricks/LTX-Video")
    assert not is_published(tmp_path / "absent")
    assert not is_published(SHIPPED_MODEL)


def test_vidgens_own_model_behind_the_same_function():
    model = open_model(SHIPPED_MODEL, "cpu")
    steps = []
    asked = Asked(num_frames=9, num_inference_steps=2, guidance_scale=1.0, seed=5)
    made = model.make("a small red ball drops", asked, on_step=steps.append)
    assert made.frames.shape == (9, 128, 128, 3)
    assert (made.frame_rate, made.sample_rate_hz, made.waveform.shape) == (24, 24000, (1, 9000))
    assert steps == [0, 1]
    expected = model.pipeline("a small red ball drops", num_frames=9, num_inference_steps=2, guidance_scale=1.0,
                              generator=torch.Generator().manual_seed(5))  # fmt: skip
    assert np.array_equal(made.frames, expected.frames[0])
    assert np.array_equal(made.waveform, expected.audio)


def test_outputs_of_every_shape():
    video = np.random.default_rng(0).random((4, 6, 8, 3)).astype(np.float32)
    expected = np.rint(video * 255).astype(np.uint8)
    pictures = [Image.fromarray(frame) for frame in expected]
    channels_first = torch.from_numpy(video).permute(0, 3, 1, 2)
    for output in (video, video[None], channels_first, channels_first[None], pictures, [pictures], expected[None]):
        assert np.array_equal(as_frames(output), expected)
    sound = torch.linspace(-2, 2, 10)
    for output in (sound, sound[None], sound[None, None], [sound]):
        assert np.array_equal(as_waveform(output), sound.clamp(-1, 1).numpy()[None])
    stereo = torch.rand(1, 2, 10)
    assert np.array_equal(as_waveform(stereo), stereo[0].numpy())
    assert np.array_equal(as_waveform(stereo[0]), stereo[0].numpy())
    with pytest.raises(InputError, match="neither mono nor stereo"):
        as_waveform(torch.zeros(1, 6, 10))


def test_the_rate_of_sound_is_never_guessed(folders):
    model = open_model(folders("ltx2"), "cpu")
    assert model.pipeline.audio_vae.config.sample_rate == 16000  # of the spectrogram only
    assert model.sample_rate_hz(SimpleNamespace()) == 24000
    assert model.sample_rate_hz(SimpleNamespace(sampling_rate=32000)) == 32000
    model.pipeline = SimpleNamespace(audio_vae=SimpleNamespace(config={}))
    with pytest.raises(InputError, match="sample rate"):
        model.sample_rate_hz(SimpleNamespace())


@pytest.mark.parametrize(
    ("free_gib", "can_quantize", "expected"),
    [
        (80, True, Placement("whole", tiling=False)),
        (50, True, Placement("whole", tiling=True)),
        (32, True, Placement("model", tiling=True)),
        (24, True, Placement("quantized", tiling=True, quantized=("transformer",))),
        (24, False, Placement("layers", tiling=True)),
        (8, True, Placement("layers", tiling=True)),
    ],
)
def test_memory_decides_where_the_parts_go(free_gib, can_quantize, expected):
    parts = {"transformer": 22 * GIB, "text_encoder": 10 * GIB, "vae": GIB}
    assert choose(parts, free_gib * GIB, can_quantize) == expected


def test_a_crowded_machine_decodes_in_tiles(folders, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1))
    model = open_model(folders("wan"), "cpu")
    assert "in tiles" in model.placement
    assert "bfloat16" in model.placement
    assert model.pipeline.vae.use_tiling
    assert model.pipeline.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16


def modular_of(folder, target, pipeline_class="ModularPipeline"):
    """The same weights under a modular index."""
    import diffusers

    if pipeline_class == "ModularPipeline":
        pipeline = diffusers.ModularPipeline.from_pretrained(str(folder))
    else:
        pipeline = getattr(diffusers, pipeline_class)(pretrained_model_name_or_path=str(folder))
    there = [name for name in pipeline.pretrained_component_names if (folder / name).is_dir()]
    pipeline.load_components(names=there)
    pipeline.save_pretrained(str(target), overwrite_modular_index=True)
    assert not (target / "model_index.json").exists()
    return target


def test_a_modular_pipeline(folders, tmp_path):
    folder = modular_of(folders("wan"), tmp_path / "modular")
    clip = run(folder, tmp_path / "clip.mp4", "--duration", "0.5", "--guidance", "2")
    assert clip.frames.shape == (9, 32, 32, 3)
    assert clip.frame_rate == 16


@pytest.mark.slow
def test_a_modular_pipeline_with_sound(folders, tmp_path):
    folder = modular_of(folders("ltx2"), tmp_path / "modular", "LTX2ModularPipeline")
    clip = run(folder, tmp_path / "clip.mp4", "--duration", "0.375")
    assert clip.frames.shape == (9, 32, 32, 3)  # its task of text alone could not be told a length
    assert (clip.sample_rate_hz, len(clip.waveform)) == (24000, 9000)


@pytest.mark.slow
def test_ltx_25_whose_decoder_is_a_diffusion_model(folders, tmp_path):
    folder = folders("ltx25")
    assert not (folder / "model_index.json").exists()
    clip = run(folder, tmp_path / "clip.mp4", "--duration", "0.5")
    assert clip.frames.shape == (13, 32, 32, 3)
    assert (clip.sample_rate_hz, len(clip.waveform)) == (24000, 13000)
    again = run(folder, tmp_path / "again.mp4", "--duration", "0.5")
    assert np.array_equal(clip.frames, again.frames)  # the decoder's noise, too, comes of the seed


@pytest.mark.slow
def test_minimax_h3_which_is_modular_only(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.Qwen3VLProcessor", TextOnlyProcessor, raising=False)
    folder = folders("minimax_h3")
    assert "transformer_ref" not in open_model(folder, "cpu").pipeline.pretrained_component_names  # another task's
    clip = run(folder, tmp_path / "clip.mp4")
    assert clip.frames.shape == (124, 32, 32, 3)
    assert (clip.frame_rate, clip.sample_rate_hz) == (24, 32000)
    assert abs(len(clip.waveform) / 32000 - 124 / 24) < 0.001
    with pytest.raises(InputError, match="does not take --negative-prompt"):
        run(folder, tmp_path / "clip.mp4", "--negative-prompt", "noise")
    with pytest.raises(InputError, match="5"):  # seconds at least
        run(folder, tmp_path / "clip.mp4", "--duration", "1")
