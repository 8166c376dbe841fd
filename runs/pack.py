"""Pack a run of runs/gpu.sh into a few flat files, so that another machine can go on with it.

    python runs/pack.py WORK OUT --limit-mb 60
    cat OUT/state.tar.* | tar -x -C WORK        # puts everything back

What does not fit is left out, the least needed first: curves and sheets are always there, then the model of each stage,
and of a stage under way its newest checkpoint. Where that is too large, it becomes a lean one: the averaged weights in
half precision, from which training goes on with a fresh optimiser.
"""

import argparse
import hashlib
import shutil
import tarfile
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

STAGES = ("vae3d", "audio", "frames", "dit", "student")
PART_BYTES = 15_000_000
BLOCK_BYTES = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--limit-mb", type=float, default=60, help="of 10^6 bytes, all parts together")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as scratch:
        archive = Path(scratch) / "state.tar"
        for line in pack(args.work, archive, int(args.limit_mb * 1e6), Path(scratch)):
            print(line)
        args.out.mkdir(parents=True, exist_ok=True)
        for stale in args.out.glob("state.tar.*"):
            stale.unlink()
        with archive.open("rb") as file:
            for number, part in enumerate(iter(lambda: file.read(PART_BYTES), b"")):
                (args.out / f"state.tar.{number:02d}").write_bytes(part)
    sheets = sorted(args.work.glob("*/samples/*.png"), key=lambda path: path.stat().st_mtime)
    if sheets:
        shutil.copyfile(sheets[-1], args.out / "newest.png")


def pack(work: Path, archive: Path, limit_bytes: int, scratch: Path) -> list[str]:
    """Write the archive; a line for each thing that went in or did not."""
    said = []
    stored: dict[str, str] = {}  # digest -> name: models share their autoencoders
    with tarfile.open(archive, "w") as tar:
        for stage in STAGES:
            small = [work / stage / name for name in ("log.csv", "config.json", "allowance.json")]
            small += sorted((work / stage / "samples").glob("*.png"))[-1:]
            for path in filter(Path.exists, small):
                tar.add(path, path.relative_to(work))
        for stage in order(work):
            for kind, folder in candidates(work / stage, scratch / stage):
                files = {path: f"{stage}/{kind}/{path.relative_to(folder)}" for path in sorted(folder.rglob("*"))}
                files = {path: name for path, name in files.items() if path.is_file()}
                digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
                new = {digest: path.stat().st_size for path, digest in digests.items() if digest not in stored}
                size = sum(new.values()) + 3 * BLOCK_BYTES * len(files)
                if archive.stat().st_size + size + 40 * BLOCK_BYTES > limit_bytes:
                    said.append(f"left out: {stage}/{kind}, {size / 1e6:.1f} MB")
                    continue
                for path, name in files.items():
                    entry = tar.gettarinfo(path, name)
                    entry.type, entry.linkname = tarfile.REGTYPE, ""
                    if digests[path] in stored:
                        entry.type, entry.linkname, entry.size = tarfile.LNKTYPE, stored[digests[path]], 0
                        tar.addfile(entry)
                    else:
                        stored[digests[path]] = name
                        with path.open("rb") as file:
                            tar.addfile(entry, file)
                tar.fileobj.flush()  # type: ignore[union-attr]
                said.append(f"packed: {stage}/{kind}, {size / 1e6:.1f} MB")
                break
    return said


def order(work: Path) -> list[str]:
    """Stages whose weights are needed to go on or to show, the most needed first."""
    stages = [stage for stage in STAGES if (work / stage).exists()]
    if (work / "dit" / "model").exists():
        stages = [stage for stage in stages if stage != "frames"]
    elif list((work / "dit").glob("checkpoints/step-*")):
        stages.sort(key="frames".__eq__)  # needed again only if the checkpoint does not fit
    if (work / "student" / "model").exists():
        stages.sort(key="dit".__eq__)  # the finished student before its teacher
    return stages


def candidates(stage: Path, scratch: Path) -> list[tuple[str, Path]]:
    """(where it belongs in the stage's folder, what goes there), the best first."""
    if (stage / "model").exists():
        return [("model", stage / "model")]
    checkpoints = sorted((stage / "checkpoints").glob("step-*"))
    if not checkpoints:
        return []
    newest = checkpoints[-1]
    return [(f"checkpoints/{newest.name}", folder) for folder in (newest, lean(newest, scratch / newest.name))]


def lean(checkpoint: Path, target: Path) -> Path:
    """The checkpoint with averaged weights in half precision for both the model and its average, and no optimiser."""
    target.mkdir(parents=True)
    for path in checkpoint.glob("*.safetensors"):
        tensors: dict[str, torch.Tensor] = {}
        if path.stem in ("model", "average", "discriminator"):
            tensors = load_file(checkpoint / path.name.replace("model", "average"))
            tensors = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
        save_file(tensors, target / path.name)
    return target


if __name__ == "__main__":
    main()
