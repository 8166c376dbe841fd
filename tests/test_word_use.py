"""Exchanged words, and the loss at one noise level."""

import re

import pytest
import torch

from eval import word_use
from vidgen.data.latents import LatentClips, cache_latents, complete_cache
from vidgen.flow import FlowConfig, draw_noise

CAPTION = "a small red wooden ball rolls in from the left and hits a big blue glass cube on a wooden floor"


@pytest.fixture
def cache(tmp_path):
    class Captioned:
        def __len__(self):
            return 3

        def __getitem__(self, keys):
            return {"has_audio": torch.ones(len(keys), dtype=torch.bool), "captions": [[CAPTION]] * len(keys)}

    def encode(batch):
        count = len(batch["captions"])
        torch.manual_seed(3)
        return torch.randn(count, 48, 13, 8, 8), torch.randn(count, 32, 52)

    cache_latents(Captioned(), 3, encode, tmp_path)
    complete_cache(3, tmp_path)
    return tmp_path


@pytest.mark.parametrize("kind", word_use.KINDS)
def test_only_the_words_of_one_kind_are_exchanged_and_all_of_them(kind):
    words, _ = word_use.KINDS[kind]
    swapped = word_use.exchanged(CAPTION, kind, 0).split()
    changed = [(old, new) for old, new in zip(CAPTION.split(), swapped, strict=True) if old != new]
    assert all(old in words and new in words for old, new in changed)
    assert len(changed) == {"floor": 1, "direction": 1}.get(kind, 2)


def test_material_and_floor_are_told_apart():
    assert word_use.exchanged(CAPTION, "material", 0).endswith("on a wooden floor")
    assert re.search("red wooden ball", word_use.exchanged(CAPTION, "floor", 0))


def test_the_loss_of_a_model_that_answers_zero_is_that_of_the_target(cache):
    from vidgen.pipeline import VidGenPipeline

    pipeline = VidGenPipeline.from_pretrained("weights", quality="high")
    levels = []

    class Zero(torch.nn.Module):
        def forward(self, video, audio, text, **rest):
            levels.append(float(rest["video_sigma"].unique()))
            return torch.zeros_like(video), torch.zeros_like(audio)

    pipeline.transformer = Zero()
    clips = LatentClips(cache)
    video, audio = word_use.loss(pipeline, clips, range(3), [CAPTION] * 3, 0.8, batch_size=2)
    draws = [draw_noise(seed, (48, 13, 8, 8), (32, 52), FlowConfig(shared=1, per_modality=0, per_frame=0, region=0))
             for seed in range(3)]  # fmt: skip
    expected = torch.stack([draw.video for draw in draws]) - clips.video.float()
    assert levels == pytest.approx([0.8, 0.8])
    assert video == pytest.approx(float(expected.square().mean()), rel=1e-3)
    assert audio == pytest.approx(2, rel=0.1)


def test_the_command_prints_a_rise_for_every_kind(cache, monkeypatch, capsys):
    arguments = ["--latents", str(cache), "--clips", "2", "--sigma", "0.9"]
    for frames in ("0", "2"):
        monkeypatch.setattr("sys.argv", ["eval.word_use", *arguments, "--latent-frames", frames])
        word_use.main()
    lines = capsys.readouterr().out.splitlines()
    assert all(kind in lines[0] for kind in word_use.KINDS)
    assert lines[1].count(" / ") == 1 + len(word_use.KINDS)
    assert " / " not in lines[4]
