from itertools import islice

import torch
from torch.utils.data import Dataset

from vidgen.data.sampling import KeyedBatches, SeededBatches


def keys(count, **arguments):
    return list(islice(KeyedBatches(**arguments), count))


def test_every_clip_comes_once_an_epoch_in_a_new_order():
    drawn = [index for batch in keys(10, length=10, batch_size=2, seed=3) for index, _ in batch]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]


def test_starting_later_equals_skipping():
    arguments = {"length": 7, "batch_size": 3, "seed": 1}
    assert keys(9, **arguments)[4:] == keys(5, start_batch=4, **arguments)


def test_two_processes_see_what_one_with_twice_the_batch_sees():
    whole = keys(5, length=11, batch_size=6, seed=2)
    halves = [keys(5, length=11, batch_size=3, seed=2, rank=rank, world_size=2) for rank in range(2)]
    assert whole == [first + second for first, second in zip(*halves, strict=True)]


class Numbers(Dataset):
    def __getitem__(self, keys):
        return {"number": torch.tensor([index for index, _ in keys])}


def test_a_samples_seed_depends_on_its_draw_alone():
    data = SeededBatches(Numbers(), seed=5)
    together = data[[(0, 10), (1, 11)]]
    alone = data[[(9, 11)]]
    assert together["seeds"][1] == alone["seeds"][0] != together["seeds"][0]
    assert together["number"].tolist() == [0, 1]
