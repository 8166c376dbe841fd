"""The page, from the fields to the clip, and in a real browser where there is one.

VIDGEN_SCREENSHOTS=docs python -m pytest tests/test_app.py -k "plays or phone"   makes the pictures of docs/page.md.
"""

import io
import os
import shlex
import shutil
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_pipeline import make_pipeline
from vidgen import app, media
from vidgen.app_form import Form, Material, plain, sizes
from vidgen.errors import InputError
from vidgen.generation import SHIPPED_MODEL, GenerationConfig
from vidgen.inspect import command
from vidgen.making import THREAD_NAME, Stopped, make, preview
from vidgen.options import parse_args
from vidgen.pipeline import VidGenPipeline

OWN = GenerationConfig(num_frames=9, height=32, width=64, num_inference_steps=2)
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
BALL = "a big red rubber ball is tossed in from the left onto a tiled floor"


def form(**fields):
    values = {
        "prompt": "a red ball", "files": None, "task": None, "extend_s": 0.25, "replace_from_s": 0.1,
        "replace_to_s": 0.3, "duration_s": round(OWN.spec().duration_s, 1), "size": "64x32", "seed": "3", "steps": 2,
        "guidance": 2.0, "audio_guidance": 3.0, "negative_prompt": None,
        "camera": "", "loop": False, "with_sound": True,
    }  # fmt: skip
    return Form(**(values | fields))


@pytest.fixture(scope="module")
def pipeline():
    return make_pipeline()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("given")
    y, x = np.mgrid[:128, :192] / 128
    falling = np.minimum(0.15 + 0.05 * np.arange(20), 0.75)
    ball = (x - 0.75) ** 2 + (y - falling[:, None, None]) ** 2 < 0.02
    frames = np.where(ball[..., None], (200, 40, 30), (190, 190, 195)).astype(np.uint8)
    sound = np.sin(2 * np.pi * 440 * np.arange(20000) / 24000).astype(np.float32) / 2
    media.write_video(folder / "clip.mp4", frames, sound, 24)
    Image.fromarray(frames[0]).save(folder / "a.png")
    Image.fromarray(frames[1]).save(folder / "b.jpg")
    (folder / "broken.png").write_text("no picture")
    return folder


def parsed(files, **fields):
    names = fields.pop("names", ())
    return parse_args(form(files=[str(files / name) for name in names], **fields).words(OWN))


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


def test_what_is_dropped_decides_the_mode(files):
    assert parsed(files, names=["a.png"]).image.name == "a.png"
    assert parsed(files, names=["a.png"], task="last").last_image.name == "a.png"
    both = parsed(files, names=["a.png", "b.jpg"])
    assert (both.image.name, both.last_image.name) == ("a.png", "b.jpg")
    extended = parsed(files, names=["clip.mp4"])
    assert (extended.video.name, extended.extend) == ("clip.mp4", 0.25)
    assert parsed(files, names=["clip.mp4"], task="lead").extend == -0.25
    assert parsed(files, names=["clip.mp4"], task="foley").only == "audio"
    assert parsed(files, names=["clip.mp4"], task="replace").replace == (0.1, 0.3)
    assert parsed(files, names=["clip.mp4"], task="sound").audio.name == "clip.mp4"
    assert parsed(files, names=["clip.mp4"], task="first").extend == 0.25  # of what was dropped before
    Path(files / "tone.wav").touch()
    mixed = parsed(files, names=["tone.wav", "a.png"])
    assert (mixed.audio.name, mixed.image.name) == ("tone.wav", "a.png")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.png", "b.jpg", "a.png"], "too many"),
        (["clip.mp4", "clip.mp4"], "one clip or one sound"),
        (["clip.mp4", "a.png"], "not both"),
        (["notes.txt"], "notes.txt: only pictures"),
        (["nameless"], "only pictures"),
    ],
)
def test_files_that_do_not_go_together(names, reason):
    with pytest.raises(InputError, match=reason):
        Material.of(names)


def test_messages_speak_of_fields_not_of_flags_or_folders():
    with pytest.raises(InputError) as caught:
        parse_args(form(size="big").words(OWN))
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


def studio(pipeline, folder):
    return app.Studio(pipeline, SHIPPED_MODEL, folder / "clips", folder)


def options(folder, **fields):
    args = parse_args(form(**fields).words(OWN))
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
    ],
)
def test_bad_input_is_told_in_a_line(pipeline, files, tmp_path, fields, reason):
    values = form(**fields | {"files": [str(files / name) for name in fields.get("files", ())]})
    with pytest.raises(InputError, match=reason) as caught:
        list(studio(pipeline, tmp_path).make("visitor", *vars(values).values()))
    assert len(str(caught.value).splitlines()) == 1
    assert not list(tmp_path.glob("**/*.mp4"))


