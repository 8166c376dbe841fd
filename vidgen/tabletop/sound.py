"""The sound of a trajectory: modal synthesis of its contacts, rolling and sliding noise, and a small room.

A struck solid rings in its modes, each an exponentially decaying sinusoid; a contact is a short force pulse, the
shorter the harder both partners are (van den Doel, Kry & Pai, "FoleyAutomatic", SIGGRAPH 2001, sections 2-4). The
numbers are chosen so that an ear, or a small classifier, tells the materials apart; they are not measurements.
"""

from dataclasses import dataclass

import numpy as np

from .scene import HALF_SIZE_M, POSE_RATE_HZ, Body, Contact, Trajectory

PEAK = 0.9
"""No sample exceeds it."""


@dataclass(frozen=True)
class Resonance:
    """How a material, or a floor, answers a blow. T60: the time in which a mode falls by 60 dB."""

    lowest_hz: float
    """Frequency of the lowest mode; for materials that of a small ball."""
    t60_s: float
    """T60 of the lowest mode."""
    damping: float
    """A mode at r times the lowest frequency has a T60 of t60_s · r^-damping."""
    tilt: float
    """... and a gain of r^-tilt."""
    contact_s: float
    """Length of the force pulse against a rigid partner."""
    loudness_db: float
    """Materials: level of an impact, relative to the others. Floors: share in an impact, relative to the body."""
    noise_hz: tuple[float, float]
    """Materials: band of the rolling noise; sliding lies two octaves higher. Floors: factors on the band's edges."""


MATERIALS = {
    "metal": Resonance(780.0, 1.3, 0.35, 0.15, 0.00012, 0.0, (500.0, 2400.0)),
    "glass": Resonance(2300.0, 0.34, 0.45, 0.45, 0.00010, -1.0, (1200.0, 3600.0)),
    "wooden": Resonance(330.0, 0.13, 0.6, 0.75, 0.0005, -1.0, (180.0, 900.0)),
    "rubber": Resonance(125.0, 0.14, 0.8, 1.6, 0.0030, -3.0, (60.0, 320.0)),
}
FLOORS = {
    "wooden": Resonance(92.0, 0.30, 0.5, 0.5, 0.00030, -4.0, (0.7, 1.0)),
    "tiled": Resonance(1500.0, 0.035, 0.3, -0.1, 0.00012, -8.0, (1.0, 1.5)),
    "concrete": Resonance(70.0, 0.030, 0.2, 0.6, 0.00018, -12.0, (0.9, 1.1)),
}

SHAPE_MODES = {
    "ball": (1.0, 1.06, 1.37, 1.57, 2.04, 2.49, 3.03, 3.62, 4.35, 5.3),
    "cube": (1.0, 1.29, 1.72, 1.95, 2.31, 2.96, 3.40, 4.27, 5.10, 6.2),
    "cylinder": (1.0, 1.62, 2.76, 3.31, 4.12, 5.40, 5.93, 7.1, 8.0, 8.93),
}
"""Mode frequencies over the lowest. The cylinder's 1, 2.76, 5.40 and 8.93 are a free bar's bending modes."""
SHAPE_PITCH = {"ball": 1.0, "cube": 0.86, "cylinder": 0.72}
FLOOR_MODES = (1.0, 1.48, 2.13, 2.87, 3.9, 5.2)

REFLECTIONS = ((0.0041, 0.30), (0.0067, -0.22), (0.0103, 0.17), (0.0151, 0.13), (0.0197, -0.10), (0.0254, 0.07))
"""Early reflections of the room: delay in seconds, gain."""
TAIL_T60_S = 0.22
TAIL_GAIN = 0.012
FULL_IMPULSE_NS = 20.0
"""An impact of this impulse is 3 dB below the loudest there can be."""
BLOCK_SAMPLES = 256


