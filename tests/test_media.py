from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vidgen.clip import ClipSpec
from vidgen.errors import InputError
from vidgen.media import (
    ClipWriter,
    contact_sheet,
    probe,
    read_clip,
    read_metadata,
    read_sound,
    save_sheet,
    shown_size,
    write_video,
)

NTSC = Fraction(24000, 1001)
RATE_HZ = 24000


def moving_box(num_frames=24, height=64, width=96):
    frames = np.full((num_frames, height, width, 3), 60, np.uint8)
    for index in range(num_frames):
        left = index * (width - 16) // max(1, num_frames - 1)
        frames[index, 20:36, left : left + 16] = (220, 40, 40)
    return frames


def tone(num_samples, hz=440.0, rate_hz=RATE_HZ):
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(num_samples) / rate_hz).astype(np.float32)


def click_and_flash(frame_rate, flash_frame, num_frames=48):
    """Frames that turn white at ``flash_frame`` and a noise burst that starts at the same moment."""
    frames = np.full((num_frames, 64, 64, 3), 20, np.uint8)
    frames[flash_frame:] = 235
    num_samples = round(num_frames / frame_rate * RATE_HZ)
    waveform = np.zeros(num_samples, np.float32)
    start = round(flash_frame / frame_rate * RATE_HZ)
    waveform[start : start + 1200] = np.random.default_rng(0).uniform(-0.8, 0.8, 1200)
    return frames, waveform


def lag_samples(first, second, most=200):
    """How many samples ``second`` is behind ``first``."""
    lags = range(-most, most + 1)
    return lags[int(np.argmax([np.dot(first[most:-most], np.roll(second, -lag)[most:-most]) for lag in lags]))]


@pytest.mark.parametrize("frame_rate", [Fraction(24), NTSC, Fraction(30)])
def test_picture_and_sound_stay_together(tmp_path, frame_rate):
    frames, waveform = click_and_flash(frame_rate, flash_frame=31)
    clip = read_clip(write_video(tmp_path / "clip.mp4", frames, waveform, frame_rate, RATE_HZ))
    assert clip.frame_rate == frame_rate
    assert clip.frames.shape == frames.shape
    assert clip.waveform is not None
    assert len(clip.waveform) == len(waveform)
    assert (clip.frames.mean(axis=(1, 2, 3)) > 128).argmax() == 31
    assert abs(lag_samples(waveform, clip.waveform)) <= RATE_HZ // 1000
    moving = read_clip(write_video(tmp_path / "box.mp4", moving_box(), None, frame_rate))
    assert np.abs(moving.frames.astype(int) - moving_box()).mean() < 3


@pytest.mark.parametrize("frame_rate", [Fraction(24), NTSC])
def test_the_file_itself_starts_at_zero_and_both_tracks_have_the_asked_length(tmp_path, frame_rate):
    frames = moving_box(49)
    path = write_video(tmp_path / "clip.mp4", frames, tone(49000), frame_rate, RATE_HZ)
    asked_s = float(49 / frame_rate)
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert video.codec_context.name == "h264"
        assert video.codec_context.pix_fmt == "yuv420p"
        assert audio.codec_context.name == "aac"
        assert video.average_rate == frame_rate
        assert (video.codec_context.colorspace, video.codec_context.color_primaries) == (1, 1)
        assert video.start_time == 0
        assert float(video.duration * video.time_base) == pytest.approx(asked_s, abs=1e-3)
        assert float(audio.duration * audio.time_base) == pytest.approx(asked_s, abs=1e-3)
        assert float(container.duration / av.time_base) == pytest.approx(asked_s, abs=float(1 / frame_rate))
        order = [
            (packet.stream.type, float(packet.pts * packet.time_base)) for packet in container.demux() if packet.size
        ]
    seen = {"video": 0.0, "audio": 0.0}
    for kind, time_s in order:  # interleaved: neither track runs ahead of the other by much
        seen[kind] = time_s
        assert abs(seen["video"] - seen["audio"]) < 0.5
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_colours_survive_and_are_not_shifted(tmp_path):
    colours = np.array([(200, 30, 30), (30, 200, 30), (30, 30, 200), (230, 230, 230), (10, 10, 10)], np.uint8)
    frames = np.repeat(colours, 32, axis=0)[None, None].repeat(64, axis=1).repeat(3, axis=0)
    clip = read_clip(write_video(tmp_path / "colours.mp4", frames, None, Fraction(24)))
    centres = clip.frames[1, 32, 16::32].astype(int)
    assert np.abs(centres - colours).max() <= 4


def test_metadata_round_trip(tmp_path):
    tags = {"title": "a small red ball", "comment": "ünïcode: 'quotes' and\nlines", "seed": "7", "vidgen_model": "v1"}
    path = write_video(tmp_path / "clip.mp4", moving_box(4), None, Fraction(24), metadata=tags)
    read = read_metadata(path)
    assert {key: read[key] for key in tags} == tags


