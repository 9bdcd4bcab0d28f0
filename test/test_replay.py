# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags of the room replayed in its map; a recorded bag where there is one."""

from __future__ import annotations

import csv
import json
from pathlib import Path
import time
from typing import Any

from conftest import CAMERA, Scene, walk
import numpy as np
import pytest
from test_bags import header, image_values, Message, pose_values, transform_values, write_bag

from feat_ros.bags import Bag
from feat_ros.cli import main
from feat_ros.colmap_files import PosedImage
from feat_ros.errors import BagError, ConfigError, DataError, FeatRosError, ImageError
from feat_ros.extractors import create_extractor
from feat_ros.geometry import Rigid3d, rotation_angle_deg, so3_exp
from feat_ros.image import write_png
from feat_ros.localizer import create_retriever, Localizer, LocalizerConfig
from feat_ros.map_builder import build_map, BuildConfig
from feat_ros.replay import format_records, replay, ReplaySource, summarise_records
from feat_ros.server import ServerConfig
from feat_ros.sfm_map import SfmMap
from feat_ros.trajectory import read_tum
from feat_ros.types import FailureReason, FrameRecord

DATA = Path(__file__).parents[2] / 'shared' / 'data'
SECOND = 10**9
START = 1_700_000_000 * SECOND
STEP = SECOND // 4
IMAGES, INFO, TRUTH, ODOMETRY = '/camera/image', '/camera/info', '/truth', '/odom'
TYPES = {
    IMAGES: 'sensor_msgs/msg/Image',
    INFO: 'sensor_msgs/msg/CameraInfo',
    TRUTH: 'geometry_msgs/msg/PoseStamped',
    ODOMETRY: 'nav_msgs/msg/Odometry',
    '/tf_static': 'tf2_msgs/msg/TFMessage',
}
CAM_FROM_BASE = Rigid3d(so3_exp([0.3, -1.2, 0.8]), np.array([0.4, -0.2, 1.1]))
ODOM_FROM_MAP = Rigid3d(so3_exp([0, 0, 2.0]), np.array([30.0, -7.0, 0.1]))
FILES = {'trajectory.tum', 'frames.csv', 'summary.json', 'manifest.json', 'report.html'}


def info_message() -> dict[str, Any]:
    """Return the room's camera as ROS has it: pixel centres at integers."""
    fx, fy, cx, cy, *distortion = CAMERA.params
    return {
        'header': header(START, 'cam'),
        'width': CAMERA.width,
        'height': CAMERA.height,
        'distortion_model': 'plumb_bob',
        'd': [*distortion, 0.0],
        'k': [fx, 0, cx - 0.5, 0, fy, cy - 0.5, 0, 0, 1],
    }


def write_recording(
    path: Path, images: list[Any], poses: list[Rigid3d], extra: list[Message] | None = None
) -> Path:
    """Write images of known ``cam_from_map`` a quarter of a second apart, with all topics."""
    transform = transform_values(START, 'base_link', 'cam', CAM_FROM_BASE.inverse())
    messages: list[Message] = [
        ('/tf_static', TYPES['/tf_static'], START, {'transforms': [transform]}),
        (INFO, TYPES[INFO], START, info_message()),
    ]
    for number, (image, cam_from_map) in enumerate(zip(images, poses, strict=True)):
        stamp = START + number * STEP
        map_from_cam = cam_from_map.inverse()
        odometry = {
            'header': header(stamp, 'odom'),
            'child_frame_id': 'base_link',
            'pose': {'pose': pose_values(ODOM_FROM_MAP @ map_from_cam @ CAM_FROM_BASE)},
        }
        truth = {'header': header(stamp, 'map'), 'pose': pose_values(map_from_cam)}
        messages += [
            (ODOMETRY, TYPES[ODOMETRY], stamp, odometry),
            (TRUTH, TYPES[TRUTH], stamp, truth),
            (IMAGES, TYPES[IMAGES], stamp, image_values(stamp, image)),
        ]
    return write_bag(path, 'ros2', messages + (extra or []))


