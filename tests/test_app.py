"""The page, from the fields to the clip, without a browser."""

import dataclasses
import json
import shlex
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.page import OWN, form, studio, write_files
from tests.test_pipeline import make_pipeline
from vidgen import app, app_html, app_page, media
from vidgen.app_form import OWN_LENGTH, Material, adapter_labels, frames_at, plain, save_mask, sizes, spread
from vidgen.errors import InputError
from vidgen.generation import SHIPPED_MODEL, GenerationConfig
from vidgen.inspect import command
from vidgen.lora import FILE_NAME, add_lora, save_lora
from vidgen.making import THREAD_NAME, Stopped, make, preview
from vidgen.options import parse_args


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("given"))


def parsed(files, **fields):
    names = fields.pop("names", ())
    return parse_args(form(files=[str(files / name) for name in names], **fields).words(OWN, files))


# --- the fields -----------------------------------------------------------------------------------------------------


def test_fields_become_the_options_of_a_command(files):
    args = parsed(files, prompt="--a_b ball", negative_prompt="noise", with_sound=False)
    assert (args.prompt, args.negative_prompt, args.size) == (["--a_b ball"], "noise", (64, 32))
    assert (args.seed, args.steps, args.guidance, args.audio_guidance) == (3, 2, 2.0, 3.0)
    assert args.no_audio
    assert (args.camera, args.loop) == (None, False)
    assert (parsed(files, camera="zooms-in").camera, parsed(files, loop=True).loop) == ("zooms-in", True)
    assert parsed(files, seed=" 9007199254740993 ").seed == 2**53 + 1  # as text no digit is lost
    assert parsed(files, seed="").seed is None


def test_an_untouched_length_is_the_models_own(files):
    assert parsed(files).duration is None
    assert parsed(files, duration_s=0.7).duration == 0.7
    assert parsed(files, duration_s=0.7, names=["clip.mp4"], task="extend").duration is None
    assert parsed(files, names=["sound.wav"]).duration is None
    assert parsed(files, duration_s=0.7, names=["sound.wav"]).duration == 0.7
    assert parsed(files, names=["clip.mp4"], task="sound").duration is None
    assert parsed(files, duration_s=0.7, names=["clip.mp4"], task="sound").duration == 0.7


def test_what_is_dropped_decides_the_mode(files):
    assert parsed(files, names=["a.png"]).image.name == "a.png"
    assert parsed(files, names=["a.png"], task="last").last_image.name == "a.png"
    both = parsed(files, names=["a.png", "b.jpg"])
    assert (both.image.name, both.last_image.name) == ("a.png", "b.jpg")
    extended = parsed(files, names=["clip.mp4"])
    assert (extended.video.name, extended.extend) == ("clip.mp4", 0.25)
    assert parsed(files, names=["clip.mp4"], task="lead").extend == -0.25
    assert parsed(files, names=["clip.mp4"], task="foley").only == "audio"
    replaced = parsed(files, names=["clip.mp4"], task="replace")
    assert (replaced.replace, replaced.only, replaced.strength, replaced.mask) == ((0.1, 0.3), None, None, None)
    replaced = parsed(files, names=["clip.mp4"], task="replace", anew="audio", strength=0.4)
    assert (replaced.only, replaced.strength) == ("audio", 0.4)
    assert parsed(files, names=["clip.mp4"], task="vary", strength=0.5).strength == 0.5
    assert parsed(files, names=["clip.mp4"], task="sound").audio.name == "clip.mp4"
    assert parsed(files, names=["clip.mp4"], task="first").extend == 0.25  # of what was dropped before
    Path(files / "tone.wav").touch()
    mixed = parsed(files, names=["tone.wav", "a.png"])
    assert (mixed.audio.name, mixed.image.name) == ("tone.wav", "a.png")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["clip.mp4", "clip.mp4"], "one clip or one sound"),
        (["clip.mp4", "a.png", "b.jpg"], "no more than one picture"),
        (["notes.txt"], "notes.txt: only pictures"),
        (["nameless"], "only pictures"),
    ],
)
def test_files_that_do_not_go_together(names, reason):
    with pytest.raises(InputError, match=reason):
        Material.of(names)


def test_pictures_are_seen_at_their_moments(files):
    names = ["a.png", "b.jpg", "c.png"]
    args = parsed(files, names=names, moments="0, 0.17 0.3")
    assert [(frame, path.name) for frame, path in args.keyframe] == [(0, "a.png"), (4, "b.jpg"), (7, "c.png")]
    alone = parsed(files, names=["a.png"], task="moments", moments="0.25")
    assert [frame for frame, _ in alone.keyframe] == [6]
    assert frames_at(spread(3, OWN), 3, OWN) == [0, 4, 8]
    assert frames_at(spread(1, OWN), 1, OWN) == [4]
    for moments in (None, "0, 1", "0, -1, 2", "0, x, 1", "0, nan, 1"):
        with pytest.raises(InputError, match="moments"):
            parsed(files, names=names, moments=moments)


