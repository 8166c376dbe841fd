"""Adapters: kept with their alpha, added at their scales, fused or not, and refused where they do not belong."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.test_pipeline import make_pipeline
from vidgen.dit.model import JointDiT
from vidgen.errors import InputError
from vidgen.lora import FILE_NAME, TARGETS, Lora, add_lora, load_loras, purpose, read_about, save_lora

SIZES = {"video_channels": 4, "audio_channels": 4, "text_dim": 8, "depth": 2, "heads": 2, "text_layers": 1}


def network(width=32):
    torch.manual_seed(0)
    model = JointDiT(width=width, **SIZES).eval().requires_grad_(False)
    for parameter in model.parameters():  # a fresh one is zero at its outputs and would hide mistakes
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def velocities(model):
    generator = torch.Generator().manual_seed(1)
    kind = model.dtype
    shapes = ((2, 4, 3, 4, 4), (2, 4, 5), (2, 6, 8))
    video, audio, text = (torch.randn(shape, generator=generator).to(kind) for shape in shapes)
    sigma = torch.tensor([0.3, 0.9], dtype=kind)
    with torch.no_grad():
        answer = model(video, audio, text, video_sigma=sigma[:, None, None, None], audio_sigma=sigma[:, None],
                       video_times_s=torch.arange(3.0), audio_times_s=torch.arange(5.0))  # fmt: skip
    return torch.cat([part.flatten() for part in answer])


def trained(path, rank=4, alpha=10.0, seed=2):
    """A network with an adapter as if trained, which is saved to ``path``."""
    adapted = network()
    add_lora(adapted, rank, alpha)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    save_lora(adapted, path, purpose("tiny", "night", [["a ball at night"]], 7))
    return adapted


def with_added_products(*files_scales):
    """The network with scale·alpha/rank·B A added to its weights by plain arithmetic, in float64."""
    plain = network().double()
    for file, alpha_over_rank, scale in files_scales:
        tensors = load_file(file)
        for key in (key for key in tensors if ".lora_A." in key):
            layer = plain.get_submodule(key.removeprefix("transformer.").removesuffix(".lora_A.weight"))
            up, down = tensors[key.replace("lora_A", "lora_B")].double(), tensors[key].double()
            layer.weight += scale * alpha_over_rank * up @ down
    return plain


def test_only_the_adapter_is_trained_and_it_changes_nothing_at_first():
    model = network()
    before = velocities(model)
    add_lora(model, 3)
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learned
    assert all(".lora_" in name for name in learned)
    assert torch.equal(velocities(model), before)
    layers = {name.split(".lora_")[0] for name in learned}
    assert len(layers) == 4 * 3  # four linear layers in each of two blocks and one of the text's


def test_a_saved_adapter_answers_bit_for_bit_as_it_did_in_training_whatever_its_alpha(tmp_path):
    for alpha in (4.0, 10.0):
        adapted = trained(tmp_path / "night.safetensors", rank=4, alpha=alpha)
        loaded = network()
        load_loras(loaded, [Lora(tmp_path / "night.safetensors")])
        assert torch.equal(velocities(loaded), velocities(adapted))
        expected = with_added_products((tmp_path / "night.safetensors", alpha / 4, 1.0))
        torch.testing.assert_close(velocities(loaded).double(), velocities(expected), atol=2e-6, rtol=1e-4)


def test_several_fused_or_not_are_the_sum_of_their_products(tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    trained(first, rank=4, alpha=10.0)
    trained(second, rank=2, alpha=1.0, seed=3)
    loras = [Lora(first, 0.5), Lora(second, -2.0)]
    expected = velocities(with_added_products((first, 2.5, 0.5), (second, 0.5, -2.0)))
    assert (expected - velocities(network().double())).abs().max() > 1e-2
    for fuse in (False, True):
        model = network().double()
        load_loras(model, loras, fuse=fuse)
        torch.testing.assert_close(velocities(model), expected, atol=1e-12, rtol=1e-12)
        assert hasattr(model, "peft_config") != fuse
    one_by_one = network().double()
    for lora in loras:
        load_loras(one_by_one, [lora])
    torch.testing.assert_close(velocities(one_by_one), expected, atol=1e-12, rtol=1e-12)


def test_fusing_takes_no_peft(tmp_path, monkeypatch):
    file = tmp_path / "night.safetensors"
    trained(file, rank=4, alpha=10.0)
    monkeypatch.setitem(sys.modules, "peft", None)
    model = network()
    load_loras(model, [Lora(file, 0.5)], fuse=True)
    expected = with_added_products((file, 2.5, 0.5))
    torch.testing.assert_close(velocities(model).double(), velocities(expected), atol=2e-6, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_what_is_kept_in_half_is_added_without_further_rounding(tmp_path):
    adapted = trained(tmp_path / "whole")
    save_lora(adapted, tmp_path / "half", {}, torch.float16)
    assert {tensor.dtype for tensor in load_file(tmp_path / "half").values()} == {torch.float16}
    model = network()
    load_loras(model, [Lora(tmp_path / "half")], fuse=True)
    expected = with_added_products((tmp_path / "half", 2.5, 1.0))
    torch.testing.assert_close(velocities(model).double(), velocities(expected), atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize(
    "own", [{"rank_pattern": {"mlp.up": 2}, "alpha_pattern": {"attn.qkv": 3.0}}, {"use_rslora": True}, {"r": 4}]
)
def test_layers_that_differ_and_other_scales_are_fused_as_they_work(tmp_path, own):
    adapted = network()
    adapted.add_adapter(LoraConfig(**{"r": 4, "lora_alpha": 10.0, "target_modules": list(TARGETS)} | own))
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tensors = {f"transformer.{name}": value for name, value in get_peft_model_state_dict(adapted).items()}
    settings = {key: value for key, value in adapted.peft_config["default"].to_dict().items() if value is not None}
    settings = {f"transformer.{key}": sorted(value) if isinstance(value, set) else value
                for key, value in settings.items()}  # fmt: skip
    save_file(tensors, tmp_path / "all.safetensors", {"lora_adapter_metadata": json.dumps(settings, default=str)})
    model = network()
    load_loras(model, [Lora(tmp_path / "all.safetensors")], fuse=True)
    torch.testing.assert_close(velocities(model), velocities(adapted), atol=1e-4, rtol=1e-3)
    assert not hasattr(model, "peft_config")


def test_diffusers_itself_reads_the_file(tmp_path):
    adapted = trained(tmp_path / FILE_NAME, rank=4, alpha=10.0)
    loaded = network()
    loaded.load_lora_adapter(str(tmp_path), weight_name=FILE_NAME)
    assert torch.equal(velocities(loaded), velocities(adapted))


def test_the_file_says_what_it_is_for(tmp_path):
    trained(tmp_path / FILE_NAME)
    about = read_about(tmp_path)
    assert (about["rank"], about["alpha"]) == ("4", "10.0")
    assert about["vidgen.base_model"] == "tiny"
    assert about["modelspec.description"] == "7 steps on 1 clips, such as: a ball at night"


def test_a_file_without_alpha_is_said_to_have_none(tmp_path):
    trained(tmp_path / "with", rank=4, alpha=10.0)
    save_file(load_file(tmp_path / "with"), tmp_path / "without.safetensors")
    model = network()
    with pytest.warns(UserWarning, match=r"without\.safetensors does not tell its alpha"):
        load_loras(model, [Lora(tmp_path / "without.safetensors")])
    expected = velocities(with_added_products((tmp_path / "with", 1.0, 1.0)))
    torch.testing.assert_close(velocities(model).double(), expected, atol=2e-6, rtol=1e-4)


def test_a_pipeline_takes_adapters_in_and_out(tmp_path):
    pipeline = make_pipeline()
    base = copy.deepcopy(pipeline.transformer)
    adapted = copy.deepcopy(base)
    add_lora(adapted, 2, 6.0)
    for name, parameter in adapted.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_lora(adapted, tmp_path / FILE_NAME, {})

    def latents():
        return pipeline("a red ball", generator=torch.Generator().manual_seed(0), output_type="latent").frames

    plain = latents()
    pipeline.load_lora_weights(tmp_path, "night")
    changed = latents()
    assert not torch.allclose(changed, plain, atol=1e-3)
    with pytest.raises(InputError, match="without its LoRAs"):
        pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="'nights'"):
        pipeline.set_adapters("nights")
    pipeline.set_adapters(["night"], 0.0)
    torch.testing.assert_close(latents(), plain)
    pipeline.unload_lora_weights()
    assert torch.equal(latents(), plain)
    assert base.state_dict().keys() == pipeline.transformer.state_dict().keys()
    pipeline.load_lora_weights(tmp_path, scale=0.5)
    half = latents()
    pipeline.fuse_lora()
    torch.testing.assert_close(latents(), half, atol=1e-4, rtol=1e-3)
    pipeline.save_pretrained(tmp_path / "model", dtype=None)
    again = type(pipeline).from_pretrained(tmp_path / "model")
    assert torch.equal(again.transformer.blocks[0].mlp.up.weight, pipeline.transformer.blocks[0].mlp.up.weight)


@pytest.mark.parametrize(
    ("text", "path", "scale"),
    [
        ("style.safetensors", "style.safetensors", 1.0),
        ("out/night:0.8", "out/night", 0.8),
        ("a:b/c.safetensors:-2", "a:b/c.safetensors", -2.0),
        (r"C:\loras\night.safetensors", r"C:\loras\night.safetensors", 1.0),
    ],
)
def test_paths_and_scales(text, path, scale):
    assert Lora.parse(text) == Lora(Path(path), scale)


@pytest.mark.parametrize("text", ["", "a:nan", "a:inf"])
def test_no_path_or_no_number_is_an_input_error(text):
    with pytest.raises(InputError, match="PATH:SCALE"):
        Lora.parse(text)


def test_what_does_not_fit_is_named(tmp_path, monkeypatch):
    trained(tmp_path / "night.safetensors")
    with pytest.raises(InputError, match=r"night\.safetensors does not fit this model, made for tiny"):
        load_loras(network(width=64), [Lora(tmp_path / "night.safetensors")])
    with pytest.raises(InputError, match="no such LoRA"):
        load_loras(network(), [Lora(tmp_path / "day.safetensors")])
    (tmp_path / "cut").write_bytes((tmp_path / "night.safetensors").read_bytes()[:300])
    with pytest.raises(InputError, match="cut is not a LoRA in safetensors, or damaged"):
        load_loras(network(), [Lora(tmp_path / "cut")])
    save_file({"transformer.blocks.0.attn.qkv.weight": torch.zeros(2, 2)}, tmp_path / "whole")
    with pytest.raises(InputError, match="whole is not a LoRA of a transformer"):
        load_loras(network(), [Lora(tmp_path / "whole")])
    for rank, alpha in ((0, None), (4, 0.0), (4, float("nan"))):
        with pytest.raises(InputError, match="rank of at least 1 and a positive alpha"):
            add_lora(network(), rank, alpha)
    with safe_open(tmp_path / "night.safetensors", framework="pt") as file:
        assert "lora_adapter_metadata" in file.metadata()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InputError, match="pip install"):
        load_loras(network(), [Lora(tmp_path / "night.safetensors")])
