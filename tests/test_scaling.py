"""The plan of large trainings: parameter counts on the meta device, and formulas against counted operations."""

import re
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import scaling
from vidgen import config
from vidgen.errors import InputError


@pytest.mark.parametrize(("preset", "billions"), [("1.3b", 1.3), ("14b", 14.0)])
def test_presets_have_the_parameters_that_they_are_named_for(preset, billions):
    settings = config.load(preset, "dit", [])
    transformer = scaling.meta_transformer(settings)
    assert all(parameter.is_meta for parameter in transformer.parameters())
    count = sum(parameter.numel() for parameter in transformer.parameters())
    assert count == pytest.approx(billions * 1e9, rel=0.03)
    assert scaling.clip_cost(settings).parameters == count


@pytest.mark.parametrize("preset", ["1.3b", "14b"])
def test_flops_are_what_the_forward_pass_counts(preset):
    """Embeddings, heads and the text refiner are what the formula leaves out: a few percent."""
    settings = config.load(preset, "dit", [])
    spec = scaling.clip_spec(settings)
    transformer = scaling.meta_transformer(settings)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        transformer(
            torch.empty(1, 48, spec.latent_frames, spec.latent_height, spec.latent_width),
            torch.empty(1, 32, spec.audio_latents),
            torch.empty(1, scaling.TEXT_TOKENS, scaling.TEXT_DIM),
            video_sigma=torch.empty(1, 1, 1, 1),
            audio_sigma=torch.empty(1, 1),
            video_times_s=torch.empty(spec.latent_frames),
            audio_times_s=torch.empty(spec.audio_latents),
        )
    predicted = scaling.forward_flops(settings, scaling.clip_tokens(settings, spec))
    assert predicted == pytest.approx(counter.get_total_flops(), rel=0.04)


def test_twice_the_gpus_take_half_the_days(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scaling", "--preset", "1.3b", "--gpus", "8", "16"])
    scaling.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:1] in (["8"], ["16"])]
    days = [float(row[-1]) for row in rows]
    assert days[0] == pytest.approx(2 * days[1], rel=0.01)
    monkeypatch.setattr(sys, "argv", ["scaling", "--mfu", "40"])
    with pytest.raises(InputError, match="mfu"):
        scaling.main()


def test_measured_steps_are_told_as_a_share_of_the_peak(monkeypatch, capsys):
    monkeypatch.setattr(scaling, "measured_peak_flops_per_s", lambda device, bf16: 1e12)
    monkeypatch.setattr(sys, "argv", ["scaling", "--measure", "toy", "--batch-size", "1", "--seconds", "0"])
    scaling.main()
    told = re.search(r"(\d+\.\d+) clips/s, (\d+) tokens/s, (\d\.\d+) TFLOP/s", capsys.readouterr().out)
    clips_per_s, tokens_per_s, tflops = map(float, told.groups())
    settings = scaling.preset("toy")
    tokens = scaling.clip_tokens(settings, scaling.clip_spec(settings))
    assert tokens_per_s == pytest.approx(clips_per_s * tokens, rel=0.05)
    assert tflops == pytest.approx(3e-12 * clips_per_s * scaling.forward_flops(settings, tokens), rel=0.1, abs=6e-4)
