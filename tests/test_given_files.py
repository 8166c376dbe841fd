"""Material of the user's own, from files through the command line to the finished clip."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

import sample
from vidgen import media, recipe
from vidgen.errors import InputError
from vidgen.generation import GenerationConfig
from vidgen.material import read_given, read_picture
from vidgen.pipeline import VidGenPipeline

from .test_given import LONGEST, SPEC, calls, noise, pipeline, smooth_frames  # noqa: F401


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Clips of 14 frames at the model's size, one of another size and rate, and others."""
    folder = tmp_path_factory.mktemp("files")
    rate = Fraction(24)
    media.write_video(folder / "clip.mp4", smooth_frames(14), 0.3 * noise(14000), rate, crf=1)
    media.write_video(folder / "silent.mp4", smooth_frames(14), None, rate)
    media.write_video(folder / "short.mp4", smooth_frames(3), noise(3000), rate)
    media.write_video(folder / "long.mp4", smooth_frames(60), noise(60000), rate, crf=1)
    media.write_video(folder / "wide.mp4", smooth_frames(20, height=90, width=320), noise(32000, 1), 30, 48000)
    Image.fromarray(smooth_frames(1)[0]).save(folder / "a.png")
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:300])
    (folder / "text.mp4").write_text("no clip")
    GenerationConfig(num_frames=17, height=32, width=64).save(folder)
    return folder


def read(folder, name, **flags):
    return read_given(SPEC, LONGEST, **{"video": folder / name} | flags)


def test_a_file_goes_on(files):
    given, spec, notes = read(files, "clip.mp4", extend_s=0.5)
    assert (spec.num_frames, given.start_frame, len(given.video), len(given.waveform)) == (26, 0, 14, 14000)
    assert np.abs(given.video.astype(int) - smooth_frames(14)).mean() < 6
    assert notes == ["clip.mp4: 12 frames added, its last 1 made anew"]
    given, spec, notes = read(files, "clip.mp4", extend_s=-0.5)
    assert (spec.num_frames, given.start_frame, len(given.video)) == (27, 13, 14)
    assert given.video_mask(spec).flatten().tolist() == [False] * 4 + [True] * 4
    given, spec, notes = read(files, "long.mp4", extend_s=0.5)  # its end is kept, as much as the longest clip holds
    assert (spec.num_frames, len(given.video)) == (34, 22)
    assert np.abs(given.video.astype(int) - smooth_frames(60)[38:]).mean() < 6
    assert notes == ["long.mp4: only 1.58-2.5 s of 2.5 s used, 12 frames added, its last 1 made anew"]
    given, spec, notes = read(files, "long.mp4", extend_s=-0.5)
    assert np.abs(given.video.astype(int) - smooth_frames(60)[:21]).mean() < 6
    assert read(files, "clip.mp4", extend_s=0.5, with_audio=False)[0].waveform is None


def test_a_file_of_another_size_and_rate_is_conformed_and_that_is_said(files):
    given, spec, notes = read(files, "wide.mp4", only="audio")
    assert given.video.shape == (16, 32, 64, 3)
    assert given.waveform is None
    assert spec.num_frames == 16
    assert notes == ["wide.mp4: 320×90 cropped and scaled to 64×32, 30 to 24 fps"]
    given, spec, _ = read(files, "wide.mp4", replaced=(0.1, 0.3))
    assert len(given.waveform) == 16000
    assert given.replaced_video == given.replaced_audio == ((0.1, 0.3),)
    assert read(files, "wide.mp4", replaced=(0.1, 0.3), only="video")[0].replaced_audio == ()
    assert read(files, "wide.mp4", replaced=(0.1, 0.3), only="audio")[0].replaced_video == ()
    assert read(files, "long.mp4", only="audio")[1].num_frames == 34
    assert read(files, "clip.mp4", only="audio")[2] == []
    assert read(files, "long.mp4", only="audio", has_duration=True)[1].num_frames == 17


