"""Shapes near the clips' own, mixtures by weight, and what comes when."""

from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vidgen.data.buckets import Bucket, fitting_frames, fitting_size, frame_ladder
from vidgen.data.captions import first_clause, vary_caption
from vidgen.data.recordings import Mixture
from vidgen.data.sampling import KeyedBatches, Layout, held_back_keys
from vidgen.data.source import Source, parse_source, source_weights
from vidgen.errors import InputError
from vidgen.validation import batches_by_shape


def layout(groups, sources=None, shards=None, weights=None):
    zeros = np.zeros(len(groups), np.int64)
    sources = zeros if sources is None else np.array(sources)
    return Layout(np.array(groups), sources, zeros if shards is None else np.array(shards), weights)


def batches(count, made, batch_size=3, **arguments):
    return list(islice(KeyedBatches(len(made.groups), batch_size, seed=5, layout=made, **arguments), count))


@given(st.integers(64, 2000), st.integers(64, 2000))
def test_a_size_keeps_the_pictures_shape_and_is_never_larger(height, width):
    h, w = fitting_size(height, width, 256 * 256, 32)
    assert h % 32 == w % 32 == 0
    assert h <= height
    assert w <= width
    assert h * w <= 1.15 * 256 * 256
    if 0.4 < height / width < 2.5 and min(height, width) >= 256:
        assert max(w * height / (h * width), h * width / (w * height)) < 1.2  # no more than a sixth is cut off


def test_known_sizes_and_lengths():
    assert fitting_size(1080, 1920, 256 * 256, 32) == (192, 352)
    assert fitting_size(1920, 1080, 256 * 256, 32) == (352, 192)
    assert fitting_size(500, 500, 256 * 256, 32) == (256, 256)
    assert fitting_size(20, 3000, 32 * 32, 32)[0] == 32
    assert frame_ladder(49, 4) == [49, 25, 13, 5, 1]
    lengths = {0: 1, 1: 1, 4: 1, 5: 5, 24: 13, 25: 25, 48: 25, 49: 49, 500: 49}
    assert {frames: fitting_frames(frames, 49, 4) for frames in lengths} == lengths


def test_a_batch_has_one_shape_and_every_clip_comes_once_an_epoch():
    groups = [0] * 12 + [1] * 4
    drawn = [[index for index, _ in batch] for batch in batches(400, layout(groups))]
    assert all(len({groups[index] for index in batch}) == 1 for batch in drawn)
    for group, members in ((0, range(12)), (1, range(12, 16))):
        order = [index for batch in drawn for index in batch if groups[index] == group]
        size = len(members)
        assert all(sorted(order[start : start + size]) == list(members) for start in range(0, len(order) - size, size))
    counts = Counter(groups[index] for batch in drawn for index in batch)
    assert 0.7 < counts[0] / 1200 < 0.8  # 12 of 16 clips


def test_sources_are_drawn_by_weight_whatever_their_size():
    sources = [0] * 100 + [1] * 5
    drawn = [index for batch in batches(1000, layout([0] * 105, sources, weights=(0.3, 0.7))) for index, _ in batch]
    small = [index for index in drawn if index >= 100]
    assert 0.66 < len(small) / len(drawn) < 0.74
    assert all(sorted(small[start : start + 5]) == list(range(100, 105)) for start in range(0, 500, 5))
    plain = [index for batch in batches(1000, layout([0] * 105, sources)) for index, _ in batch]
    assert 0.03 < sum(index >= 100 for index in plain) / 3000 < 0.07  # 5 of 105


def test_starting_later_equals_skipping_with_groups_sources_and_shards():
    rng = np.random.default_rng(0)
    made = layout(*rng.integers(0, 3, (3, 60)), weights=(1.0, 2.0, 3.0))
    even = layout(np.tile([0, 0, 1], 20), shards=np.repeat(np.arange(4), 15))
    for clips, ranks in ((made, {}), (made, {"rank": 1, "world_size": 2}), (even, {"rank": 1, "world_size": 2})):
        whole = batches(1500, clips, **ranks)
        for start in (1, 700, 1025):
            assert whole[start : start + 60] == batches(60, clips, start_batch=start, **ranks)


