"""Runs one job of the official VBench package. The Python of the package's own environment executes this file:

    /path/to/vbench/bin/python -I eval/vbench_runner.py job.json
    /path/to/vbench/bin/python -I eval/vbench_runner.py --check      what that environment holds, as JSON

It imports nothing of this project; ``eval.vbench`` writes the jobs and reads what comes out. ``-I`` keeps this folder,
in which a vbench.py lies, out of the way of the package.
"""

import ctypes
import importlib
import importlib.metadata
import importlib.util
import json
import os
import signal
import sys
from typing import Any

PACKAGES = {
    "vbench": "vbench", "torch": "torch", "torchvision": "torchvision", "decord": "decord", "cv2": "opencv-python",
    "clip": "openai-clip", "timm": "timm", "omegaconf": "omegaconf", "easydict": "easydict", "pyiqa": "pyiqa",
    "detectron2": "detectron2", "transformers": "transformers", "fairscale": "fairscale",
    "scenedetect": "scenedetect", "moviepy": "moviepy", "dreamsim": "dreamsim", "scipy": "scipy", "yaml": "pyyaml",
}  # fmt: skip
"""What the package imports, and the distribution that it comes from."""


def check() -> dict[str, Any]:
    """Versions of ``PACKAGES`` that are installed (None if not), and where the list of prompts lies."""
    versions: dict[str, str | None] = {}
    for module, distribution in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            versions[module] = None
            continue
        try:
            versions[module] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            versions[module] = "installed"
    spec = importlib.util.find_spec("vbench")
    info = os.path.join(os.path.dirname(spec.origin), "VBench_full_info.json") if spec and spec.origin else None
    return {"python": sys.version.split()[0], "packages": versions, "full_info": info}


def end_with_parent() -> None:
    """On Linux: whoever ends the process that waits for this one, in whatever way, ends this one, too."""
    if sys.platform == "linux":
        death_signal = 1  # prctl.h: PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL)


def in_order() -> None:
    """The package lists folders and takes the suffix of the first entry for that of all clips: clips come first."""
    listdir = os.listdir

    def clips_first(path: str = ".") -> list[str]:
        return sorted(listdir(path), key=lambda name: (not str(name).endswith(".mp4"), name))

    os.listdir = clips_first  # type: ignore[assignment]


def keep_static(job: dict[str, Any]) -> str:
    """The official filter for temporal flickering: of a prompt's clips the first five that hardly move, by RAFT.

    Returns the folder that it copied them to.
    """
    module: Any = importlib.import_module("vbench.cli.static_filter")
    module.DEVICE = job["device"]  # which it sets to cuda
    load = module.torch.load
    module.torch.load = lambda path: load(path, map_location=job["device"])
    edict = importlib.import_module("easydict").EasyDict
    module.static_filter(
        edict(
            model=job["raft"], videos_path=job["videos"], result_path=job["output"], store_name="static.json",
            small=False, mixed_precision=False, alternate_corr=False, filter_scope="temporal_flickering",
        )
    )  # fmt: skip
    module.torch.load = load
    kept = os.path.join(job["output"], "filtered_videos")
    if not os.listdir(kept):
        sys.exit("the official filter kept no clip: all of them move, or their prompts are not of its list")
    return kept


def main() -> None:
    if sys.argv[1] == "--check":
        print(json.dumps(check()))
        return
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    end_with_parent()
    in_order()
    device = importlib.import_module("torch").device(job["device"])
    if job["long"]:
        benchmark = importlib.import_module("vbench2_beta_long").VBenchLong
    else:
        benchmark = importlib.import_module("vbench").VBench
    if job["dimension"] == "motion_smoothness":
        device = job["device"]  # there it is compared with a string
    videos = keep_static(job) if job["raft"] else job["videos"]
    benchmark(device, job["full_info"], job["output"]).evaluate(
        videos_path=videos,
        name=job["dimension"],
        prompt_list=job["prompts"],
        dimension_list=[job["dimension"]],
        local=True,  # weights lie in VBENCH_CACHE_DIR, CLIP's and DINO's, too
        read_frame=False,
        mode=job["mode"],
        **job["options"],
    )


if __name__ == "__main__":
    main()