@pytest.mark.parametrize("num_frames", [9, 49, 53, 65, 77])
def test_the_last_picture_of_several_is_seen_in_the_last_frame(num_frames):
    own = GenerationConfig(num_frames=num_frames)
    for count in (2, 3, 5):
        places = frames_at(spread(count, own), count, own)
        assert (places[0], places[-1]) == (0, num_frames - 1)
        assert sorted(set(places)) == places


def events(page):
    """What the page does when its fields are used, by name."""
    return {event.name: event.fn for event in page.fns.values()}


@pytest.mark.parametrize("task", ["", "first", *Material(clip=Path("clip.mp4")).tasks])
def test_a_length_that_counts_is_one_that_is_seen(pipeline, files, tmp_path, task):
    pytest.importorskip("gradio")
    names = {"": ["sound.wav"], "first": ["sound.wav", "a.png"]}.get(task, ["clip.mp4"])
    page = app_page.build(studio(pipeline, tmp_path), 10.0)
    changed = events(page)["of_task"]([str(files / name) for name in names], task or None)
    (slider,) = (value for field, value in changed.items() if field.elem_id == "duration")
    args = parsed(files, names=names, task=task, duration_s=0.7, drawn=strokes((slice(0, 9), slice(0, 9))))
    assert slider.visible == (args.duration is not None) == (task not in OWN_LENGTH)
    assert ("the sound's" in slider.label) == (args.audio is not None)


def strokes(*places, size=(64, 96)):
    """As Gradio's editor gives what was drawn, on a picture of half the clip's size."""
    layer = np.zeros((*size, 4), np.uint8)
    for rows, columns in places:
        layer[rows, columns] = 255
    return {"background": None, "layers": [layer], "composite": None}


def test_a_drawn_place_becomes_a_mask_of_the_clips_size(files, tmp_path):
    drawn = strokes((slice(0, 32), slice(48, 96)))
    path = save_mask(drawn, files / "clip.mp4", tmp_path)
    mask = np.asarray(Image.open(path))
    assert mask.shape == (128, 192)
    assert mask[:64, 96:].all()
    assert mask.sum() == 64 * 96
    assert save_mask(drawn, files / "clip.mp4", tmp_path) == path
    assert save_mask(strokes((slice(0, 9), slice(0, 9))), files / "clip.mp4", tmp_path) != path
    for nothing in (None, {"layers": []}, strokes()):
        with pytest.raises(InputError, match="draw over the place"):
            save_mask(nothing, files / "clip.mp4", tmp_path)
    args = parsed(files, names=["clip.mp4"], task="place", drawn=drawn)
    assert (args.mask, args.replace, args.strength) == (files / path.name, (0.1, 0.3), None)
    args = parsed(files, names=["clip.mp4", "a.png"], replace_from_s=0, replace_to_s=0, strength=0.6)
    assert (args.mask, args.replace, args.strength) == (files / "a.png", None, 0.6)


def test_adapters_are_told_apart_by_short_names(tmp_path):
    paths = ["out/night/model", "out/day/model", "style.safetensors:0.5", f"fog/{FILE_NAME}", "rain.v2", "rain.v2:0.5"]
    texts = [f"{tmp_path}/{path}" for path in paths]
    labels = ["night-model", "day-model", "style:0.5", "fog", "rain.v2", "rain.v2:0.5"]
    assert adapter_labels(texts) == dict(zip(labels, texts, strict=True))


def test_messages_speak_of_fields_not_of_flags_or_folders():
    with pytest.raises(InputError) as caught:
        parse_args(form(size="big").words(OWN, Path()))
    assert plain(caught.value) == "size: a size looks like 128x128 (width x height), not 'big'"
    error = InputError("/uploads/5f/a.png: cannot be read as a picture")
    assert plain(error, ["/uploads/5f/a.png"]) == "a.png: cannot be read as a picture"


def test_every_size_on_offer_can_be_made():
    for own in (OWN, GenerationConfig(), GenerationConfig(height=256, width=256, size_multiple=64)):
        offered = [value for _, value in sizes(own)]
        assert offered[0] == f"{own.width}x{own.height}"
        assert len(set(offered)) == len(offered) >= 3
        for value in offered:
            width, height = map(int, value.split("x"))
            own.spec(width=width, height=height)


# --- making ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def shown(tmp_path):
    """The folder of what is shown, apart from that of clips."""
    folder = tmp_path / "shown"
    folder.mkdir()
    return folder


def options(folder, adapters=None, **fields):
    args = parse_args(form(**fields).words(OWN, folder, adapters))
    args.model, args.output = SHIPPED_MODEL, folder
    return args


