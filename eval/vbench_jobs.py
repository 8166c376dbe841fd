"""Jobs for VBench's own environment: a folder of links, a description, a process with a time limit, its results."""

import json
import os
import shutil
import signal
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidgen.errors import InputError
from vidgen.files import replacing

from .generate import Made
from .vbench_needs import RAFT
from .vbench_prompts import SAMPLES, full_info
from .vbench_scores import DIMENSIONS

RUNNER = Path(__file__).with_name("vbench_runner.py")
CHECK_LIMIT_S = 300.0
PIECE_S = dict.fromkeys(DIMENSIONS, 2.0) | dict.fromkeys(
    ["human_action", "temporal_style", "overall_consistency"], 10.0
)
"""Length of the pieces in which the long variant scores a clip (its configs/clip_length_mix.yaml, not in the wheel)."""


def new_job(
    dimension: str,
    there: Mapping[str, Made],
    folder: Path,
    *,
    long: bool,
    custom: bool,
    info: Path | None,
    device: str,
    filtered: bool,
) -> dict[str, Any]:
    """What the runner is to do with the clips whose links lie in a folder.

    Args:
        there: clips by the names of their links.
        filtered: let the official filter choose among them.
    """
    mode = ("long_" if long else "") + ("custom_input" if custom else "vbench_standard")
    options: dict[str, Any] = {}
    if long:  # the defaults of the official eval_long.py
        options = {
            "use_semantic_splitting": False, "dev_flag": False, "static_filter_flag": False,
            "num_of_samples_per_prompt": SAMPLES, "w_inclip": 1.0, "w_clip2clip": 0.0,
            "sb_clip2clip_feat_extractor": "dino", "bg_clip2clip_feat_extractor": "clip",
            "imaging_quality_preprocessing_mode": "longer",
        }  # fmt: skip
    return {
        "dimension": dimension,
        "mode": mode,
        "long": long,
        "device": device,
        "videos": str(folder.resolve()),
        "full_info": str(full_info(info).resolve()) if not custom or long else "",
        # The long variant takes a clip's prompt from its name, and custom names say nothing.
        "prompts": {name: clip.asked.prompt for name, clip in there.items()} if custom and not long else [],
        "raft": str(RAFT.path) if filtered else None,
        "options": options,
        "clips": [[name, clip.path.stat().st_size, clip.path.stat().st_mtime_ns] for name, clip in there.items()],
    }


def lay_out(folder: Path, there: Mapping[str, Made]) -> None:
    """A folder that holds links to the clips and nothing else: the package stumbles over any other file."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, clip in there.items():
        try:
            (folder / name).symlink_to(clip.path.resolve())
        except OSError:  # where links are not allowed
            shutil.copyfile(clip.path, folder / name)


def job_results(
    python: Path, job: dict[str, Any], there: Mapping[str, Made], folder: Path, official: Path, time_limit_s: float
) -> list[Any] | str:
    """What the package says of a dimension, or why it says nothing. Kept results of the same clips are taken."""
    dimension = job["dimension"]
    place = official.resolve() / folder.parent.name / dimension
    note, results, log = place / "job.json", place / f"{dimension}_eval_results.json", place / "log.txt"
    job["output"] = str(place)
    configs = _long_configs(place) if job["long"] else {}
    job["options"] |= {option: str(path) for option, (path, _) in configs.items()}
    text = json.dumps(job, indent=1, ensure_ascii=False)
    if not (results.is_file() and note.is_file() and note.read_text(encoding="utf-8") == text):
        shutil.rmtree(place, ignore_errors=True)
        lay_out(folder, there)
        with replacing(note) as temporary:
            temporary.write_text(text, encoding="utf-8")
        for path, content in configs.values():
            path.write_text(content, encoding="utf-8")
        failure = _run([str(python), "-I", str(RUNNER), str(note)], log, time_limit_s)
        if failure is not None:
            return failure
    try:
        found = json.loads(results.read_text(encoding="utf-8"))[dimension]
        if not np.isfinite(float(found[0])):
            return f"the package's mean is {found[0]}; see {log}"
        if job["raft"]:
            _name_again(found[1], json.loads((place / "static.json").read_text(encoding="utf-8")))
        return found
    except (OSError, ValueError, TypeError, LookupError) as error:
        return f"the package left no result ({type(error).__name__}); see {log}"


def _long_configs(place: Path) -> dict[str, tuple[Path, str]]:
    """Options of the long variant whose files its wheel lacks: where they are to lie, and what is to be in them.

    Pieces of a clip are not compared with one another by default: the tables for that are read and weighted by zero.
    """
    mapping = (place / "mapping.yaml", "0.0: 0.0\n1.0: 1.0\n")
    return {
        "clip_length_config": (place / "clip_length.yaml", "".join(f"{key}: {s}\n" for key, s in PIECE_S.items())),
        "slow_fast_eval_config": (place / "slow_fast.yaml", "{}\n"),
        "sb_mapping_file_path": mapping,
        "bg_mapping_file_path": mapping,
    }


def _name_again(entries: list[dict[str, Any]], kept: dict[str, dict[str, Any]]) -> None:
    """The filter numbers what it keeps of a prompt from 0 on: clips get the names back that they had before."""
    before = {
        f"{prompt}-{index}.mp4": path
        for prompt, found in kept.items()
        for index, path in enumerate(found["static_path"])
    }
    for entry in entries:
        entry["video_path"] = before[Path(entry["video_path"]).name]


def _run(command: list[str], log: Path, time_limit_s: float) -> str | None:
    """Run to the end or to the limit, with all processes that it starts; None, or how it failed."""
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=os.name != "nt")
        try:
            code = process.wait(time_limit_s)
        except subprocess.TimeoutExpired:
            _end(process)
            return f"took longer than {time_limit_s:g} s; see {log}"
        except BaseException:
            _end(process)
            raise
    if code == 0:
        return None
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{lines[-1].strip()[:200] if lines else f'ended with {code}'}; see {log}"


def _end(process: subprocess.Popen) -> None:
    if os.name == "nt":
        process.kill()
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def per_clip(entries: Sequence[Any], there: Mapping[str, Made]) -> dict[str, float]:
    """Values by the clips' own names, of several pieces the mean."""
    values = defaultdict(list)
    for entry in entries:
        if isinstance(entry, dict) and "video_path" in entry:
            name = Path(entry["video_path"]).name
            values[there[name].path.name if name in there else name].append(float(entry["video_results"]))
    return {name: float(np.mean(own)) for name, own in values.items()}


def check(python: Path) -> dict[str, Any]:
    """What an environment holds: ``python``, ``packages`` (versions by module, None if missing), ``full_info``.

    Raises:
        InputError: it is no Python that runs.
    """
    command = [str(python), "-I", str(RUNNER), "--check"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CHECK_LIMIT_S)
        return json.loads(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as error:
        raise InputError(f"{python} is not a Python that can run VBench ({error})") from error