def test_each_process_reads_shards_of_its_own_and_all_show_one_shape_at_a_time():
    shards = np.repeat(np.arange(4), 8)
    groups = np.tile([0, 0, 0, 1], 8)
    made = layout(groups, shards=shards)
    ranks = [batches(200, made, rank=rank, world_size=2) for rank in range(2)]
    for rank, own in enumerate(({0, 2}, {1, 3})):
        assert {int(shards[index]) for batch in ranks[rank] for index, _ in batch} == own
    draws = [draw for batch in (*ranks[0], *ranks[1]) for _, draw in batch]
    assert sorted(draws) == list(range(1200))  # no two samples share their chance
    shapes = [[groups[batch[0][0]] for batch in rank] for rank in ranks]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    "made",
    [
        layout([0, 0, 1, 1, 1, 0, 0], sources=[0, 1, 0, 1, 0, 1, 0], weights=(1.0, 1.0)),  # one shard
        layout([0] * 30, shards=[0] * 26 + [1] * 4),
        layout([0] * 12, sources=[0] * 6 + [1] * 6, shards=[0] * 6 + [1] * 6, weights=(0.9, 0.1)),
        layout([0] * 5 + [1] + [0] * 6, shards=[0] * 6 + [1] * 6),  # the second process would lack a shape
    ],
    ids=["too few", "uneven", "a source each", "a shape on one only"],
)
def test_where_shards_do_not_share_out_evenly_processes_share_what_one_would_see(made):
    whole = batches(50, made, batch_size=6)
    halves = [batches(50, made, rank=rank, world_size=2) for rank in range(2)]
    assert whole == [first + second for first, second in zip(*halves, strict=True)]


def test_held_back_clips_are_all_shown_in_batches_of_one_shape():
    made = layout([0, 1, 1, 0, 1])
    data = Numbers(0, 5)
    keys = held_back_keys(data, 12)
    assert list(chain(*chain(*batches_by_shape(data, keys, 3)))) == keys
    data.layout = made
    shown = list(chain(*batches_by_shape(data, keys, 3)))
    assert sorted(chain(*shown)) == sorted(held_back_keys(data, 12))
    assert all(len(batch) <= 3 and len({made.groups[index] for index, _ in batch}) == 1 for batch in shown)


class Numbers:
    def __init__(self, start, length, **more):
        self.start, self.length, self.more = start, length, more

    def __len__(self):
        return self.length

    def __getitem__(self, keys):
        captions = [[f"{self.start + index}"] for index, _ in keys]
        return {"number": torch.tensor([self.start + index for index, _ in keys]), "captions": captions, **self.more}


def test_a_mixture_puts_a_batch_together_in_the_order_of_its_keys():
    whole = Bucket(9, 32, 32)
    mixed = Mixture([Numbers(0, 3, truth=1), Numbers(100, 2)], None, [[whole] * 3, [whole] * 2])
    batch = mixed[[(4, 0), (1, 1), (3, 2), (0, 3)]]
    assert batch["number"].tolist() == [101, 1, 100, 0]
    assert batch["captions"] == [["101"], ["1"], ["100"], ["0"]]
    assert "truth" not in batch
    assert mixed.layout.sources.tolist() == [0, 0, 0, 1, 1]
    assert mixed.layout.shards.tolist() == [0, 0, 0, 1, 1]


def test_sources_and_weights_are_told_apart(tmp_path):
    odd = tmp_path / "clips:2"
    odd.mkdir()
    assert parse_source("clips:0.7") == Source(parse_source("clips").path, 0.7)
    assert parse_source(str(odd)) == Source(odd)
    assert parse_source(f"{odd}:3") == Source(odd, 3.0)
    with pytest.raises(InputError, match="positive"):
        parse_source("clips:-1")
    with pytest.raises(InputError, match="every --data a weight"):
        source_weights([Source(odd, 0.5), Source(odd)])


def test_captions_vary_at_the_stated_rates():
    wordings = ["A red ball rolls over the floor, slowly. Then it stops.", "A ball.", "Rolling is heard."]

    def shares(**rates):
        rng = np.random.default_rng(1)
        counts = Counter(vary_caption(wordings, rng, **rates) for _ in range(4000))
        return {caption: count / 4000 for caption, count in counts.items()}

    assert shares(swap=0) == {wordings[0]: 1}
    assert shares(swap=0.3) == pytest.approx({wordings[0]: 0.8, wordings[1]: 0.1, wordings[2]: 0.1}, abs=0.03)
    assert shares(swap=0, dropout=0.2) == pytest.approx({wordings[0]: 0.8, "": 0.2}, abs=0.03)
    short = shares(swap=0, shorten=0.25)
    assert short == pytest.approx({wordings[0]: 0.75, "A red ball rolls over the floor": 0.25}, abs=0.03)
    assert first_clause("A ball, red. It rolls") == "A ball, red"
    assert first_clause("Version 2.5 of it") == "Version 2.5 of it"