def test_a_clip_is_watched_made_and_described(pipeline, tmp_path, shown):
    *states, clip = make(pipeline, options(tmp_path, steps=3), shown)
    assert [(state.done, state.total) for state in states[:3]] == [(1, 3), (2, 3), (3, 3)]
    assert states[0].preview.shape == (32, 3 * 64, 3)  # 9 frames are 3 latent frames
    assert media.read_metadata(clip.path)["settings"] == clip.tags["settings"]
    assert Path(clip.copy).read_bytes() == Path(clip.path).read_bytes()
    again = parse_args(shlex.split(command(clip.tags))[2:])
    assert (again.prompt, again.seed, again.steps, again.size) == (["a red ball"], 3, 3, (64, 32))
    direct = pipeline("a red ball", num_inference_steps=3, guidance_scale=2.0, audio_guidance_scale=3.0,
                      generator=torch.Generator().manual_seed(3))  # fmt: skip
    media.write_video(tmp_path / "direct.mp4", direct.frames[0], direct.audio[0], direct.frame_rate)
    first, second = media.read_clip(clip.path), media.read_clip(tmp_path / "direct.mp4")
    assert np.array_equal(first.frames, second.frames)
    assert np.array_equal(first.waveform, second.waveform)
    assert Image.open(clip.sheet).width == 960
    assert Image.open(clip.poster).size == (64, 32)


def test_a_second_clip_of_the_same_seed_does_not_replace_the_first(pipeline, tmp_path, shown):
    paths = [list(make(pipeline, options(tmp_path), shown))[-1].path for _ in range(2)]
    assert [Path(path).name for path in paths] == ["a-red-ball-3.mp4", "a-red-ball-3-2.mp4"]


def test_a_drawn_place_is_made_anew_and_the_rest_is_kept(pipeline, files, tmp_path, shown):
    """Kept latents do not depend on the seed, those under the strokes do."""
    drawn = strokes((slice(0, 64), slice(0, 48)))
    fields = {
        "files": [str(files / "clip.mp4")],
        "task": "place",
        "drawn": drawn,
        "replace_from_s": 0,
        "replace_to_s": 0,
    }
    clips = [list(make(pipeline, options(tmp_path, **fields, seed=seed), shown))[-1] for seed in ("1", "2")]
    first, second = (media.read_clip(clip.path).frames.astype(int) for clip in clips)
    assert np.abs(first - second)[:, :, :24].mean() > 5 * np.abs(first - second)[:, :, 40:].mean()
    again = parse_args(shlex.split(command(clips[0].tags))[2:])
    assert (tmp_path / again.mask).is_file()


def test_adapters_are_in_the_clips_that_choose_them(tmp_path, shown):
    pytest.importorskip("peft")
    pipeline, adapted = make_pipeline(), make_pipeline().transformer
    add_lora(adapted, 2, 8.0)
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(1))
    save_lora(adapted, tmp_path / FILE_NAME, {})
    chosen = f"{tmp_path}:0.5"
    plain_clip, styled, after = (
        list(make(pipeline, options(tmp_path, {"style": chosen}, loras=loras), shown))[-1]
        for loras in ([], ["style"], [])
    )
    frames = [media.read_clip(clip.path).frames for clip in (plain_clip, styled, after)]
    assert np.array_equal(frames[0], frames[2])
    assert not np.array_equal(frames[0], frames[1])
    assert f"--lora {chosen}" in command(styled.tags)
    assert "--lora" not in command(after.tags)
    shop = studio(pipeline, tmp_path, [chosen])
    (label,) = shop.adapters
    assert [shop.labels_of(clip) for clip in (plain_clip, styled)] == [[], [label]]
    assert f"<dt>Adapters</dt><dd>{label}</dd>" in app_html.details(styled, shop.labels_of(styled))


def test_visitors_see_labels_of_adapters_and_choose_by_them(pipeline, tmp_path):
    pytest.importorskip("gradio")
    folder = tmp_path / "secret"
    shop = studio(pipeline, tmp_path, [f"{folder}/night/model", f"{folder}/day/model:0.5"])
    said = json.dumps(app_page.build(shop, 10.0).get_config_file(), default=str)
    assert "night-model" in said
    assert "day-model:0.5" in said
    assert "secret" not in said
    args = parse_args(form(loras=["day-model:0.5"]).words(OWN, tmp_path, shop.adapters))
    assert args.lora == [f"{folder}/day/model:0.5"]