def test_odd_sizes_gain_an_edge(tmp_path):
    frames = moving_box(3, 63, 95)
    clip = read_clip(write_video(tmp_path / "odd.mp4", frames, None, Fraction(24)))
    assert clip.frames.shape == (3, 64, 96, 3)
    assert np.abs(clip.frames[:, :63, :95].astype(int) - frames).mean() < 3


def test_sound_is_cut_padded_mixed_and_resampled(tmp_path):
    frames = moving_box(24)
    stereo = np.stack([tone(40000, 440), np.zeros(40000, np.float32)])
    clip = read_clip(write_video(tmp_path / "stereo.mp4", frames, stereo, Fraction(24)), sample_rate_hz=16000)
    assert clip.waveform is not None
    assert clip.waveform.shape == (16000,)
    assert np.corrcoef(clip.waveform[800:-800], tone(16000, 440, 16000)[800:-800])[0, 1] > 0.99
    assert np.abs(clip.waveform).max() == pytest.approx(0.25, abs=0.03)
    short = read_clip(write_video(tmp_path / "short.mp4", frames, tone(6000), Fraction(24), 10000))
    assert short.sample_rate_hz == 48000
    assert short.waveform is not None
    assert len(short.waveform) == 48000
    assert np.abs(short.waveform[:28000]).max() > 0.4
    assert np.abs(short.waveform[32000:]).max() < 1e-3


def test_no_sound_track_gives_none(tmp_path):
    clip = read_clip(write_video(tmp_path / "mute.mp4", moving_box(5), None, Fraction(24)))
    assert clip.waveform is None


def test_reading_from_the_middle_equals_the_middle_of_the_whole(tmp_path):
    frames, waveform = click_and_flash(Fraction(24), flash_frame=70, num_frames=96)
    path = write_video(tmp_path / "clip.mp4", frames, waveform, Fraction(24), RATE_HZ)
    whole = read_clip(path)
    part = read_clip(path, start_s=2.5, max_frames=20)
    assert np.array_equal(part.frames, whole.frames[60:80])
    assert part.waveform is not None
    assert whole.waveform is not None
    assert len(part.waveform) == 20000
    assert lag_samples(whole.waveform[60000:80000], part.waveform) == 0
    assert np.abs(part.waveform - whole.waveform[60000:80000]).max() < 0.05


def test_probe(tmp_path):
    info = probe(write_video(tmp_path / "clip.mp4", moving_box(30), tone(100), NTSC))
    assert (info.frame_rate, info.height, info.width, info.has_audio) == (NTSC, 64, 96, True)
    assert info.duration_s == pytest.approx(30 * 1001 / 24000, abs=1e-3)
    with pytest.raises(InputError, match=r"absent\.mp4"):
        probe(tmp_path / "absent.mp4")
    assert shown_size(480, 720, Fraction(32, 27), 0) == (480, 853)
    assert shown_size(480, 720, Fraction(32, 27), 270) == (853, 480)


def test_crop_and_resize(tmp_path):
    frames = np.zeros((2, 64, 128, 3), np.uint8)
    frames[:, :, 32:96] = 200
    clip = read_clip(write_video(tmp_path / "wide.mp4", frames, None, Fraction(24)), height=32, width=32)
    assert clip.frames.shape == (2, 32, 32, 3)
    assert clip.frames[:, :, 2:-2].min() > 180


