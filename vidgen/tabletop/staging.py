"""How each action begins, and what must have happened in the end for a scene to be called by the action's name.

World frame as in ``scene``. A scene whose body comes from the right is staged as one from the left and mirrored.
"""

from dataclasses import dataclass, field

import numpy as np

from ..errors import InputError
from .scene import ACTIONS, FLOORS, MATERIALS, POSE_RATE_HZ, SHAPES, SIZES, Body, Trajectory

GRAVITY_M_S2 = 9.81

DENSITY_KG_M3 = {"metal": 120.0, "wooden": 50.0, "glass": 80.0, "rubber": 60.0}
"""Far below the solids' own: the bodies are hollow, and close enough that light ones can move heavy ones."""
RESTITUTION = {"metal": 0.5, "wooden": 0.35, "glass": 0.55, "rubber": 0.82}
FRICTION = {"metal": 0.3, "wooden": 0.4, "glass": 0.25, "rubber": 0.7}
FLOOR_RESTITUTION = {"wooden": 0.9, "tiled": 1.0, "concrete": 0.95}
FLOOR_FRICTION = {"wooden": 0.9, "tiled": 0.8, "concrete": 1.1}

MIXTURE = {
    "drops": (0.30, 1),
    "is tossed": (0.17, 1),
    "rolls": (0.17, 1),
    "slides": (0.12, 1),
    "rests": (0.04, 1),
    "hits": (0.15, 2),
    "knocks": (0.05, 3),
}
"""Share of scenes and number of bodies, by action."""

FIRST_SHAPES = {"rolls": ("ball", "cylinder"), "slides": ("cube", "cylinder")}
"""Shapes that body 0 may have, where not all of them can do it."""

VIEW_X_M, VIEW_Y_M, VIEW_Z_M = 1.25, 0.7, 1.95
MIN_VISIBLE_SHARE = 0.7
MOVING = ("is tossed", "rolls", "slides", "hits", "knocks")
"""Actions in which body 0 comes from a side."""


@dataclass
class Start:
    """A body's first state in the world frame: centre (m), quaternion (w, x, y, z), velocity (m/s), spin (rad/s)."""

    position: np.ndarray
    rotation: np.ndarray
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(3))
    spin: np.ndarray = field(default_factory=lambda: np.zeros(3))


@dataclass
class Stage:
    starts: list[Start]
    held_s: float = 0.0
    """All bodies stand still in the air this long before they are let go."""
    friction_scale: float = 1.0
    rolling_loss_per_s: float = 0.5
    """Share of its speed that a rolling body loses in a second."""


def draw_cast(
    rng: np.random.Generator, action: str | None, shape: str | None, num_bodies: int | None
) -> tuple[str, str | None]:
    """An action of the mixture that the constraints allow, and the shape of body 0 (None: any).

    Raises:
        InputError: an unknown name, or constraints that no action meets together.
    """
    for name, value, known in (("action", action, ACTIONS), ("shape", shape, SHAPES)):
        if value is not None and value not in known:
            raise InputError(f"unknown {name} {value!r}: give one of {', '.join(known)}")
    possible = [
        (name, share)
        for name, (share, count) in MIXTURE.items()
        if action in (None, name) and num_bodies in (None, count) and shape in (None, *FIRST_SHAPES.get(name, SHAPES))
    ]
    if not possible:
        raise InputError(f"no scene has action {action}, shape {shape} and {num_bodies} bodies together")
    shares = np.array([share for _, share in possible])
    return possible[rng.choice(len(possible), p=shares / shares.sum())][0], shape


def draw_bodies(rng: np.random.Generator, action: str, shape: str | None) -> tuple[Body, ...]:
    first = shape or str(rng.choice(FIRST_SHAPES.get(action, SHAPES)))
    shapes = [first] + [str(rng.choice(SHAPES)) for _ in range(MIXTURE[action][1] - 1)]
    sizes = [str(rng.choice(SIZES)) for _ in shapes]
    if action == "knocks":
        shapes[2] = str(rng.choice(("cube", "cylinder")))
        if sizes[1] == "big":  # a big body does not stand well on a small one, and is too high to be hit on a big one
            sizes[1], sizes[2] = "small", "big"
    return tuple(Body(s, str(rng.choice(MATERIALS)), size) for s, size in zip(shapes, sizes, strict=True))


def draw_floor(rng: np.random.Generator) -> str:
    return str(rng.choice(FLOORS))


