import numpy as np
import pytest
import torch

from vidgen.errors import InputError
from vidgen.tabletop.render import render
from vidgen.tabletop.scene import CAMERAS, COLOURS, FLOORS, MATERIALS, SHAPES, Body, Look, Trajectory
from vidgen.tabletop.shot import BASE_TARGET_M, COLOURS_RGB, body_rectangles, camera_path

POSES = 49


def scene(*bodies: Body, floor="concrete", positions=None, rotations=None) -> Trajectory:
    if positions is None:
        positions = np.array([[0.9 * i - 0.45 * (len(bodies) - 1), 0, b.half_size_m] for i, b in enumerate(bodies)])
    positions = np.broadcast_to(positions, (POSES, len(bodies), 3)).astype(np.float32)
    if rotations is None:
        rotations = np.broadcast_to(np.array([0.9239, 0, 0, 0.3827]), (POSES, len(bodies), 4)).astype(np.float32)
    return Trajectory(bodies, floor, "rests", "", positions, rotations)


def film(trajectory, look, *, frames=1, size=64, rate=24, start=0.0, compiled=False, **other):
    return render([trajectory], [look], num_frames=frames, height=size, width=size, frame_rate=rate,
                  start_times_s=start, compiled=compiled, **other)[0]  # fmt: skip


