# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The town's pictures agree with their own depth, labels and poses, whatever the camera."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from feat_ros.camera import Camera
from feat_ros.colmap_files import read_colmap_model
from feat_ros.errors import ConfigError, DataError
from feat_ros.extractors import create_extractor
from feat_ros.image import read_image
from feat_ros.town import (
    CLASS_ID,
    Condition,
    CONDITIONS,
    Drive,
    Frame,
    frames,
    render,
    Scene,
    Town,
    TOWN_LABELS,
    write_drive,
)
from feat_ros.town.mesh import Mesh, Quad, Texture
from feat_ros.town.raster import rasterize, View

SEED, LENGTH_M, TEXEL_M = 5, 40.0, 0.025
PINHOLE = Camera('PINHOLE', 320, 240, (225, 225, 160, 120))
DISTORTED = Camera('OPENCV', 320, 240, (215, 216, 161, 119, -0.28, 0.09, 0.0005, -0.0003))
FISHEYE = Camera('OPENCV_FISHEYE', 320, 300, (108, 108, 160, 150, -0.006, 0.04, -0.037, 0.006))
CAMERAS = {'pinhole': PINHOLE, 'distorted': DISTORTED, 'fisheye': FISHEYE}
QUIET = replace(CONDITIONS['day'], noise=0.0)

Shoot = Callable[..., Frame]


@pytest.fixture(scope='module')
def town() -> Town:
    return Town(SEED, LENGTH_M, TEXEL_M)


@pytest.fixture(scope='module')
def shoot(town: Town) -> Shoot:
    scenes: dict[Drive, Scene] = {}

    def take(drive: Drive, camera: Camera = PINHOLE, time_s: float = 1.0, seed: int = 0) -> Frame:
        if drive not in scenes:
            scenes[drive] = town.scene(drive)
        pose = drive.cam_from_map(time_s, town.length_m)
        velocity = (drive.direction * drive.speed_mps, 0.0, 0.0)
        rng = np.random.default_rng(seed)
        return render(scenes[drive], camera, pose, rng, time_s=time_s, velocity=velocity)

    return take


def doubled(camera: Camera) -> Camera:
    """Give a camera twice the pixels along each axis."""
    scaled = tuple(2 * p if k < 4 else p for k, p in enumerate(camera.params))
    return Camera(camera.model, 2 * camera.width, 2 * camera.height, scaled)


def pixel_centres(camera: Camera) -> npt.NDArray[np.float64]:
    x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def points_in_map(frame: Frame) -> npt.NDArray[np.float64]:
    """What each pixel sees (N, 3); NaN for the sky."""
    rays = frame.camera.unproject(pixel_centres(frame.camera))
    depth = frame.depth.reshape(-1, 1).astype(float)
    depth = np.where(np.isfinite(depth), depth, np.nan)
    return frame.cam_from_map.inverse().apply(rays / rays[:, 2:] * depth)


def warp_error(first: Frame, second: Frame, shift: float = 0.0) -> npt.NDArray[np.float64]:
    """Grey levels (N,) between the second frame and the first warped into it, static parts."""
    height, width = second.depth.shape
    in_first = first.cam_from_map.apply(points_in_map(second))
    pixels = first.camera.project(in_first) + np.array([shift, 0.0])
    x, y = (pixels.reshape(height, width, 2)[..., k].astype(np.float32) - 0.5 for k in (0, 1))
    warped = cv2.remap(first.image, x, y, cv2.INTER_LINEAR).astype(float)
    depth = cv2.remap(first.depth, x, y, cv2.INTER_NEAREST)
    is_static = cv2.remap(first.is_static.astype(np.uint8), x, y, cv2.INTER_NEAREST) > 0
    z = in_first[:, 2].reshape(height, width)
    inside = (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2)
    with np.errstate(invalid='ignore'):
        seen = inside & second.is_static & is_static & (np.abs(depth - z) < 0.03 * np.abs(z))
    assert seen.mean() > 0.3
    return np.asarray(np.abs(warped - second.image)[seen].mean(axis=1))


@pytest.mark.parametrize('name', CAMERAS)
def test_warping_one_frame_into_the_next_leaves_less_than_the_noise(
    shoot: Shoot, name: str
) -> None:
    camera = doubled(PINHOLE) if name == 'pinhole' else CAMERAS[name]
    noisy = Drive(day=1)
    noise = np.abs(
        shoot(noisy, camera, 1.1, seed=1).image.astype(float) - shoot(noisy, camera, 1.1, 2).image
    )
    clean = Drive(day=1, condition=QUIET)
    first, second = shoot(clean, camera, 1.0), shoot(clean, camera, 1.1)
    assert np.median(warp_error(first, second)) < np.median(noise.mean(axis=2))
    # A fifth of a pixel already shows, to either side alike.
    best = warp_error(first, second).mean()
    assert best < warp_error(first, second, 0.2).mean()
    assert best < warp_error(first, second, -0.2).mean()


