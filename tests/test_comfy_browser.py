"""The example workflows in ComfyUI's own page: opened, nothing missing, and run by its button.

    VIDGEN_COMFYUI=/path/to/ComfyUI python -m pytest tests/test_comfy_browser.py

in an environment with vidgen, ComfyUI's requirements (its front end among them) and playwright, beside chromium.
"""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from vidgen import media

from .comfy_server import CHECKOUT, PACK, RUN_S, WORKFLOWS, started, write_examples

CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(not CHECKOUT, reason="VIDGEN_COMFYUI does not name a checkout of ComfyUI")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with started(tmp_path_factory.mktemp("comfyui")) as running:
        write_examples(running)
        running.ask("/api/settings/Comfy.TutorialCompleted", True)  # else a first visit begins with the templates
        yield running


@pytest.fixture(scope="module")
def page(server):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(300_000)
        page.goto(server.address)
        page.wait_for_function("window.app && window.app.graph && window.app.extensionManager")
        yield page
        browser.close()


@pytest.mark.parametrize("name", WORKFLOWS)
def test_an_example_is_opened_and_run_by_its_button(page, server, name):
    drawn = json.loads((PACK / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))
    page.evaluate("workflow => window.app.loadGraphData(workflow)", drawn)
    kinds = page.evaluate(
        "window.app.graph._nodes.map(node => [node.type, Boolean(LiteGraph.registered_node_types[node.type])])"
    )
    assert sorted(kinds) == sorted([node["type"], True] for node in drawn["nodes"])
    page.evaluate(
        """() => window.app.graph._nodes.flatMap(node => node.widgets ?? [])
            .filter(widget => widget.name === "num_inference_steps").forEach(widget => { widget.value = 2; })"""
    )
    files, runs = set((server.base / "output").glob("**/*.mp4")), set(server.ask("/history"))
    assert page.get_by_text("Missing Node", exact=False).count() == 0
    page.locator('[data-testid="queue-button"] button').first.click()
    deadline = time.monotonic() + RUN_S
    while not (ended := set(server.ask("/history")) - runs):
        assert time.monotonic() < deadline, "the button starts nothing"
        page.wait_for_timeout(500)
    assert server.ask(f"/history/{ended.pop()}").popitem()[1]["status"]["status_str"] == "success"
    made = set((server.base / "output").glob("**/*.mp4")) - files
    assert len(made) == (2 if name == "text_to_video_in_steps" else 1)  # a batch
    for clip in map(media.read_clip, made):
        assert len(clip.frames) >= 49
        assert clip.waveform is not None
    assert page.locator(".p-dialog, .comfy-error").count() == 0
    if folder := os.environ.get("VIDGEN_SCREENSHOTS"):
        page.wait_for_timeout(2000)
        page.screenshot(path=str(Path(folder) / f"comfyui-{name}.png"))
