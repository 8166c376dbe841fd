"""From folders of clips to shards: layout, captions, resumption, sharing out, and training from them."""

import io
import json
import subprocess
import sys
import tarfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.films import RATE_HZ, crash_at_two, film, moving, tone
from vidgen.clip import ClipSpec
from vidgen.data import prepare
from vidgen.data.conform import encode_flac
from vidgen.data.recordings import shard_recordings
from vidgen.data.shards import read_index
from vidgen.data.source import open_clips
from vidgen.data.workers import OrderedPool
from vidgen.errors import InputError
from vidgen.media import write_video

ROOT = Path(__file__).parent.parent
SETTINGS = ("--size", "80", "--workers", "1", "--max-duration-s", "2", "--clips-per-shard", "3")


def clips_of(folder):
    """By key, what every line of the journals tells of a clip."""
    lines = [json.loads(line) for path in folder.glob("journal-*") for line in path.read_text().splitlines()]
    return [line["clip"]["key"] for line in lines if "clip" in line]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    two_scenes = np.concatenate([moving(26, seed=11), moving(30, seed=12)])
    write_video(folder / "two.mp4", two_scenes, tone(56 / 24), Fraction(24), RATE_HZ)
    film(folder / "tall.mkv.mp4", 2, sound=False, size=(96, 64))
    film(folder / "sub" / "two.mp4", 3)
    film(folder / "sub" / "zwei.mp4", 3)  # the same once more
    Image.fromarray(moving(1, 80, 120, seed=4)[0]).save(folder / "picture.png")
    (folder / "rain.wav").write_bytes(wav(tone(1.5)))
    (folder / "metadata.jsonl").write_text(
        '{"file_name": "two.mp4", "text": ["blobs slide", "light"]}\n{"file_name": "picture.png", "text": "a still"}\n'
    )
    (folder / "sub" / "metadata.csv").write_text("video,caption\ntwo.mp4,more blobs\n")
    (folder / "rain.txt").write_text("it hums\n")
    return folder


def wav(waveform):
    import wave

    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        out.writeframes((waveform * 32767).astype("<i2").tobytes())
    return file.getvalue()


@pytest.fixture(scope="module")
def shards(inputs, tmp_path_factory):
    output = tmp_path_factory.mktemp("prepared") / "shards"
    prepare.main([str(inputs), "--output", str(output), *SETTINGS])
    return output


def test_shards_have_the_webdataset_layout_and_an_index(shards):
    index = read_index(shards)
    by_name = {}
    for entry in index:
        by_name.setdefault(Path(entry["file"]).name, []).append(entry)
    assert len(index) == 6  # of two.mp4 two scenes; one of zwei.mp4 and sub/two.mp4
    assert {entry["kind"] for entry in index} == {"video", "image", "sound"}
    assert [entry["captions"] for entry in by_name["picture.png"]] == [["a still"]]
    assert [entry["captions"] for entry in by_name["rain.wav"]] == [["it hums"]]
    assert ["blobs slide", "light"] in [entry["captions"] for entry in by_name["two.mp4"]]
    tall = by_name["tall.mkv.mp4"][0]
    assert (tall["height"], tall["width"], tall["has_audio"]) == (96, 64, False)
    for path in shards.glob("*.tar"):
        with tarfile.open(path) as archive:
            members = archive.getmembers()
            names = [member.name for member in members]
            for entry in (entry for entry in index if entry["shard"] == path.name):
                assert "." not in entry["key"]
                own = [name for name in names if name.split(".")[0] == entry["key"]]
                assert set(own) == {entry["key"] + suffix for suffix in (entry["suffix"], ".json", ".txt")
                                    if suffix != ".txt" or entry["captions"]}  # fmt: skip
                assert names.index(own[-1]) - names.index(own[0]) == len(own) - 1  # neighbours
                media = members[names.index(own[0])]
                assert (media.offset_data, media.size) == (entry["offset"], entry["bytes"])
                facts = json.load(archive.extractfile(entry["key"] + ".json"))
                assert {entry[name] == value for name, value in facts.items()} == {True}
    report = (shards / "report.html").read_text()
    assert "near-duplicate" in report
    assert report.count("<img") == 5
    assert not list(shards.glob("*.part"))


