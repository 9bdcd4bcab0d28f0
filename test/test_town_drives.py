# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Drives as bags, the command that writes them, and the map that is made of one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from feat_ros.bags import Bag
from feat_ros.camera import Camera
from feat_ros.cli import main
from feat_ros.colmap_files import read_colmap_model
from feat_ros.errors import DataError
from feat_ros.evaluation import compare_poses, summarise
from feat_ros.extractors import create_extractor
from feat_ros.geometry import Rigid3d, rotation_angle_deg
from feat_ros.image import decode_image, Image
from feat_ros.localizer import create_retriever, Localizer, LocalizerConfig
from feat_ros.map_builder import build_map, BuildConfig
from feat_ros.sfm_map import read_manifest, SfmMap
from feat_ros.town import bag, CONDITIONS, Drive, Frame, frames, Scene, Town, write_drive
from feat_ros.town.course import CAMERA, drive, DRIVES, STREET_M
from feat_ros.types import PoseEstimate

SHIPPED = Path(__file__).parents[1] / 'maps' / 'town_small'
CAMERAS = {
    'pinhole': Camera('PINHOLE', 160, 120, (110, 111, 80, 60)),
    'plumb bob': Camera('OPENCV', 160, 120, (110, 111, 81, 59, -0.28, 0.09, 0.0005, -0.0003)),
    'rational': Camera(
        'FULL_OPENCV', 160, 120,
        (110, 111, 81, 59, -0.2, 0.05, 0.0005, -0.0003, 0.01, 0.02, 0.01, 0.002),
    ),
    'fisheye': Camera('OPENCV_FISHEYE', 160, 150, (54, 54, 80, 75, -0.006, 0.04, -0.037, 0.006)),
}  # fmt: skip


@pytest.fixture(scope='module')
def town() -> Town:
    return Town(5, 40.0, 0.05)


@pytest.fixture(scope='module')
def scene(town: Town) -> Scene:
    return town.scene(Drive(day=2, length_m=1.2, speed_mps=4.0, camera_yaw_deg=20.0))


@pytest.mark.parametrize('name', CAMERAS)
def test_drive_is_read_back_from_its_bag(scene: Scene, tmp_path: Path, name: str) -> None:
    camera = CAMERAS[name]
    path = bag.write_drive_bag(tmp_path / 'drive', scene, camera)
    with Bag(path) as reader:
        read, frame_id = reader.camera_info(bag.INFO_TOPIC)
        images = list(reader.images(bag.IMAGE_TOPIC))
        truth, odometry = (reader.poses(topic) for topic in (bag.TRUTH_TOPIC, bag.ODOMETRY_TOPIC))
        tree = reader.transforms()
    rays = np.random.default_rng(0).normal([0, 0, 2], [0.4, 0.4, 0.1], (50, 3))
    assert np.allclose(read.project(rays), camera.project(rays), atol=1e-9, equal_nan=True)
    assert read.size_wh == camera.size_wh and frame_id == bag.CAMERA_FRAME
    rendered = list(frames(scene, camera))
    assert len(images) == len(rendered) == 4
    assert (truth.parent_frame, truth.child_frame) == ('map', bag.BASE_FRAME)
    assert (odometry.parent_frame, odometry.child_frame) == ('odom', bag.BASE_FRAME)
    for image, (time_s, frame) in zip(images, rendered, strict=True):
        assert image.stamp_ns == bag.start_ns(scene.drive) + round(time_s * 1e9)
        difference = image.decode().astype(float) - frame.image
        assert np.abs(difference).mean() < 6
        # The truth and the tree of frames together give the pose the image was rendered with.
        cam_from_base = tree.lookup(bag.CAMERA_FRAME, bag.BASE_FRAME, image.stamp_ns)
        map_from_base = truth.trajectory.pose_at(image.stamp_ns, 0)
        assert map_from_base is not None
        cam_from_map = cam_from_base @ map_from_base.inverse()
        assert np.allclose(cam_from_map.rotation, frame.cam_from_map.rotation)
        assert np.allclose(cam_from_map.translation, frame.cam_from_map.translation)
        # TF and the odometry topic say the same.
        odom_from_base = odometry.trajectory.pose_at(image.stamp_ns, 0)
        assert odom_from_base is not None
        moved = tree.lookup('odom', bag.BASE_FRAME, image.stamp_ns)
        assert np.allclose(moved.translation, odom_from_base.translation)


