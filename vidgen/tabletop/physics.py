"""Tabletop scenes simulated by MuJoCo: a few solids that drop, fly, roll, slide, collide and come to rest.

``simulate`` draws scenes until the one it names really happens in view. As a command it writes many of them:

    python -m vidgen.tabletop.physics --count 1000 --seed 1 --output trajectories.npz
"""

import argparse
from dataclasses import replace
from functools import lru_cache, partial
from math import atan2, dist, exp, floor, hypot, pi, sqrt
from multiprocessing import get_context
from pathlib import Path

import mujoco
import numpy as np
from tqdm import tqdm

from ..cli import run
from ..errors import InputError
from .archive import load_trajectories, save_trajectories
from .scene import ACTIONS, POSE_RATE_HZ, SHAPES, Body, Contact, Trajectory
from .staging import (
    DENSITY_KG_M3,
    FLOOR_FRICTION,
    FLOOR_RESTITUTION,
    FRICTION,
    GRAVITY_M_S2,
    MOVING,
    RESTITUTION,
    Stage,
    draw_bodies,
    draw_cast,
    draw_floor,
    happened,
    has_left,
    stage,
)

__all__ = ["load_trajectories", "save_trajectories", "simulate", "simulate_many"]

STEPS_PER_POSE = 40
STEP_S = 1 / (POSE_RATE_HZ * STEPS_PER_POSE)

BLOW_S = 0.008
"""Duration of a bouncing contact: half a period of its spring."""
BOUNCE_SPEED_M_S = 0.5
"""Only bodies faster than this bounce: a spring under a resting body would make it tremble and jump."""
CALM_STEPS = 24
"""A contact stays springy until its bodies were slow for so many steps, so that it does not change in mid-blow."""
SPRING_STEPS = 4
CALM_SOLREF = (0.005, 1.0)
MAX_GRIP_PER_S = 40.0
"""Rate at which friction wants to stop a slip. MuJoCo's convex friction lifts a sliding body by friction · rate · slip
(m/s²), so that fast bodies would hop. While that stays below gravity, and the rate above friction · g / slip, they
slide with Coulomb's force."""
BLOW_GRIP_PER_S = 80.0
MERGE_S = 0.015
APART_STEPS = 8
AUDIBLE_M_S = 0.12
"""Impacts that change the speed by less are left out."""
MIN_SPEED_M_S = 0.03
NEAR_STEPS = 8
MOTIONS_PER_CAST = 8


@lru_cache(maxsize=256)
def _model(bodies: tuple[Body, ...]) -> tuple[mujoco.MjModel, mujoco.MjData]:
    """Bodies on free joints over a plane, all contacts as explicit pairs: (0, floor), (1, floor), …, (0, 1), …"""
    solids, pairs = "", ""
    for index, body in enumerate(bodies):
        half = body.half_size_m
        kind, size = {
            "ball": ("sphere", f"{half}"),
            "cube": ("box", f"{half} {half} {half}"),
            "cylinder": ("cylinder", f"{half} {half}"),
        }[body.shape]
        density = DENSITY_KG_M3[body.material]
        geom = f'<geom name="g{index}" type="{kind}" size="{size}" density="{density}" contype="0" conaffinity="0"/>'
        solids += f'<body pos="{3 * index} 0 2"><freejoint/>{geom}</body>'
    for one, other in _pairs(len(bodies)):
        pairs += f'<pair geom1="g{one}" geom2="{"floor" if other < 0 else f"g{other}"}" condim="3"/>'
    model = mujoco.MjModel.from_xml_string(
        f'<mujoco><option timestep="{STEP_S!r}" integrator="Euler" cone="elliptic" gravity="0 0 {-GRAVITY_M_S2}"/>'
        f'<worldbody><geom name="floor" type="plane" size="0 0 1" contype="0" conaffinity="0"/>{solids}</worldbody>'
        f"<contact>{pairs}</contact></mujoco>"
    )
    model.pair_solimp[:] = (0.99, 0.99, 0.001, 0.5, 2)
    return model, mujoco.MjData(model)


def _pairs(count: int) -> list[tuple[int, int]]:
    return [(i, -1) for i in range(count)] + [(i, j) for i in range(count) for j in range(i + 1, count)]


