"""Onsets: found where they were put, in noise, over ringing, before and after shifting; matching is optimal."""

from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from vidgen.audio_sync.onsets import match_onsets, offset_s, onset_times_s
from vidgen.tabletop.scene import FLOORS, MATERIALS, Body, Contact, Trajectory
from vidgen.tabletop.sound import synthesise

RATE_HZ = 24000
NUM_SAMPLES = 49000


def rings(times_s, frequency_hz, t60_s, rate_hz=RATE_HZ, gains=None, num_samples=NUM_SAMPLES):
    """Decaying sinusoids that start at known times."""
    sound = np.zeros(num_samples)
    for time_s, gain in zip(times_s, gains or [0.5] * len(times_s), strict=True):
        first = round(time_s * rate_hz)
        after_s = np.arange(num_samples - first) / rate_hz
        sound[first:] += gain * np.sin(2 * np.pi * frequency_hz * after_s) * 10 ** (-3 * after_s / t60_s)
    return sound


def bouncing(material: str, floor: str, shape: str = "ball") -> Trajectory:
    times_s, impulses_ns = (0.25, 0.75, 1.1, 1.35), (30.0, 18.0, 10.0, 6.0)
    contacts = tuple(Contact(time_s, 0, -1, impulse) for time_s, impulse in zip(times_s, impulses_ns, strict=True))
    still = np.zeros((50, 1), np.float32)
    positions, rotations = np.zeros((50, 1, 3), np.float32), np.zeros((50, 1, 4), np.float32)
    body = Body(shape, material, "small")
    return Trajectory((body,), floor, "drops", "", positions, rotations, contacts, still, still)


def assert_found(found, wanted, tolerance_s=0.005):
    assert len(found) == len(wanted), found
    np.testing.assert_allclose(found, wanted, atol=tolerance_s)


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.03])
def test_clicks_in_noise(noise):
    times_s = [0.13, 0.5, 0.58, 1.25, 1.9]
    sound = noise * np.random.default_rng(0).standard_normal(NUM_SAMPLES)
    sound[[round(time_s * RATE_HZ) for time_s in times_s]] += 0.8
    assert_found(onset_times_s(sound, RATE_HZ), times_s, 0.0011)


@pytest.mark.parametrize("frequency_hz", [150.0, 900.0, 4000.0])
@pytest.mark.parametrize("t60_s", [0.1, 1.5])
def test_decaying_sinusoids(frequency_hz, t60_s):
    times_s = [0.2, 0.6, 1.3]
    assert_found(onset_times_s(rings(times_s, frequency_hz, t60_s), RATE_HZ), times_s)


def test_a_quiet_blow_over_a_loud_ring():
    sound = rings([0.2], 800.0, 3.0) + rings([0.9], 2500.0, 0.1, gains=[0.08])
    assert_found(onset_times_s(sound, RATE_HZ), [0.2, 0.9])


def test_beating_tremolo_and_steady_noise_are_no_onsets():
    time_s = np.arange(NUM_SAMPLES) / RATE_HZ
    beating = np.sin(2 * np.pi * 500 * time_s) + np.sin(2 * np.pi * 507 * time_s)
    assert len(onset_times_s(0.3 * beating, RATE_HZ)) == 0
    swelling = np.sin(2 * np.pi * 300 * time_s) * (1 + 0.5 * np.sin(2 * np.pi * 4 * time_s))
    assert len(onset_times_s(0.3 * swelling, RATE_HZ)) == 0
    found = [len(onset_times_s(np.random.default_rng(s).standard_normal(NUM_SAMPLES), RATE_HZ)) for s in range(5)]
    assert max(found) == 0


def test_silence_and_degenerate_input():
    for length in (0, 1, 100, 5000):
        assert onset_times_s(np.zeros(length), RATE_HZ).shape == (0,)
        onset_times_s(np.random.default_rng(0).standard_normal(length), RATE_HZ)
    assert len(onset_times_s(np.full(20000, 0.3), RATE_HZ)) == 0


def test_level_channels_and_tensors_do_not_matter():
    sound = rings([0.3, 1.0], 1000.0, 0.2)
    found = onset_times_s(sound, RATE_HZ)
    np.testing.assert_array_equal(onset_times_s(0.01 * sound, RATE_HZ), found)
    np.testing.assert_array_equal(onset_times_s(np.stack([sound, sound]), RATE_HZ), found)
    np.testing.assert_array_equal(onset_times_s(torch.from_numpy(sound), RATE_HZ), found)


