# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Messages of a live robot become frames, or are refused with a reason; no ROS, no network."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

from conftest import CAMERA, random_segment, Whole, write_map
import numpy as np
import pytest
from test_bags import header, image_values, pose_values, transform_values
from test_replay import CAM_FROM_BASE, info_message

from feat_ros.conversions import check_metric, diagnostic_status, pose_with_covariance, transform
from feat_ros.errors import ImageError, MapError
from feat_ros.extractors import create_extractor
from feat_ros.geometry import Rigid3d, so3_exp
from feat_ros.image import decode_image, Image
from feat_ros.intake import Intake, IntakeConfig
from feat_ros.localizer import Localizer
from feat_ros.monitor import Monitor
from feat_ros.server import bad_image, Frame, LocalizationServer
from feat_ros.sfm_map import SfmMap
from feat_ros.types import FailureReason, FrameRecord

SECOND = 10**9
START = 1_700_000_000 * SECOND
PICTURE = np.full((CAMERA.height, CAMERA.width, 3), 7, np.uint8)


def message(values: Any) -> Any:
    """Return nested dicts as an object with these attributes."""
    if isinstance(values, dict):
        return SimpleNamespace(**{name: message(value) for name, value in values.items()})
    return [message(value) for value in values] if isinstance(values, list) else values


def image(stamp_ns: int, frame: str = 'cam') -> Any:
    return message(image_values(stamp_ns, PICTURE, frame) | {'is_bigendian': 0})


def info(**changes: Any) -> Any:
    region = {'x_offset': 0, 'y_offset': 0, 'width': 0, 'height': 0}
    rest = {'binning_x': 0, 'binning_y': 0, 'roi': region}
    return message(info_message() | rest | changes)


def odometry(stamp_ns: int, x: float, **changes: Any) -> Any:
    pose = pose_values(Rigid3d(so3_exp([0, 0, x]), np.array([x, 0, 0])))
    values = {'header': header(stamp_ns, 'odom'), 'child_frame_id': '/base_link'}
    return message(values | {'pose': {'pose': pose | changes}})


def mount(parent: str = 'base_link', pose: Rigid3d | None = None, stamp_ns: int = 0) -> Any:
    pose = pose or CAM_FROM_BASE.inverse()
    return message({'transforms': [transform_values(stamp_ns, parent, 'cam', pose)]})


class Bench:
    """An intake with a clock of our own."""

    def __init__(self, **how: Any) -> None:
        self.now_s = 0.0
        self.frames: list[Frame] = []
        self.intake = Intake(self.frames.append, clock=lambda: self.now_s, **how)

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.intake.poll()

    @property
    def problems(self) -> str:
        return '; '.join(self.intake.snapshot().problems)


def test_an_image_and_its_camera() -> None:
    bench = Bench()
    bench.intake.image(image(START))
    bench.wait(0.1)
    assert not bench.frames and not bench.intake.has_camera
    bench.intake.camera_info(info())
    bench.wait(0.05)
    (frame,) = bench.frames
    assert (frame.stamp_ns, frame.cam_from_base, frame.odom_from_base) == (START, None, None)
    assert frame.camera.params == pytest.approx(CAMERA.params)
    assert callable(frame.image_rgb)
    np.testing.assert_array_equal(frame.image_rgb(), PICTURE)
    assert bench.intake.base_frame('cam') == 'cam' and bench.intake.newest_ns == START
    snapshot = bench.intake.snapshot()
    assert (snapshot.images, snapshot.refused, snapshot.dropped) == (1, {}, 0)
    assert snapshot.image_age_s == pytest.approx(0.15) and snapshot.problems == ()


def test_no_calibration_or_a_bad_one() -> None:
    bench = Bench()
    bench.intake.image(image(START))
    bench.wait(0.3)
    assert 'NO_CAMERA_INFO: no CameraInfo yet' in bench.problems
    bench.intake.camera_info(info(distortion_model='fancy'))
    bench.intake.image(image(START + 1))
    bench.wait(0.3)
    assert "unknown distortion model 'fancy'" in bench.problems
    bench.intake.camera_info(info())
    bench.intake.image(image(START + 2))
    assert [frame.stamp_ns for frame in bench.frames] == [START + 2]
    assert bench.intake.snapshot().refused == {'NO_CAMERA_INFO': 1, 'BAD_CAMERA_INFO': 1}
    bench.intake.camera_info(info(width=640))
    bench.intake.image(image(START + 3))
    assert bench.frames[-1].camera.width == 640
    bench.wait(2.5)
    assert bench.problems == 'no image for 2.5 s'