def test_base_is_on_the_ground_below_and_behind_the_camera() -> None:
    for direction in (1, -1):
        run = Drive(direction=direction, camera_height_m=1.4, camera_yaw_deg=90.0)
        map_from_base = run.cam_from_map(1.0, 50.0).inverse() @ bag.base_from_cam(run).inverse()
        assert abs(map_from_base.translation[2]) < 0.05
        ahead = map_from_base.rotation[:, 0]
        assert ahead[0] * direction > 0.99


def test_odometry_drifts_by_about_one_percent() -> None:
    truth = [Rigid3d(np.eye(3), np.array([0.16 * k, 0, 0])) for k in range(626)]
    lengths, ends, turns = [], [], []
    for seed in range(30):
        odom = bag.odometry(truth, np.random.default_rng(seed))
        steps = [a.inverse() @ b for a, b in pairwise(odom)]
        lengths.append(sum(np.linalg.norm(step.translation) for step in steps))
        ends.append(np.linalg.norm(odom[-1].translation - truth[-1].translation))
        turns.append(float(rotation_angle_deg(odom[-1].rotation, truth[-1].rotation)))
        # A step is nearly right: it is their sum that is not.
        assert max(np.linalg.norm(s.translation - [0.16, 0, 0]) for s in steps) < 0.03
    assert 0.5 < np.sqrt(np.mean(np.square(ends))) < 2.0
    assert 0.5 < np.sqrt(np.mean(np.square(turns))) < 2.0
    assert len(set(ends)) == 30


def test_bag_is_not_written_over_anything(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / 'drive').mkdir()
    with pytest.raises(DataError, match='choose another name'):
        bag.write_drive_bag(tmp_path / 'drive', scene, CAMERAS['pinhole'])


def test_drive_b_is_in_another_lane_on_another_day() -> None:
    first, second = (
        np.array([run.cam_from_map(float(t), STREET_M).inverse().translation for t in times])
        for run, times in (
            (DRIVES[name], np.linspace(0, DRIVES[name].times_s()[-1], 200)) for name in 'AB'
        )
    )
    beside = np.abs(np.interp(second[:, 0], first[:, 0], first[:, 1]) - second[:, 1])
    assert beside.min() >= 1.5
    town = Town(1, STREET_M, 0.1)
    parked = [town.scene(drive(name, 'day')).parked for name in 'AB']
    there = parked[0] >= 0
    assert there.sum() >= 4
    assert np.mean(parked[0][there] != parked[1][there]) >= 0.3


@pytest.fixture
def built(town: Town, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, float]]:
    """Let the command have a town that is there already; return what towns it wanted."""
    wanted: list[tuple[int, float]] = []

    def take(*which: Any) -> Town:
        wanted.append(which)
        return town

    monkeypatch.setattr('feat_ros.town.Town', take)
    return wanted


def test_command_writes_images_for_a_map(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], built: list[tuple[int, float]]
) -> None:
    out, figures = tmp_path / 'drive', tmp_path / 'figures.json'
    words = ['--length', '40', '--camera', 'PINHOLE 96 64 60 60 48 32', '--truth']
    changes = ['--set', 'length_m=1.6', '--set', 'condition.exposure_ev=1', '--json', str(figures)]
    code = main(
        ['town', '--out', str(out), '--seed', '3', '--condition', 'dusk', *words, *changes]
    )
    assert code == 0 and built == [(3, 40.0)]
    assert '2 images of town 3, drive A' in capsys.readouterr().out
    assert len(read_colmap_model(out / 'sparse')) == 2
    assert len(list((out / 'truth').iterdir())) == 2
    written = json.loads(figures.read_text())['drive']
    wanted = replace(DRIVES['A'], length_m=1.6)
    assert written['lane_offset_m'] == wanted.lane_offset_m and written['length_m'] == 1.6
    assert written['condition'] == vars(replace(CONDITIONS['dusk'], exposure_ev=1.0))