@lru_cache(maxsize=64)
def _springy(restitution: float) -> tuple[float, float]:
    """MuJoCo's direct (-stiffness, -damping) of a damped spring with a half period of BLOW_S that bounces so much.

    A contact only pushes, so it ends before the spring is back at its rest length: Schwager and Pöschel,
    "Coefficient of restitution and linear-dashpot model revisited", 2007, eq. 21, solved for the damping ratio.
    """
    low, high = 1e-6, 1 - 1e-6
    for _ in range(40):
        ratio = (low + high) / 2
        swing = sqrt(1 - ratio**2)
        bounce = exp(-ratio / swing * (pi - atan2(2 * ratio * swing, 1 - 2 * ratio**2)))
        low, high = (ratio, high) if bounce > restitution else (low, ratio)
    frequency = pi / BLOW_S / swing
    return -(frequency**2), -2 * ratio * frequency


class _Simulation:
    """One run of a staged scene; ``result`` is None when a body left the stage."""

    def __init__(self, bodies: tuple[Body, ...], floor_name: str, staged: Stage, num_poses: int):
        self.bodies, self.pairs = bodies, _pairs(len(bodies))
        self.model, self.data = _model(bodies)
        self.held_poses = int(staged.held_s * POSE_RATE_HZ)
        self.num_poses = num_poses
        self.masses_kg = self.model.body_mass[1:].copy()
        self._prepare(floor_name, staged)

    def _prepare(self, floor_name: str, staged: Stage) -> None:
        model, data = self.model, self.data
        self.springs = []
        for index, (one, other) in enumerate(self.pairs):
            materials = [self.bodies[one].material] + ([] if other < 0 else [self.bodies[other].material])
            bounce = [RESTITUTION[m] for m in materials]
            grip = [FRICTION[m] for m in materials]
            restitution, friction = float(np.mean(bounce)), float(np.mean(grip))
            if other < 0:
                restitution *= FLOOR_RESTITUTION[floor_name]
                friction *= FLOOR_FRICTION[floor_name] * (staged.friction_scale if one == 0 else 1.0)
            self.springs.append(_springy(restitution))
            model.pair_friction[index, :2] = friction
            model.pair_solref[index] = CALM_SOLREF
            model.pair_solreffriction[index] = (-1, -MAX_GRIP_PER_S)
        self.calm = [CALM_STEPS] * len(self.pairs)
        for index, body in enumerate(self.bodies):
            inertia = self.masses_kg[index] * body.half_size_m**2 + model.body_inertia[index + 1, 0]
            model.dof_damping[6 * index + 3 : 6 * index + 6] = staged.rolling_loss_per_s * inertia
        mujoco.mj_resetData(model, data)
        for index, start in enumerate(staged.starts):
            data.qpos[7 * index : 7 * index + 7] = (*start.position, *start.rotation)
            data.qvel[6 * index : 6 * index + 3] = start.velocity
            local = np.zeros(3)  # a free joint's spin is in the body's frame
            inverse = start.rotation * (1, -1, -1, -1)
            mujoco.mju_rotVecQuat(local, start.spin.astype(float), inverse.astype(float))
            data.qvel[6 * index + 3 : 6 * index + 6] = local

    def _set_springs(self, steps: int) -> None:
        """Bouncing springs for pairs that move fast, damped ones for pairs that have been slow for a while."""
        velocities = self.data.qvel.reshape(-1, 6).tolist()
        spins = self.data.cvel[1:, :3].tolist()
        for index, (one, other) in enumerate(self.pairs):
            if other < 0:
                (x, y, _), shape = spins[one], self.bodies[one].shape
                if shape == "cylinder":  # its turning about its own axis does not move its surface up or down
                    axis_x, axis_y, axis_z = self.data.xmat[one + 1, 2::3].tolist()
                    along = x * axis_x + y * axis_y + spins[one][2] * axis_z
                    x, y = x - along * axis_x, y - along * axis_y
                turning = 0.0 if shape == "ball" else hypot(x, y)
                speed = abs(velocities[one][2]) + turning * self.bodies[one].half_size_m
            else:
                speed = dist(velocities[one][:3], velocities[other][:3])
            if speed > BOUNCE_SPEED_M_S:
                if self.calm[index] >= CALM_STEPS:
                    self.model.pair_solref[index] = self.springs[index]
                    self.model.pair_solreffriction[index, 1] = -BLOW_GRIP_PER_S
                self.calm[index] = 0
            elif self.calm[index] < CALM_STEPS:
                self.calm[index] += steps
                if self.calm[index] >= CALM_STEPS:
                    self.model.pair_solref[index] = CALM_SOLREF
            if other < 0 and self.calm[index] >= CALM_STEPS:
                slip = hypot(*velocities[one][:2]) + 1e-3
                grip = 0.7 * GRAVITY_M_S2 / (self.model.pair_friction[index, 0] * slip)
                self.model.pair_solreffriction[index, 1] = -min(MAX_GRIP_PER_S, grip)

    def result(self, floor_name: str, action: str) -> Trajectory | None:
        model, data, count = self.model, self.data, len(self.bodies)
        poses = np.zeros((self.num_poses, count, 7), np.float32)
        motion = np.zeros((2, self.num_poses, count), np.float32)
        poses[: self.held_poses] = data.qpos.reshape(count, 7)
        num_steps = (self.num_poses - self.held_poses - 1) * STEPS_PER_POSE
        steps, geoms, forces, springy = [], [], [], []
        for step in range(num_steps + 1):
            if step % STEPS_PER_POSE == 0:
                pose = self.held_poses + step // STEPS_PER_POSE
                poses[pose] = data.qpos.reshape(count, 7)
                if has_left(poses[pose, :, :3]):
                    return None
            if step % SPRING_STEPS == 0:
                self._set_springs(SPRING_STEPS)
                springy.append([calm < CALM_STEPS for calm in self.calm])
            mujoco.mj_step(model, data)
            if data.ncon:
                contact = data.contact
                rows = contact.efc_address
                # The first row of an elliptic contact is its normal force; a touch at distance zero has no row.
                forces.append(np.where(rows < 0, 0, data.efc_force[rows]) if data.nefc else np.zeros(len(rows)))
                geoms.append(contact.geom.copy())
                steps.append(step)
                pose = self.held_poses + (step + NEAR_STEPS) // STEPS_PER_POSE
                if (step + NEAR_STEPS) % STEPS_PER_POSE <= 2 * NEAR_STEPS and pose < self.num_poses:
                    self._add_motion(motion[:, pose], geoms[-1], forces[-1])
        contacts: tuple[Contact, ...] = ()
        if steps:
            normal = np.zeros((num_steps + 1, len(self.pairs)))
            rows = np.repeat(steps, [len(force) for force in forces])
            np.add.at(normal, (rows, self._pair_index(np.concatenate(geoms))), np.concatenate(forces))
            contacts = tuple(self._impacts(normal, np.repeat(springy, SPRING_STEPS, axis=0)))
        rotations = poses[..., 3:] / np.linalg.norm(poses[..., 3:], axis=-1, keepdims=True)
        return Trajectory(self.bodies, floor_name, action, "", poses[..., :3].copy(), rotations, contacts, *motion)

    def _pair_index(self, geoms: np.ndarray) -> np.ndarray:
        """(K, 2) geoms, 0 the floor and 1 + i body i, in any order -> (K,) index into ``pairs``."""
        table = np.zeros((1 + len(self.bodies),) * 2, int)
        for index, (one, other) in enumerate(self.pairs):
            table[one + 1, other + 1] = table[other + 1, one + 1] = index
        return table[geoms[:, 0], geoms[:, 1]]

    def _impacts(self, normal_n: np.ndarray, springy: np.ndarray) -> list[Contact]:
        """Blows in the normal forces (steps, pairs): where a pair is pressed well beyond the lighter body's weight.

        A slow pair (not ``springy``) must have been apart before: what presses it otherwise is the solver's jitter.
        """
        impacts = []
        merge_steps, held_s = round(MERGE_S / STEP_S), self.held_poses / POSE_RATE_HZ
        for index, (one, other) in enumerate(self.pairs):
            mass_kg = self.masses_kg[one] if other < 0 else min(self.masses_kg[one], self.masses_kg[other])
            weight_n = mass_kg * GRAVITY_M_S2
            hard = np.flatnonzero(normal_n[:, index] > 2 * weight_n)
            for blow in np.split(hard, np.flatnonzero(np.diff(hard) > merge_steps) + 1):
                if not len(blow):
                    continue
                impulse_ns = float((normal_n[blow[0] : blow[-1] + 1, index] - weight_n).sum() * STEP_S)
                if impulse_ns < AUDIBLE_M_S * mass_kg:
                    continue
                first = blow[0]
                while first > max(0, blow[0] - 4) and normal_n[first - 1, index] > 0:
                    first -= 1
                apart = not normal_n[max(0, first - APART_STEPS) : first, index].any() and first >= APART_STEPS
                if not apart and not springy[blow[0] : blow[-1] + 1, index].any():
                    continue
                impacts.append(Contact(held_s + float(first) * STEP_S, one, other, impulse_ns))
        return sorted(impacts, key=lambda contact: (contact.time_s, contact.body, contact.other))

    def _add_motion(self, motion: np.ndarray, geoms: np.ndarray, forces: np.ndarray) -> None:
        """Enter into motion (2, N) the rolling and sliding speed of bodies that have none yet, on what carries them.

        Called for some steps around a pose, because a sliding body touches what it slides on with short breaks.
        """
        velocity = self.data.qvel.reshape(-1, 6)[:, :3]
        for body, solid in enumerate(self.bodies):
            speed = hypot(*velocity[body, :2].tolist())
            if speed < MIN_SPEED_M_S or motion[:, body].any():
                continue
            position = self.data.xpos[body + 1]
            under = (geoms == body + 1).any(axis=1) & (forces > 0)
            under &= (np.abs(self.data.contact.frame[:, 2]) > 0.7) & (self.data.contact.pos[:, 2] < position[2])
            under &= np.array(self.calm)[self._pair_index(geoms)] >= CALM_STEPS  # a bounce is no slide
            if not under.any():
                continue
            point = np.average(self.data.contact.pos[under], axis=0, weights=forces[under])
            surface = velocity[body] + np.cross(self.data.cvel[body + 1, :3], point - position)
            slip = hypot(*surface[:2].tolist())
            flat = solid.shape == "cube" or (
                solid.shape == "cylinder" and abs(self.data.xmat[body + 1].reshape(3, 3)[2, 2]) > 0.5
            )
            if slip > max(MIN_SPEED_M_S, 0.25 * speed):
                motion[1, body] = slip
            elif not flat:
                motion[0, body] = speed