def test_same_seed_gives_the_same_bits_and_another_seed_another_town() -> None:
    drive = Drive(day=1)
    pose = drive.cam_from_map(1.0, LENGTH_M)
    frame, twin, other = (
        render(Town(seed, LENGTH_M, 0.08).scene(drive), PINHOLE, pose, np.random.default_rng(0))
        for seed in (SEED, SEED, SEED + 1)
    )
    for name in ('image', 'depth', 'class_id', 'group', 'is_static'):
        assert np.array_equal(getattr(frame, name), getattr(twin, name)), name
    assert np.mean(np.abs(frame.image.astype(float) - other.image)) > 10


def hit_by_loop(mesh: Mesh, eye: Any, ray: Any) -> tuple[float, int]:
    """Distance along a ray and row of the first quad that it meets, one quad after the other."""
    best, row = np.inf, -1
    for n in range(len(mesh)):
        if not mesh.is_two_sided[n] and np.dot(mesh.normal[n], eye - mesh.origin[n]) <= 0:
            continue
        columns = np.column_stack([mesh.edge_u[n], mesh.edge_v[n], -ray])
        if abs(np.linalg.det(columns)) < 1e-12:
            continue
        s, t, k = np.linalg.solve(columns, eye - mesh.origin[n])
        if not (0 <= s <= 1 and 0 <= t <= 1 and 0.15 < k < best):
            continue
        picture = mesh.textures[n].levels[0]
        v = min(int(t * picture.shape[0]), picture.shape[0] - 1)
        u = min(int(s * picture.shape[1]), picture.shape[1] - 1)
        if not mesh.textures[n].is_cutout or picture[v, u, 3] > 127:
            best, row = float(k), n
    return best, row


def test_depth_and_class_are_those_of_the_first_quad_a_ray_meets(town: Town, shoot: Shoot) -> None:
    drive = Drive(day=1, condition=QUIET)
    frame, scene = shoot(drive), town.scene(drive)
    eye = frame.cam_from_map.inverse().translation
    mesh = Mesh.join([scene.mesh, scene.moving(1.0, eye)[0]])
    rng = np.random.default_rng(4)
    pixels = np.column_stack([rng.integers(0, 320, 24), rng.integers(0, 240, 24)])
    rays = PINHOLE.unproject(pixels + 0.5)
    agree = 0
    for (x, y), ray in zip(pixels.tolist(), rays / rays[:, 2:], strict=True):
        depth, row = hit_by_loop(mesh, eye, frame.cam_from_map.rotation.T @ ray)
        class_id = CLASS_ID['sky'] if row < 0 else mesh.class_id[row]
        same = np.isclose(frame.depth[y, x], depth, rtol=1e-5) or frame.depth[y, x] == depth
        agree += bool(same and frame.class_id[y, x] == class_id)
    # The rest are pixels that an edge crosses: most of their area is another surface.
    assert agree >= 20


def test_depth_is_the_same_surface_through_every_camera(shoot: Shoot) -> None:
    drive = Drive(day=1, condition=QUIET)
    flat, bent = shoot(drive), shoot(drive, DISTORTED)
    in_flat = flat.cam_from_map.apply(points_in_map(bent))
    pixels = PINHOLE.project(in_flat)
    inside = PINHOLE.contains(pixels) & np.isfinite(in_flat[:, 2])
    x, y = np.floor(pixels[inside]).astype(int).T
    near = in_flat[inside, 2]
    for name, tolerance in (('depth', 0.02), ('class_id', 0.0)):
        if name == 'depth':
            same = np.abs(flat.depth[y, x] - near) <= tolerance * near + 0.05
        else:
            same = flat.class_id[y, x] == bent.class_id.reshape(-1)[inside]
        assert same.mean() > 0.93, name


def test_fisheye_sees_more_than_a_plane_could(shoot: Shoot) -> None:
    frame = shoot(Drive(day=1, condition=QUIET), FISHEYE)
    rays = FISHEYE.unproject(pixel_centres(FISHEYE))
    angle = np.degrees(np.arccos(rays[:, 2])).reshape(frame.depth.shape)
    beyond = angle > 70
    assert beyond.sum() > 1000
    assert (frame.class_id[beyond] != CLASS_ID['sky']).mean() > 0.3
    assert frame.image[beyond].std() > 10


