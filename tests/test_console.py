"""The ``vidgen`` command, and the wheel that carries it."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from vidgen import __version__, console
from vidgen.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments, **settings):
    command = [sys.executable, "-m", "vidgen.console", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, **settings)


def test_help_names_every_command_and_shows_examples(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["vidgen", "--help"])
    with pytest.raises(SystemExit) as ended:
        console.main()
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert all(f"\n  {command} " in out for command in (*console.COMMANDS, "completion"))
    assert "examples:" in out
    assert all(len(line) <= 100 for line in out.splitlines())


def test_help_of_every_command_comes_without_torch():
    code = """
import sys
from vidgen import console
for command in ([], ["sample"], ["inspect"], ["app"], ["prepare"], ["train"], ["eval"]):
    sys.argv = ["vidgen", *command, "--help"]
    try:
        console.main()
    except SystemExit as ended:
        assert ended.code == 0, command
    print("loaded after", command, {"torch", "diffusers", "gradio"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith("loaded after")]
    assert len(said) == 7
    assert all(line.endswith("set()") for line in said), said
    assert done.stdout.count("usage: ") == 7
    assert done.stdout.count("examples:") == 3  # of the command itself, of sample and of eval
    assert all(group in done.stdout for group in ("from what is there:", "from weights that are there:"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["train", "vae3d", "--config", "tabletop-cpu", "--data", "x", "--output", "y", "--speed", "9"], "--speed 9"),
        (["train", "gan"], "invalid choice: 'gan'"),
        (["train", "dit"], "required: --config, --data, --output"),
        (["train", "dit", "--config", "huge", "--data", "x", "--output", "y"], "tabletop-cpu"),
        (["train", "dit", "--config", "tabletop-cpu", "--data", "x", "--output", "y", "--set", "stepz=3"], "steps"),
        (["eval", "--model", "weights"], "required: --output"),
        (["eval", "--output", "x", "--lists", "all"], "invalid choice: 'all'"),
        (["app", "--speed", "9"], "--speed 9"),
        (["prepare", "films"], "required: --output"),
        (["inspect"], "required: CLIP"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments, reason, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vidgen", *arguments])
    with pytest.raises(SystemExit) as ended:
        console.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert reason in said
    assert said.count("\n") == 1


def test_options_that_are_read_first_know_what_the_commands_know():
    import train
    from eval import distribution, options, verifier
    from vidgen import train_options

    assert tuple(train.STAGES) == train_options.STAGES
    assert tuple(distribution.METRICS) == options.DISTANCES
    assert verifier.WEIGHTS == options.VERIFIER


def test_exit_codes():
    done = run("dance")
    assert (done.returncode, done.stdout) == (2, "")
    assert "sample, app" in done.stderr
    assert done.stderr.count("\n") == 1
    done = run("inspect", "absent.mp4")
    assert done.returncode == 2
    assert "absent.mp4" in done.stderr
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"vidgen {__version__}\n")


def test_every_command_starts_the_script_or_module_that_it_names(monkeypatch, tmp_path):
    assert console.entry_point("sample").__code__.co_filename == str(ROOT / "sample.py")
    assert console.entry_point("inspect").__module__ == "vidgen.inspect"
    monkeypatch.setitem(console.COMMANDS, "app", "vidgen.no_such_module")
    with pytest.raises(InputError, match="vidgen app is not part of this installation"):
        console.entry_point("app")
    package = tmp_path / "vidgen"  # as in a wheel, where the scripts lie inside the package and come first
    (package / "scripts").mkdir(parents=True)
    (package / "scripts" / "sample.py").write_text("def main():\n    return 'inside'\n")
    (tmp_path / "sample.py").write_text("raise AssertionError('a stranger of the same name')\n")
    monkeypatch.setattr(console, "__file__", str(package / "console.py"))
    assert console.entry_point("sample")() == "inside"


def test_completion_of_commands_and_flags(monkeypatch, capsys):
    pytest.importorskip("shtab")
    commands = {"sample": "sample.py", "inspect": "vidgen.inspect", "app": "vidgen.no_such_module"}
    monkeypatch.setattr(console, "COMMANDS", commands)
    scripts = {shell: console.completion(shell) for shell in console.SHELLS}
    for script in scripts.values():
        assert "negative-prompt" in script
        assert "inspect" in script
    assert "left out: app" in capsys.readouterr().err
    checked = subprocess.run(["bash", "-n"], input=scripts["bash"], text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.slow
def test_a_wheel_installs_in_a_clean_environment_and_makes_a_clip(tmp_path):
    """Its environment has the dependencies of this one, and nothing of the checkout."""
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", ROOT], check=True, timeout=600
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (source,) = (tmp_path / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"vidgen/weights/model_index.json", "vidgen/scripts/sample.py", "vidgen/scripts/train.py"} < names
    assert "eval/prompts_tabletop.json" in names
    assert not any(name.startswith("tests/") for name in names)
    with tarfile.open(source) as archive:
        members = {Path(name).relative_to(source.name.removesuffix(".tar.gz")) for name in archive.getnames()}
    assert {Path("sample.py"), Path("weights/model_index.json"), Path("setup.py")} < members
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True, timeout=300)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    binaries = environment / "bin"
    subprocess.run([binaries / "pip", "install", "-q", "--no-deps", wheel], check=True, env=clean, timeout=300)
    paths = [path for path in sys.path if "site-packages" in path or "dist-packages" in path]
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(paths) + "\n")
    settings = {"cwd": tmp_path, "env": clean, "capture_output": True, "text": True, "timeout": 600}
    where = [binaries / "python", "-c", "import vidgen; print(vidgen.__file__)"]
    assert subprocess.run(where, **settings).stdout.startswith(str(environment))
    arguments = ["--prompt", "a small red ball drops", "--steps", "2", "--duration", "0.5", "--output", "clip.mp4"]
    done = subprocess.run([binaries / "vidgen", "sample", *arguments], **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "clip.mp4\n"
    done = subprocess.run([binaries / "vidgen", "inspect", "clip.mp4"], **settings)
    assert "--steps 2" in done.stdout
    done = subprocess.run([binaries / "vidgen", "train", "--help"], **settings)
    assert "vae3d" in done.stdout