def stage(rng: np.random.Generator, action: str, bodies: tuple[Body, ...], floor: str) -> Stage:
    """A beginning from which ``action`` is likely to follow."""
    half = bodies[0].half_size_m
    y = rng.uniform(-0.35, 0.35)
    if action == "rests":
        return Stage([_standing(rng, bodies[0], rng.uniform(-0.8, 0.8), y)])
    if action == "drops":
        height_m = rng.uniform(0.6, 1.6)
        position = np.array([rng.uniform(-0.75, 0.75), y, half + height_m])
        drift = np.array([rng.uniform(-0.3, 0.3), rng.uniform(-0.1, 0.1), 0.0])
        held_s = rng.uniform(0, 0.35) if rng.random() < 0.5 else 0.0
        return Stage([Start(position, _attitude(rng, bodies[0]), drift * (held_s == 0.0))], held_s=held_s)
    if action == "is tossed":
        position = np.array([rng.uniform(-1.5, -1.0), y, half + rng.uniform(0.3, 1.2)])
        velocity = np.array([rng.uniform(0.8, 2.0), rng.uniform(-0.15, 0.15), rng.uniform(-0.2, 2.6)])
        toss = Start(position, _attitude(rng, bodies[0]), velocity, rng.uniform(-3, 3, 3))
        return Stage([toss], rolling_loss_per_s=rng.uniform(0.3, 1.2))
    if action == "knocks":
        return _knock(rng, bodies)
    friction_scale = rng.uniform(0.5, 0.8)
    rolling_loss_per_s = rng.uniform(0.05, 0.6)
    slides = action == "slides" or bodies[0].shape == "cube"
    if action == "hits" and bodies[0].shape == "cylinder":
        slides = rng.random() < 0.5
    x = rng.uniform(-1.5, -1.0)
    friction = FRICTION[bodies[0].material] * FLOOR_FRICTION[floor] * friction_scale
    slowing = friction * GRAVITY_M_S2 if slides else 0.0
    starts = []
    if action == "hits":
        target_x = rng.uniform(-0.2, 0.55)
        gap_m = target_x - bodies[1].half_size_m - half - x
        hit_s = rng.uniform(0.35, 1.0)
        speed = gap_m / hit_s + slowing * hit_s / 2
        y = rng.uniform(-0.3, 0.3)
        starts = [_standing(rng, bodies[1], target_x, y + rng.uniform(-0.08, 0.08))]
    elif slides:
        speed = float(np.sqrt(2 * slowing * (rng.uniform(-0.4, 0.8) - x)))
    else:
        speed = rng.uniform(0.6, 1.6)
    heading = rng.uniform(-0.08, 0.08)
    velocity = speed * np.array([np.cos(heading), np.sin(heading), 0.0])
    position = np.array([x, y, half])
    if slides:
        mover = Start(position, _about((0, 0, 1), rng.uniform(-0.4, 0.4)), velocity)
    else:
        spin = np.array([-velocity[1], velocity[0], 0.0]) / half
        mover = Start(position, _on_its_side(bodies[0], heading, rng), velocity, spin)
    return Stage([mover, *starts], friction_scale=friction_scale, rolling_loss_per_s=rolling_loss_per_s)


def _knock(rng: np.random.Generator, bodies: tuple[Body, ...]) -> Stage:
    flying, knocked, base = bodies
    x, y = rng.uniform(-0.4, 0.15), rng.uniform(-0.25, 0.25)
    bottom = _standing(rng, base, x, y)
    top = _standing(rng, knocked, x + rng.uniform(-0.03, 0.03), y + rng.uniform(-0.03, 0.03))
    if knocked.shape == "cylinder":
        top.rotation = _about((0, 0, 1), rng.uniform(-np.pi, np.pi))
    top.position[2] = 2 * base.half_size_m + knocked.half_size_m
    start = np.array([rng.uniform(-1.5, -1.05), y + rng.uniform(-0.05, 0.05), top.position[2] + rng.uniform(-0.3, 0.4)])
    aim = top.position + np.array([-knocked.half_size_m - flying.half_size_m, 0.0, rng.uniform(-0.05, 0.1)])
    aim[2] = max(aim[2], 2 * base.half_size_m + flying.half_size_m + 0.04)
    # A central blow passes on (1 + restitution) · m0 / (m0 + m1) of the speed: enough to fall off, and stay in view.
    bounce = (RESTITUTION[flying.material] + RESTITUTION[knocked.material]) / 2
    passed_on = (1 + bounce) / (1 + _mass_kg(knocked) / _mass_kg(flying))
    friction = 0.0 if knocked.shape == "ball" else (FRICTION[knocked.material] + FRICTION[base.material]) / 2
    to_edge = np.sqrt(2 * friction * GRAVITY_M_S2 * base.half_size_m)
    speed = (to_edge + rng.uniform(0.3, 1.0)) / passed_on
    hit_s = float(np.clip((aim[0] - start[0]) / speed, 0.22, 0.7))
    velocity = (aim - start) / hit_s + [0.0, 0.0, GRAVITY_M_S2 * hit_s / 2]
    start[2] = max(start[2], flying.half_size_m + 0.1)
    yaw = _about((0, 0, 1), rng.uniform(-0.5, 0.5))
    return Stage([Start(start, yaw, velocity, rng.uniform(-1, 1, 3)), top, bottom], rolling_loss_per_s=1.5)