@pytest.mark.parametrize('what', ['class_id', 'depth'])
def test_edges_of_labels_and_depth_lie_on_edges_of_the_image(shoot: Shoot, what: str) -> None:
    frame = shoot(Drive(day=1, condition=replace(QUIET, weather='overcast', has_leaves=False)))
    grey = frame.image.astype(float).mean(axis=2)
    contrast = np.abs(np.diff(grey, axis=1))
    if what == 'class_id':
        is_edge = np.diff(frame.class_id.astype(int), axis=1) != 0
    else:
        inverse = 1 / frame.depth.astype(float)
        is_edge = np.abs(np.diff(inverse, axis=1)) > 0.2 * inverse[:, 1:] + 0.002
    is_edge[:, :4] = is_edge[:, -4:] = False
    y, x = np.nonzero(is_edge)
    assert len(x) > 300
    mean = {shift: contrast[y, x + shift].mean() for shift in range(-3, 4)}
    assert max(mean, key=lambda shift: mean[shift]) == 0
    assert mean[0] > 1.5 * max(mean[-2], mean[2])


def test_far_fine_texture_turns_grey_without_moire() -> None:
    board = (np.indices((512, 512)).sum(axis=0) % 2 * 255).astype(np.uint8)
    texture = Texture.make(np.dstack([board] * 3))
    wall = Mesh.of([Quad((10.0, 5.0, 5.0), (0, -10, 0), (0, 0, -10), texture, 'building')])
    # The camera looks along x; 51 texels a metre, 10 m away, 100 px focal: 5 texels a pixel.
    projection = np.array([[50.0, -100, 0, 0], [50, 0, -100, 0], [1, 0, 0, 0]])
    layers = rasterize(wall, View(projection, (100, 100), np.array([0.0, 0, 0, 1])))
    assert (layers.quad == 0).all()
    assert np.abs(layers.color[..., :3].astype(int) - 127).max() <= 1
    assert np.allclose(layers.key, 0.1)


def test_known_quad_lands_on_known_pixels() -> None:
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[0, 1] = (255, 0, 0)
    quad = Quad((4.0, 1.0, 1.0), (0, -2, 0), (0, 0, -2), Texture.make(picture), 'building')
    projection = np.array([[4.0, -8, 0, 0], [4, 0, -8, 0], [1, 0, 0, 0]])
    layers = rasterize(Mesh.of([quad]), View(projection, (8, 8), np.array([0.0, 0, 0, 1])))
    expected = np.full((8, 8), -1)
    expected[2:6, 2:6] = 0
    assert np.array_equal(layers.quad, expected)
    # The red texel is the upper right one.
    assert layers.color[2, 5, 0] == 255 and layers.color[5, 2, 0] == 0


def test_quad_is_seen_from_its_front_only() -> None:
    quad = Quad((4.0, -1.0, 1.0), (0, 2, 0), (0, 0, -2), Texture.plain((9, 9, 9)), 'building')
    projection = np.array([[4.0, -8, 0, 0], [4, 0, -8, 0], [1, 0, 0, 0]])
    view = View(projection, (8, 8), np.array([0.0, 0, 0, 1]))
    assert (rasterize(Mesh.of([quad]), view).quad == -1).all()
    both = replace(quad, is_two_sided=True)
    assert (rasterize(Mesh.of([both]), view).quad == 0).any()


def test_no_front_is_painted_twice(town: Town) -> None:
    walls = {
        texture.levels[0].tobytes()
        for texture, class_id in zip(town.mesh.textures, town.mesh.class_id, strict=True)
        if class_id == CLASS_ID['building'] and texture.levels[0].shape[0] > 300
    }
    glass = {
        texture.levels[0].tobytes()
        for texture, class_id in zip(town.mesh.textures, town.mesh.class_id, strict=True)
        if class_id == CLASS_ID['window']
    }
    assert len(walls) >= 20
    assert len(glass) == int((town.mesh.class_id == CLASS_ID['window']).sum())


def test_recesses_and_balconies_have_depth(town: Town, shoot: Shoot) -> None:
    frame = shoot(Drive(day=1, condition=QUIET, camera_yaw_deg=90.0))
    distance = points_in_map(frame)[:, 1].reshape(frame.depth.shape)
    front = distance[frame.class_id == CLASS_ID['building']]
    glass = distance[frame.class_id == CLASS_ID['window']]
    assert np.percentile(glass, 50) > np.percentile(front, 50) + 0.1