def test_an_index_that_lacks_something_or_leads_elsewhere_is_refused(shards, tmp_path):
    good = json.loads((shards / "index.jsonl").read_text().splitlines()[0])
    lines = [(good | {"shard": name}, "not the name of a shard") for name in ("../a.tar", "/a.tar", "..", "")]
    lines += [
        ({key: good[key] for key in good if key != name}, name) for name in ("has_audio", "duration_s", "captions")
    ]
    lines += [(good | {"shard": 3}, "damaged"), ("text", "no 'shard'"), (3, "damaged")]
    for line, message in lines:
        (tmp_path / "index.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(line) + "\n")
        with pytest.raises(InputError, match=f"line 2.*{message}"):
            shard_recordings(tmp_path)


def test_clips_are_conformed_and_quick_to_enter(shards):
    index = read_index(shards)
    for entry in index:
        data = (shards / entry["shard"]).read_bytes()[entry["offset"] : entry["offset"] + entry["bytes"]]
        if entry["kind"] != "video":
            continue
        with av.open(io.BytesIO(data)) as container:
            stream = container.streams.video[0]
            assert stream.average_rate == 24
            assert (stream.height, stream.width) == (entry["height"], entry["width"])
            assert entry["height"] % 32 == entry["width"] % 32 == 0
            packets = [packet for packet in container.demux(stream) if packet.size]
            assert all(packet.pts == packet.dts for packet in packets)  # no B-frames
            keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
            assert max(np.diff([*keys, len(packets)])) <= 24
            assert len(packets) == entry["frames"] == round(entry["duration_s"] * 24)
        if entry["has_audio"]:
            assert entry["loudness_lufs"] < -5
            assert entry["peak"] == pytest.approx(0.3, abs=0.03)  # as loud as it was


def test_training_reads_shards_in_one_shape_or_in_buckets(shards):
    spec = ClipSpec(num_frames=9, height=64, width=64)
    clips = open_clips(shards, spec)
    assert len(clips) == 4
    batch = clips[[(index, index) for index in range(4)]]
    assert batch["video"].shape == (4, 9, 64, 64, 3)
    assert batch["audio"].shape == (4, 1, spec.num_samples)
    assert sum(batch["has_audio"]) == 3
    assert len(open_clips(shards, spec, with_video=False)) == 4  # three films and the sound
    bucketed = open_clips(shards, ClipSpec(num_frames=9, height=64, width=96), in_buckets=True)
    kinds = {}
    for group in np.unique(bucketed.layout.groups):
        members = np.flatnonzero(bucketed.layout.groups == group)
        batch = bucketed[[(int(index), 7) for index in members]]
        shape = tuple(batch["video"].shape[1:4]) if "video" in batch else None
        kinds[shape] = (len(members), batch["audio"].shape[2], batch["has_audio"].tolist())
    assert kinds[None] == (1, 9000, [True])  # 9 frames of sound
    assert kinds[(1, 64, 96)] == (1, 1000, [False])  # the picture
    assert kinds[(9, 96, 64)] == (1, 9000, [False])
    assert kinds[(9, 64, 96)] == (3, 9000, [True] * 3)
    whole = ClipSpec(num_frames=25, height=64, width=96)  # the clips' own size
    clip = open_clips(shards, whole)
    first = next(index for index, recording in enumerate(clip.recordings) if recording.captions == ["more blobs"])
    shown = clip[[(first, 0)]]["video"][0].float()
    # A moment of the film that was prepared: no other film is as near.
    distances = [min((torch.from_numpy(moving(28, seed=seed)[k]).float() - shown[0]).abs().mean() for k in range(28))
                 for seed in (3, 2, 11)]  # fmt: skip
    assert distances[0] < 10 < min(distances[1:])


def test_killed_and_run_again_equals_undisturbed(shards, inputs, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "vidgen.data.prepare", str(inputs), "--output", str(tmp_path), *SETTINGS],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while len(clips_of(tmp_path)) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate(timeout=100)  # the pipe ends when the last of its workers has ended, too
    before = (tmp_path / "journal-0000.jsonl").read_bytes()
    # A torn line and a torn clip, as a kill in the midst of writing leaves them.
    with (tmp_path / "journal-0000.jsonl").open("ab") as journal:
        journal.write(b'{"clip": {"key": "to')
    for part in tmp_path.glob("*.part"):
        part.write_bytes(part.read_bytes() + b"torn" * 100)
    with pytest.raises(InputError, match="not finished"):
        read_index(tmp_path)
    prepare.main([str(inputs), "--output", str(tmp_path), *SETTINGS])
    after = (tmp_path / "journal-0000.jsonl").read_bytes()
    assert after.startswith(before[: before.rfind(b"\n") + 1])  # nothing that was done is done again
    assert len(clips_of(tmp_path)) == len(set(clips_of(tmp_path))) == 6
    for path in sorted(shards.glob("*.tar")):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    assert read_index(tmp_path) == read_index(shards)


def test_machines_share_the_work_and_later_files_are_added(shards, inputs, tmp_path, capsys):
    common = [str(inputs), "--output", str(tmp_path), *SETTINGS, "--world-size", "2"]
    prepare.main([*common, "--rank", "1"])
    assert "the last of 2 writes" in capsys.readouterr().out
    prepare.main([*common, "--rank", "0"])
    assert "near-duplicate 1" in capsys.readouterr().out
    alone, shared = ({entry["file"]: entry["bytes"] for entry in read_index(folder)} for folder in (shards, tmp_path))
    twins = {str(inputs / "sub" / name) for name in ("two.mp4", "zwei.mp4")}
    assert {file: size for file, size in shared.items() if file not in twins} == {
        file: size for file, size in alone.items() if file not in twins
    }
    assert len(twins & set(shared)) == 1

    with pytest.raises(InputError, match="begun with other settings"):
        prepare.main([*common, "--crf", "30"])
    known = clips_of(tmp_path)
    film(tmp_path / "more" / "new.mp4", 77)
    prepare.main([str(tmp_path / "more"), *common[:-2], "--rank", "0"])  # one machine now
    assert len(read_index(tmp_path)) == 7
    assert set(known) < set(clips_of(tmp_path))


def test_a_crashing_decoder_costs_its_own_file_only():
    with OrderedPool(1) as pool:
        results = list(pool.results((number, crash_at_two, (number,)) for number in range(4)))
    assert [number for number, _ in results] == [0, 1, 2, 3]
    assert [result if isinstance(result, int) else result.reason for _, result in results] == [
        0, 1, "decoder crashed", 3,
    ]  # fmt: skip


def test_bad_arguments_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        prepare.main([str(tmp_path / "none"), "--output", str(tmp_path / "out")])
    with pytest.raises(InputError, match="no video, picture or sound"):
        prepare.main([str(tmp_path), "--output", str(tmp_path / "out")])
    for wrong in (("--crf", "60"), ("--multiple", "0"), ("--sample-rate-hz", "24001"), ("--frame-rate", "-5")):
        with pytest.raises(InputError, match=r"give a|cannot have|one of 8000"):
            prepare.main([str(tmp_path), "--output", str(tmp_path / "out"), *wrong])
    (tmp_path / "a.flac").write_bytes(encode_flac(tone(1.2), RATE_HZ))
    with pytest.raises(InputError):
        prepare.main([str(tmp_path), "--output", str(tmp_path / "out"), "--rank", "2", "--world-size", "2"])
