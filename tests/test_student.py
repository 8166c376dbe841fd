"""A teacher and its few-step student in one folder: trained, loaded, chosen between, and told apart."""

import contextlib
import copy
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sample
from eval import contenders, models
from eval import options as eval_options
from tests.test_pipeline import make_pipeline, seeded
from tests.test_train import run, scenes, weights  # noqa: F401
from vidgen import VidGenPipeline, inspect, published_clips, recipe
from vidgen.errors import InputError
from vidgen.generation import FAST, GenerationConfig
from vidgen.lora import FILE_NAME, Lora, add_lora, read_about, save_lora
from vidgen.media import read_clip, read_metadata
from vidgen.model_folder import save_with_student

SAMPLING = {
    "num_inference_steps": 1,
    "guidance_scale": 1.0,
    "audio_guidance_scale": 1.0,
    "modality_scale": 1.0,
    "video_shift": 2.0,
    "audio_shift": 1.0,
    "solver": "euler",
    "model_version": "tiny, 1-step student",
}


def adapted(transformer, seed):
    """A copy with an adapter as if trained."""
    network = copy.deepcopy(transformer)
    add_lora(network, 2, 6.0)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    make_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def both(teacher, tmp_path_factory):
    """The folder of a teacher and a student."""
    folder = tmp_path_factory.mktemp("models") / "both"
    transformer = VidGenPipeline.from_pretrained(teacher).transformer
    save_with_student(teacher, folder, adapted(transformer, 1), SAMPLING, {"vidgen.base_model": "tiny"})
    return folder


def latents(pipeline, **settings):
    return pipeline("a red ball", generator=seeded(0), output_type="latent", **settings).frames


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_student_is_what_loads_by_default_and_the_teacher_on_demand(teacher, both):
    plain = VidGenPipeline.from_pretrained(teacher)
    high = VidGenPipeline.from_pretrained(both, quality="high")
    assert high.generation == plain.generation
    assert torch.equal(latents(high), latents(plain))
    fast = VidGenPipeline.from_pretrained(both)
    assert fast.generation == GenerationConfig.load(both) == GenerationConfig.load(both, "fast")
    assert (fast.generation.num_inference_steps, fast.generation.guidance_scale) == (1, 1)
    assert fast.generation.words == plain.generation.words
    assert not hasattr(fast.transformer, "peft_config")
    changed = latents(fast)
    assert not torch.allclose(changed, latents(plain, num_inference_steps=1, guidance_scale=1.0), atol=1e-2)
    plain.load_lora_weights(both / FAST)
    torch.testing.assert_close(changed, latents(plain, num_inference_steps=1, guidance_scale=1.0), atol=1e-4, rtol=1e-3)


def test_a_folder_holds_the_teacher_as_it_was_and_little_more(teacher, both):
    before, after = files(teacher), files(both)
    assert {path: data for path, data in after.items() if path.parts[0] != FAST} == before
    assert {path.name for path in after.keys() - before.keys()} == {FILE_NAME, "generation_config.json"}
    assert {tensor.dtype for tensor in load_file(both / FAST / FILE_NAME).values()} == {torch.float16}
    assert read_about(both / FAST)["vidgen.base_model"] == "tiny"


def test_a_quality_that_is_not_there_is_an_input_error(teacher, both):
    with pytest.raises(InputError, match="no few-step student"):
        VidGenPipeline.from_pretrained(teacher, quality="fast")
    with pytest.raises(InputError, match="fast or high, not 'best'"):
        GenerationConfig.load(both, "best")
    assert GenerationConfig.load(teacher, "high") == GenerationConfig.load(teacher)


def test_a_damaged_student_is_named(both, tmp_path):
    folder = shutil.copytree(both, tmp_path / "copy")
    (folder / FAST / FILE_NAME).unlink()
    with pytest.raises(InputError, match="no such LoRA"):
        VidGenPipeline.from_pretrained(folder)
    (folder / FAST / "generation_config.json").write_text('{"steps": 3}')
    with pytest.raises(InputError, match=r"fast.generation_config\.json is damaged"):
        VidGenPipeline.from_pretrained(folder)


