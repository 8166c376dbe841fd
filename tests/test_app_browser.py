"""The page in a real browser, where there is one.

VIDGEN_SCREENSHOTS=docs python -m pytest tests/test_app_browser.py -k "plays or phone or place"   makes the pictures of
docs/page.md.
"""

import io
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.page import studio, write_files
from tests.test_pipeline import make_pipeline
from vidgen import app, app_page, media
from vidgen.errors import InputError
from vidgen.generation import SHIPPED_MODEL
from vidgen.inspect import command
from vidgen.pipeline import VidGenPipeline

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
BALL = "a big red rubber ball is tossed in from the left onto a tiled floor"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("given"))


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
    page = app_page.build(studio(VidGenPipeline.from_pretrained(SHIPPED_MODEL), folder), 10.0, app.IDEAS)
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
        page.set_default_timeout(60_000)
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
        page.wait_for_selector("#more .label-wrap")
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


def draw(page, corner, size):
    """A thick stroke over a part of the editor's picture; both as shares of what it shows. Until it is there."""
    page.wait_for_selector("#drawn canvas")
    undo = page.locator("#drawn button[aria-label=Undo]")
    for _ in range(30):
        box = page.locator("#drawn canvas").first.bounding_box()
        x, y = box["x"] + corner[0] * box["width"], box["y"] + corner[1] * box["height"]
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + size[0] * box["width"], y + size[1] * box["height"], steps=8)
        page.mouse.up()
        try:
            undo.and_(page.locator(":not([disabled])")).wait_for(timeout=3000)
        except pytest.importorskip("playwright.sync_api").TimeoutError:  # the editor was not ready yet
            continue
        return
    raise AssertionError("nothing can be drawn")


def test_a_place_is_drawn_and_made_anew_and_a_clip_is_varied(visit, address, files):
    page = visit(address, height=1400)
    page.set_input_files("#files input[type=file]", files / "clip.mp4")
    page.get_by_label("Make a place anew").check()
    type_prompt(page, "a big blue cube slides", steps=2, seed=5)
    draw(page, corner=(0.6, 0.5), size=(0.1, 0.0))
    page.keyboard.press("Control+Enter")
    wait_for_clip(page, 1)
    words = tags_shown(page).split()
    assert words[words.index("--video") + 1] == "clip.mp4"
    assert words[words.index("--mask") + 1].startswith("mask-")
    assert "--strength" not in words
    save_pictures(page, "page-place.png", "#head")
    page.get_by_label("Vary it").check()
    page.wait_for_selector("#strength input[type=number]")
    page.wait_for_function("document.querySelector('#strength input[type=number]').value === '0.5'")
    assert not page.is_visible("#drawn")
    page.keyboard.press("Control+Enter")
    wait_for_clip(page, 2)
    assert "--video clip.mp4 --strength 0.5" in tags_shown(page)


def test_three_pictures_are_passed_through(visit, address, files):
    page = visit(address)
    page.set_input_files("#files input[type=file]", [files / name for name in ("a.png", "b.jpg", "c.png")])
    page.wait_for_selector("#moments input, #moments textarea")
    type_prompt(page, "a red ball drops", steps=2, seed=1)
    page.keyboard.press("Enter")
    wait_for_clip(page, 1)
    assert "--keyframe 0=a.png --keyframe 24=b.jpg --keyframe 48=c.png" in tags_shown(page)


def test_stop_ends_the_work_at_the_next_step(visit, address):
    page = visit(address)
    type_prompt(page, "a red ball drops", steps=100)
    page.keyboard.press("Enter")
    page.wait_for_selector("#stage progress")
    page.click("#stop")
    page.wait_for_selector("text=Stopped.")
    page.wait_for_selector("#make:not([disabled])")
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


def test_the_queue_has_a_limit_and_one_is_made_at_a_time(visit, tmp_path):
    page = app_page.build(Gated(make_pipeline(), SHIPPED_MODEL, tmp_path, tmp_path), 10.0)
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