def synthesise(
    trajectory: Trajectory, *, num_samples: int, sample_rate_hz: int = 24000, start_s: float = 0.0, seed: int = 0
) -> np.ndarray:
    """The sound of one stretch of a trajectory; an impact begins on the sample nearest to its ``time_s``.

    The same arguments give the same samples, and overlapping stretches agree. Nothing that happens after the
    stretch is heard in it; what rings from before is.

    Args:
        num_samples: length N.
        start_s: the trajectory's time at the first sample.
        seed: draws mode frequencies (within 3 %), where bodies are struck, and the noise.

    Returns:
        (N,) float32, at most ``PEAK`` in magnitude; exact zeros where nothing has sounded yet.
    """
    start = round(start_s * sample_rate_hz)
    end = start + num_samples
    if end <= 0:
        return np.zeros(num_samples, np.float32)
    dry = _impacts(trajectory, end, sample_rate_hz, np.random.default_rng((seed, 0)))
    dry += _friction(trajectory, end, sample_rate_hz, np.random.default_rng((seed, 1)))
    sounding = np.flatnonzero(dry)
    if not len(sounding):
        return np.zeros(num_samples, np.float32)
    wet = _convolve(dry.astype(np.float32), _room(sample_rate_hz).astype(np.float32))[:end]
    wet[: sounding[0]] = 0.0  # the transform leaves rounding noise where there is silence
    wet = _limit(wet.astype(np.float64)).astype(np.float32)
    return wet[start:] if start >= 0 else np.concatenate([np.zeros(-start, np.float32), wet])