def variable_rate_file(path: Path, times_ms, sound_from_ms=None):
    """Frame k has brightness 10·k and is shown from ``times_ms[k]`` on, in a Matroska file with millisecond stamps."""
    with av.open(str(path), "w", format="matroska") as container:
        video = container.add_stream("libx264", rate=25)
        video.height = video.width = 64
        video.pix_fmt = "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        video.codec_context.options = {"bf": "0", "crf": "10"}
        audio = None if sound_from_ms is None else container.add_stream("pcm_s16le", rate=RATE_HZ, layout="mono")
        for index, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 10 * index, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            block = (tone(RATE_HZ // 2)[None] * 32767).astype(np.int16)
            sound = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            sound.sample_rate, sound.time_base = RATE_HZ, Fraction(1, RATE_HZ)
            sound.pts = sound_from_ms * RATE_HZ // 1000
            container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
    return path


def test_variable_frame_rate_follows_the_time_stamps(tmp_path):
    times_ms = [0, 40, 80, 500, 540, 900, 1000]
    path = variable_rate_file(tmp_path / "variable.mkv", times_ms)
    clip = read_clip(path, frame_rate=25)
    shown = np.rint(clip.frames.mean(axis=(1, 2, 3)) / 10).astype(int)
    expected = [max(index for index, time in enumerate(times_ms) if time <= 40 * k + 0.5) for k in range(26)]
    assert shown[:26].tolist() == expected


def test_tracks_that_start_at_different_times_are_aligned(tmp_path):
    times_ms = list(range(200, 1200, 40))
    path = variable_rate_file(tmp_path / "late.mkv", times_ms, sound_from_ms=600)
    clip = read_clip(path, frame_rate=25)
    assert len(clip.frames) == 25
    assert clip.waveform is not None
    onset_s = (np.abs(clip.waveform) > 0.1).argmax() / clip.sample_rate_hz
    assert onset_s == pytest.approx(0.4, abs=0.002)


def test_before_and_after_a_sound_that_is_shorter_than_its_picture_there_is_silence(tmp_path):
    path = variable_rate_file(tmp_path / "short.mkv", range(0, 2600, 125), sound_from_ms=1000)  # half a second
    assert np.abs(read_sound(path, RATE_HZ, 0.5, 2.0)).max() == 0
    assert np.abs(read_sound(path, RATE_HZ, 0.5, 0.2)).max() == 0
    assert np.abs(read_sound(path, RATE_HZ, 0.5, 1.0)).max() > 0.1


def test_truncated_file_gives_the_good_prefix(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (48, 64, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / "clip.mp4", frames, tone(48000), Fraction(24), RATE_HZ)
    whole = read_clip(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    clip = read_clip(path)
    assert 15 < len(clip.frames) < 40
    assert np.array_equal(clip.frames[:-1], whole.frames[: len(clip.frames) - 1])
    assert clip.waveform is not None
    assert len(clip.waveform) == len(clip.frames) * 1000


def test_unreadable_files_are_named(tmp_path):
    junk = tmp_path / "junk.mp4"
    junk.write_bytes(b"this is no video" * 100)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    sound_only = tmp_path / "sound.wav"
    with av.open(str(sound_only), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    for path in (junk, empty, sound_only, tmp_path / "absent.mp4", tmp_path):
        with pytest.raises(InputError, match=path.name):
            read_clip(path)
    path = write_video(tmp_path / "short.mp4", moving_box(5), None, Fraction(24))
    with pytest.raises(InputError, match=r"short\.mp4"):
        read_clip(path, start_s=30)


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="not numbers"):
        write_video(tmp_path / "clip.mp4", moving_box(5), np.full(5000, np.nan), Fraction(24))
    with pytest.raises(OSError):  # noqa: PT011 - the folder is a file
        write_video(Path(__file__) / "clip.mp4", moving_box(5), None, Fraction(24))
    assert list(tmp_path.iterdir()) == []


def test_sheet_shows_frames_and_sound_on_one_time_axis(tmp_path):
    frames, waveform = click_and_flash(Fraction(24), flash_frame=24)
    sheet = contact_sheet(frames, waveform, RATE_HZ, "a click and a flash")
    mute = contact_sheet(frames, None, RATE_HZ, "a flash")
    assert sheet.size[0] == mute.size[0] == 960
    pixels = np.asarray(sheet, dtype=int)
    assert pixels[100, 400].mean() < 60
    assert pixels[100, 560].mean() > 200
    spectrogram = pixels[-96:].sum(axis=(0, 2))
    assert spectrogram.argmax() == pytest.approx(490, abs=15)
    path = save_sheet(tmp_path / "sheet.png", [sheet, mute])
    with Image.open(path) as image:
        assert image.size == (960, sheet.height + mute.height)
    assert [entry.name for entry in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize("progressive", [False, True])
def test_a_clip_written_in_parts_is_the_clip_written_at_once(tmp_path, progressive):
    rate = Fraction(24000, 1001)
    frames = np.random.default_rng(0).integers(0, 256, (60, 34, 48, 3), np.uint8)
    spec = ClipSpec(num_frames=60, height=64, width=64, frame_rate=rate)
    waveform = 0.5 * np.sin(np.arange(spec.num_samples, dtype=np.float32) / 9)
    write_video(tmp_path / "once.mp4", frames, waveform, rate)
    with ClipWriter(tmp_path / "parts.mp4", (34, 48), rate, progressive=progressive) as writer:
        for first, end in ((0, 1), (1, 30), (30, 60)):
            samples = slice(spec.samples_until(first), spec.samples_until(end))
            writer.add(frames[first:end], waveform[None, samples])
    once, parts = (read_clip(tmp_path / f"{name}.mp4") for name in ("once", "parts"))
    assert np.array_equal(once.frames, parts.frames)
    assert np.abs(once.waveform - parts.waveform).max() < 1e-3
    assert parts.frame_rate == rate


def test_a_progressive_file_can_be_played_while_it_is_written(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (96, 32, 48, 3), np.uint8)
    waveform = 0.5 * np.sin(np.arange(96000, dtype=np.float32) / 9)[None]
    with ClipWriter(tmp_path / "growing.mp4", (32, 48), Fraction(24), progressive=True) as writer:
        writer.add(frames, waveform)
        (tmp_path / "copy.mp4").write_bytes((tmp_path / "growing.mp4").read_bytes())
    so_far, whole = (read_clip(tmp_path / f"{name}.mp4") for name in ("copy", "growing"))
    assert 24 <= len(so_far.frames) < 96
    assert np.array_equal(so_far.frames, whole.frames[: len(so_far.frames)])
    common = len(so_far.waveform) - 12000
    assert np.abs(so_far.waveform[:common] - whole.waveform[:common]).max() < 1e-3


def test_a_rate_that_aac_does_not_know_is_refused(tmp_path):
    with pytest.raises(InputError, match="23456 Hz"):
        ClipWriter(tmp_path / "a.mp4", (32, 32), Fraction(24), sample_rate_hz=23456)