@pytest.mark.usefixtures('built')
def test_command_writes_a_bag(tmp_path: Path) -> None:
    words = ['--length', '40', '--camera', 'PINHOLE 96 64 60 60 48 32', '--set', 'length_m=1.6']
    code = main(['town', '--out', str(tmp_path / 'b'), '--drive', 'B', '--bag', *words])
    assert code == 0
    with Bag(tmp_path / 'b') as reader:
        assert len(list(reader.images(bag.IMAGE_TOPIC))) == 2


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--bag', '--truth'], 'leave out --truth'),
        (['--length', '5', '--set', 'length_m=1'], 'choose 40 to 2500'),
        (['--length', '40'], 'from 2 to 102 m, the street from 0 to 40'),
        (['--set', 'lane=1'], "no option 'lane'"),
        (['--set', 'condition.time=noon'], 'choose one of day, dusk, night'),
        (['--camera', 'PINHOLE 96 64'], 'PINHOLE'),
    ],
)
def test_command_refuses_what_cannot_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert main(['town', '--out', str(tmp_path / 'd'), *words]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob('*') if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_shipped_map_is_what_the_command_builds(tmp_path: Path) -> None:
    built = tmp_path / 'small'
    assert main(['town', '--small-map', str(built)]) == 0
    assert sum(len(data) for data in contents(SHIPPED).values()) <= 8e6
    shipped, here = (read_manifest(path).provenance for path in (SHIPPED, built))
    if shipped == here:
        assert contents(built) == contents(SHIPPED)
    else:
        # Other versions of the libraries, or another kind of machine: the same map, not its bits.
        maps = SfmMap(built), SfmMap(SHIPPED)
        assert maps[0].num_images == maps[1].num_images
        assert abs(maps[0].num_points / maps[1].num_points - 1) < 0.05


def test_small_map_replaces_nothing_but_a_map(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'notes.txt').write_text('mine')
    assert main(['town', '--small-map', str(tmp_path)]) == 1
    assert 'is not a map and is not replaced' in capsys.readouterr().err
    assert (tmp_path / 'notes.txt').read_text() == 'mine'


@dataclass(frozen=True)
class Course:
    """Images of drive A with their poses, and of drive B as they come out of a JPEG."""

    folder: Path
    queries: dict[str, list[Frame]]


@pytest.fixture(scope='module')
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    town = Town(2, 60.0)
    folder = tmp_path_factory.mktemp('course') / 'a'
    write_drive(folder, town.scene(replace(drive('A', 'day'), length_m=26.0)), CAMERA)
    queries = {}
    for condition, rate_hz in (('day', 4.0), ('night', 2.0)):
        run = replace(drive('B', condition), length_m=24.0, rate_hz=rate_hz)
        rendered = [frame for _, frame in frames(town.scene(run), CAMERA)]
        queries[condition] = [replace(f, image=through_jpeg(f.image)) for f in rendered]
    return Course(folder, queries)


def through_jpeg(image: Image) -> Image:
    data = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    return decode_image(data.tobytes(), 'frame')


def localized(course: Course, path: Path, **options: Any) -> dict[str, tuple[float, float]]:
    """Map drive A, localize drive B; return by condition the share within 0.10 m and 1 deg, and
    the median number of inliers.
    """
    extractor = create_extractor('sift', **options)
    model = read_colmap_model(course.folder / 'sparse')
    # Nothing here depends on the figures that leaving images out gives.
    build = BuildConfig(gravity='known', left_out_images=0, pairs_per_image=6)
    sfm_map = build_map(path, course.folder / 'images', model, extractor, build)
    settings = LocalizerConfig()
    localizer = Localizer(sfm_map, extractor, create_retriever(sfm_map, settings), settings)
    out = {}
    for condition, queries in course.queries.items():
        truth = {str(k): frame.cam_from_map for k, frame in enumerate(queries)}
        results = {str(k): localizer.localize(f.image, CAMERA) for k, f in enumerate(queries)}
        poses = {k: r.cam_from_map for k, r in results.items() if isinstance(r, PoseEstimate)}
        share = summarise(compare_poses(poses, truth))['recall']['0.1m_1deg']
        out[condition] = share, float(np.median([r.num_inliers for r in results.values()]))
    return out


def test_day_is_for_sift_and_neither_haze_nor_night_for_its_default(
    course: Course, tmp_path: Path
) -> None:
    """Of whole drives the project's baseline has to find 95 %, OpenCV's default 60 to 95 %.

    These are a quarter of them, a dozen images: too few for an upper limit on what the default
    finds. What decides that is how many inliers it has.
    """
    baseline = localized(course, tmp_path / 'baseline')
    default = localized(course, tmp_path / 'default', contrast_threshold=0.04)
    assert baseline['day'][0] >= 0.95 and baseline['day'][1] > 150
    assert default['day'][0] >= 0.6 and 25 <= default['day'][1] <= 100
    assert default['night'][0] <= 0.5
    assert baseline['night'][0] > default['night'][0]