def test_textures_keep_within_bounds(town: Town) -> None:
    assert town.nbytes < 150e6
    for texture in town.mesh.textures:
        assert max(texture.levels[0].shape[:2]) < 32767


def test_another_day_has_other_cars_and_leaves_but_the_same_houses(town: Town) -> None:
    days = [town.scene(Drive(day=day, condition=QUIET)) for day in (1, 2)]
    here = days[0].parked >= 0
    assert here.sum() >= 4
    assert np.mean(days[0].parked[here] != days[1].parked[here]) >= 0.3
    houses = len(town.mesh)
    for scene in days:
        assert np.array_equal(scene.mesh.origin[:houses], town.mesh.origin)
        assert all(
            a is b for a, b in zip(scene.mesh.textures[:houses], town.mesh.textures, strict=True)
        )
    trees = [scene.mesh.origin[scene.mesh.class_id == CLASS_ID['tree']] for scene in days]
    assert len(trees[0]) > 20
    assert trees[0].shape != trees[1].shape or np.abs(trees[0] - trees[1]).max() > 0.02


def test_other_lane_and_direction_see_the_same_walls_from_elsewhere(
    town: Town, shoot: Shoot
) -> None:
    first = shoot(Drive(day=1, condition=QUIET), time_s=1.0)
    lane = shoot(Drive(day=1, condition=QUIET, lane_offset_m=-1.6), time_s=1.0)
    eyes = [frame.cam_from_map.inverse().translation for frame in (first, lane)]
    assert np.linalg.norm(eyes[0] - eyes[1]) > 1.5
    assert np.median(warp_error(first, lane)) < 12
    # Without parallax one homography at infinity would do; near walls move tens of pixels.
    rotation = first.cam_from_map.rotation @ lane.cam_from_map.rotation.T
    rays = PINHOLE.unproject(pixel_centres(PINHOLE)) @ rotation.T
    points = points_in_map(lane)
    moved = np.linalg.norm(
        PINHOLE.project(first.cam_from_map.apply(points)) - PINHOLE.project(rays), axis=1
    )
    assert np.nanpercentile(moved, 90) > 15
    back = Drive(day=1, condition=QUIET, direction=-1)
    ahead = back.cam_from_map(0.0, town.length_m).rotation[2]
    assert ahead[0] < -0.99


def test_another_lane_on_another_day_is_found_within_10_cm(shoot: Shoot) -> None:
    camera = doubled(PINHOLE)
    known = shoot(Drive(day=1), camera, 1.0)
    query = shoot(Drive(day=2, lane_offset_m=0.0, condition=CONDITIONS['overcast']), camera, 1.2)
    extract = create_extractor('sift', max_keypoints=2000)
    old, new = extract(known.image), extract(query.image)
    column, row = np.floor(old.keypoints).astype(int).T
    points = points_in_map(known)[row * camera.width + column]
    usable = np.isfinite(points[:, 2])
    similarity = new.descriptors @ old.descriptors[usable].T
    best = similarity.argmax(axis=1)
    mutual = similarity.argmax(axis=0)[best] == np.arange(len(best))
    matrix = np.array([[450.0, 0, 320], [0, 450, 240], [0, 0, 1]])
    found, rotation, translation, inliers = cv2.solvePnPRansac(
        points[usable][best[mutual]],
        new.keypoints[mutual].astype(float),
        matrix,
        None,
        iterationsCount=2000,
        reprojectionError=3.0,
    )
    assert found and len(inliers) > 40
    eye = -cv2.Rodrigues(rotation)[0].T @ translation[:, 0]
    truth = query.cam_from_map.inverse().translation
    assert np.linalg.norm(truth - known.cam_from_map.inverse().translation) > 1.5
    assert np.linalg.norm(eye - truth) < 0.1


