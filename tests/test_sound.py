"""Sound: on time, in bounds, repeatable, silent when nothing happens, and different for every material and floor."""

from dataclasses import replace

import numpy as np
import pytest

from vidgen.tabletop.scene import FLOORS, MATERIALS, POSE_RATE_HZ, SHAPES, Body, Contact, Trajectory
from vidgen.tabletop.sound import PEAK, synthesise

RATE_HZ = 24000
NUM_SAMPLES = 49000


def trajectory(*bodies: Body, floor: str = "concrete", contacts: tuple[Contact, ...] = (), **speeds) -> Trajectory:
    num_poses = 1 + int(NUM_SAMPLES / RATE_HZ * POSE_RATE_HZ)
    shape = (num_poses, len(bodies))
    filled = {name: np.full(shape, speed, np.float32) for name, speed in {"rolling": 0, "sliding": 0, **speeds}.items()}
    positions, rotations = np.zeros((*shape, 3), np.float32), np.zeros((*shape, 4), np.float32)
    return Trajectory(tuple(bodies), floor, "drops", "", positions, rotations, contacts, **filled)


def blow(material: str, floor: str = "concrete", shape: str = "ball", size: str = "small", impulse_ns: float = 20.0):
    body, contact = Body(shape, material, size), Contact(0.1, 0, -1, impulse_ns)
    return synthesise(trajectory(body, floor=floor, contacts=(contact,)), num_samples=NUM_SAMPLES)


def level_db(sound: np.ndarray) -> float:
    return 10 * np.log10(np.mean(np.square(sound, dtype=np.float64)) + 1e-20)


def centroid_hz(sound: np.ndarray) -> float:
    power = np.square(np.abs(np.fft.rfft(sound)))
    return float(power @ np.fft.rfftfreq(len(sound), 1 / RATE_HZ) / power.sum())


def ring_s(sound: np.ndarray) -> float:
    """Time until no more than a ten-thousandth of the energy is left."""
    left = np.cumsum(np.square(sound[::-1], dtype=np.float64))[::-1]
    return float(np.argmax(left < 1e-4 * left[0])) / RATE_HZ


def test_nothing_happens_nothing_sounds():
    sound = synthesise(trajectory(Body("ball", "metal", "big")), num_samples=1000)
    assert sound.dtype == np.float32
    assert sound.shape == (1000,)
    assert not sound.any()


@pytest.mark.parametrize("material", MATERIALS)
@pytest.mark.parametrize("floor", FLOORS)
def test_an_impact_starts_on_its_sample(material, floor):
    for time_s in (0.0, 0.31234, 1.2):
        scene = trajectory(Body("cube", material, "big"), floor=floor, contacts=(Contact(time_s, 0, -1, 5.0),))
        sound = synthesise(scene, num_samples=NUM_SAMPLES)
        first = round(time_s * RATE_HZ)
        assert not sound[:first].any()
        assert abs(sound[first]) > 0
        # and is really there within 3 ms, not merely above zero
        assert np.abs(sound[first : first + 72]).max() > 0.3 * np.abs(sound).max()


def test_level_grows_with_the_impulse_within_bounds():
    for material in MATERIALS:
        peaks = [np.abs(blow(material, impulse_ns=impulse)).max() for impulse in (0.5, 2.0, 10.0, 50.0, 500.0)]
        assert all(np.diff(peaks) > 0)
        assert peaks[0] > 10 ** (-24 / 20)
        assert peaks[-1] < 10 ** (-2 / 20)


def test_it_never_clips():
    rng = np.random.default_rng(0)
    bodies = (Body("ball", "metal", "big"), Body("cylinder", "glass", "small"), Body("cube", "wooden", "big"))
    contacts = tuple(Contact(float(t), i % 3, (i + 1) % 3, 1e4) for i, t in enumerate(rng.uniform(0, 0.2, 200)))
    sound = synthesise(trajectory(*bodies, contacts=contacts, rolling=30.0), num_samples=NUM_SAMPLES)
    assert 0.6 < np.abs(sound).max() <= PEAK
    assert np.isfinite(sound).all()


def test_same_seed_same_sound_other_seed_nearly_the_same_pitch():
    body = Body("cylinder", "metal", "small")
    scene = trajectory(body, contacts=(Contact(0.0, 0, -1, 20.0),), sliding=0.5)
    assert np.array_equal(*(synthesise(scene, num_samples=3000, seed=3) for _ in range(2)))
    assert not np.array_equal(synthesise(scene, num_samples=3000), synthesise(scene, num_samples=3000, seed=1))
    struck = replace(scene, sliding=np.zeros_like(scene.sliding))
    lowest_hz = []
    for seed in range(8):
        spectrum = np.abs(np.fft.rfft(synthesise(struck, num_samples=RATE_HZ, seed=seed)))
        lowest_hz.append(400 + int(np.argmax(spectrum[400:750])))
    assert 1.0 < max(lowest_hz) / min(lowest_hz) < 1.062