def test_without_gradio_the_page_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r'pip install "vidgen\[app\]"'):
        app.import_gradio()


@pytest.mark.parametrize("words", [["--max-waiting", "0"], ["--max-duration", "nan"], ["--speed", "3"]])
def test_bad_options_of_the_page(words):
    with pytest.raises(InputError):
        app.parse_arguments(words)


# --- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    pytest.importorskip("gradio", reason="gradio is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with sync_api.sync_playwright() as playwright:
        # The sandbox needs rights that containers do not have; without the flag sound waits for a click.
        flags = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def address(browser, tmp_path_factory):
    """The page with the shipped model."""
    folder = tmp_path_factory.mktemp("page")
    args = app.parse_arguments(["--output", str(folder / "clips")])
    page = app.build(studio(VidGenPipeline.from_pretrained(SHIPPED_MODEL), folder), 10.0, app.IDEAS)
    yield app.launch(page, args, wait=False)
    page.close()


@pytest.fixture
def visit(browser):
    """Opens the page; every request that it makes must go to this machine."""
    contexts, requests = [], []

    def opened(address, width=1280, height=900):
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(300_000)
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        page.wait_for_selector("#stage .stage.empty")
        page.wait_for_function("document.activeElement.closest('#prompt') !== null")  # the page is alive
        return page

    yield opened
    for context in contexts:
        context.close()
    assert requests
    assert not [
        url for url in requests if not url.startswith(("http://127.0.0.1", "http://localhost", "data:", "blob:"))
    ]


def type_prompt(page, prompt, steps=None, seed=None):
    if steps is not None:
        page.evaluate("document.querySelector('#steps') || document.querySelector('#more .label-wrap').click()")
        page.fill("#steps input[type=number]", str(steps))
        page.keyboard.press("Tab")
    if seed is not None:
        page.fill("#seed input", str(seed))
    page.fill("#prompt textarea", prompt)


def wait_for_clip(page, count):
    page.wait_for_function("count => document.querySelectorAll('#gallery img').length === count", arg=count)
    page.wait_for_selector("#make:not([disabled])")


def tags_shown(page):
    return page.inner_text("#details code")


def save_pictures(page, name, *places):
    """Screenshots side by side, each of what lies at and below a place, for docs/, if they are asked for."""
    folder = os.environ.get("VIDGEN_SCREENSHOTS")
    if not folder:
        return
    page.click("#more .label-wrap")  # closed again
    page.wait_for_timeout(500)
    parts = []
    for place in places:
        page.evaluate("place => document.querySelector(place).scrollIntoView()", place)
        page.mouse.move(0, 0)
        parts.append(np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")))
    whole = Image.fromarray(np.concatenate(parts, axis=1))
    whole.quantize(palette=whole.quantize(255)).save(Path(folder) / name, optimize=True)  # dithered


def test_a_prompt_is_typed_and_the_clip_plays(visit, address, tmp_path):
    page = visit(address)
    type_prompt(page, BALL, seed=7)
    page.keyboard.press("Enter")
    page.wait_for_selector("#stage progress")
    assert page.wait_for_selector("#stage img").evaluate("image => image.naturalWidth / image.naturalHeight") == 4
    wait_for_clip(page, 1)
    page.wait_for_function("document.querySelector('#video video').ended")
    played = page.evaluate(
        "(video => [video.videoWidth, video.currentTime, video.webkitDecodedFrameCount,"
        " video.webkitAudioDecodedByteCount])(document.querySelector('#video video'))"
    )
    assert played[0] == 128
    assert played[1] == pytest.approx(49 / 24, abs=0.1)
    assert played[2] >= 40
    assert played[3] > 1000
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "clip.mp4")
    assert download.value.suggested_filename.endswith("-7.mp4")
    served = page.request.get(page.get_attribute("#video video", "src")).body()
    assert served == (tmp_path / "clip.mp4").read_bytes()
    tags = media.read_metadata(tmp_path / "clip.mp4")
    assert (tags["prompt"], tags["seed"]) == (BALL, "7")
    assert command(tags) == tags_shown(page)
    clip = media.read_clip(tmp_path / "clip.mp4")
    assert len(clip.frames) == 49
    assert np.sqrt(np.mean(clip.waveform**2)) > 1e-3
    assert clip.frames.std(axis=0).mean() > 1  # something moves
    assert page.evaluate("document.querySelector('#sheet img').naturalWidth") == 960

    type_prompt(page, "a small blue glass cube slides", steps=2, seed=8)
    page.keyboard.press("Control+Enter")
    wait_for_clip(page, 2)
    page.locator("#gallery button").nth(1).click()
    page.wait_for_function("document.querySelector('#details').innerText.includes('--seed 7 ')")
    page.fill("#seed input", "")
    page.click("#same-seed")
    page.wait_for_function("document.querySelector('#seed input').value === '7'")
    page.click("#same-settings")
    page.wait_for_function("prompt => document.querySelector('#prompt textarea').value === prompt", arg=BALL)
    page.click("#make")
    wait_for_clip(page, 3)
    again = page.request.get(page.get_attribute("#video video", "src")).body()
    (tmp_path / "again.mp4").write_bytes(again)
    assert media.read_metadata(tmp_path / "again.mp4") == tags
    assert np.array_equal(media.read_clip(tmp_path / "again.mp4").frames, clip.frames)
    page.set_viewport_size({"width": 1280, "height": 1250})
    save_pictures(page, "page.png", "#head")


