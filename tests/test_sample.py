"""The command line as a user meets it; what follows from a model is tested in ``test_pipeline``."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

import sample
from vidgen import options
from vidgen.clip import ClipSpec, Compression
from vidgen.errors import InputError
from vidgen.generation import SHIPPED_MODEL, GenerationConfig

ROOT = Path(sample.__file__).parent


def run(*arguments):
    return subprocess.run([sys.executable, ROOT / "sample.py", *arguments], capture_output=True, text=True, timeout=60)


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    GenerationConfig(num_frames=17, height=64, width=96).save(folder)
    return folder


def test_flags_with_dashes_and_underscores_are_the_same():
    dashes = sample.parse_args(["--prompt", "a_b --c", "--num-samples", "2", "--negative-prompt=x_y"])
    underscores = sample.parse_args(["--prompt", "a_b --c", "--num_samples", "2", "--negative_prompt=x_y"])
    assert dashes == underscores
    assert dashes.prompt == ["a_b --c"]
    assert dashes.negative_prompt == "x_y"


def test_rates_and_sizes():
    args = sample.parse_args(["--prompt", "a", "--fps", "23.976", "--size", "96x64"])
    assert args.fps == Fraction(24000, 1001)
    assert args.size == (96, 64)
    assert options.frame_rate("24") == 24
    assert options.frame_rate("12.5") == Fraction(25, 2)
    assert options.frame_rate("30000/1001") == Fraction(30000, 1001)


def test_prompts_with_a_time_are_one_story(tmp_path):
    args = ["--prompt", "0s: a ball", "1.5s:a cube: red", "--seed", "5", "--output", str(tmp_path)]
    (job,) = sample.plan(sample.parse_args(args))
    assert job.story == ((0.0, "a ball"), (1.5, "a cube: red"))
    with pytest.raises(InputError, match="all of them a time, or none"):
        sample.plan(sample.parse_args(["--prompt", "0s: a ball", "a cube"]))


def test_every_prompt_and_seed_gets_its_own_file(tmp_path):
    folder = tmp_path / "clips"
    args = ["--prompt", "A red ball!", "a red  ball", "--prompt", "été", "…", "--seed", "5", "--num-samples", "2"]
    jobs = sample.plan(sample.parse_args([*args, "--output", str(folder)]))
    assert [job.prompt for job in jobs[::2]] == ["A red ball!", "a red ball", "été", "…"]
    assert [job.seed for job in jobs] == [5, 6] * 4
    names = [job.path.name for job in jobs]
    assert len(set(names)) == 8
    assert names[0] == "a-red-ball-5.mp4"
    assert "été-5.mp4" in names
    assert all(job.path.parent == folder for job in jobs)


def test_prompt_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a red ball\n\n  a blue cube \n", encoding="utf-8")
    jobs = sample.plan(sample.parse_args(["--prompt-file", str(path)]))
    assert [job.prompt for job in jobs] == ["a red ball", "a blue cube"]
    assert jobs[0].seed == jobs[1].seed


def test_model_defaults_fill_in_what_is_not_asked_for():
    defaults = GenerationConfig(num_frames=49, height=128, width=96)
    assert defaults.spec() == ClipSpec(49, 128, 96)
    assert defaults.spec(duration_s=1).num_frames == 24
    assert defaults.spec(frame_rate=12).num_frames == round(49 / 2)
    assert defaults.spec(num_frames=9, width=64) == ClipSpec(9, 128, 64)
    with pytest.raises(InputError, match="not both"):
        defaults.spec(num_frames=9, duration_s=1)


WRONG = [
    ([], "nothing to make"),
    (["--prompt", ""], "empty"),
    (["--prompt", "a", "   "], "empty"),
    (["--prompt-file", "absent.txt"], "absent.txt"),
    (["--prompt", "a", "--promt", "b"], "--promt"),
    (["--prompt", "a", "--size", "100x128"], "multiple of 32"),
    (["--prompt", "a", "--size", "big"], "size"),
    (["--prompt", "a", "--duration", "0"], "duration"),
    (["--prompt", "a", "--duration", "1e9"], "duration"),
    (["--prompt", "a", "--duration", "0.01"], "less than a frame at 24 fps: give at least 0.0417"),
    (["--prompt", "a", "--duration", "nan"], "duration"),
    (["--prompt", "a", "--fps", "0"], "frame rate"),
    (["--prompt", "a", "--fps", "1/0"], "frame rate"),
    (["--prompt", "a", "--steps", "0"], "--steps"),
    (["--prompt", "a", "--guidance", "nan"], "--guidance"),
    (["--prompt", "a", "--num-samples", "0"], "--num-samples"),
    (["--prompt", "a", "--seed", "-1"], "--seed"),
    (["--prompt", "a", "b", "--output", "clip.mp4"], "folder"),
    (["--prompt", "a", "--output", "clip.webm"], "mp4"),
    (["--prompt", "a", "--solver", "magic"], "magic"),
]


@pytest.mark.parametrize(("arguments", "reason"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_bad_input_is_one_clear_line(arguments, reason, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=reason) as caught:
        sample.main([*arguments, "--model", str(model_folder)])
    assert len(str(caught.value).splitlines()) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_the_process_says_so_in_one_line_and_exits_with_2(tmp_path):
    done = run("--prompt", "a", "--model", tmp_path / "absent")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "absent" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_output_folder_that_cannot_be_made(model_folder, tmp_path):
    (tmp_path / "file").touch()
    done = run("--prompt", "a", "--model", model_folder, "--output", tmp_path / "file" / "clips")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_an_output_that_is_a_file_of_another_kind(tmp_path):
    taken = tmp_path / "taken.png"
    taken.write_bytes(b"a picture")
    for output in (taken, taken / "a.mp4"):
        with pytest.raises(InputError, match="is a file, not a folder"):
            sample.main(["--prompt", "a ball", "--output", str(output)])
    assert taken.read_bytes() == b"a picture"


def test_damaged_model_folder(model_folder):
    path = model_folder / "generation_config.json"
    path.write_text('{"num_frames": 17, "speed": 3}')
    with pytest.raises(InputError, match="speed"):
        GenerationConfig.load(model_folder)
    path.write_text("{")
    with pytest.raises(InputError, match=r"generation_config\.json"):
        GenerationConfig.load(model_folder)
    path.unlink()
    with pytest.raises(InputError, match="missing"):
        GenerationConfig.load(model_folder)


def test_help_does_not_import_torch():
    code = (
        "import sys; sys.argv = ['sample.py', '--help']; import runpy; runpy.run_path('sample.py', run_name='__main__')"
    )
    check = f"import atexit, sys\natexit.register(lambda: print('torch' in sys.modules))\n{code}"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "False"
    assert "--negative-prompt" in done.stdout


def test_settings_survive_saving(tmp_path):
    config = GenerationConfig(
        frame_rate="24000/1001", model_version="v1", video_shift=2.5, compression=Compression(8, 32, 480)
    )
    config.save(tmp_path)
    assert GenerationConfig.load(tmp_path) == config
    assert config.spec().latent_frames == 7  # 1 + 48 / 8
    assert json.loads((tmp_path / "generation_config.json").read_text())["model_version"] == "v1"


def test_words_that_no_caption_had_are_told():
    own = GenerationConfig(words=["a", "ball", "red", "rolls"])
    (said,) = own.notes_on("A red DRAGON rolls; 0s: a ball, a sky")
    assert said.startswith("words that this model never learned from: dragon, sky ")
    assert own.notes_on("a red ball") == []
    assert GenerationConfig().notes_on("a dragon") == []
    assert GenerationConfig.load(SHIPPED_MODEL).notes_on("a small red metal ball drops onto a wooden floor") == []


@pytest.mark.parametrize(("lora", "is_told"), [([], True), (["--lora", "style"], False)])
def test_words_that_an_adapter_may_have_taught_are_not_called_unknown(lora, is_told, tmp_path, monkeypatch, capsys):
    GenerationConfig(words=["a", "ball"]).save(tmp_path)
    monkeypatch.setattr(sample, "make", lambda *_: None)
    sample.main(["--prompt", "a red ball", "--model", str(tmp_path), "--output", str(tmp_path / "clips"), *lora])
    assert ("never learned from: red" in capsys.readouterr().err) is is_told
