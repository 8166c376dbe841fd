"""Trajectories on disk: one compressed npz of plain arrays, some 2 kB a scene, read without unpickling."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .scene import ACTIONS, FLOORS, MATERIALS, SHAPES, SIZES, Body, Contact, Trajectory

DIRECTIONS = ("", "left", "right")
POSE_FIELDS = ("positions_m", "rotations", "rolling", "sliding")


def save_trajectories(path: str | Path, trajectories: list[Trajectory]) -> None:
    """Write trajectories to ``path`` (.npz). Poses and speeds are kept in half precision (half a millimetre)."""
    path = Path(path)
    if not trajectories:
        raise InputError("there are no trajectories to save")
    bodies = [
        (SHAPES.index(body.shape), MATERIALS.index(body.material), SIZES.index(body.size))
        for trajectory in trajectories
        for body in trajectory.bodies
    ]
    scenes = []
    for t in trajectories:
        names = ACTIONS.index(t.action), FLOORS.index(t.floor), DIRECTIONS.index(t.direction)
        scenes.append((len(t.bodies), len(t.positions_m), len(t.contacts), *names))
    contacts = [(c.time_s, c.impulse_ns) for t in trajectories for c in t.contacts]
    touching = [(c.body, c.other) for t in trajectories for c in t.contacts]
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(t, name).reshape(-1) for t in trajectories]).astype(np.float16)
        for name in POSE_FIELDS
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.savez_compressed(
            file,
            scenes=np.array(scenes, np.int32),
            bodies=np.array(bodies, np.uint8),
            contacts=np.array(contacts, np.float32).reshape(-1, 2),
            touching=np.array(touching, np.int8).reshape(-1, 2),
            **arrays,
        )


def load_trajectories(path: str | Path) -> list[Trajectory]:
    """What ``save_trajectories`` wrote.

    Raises:
        InputError: the file is missing or holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InputError(f"{path}: not a file of trajectories ({error})") from error
    missing = {"scenes", "bodies", "contacts", "touching", *POSE_FIELDS} - set(arrays)
    if missing:
        raise InputError(f"{path}: not a file of trajectories, {', '.join(sorted(missing))} missing")
    trajectories = []
    body_at, contact_at, pose_at = 0, 0, 0
    for num_bodies, num_poses, num_contacts, action, floor, direction in arrays["scenes"].tolist():
        bodies = arrays["bodies"][body_at : body_at + num_bodies].tolist()
        times = arrays["contacts"][contact_at : contact_at + num_contacts].tolist()
        touching = arrays["touching"][contact_at : contact_at + num_contacts].tolist()
        size = num_bodies * num_poses
        poses = {
            name: arrays[name][pose_at * width : (pose_at + size) * width].astype(np.float32)
            for name, width in zip(POSE_FIELDS, (3, 4, 1, 1), strict=True)
        }
        trajectories.append(
            Trajectory(
                tuple(Body(SHAPES[s], MATERIALS[m], SIZES[z]) for s, m, z in bodies),
                FLOORS[floor],
                ACTIONS[action],
                DIRECTIONS[direction],
                poses["positions_m"].reshape(num_poses, num_bodies, 3),
                poses["rotations"].reshape(num_poses, num_bodies, 4),
                tuple(Contact(t, b, o, i) for (t, i), (b, o) in zip(times, touching, strict=True)),
                poses["rolling"].reshape(num_poses, num_bodies),
                poses["sliding"].reshape(num_poses, num_bodies),
            )
        )
        body_at, contact_at, pose_at = body_at + num_bodies, contact_at + num_contacts, pose_at + size
    return trajectories
