"""What can be measured here, what each missing thing would add, and the command that gets it:

python -m eval.doctor
python -m eval.doctor --vbench-python /path/to/vbench/bin/python --clap laion-clap-folder
"""

import argparse
import importlib.util
import json
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from vidgen.cli import run
from vidgen.errors import InputError

from . import fetch
from .vbench import PYTHON_VARIABLE, check, given_python
from .vbench_needs import INSTALL, LONG_MODULES, NEEDS, RAFT, missing
from .vbench_prompts import full_info, vbench_prompts
from .verifier import WEIGHTS


@dataclass(frozen=True)
class Finding:
    """``state`` is what is there, None if it is missing; ``adds`` what it is for; ``get`` how to get it."""

    group: str
    name: str
    state: str | None
    adds: str
    get: str = ""


PACKAGES = {
    "cv2": ("opencv-python-headless", "the figures of any clip that need no weights: motion, flicker, onset sync"),
    "scipy": ("scipy", "loudness, bandwidth, Fréchet distances"),
    "pyloudnorm": ("pyloudnorm", "loudness in LUFS"),
    "mujoco": ("mujoco", "new scenes of the tabletop world"),
}
ADDS = {
    "i3d": "KVD and FVD",
    "inception": "KID and FID of frames",
    "efficientnet": "image features",
    "lpips": "LPIPS of reconstructions",
    "soundnet": "a kernel distance of sounds",
    "vbench": "the prompts of --suite vbench",
}


def packages() -> list[Finding]:
    found = []
    for module, (distribution, adds) in PACKAGES.items():
        extra = "tabletop" if module == "mujoco" else "eval"
        state = _version(distribution) if importlib.util.find_spec(module) else None
        found.append(Finding("packages", module, state, adds, f'pip install -e ".[{extra}]"'))
    return found


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # from another distribution
        return "installed"


def weights() -> list[Finding]:
    """The judge of the tabletop suite, which is shipped, and what ``eval.fetch`` brings."""
    judge = WEIGHTS / "model.safetensors"
    found = [
        Finding("weights", "verifier", str(WEIGHTS) if judge.is_file() else None, "the tabletop suite", "git checkout")
    ]
    for name, source in fetch.SOURCES.items():
        path = fetch.cached_path(name, source)
        state = str(path) if path.is_file() else None
        found.append(Finding("weights", name, state, ADDS.get(name, source.what), f"python -m eval.fetch {name}"))
    return found


def vbench(python: Path | None) -> list[Finding]:
    """The list of prompts, and each of VBench's dimensions in the environment of that Python."""
    try:
        listed: str | None = f"{full_info()}: {len(vbench_prompts())} prompts"
    except InputError:
        listed = None
    found = [Finding("VBench", "prompts", listed, "--suite vbench", "python -m eval.fetch vbench")]
    if python is None:
        how = f"set it up as docs/vbench.md tells, then --vbench-python PYTHON or {PYTHON_VARIABLE}=PYTHON"
        return [*found, Finding("VBench", "package", None, f"all {len(NEEDS)} dimensions", how)]
    environment = check(python)
    modules: dict[str, str | None] = environment["packages"]

    def there(command: str) -> str:
        return command.replace("pip install", f"{python} -m pip install")

    state = f"{modules['vbench']} on Python {environment['python']}" if modules["vbench"] else None
    found.append(Finding("VBench", "package", state, f"all {len(NEEDS)} dimensions", there(INSTALL["vbench"])))
    for dimension in NEEDS:
        lacking = missing(dimension, modules)
        get = "\n".join(f"{what}: {there(how)}" for what, how in lacking)
        found.append(Finding("VBench", dimension, None if lacking else "ready", f"the dimension {dimension}", get))
    still = RAFT.path.exists() and modules.get("easydict")
    found.append(
        Finding(
            "VBench", "still clips' filter", "ready" if still else None,
            "temporal_flickering as the leaderboard has it, of clips that hardly move", f"{RAFT.path}: {RAFT.command}",
        )
    )  # fmt: skip
    absent = [name for name in LONG_MODULES if modules.get(name) is None]
    get = "\n".join(there(INSTALL.get(name, f"pip install {name}")) for name in absent)
    found.append(Finding("VBench", "long variant", None if absent else "ready", "clips of 5 s and more", get))
    return found


def backends(clap: str | None, synchformer: Path | None, imagebind: Path | None) -> list[Finding]:
    """Other people's networks for sound; a given CLAP is looked for, not loaded."""
    there = clap is not None and (Path(clap) / "model.safetensors").is_file()
    bind = importlib.util.find_spec("imagebind") is not None and imagebind is not None and imagebind.is_file()
    script = synchformer is not None and synchformer.is_file()
    return [
        Finding(
            "sound", "CLAP", clap if there else None, "how well sounds fit the words",
            "a folder with model.safetensors by --clap, or laion/clap-htsat-unfused from the hub when it is used",
        ),
        Finding(
            "sound", "Synchformer", str(synchformer) if script else None, "DeSync: by how much the sound is off",
            "export github.com/v-iashin/Synchformer as TorchScript (docs/vbench.md), then --synchformer FILE",
        ),
        Finding(
            "sound", "ImageBind", str(imagebind) if bind else None, "how well sound and picture go together",
            "pip install git+https://github.com/facebookresearch/ImageBind; wget"
            " https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth; then --imagebind imagebind_huge.pth",
        ),
    ]  # fmt: skip


def findings(
    python: Path | None = None,
    clap: str | None = None,
    synchformer: Path | None = None,
    imagebind: Path | None = None,
) -> list[Finding]:
    """All that there is and is not. Raises InputError if the Python cannot be used."""
    return [*packages(), *weights(), *vbench(python), *backends(clap, synchformer, imagebind)]


def told(found: list[Finding]) -> str:
    """For a terminal."""
    lines: list[str] = []
    for group in dict.fromkeys(finding.group for finding in found):
        lines.append(group)
        for finding in (each for each in found if each.group == group):
            if finding.state is not None:
                lines.append(f"  + {finding.name}: {finding.state}")
            else:
                lines.append(f"  - {finding.name} would add {finding.adds}")
                lines += [f"      {line}" for line in finding.get.splitlines()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.doctor", description=__doc__.split("\n")[0].rstrip(":"))
    parser.add_argument("--vbench-python", type=Path, help=f"Python of VBench's environment (or ${PYTHON_VARIABLE})")
    parser.add_argument("--clap", help="folder of CLAP")
    parser.add_argument("--synchformer", type=Path, help="TorchScript file of Synchformer")
    parser.add_argument("--imagebind", type=Path, help="imagebind_huge.pth")
    parser.add_argument("--json", action="store_true", help="tell it as JSON")
    args = parser.parse_args()
    found: Any = findings(given_python(args.vbench_python), args.clap, args.synchformer, args.imagebind)
    print(json.dumps([asdict(each) for each in found], indent=1) if args.json else told(found))


if __name__ == "__main__":
    run(main)