def test_stamps() -> None:
    bench = Bench()
    bench.intake.camera_info(info())
    bench.intake.image(image(0))
    assert 'BAD_STAMP: the camera has a message with stamp 0' in bench.problems
    for stamp_ns in (START, START - 30 * SECOND, START - 30 * SECOND + 1):
        bench.intake.image(image(stamp_ns))
    assert len(bench.frames) == 3
    assert bench.intake.snapshot().jumps == 1


def test_odometry_is_waited_for() -> None:
    """The pose is interpolated at the stamp, as a replay does."""
    bench = Bench(has_odometry=True)
    bench.intake.camera_info(info())
    bench.intake.transforms(mount(), is_static=True)
    bench.intake.odometry(odometry(START, 1.0))
    bench.intake.image(image(START + SECOND // 20))
    bench.intake.image(image(START + SECOND // 5))
    assert not bench.frames
    bench.intake.odometry(odometry(START + SECOND // 10, 2.0))
    (frame,) = bench.frames
    assert frame.odom_from_base is not None and frame.cam_from_base is not None
    np.testing.assert_allclose(frame.odom_from_base.translation, [1.5, 0, 0], atol=1e-12)
    np.testing.assert_allclose(frame.odom_from_base.rotation, so3_exp([0, 0, 1.5]), atol=1e-12)
    np.testing.assert_allclose(frame.cam_from_base.rotation, CAM_FROM_BASE.rotation, atol=1e-12)
    assert bench.intake.odom_frame == 'odom' and bench.intake.base_frame('cam') == 'base_link'
    assert bench.intake.newest_ns == START + SECOND // 10
    # When it does not come the image goes on without; what is older than it waits no longer.
    bench.wait(0.3)
    assert [frame.odom_from_base is None for frame in bench.frames] == [False, True]
    bench.wait(1.0)
    assert 'no odometry for 1.3 s' in bench.problems


def test_odometry_that_cannot_be_used() -> None:
    bench = Bench(has_odometry=True)
    bench.intake.camera_info(info())
    bench.intake.image(image(START))
    bench.wait(0.3)
    assert 'NO_ODOMETRY: no odometry yet: which frame is the base?' in bench.problems
    bench.intake.odometry(odometry(START, 1.0, orientation=message(dict.fromkeys('xyzw', 0.5e9))))
    assert 'odometry cannot be used' in bench.problems
    bench.intake.odometry(odometry(0, 1.0))
    assert 'odometry has a message with stamp 0' in bench.problems
    assert bench.intake.odom_frame == '' and not bench.frames


def test_odometry_of_a_clock_that_is_set_back() -> None:
    bench = Bench(has_odometry=True)
    bench.intake.camera_info(info())
    bench.intake.transforms(mount(), is_static=True)
    for stamp_ns, x in ((START, 1.0), (START - 60 * SECOND, 5.0), (START - 59 * SECOND, 6.0)):
        bench.intake.odometry(odometry(stamp_ns, x))
    bench.intake.odometry(odometry(START - 59 * SECOND, 9.0))
    bench.intake.image(image(START - 59 * SECOND))
    (frame,) = bench.frames
    assert frame.odom_from_base is not None
    np.testing.assert_allclose(frame.odom_from_base.translation, [6.0, 0, 0], atol=1e-12)
    assert bench.intake.snapshot().jumps == 1


def test_a_transform_that_is_late_or_missing() -> None:
    bench = Bench(base_frame='base_link')
    bench.intake.camera_info(info())
    bench.intake.image(image(START))
    bench.wait(0.1)
    assert not bench.frames and not bench.problems
    bench.intake.transforms(mount(stamp_ns=START - 1), is_static=False)
    bench.intake.transforms(mount(stamp_ns=START + 1), is_static=False)
    assert len(bench.frames) == 1
    bench.intake.image(image(START + SECOND))
    bench.wait(0.3)
    assert len(bench.frames) == 1
    assert "NO_TRANSFORM: transform 'base_link' <- 'cam' is known from" in bench.problems
    assert bench.intake.snapshot().refused == {'NO_TRANSFORM': 1}
    assert bench.intake.parents('cam') == ['base_link']


def test_transforms_are_forgotten() -> None:
    """A robot that runs for days keeps ten seconds; a clock set back forgets what was ahead."""
    bench = Bench(base_frame='base_link')
    bench.intake.camera_info(info())
    for number in range(200):
        bench.intake.transforms(mount(stamp_ns=START + number * SECOND // 10), is_static=False)
        bench.intake.transforms(mount(stamp_ns=START + number * SECOND // 10), is_static=False)
    bench.intake.image(image(START + 15 * SECOND))
    assert len(bench.frames) == 1
    bench.intake.image(image(START + 5 * SECOND))
    bench.wait(0.3)
    assert 'is known from' in bench.problems and len(bench.frames) == 1
    for ahead_ns in (0, SECOND):
        bench.intake.transforms(mount(stamp_ns=START - 99 * SECOND + ahead_ns), is_static=False)
    bench.intake.image(image(START - 99 * SECOND))
    assert len(bench.frames) == 2
    assert bench.intake.snapshot().jumps == 3


def test_transforms_that_cannot_be_used() -> None:
    bench = Bench(base_frame='base_link')
    bench.intake.camera_info(info())
    bad = Rigid3d(np.eye(3), np.full(3, np.nan))
    bench.intake.transforms(mount(pose=bad), is_static=True)
    assert 'a position that is not finite' in bench.problems
    bench.intake.transforms(mount(), is_static=True)
    bench.intake.transforms(mount('head', stamp_ns=START), is_static=False)
    bench.intake.image(image(START))
    bench.wait(0.3)
    assert "frame 'cam' has more than one parent, base_link, head" in bench.problems


def test_memory_is_finite() -> None:
    bench = Bench(has_odometry=True)
    for number in range(40):
        bench.intake.image(image(START + number))
    snapshot = bench.intake.snapshot()
    assert (snapshot.images, snapshot.dropped) == (40, 24)
    bench.intake.image(image(START - 10 * SECOND))
    snapshot = bench.intake.snapshot()
    assert (snapshot.images, snapshot.dropped) == (41, 40)


def test_what_goes_out() -> None:
    pose = Rigid3d(so3_exp([0.1, 0.2, -3.0]), np.array([1.0, 2.0, 3.0]))
    covariance = np.arange(36.0).reshape(6, 6)
    record = FrameRecord(START + 5, 'localized', map_from_base=pose, covariance=covariance)
    values = pose_with_covariance(record, 'map')
    assert values['header'] == {'stamp': {'sec': 1_700_000_000, 'nanosec': 5}, 'frame_id': 'map'}
    assert values['pose']['covariance'] == list(range(36))
    back = values['pose']['pose']
    again = Rigid3d.from_quat_xyzw(
        list(back['orientation'].values()), list(back['position'].values())
    )
    np.testing.assert_allclose(again.rotation, pose.rotation, atol=1e-12)
    assert list(back['orientation']) == list('xyzw') and list(back['position']) == list('xyz')
    np.testing.assert_array_equal(again.translation, pose.translation)
    moved = transform(START, 'map', 'odom', pose)
    assert moved['transform']['translation'] == back['position']
    assert (moved['header']['frame_id'], moved['child_frame_id']) == ('map', 'odom')
    for problems, is_error, level in (([], True, 0), (['a', 'b'], False, 1), (['a'], True, 2)):
        status = diagnostic_status('n', 'id', problems, {'x': 0.123456, 'y': 3}, is_error=is_error)
        assert status['level'] == level and status['message'] == ('; '.join(problems) or 'OK')
        assert [pair['value'] for pair in status['values']] == ['0.1235', '3']


def test_a_map_without_scale(tmp_path: Any) -> None:
    folder = write_map(tmp_path / 'map', [random_segment(1)], scale='unknown')
    with pytest.raises(MapError, match='has an unknown scale: give it one with "feat_ros map al'):
        check_metric(SfmMap(folder))


@pytest.fixture
def localizer(tmp_path: Any) -> Localizer:
    sfm_map = SfmMap(write_map(tmp_path / 'map', [random_segment(1, dim=128)]))
    return Localizer(sfm_map, create_extractor('sift'))


def test_the_state_of_a_run(localizer: Localizer) -> None:
    """Every image is localized, refused with a reason or dropped, and the figures say which."""
    bench = Bench()
    server = LocalizationServer(localizer)
    monitor = Monitor(localizer, server, [bench.intake], clock=lambda: bench.now_s)
    bench.intake.camera_info(info())
    bench.intake.image(image(START))
    bench.intake.image(image(0))
    bench.now_s = 0.5
    monitor.record(server.process(bench.frames[0]))
    health = monitor.look(['the network is slow'])
    assert health.image_hz == 4.0 and health.fix_hz == 0.0 and health.is_lost
    assert health.problems[:2] == (
        'BAD_STAMP: the camera has a message with stamp 0: its publisher must set it',
        'the network is slow',
    )
    assert health.problems[2].startswith('NO_FEATURES: ')
    assert health.figures['num_queries'] == 2
    assert health.figures['reasons'] == {'BAD_STAMP': 1, 'NO_FEATURES': 1}

    bench.now_s = 1.0
    covariance = np.diag([0.04, 0.01, 0.01, 1, 1, 1])
    fix = FrameRecord(START, 'localized', map_from_base=Rigid3d(), covariance=covariance)
    monitor.record(fix)
    bench.now_s = 3.0
    health = monitor.look()
    assert health.fix_age_s == 2.0 and health.sigma_m == pytest.approx(0.2)
    assert health.image_hz == 0.0 and health.fix_hz == pytest.approx(0.4)
    assert not health.is_lost and health.problems == ('no image for 3.0 s',)
    assert 'last fix 2.0 s ago +- 20 cm' in health.line() and '| no image for 3' in health.line()
    monitor.record(bad_image(START, ImageError('image is too small')))
    assert 'BAD_IMAGE: image is too small' in monitor.look().problems
    monitor.record(FrameRecord(START, 'refused', FailureReason.PNP_FAILED, 'as it is'))
    health = monitor.look()
    array = monitor.diagnostics(health, 'localizer', START)
    (status,) = array['status']
    assert status['name'] == 'localizer: localization' and status['level'] == 1
    assert status['message'] == 'no image for 3.0 s; PNP_FAILED: as it is'
    values = {pair['key']: pair['value'] for pair in status['values']}
    assert values['refused: NO_FEATURES'] == '1' and values['age of the last fix (s)'] == '2'
    assert values['map id'] == localizer.map.manifest.map_id == status['hardware_id']
    bench.now_s = 9.0
    bench.intake.image(image(START + SECOND))
    assert monitor.look().problems == ('no fix',)
    assert monitor.look().is_lost


def test_options() -> None:
    assert IntakeConfig(max_wait_s=1).max_wait_s == 1.0
    bench = Bench(config=IntakeConfig(max_wait_s=1.0))
    bench.intake.image(image(START))
    bench.wait(0.9)
    assert bench.intake.snapshot().refused == {}
    bench.wait(0.2)
    assert bench.intake.snapshot().refused == {'NO_CAMERA_INFO': 1}


def test_what_is_replaced_is_not_decoded() -> None:
    """An image that has not its turn costs nothing, one that cannot be decoded a record."""
    decoded: list[int] = []
    records: list[FrameRecord] = []

    class Slow(Whole):
        """Is never asked."""

        def localize_rig(self, views: Any, prior: Any = None) -> Any:
            raise AssertionError('never decoded')

    def decode(number: int) -> Image:
        decoded.append(number)
        return decode_image(b'', 'x')

    server = LocalizationServer(Slow())
    with server._changed:
        server._busy = True
    server.start(records.append)
    for number in range(4):
        server.submit(Frame(START + number, partial(decode, number), CAMERA))
    with server._changed:
        server._busy = False
        server._changed.notify_all()
    server.stop()
    assert 3 in decoded and len(decoded) <= 2
    assert [r.status for r in records].count('dropped') == 4 - len(decoded)
    assert records[-1].detail == 'image x is empty: copy it again'