def has_left(positions: np.ndarray) -> bool:
    """Whether a body, centres (N, 3), is too far away for the scene to be of use."""
    far = np.abs(positions[:, :2])
    return bool((far[0] > (2.5, 1.2)).any() or (far[1:] > (VIEW_X_M + 0.15, VIEW_Y_M + 0.1)).any())


def happened(action: str, bodies: tuple[Body, ...], trajectory: Trajectory, masses_kg: np.ndarray) -> bool:
    """Whether a scene staged from the left shows its action, in view, as its words will say."""
    positions, contacts = trajectory.positions_m, trajectory.contacts
    duration_s = (len(positions) - 1) / POSE_RATE_HZ
    first = positions[:, 0]
    inside = (np.abs(first[:, 0]) <= VIEW_X_M) & (first[:, 2] <= VIEW_Z_M) & (np.abs(first[:, 1]) <= VIEW_Y_M)
    if any(has_left(pose) for pose in positions):
        return False
    if action == "knocks":  # the knocking body may bounce back and leave
        if inside.mean() < 0.5:
            return False
    elif inside.mean() < MIN_VISIBLE_SHARE or not inside[-1] or np.abs(first[:, 1]).max() > VIEW_Y_M:
        return False
    travel_m = np.linalg.norm(first[-1] - first[0])
    if action == "rests":
        return bool(not contacts and travel_m < 1e-3)
    if action in ("drops", "is tossed"):
        return bool(contacts) and 0.25 <= contacts[0].time_s <= 0.9
    if action == "rolls":
        rolling = np.count_nonzero(trajectory.rolling) > 0.6 * len(positions)
        return bool(not contacts and travel_m > 0.7 and rolling)
    if action == "slides":
        return bool(not contacts and travel_m > 0.5 and not trajectory.rolling.any())
    met = [contact for contact in contacts if (contact.body, contact.other) == (0, 1)]
    if not met or contacts[0].time_s < met[0].time_s - 0.01 or met[0].impulse_ns < 0.4 * min(masses_kg[:2]):
        return False
    if action == "hits":
        return 0.3 <= met[0].time_s <= min(1.1, duration_s - 0.2)
    landed = [contact for contact in contacts if (contact.body, contact.other) == (1, -1)]
    base_stands = np.ptp(positions[:, 2, 2]) < 0.02
    falls_off = positions[-1, 1, 2] < 2 * bodies[2].half_size_m
    return bool(landed and landed[0].time_s <= duration_s - 0.2 and base_stands and falls_off)


def _mass_kg(body: Body) -> float:
    volume = {"ball": 4 / 3 * np.pi, "cube": 8.0, "cylinder": 2 * np.pi}[body.shape] * body.half_size_m**3
    return DENSITY_KG_M3[body.material] * volume


def _standing(rng: np.random.Generator, body: Body, x: float, y: float) -> Start:
    lies = body.shape == "cylinder" and rng.random() < 0.35
    rotation = _on_its_side(body, rng.uniform(-0.3, 0.3), rng) if lies else _about((0, 0, 1), rng.uniform(-0.6, 0.6))
    return Start(np.array([x, y, body.half_size_m]), rotation)


def _on_its_side(body: Body, heading: float, rng: np.random.Generator) -> np.ndarray:
    """A cylinder whose axis lies across ``heading``; a ball turned at random."""
    if body.shape == "ball":
        return _random_rotation(rng)
    return _times(_about((0, 0, 1), heading), _about((1, 0, 0), np.pi / 2))


def _attitude(rng: np.random.Generator, body: Body) -> np.ndarray:
    """In the air: half of the cubes and cylinders are level, the others tilted."""
    if body.shape == "ball":
        return _random_rotation(rng)
    yaw = _about((0, 0, 1), rng.uniform(-np.pi, np.pi))
    kind = rng.random()
    if kind < 0.45:
        return yaw
    if body.shape == "cylinder" and kind < 0.65:
        return _times(_about((0, 0, 1), rng.uniform(-0.5, 0.5)), _about((1, 0, 0), np.pi / 2))
    angle = rng.uniform(-np.pi, np.pi)
    return _times(_about((np.cos(angle), np.sin(angle), 0), rng.uniform(0.05, 0.7)), yaw)


def _about(axis: tuple[float, float, float], angle: float) -> np.ndarray:
    return np.array([np.cos(angle / 2), *(np.sin(angle / 2) * np.array(axis))])


def _random_rotation(rng: np.random.Generator) -> np.ndarray:
    q = rng.standard_normal(4)
    return q / np.linalg.norm(q)


def _times(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Quaternion product: the rotation b, then a."""
    vector = a[0] * b[1:] + b[0] * a[1:] + np.cross(a[1:], b[1:])
    return np.array([a[0] * b[0] - a[1:] @ b[1:], *vector])