def test_a_pipeline_is_saved_as_what_it_is(both, tmp_path):
    folder = shutil.copytree(both, tmp_path / "copy")
    fast = VidGenPipeline.from_pretrained(both)
    fast.save_pretrained(folder, dtype=None)  # over a model with a student of its own
    again = VidGenPipeline.from_pretrained(folder)
    assert again.generation == fast.generation
    assert torch.equal(latents(again), latents(fast))
    with pytest.raises(InputError, match="no few-step student"):
        GenerationConfig.load(folder, "fast")


def test_a_users_adapter_goes_on_top_of_either(both, tmp_path):
    base = VidGenPipeline.from_pretrained(both, quality="high")
    save_lora(adapted(base.transformer, 2), tmp_path / FILE_NAME, {})
    for quality in ("fast", "high"):
        pipeline = VidGenPipeline.from_pretrained(both, quality=quality)
        before = latents(pipeline)
        pipeline.use_loras([Lora(tmp_path)])
        assert not torch.allclose(latents(pipeline), before, atol=1e-2)
        pipeline.use_loras([])
        assert torch.equal(latents(pipeline), before)


def test_a_clip_says_which_it_was_made_by_and_the_command_makes_it_again(both, tmp_path):
    made = {}
    for name, words in {"default": [], "fast": ["--quality", "fast"], "high": ["--quality", "high"]}.items():
        path = tmp_path / f"{name}.mp4"
        sample.main(["--model", str(both), "--prompt", "a red ball", "--seed", "5", "--output", str(path), *words])
        made[name] = read_metadata(path), read_clip(path).frames
    assert made["default"][0] == made["fast"][0]
    assert np.array_equal(made["default"][1], made["fast"][1])
    assert not np.array_equal(made["high"][1], made["fast"][1])
    for name, (tags, frames) in made.items():
        assert json.loads(tags["settings"])["quality"] == ("high" if name == "high" else "fast")
        again = tmp_path / "again.mp4"
        sample.main([*shlex.split(inspect.command(tags))[2:], "--output", str(again)])
        assert read_metadata(again) == tags
        assert np.array_equal(read_clip(again).frames, frames)


@pytest.mark.parametrize(
    ("words", "quality"),
    [([], None), (["--duration", "0.2"], None), (["--no-audio"], "high"), (["--loop"], "high"),
     (["--image", "a.png"], "high"), (["--keyframe", "0=a.png"], "high"),
     (["--video", "a.mp4", "--extend", "1"], "high"),
     (["--audio", "a.wav"], "high"), (["--duration", "30"], "high"), (["--negative-prompt", "blue"], "high"),
     (["--guidance", "1"], None), (["--guidance", "3"], "high")],
)  # fmt: skip
def test_what_a_student_was_not_taught_is_its_teacher_s(words, quality, both):
    args = sample.parse_args(["--model", str(both), "--prompt", "a red ball", *words])
    assert recipe.quality_needed(args, is_story=False) == quality
    assert recipe.quality_needed(args, is_story=True) == "high"


def test_the_length_that_a_clip_records_is_a_student_s(both):
    own = GenerationConfig.load(both).spec()
    for duration in (own.duration_s, round(own.duration_s, 5), own.duration_s + 1e-3):
        args = sample.parse_args(["--model", str(both), "--prompt", "a red ball", "--duration", str(duration)])
        assert recipe.quality_needed(args, is_story=False) is None


def test_sample_takes_the_teacher_for_what_a_student_was_not_taught(both, tmp_path, capsys):
    path = tmp_path / "mute.mp4"
    sample.main(["--model", str(both), "--prompt", "a red ball", "--no-audio", "--output", str(path)])
    assert json.loads(read_metadata(path)["settings"])["quality"] == "high"
    assert "made by the teacher" in capsys.readouterr().err


