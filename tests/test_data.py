"""Folders of clips, and the latent cache, at their edges."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from vidgen.caching import latent_deviations
from vidgen.clip import ClipSpec
from vidgen.data.folder import ClipFolder
from vidgen.data.latents import (
    CLIPS_PER_SHARD,
    LatentClips,
    cache_latents,
    claim_cache,
    clips_in_cache,
    complete_cache,
    digest,
)
from vidgen.data.sampling import Layout
from vidgen.errors import InputError
from vidgen.media import write_video

SPEC = ClipSpec(num_frames=5, height=32, width=32)
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(24000) / 24000)).astype(np.float32)


def clip(path, level, waveform=None, frames=12, rate=Fraction(24)):
    write_video(path, np.full((frames, 48, 64, 3), level, np.uint8), waveform, rate)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    clip(tmp_path / "a.mp4", 40, TONE)
    clip(tmp_path / "sub" / "b.mp4", 200, frames=2)
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    (tmp_path / "notes.txt").write_text("not a clip")
    (tmp_path / "a.txt").write_text("from the text file\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "sub/b.mp4", "text": ["one wording", "another"]}\n\n')
    return tmp_path


def test_clips_of_any_shape_are_conformed_and_what_is_missing_is_marked(folder):
    with pytest.warns(UserWarning, match=r"broken\.mp4"):
        clips = ClipFolder(folder, SPEC)
    batch = clips[[(0, 0), (1, 1)]]
    assert batch["video"].shape == (2, 5, 32, 32, 3)
    assert batch["audio"].shape == (2, 1, SPEC.num_samples)
    assert batch["has_audio"].tolist() == [True, False]
    assert batch["captions"] == [["from the text file"], ["one wording", "another"]]
    assert batch["audio"][0].abs().max() > 0.3
    assert not batch["audio"][1].any()
    assert abs(batch["video"][1].float().mean() - 200) < 4  # shorter than asked: its last frame stands still


def test_a_sample_depends_on_its_key_alone(folder):
    with pytest.warns(UserWarning, match="left out"):
        clips = ClipFolder(folder, SPEC)
    together, alone = clips[[(1, 8), (0, 9)]], clips[[(0, 9)]]
    assert torch.equal(together["video"][1], alone["video"][0])
    assert torch.equal(together["audio"][1], alone["audio"][0])


def test_sound_alone_leaves_out_silent_files(folder):
    with pytest.warns(UserWarning, match="left out"):
        clips = ClipFolder(folder, SPEC, with_video=False)
    assert [recording.source.name for recording in clips.recordings] == ["a.mp4"]


def test_a_folder_without_clips_and_broken_captions_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="no readable clip"):
        ClipFolder(tmp_path, SPEC)
    with pytest.raises(InputError, match="not a folder"):
        ClipFolder(tmp_path / "none", SPEC)
    clip(tmp_path / "a.mp4", 9)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.mp4", "text": "fine"}\n{"file_name": 3\n')
    with pytest.raises(InputError, match="line 2"):
        ClipFolder(tmp_path, SPEC)


class Numbered:
    """Clips whose latents are their own number."""

    def __init__(self, length):
        self.length, self.asked = length, []

    def __len__(self):
        return self.length

    def __getitem__(self, keys):
        self.asked += keys
        numbers = torch.tensor([float(draw) for _, draw in keys])
        return {"number": numbers, "has_audio": numbers >= 0, "captions": [[f"clip {index}"] for index, _ in keys]}


def encode(batch):
    number = batch["number"]
    return number.view(-1, 1, 1, 1, 1).expand(-1, 2, 1, 1, 1), number.view(-1, 1, 1)


def test_the_cache_holds_every_clip_once_and_goes_on_where_it_stopped(tmp_path):
    count = CLIPS_PER_SHARD + 10
    source = Numbered(100)
    cache_latents(source, count, encode, tmp_path)
    complete_cache(count, tmp_path)
    whole = LatentClips(tmp_path)
    assert whole.video[:, 0, 0, 0, 0].tolist() == list(range(count))
    assert whole.captions[103] == ["clip 3"]

    (tmp_path / "index.json").unlink()
    (tmp_path / "latents-00001.safetensors").unlink()
    again = Numbered(100)
    cache_latents(again, count, encode, tmp_path)
    complete_cache(count, tmp_path)
    assert [draw for _, draw in again.asked] == list(range(CLIPS_PER_SHARD, count))
    assert torch.equal(LatentClips(tmp_path).audio, whole.audio)


def test_a_cache_grows_to_more_clips(tmp_path):
    cache_latents(Numbered(100), CLIPS_PER_SHARD + 10, encode, tmp_path)
    assert clips_in_cache(tmp_path) == 0
    complete_cache(CLIPS_PER_SHARD + 10, tmp_path)
    assert clips_in_cache(tmp_path) == CLIPS_PER_SHARD + 10
    more = Numbered(100)
    cache_latents(more, CLIPS_PER_SHARD + 20, encode, tmp_path)
    complete_cache(CLIPS_PER_SHARD + 20, tmp_path)
    assert len(more.asked) == 20  # the last shard anew, the full one kept
    assert LatentClips(tmp_path).video[:, 0, 0, 0, 0].tolist() == list(range(CLIPS_PER_SHARD + 20))


def test_processes_share_the_work_and_make_the_same_cache(tmp_path):
    count = 3 * CLIPS_PER_SHARD + 10
    sources = [Numbered(100), Numbered(100)]
    for rank, source in enumerate(sources):
        with pytest.raises(InputError, match="lacks latents-0000"):
            complete_cache(count, tmp_path)
        cache_latents(source, count, encode, tmp_path, rank=rank, world_size=2)
    complete_cache(count, tmp_path)
    assert LatentClips(tmp_path).video[:, 0, 0, 0, 0].tolist() == list(range(count))
    assert [len(source.asked) for source in sources] == [2 * CLIPS_PER_SHARD, CLIPS_PER_SHARD + 10]


def test_captions_are_dropped_at_the_rate_asked_for(tmp_path):
    cache_latents(Numbered(4), 4, encode, tmp_path)
    complete_cache(4, tmp_path)
    clips = LatentClips(tmp_path, caption_dropout=0.25)
    captions = clips[[(0, draw) for draw in range(2000)]]["captions"]
    assert 0.2 < captions.count("") / 2000 < 0.3
    assert set(captions) == {"", "clip 0"}


def test_a_cache_made_from_something_else_is_refused(tmp_path):
    data, cache, network = tmp_path / "clips", tmp_path / "cache", torch.nn.Linear(2, 2)
    (data / "more").mkdir(parents=True)
    (data / "more" / "a.mp4").write_bytes(b"1234")
    (data / "metadata.jsonl").write_text('{"file_name": "more/a.mp4", "text": "red"}')
    made_from = digest(data, ClipSpec(), network)
    claim_cache(cache, made_from)
    claim_cache(cache, digest(data, ClipSpec(), network))
    others = [digest(data, ClipSpec(num_frames=5), network), digest(data, ClipSpec(), torch.nn.Linear(2, 2))]
    (data / "metadata.jsonl").write_text('{"file_name": "more/a.mp4", "text": "tan"}')
    others.append(digest(data, ClipSpec(), network))
    (data / "more" / "a.mp4").write_bytes(b"12345")
    others.append(digest(data, ClipSpec(), network))
    assert len({made_from, *others}) == 5
    for other in others:
        with pytest.raises(InputError, match="latents of other data"):
            claim_cache(cache, other)


def test_single_latent_frames_are_those_of_the_clip_in_order(tmp_path):
    def encode_frames(batch):
        places = torch.arange(7.0).view(1, 1, 7, 1, 1) + 100 * batch["number"].view(-1, 1, 1, 1, 1)
        return places.expand(-1, 2, -1, 3, 3), batch["number"].view(-1, 1, 1)

    cache_latents(Numbered(4), 4, encode_frames, tmp_path)
    complete_cache(4, tmp_path)
    clips = LatentClips(tmp_path, latent_frames=2)
    keys = [(draw % 4, draw) for draw in range(400)]
    batch = clips[keys]
    assert batch["video"].shape == (400, 2, 2, 3, 3)
    assert "audio" not in batch
    expected = 100.0 * torch.tensor([index for index, _ in keys])[:, None] + batch["frames"]
    assert torch.equal(batch["video"][:, 0, :, 0, 0], expected)
    assert (batch["frames"][:, 0] < batch["frames"][:, 1]).all()
    assert torch.bincount(batch["frames"].flatten(), minlength=7).min() > 70  # 114 expected of each
    with pytest.raises(InputError, match="latent_frames"):
        LatentClips(tmp_path, latent_frames=8)


def test_what_shows_a_body_is_cached_with_the_clip_it_belongs_to(tmp_path):
    class Focused(Numbered):
        def __getitem__(self, keys):
            batch = super().__getitem__(keys)
            return {
                **batch,
                "focus": (batch["number"].long()[:, None, None, None] + torch.arange(5)[:, None, None]) % 3 == 0,
            }

    def encode_frames(batch):
        return batch["number"].view(-1, 1, 1, 1, 1).expand(-1, 2, 5, 1, 1), batch["number"].view(-1, 1, 1)

    cache_latents(Focused(9), 9, encode_frames, tmp_path)
    complete_cache(9, tmp_path)
    keys = [(n, draw) for draw, n in enumerate([4, 8, 0, 3])]
    batch = LatentClips(tmp_path)[keys]
    expected = (batch["video"][:, 0] + torch.arange(5)[:, None, None]) % 3 == 0
    assert torch.equal(batch["focus"], expected)
    batch = LatentClips(tmp_path, latent_frames=2).to(torch.device("cpu"))[keys]
    expected = (batch["video"][:, 0] + batch["frames"][..., None, None]) % 3 == 0
    assert torch.equal(batch["focus"], expected)
    cache_latents(Numbered(9), 9, encode_frames, tmp_path / "untold")
    complete_cache(9, tmp_path / "untold")
    assert not LatentClips(tmp_path / "untold").has_focus
    assert "focus" not in LatentClips(tmp_path / "untold")[keys]


class Shapes(Numbered):
    """Clips of three shapes and two sources: long ones, an image each time, and sound alone."""

    kinds = np.array([0, 0, 1, 2, 0])

    def __init__(self):
        super().__init__(5)
        self.layout = Layout(self.kinds, np.array([0, 1, 1, 0, 0]), np.zeros(5, np.int64))

    def __getitem__(self, keys):
        kinds = {int(self.kinds[index]) for index, _ in keys}
        assert len(kinds) == 1  # a batch has one shape
        batch = super().__getitem__(keys)
        return {**batch, "has_audio": batch["has_audio"] & (kinds != {1}), "kind": kinds.pop()}


def encode_shapes(batch):
    number = batch["number"]
    shape = {0: (2, 3, 2, 2), 1: (2, 1, 2, 4), 2: None}[batch["kind"]]
    video = None if shape is None else number.view(-1, 1, 1, 1, 1).expand(-1, *shape)
    return video, number.view(-1, 1, 1).expand(-1, 4, {0: 6, 1: 1, 2: 3}[batch["kind"]])


def test_a_cache_keeps_every_clips_shape_and_source(tmp_path):
    source = Shapes()
    layout = source.layout
    for rank in range(2):
        cache_latents(source, 12, encode_shapes, tmp_path, batch_size=2, rank=rank, world_size=2)
    complete_cache(12, tmp_path, layout)
    clips = LatentClips(tmp_path, weights=(1.0, 2.0))
    assert clips_in_cache(tmp_path) == len(clips) == 12
    resident = LatentClips(tmp_path).to(torch.device("cpu"))
    shown = {}
    for group in np.unique(clips.layout.groups):
        members = np.flatnonzero(clips.layout.groups == group)
        keys = [(int(index), 5) for index in reversed(members)]
        batch, same = clips[keys], resident[keys]
        assert batch.keys() == same.keys()
        for name in batch.keys() & {"video", "audio", "has_audio"}:
            assert torch.equal(batch[name], same[name])
        shape = tuple(batch["video"].shape[1:]) if "video" in batch else None
        numbers = batch.get("audio", batch.get("video")).flatten(1)[:, 0].tolist()
        kind = {(2, 3, 2, 2): 0, (2, 1, 2, 4): 1, None: 2}[shape]
        expected = [n for n in range(12) if source.kinds[n % 5] == kind]
        assert numbers == expected[::-1]  # the latents of clip n are n
        assert batch["captions"] == [f"clip {n % 5}" for n in reversed(expected)]
        assert clips.layout.sources[members].tolist() == [int(layout.sources[n % 5]) for n in expected]
        shown[kind] = set(batch) & {"video", "audio", "has_audio"}
    assert shown == {0: {"video", "audio", "has_audio"}, 1: {"video"}, 2: {"audio", "has_audio"}}
    assert len(LatentClips(tmp_path, only_videos=True)) == sum(source.kinds[n % 5] == 0 for n in range(12))
    frames = LatentClips(tmp_path, latent_frames=2)
    assert set(frames.choices.total_frames) == {1, 3}


def test_deviations_are_those_of_all_shapes_together(tmp_path):
    cache_latents(Shapes(), 12, encode_shapes, tmp_path)
    complete_cache(12, tmp_path, Shapes().layout)
    deviations = latent_deviations(LatentClips(tmp_path))
    numbers = np.array([n for n in range(12) if Shapes.kinds[n % 5] == 0])
    images = np.array([n for n in range(12) if Shapes.kinds[n % 5] == 1])
    every = np.concatenate([numbers.repeat(12), images.repeat(8)])
    assert deviations["video_std"] == pytest.approx([every.std(ddof=1)] * 2, abs=1e-3)
    assert len(deviations["audio_std"]) == 4


def test_an_incomplete_or_damaged_cache_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match=r"index\.json"):
        LatentClips(tmp_path)
    cache_latents(Numbered(4), 4, encode, tmp_path)
    complete_cache(4, tmp_path)
    shard = tmp_path / "latents-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:50])
    with pytest.raises(InputError, match="latents-00000"):
        LatentClips(tmp_path)
