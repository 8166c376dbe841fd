"""A folder of everything that is wrong with media files: nothing stops the run, and everything is counted."""

import json
import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tests.films import RATE_HZ, film, flashes_and_clicks, moving, raw_film, tone
from vidgen.data import prepare
from vidgen.data.journal import Progress
from vidgen.data.shards import read_index
from vidgen.media import write_video

KEPT = "kept"
QUARTER_TURN = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)


def sound_only(path, format="mp4", level=0.3):
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(1.5, level=level)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, 0, Fraction(1, RATE_HZ)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def patched(path, mark, offset, data):
    """Bytes of a file replaced, so far behind the first occurrence of a mark."""
    content = bytearray(path.read_bytes())
    start = content.index(mark) + len(mark) + offset
    content[start : start + len(data)] = data
    path.write_bytes(bytes(content))


def with_sound(path, waveform, seed, sound_s=None):
    """A film whose sound track may be shorter than its picture."""
    frames = moving(36, seed=seed)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=24)
        video.height, video.width, video.pix_fmt = 64, 96, "yuv420p"
        audio = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        for picture in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        frame = av.AudioFrame.from_ndarray(
            waveform[None, : round((sound_s or 1.5) * RATE_HZ)], format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, 0, Fraction(1, RATE_HZ)
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))