def test_words_that_an_adapter_may_have_taught_are_not_called_unknown(tmp_path, shown, monkeypatch):
    pipeline = make_pipeline()
    pipeline.generation = dataclasses.replace(pipeline.generation, words=["a", "ball"])
    monkeypatch.setattr(pipeline, "use_loras", lambda loras: None)
    plain_clip, styled = (
        list(make(pipeline, options(tmp_path, {"style": "style"}, loras=loras), shown))[-1] for loras in ([], ["style"])
    )
    assert "never learned from: red" in " ".join(plain_clip.notes)
    assert styled.notes == ()


def workers():
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


@pytest.mark.parametrize("way", ["stop", "close"])
def test_stopping_ends_with_the_step_that_is_done_and_leaves_nothing(pipeline, tmp_path, shown, way):
    begun, go_on, stop = Counter(), threading.Semaphore(2), threading.Event()

    def gate(*_):
        begun.update(["step"])
        go_on.acquire()

    hook = pipeline.transformer.register_forward_pre_hook(gate)
    states = make(pipeline, options(tmp_path, steps=9), shown, stop=stop)
    assert [next(states).done, next(states).done] == [1, 2]
    if way == "close":
        states.close()
    else:
        stop.set()
    go_on.release(100)  # the third step was begun before
    if way == "stop":
        with pytest.raises(Stopped):
            list(states)
    for worker in workers():
        worker.join()
    hook.remove()
    assert begun["step"] <= 3
    assert not list(tmp_path.glob("**/*.*"))


def test_clips_that_share_a_lock_are_made_one_after_another(pipeline, tmp_path, shown):
    turn, stop = threading.Lock(), threading.Event()
    with turn:
        states = make(pipeline, options(tmp_path), shown, turn, stop)
        waiting = threading.Thread(target=lambda: list(states))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
    waiting.join()
    assert len(list(tmp_path.glob("*.mp4"))) == 1


def test_a_long_clip_is_made_in_parts_and_can_be_stopped_within_one(pipeline, tmp_path, shown):
    *states, clip = make(pipeline, options(tmp_path, duration_s=1.5), shown)
    assert states[0].total == 36
    assert states[0].unit == "frame"
    assert any(0 < state.done < 36 for state in states)
    made = media.read_clip(clip.path)
    assert (len(made.frames), len(made.waveform)) == (36, 36000)
    states = make(pipeline, options(tmp_path, duration_s=1.5, steps=1000), shown)
    assert next(states).done == 0
    states.close()
    assert len(list(tmp_path.glob("*.mp4"))) == 1


def test_a_preview_of_all_latent_frames_is_the_decoded_clip(pipeline):
    latents = torch.randn(1, 24, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        decoded = pipeline.vae.from_latents(latents)[0].clamp(-1, 1)
    expected = ((decoded[:, ::4].permute(1, 2, 3, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
    assert np.array_equal(preview(pipeline, latents, columns=3), np.concatenate(list(expected), axis=1))
    assert preview(pipeline, latents[:, :, :1]).shape == (32, 64, 3)
    assert preview(pipeline, latents, columns=2).shape == (32, 128, 3)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": None}, "prompt is empty"),
        ({"prompt": " \n"}, "prompt is empty"),
        ({"seed": "-1"}, "whole number"),
        ({"seed": "1e3"}, "whole number"),
        ({"seed": str(2**63)}, "seed"),
        ({"size": "33x32"}, "multiple of 32"),
        ({"camera": "flies"}, "camera move 'flies' is not known"),
        ({"files": ["broken.png"]}, "cannot be read as a picture"),
        ({"files": ["clip.mp4"], "task": "replace", "replace_from_s": 0.5, "replace_to_s": 0.5}, "span"),
        ({"files": ["clip.mp4"], "task": "extend", "extend_s": 9.0}, "too long"),
        ({"files": ["clip.mp4"], "task": "place"}, "draw over the place"),
        ({"files": ["clip.mp4"], "task": "vary", "strength": 0}, "strength lies above 0"),
        ({"files": ["a.png", "b.jpg", "c.png"], "moments": "0, 0.1, 9"}, "lies outside the clip"),
        ({"loras": ["absent"]}, "no such LoRA"),
        ({"loras": ["/etc/passwd"]}, "no adapter on offer is called"),
    ],
)
def test_bad_input_is_told_in_a_line(pipeline, files, tmp_path, fields, reason):
    values = form(**fields | {"files": [str(files / name) for name in fields.get("files", ())]})
    with pytest.raises(InputError, match=reason) as caught:
        list(studio(pipeline, tmp_path, ["absent.safetensors"]).make("visitor", *vars(values).values()))
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.glob("**/*.mp4"))


def test_without_gradio_the_page_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r'pip install "vidgen\[app\]"'):
        app_page.import_gradio()


@pytest.mark.parametrize("words", [["--max-waiting", "0"], ["--max-duration", "nan"], ["--speed", "3"]])
def test_bad_options_of_the_page(words):
    with pytest.raises(InputError):
        app.parse_arguments(words)