def test_conditions_look_as_they_should(shoot: Shoot) -> None:
    def taken(name: str, **changes: Any) -> Frame:
        return shoot(Drive(day=1, condition=replace(CONDITIONS[name], **changes)))

    day, dusk, night = taken('day'), taken('dusk'), taken('night')
    brightness = [float(frame.image.mean()) for frame in (day, dusk, night)]
    assert brightness[0] > brightness[1] > brightness[2] > 8
    # Lit windows: brighter than the walls at night, not by day.
    ratio = [
        np.percentile(frame.image[frame.class_id == CLASS_ID['window']], 99)
        / np.percentile(frame.image[frame.class_id == CLASS_ID['building']], 99)
        for frame in (day, night)
    ]
    assert ratio[1] > 1.2 * ratio[0]
    bare, leafy = taken('winter'), taken('overcast')
    is_tree = [np.mean(frame.class_id == CLASS_ID['tree']) for frame in (bare, leafy)]
    assert 0 < is_tree[0] < is_tree[1]
    brighter = taken('overcast', exposure_ev=1.0)
    assert brighter.image.mean() > 1.2 * leafy.image.mean()
    wet, dry = taken('rain', noise=0.0), taken('rain', noise=0.0, is_wet=False)
    changed = np.abs(wet.image.astype(float) - dry.image).max(axis=2) > 3
    is_ground = np.isin(dry.class_id, [CLASS_ID['road'], CLASS_ID['pavement']])
    assert changed[is_ground].mean() > 0.5
    assert changed[~is_ground].mean() < 0.05


def test_photon_noise_is_stronger_at_night(shoot: Shoot) -> None:
    deviation = []
    for name in ('day', 'night'):
        drive = Drive(day=1, condition=CONDITIONS[name])
        two = [shoot(drive, seed=seed).image.astype(float) for seed in (1, 2)]
        deviation.append(np.std(two[0] - two[1]) / two[0].mean())
    assert deviation[1] > 3 * deviation[0]


def test_open_shutter_blurs_the_image_and_nothing_else(shoot: Shoot) -> None:
    sharp = shoot(Drive(day=1, condition=QUIET, camera_yaw_deg=90.0))
    blurred = shoot(Drive(day=1, condition=replace(QUIET, shutter_s=0.03), camera_yaw_deg=90.0))
    across, down = (
        np.abs(np.diff(blurred.image.astype(float), axis=axis)).mean()
        / np.abs(np.diff(sharp.image.astype(float), axis=axis)).mean()
        for axis in (1, 0)
    )
    assert across < 0.75 * down
    assert np.array_equal(sharp.depth, blurred.depth)
    assert np.array_equal(sharp.class_id, blurred.class_id)


def test_groups_follow_the_label_table_and_all_kinds_are_seen(shoot: Shoot) -> None:
    seen: set[str] = set()
    for day in (1, 2):
        for yaw in (0.0, 60.0, -60.0):
            frame = shoot(Drive(day=day, condition=QUIET, camera_yaw_deg=yaw))
            assert np.array_equal(frame.group, TOWN_LABELS.group_by_id[frame.class_id])
            assert np.array_equal(np.isinf(frame.depth), frame.class_id == CLASS_ID['sky'])
            seen |= {TOWN_LABELS.classes[int(i)][0] for i in np.unique(frame.class_id)}
    assert {'road', 'pavement', 'building', 'window', 'car', 'tree', 'person'} <= seen


def test_drive_is_written_as_a_colmap_model(town: Town, tmp_path: Path) -> None:
    drive = Drive(day=1, length_m=1.2, condition=QUIET)
    scene = town.scene(drive)
    folder = write_drive(tmp_path / 'drive', scene, DISTORTED, has_truth=True)
    truth = [frame for _, frame in frames(scene, DISTORTED)]
    model = read_colmap_model(folder / 'sparse')
    assert [image.name for image in model] == ['000000.png', '000001.png', '000002.png']
    for image, frame in zip(model, truth, strict=True):
        assert image.camera == DISTORTED
        assert np.allclose(image.cam_from_map.translation, frame.cam_from_map.translation)
        assert np.allclose(image.cam_from_map.rotation, frame.cam_from_map.rotation)
        assert np.array_equal(read_image(folder / 'images' / image.name), frame.image)
        with np.load(folder / 'truth' / f'{image.name[:-4]}.npz') as arrays:
            assert np.array_equal(arrays['depth'], frame.depth)
            assert np.array_equal(arrays['group'], frame.group)
    assert (folder / 'times.txt').read_text().split()[3] == '100000000'
    with pytest.raises(DataError, match='choose another name'):
        write_drive(folder, scene, DISTORTED)


def test_impossible_towns_and_drives_are_refused() -> None:
    with pytest.raises(ConfigError, match=r'town of 5 m .* choose 40 to 2500'):
        Town(1, 5)
    with pytest.raises(ConfigError, match=r'texel_m is 1: choose'):
        Town(1, 50, 1)
    with pytest.raises(ConfigError, match='choose one of day, dusk, night'):
        Condition(time='noon')
    with pytest.raises(ConfigError, match=r'Drive.direction is 0'):
        Drive(direction=0)