@pytest.mark.parametrize("rate_hz", [16000, 44100, 48000])
def test_other_sample_rates(rate_hz):
    sound = rings([0.3, 1.0], 1000.0, 0.3, rate_hz, num_samples=2 * rate_hz)
    assert_found(onset_times_s(sound, rate_hz), [0.3, 1.0])


def test_minimum_separation():
    sound = np.zeros(NUM_SAMPLES)
    sound[[12000, 12480, 14400]] = 0.3, 0.9, 0.5
    assert len(onset_times_s(sound, RATE_HZ, min_separation_s=0.05)) == 2
    assert len(onset_times_s(sound, RATE_HZ, min_separation_s=0.2)) == 1


def test_pre_echo_does_not_pull_the_onset_forward():
    times_s = [0.4, 1.2]
    sound = rings(times_s, 1500.0, 0.3)
    rng = np.random.default_rng(0)
    for time_s in times_s:
        first = round(time_s * RATE_HZ)
        sound[first - 480 : first] += 0.02 * np.linspace(0, 1, 480) * rng.standard_normal(480)  # 20 ms
    assert_found(onset_times_s(sound, RATE_HZ), times_s, 0.003)


@pytest.mark.parametrize("material", MATERIALS)
@pytest.mark.parametrize("floor", FLOORS)
def test_synthesised_contacts_are_found_within_5_ms(material, floor):
    for shape, noise in (("ball", 0.0), ("cylinder", 0.002)):
        scene = bouncing(material, floor, shape)
        hiss = noise * np.random.default_rng(1).standard_normal(NUM_SAMPLES)
        sound = synthesise(scene, num_samples=NUM_SAMPLES) + hiss
        assert_found(onset_times_s(sound, RATE_HZ), [contact.time_s for contact in scene.contacts])


@pytest.mark.parametrize("shift_s", [-0.2, -0.045, 0.02, 0.08])
def test_a_shifted_copy_is_found_shifted(shift_s):
    scene = bouncing("wooden", "concrete")
    sound = synthesise(scene, num_samples=NUM_SAMPLES)
    seen_s = [contact.time_s for contact in scene.contacts]
    in_time, moved = onset_times_s(sound, RATE_HZ), onset_times_s(np.roll(sound, round(shift_s * RATE_HZ)), RATE_HZ)
    assert abs(offset_s(seen_s, in_time)) < 0.003
    assert abs(offset_s(in_time, moved, 0.24) - shift_s) < 0.003


def test_matching_by_hand():
    match = match_onsets([1.0, 2.0, 3.0], [3.03, 0.99, 5.0], 0.05)
    np.testing.assert_allclose(match.offsets_s, [-0.01, 0.03])
    np.testing.assert_allclose(match.missing_s, [2.0])
    np.testing.assert_allclose(match.surplus_s, [5.0])
    # The nearest pair (0.10, 0.09) must give way, so that both moments find a partner.
    np.testing.assert_allclose(match_onsets([0.10, 0.14], [0.06, 0.11], 0.045).offsets_s, [-0.04, -0.03])
    assert offset_s([1.0], [2.0]) is None
    empty = match_onsets([], [0.5], 0.1)
    assert len(empty.offsets_s) == len(empty.missing_s) == 0
    assert empty.surplus_s.tolist() == [0.5]


def test_matching_is_optimal():
    rng = np.random.default_rng(0)

    def brute_force(seen, heard, tolerance_s):
        best = (0, 0.0)
        for count in range(1, min(len(seen), len(heard)) + 1):
            for rows in combinations(range(len(seen)), count):
                for columns in permutations(range(len(heard)), count):
                    distances = [abs(heard[j] - seen[i]) for i, j in zip(rows, columns, strict=True)]
                    if max(distances) <= tolerance_s:
                        best = min(best, (-count, sum(distances)))
        return best

    for _ in range(60):
        seen, heard = rng.uniform(0, 1, rng.integers(0, 5)), rng.uniform(0, 1, rng.integers(0, 5))
        match = match_onsets(seen, heard, 0.2)
        count, total = brute_force(seen, heard, 0.2)
        assert len(match.offsets_s) == -count
        assert np.abs(match.offsets_s).sum() == pytest.approx(total)
        assert len(match.missing_s) + len(match.offsets_s) == len(seen)
        assert len(match.surplus_s) + len(match.offsets_s) == len(heard)