def _mirrored(trajectory: Trajectory) -> Trajectory:
    """The mirror image in the plane x = 0; all bodies are symmetric, so their poses have one."""
    return replace(
        trajectory,
        positions_m=trajectory.positions_m * np.array([-1, 1, 1], np.float32),
        rotations=trajectory.rotations * np.array([1, 1, -1, -1], np.float32),
    )


def simulate(
    rng: np.random.Generator,
    *,
    action: str | None = None,
    shape: str | None = None,
    num_bodies: int | None = None,
    duration_s: float = 49 / POSE_RATE_HZ,
) -> Trajectory:
    """A scene in which the action that it names happens, in view, within ``duration_s``.

    Args:
        action: one of ``ACTIONS``; drawn from ``staging.MIXTURE`` among those that the other constraints allow if None.
        shape: of body 0.
        num_bodies: 1, 2 (``hits``) or 3 (``knocks``).

    Raises:
        InputError: an unknown name, constraints that no scene meets together, or a duration outside 1 to 20 s.
    """
    if not 1 <= duration_s <= 20:
        raise InputError(f"a scene of {duration_s} s cannot be simulated: give 1 to 20 s")
    action, shape = draw_cast(rng, action, shape, num_bodies)
    num_poses = 1 + floor(duration_s * POSE_RATE_HZ + 1e-6)
    direction = str(rng.choice(("left", "right"))) if action in MOVING else ""
    for _ in range(200):
        bodies, floor_name = draw_bodies(rng, action, shape), draw_floor(rng)
        for _ in range(MOTIONS_PER_CAST):
            simulation = _Simulation(bodies, floor_name, stage(rng, action, bodies, floor_name), num_poses)
            trajectory = simulation.result(floor_name, action)
            if trajectory is None or not happened(action, bodies, trajectory, simulation.masses_kg):
                continue
            trajectory = replace(trajectory, direction=direction)
            return _mirrored(trajectory) if direction == "right" else trajectory
    raise InputError(f"no scene of {duration_s} s in which a {shape or 'body'} {action} came about in 1,600 tries")