def test_stretches_agree_with_the_whole():
    bodies = (Body("ball", "metal", "small"), Body("cube", "wooden", "big"))
    contacts = tuple(Contact(time_s, 0, other, 10.0) for time_s, other in ((0.2, -1), (0.7, 1), (0.7004, -1), (1.1, 1)))
    scene = trajectory(*bodies, floor="wooden", contacts=contacts, rolling=0.8, sliding=0.2)
    whole = synthesise(scene, num_samples=NUM_SAMPLES)
    for start_s, length in ((0.0, 5000), (0.5, 10000), (0.7002, 9000), (1.5, 12000)):
        start = round(start_s * RATE_HZ)
        part = synthesise(scene, num_samples=length, start_s=start_s)
        np.testing.assert_allclose(part, whole[start : start + length], atol=1e-5)
    early = synthesise(scene, num_samples=NUM_SAMPLES, start_s=-0.25)
    np.testing.assert_allclose(early[6000:], whole[:-6000], atol=1e-5)
    assert not early[:6000].any()
    assert synthesise(scene, num_samples=480, start_s=-1.0).shape == (480,)


def test_contacts_add_up():
    """Overlapping blows are the sum of the single ones (as long as the limiter has nothing to do)."""
    body = Body("cube", "metal", "small")
    blows = (Contact(0.2, 0, -1, 0.5), Contact(0.201, 0, -1, 0.5), Contact(0.3, 0, -1, 1.0))
    together = synthesise(trajectory(body, contacts=blows), num_samples=20000)
    alone = []
    for index in range(len(blows)):
        silenced = tuple(
            replace(contact, impulse_ns=contact.impulse_ns if other == index else 0.0)
            for other, contact in enumerate(blows)
        )
        alone.append(synthesise(trajectory(body, contacts=silenced), num_samples=20000))
    np.testing.assert_allclose(together, sum(alone), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("floor", FLOORS)
def test_materials_differ_as_they_should(shape, floor):
    sounds = {material: blow(material, floor, shape) for material in MATERIALS}
    bright = {material: centroid_hz(sound) for material, sound in sounds.items()}
    rings = {material: ring_s(sound[2400:]) for material, sound in sounds.items()}
    assert rings["metal"] > 2 * max(rings["glass"], rings["wooden"], rings["rubber"])
    assert bright["glass"] > 1.5 * bright["wooden"]
    assert bright["metal"] > 1.5 * bright["wooden"]
    assert bright["wooden"] > 1.2 * bright["rubber"]


@pytest.mark.parametrize("material", MATERIALS)
def test_floors_and_sizes_differ(material):
    below_hz = {}
    for floor in FLOORS:
        power = np.square(np.abs(np.fft.rfft(blow(material, floor)[2400 + 1200 :])))  # after 50 ms
        below_hz[floor] = power[: round(350 * NUM_SAMPLES / RATE_HZ)].sum()
    assert below_hz["wooden"] > 2 * max(below_hz["tiled"], below_hz["concrete"])  # planks boom
    if material != "rubber":  # too soft to click
        highs_db = {floor: level_db(np.diff(blow(material, floor)[2400:3100], 2)) for floor in FLOORS}
        assert highs_db["tiled"] > highs_db["concrete"] - 3
    assert centroid_hz(blow(material, size="small")) > 1.15 * centroid_hz(blow(material, size="big"))


@pytest.mark.parametrize("kind", ["rolling", "sliding"])
@pytest.mark.parametrize("material", MATERIALS)
def test_friction_is_audible_but_quiet(kind, material):
    body = Body("ball", material, "small")
    slow, fast = (
        level_db(synthesise(trajectory(body, **{kind: speed}), num_samples=NUM_SAMPLES)) for speed in (0.3, 1.5)
    )
    assert -38 < slow < fast - 3
    assert fast < -24


def test_sliding_is_brighter_than_rolling_and_stops_with_the_motion():
    body = Body("cube", "wooden", "small")
    slid, rolled = (synthesise(trajectory(body, **{kind: 0.5}), num_samples=24000) for kind in ("sliding", "rolling"))
    assert centroid_hz(slid) > 2 * centroid_hz(rolled)
    scene = trajectory(body, sliding=0.5)
    scene.sliding[24:] = 0.0
    sound = synthesise(scene, num_samples=NUM_SAMPLES)
    assert level_db(sound[:24000]) > -40
    assert level_db(sound[32000:]) < -110


@pytest.mark.parametrize("rate_hz", [8000, 16000, 44100, 48000])
def test_other_sample_rates(rate_hz):
    scene = trajectory(Body("ball", "glass", "small"), contacts=(Contact(0.5, 0, -1, 10.0),), rolling=0.5)
    scene.rolling[:20] = 0.0
    sound = synthesise(scene, num_samples=rate_hz, sample_rate_hz=rate_hz)
    assert np.flatnonzero(sound)[0] == round(0.5 * rate_hz)
    assert 0.05 < np.abs(sound).max() <= PEAK


def test_empty_and_short_requests():
    scene = trajectory(Body("ball", "rubber", "small"), contacts=(Contact(0.5, 0, -1, 10.0),))
    assert synthesise(scene, num_samples=0).shape == (0,)
    assert synthesise(scene, num_samples=0, start_s=1.0).shape == (0,)
    assert synthesise(scene, num_samples=12010).any()  # ends within the blow
    assert not synthesise(scene, num_samples=11999).any()
    assert synthesise(scene, num_samples=10, start_s=0.501).any()  # begins within it
    assert synthesise(scene, num_samples=4000, start_s=10.0).shape == (4000,)