@pytest.fixture(scope='module')
def recording(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures on the walk in two seconds; the sixth is black."""
    poses = walk(9, 0.5)
    images = [scene.room.shoot(CAMERA, pose, 70 + n) for n, pose in enumerate(poses)]
    images[5] = np.zeros_like(images[5])
    return write_recording(tmp_path_factory.mktemp('bags') / 'walk', images, poses)


@pytest.fixture(scope='module')
def localizer(room_map: SfmMap) -> Localizer:
    """Localize in the room."""
    return Localizer(room_map, create_extractor('sift', max_keypoints=600))


def source(**changes: Any) -> ReplaySource:
    """Return the topics of the recordings."""
    topics = {'image_topic': IMAGES, 'info_topic': INFO, 'ground_truth_topic': TRUTH}
    return ReplaySource(**{**topics, **changes})


def rows_of(out: Path) -> list[dict[str, str]]:
    """Read ``frames.csv``."""
    with (out / 'frames.csv').open(newline='') as file:
        return list(csv.DictReader(file))


def test_every_frame(recording: Path, localizer: Localizer, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    shown = []

    def progress(items: list[Any], what: str) -> Any:
        shown.append((len(items), what))
        return items

    summary = replay(recording, localizer, out, source(), progress=progress)
    assert shown == [(9, 'replay')]
    assert {path.name for path in out.iterdir()} == FILES
    assert list(tmp_path.iterdir()) == [out]
    assert json.loads((out / 'summary.json').read_text()) == summary

    assert (summary['num_queries'], summary['num_localized'], summary['dropped']) == (9, 8, 0)
    assert summary['reasons'] == {'NO_FEATURES': 1}
    assert summary['num_with_ground_truth'] == 9
    assert summary['recall']['0.05m_5deg'] == pytest.approx(8 / 9)
    assert summary['median_translation_error_m'] < 0.02
    assert summary['median_rotation_error_deg'] < 0.3
    assert summary['modes'] == {'global': 1, 'prior': 7}
    assert summary['covariance']['num_poses'] == 8
    assert {'extract', 'match', 'pnp', 'total'} <= set(summary['latency_ms'])
    assert set(summary['latency_ms']['total']) == {'p50', 'p95'}

    rows = rows_of(out)
    assert [int(row['stamp_ns']) for row in rows] == [START + n * STEP for n in range(9)]
    assert [row['status'] for row in rows] == [*['localized'] * 5, 'refused', *['localized'] * 3]
    black = rows[5]
    assert (black['reason'], black['tx'], black['translation_error_m']) == ('NO_FEATURES', '', '')
    assert 'the image gave 0 keypoints' in black['detail']
    trajectory = read_tum(out / 'trajectory.tum')
    good = [row for row in rows if row['status'] == 'localized']
    assert trajectory.stamps_ns.tolist() == [int(row['stamp_ns']) for row in good]
    poses = walk(9, 0.5)
    for index, row in enumerate(good):
        columns = [float(row[name]) for name in ('tx', 'ty', 'tz', 'qx', 'qy', 'qz', 'qw')]
        np.testing.assert_allclose(columns[:3], trajectory.translations[index], atol=1e-12)
        truth = poses[(int(row['stamp_ns']) - START) // STEP].inverse()
        error = np.linalg.norm(np.array(columns[:3]) - truth.translation)
        assert float(row['translation_error_m']) == pytest.approx(error, abs=1e-9)
        turned = rotation_angle_deg(Rigid3d.from_quat_xyzw(columns[3:], [0, 0, 0]).rotation,
                                    truth.rotation)  # fmt: skip
        assert float(row['rotation_error_deg']) == pytest.approx(turned, abs=1e-6)
        assert 0 < float(row['sigma_m']) < 0.1 and float(row['extract_ms']) > 0

    manifest = json.loads((out / 'manifest.json').read_text())
    assert manifest['map_id'] == localizer.map.manifest.map_id
    assert manifest['source']['image_topic'] == IMAGES
    assert manifest['server']['accept_after'] == ServerConfig().accept_after
    report = (out / 'report.html').read_text()
    assert 'walk in room' in report and 'no features' in report


def test_pose_of_the_base_by_odometry(
    recording: Path, localizer: Localizer, tmp_path: Path
) -> None:
    """The odometry names the base, TF where the camera is, the truth is the camera's."""
    asked = source(odometry_topic=ODOMETRY)
    summary = replay(recording, localizer, tmp_path / 'out', asked)
    assert summary['recall']['0.05m_5deg'] == pytest.approx(8 / 9)
    trajectory = read_tum(tmp_path / 'out' / 'trajectory.tum')
    poses = walk(9, 0.5)
    for stamp, position in zip(trajectory.stamps_ns, trajectory.translations, strict=True):
        map_from_base = poses[(stamp - START) // STEP].inverse() @ CAM_FROM_BASE
        assert np.linalg.norm(position - map_from_base.translation) < 0.05
    by_name = source(base_frame='base_link', ground_truth_frame='cam')
    replay(recording, localizer, tmp_path / 'named', by_name)
    np.testing.assert_allclose(
        read_tum(tmp_path / 'named' / 'trajectory.tum').translations,
        trajectory.translations,
        atol=0.05,
    )


def test_truth_of_another_frame(recording: Path, localizer: Localizer, tmp_path: Path) -> None:
    """Taken for the base's, the camera's poses are wrong by the lever."""
    summary = replay(
        recording, localizer, tmp_path / 'out', source(ground_truth_frame='base_link')
    )
    lever = float(np.linalg.norm(CAM_FROM_BASE.translation))
    assert summary['median_translation_error_m'] == pytest.approx(lever, abs=0.03)


def test_without_ground_truth(recording: Path, localizer: Localizer, tmp_path: Path) -> None:
    summary = replay(
        recording, localizer, tmp_path / 'out', source(ground_truth_topic=None, every=4)
    )
    assert (summary['num_queries'], summary['num_localized']) == (3, 3)
    assert summary['median_translation_error_m'] is None
    assert (summary['recall'], summary['covariance']) == ({}, None)
    assert rows_of(tmp_path / 'out')[0]['translation_error_m'] == ''


@pytest.mark.parametrize(
    ('changes', 'chosen'),
    [
        ({'seconds': 'even'}, [0, 1, 2, 3, 8]),
        ({'seconds': 'odd'}, [4, 5, 6, 7]),
        ({'seconds': 'even', 'every': 2}, [0, 2, 8]),
        ({'start_s': 0.5, 'end_s': 1.5}, [2, 3, 4, 5, 6]),
        ({'start_s': 0.6, 'every': 3}, [3, 6]),
    ],
)
def test_selection(
    recording: Path, localizer: Localizer, tmp_path: Path, changes: Any, chosen: list[int]
) -> None:
    replay(recording, localizer, tmp_path / 'out', source(**changes))
    stamps = [int(row['stamp_ns']) for row in rows_of(tmp_path / 'out')]
    assert stamps == [START + number * STEP for number in chosen]


class Slow:
    """An extractor that takes its time."""

    weights_sha256 = ''

    def __init__(self, inner: Any, wait_s: float) -> None:
        self.name, self.descriptor_dim, self.config = 'sift', inner.descriptor_dim, inner.config
        self._inner, self._wait_s = inner, wait_s

    def __call__(self, image_rgb: Any) -> Any:
        """Extract, late."""
        time.sleep(self._wait_s)
        return self._inner(image_rgb)


@pytest.mark.parametrize('ahead', [False, True])
def test_in_real_time_frames_are_dropped(
    recording: Path, room_map: SfmMap, tmp_path: Path, ahead: bool
) -> None:
    """An extractor that needs three times the time between two frames cannot do all."""
    slow = Slow(create_extractor('sift', max_keypoints=600), 0.75)
    summary = replay(
        recording, Localizer(room_map, slow), tmp_path / 'out', source(),
        ServerConfig(extract_ahead=ahead), realtime=True,
    )  # fmt: skip
    assert summary['num_frames'] == 9
    assert 1 <= summary['dropped'] <= 7
    assert summary['num_queries'] == 9 - summary['dropped']
    rows = rows_of(tmp_path / 'out')
    assert [int(row['stamp_ns']) for row in rows] == [START + n * STEP for n in range(9)]
    assert sum(row['status'] == 'dropped' for row in rows) == summary['dropped']
    # The first is never overtaken, the last never replaced.
    assert rows[0]['status'] == 'localized' and rows[-1]['status'] == 'localized'
    assert 'wait' in summary['latency_ms']
    # Dropped frames are no failures.
    tried = summary['num_with_ground_truth']
    assert tried == summary['num_queries']


def test_odd_recordings(
    scene: Scene, localizer: Localizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    poses = walk(9, 0.5)[:2]
    images = [scene.room.shoot(CAMERA, pose) for pose in poses]
    again: Message = (IMAGES, TYPES[IMAGES], START + STEP, image_values(START + STEP, images[0]))
    twice = write_recording(tmp_path / 'twice', images, poses, [again])
    assert replay(twice, localizer, tmp_path / 'out', source())['num_queries'] == 2
    assert 'is there twice' in caplog.text
    caplog.clear()
    asked = source(ground_truth_topic=ODOMETRY, ground_truth_frame='cam')
    replay(twice, localizer, tmp_path / 'other', asked)
    assert "the ground truth is in frame 'odom', the map in 'map'" in caplog.text


def broken_info(path: Path, scene: Scene) -> Path:
    """Write a bag whose images are larger than its calibration says."""
    image = np.zeros((CAMERA.height + 2, CAMERA.width, 3), np.uint8)
    return write_recording(path, [image] * 2, walk(9)[:2])


@pytest.mark.parametrize('realtime', [False, True])
def test_wrong_calibration(
    scene: Scene, localizer: Localizer, tmp_path: Path, realtime: bool
) -> None:
    bag = broken_info(tmp_path / 'bag', scene)
    with pytest.raises(ImageError, match='image is 320x242, its camera 320x240'):
        replay(bag, localizer, tmp_path / 'out', source(), realtime=realtime)
    assert [path.name for path in tmp_path.iterdir()] == ['bag']


@pytest.mark.parametrize('realtime', [False, True])
def test_an_image_that_cannot_be_used_is_a_record(
    scene: Scene,
    localizer: Localizer,
    tmp_path: Path,
    realtime: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One of another size and one whose data end too early, between two good ones."""
    poses = walk(9, 0.5)[:2]
    images = [scene.room.shoot(CAMERA, pose) for pose in poses]
    wrong = image_values(START + STEP // 4, images[0][:-2])
    cut = image_values(START + STEP // 2, images[0])
    cut['data'] = cut['data'][:-1]
    extra: list[Message] = [
        (IMAGES, TYPES[IMAGES], START + STEP // 4, wrong),
        (IMAGES, TYPES[IMAGES], START + STEP // 2, cut),
    ]
    bag = write_recording(tmp_path / 'bag', images, poses, extra)
    summary = replay(bag, localizer, tmp_path / 'out', source(), realtime=realtime)
    rows = rows_of(tmp_path / 'out')
    assert [int(row['stamp_ns']) - START for row in rows] == [0, STEP // 4, STEP // 2, STEP]
    assert summary['num_frames'] == 4
    # In real time they may be dropped.
    assert summary['reasons'].get('BAD_IMAGE', 0) + summary['dropped'] >= 2
    if not realtime:
        assert [row['reason'] for row in rows[1:3]] == ['BAD_IMAGE'] * 2
        assert 'bytes' in rows[2]['detail']
        assert '2 of 4 images could not be used, the first: image is 320x238' in caplog.text
        assert 'bad image' in (tmp_path / 'out' / 'report.html').read_text()


def test_a_clock_that_jumps_ahead_is_not_waited_for(
    scene: Scene, localizer: Localizer, tmp_path: Path
) -> None:
    poses = walk(9, 0.5)[:2]
    images = [scene.room.shoot(CAMERA, pose) for pose in poses]
    late = START + 3600 * SECOND
    extra: list[Message] = [(IMAGES, TYPES[IMAGES], late, image_values(late, images[0]))]
    bag = write_recording(tmp_path / 'bag', images, poses, extra)
    summary = replay(bag, localizer, tmp_path / 'out', source(), realtime=True)
    assert summary['num_frames'] == 3
    assert int(rows_of(tmp_path / 'out')[-1]['stamp_ns']) == late


@pytest.mark.parametrize(
    ('changes', 'kind', 'message'),
    [
        (
            {'image_topic': '/cam'},
            BagError,
            r"no topic '/cam': its image topics are /camera/image",
        ),
        ({'info_topic': '/cam'}, BagError, r'its camera info topics are /camera/info'),
        ({'ground_truth_topic': '/gt'}, BagError, r'its pose topics are /odom, /truth'),
        (
            {'base_frame': 'chassis'},
            FeatRosError,
            r"unknown frame 'chassis'; known are: base_link",
        ),
        ({'start_s': 60.0}, DataError, r'no image of topic /camera/image is within'),
    ],
)
def test_what_a_bag_does_not_hold(
    recording: Path, localizer: Localizer, tmp_path: Path, changes: Any, kind: Any, message: str
) -> None:
    with pytest.raises(kind, match=message):
        replay(recording, localizer, tmp_path / 'out', source(**changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'every': 0}, 'every is 0: it must be at least 1'),
        ({'seconds': 'some'}, "seconds is 'some': choose one of all, even, odd"),
        ({'start_s': float('nan')}, 'start_s is nan: it must be a finite number'),
    ],
)
def test_wrong_options(changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source(**changes)


def test_results_are_not_lost(recording: Path, localizer: Localizer, tmp_path: Path) -> None:
    out = tmp_path / 'out'
    first = replay(recording, localizer, out, source(every=8))
    with pytest.raises(DataError, match='out exists: choose another --out, or replace it'):
        replay(recording, localizer, out, source())
    with pytest.raises(DataError, match='no image of topic'):
        replay(recording, localizer, out, source(start_s=60.0), overwrite=True)
    assert json.loads((out / 'summary.json').read_text()) == first
    again = replay(recording, localizer, out, source(every=4), overwrite=True)
    assert again['num_queries'] == 3
    assert json.loads((out / 'summary.json').read_text()) == again
    photos = tmp_path / 'photos'
    photos.mkdir()
    (photos / 'wedding.jpg').write_bytes(b'')
    with pytest.raises(DataError, match='holds no earlier results of a replay'):
        replay(recording, localizer, photos, source(), overwrite=True)
    with pytest.raises(DataError, match=r'folder .*nowhere does not exist'):
        replay(recording, localizer, tmp_path / 'nowhere' / 'out', source())
    assert {path.name for path in tmp_path.iterdir()} == {'out', 'photos'}


def record(seconds: int, status: str, x: float | None, truth: float | None) -> FrameRecord:
    """Return a record on the x axis; two degrees and a standard deviation of 1 m."""
    turned = so3_exp([0, 0, np.radians(2)])
    refused = FailureReason.PNP_FAILED if status == 'refused' else None
    return FrameRecord(
        START + seconds * SECOND,
        status,
        refused,
        detail='a, "b"',
        map_from_base=None if x is None else Rigid3d(turned, np.array([x, 0, 0])),
        covariance=None if x is None else np.eye(6),
        truth=None if truth is None else Rigid3d(np.eye(3), np.array([truth, 0, 0])),
        ms={} if status == 'dropped' else {'match': 10.0 * seconds},
    )


def test_figures_of_records() -> None:
    records = [
        record(1, 'localized', 1.0, 1.04),
        record(2, 'localized', 2.0, 8.0),
        record(3, 'localized', 3.0, 3.2),
        record(4, 'localized', 4.0, None),
        record(5, 'refused', None, 5.0),
        record(6, 'dropped', None, 6.0),
    ]
    figures = summarise_records(records)
    assert (figures['num_frames'], figures['num_queries'], figures['dropped']) == (6, 5, 1)
    assert (figures['num_localized'], figures['num_with_ground_truth']) == (4, 4)
    assert figures['reasons'] == {'PNP_FAILED': 1}
    # Errors of 0.04, 6, 0.2 and infinity.
    assert figures['median_translation_error_m'] == pytest.approx(3.1)
    assert figures['recall']['0.05m_5deg'] == 0.25
    assert figures['recall']['0.25m_2deg'] == pytest.approx(0.5)
    assert figures['latency_ms']['match']['p50'] == 30.0
    assert figures['covariance']['num_poses'] == 3
    assert figures['covariance']['share_inside_95'] == pytest.approx(2 / 3)
    # Six metres are nothing beside a ground truth that is off by ten.
    assert summarise_records(records, 10.0)['covariance']['share_inside_95'] == 1.0
    assert json.dumps(figures)

    table = list(csv.DictReader(format_records(records).splitlines()))
    assert [row['status'] for row in table] == [r.status for r in records]
    assert float(table[1]['translation_error_m']) == 6.0
    assert float(table[1]['rotation_error_deg']) == pytest.approx(2.0)
    assert float(table[1]['sigma_m']) == 1.0
    assert float(table[1]['sigma_deg']) == pytest.approx(np.degrees(1.0))
    assert (table[5]['match_ms'], table[4]['match_ms']) == ('', '50.000')
    assert table[0]['detail'] == 'a, "b"'


def test_figures_of_nothing_localized() -> None:
    figures = summarise_records([record(1, 'refused', None, 1.0)])
    assert figures['median_translation_error_m'] is None
    assert figures['recall']['5m_10deg'] == 0.0
    assert figures['covariance']['num_poses'] == 0


def test_command(
    recording: Path, room_map: SfmMap, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        'replay', '--map', room_map.path, '--bag', recording, '--image-topic', IMAGES,
        '--info-topic', INFO, '--ground-truth-topic', TRUTH, '--odometry-topic', ODOMETRY,
        '--seconds', 'even', '--end', '0.9', '--out', tmp_path / 'out',
        '--json', tmp_path / 'figures.json', '--set', 'server.max_prior_radius_m=0',
        '--set', 'localizer.pnp.max_error_px=6',
    ]  # fmt: skip
    assert main([str(word) for word in words]) == 0
    figures = json.loads((tmp_path / 'figures.json').read_text())
    assert figures == json.loads((tmp_path / 'out' / 'summary.json').read_text())
    assert figures['modes'] == {'global': 4}
    manifest = json.loads((tmp_path / 'out' / 'manifest.json').read_text())
    assert manifest['localizer']['pnp']['max_error_px'] == 6.0
    assert manifest['server']['max_prior_radius_m'] == 0.0
    # The camera in a file, for a bag without CameraInfo.
    (tmp_path / 'camera.txt').write_text(f'* {CAMERA.to_words()}\n')
    described = [str(word) for word in words if word not in ('--info-topic', INFO)]
    described[described.index(str(tmp_path / 'out'))] = str(tmp_path / 'described')
    assert main([*described, '--cameras', str(tmp_path / 'camera.txt')]) == 0
    poses = [(tmp_path / name / 'trajectory.tum').read_bytes() for name in ('out', 'described')]
    assert poses[0] == poses[1]
    said = capsys.readouterr()
    assert '4 of 4 localized' in said.out and 'median error' in said.out
    assert main([str(word) for word in words]) == 1
    assert 'out exists: choose another --out' in capsys.readouterr().err


def map_of_even_seconds(out: Path, bag_path: Path, every: int, max_keypoints: int) -> SfmMap:
    """Build a map from images of the even seconds and the motion capture's poses."""
    folder, images, seen = out.with_name('images'), [], 0
    folder.mkdir()
    with Bag(bag_path) as bag:
        camera, _ = bag.camera_info('/camera/camera_info')
        truth = bag.poses('/ground_truth/pose').trajectory
        for image in bag.images('/camera/image_raw/compressed'):
            seen = seen or image.stamp_ns
            map_from_cam = truth.pose_at(image.stamp_ns, 50_000_000)
            if (image.stamp_ns - seen) // SECOND % 2 or map_from_cam is None:
                continue
            images.append(
                (image, PosedImage(f'{image.stamp_ns}.png', camera, map_from_cam.inverse(),
                                   np.zeros(0, np.int64)))
            )  # fmt: skip
        for stamped, posed in images[::every]:
            write_png(folder / posed.name, stamped.decode())
    options = BuildConfig(pairs_per_image=10, left_out_images=0)
    extractor = create_extractor('sift', max_keypoints=max_keypoints)
    return build_map(out, folder, [posed for _, posed in images[::every]], extractor, options)


def test_a_recorded_bag(tmp_path: Path) -> None:
    """A camera turned by hand, blurred: map from the even seconds, the odd ones replayed."""
    bag = DATA / 'fr1_rpy' / 'bag_db3'
    if not bag.is_dir():
        pytest.skip(f'{bag} is not there')
    sfm_map = map_of_even_seconds(tmp_path / 'map', bag, 5, 800)
    extractor = create_extractor('sift', max_keypoints=800)
    config = LocalizerConfig()
    localizer = Localizer(sfm_map, extractor, create_retriever(sfm_map, config), config)
    asked = ReplaySource(
        image_topic='/camera/image_raw/compressed',
        info_topic='/camera/camera_info',
        ground_truth_topic='/ground_truth/pose',
        seconds='odd',
        every=6,
    )
    summary = replay(
        bag, localizer, tmp_path / 'out', asked, truth_sigma_m=0.02, truth_sigma_deg=1.0
    )
    assert summary['num_queries'] == summary['num_with_ground_truth'] == 30
    assert summary['recall']['0.05m_5deg'] >= 0.85
    assert summary['covariance']['share_inside_95'] >= 0.8
    # Without odometry the last fix, a fifth of a second old, finds most frames.
    assert summary['modes']['prior'] > summary['modes']['global']