def make_all(folder):
    """Every kind of bad file, and what is to become of it: the reason, or the note that it is kept with."""
    expected = {}

    def kind(name, outcome):
        expected[name] = outcome
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        return path

    # What is no film at all.
    kind("empty.mp4", "empty file").write_bytes(b"")
    kind("zeros.mp4", "unreadable").write_bytes(bytes(5000))
    kind("text.mp4", "unreadable").write_text("This is a text and no film. " * 50)
    kind("page.mkv", "unreadable").write_text("<!doctype html><html>404</html>")
    kind("text.png", "unreadable").write_text("no picture either")
    kind("text.wav", "unreadable").write_text("and no sound")
    os.mkfifo(kind("pipe.mp4", "no regular file"))
    kind("dangling.mp4", "no regular file").symlink_to(folder / "nowhere.mp4")
    # What is damaged.
    whole = raw_film(folder / "whole.mov", moving(36, seed=1), options={"bf": "0"})
    data = whole.read_bytes()
    whole.unlink()
    kind("index-cut-off.mp4", "unreadable").write_bytes(data[: len(data) // 2])
    film(kind("truncated.mp4", "length is not that of the header"), 2, num_frames=60)
    data = (folder / "truncated.mp4").read_bytes()
    (folder / "truncated.mp4").write_bytes(data[: len(data) * 7 // 10])
    flipped = film(kind("flipped.mp4", "corrupt"), 3, sound=False)
    content = bytearray(flipped.read_bytes())
    start = content.index(b"mdat") + 4
    for place in np.random.default_rng(0).integers(start + 1500, len(content), 60):
        content[place] ^= 0x5A
    flipped.write_bytes(bytes(content))
    picture = Image.fromarray(moving(1, 200, 300, seed=4)[0])
    picture.save(kind("cut-off.jpg", "unreadable"), "JPEG")
    data = (folder / "cut-off.jpg").read_bytes()
    (folder / "cut-off.jpg").write_bytes(data[: len(data) // 2])
    raw_film(kind("wrong-length.mkv", "length is not that of the header"), moving(28, seed=5))
    patched(folder / "wrong-length.mkv", b"\x44\x89\x88", 0, struct.pack(">d", 3600000.0))
    # What is not as it seems.
    sound_only(kind("sound.mp4", "no picture"))
    Image.fromarray(moving(1, 80, 96, seed=6)[0]).save(kind("picture.mp4", "too short"), "PNG")
    raw_film(kind("one-frame.mp4", "too short"), moving(1, seed=7))
    raw_film(kind("huge.mp4", "too large"), np.full((1, 512, 512, 3), 90, np.uint8))
    Image.new("1", (3000, 2000)).save(kind("huge.png", "too large"))
    raw_film(kind("tiny.mp4", "too small"), moving(28, 32, 32, seed=8))
    raw_film(kind("interlaced.mp4", "interlaced"), moving(28, seed=9), options={"x264opts": "tff=1", "flags": "+ildct"})
    raw_film(kind("hdr.mp4", "high dynamic range"), moving(28, seed=10), color_trc=16)
    # What is unusual and is mended.
    raw_film(kind("ten-bit.mp4", "more than 8 bits"), moving(28, seed=11), pix_fmt="yuv420p10le")
    times_ms = np.cumsum(np.tile([10, 60, 41, 100], 7)).tolist()
    raw_film(kind("variable.mkv", "variable frame rate"), moving(28, seed=12), times_ms=times_ms, options={"bf": "0"})
    raw_film(kind("turned.mp4", "rotated"), moving(28, seed=13))
    patched(folder / "turned.mp4", b"tkhd", 40, QUARTER_TURN)
    raw_film(kind("odd.mp4", "odd size"), moving(28, 67, 95, seed=14), pix_fmt="yuv444p")
    raw_film(kind("full-range.mp4", "full colour range"), moving(28, seed=15), color_range=2)
    raw_film(kind("wide-pixels.mp4", "pixels not square"), moving(28, seed=16), sample_aspect_ratio=Fraction(4, 3))
    film(kind("no-caption.mp4", "no caption"), 17)
    # What is not worth learning from.
    raw_film(kind("dark.mp4", "too dark"), moving(28, seed=18) // 30)
    raw_film(kind("still.mp4", "static"), moving(1, seed=19).repeat(28, axis=0))
    film(kind("original.mp4", KEPT), 20)
    larger = [np.asarray(Image.fromarray(picture).resize((132, 88))) for picture in moving(28, seed=20)]
    raw_film(kind("z-copy.mp4", "near-duplicate"), np.stack(larger), options={"crf": "30"})
    with_sound(kind("mute.mp4", "mute"), tone(1.5, level=1e-5), 21)
    with_sound(kind("sound-ends.mp4", "sound incomplete"), tone(1.5), 22, sound_s=0.4)
    frames, waveform = flashes_and_clicks(0.4, 2)
    write_video(kind("out-of-sync.mp4", "out of sync"), frames, waveform, Fraction(24), RATE_HZ)
    # Names.
    film(kind("same/name.mp4", KEPT), 23)
    film(kind("also/name.mp4", KEPT), 24)
    film(kind("ünï – 电影 🎬.mp4", KEPT), 25)
    film(kind("new\nline.mp4", KEPT), 26)
    film(kind("<b>&'\" %03d.mp4", KEPT), 27)
    film(kind("http:colon.mp4", KEPT), 28)
    film(kind(".hidden.v1.final.MP4", KEPT), 29)
    film(folder / "plain.mp4", 30)
    (folder / "plain.mp4").rename(folder / os.fsdecode(b"\xff\xfebytes.mp4"))
    expected[os.fsdecode(b"\xff\xfebytes.mp4")] = KEPT
    if os.geteuid():  # who may read everything
        film(kind("locked.mp4", "may not be read"), 31).chmod(0)
    # Captions.
    (folder / "metadata.jsonl").write_bytes(
        b'{"file_name": "original.mp4", "text": "blobs"}\n{"file_name": "dark.mp4"\n{"text": 5}\n\xff\xfe\n'
    )
    (folder / "same" / "name.txt").write_bytes(b"\xff\xfe caption \xe9")
    return expected


@pytest.mark.filterwarnings("error")
def test_nothing_stops_the_run_and_everything_is_counted(tmp_path, capsys):
    folder, output = tmp_path / "bad", tmp_path / "shards"
    folder.mkdir()
    expected = make_all(folder)
    assert len(expected) >= 30
    limits = ("--max-pixels", "250000", "--size", "64", "--workers", "2")
    prepare.main([str(folder), "--output", str(output), *limits])
    said = capsys.readouterr()
    progress, index = Progress(output), read_index(output)
    kept = {entry["file"] for entry in index}
    dropped = {}
    for name, line in progress.files.items():
        dropped[name] = [drop["reason"] for drop in line["drops"]]
    for drop in progress.drops:
        dropped[drop["file"]].append(drop["reason"])
    assert set(progress.files) == {str(folder.resolve() / name) for name in expected}
    wrong = {}
    for name, outcome in expected.items():
        file = str(folder.resolve() / name)
        notes = progress.files[file]["notes"]
        if outcome == KEPT:
            fine = file in kept and not dropped[file]
        elif outcome in notes:
            fine = file in kept
        else:
            fine = dropped[file] == [outcome] and file not in kept
        if not fine:
            wrong[name] = (outcome, dropped[file], notes, file in kept)
    assert not wrong
    reasons = progress.reasons()
    assert sum(reasons.values()) + len(index) == sum(max(1, len(line["shots"]) + len(line["drops"]))
                                                     for line in progress.files.values())  # fmt: skip
    assert all(f"{reason} {count}" in said.out for reason, count in reasons.items())
    assert said.err.count("left out: ") == 3  # lines of captions
    assert len({entry["key"] for entry in index}) == len(index)
    page = (output / "report.html").read_text(encoding="utf-8")
    assert "<b>&" not in page
    assert "电影" in page
    turned = next(entry for entry in index if entry["file"].endswith("turned.mp4"))
    assert turned["height"] > turned["width"]
    for entry in index:  # a hundred names, each of them fit for a member of a tar file
        assert json.dumps(entry).isascii()
