"""Losses by mode of training: what a model is asked for, and that a small difference of two models shows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eval import mode_loss
from vidgen.data.latents import LatentClips

from .test_word_use import cache  # noqa: F401


class Off(torch.nn.Module):
    """Answers the right velocity but for so much: latents are 0 here, so it is the noise, which is x / σ."""

    def __init__(self, by: float):
        super().__init__()
        self.by, self.levels = by, []

    def forward(self, video, audio, text, *, video_sigma, audio_sigma, **_rest):
        self.levels.append((video_sigma.expand(1, 13, 8, 8)[0], audio_sigma[0]))
        streams = ((video, video_sigma[:, None]), (audio, audio_sigma[:, None]))
        return tuple(torch.where(sigma > 0, x / sigma.clamp(min=1e-9), 0) + self.by for x, sigma in streams)


@pytest.fixture(scope="module")
def pipeline():
    from vidgen.pipeline import VidGenPipeline

    return VidGenPipeline.from_pretrained("weights", quality="high")


@pytest.fixture
def clips(cache):  # noqa: F811
    clips = LatentClips(cache)
    for part in clips.parts:
        for name in ("video", "audio"):
            part[name] = torch.zeros_like(part[name])
    return clips


@pytest.mark.parametrize("mode", mode_loss.MODES)
def test_each_mode_asks_for_what_its_name_says(pipeline, clips, mode):
    pipeline.transformer = Off(0.1)
    draws = [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    found = mode_loss.losses(pipeline, clips, draws, mode)
    made = [value for values in found.values() for value in values if value is not None]
    assert made == pytest.approx([0.01] * len(made), rel=1e-3)
    whole = [(video > 0).all() and (audio > 0).all() for video, audio in pipeline.transformer.levels]
    assert all(whole) if mode == "shared" else not any(whole)
    if mode == "per_modality":
        assert all((video is None) != (audio is None) for video, audio in zip(*found.values(), strict=True))
    again = mode_loss.losses(pipeline, clips, draws, mode)
    assert again == found, "the same noise for every model"


def test_a_small_difference_is_told_from_none(pipeline, cache, clips, monkeypatch, capsys):  # noqa: F811
    from vidgen.pipeline import VidGenPipeline

    answers = iter((0.1, 0.11))

    def load(_folder, quality=None):
        pipeline.transformer = Off(next(answers))
        return pipeline

    monkeypatch.setattr(VidGenPipeline, "from_pretrained", load)
    monkeypatch.setattr(mode_loss, "LatentClips", lambda _folder: clips)
    words = ["--model", "plain", "mixed", "--latents", str(cache), "--modes", "shared", "--draws", "2"]
    monkeypatch.setattr(sys, "argv", ["mode_loss", *words])
    mode_loss.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mixed")]
    assert len(rows) == 2
    assert all("+0.0021 [+0.0021, +0.0021]" in row for row in rows)


@pytest.mark.parametrize(("chosen", "count"), [({}, "128"), ({"HELD_CLIPS": "300"}, "300")])
def test_the_mixture_script_keeps_as_many_clips_back_as_it_compares(tmp_path, chosen, count):
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/usr/bin/env bash\necho "$*" >>"$SEEN"\n')
    stand_in.chmod(0o755)
    told = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SEEN": str(tmp_path / "seen"), "PROMPTS": "0"}
    script = Path(__file__).parent.parent / "runs" / "mixture.sh"
    subprocess.run([script, "start", "data", "held", tmp_path], env=os.environ | told | chosen, check=True)
    plain, mixed, compared = (tmp_path / "seen").read_text().splitlines()
    assert f" validation_clips={count} " in plain
    assert f" validation_clips={count} " in mixed
    assert compared.endswith(f"--clips {count}")
