"""What README.md tells a newcomer to type, typed: sampling as it stands, training at toy size."""

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOY = {
    "tabletop-cpu": "toy",
    "6000": "4",
    "8": "1",
    "256": "64",
    "4": "1",
    "5": "4.2",
    "6": "4.2",
    "batch_size=128": "batch_size=4",
    "steps=800": "steps=4",
}
"""What stands in README.md, and what a test can afford."""
SKIPPED = ("make", "pip", ".", "printf")


def commands(heading):
    """The shell commands of one section, comments and line breaks removed."""
    section = re.split(r"^## ", README, flags=re.MULTILINE)
    text = next(part for part in section if part.startswith(heading))
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in blocks.splitlines()]
    return [line for line in lines if line and line[0] not in SKIPPED]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workplace")
    for name in ("sample.py", "train.py", "weights"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "prompts.txt").write_text("a small red metal ball drops\n")
    return folder


def run(command, folder):
    words = [TOY.get(word, word) for word in command]
    if words[0] == "accelerate":
        words[:2] = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
        words[6:6] = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    elif words[0] == "python":
        words[0] = sys.executable
        if words[1] == "sample.py" and "--help" not in words:
            words += ["--steps", "3"]
    done = subprocess.run(words, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_sampling_commands_make_clips(workplace):
    made = [run(command, workplace) for command in commands("Two commands")]
    assert len(made) == 13
    assert list(workplace.glob("outputs/*-7.mp4"))
    assert list(workplace.glob("outputs/*-7.png"))
    assert list(workplace.glob("clips/*.mp4"))
    names = ("base", "foley", "longer", "mended", "like", "seen", "round", "long", "story")
    assert all((workplace / f"{name}.mp4").is_file() for name in names)
    assert "--duration 4.2" in made[12]


def test_the_training_commands_end_in_a_model_that_samples(workplace):
    for command in commands("Train it from scratch"):
        run(command, workplace)
    assert (workplace / "runs" / "out" / "dit" / "model" / "model_index.json").is_file()
    assert list(workplace.glob("outputs/a-green-glass-cube*.mp4"))


def test_the_world_command_writes_clips(workplace):
    for command in commands("The world"):
        run(command, workplace)
    assert list(workplace.glob("clips/00000.json"))


def test_the_python_snippet_runs(workplace, monkeypatch):
    snippet = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)[1]
    monkeypatch.chdir(workplace)
    Path("snippet.py").write_text(snippet)
    runpy.run_path("snippet.py")
    assert (workplace / "ball.mp4").stat().st_size > 1000


def test_every_path_that_the_readme_names_exists():
    named = re.findall(r"\]\(([^)#]+)\)", README)
    assert named
    missing = [path for path in named if not path.startswith("http") and not (ROOT / path).exists()]
    assert not missing