def _impacts(trajectory: Trajectory, num_samples: int, sample_rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """(num_samples,) all contacts, dry.

    Every mode is a complex number that turns and shrinks by ``pole`` a sample; a contact adds to it. Between two
    contacts the sum over modes is a matrix product, so the cost hardly depends on how many contacts there are.
    """
    sound = np.zeros(num_samples)
    banks = [_body_modes(body) for body in trajectory.bodies] + [_floor_modes(FLOORS[trajectory.floor])]
    owner = np.repeat(np.arange(len(banks)), [len(frequencies) for frequencies, _, _ in banks])
    frequencies, t60_s, gains = (np.concatenate(part) for part in zip(*banks, strict=True))
    frequencies = frequencies * (1 + rng.uniform(-0.02, 0.02, len(banks))[owner] + rng.uniform(-0.01, 0.01, len(owner)))
    gains = np.where(frequencies < 0.45 * sample_rate_hz, gains, 0.0)
    log_pole = (-np.log(1000.0) / t60_s + 2j * np.pi * frequencies) / sample_rate_hz
    steps = np.exp(np.outer(log_pole, np.arange(BLOCK_SAMPLES)))  # (modes, block)

    strokes = []
    for contact in sorted(trajectory.contacts, key=lambda contact: contact.time_s):
        struck = rng.uniform(0.6, 1.4, len(owner))  # where a body is hit decides how strongly each mode answers
        first = round(contact.time_s * sample_rate_hz)
        if first < num_samples and contact.impulse_ns > 0:
            share = _shares(trajectory, contact)[owner]
            attack, ringing = _stroke(contact, trajectory, gains * struck * share, log_pole, steps, sample_rate_hz)
            part = attack[max(0, -first) : num_samples - first]
            sound[max(0, first) : max(0, first) + len(part)] += part
            strokes.append((first + len(attack), ringing))

    strokes.sort(key=lambda stroke: stroke[0])
    if not strokes:
        return sound
    kernel = np.concatenate([steps.real, -steps.imag]).astype(np.float32)
    modes, now = np.zeros(len(owner), complex), strokes[0][0]
    for (begin, ringing), until in zip(strokes, [begin for begin, _ in strokes[1:]] + [num_samples], strict=True):
        modes = modes * np.exp(log_pole * (begin - now)) + ringing
        now = begin
        length = min(until, num_samples) - begin
        if length > 0:
            turned = modes * np.exp(np.outer(np.arange(0, length, BLOCK_SAMPLES), log_pole))
            ring = np.concatenate([turned.real, turned.imag], 1).astype(np.float32) @ kernel
            part = ring.ravel()[max(0, -begin) : length]
            sound[max(0, begin) : max(0, begin) + len(part)] += part
    return sound


def _stroke(
    contact: Contact,
    trajectory: Trajectory,
    gains: np.ndarray,
    log_pole: np.ndarray,
    steps: np.ndarray,
    sample_rate_hz: int,
) -> tuple[np.ndarray, np.ndarray]:
    """One contact: its sound while the force lasts (L,), and the modes' complex amplitudes right after it."""
    partner = MATERIALS[trajectory.bodies[contact.other].material] if contact.other >= 0 else FLOORS[trajectory.floor]
    material = MATERIALS[trajectory.bodies[contact.body].material]
    contact_s = np.hypot(material.contact_s, partner.contact_s)  # springs in series: squared times add up
    length = max(2, round(contact_s * sample_rate_hz))
    force = 1 - np.cos(2 * np.pi * (np.arange(length) + 0.5) / length)
    force /= force.sum()
    rising = np.exp(np.outer(np.arange(length + 2), log_pole))  # (time, modes)
    attack = np.convolve((rising @ gains).imag, force)[1 : length + 1]
    attack += 0.3 * np.abs(gains).sum() * np.diff(force, append=0.0) / np.sqrt(length)  # the bodies' recoil
    ringing = -1j * gains * (force[::-1] @ rising[2:])
    loudest = max(np.abs(attack).max(), np.abs((ringing @ steps).real).max())
    level = _level(contact, trajectory) / loudest
    return level * attack, level * ringing


def _level(contact: Contact, trajectory: Trajectory) -> float:
    """Peak of an impact, the range of impulses compressed: near -3 dBFS for hard blows, -20 dBFS for light ones."""
    struck = [trajectory.bodies[i].material for i in (contact.body, contact.other) if i >= 0]
    loudness_db = max(MATERIALS[material].loudness_db for material in struck)
    return 0.7 * 10 ** (loudness_db / 20) * np.sqrt(contact.impulse_ns / (contact.impulse_ns + FULL_IMPULSE_NS))


def _shares(trajectory: Trajectory, contact: Contact) -> np.ndarray:
    """How strongly a contact excites each bank: the bodies, then the floor."""
    shares = np.zeros(len(trajectory.bodies) + 1)
    shares[contact.body] = 1.0
    floor = 10 ** (FLOORS[trajectory.floor].loudness_db / 20)
    if contact.other >= 0:
        shares[contact.other] = 1.0
        shares[-1] = 0.2 * floor  # it stands on the floor, or hangs in the air: little gets through
    else:
        shares[-1] = floor
    return shares


def _body_modes(body: Body) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frequencies in Hz, T60 in seconds and gains (the loudest 1) of a body's modes."""
    scale = HALF_SIZE_M["small"] / body.half_size_m
    return _modes(MATERIALS[body.material], SHAPE_MODES[body.shape], SHAPE_PITCH[body.shape] * scale)


def _floor_modes(floor: Resonance) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return _modes(floor, FLOOR_MODES, 1.0)


def _modes(resonance: Resonance, ratios: tuple[float, ...], pitch: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ratio = np.asarray(ratios)
    gains = ratio**-resonance.tilt
    return resonance.lowest_hz * pitch * ratio, resonance.t60_s * ratio**-resonance.damping, gains / gains.max()


def _friction(trajectory: Trajectory, num_samples: int, sample_rate_hz: int, rng: np.random.Generator) -> np.ndarray:
    """(num_samples,) rolling and sliding: band-limited noise that follows the speeds, dry."""
    sound = np.zeros(num_samples)
    num_poses = len(trajectory.positions_m)
    poses_s = np.arange(num_poses + 1) / POSE_RATE_HZ
    # The noise is as long as the whole motion, not as the stretch asked for, so that stretches agree.
    length = min(num_samples, round(poses_s[-1] * sample_rate_hz))
    size = _fast_length(round(poses_s[-1] * sample_rate_hz))
    sample_s = np.arange(length) / sample_rate_hz
    for speeds, octaves in ((trajectory.rolling, 0), (trajectory.sliding, 2)):
        for body, speed_m_s in zip(trajectory.bodies, speeds.T, strict=False):
            if not speed_m_s.any():
                continue
            # Louder with the root of the speed: about -38 dBFS at 0.15 m/s, -27 dBFS at 2 m/s.
            gain = 10 ** (-31 / 20) * np.sqrt(np.clip(np.append(speed_m_s, 0.0), 0.0, 2.0))
            envelope = np.interp(sample_s, poses_s, gain)
            if octaves == 0:  # a rolling body is never quite round: its noise swells once a turn
                turns_rad = np.cumsum(np.append(0.0, speed_m_s)) / (POSE_RATE_HZ * body.half_size_m)
                envelope *= 1 + 0.4 * np.sin(np.interp(sample_s, poses_s, turns_rad))
            low_hz, high_hz = np.multiply(MATERIALS[body.material].noise_hz, FLOORS[trajectory.floor].noise_hz)
            noise = _noise(body, low_hz * 2**octaves, high_hz * 2**octaves, size, sample_rate_hz, rng)
            sound[:length] += envelope * noise[:length]
    return sound


def _noise(
    body: Body, low_hz: float, high_hz: float, size: int, sample_rate_hz: int, rng: np.random.Generator
) -> np.ndarray:
    """(size,) Gaussian noise of unit variance in a band with slopes of 12 dB an octave, coloured by a body's modes."""
    frequencies = np.fft.rfftfreq(size, 1 / sample_rate_hz)[1:]
    power = 1 / ((1 + np.square(np.square(low_hz / frequencies))) * (1 + np.square(np.square(frequencies / high_hz))))
    resonant = np.full(len(frequencies), 0.05)
    for mode_hz, t60_s, gain in zip(*_body_modes(body), strict=True):
        width_hz = 1.1 / t60_s + 0.03 * mode_hz  # a mode's own half width, and some for the changing point of contact
        resonant += gain**2 / (1 + np.square((frequencies - mode_hz) / width_hz))
    power *= resonant
    response = np.zeros(size // 2 + 1)
    response[1:] = np.sqrt(power) * (size / (2 * np.sqrt(power.sum())))
    spectrum = rng.standard_normal((len(response), 2)) * response[:, None]
    return np.fft.irfft(spectrum.view(complex)[:, 0], size)


def _room(sample_rate_hz: int) -> np.ndarray:
    """(taps,) impulse response: the direct sound at tap 0, early reflections, an exponentially decaying tail."""
    rng = np.random.default_rng(7)
    first = round(REFLECTIONS[1][0] * sample_rate_hz)
    time_s = np.arange(round(0.8 * TAIL_T60_S * sample_rate_hz)) / sample_rate_hz
    response = TAIL_GAIN * rng.standard_normal(len(time_s)) * 10 ** (-3 * time_s / TAIL_T60_S)
    response[:first] = 0.0
    response[0] = 1.0
    for delay_s, gain in REFLECTIONS:
        response[round(delay_s * sample_rate_hz)] += gain
    return response


def _convolve(signal: np.ndarray, response: np.ndarray) -> np.ndarray:
    size = _fast_length(len(signal) + len(response) - 1)
    return np.fft.irfft(np.fft.rfft(signal, size) * np.fft.rfft(response, size), size)


def _limit(sound: np.ndarray) -> np.ndarray:
    """Linear up to 0.6, then bent so that ``PEAK`` is never passed; sample by sample, so it knows no past."""
    knee = 0.6
    above = np.maximum(np.abs(sound) - knee, 0.0)
    return np.clip(sound, -knee, knee) + np.sign(sound) * (PEAK - knee) * np.tanh(above / (PEAK - knee))


def _fast_length(length: int) -> int:
    """The smallest 2^a · 3^b · 5^c, b and c at most 1, that is no shorter: a quick size for a transform."""
    return min(odd << max(0, -(-length // odd) - 1).bit_length() for odd in (1, 3, 5, 15))
