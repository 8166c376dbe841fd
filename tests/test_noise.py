import pytest
import torch

from vidgen.noise import normal, seeded_normal, seeded_uniform


def reference_bits(state, count):
    """SplitMix64 on Python's own integers, as published."""
    mask, drawn = (1 << 64) - 1, []

    def mixed(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        drawn.append(mixed(state))
    return drawn, mixed


@pytest.mark.parametrize(("seed", "stream"), [(0, 0), (1, 2), (2**63 - 1, 3)])
def test_bits_are_those_of_the_published_generator(seed, stream):
    _, mixed = reference_bits(0, 0)
    start = mixed((mixed(seed) + 2 * stream + 1) & ((1 << 64) - 1))
    bits, _ = reference_bits(start, 5)
    first, second = seeded_uniform([seed], 5, stream=stream)
    assert first[0].tolist() == [((word >> 32) + 0.5) / 2**32 for word in bits]
    assert second[0].tolist() == [((word & 0xFFFFFFFF) + 0.5) / 2**32 for word in bits]


def test_the_generator_itself_gives_the_words_that_others_publish_for_it():
    assert reference_bits(0, 2)[0] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_noise_is_standard_normal_and_independent_across_samples_streams_and_places():
    noise = torch.cat([seeded_normal(range(64), (4001,), stream=stream) for stream in (0, 1)]).double()
    assert noise.mean() == pytest.approx(0, abs=0.01)
    assert noise.std() == pytest.approx(1, abs=0.01)
    assert (noise**4).mean() == pytest.approx(3, abs=0.1)
    assert ((noise.abs() > 3).double().mean()) == pytest.approx(0.0027, abs=0.0004)
    correlations = torch.corrcoef(noise) - torch.eye(128)
    assert correlations.abs().max() < 5.5 / 4001**0.5
    for lag in (1, 2, 2001):
        assert (noise[:, lag:] * noise[:, :-lag]).mean() == pytest.approx(0, abs=0.01)


def test_a_sample_is_the_same_in_any_batch_and_whatever_chance_is_given():
    whole = seeded_normal([3, 2**62, 5], (7, 3))
    assert torch.equal(whole[1:2], seeded_normal([2**62], (7, 3)))
    assert torch.equal(normal((3, 7, 3), [3, 2**62, 5], torch.device("cpu")), whole)
    assert not torch.equal(normal((3, 7, 3), [3, 2**62, 5], torch.device("cpu"), stream=1), whole)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    drawn = normal((2, 5), generators, torch.device("cpu"))
    assert torch.equal(drawn[1], torch.randn(5, generator=torch.Generator().manual_seed(4)))