def test_sound_of_any_file(files, tmp_path):
    given, spec, _ = read(files, "clip.mp4", video=None, audio=files / "wide.mp4")
    assert (spec.num_frames, given.video) == (16, None)
    assert np.array_equal(given.waveform, media.read_clip(files / "wide.mp4", sample_rate_hz=24000).waveform)
    with pytest.raises(InputError, match=r"long.mp4: lasts longer than a clip of this model can, 1.42 s"):
        read(files, "clip.mp4", video=None, audio=files / "long.mp4")
    given, spec, notes = read(files, "clip.mp4", video=None, audio=files / "long.mp4", has_duration=True)
    assert (spec.num_frames, len(given.waveform)) == (17, 17000)
    assert notes == ["long.mp4: no more than its first 0.708 s used"]
    given, spec, _ = read(files, "", video=None, audio=files / "clip.mp4", has_duration=True)
    assert (spec.num_frames, len(given.waveform)) == (17, 14000)

    import wave

    samples = (noise(22050, 3) * 32767).astype("<i2")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setparams((1, 2, 24000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    given, spec, _ = read(files, "", video=None, audio=tmp_path / "sound.wav")
    assert spec.num_frames == 22
    assert np.allclose(given.waveform, samples / 32768, atol=1e-4)

    with wave.open(str(tmp_path / "empty.wav"), "wb") as file:
        file.setparams((1, 2, 24000, 0, "NONE", ""))
    with pytest.raises(InputError, match=r"empty.wav: has no sound"):
        read(files, "", video=None, audio=tmp_path / "empty.wav")
    with av.open(str(tmp_path / "sound.aac"), "w", format="adts") as container:  # tells no length
        stream = container.add_stream("aac", rate=24000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate = 24000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    given, spec, _ = read(files, "", video=None, audio=tmp_path / "sound.aac")
    assert spec.num_frames in (22, 23, 24)  # an encoder's run-in and rounding to its frames included


def test_pictures_are_turned_upright_and_cropped(tmp_path):
    picture = np.zeros((40, 100, 3), np.uint8)
    picture[:, :50] = (255, 0, 0)
    picture[:10] = (0, 0, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by a quarter
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    upright, changes = read_picture(tmp_path / "turned.png", 32, 32)
    assert changes == ["40×100 cropped and scaled to 32×32"]
    assert upright[4, 4].tolist() == [255, 0, 0]
    assert upright[28, 4].tolist() == [0, 0, 0]
    assert upright[16, 30].tolist() == [0, 0, 255]
    assert read_picture(tmp_path / "turned.png", 100, 40)[1] == []
    Image.new("LA", (32, 32), (80, 255)).save(tmp_path / "grey.png")
    assert (read_picture(tmp_path / "grey.png", 32, 32)[0] == 80).all()


# The command line --------------------------------------------------------------------------------------------------

WRONG = [
    ("--extend 1", "need --video"),
    ("--replace 0-1", "need --video"),
    ("--only audio", "needs --video or --audio"),
    ("--video clip.mp4", "say what to do"),
    ("--video clip.mp4 --only video", "say what to do"),
    ("--video clip.mp4 --audio clip.mp4 --extend 1", "not both"),
    ("--video clip.mp4 --extend 1 --replace 0-0.5", "not both"),
    ("--video clip.mp4 --extend 1 --only audio", "--only"),
    ("--video clip.mp4 --extend nan", "nan"),
    ("--video clip.mp4 --extend 1 --duration 1", "--duration"),
    ("--video clip.mp4 --extend 0.05", "shorter than one latent frame"),
    ("--video clip.mp4 --extend 60", "too long"),
    ("--video short.mp4 --extend 0.5", "too short"),
    ("--video clip.mp4 --replace 0.5-0.2", "start before end"),
    ("--video clip.mp4 --replace 0.2-0.7", "0.2-0.7"),
    ("--video clip.mp4 --only audio --no-audio", "contradicts"),
    ("--video silent.mp4 --replace 0.1-0.3 --only audio", "silent.mp4: has no sound"),
    ("--video silent.mp4 --replace 0.1-0.3 --only video", "silent.mp4: has no sound"),
    ("--video absent.mp4 --extend 1", "absent.mp4: no such file"),
    ("--video text.mp4 --extend 1", "text.mp4"),
    ("--audio silent.mp4", "silent.mp4: has no sound"),
    ("--audio a.png", "a.png: has no sound"),
    ("--audio text.mp4", "text.mp4"),
    ("--audio long.mp4", "long.mp4: lasts longer"),
    ("--audio clip.mp4 --duration 30", "last at most 1.42 s, not 30 s"),
    ("--image a.png --duration 30", "last at most 1.42 s, not 30 s"),
    ("--loop --duration 30", "last at most 1.42 s, not 30 s"),
    ("--audio clip.mp4 --only audio", "nothing to make"),
    ("--audio clip.mp4 --no-audio", "contradicts"),
    ("--image absent.png", "absent.png: no such file"),
    ("--image text.mp4", "cannot be read as a picture"),
    ("--last-image broken.png", "cannot be read as a picture"),
    ("--image a.png --keyframe 0=a.png", "twice"),
    ("--keyframe 16=a.png --last-image a.png", "twice"),
    ("--keyframe 17=a.png", "0 to 16"),
    ("--keyframe -1=a.png", "keyframe"),
    ("--keyframe a.png", "looks like"),
    ("--keyframe 6=a.png --keyframe 7=a.png", "keyframe 7"),
    ("--video clip.mp4 --extend 0.5 --image a.png", "keyframe 0"),
]


@pytest.mark.parametrize(("flags", "reason"), WRONG, ids=[flags for flags, _ in WRONG])
def test_bad_material_is_one_clear_line(files, flags, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(files)
    before = sorted(files.iterdir())
    with pytest.raises(InputError, match=reason) as caught:
        sample.main(["--prompt", "a red ball", "--model", ".", "--output", str(tmp_path), *flags.split()])
    assert len(str(caught.value).splitlines()) == 1
    assert sorted(files.iterdir()) == before
    assert not list(tmp_path.iterdir())


def test_sample_makes_every_kind_of_clip(pipeline, files, tmp_path, monkeypatch, capsys, calls):  # noqa: F811
    monkeypatch.setattr(VidGenPipeline, "from_pretrained", lambda *_args, **_settings: pipeline)
    monkeypatch.chdir(files)

    def run(flags):
        calls.clear()
        path = tmp_path / "out.mp4"
        sample.main(["--prompt", "a red ball", "--model", ".", "--seed", "1", "--output", str(path), "--preview",
                     *flags.split()])  # fmt: skip
        assert capsys.readouterr().out == f"{path}\n"
        return media.read_clip(path), json.loads(media.read_metadata(path)["settings"])

    clip, settings = run("--image a.png --last-image a.png --keyframe 8=a.png")
    assert len(clip.frames) == 17
    assert settings["given"] == {"image": "a.png", "last_image": "a.png", "keyframes": {"8": "a.png"}}
    assert (calls[0]["video_sigma"].flatten() == 0).tolist() == [True, False, True, False, True]

    clip, settings = run("--video clip.mp4 --extend 0.5")
    assert len(clip.frames) == 26
    assert settings["given"] == {"video": "clip.mp4", "extend_s": 0.5}
    assert settings["num_frames"] == 26
    assert (calls[0]["video_sigma"].flatten() == 0).tolist() == [True] * 4 + [False] * 4
    before = media.read_clip(files / "clip.mp4").waveform[2000:12000]  # AAC is lossy, so only alike
    assert np.corrcoef(clip.waveform[2000:12000], before)[0, 1] > 0.8

    clip, settings = run("--video clip.mp4 --extend 0.2 --no-audio")
    assert clip.waveform is None
    assert settings["with_audio"] is False
    assert calls[0]["audio"] is None

    clip, settings = run("--video clip.mp4 --replace 0.2-0.3 --only video")
    assert settings["given"] == {"video": "clip.mp4", "replaced_s": [0.2, 0.3], "only": "video"}
    assert (calls[0]["audio_sigma"] == 0).all()

    clip, settings = run("--video silent.mp4 --only audio")
    assert len(clip.frames) == 14
    assert len(clip.waveform) == 14000
    assert (calls[0]["video_sigma"] == 0).all()
    assert (calls[0]["audio_sigma"] > 0).all()

    clip, settings = run("--audio clip.mp4 --image a.png")
    assert len(clip.frames) == 14
    assert settings["given"] == {"image": "a.png", "audio": "clip.mp4"}

    clip, settings = run("--no-audio")
    assert clip.waveform is None
    assert "given" not in settings


def test_what_was_changed_is_one_line(pipeline, files, monkeypatch, tmp_path, capsys):  # noqa: F811
    monkeypatch.setattr(VidGenPipeline, "from_pretrained", lambda *_args, **_settings: pipeline)
    monkeypatch.chdir(files)
    words = ["--prompt", "a", "--video", "wide.mp4", "--extend", "0.5", "--last-image", "a.png", "--size", "32x32"]
    words += ["--model", ".", "--output", str(tmp_path)]
    args, defaults = sample.parse_args(words), GenerationConfig.load(".")
    given, spec, _ = recipe.read_material(args, defaults, recipe.clip_spec(args, defaults))
    assert spec.num_frames == 28
    assert list(given.keyframes) == [27]
    sample.main(words)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "wide.mp4: 320×90 cropped and scaled to 32×32" in error
    assert "a.png: 64×32 cropped and scaled to 32×32" in error