def test_files_are_dropped_on_a_phone(visit, address, files, tmp_path):
    page = visit(address, width=390, height=844)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert all(page.locator(button).bounding_box()["height"] >= 40 for button in ("#make", "#stop"))
    page.set_input_files("#files input[type=file]", files / "clip.mp4")
    page.get_by_label("New sound for it").check()
    type_prompt(page, "a red ball drops", steps=2, seed=1)
    page.keyboard.press("Enter")
    wait_for_clip(page, 1)
    assert "--video clip.mp4 --only audio" in tags_shown(page)
    assert "clip.mp4: 192×128 cropped and scaled to 128×128" in page.inner_text("#stage")
    box = page.locator("#stage").bounding_box()
    assert -100 < box["y"] < 844  # it has been scrolled to
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    save_pictures(page, "page-phone.png", "#head", "#stage")


def test_stop_ends_the_work_at_the_next_step(visit, address):
    page = visit(address)
    type_prompt(page, "a red ball drops", steps=100)
    page.keyboard.press("Enter")
    page.wait_for_selector("#stage progress")
    page.click("#stop")
    page.wait_for_selector("text=Stopped.")
    assert page.is_enabled("#make")
    type_prompt(page, "a blue ball drops", steps=1)
    page.keyboard.press("Enter")
    wait_for_clip(page, 1)
    assert "a blue ball drops" in tags_shown(page)


def test_bad_input_is_a_clear_message_on_the_page(visit, address, files, capfd):
    page = visit(address)
    page.click("#make")
    page.wait_for_selector("#stage .wrong")
    assert page.inner_text("#stage [role=alert]") == "the prompt is empty: say what should be seen and heard"
    assert "the prompt is empty" in page.inner_text(".toast-body")
    page.wait_for_selector("#make:not([disabled])")
    page.set_input_files("#files input[type=file]", files / "broken.png")
    page.wait_for_selector("text=broken.png: cannot be read as a picture")
    type_prompt(page, "<img src=x onerror=alert(1)>", seed="seven")
    page.keyboard.press("Enter")
    page.wait_for_selector("#stage >> text=the seed is a whole number, not 'seven'")
    assert page.locator("#stage img").count() == 0
    assert "Traceback" not in capfd.readouterr().err


class Gated(app.Studio):
    """Makes nothing until it is let."""

    gate = threading.Event()

    def make(self, *_values):
        yield "<p>begun</p>"
        self.gate.wait()
        raise InputError("made nothing")


def test_the_queue_has_a_limit_and_one_is_made_at_a_time(visit, pipeline, tmp_path):
    page = app.build(Gated(pipeline, SHIPPED_MODEL, tmp_path, tmp_path), 10.0)
    args = app.parse_arguments(["--output", str(tmp_path), "--max-waiting", "1"])
    address = app.launch(page, args, wait=False)
    try:
        first, second, third = (visit(address) for _ in range(3))
        for visitor, state in ((first, "#stage >> text=begun"), (second, "#stage >> text=Waiting for its turn")):
            visitor.click("#make")
            visitor.wait_for_selector(state)
        second.wait_for_selector("#stage >> text=queue")
        third.click("#make")
        third.wait_for_selector(".toast-body >> text=busy")
        third.wait_for_selector("#make:not([disabled])")
        second.click("#stop")
        second.wait_for_selector("text=Stopped.")
        Gated.gate.set()
        first.wait_for_selector("#stage >> text=made nothing")
        assert second.locator("text=begun").count() == 0
    finally:
        Gated.gate.set()
        page.close()
