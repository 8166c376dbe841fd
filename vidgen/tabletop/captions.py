"""Words for a clip, always true of it: one canonical wording, or one drawn from synonyms, word orders and omissions.

Also how a clip is to look (``sample_look``) and the full truth about it as plain data (``attributes``, ``events``).
"""

import numpy as np

from ..errors import InputError
from .scene import CAMERAS, COLOURS, POSE_RATE_HZ, Look, Trajectory, is_held_out

SPLITS = ("train", "held_out", "any")
STATIC_SHARE = 0.75

SYNONYMS = {
    "ball": ("ball", "ball", "sphere"),
    "cube": ("cube", "cube", "box", "block"),
    "cylinder": ("cylinder", "cylinder", "drum"),
    "metal": ("metal", "metal", "steel", "metallic"),
    "wooden": ("wooden", "wooden", "wood"),
    "glass": ("glass",),
    "rubber": ("rubber",),
    "small": ("small", "small", "little", "tiny"),
    "big": ("big", "big", "large"),
    "tiled": ("tiled", "tiled", "tile"),
    "concrete": ("concrete",),
}
"""First the canonical word; the others may stand for it. A word that stands twice is twice as likely."""

STUFF = {"metal": ("metal", "steel"), "wooden": ("wood",), "glass": ("glass",), "rubber": ("rubber",)}
MIRROR_IMAGE = {"left": "right", "right": "left"}

ONTO_FLOOR = ("drops", "is tossed")
"""Actions that end on the floor; the others happen on it."""


def describe(trajectory: Trajectory, look: Look, rng: np.random.Generator | None = None) -> str:
    """A caption in lower case; canonical without ``rng``, such as ``a small red metal ball drops onto a wooden floor``.

    With ``rng``, size, material, floor or direction may be left out, never told wrongly, and the case may vary.
    """
    bodies = [_body(trajectory, look, index, rng) for index in range(len(trajectory.bodies))]
    side = _seen_side(trajectory.direction, look)
    whence = "" if _chance(rng, 0.08) else f" from the {side}{_pick(rng, ('', '', '', ' side'))}"
    verb, rest = _deed(trajectory, bodies, whence, rng)
    floor = _floor(trajectory, rng)
    if floor and _chance(rng, 0.12):
        scene = f"{floor}{_pick(rng, (',', ''))} {bodies[0]} {verb}{rest}"
    else:
        scene = f"{bodies[0]} {verb}{rest}" + (f" {floor}" if floor else "")
    text = _with_camera(scene, _seen_camera(look), rng)
    return _cased(text, rng)