def test_the_command_line_refuses_a_student_that_is_not_there(teacher, tmp_path):
    words = ["--model", str(teacher), "--prompt", "a red ball", "--output", str(tmp_path / "a.mp4")]
    with pytest.raises(InputError, match="no few-step student"):
        sample.main([*words, "--quality", "fast"])
    args = sample.parse_args([*words[2:], "--model", "me/theirs", "--quality", "high"])
    with pytest.raises(InputError, match="--quality works with vidgen's own models only"):
        published_clips.check(args, sample.plan(args))


def test_teacher_and_student_are_scored_side_by_side(both, teacher, fake, tmp_path, monkeypatch):
    high, fast = (models.model_facts(both, quality) for quality in ("high", "fast"))
    assert high == models.model_facts(teacher)
    assert fast == models.model_facts(both)
    assert high["sha256"] != fast["sha256"]
    assert (fast["version"], fast["sampler"]["num_inference_steps"]) == ("tiny, 1-step student", 1)

    asked: list[str | None] = []
    make = models.load_pipeline
    monkeypatch.setattr(models, "load_pipeline", lambda *given: asked.append(given[2]) or make(*given))
    words = ["--model", str(both), "--output", str(tmp_path / "out"), "--limit", "1", "--quality", "fast", "high"]
    found = contenders.contend(eval_options.parse_arguments(words))
    assert [(one.name, one.facts["version"]) for one in found] == [
        ("both-fast", "tiny, 1-step student"), ("both-high", "tiny"),
    ]  # fmt: skip
    assert dict.fromkeys(asked) == {"fast": None, "high": None}
    assert all(clip.path.exists() for one in found for clip in one.made)


@pytest.mark.parametrize("start", ["teacher", "both"])
def test_a_student_is_distilled_as_an_adapter(start, monkeypatch, request, scenes, tmp_path):  # noqa: F811
    folder = request.getfixturevalue(start)
    before = files(folder)
    words = ["distill", "--config", "toy", "--data", scenes, "--teacher", folder, "--prompt", "a red ball"]
    words += ["--latents", tmp_path / "latents", "--lora-rank", "2", "--lora-alpha", "8", "--set"]
    words += ["steps=4", "log_every=1", "checkpoint_every=2", "sample_every=4", "cached_clips=4", "learning_rate=1e-2"]
    run(monkeypatch, *words, "--output", tmp_path / "whole")
    with contextlib.suppress(SystemExit):
        run(monkeypatch, *words, "--output", tmp_path / "broken", "--stop-after", "0")
    assert not (tmp_path / "broken" / "model").exists()
    run(monkeypatch, *words, "--output", tmp_path / "broken")
    kept, resumed = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert kept
    assert all(".lora_" in name and torch.equal(value, resumed[name]) for name, value in kept.items())

    model = tmp_path / "whole" / "model"
    assert files(folder) == before
    without = {path: data for path, data in before.items() if path.parts[0] != FAST}
    assert {path: data for path, data in files(model).items() if path.parts[0] != FAST} == without
    about = read_about(model / FAST)
    assert (about["rank"], about["alpha"], about["vidgen.base_model"]) == ("2", "8.0", "tiny")
    student = VidGenPipeline.from_pretrained(model)
    assert student.generation.model_version == "tiny, 2-step student"
    assert (student.generation.num_inference_steps, student.generation.guidance_scale) == (2, 1)
    taught = VidGenPipeline.from_pretrained(model, quality="high")
    settings = {"num_inference_steps": 2, "guidance_scale": 1.0}
    assert not torch.equal(latents(student), latents(taught, **settings))  # it has learned something

    clip = tmp_path / "clip.mp4"
    sample.main(["--model", str(model), "--prompt", "a red ball", "--seed", "1", "--output", str(clip)])
    assert read_clip(clip).frames.shape == (9, 32, 64, 3)
    assert read_metadata(clip)["model_version"] == "tiny, 2-step student"
    with pytest.raises(InputError, match="leave out --init"):
        run(monkeypatch, *words, "--output", tmp_path / "other", "--init", Path(folder) / "transformer")