def mixed_clips() -> tuple[list[Trajectory], list[Look]]:
    """One clip a camera, and every shape, material and floor among them; the bodies move and turn."""
    trajectories, looks = [], []
    for index, camera in enumerate(CAMERAS):
        bodies = tuple(
            Body(SHAPES[(index + i) % 3], MATERIALS[(index + 2 * i + i // 2) % 4], ("small", "big")[(index + i) % 2])
            for i in range(1 + index % 3)
        )
        time = np.linspace(0, 2, POSES)[:, None]
        at = np.arange(len(bodies))[None] * 0.8 - 0.4 * (len(bodies) - 1) + 0.1 * time
        positions = np.stack([at, 0 * at + 0.1 * index, 0.35 + 0.3 * np.abs(np.sin(2 * time + at))], -1)
        half = (0.6 * time + index) * np.ones_like(at)
        rotations = np.stack([np.cos(half), 0.6 * np.sin(half), 0 * half, 0.8 * np.sin(half)], -1)
        trajectories.append(scene(*bodies, floor=FLOORS[index % 3], positions=positions, rotations=rotations))
        looks.append(Look(tuple(COLOURS[(index + 3 * i) % 8] for i in range(len(bodies))), camera, seed=index))
    return trajectories, looks


def project(look: Look, point: np.ndarray, size: int, time_s: float = 0.0) -> tuple[np.ndarray, float]:
    """Pixel coordinates of a world point, and the focal length in pixels."""
    path = camera_path(look, np.array([time_s]), (POSES - 1) / 24)
    x, y, z = path.axes[0] @ (point - path.eye_m[0])
    focal = size / 2 / path.half_width[0]
    return np.array([x, y]) / z * focal + size / 2, focal


def test_outline_of_a_ball_is_its_analytic_projection():
    size, body = 160, Body("ball", "rubber", "big")
    centre = np.array([0.35, -0.2, 1.2])
    look = Look(("red",), seed=5)
    with_ball = film(scene(body, positions=centre[None]), look, size=size)[0].int()
    away = film(scene(body, positions=centre[None] + [[0, 0, 400.0]]), look, size=size)[0].int()
    path = camera_path(look, np.zeros(1), 2.0)
    focal = size / 2 / path.half_width[0]
    grid = np.arange(size) + 0.5 - size / 2
    ray = np.stack([*np.meshgrid(grid, grid), np.full((size, size), focal)], -1) @ path.axes[0]
    ray /= np.linalg.norm(ray, axis=-1, keepdims=True)
    to_centre = centre - path.eye_m[0]
    miss = np.linalg.norm(np.cross(ray, to_centre), axis=-1)
    pixel_m = np.linalg.norm(to_centre) / focal
    changed = ((with_ball - away).abs().amax(-1) > 20).numpy()
    red = ((with_ball[..., 0] - with_ball[..., 1]) > 30).numpy() & changed
    assert red[miss < body.half_size_m - pixel_m].all()
    assert not red[miss > body.half_size_m + pixel_m].any()
    assert (miss < body.half_size_m).sum() > 500


@pytest.mark.parametrize("shape", SHAPES)
def test_outline_lies_in_the_projected_extremes(shape):
    size, body = 128, Body(shape, "rubber", "big")
    centre, look = np.array([0.0, 0.0, 1.15]), Look(("yellow",), seed=1)
    shown = film(scene(body, positions=centre[None]), look, size=size)[0].int()
    coloured = (shown[..., 0] - shown[..., 2]) > 35
    rows, columns = torch.where(coloured)
    turn = np.pi / 4
    half = body.half_size_m
    if shape == "ball":
        corners = centre + half * np.array([[1, 0, 0], [-1, 0, 0], [0, 0, 1], [0, 0, -1]])
    elif shape == "cube":
        corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * half
        spin = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
        corners = corners @ spin.T + centre
    else:
        around = np.linspace(0, 2 * np.pi, 60)
        corners = np.concatenate(
            [centre + half * np.stack([np.cos(around), np.sin(around), np.full(60, z)], 1) for z in (-1.0, 1.0)]
        )
    pixels = np.array([project(look, corner, size)[0] for corner in corners])
    assert columns.min() == pytest.approx(pixels[:, 0].min(), abs=1.6)
    assert columns.max() + 1 == pytest.approx(pixels[:, 0].max(), abs=1.6)
    assert rows.min() == pytest.approx(pixels[:, 1].min(), abs=1.6)
    assert rows.max() + 1 == pytest.approx(pixels[:, 1].max(), abs=1.6)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_rectangles_hold_what_a_body_colours_and_little_else(shape, mirrored):
    size, body = 128, Body(shape, "rubber", "big")
    positions = np.array([[0.4, 0.1, 0.8]]) + np.array([0.01, 0, 0]) * np.arange(POSES)[:, None, None]
    trajectory = scene(body, positions=positions)
    looks = [Look((colour,), "orbits left", seed=4, mirrored=mirrored) for colour in ("white", "blue")]
    white, blue = (film(trajectory, look, frames=5, size=size, rate=4).int() for look in looks)
    found = body_rectangles([trajectory], looks[:1], num_frames=5, height=size, width=size, frame_rate=4,
                            start_times_s=[0.0])[0, :, 0]  # fmt: skip
    for changed, (left, top, right, bottom) in zip(((white - blue).abs().amax(-1) > 8).numpy(), found, strict=True):
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        held = (columns[-1] + 1 - columns[0]) * (rows[-1] + 1 - rows[0])
        assert left <= columns[0] <= columns[-1] + 1 <= right
        assert top <= rows[0] <= rows[-1] + 1 <= bottom
        assert (right - left) * (bottom - top) < 2 * held


def test_mirrored_look_is_the_flipped_picture():
    trajectories, looks = mixed_clips()
    mirrored = [Look(look.colours, look.camera, True, look.seed) for look in looks]
    settings = {"num_frames": 2, "height": 48, "width": 80, "frame_rate": 6, "compiled": False}
    plain = render(trajectories, looks, **settings)
    assert torch.equal(render(trajectories, mirrored, **settings), plain.flip(3))


def test_same_input_gives_same_pixels_and_batching_changes_nothing():
    trajectories, looks = mixed_clips()
    settings = {"num_frames": 3, "height": 64, "width": 64, "frame_rate": 8, "compiled": False}
    together = render(trajectories, looks, **settings)
    assert torch.equal(together, render(trajectories, looks, **settings))
    for index in (0, 3, 5):
        alone = render(trajectories[index : index + 1], looks[index : index + 1], **settings)[0]
        assert (alone.int() - together[index].int()).abs().max() <= 1


@pytest.mark.parametrize(("height", "width"), [(16, 16), (50, 70), (128, 64), (33, 1)])
def test_any_size_gives_pictures_of_that_size(height, width):
    trajectories, looks = mixed_clips()
    out = render(trajectories[:3], looks[:3], num_frames=2, height=height, width=width, compiled=False)
    assert out.shape == (3, 2, height, width, 3)
    assert out.dtype == torch.uint8


def test_frames_follow_time_not_count():
    trajectories, looks = mixed_clips()
    for trajectory, look in zip(trajectories, looks, strict=True):
        whole = film(trajectory, look, frames=7, rate=12)
        later = film(trajectory, look, frames=2, rate=12, start=5 / 12)
        half_rate = film(trajectory, look, frames=4, rate=6)
        assert (later.int() - whole[5:].int()).abs().float().mean() < 0.02
        assert (half_rate.int() - whole[::2].int()).abs().float().mean() < 0.02
        assert (whole[0].int() - whole[-1].int()).abs().max() > 20, "the bodies move"


def test_poses_between_samples_are_interpolated_and_held_after_the_last():
    body = Body("ball", "rubber", "small")
    path = np.zeros((POSES, 1, 3))
    path[:, 0, 0] = np.linspace(-0.8, 0.8, POSES)
    path[:, 0, 2] = 0.6
    look = Look(("red",), seed=2)
    frames = film(scene(body, positions=path), look, frames=4, rate=48, size=128, start=0.5).int()
    red = (frames[..., 0] - frames[..., 1] > 70).float()
    columns = (red * torch.arange(128.0)).sum((1, 2)) / red.sum((1, 2))
    steps = columns.diff()
    expected = project(look, path[13, 0], 128)[0][0] - project(look, path[12, 0], 128)[0][0]
    assert steps.numpy() == pytest.approx(np.full(3, expected / 2), abs=0.25)
    held = film(scene(body, positions=path), look, frames=2, rate=1, start=2.0)
    assert torch.equal(held[0], held[1])


@pytest.mark.parametrize("material", ["metal", "wooden", "rubber", "glass"])
@pytest.mark.parametrize("shape", SHAPES)
def test_body_looks_like_its_colour(shape, material):
    bodies = [scene(Body(shape, material, "big")) for _ in COLOURS]
    looks = [Look((colour,), seed=9) for colour in COLOURS]
    pictures = render(bodies, looks, num_frames=1, height=96, width=96, compiled=False)[:, 0]
    at, _ = project(looks[0], np.array([0, 0, Body(shape, material, "big").half_size_m]), 96)
    column, row = int(at[0]), int(at[1])
    names = np.array([COLOURS_RGB[colour] for colour in COLOURS], float)
    hues = names - names.mean(1, keepdims=True)
    for index, colour in enumerate(COLOURS):
        patch = pictures[index, row - 3 : row + 4, column - 3 : column + 4].float().mean((0, 1)).numpy()
        chroma = patch - patch.mean()
        if colour == "white":
            assert np.abs(chroma).max() < 32
            continue
        likeness = hues @ chroma / np.maximum(np.linalg.norm(hues, axis=1), 25) / np.linalg.norm(chroma)
        assert COLOURS[int(likeness.argmax())] == colour
        assert likeness[index] > 0.9


def test_near_body_hides_far_body():
    bodies = Body("cube", "rubber", "big"), Body("ball", "rubber", "small")
    near, far = np.array([0, -0.6, 0.33]), np.array([0, 0.5, 0.33])
    look = Look(("blue", "red"), seed=0)
    for first, second, hidden in ((near, far, True), (far, near, False)):
        shown = film(scene(*bodies, positions=np.stack([first, second])), look, size=96)[0].int()
        at, _ = project(look, second, 96)
        red, _, blue = shown[int(at[1]), int(at[0])].tolist()
        assert (blue > red) == hidden


def test_shadow_and_moving_cameras():
    body = Body("ball", "rubber", "big")
    look = Look(("white",), seed=4)
    with_ball, empty = film(scene(body), look)[0], film(scene(body, positions=np.array([[0, 0, 300.0]])), look)[0]
    assert (empty.int() - with_ball.int()).amax() > 35, "the floor is darkened"
    for camera in CAMERAS[1:]:
        frames = film(scene(body), Look(("white",), camera, seed=4), frames=2, rate=0.5)
        assert (frames[0].int() - frames[1].int()).abs().float().mean() > 1.5, camera
    sizes = {}
    for camera in ("zooms in", "zooms out"):
        sizes[camera] = [project(Look((), camera), np.array(BASE_TARGET_M), 64, time)[1] for time in (0.0, 2.0)]
    assert sizes["zooms in"][1] > 1.2 * sizes["zooms in"][0]
    assert sizes["zooms out"][1] < sizes["zooms out"][0] / 1.2
    panned = [project(Look((), "pans left"), np.array([0, 0, 0.6]), 64, time)[0][0] for time in (0.0, 2.0)]
    assert panned[1] > panned[0] + 5, "the picture moves right when the camera turns left"
    orbit = camera_path(Look((), "orbits left"), np.array([0.0, 2.0]), 2.0).eye_m
    assert orbit[1, 0] < orbit[0, 0] - 0.5


def test_wrong_use_is_named():
    trajectory = scene(Body("ball", "glass", "big"))
    with pytest.raises(InputError, match="colours"):
        film(trajectory, Look(("red", "blue")))
    with pytest.raises(InputError, match="unknown camera 'flies'"):
        film(trajectory, Look(("red",), "flies"))
    with pytest.raises(InputError, match="start times"):
        film(trajectory, Look(("red",)), start=[0.0, 1.0])
    with pytest.raises(InputError, match="cannot render"):
        film(trajectory, Look(("red",)), frames=0)


@pytest.mark.slow
def test_compiled_equals_plain():
    trajectories, looks = mixed_clips()
    settings = {"num_frames": 3, "height": 96, "width": 96, "frame_rate": 6}
    plain = render(trajectories, looks, compiled=False, **settings).int()
    compiled = render(trajectories, looks, compiled=True, **settings).int()
    assert ((plain - compiled).abs() <= 2).float().mean() > 0.999