def sample_look(rng: np.random.Generator, trajectory: Trajectory, split: str = "train") -> Look:
    """Colours, camera, mirror image and surroundings for one showing; no two bodies share a colour.

    Args:
        split: ``train``: no body's (colour, material, shape) is held out. ``held_out``: at least one body's is.

    Raises:
        InputError: an unknown split, or ``held_out`` for bodies that are never held out in any colour
            (see ``can_be_held_out``).
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}: give one of {', '.join(SPLITS)}")
    kept = None
    if split == "held_out":
        able = [index for index in range(len(trajectory.bodies)) if _held_out_colours(trajectory, index)]
        if not able:
            raise InputError("no body of this trajectory is held out in any colour")
        kept = int(rng.choice(able))
    colours: dict[int, str] = {}
    order = sorted(range(len(trajectory.bodies)), key=lambda index: index != kept)
    for index in order:
        held_out = _held_out_colours(trajectory, index)
        allowed = held_out if index == kept else [c for c in COLOURS if split != "train" or c not in held_out]
        colours[index] = str(rng.choice([c for c in allowed if c not in colours.values()]))
    camera = "static" if rng.random() < STATIC_SHARE else str(rng.choice(CAMERAS[1:]))
    return Look(
        colours=tuple(colours[index] for index in range(len(trajectory.bodies))),
        camera=camera,
        mirrored=bool(rng.random() < 0.5),
        seed=int(rng.integers(2**31)),
    )


def can_be_held_out(trajectory: Trajectory) -> bool:
    """Whether some colour of some body makes a held-out triple; some materials and shapes have none."""
    return any(_held_out_colours(trajectory, index) for index in range(len(trajectory.bodies)))


def attributes(trajectory: Trajectory, look: Look) -> dict:
    """The whole truth about a clip as seen (mirrored where the look is), ready for JSON."""
    return {
        "bodies": [
            {"colour": colour, "material": body.material, "shape": body.shape, "size": body.size}
            for body, colour in zip(trajectory.bodies, look.colours, strict=True)
        ],
        "count": len(trajectory.bodies),
        "action": trajectory.action,
        "direction": _seen_side(trajectory.direction, look),
        "floor": trajectory.floor,
        "camera": _seen_camera(look),
        "held_out": any(
            is_held_out(colour, body.material, body.shape)
            for body, colour in zip(trajectory.bodies, look.colours, strict=True)
        ),
    }


def events(trajectory: Trajectory, start_s: float = 0.0, duration_s: float = float("inf")) -> list[dict]:
    """Impacts from ``start_s`` on for ``duration_s``: time in the stretch, the two bodies (-1: the floor), impulse."""
    return [
        {
            "time_s": round(contact.time_s - start_s, 5),
            "bodies": [contact.body, contact.other],
            "impulse_ns": round(contact.impulse_ns, 4),
        }
        for contact in trajectory.contacts
        if start_s <= contact.time_s < start_s + duration_s
    ]


def _held_out_colours(trajectory: Trajectory, index: int) -> list[str]:
    body = trajectory.bodies[index]
    return [colour for colour in COLOURS if is_held_out(colour, body.material, body.shape)]


def _seen_side(side: str, look: Look) -> str:
    return MIRROR_IMAGE.get(side, side) if look.mirrored else side


def _seen_camera(look: Look) -> str:
    return " ".join(_seen_side(word, look) for word in look.camera.split())


def _pick(rng: np.random.Generator | None, options: tuple[str, ...]) -> str:
    return options[0] if rng is None else options[rng.integers(len(options))]


def _chance(rng: np.random.Generator | None, share: float) -> bool:
    return rng is not None and rng.random() < share


def _word(rng: np.random.Generator | None, word: str) -> str:
    return _pick(rng, SYNONYMS[word])


def _with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _body(trajectory: Trajectory, look: Look, index: int, rng: np.random.Generator | None) -> str:
    body, colour = trajectory.bodies[index], look.colours[index]
    size = "" if _chance(rng, 0.2) else _word(rng, body.size)
    shape = _word(rng, body.shape)
    material, order = _word(rng, body.material), 1.0 if rng is None else rng.random()
    words: tuple[str, ...] = (size, colour, material, shape)
    if _chance(rng, 0.1):
        words = (size, colour, shape)
    elif order < 0.08:
        words = (size, colour, shape, f"made of {_pick(rng, STUFF[body.material])}")
    elif order < 0.12:
        words = (size, colour, f"{_pick(rng, STUFF[body.material])} {shape}")
    elif order < 0.18:
        words = (size, material, shape, f"in {colour}")
    return _with_article(" ".join(word for word in words if word))


def _deed(trajectory: Trajectory, bodies: list[str], whence: str, rng: np.random.Generator | None) -> tuple[str, str]:
    """What body 0 does: the verb, and what follows it up to the floor."""
    action = trajectory.action
    if action == "rests":
        return _pick(rng, ("rests", "rests", "lies still", "stays still")), ""
    if action == "drops":
        return _pick(rng, ("drops", "drops", "falls", "is dropped")), ""
    if action == "is tossed":
        return _pick(rng, ("is tossed", "is tossed", "is thrown")), f"{_pick(rng, (' in', ' in', ''))}{whence}"
    if action == "knocks":
        blow = _pick(rng, ("knocks", "knocks", "pushes"))
        return _pick(rng, ("flies in", "is thrown in")), f"{whence} and {blow} {bodies[1]} off {bodies[2]}"
    moving = _approach(trajectory) if action == "hits" else action
    rest = whence
    if action == "hits":
        rest += f" and {_pick(rng, ('hits', 'hits', 'strikes', 'bumps into', 'collides with'))} {bodies[1]}"
    coming = {"rolls": ("rolls in", "rolls in", "comes rolling"), "slides": ("slides in", "slides in", "comes sliding")}
    return _pick(rng, coming[moving]), rest


def _approach(trajectory: Trajectory) -> str:
    """How body 0 moves before it hits body 1."""
    poses = max(2, int(trajectory.contacts[0].time_s * POSE_RATE_HZ))
    rolling, sliding = trajectory.rolling[:poses, 0], trajectory.sliding[:poses, 0]
    return "rolls" if np.count_nonzero(rolling) > np.count_nonzero(sliding) else "slides"


def _floor(trajectory: Trajectory, rng: np.random.Generator | None) -> str:
    if _chance(rng, 0.08):
        return ""
    preposition = _pick(rng, ("onto", "onto", "on")) if trajectory.action in ONTO_FLOOR else "on"
    return f"{preposition} {_pick(rng, ('a', 'a', 'a', 'the'))} {_word(rng, trajectory.floor)} floor"


def _with_camera(scene: str, camera: str, rng: np.random.Generator | None) -> str:
    if camera == "static":
        if not _chance(rng, 0.15):
            return scene
        return _pick(rng, (f"{scene}, the camera is static", f"{scene}, static camera", f"static camera, {scene}"))
    move, way = camera.split()
    continuous = {"orbits": "orbiting", "zooms": "zooming", "pans": "panning"}[move]
    forms = (
        f"{scene}, the camera {camera}",
        f"{scene}, the camera {camera}",
        f"{scene} while the camera {camera}",
        f"the camera {camera} as {scene}",
        f"{scene}, camera {continuous} {way}",
    )
    return _pick(rng, forms)


def _cased(text: str, rng: np.random.Generator | None) -> str:
    if not _chance(rng, 0.15):
        return text
    sentence = f"{text[0].upper()}{text[1:]}"
    return _pick(rng, (f"{sentence}.", f"{sentence}.", sentence, text.title()))
