"""A real ComfyUI for the tests: the checkout that VIDGEN_COMFYUI names, headless on a CPU, talked to over HTTP.

The checkout itself is left as it is: models, files and the node pack are in a folder of their own.
"""

import asyncio
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from vidgen import media

from .tiny_pipelines import save

CHECKOUT = os.environ.get("VIDGEN_COMFYUI")
ROOT = Path(__file__).resolve().parents[1]
PACK = ROOT / "comfyui"
WORKFLOWS = sorted(path.stem for path in (PACK / "example_workflows").glob("*.json"))
START_S, RUN_S = 900, 900
BINARY_HEADER = 8  # two big-endian integers: kind of event, kind of picture


@dataclass
class Run:
    """What ComfyUI told of one prompt."""

    steps: list[int] = field(default_factory=list)
    previews: list[Image.Image] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    cached: set[str] = field(default_factory=set)
    error: str | None = None
    is_interrupted: bool = False

    @property
    def clip(self) -> media.Clip:
        assert self.error is None
        (path,) = self.files
        return media.read_clip(path)


@dataclass
class Server:
    address: str
    base: Path
    log: Path

    def ask(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            text = error.read()
        return json.loads(text) if text else None

    def run(self, workflow: dict[str, Any], interrupt_at_step: int | None = None) -> Run:
        return asyncio.run(asyncio.wait_for(self._run(workflow, interrupt_at_step), RUN_S))

    async def _run(self, workflow: dict[str, Any], interrupt_at_step: int | None) -> Run:
        import aiohttp  # one of ComfyUI's requirements

        run = Run()
        client = "test"
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{self.address}/ws?clientId={client}", max_msg_size=0) as events,
        ):
            body = {"prompt": workflow, "client_id": client}
            async with session.post(f"{self.address}/prompt", json=body) as answer:
                told = await answer.json()
            if "prompt_id" not in told:
                run.error = json.dumps(told, ensure_ascii=False)
                return run
            async for event in events:
                if event.type == aiohttp.WSMsgType.BINARY:
                    run.previews.append(Image.open(io.BytesIO(event.data[BINARY_HEADER:])))
                    continue
                message = json.loads(event.data)
                data = message["data"]
                if data.get("prompt_id") != told["prompt_id"]:
                    continue
                if message["type"] == "progress":
                    run.steps.append(data["value"])
                    if interrupt_at_step is not None and data["value"] >= interrupt_at_step:
                        interrupt_at_step = None
                        await session.post(f"{self.address}/interrupt", json={"prompt_id": told["prompt_id"]})
                elif message["type"] == "executed":
                    saved = data["output"].get("images", [])
                    run.files += [self.base / file["type"] / file["subfolder"] / file["filename"] for file in saved]
                elif message["type"] == "execution_cached":
                    run.cached = set(data["nodes"])
                elif message["type"] == "execution_error":
                    run.error = data["exception_message"]
                elif message["type"] == "execution_interrupted":
                    run.is_interrupted = True
                if message["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                    return run
        raise AssertionError("ComfyUI hung up")

    def times_loaded(self) -> int:
        return self.log.read_text(encoding="utf-8", errors="replace").count("Requested to load VidGenNetworks")


@contextmanager
def started(base: Path) -> Iterator[Server]:
    """ComfyUI with the pack, models and LoRA that the examples need, in the folder ``base``."""
    assert CHECKOUT
    for name in ("custom_nodes", "input", "output", "models/vidgen", "models/loras"):
        (base / name).mkdir(parents=True)
    (base / "custom_nodes" / "vidgen").symlink_to(PACK)
    (base / "models" / "vidgen" / "mine").symlink_to(ROOT / "weights")
    (base / "models" / "vidgen" / "others").mkdir()
    (base / "models" / "vidgen" / "others" / "one").symlink_to(ROOT / "weights")
    save_example_lora(base / "models" / "loras" / "style.safetensors")
    save("ltx", base / "models" / "diffusers" / "tiny-ltx")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = base / "log.txt"
    command = [sys.executable, str(Path(CHECKOUT) / "main.py"), "--cpu", "--port", str(port), "--base-directory",
               str(base), "--disable-auto-launch", "--preview-method", "auto", "--preview-size", "512"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=base, env=environment, stdout=output, stderr=subprocess.STDOUT)
    running = Server(f"http://127.0.0.1:{port}", base, log)
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                running.ask("/system_stats")
                break
            except OSError:
                assert process.poll() is None, log.read_text(errors="replace")[-3000:]
                assert time.monotonic() < deadline, "ComfyUI does not start"
                time.sleep(0.3)
        yield running
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def save_example_lora(path: Path) -> None:
    """One that changes a lot, at random."""
    import torch

    from vidgen.lora import add_lora, save_lora
    from vidgen.pipeline import VidGenPipeline

    network = VidGenPipeline.from_pretrained(ROOT / "weights").transformer
    add_lora(network, rank=4)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    save_lora(network, path, {})


def workflow(name: str, **inputs: Any) -> dict[str, Any]:
    """An example as it is shipped, with few steps and other inputs of whichever node has them."""
    nodes = json.loads((PACK / "example_workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    for key, value in ({"num_inference_steps": 3} | inputs).items():
        for node in nodes.values():
            is_linked = isinstance(node["inputs"].get(key), list)
            is_added = key in OPTIONAL and node["class_type"] == "VidGenGenerate"
            if is_added or (key in node["inputs"] and not is_linked):
                node["inputs"][key] = value
    return nodes


OPTIONAL = ("last_image", "keyframes", "mask", "video", "audio")


def write_examples(server: Server) -> media.Clip:
    """A clip that the model made, as the files that the examples name."""
    run = server.run(workflow("text_to_video"))
    clip = run.clip
    shutil.copy(run.files[0], server.base / "input" / "example.mp4")
    shutil.copy(run.files[0], server.base / "input" / "example.wav")  # the loader goes by what is in a file
    Image.fromarray(clip.frames[0]).save(server.base / "input" / "example.png")
    return clip