def _numbered(index: int, seed: int, constraints: dict) -> Trajectory:
    return simulate(np.random.default_rng((seed, index)), **constraints)


def simulate_many(count: int, seed: int, workers: int = 1, **constraints) -> list[Trajectory]:
    """``count`` scenes, the same for any number of worker processes. Constraints as for ``simulate``."""
    task = partial(_numbered, seed=seed, constraints=constraints)
    progress = partial(tqdm, total=count, disable=None, unit="scene")
    if workers <= 1:
        return list(progress(map(task, range(count))))
    with get_context("spawn").Pool(workers) as pool:
        return list(progress(pool.imap(task, range(count), chunksize=16)))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vidgen.tabletop.physics", description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="an .npz file")
    parser.add_argument("--workers", type=int, default=1, help="processes; the scenes do not depend on it")
    parser.add_argument("--duration", type=float, default=49 / POSE_RATE_HZ, help="seconds")
    parser.add_argument("--action", choices=ACTIONS)
    parser.add_argument("--shape", choices=SHAPES, help="of the body that acts")
    args = parser.parse_args()
    if args.count < 1 or args.workers < 1 or args.seed < 0:
        raise InputError("count and workers must be at least 1, and the seed not negative")
    scenes = simulate_many(
        args.count, args.seed, args.workers, action=args.action, shape=args.shape, duration_s=args.duration
    )
    save_trajectories(args.output, scenes)


if __name__ == "__main__":
    run(main)
