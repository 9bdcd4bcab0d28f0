# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The nodes under real ROS 2, each a process of its own, beside a robot that speaks DDS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not sourced: there is no rclpy')
pytest.importorskip('cyclonedds', reason='cyclonedds is not installed: pip install cyclonedds')

from conftest import CAMERA, Scene, walk  # noqa: E402
from lifecycle_msgs.srv import ChangeState, GetState  # noqa: E402
from nav2_msgs.srv import LoadMap  # noqa: E402
from rcl_interfaces.srv import DescribeParameters, SetParametersAtomically  # noqa: E402
from std_srvs.srv import SetBool, Trigger  # noqa: E402
from test_bags import header, image_values  # noqa: E402
from test_dds import (  # noqa: E402
    assert_near_one,
    assert_replayed,
    Camera,
    COMPRESSED,
    domain,
    IMAGE,
    localizer,
    mount,
    PATIENCE_S,
    recording,
    Robot,
    ROOT,
    SECOND,
    send_info,
)
from test_replay import CAM_FROM_BASE, IMAGES, INFO, ODOMETRY, rows_of, source  # noqa: E402

from feat_ros.alignment import align_by_positions, apply_alignment, image_centers  # noqa: E402
from feat_ros.dds.graph import Graph  # noqa: E402
from feat_ros.dds.play import play  # noqa: E402
from feat_ros.geometry import Rigid3d  # noqa: E402
from feat_ros.localizer import Localizer  # noqa: E402
from feat_ros.replay import replay  # noqa: E402

__all__ = ['domain', 'localizer', 'recording']
TOPICS = {'image_topics': [IMAGES], 'info_topics': [INFO]}
MAP_POINTS = 'sensor_msgs/msg/PointCloud2'


def start(node: str, **parameters: Any) -> subprocess.Popen[str]:
    """Start a node as ros2 run does."""
    words = []
    for name, value in parameters.items():
        text = str(value).lower() if isinstance(value, bool) else value
        words += ['-p', f'{name.replace("__", ".")}:={text}']
    return subprocess.Popen(
        [sys.executable, '-m', f'feat_ros.nodes.{node}', '--ros-args', *words],
        env={
            **os.environ,
            'PYTHONPATH': f'{ROOT}:{os.environ.get("PYTHONPATH", "")}',
            'OMP_NUM_THREADS': '1',
        },
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@contextmanager
def running(node: str, **parameters: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a node; it must end in order when it is interrupted."""
    process = start(node, **parameters)
    try:
        yield process
        assert process.poll() is None, process.communicate()[0]
    except BaseException:
        process.kill()
        print(process.communicate()[0])
        raise
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 0, said
    assert 'Traceback' not in said, said


class Client:
    """Calls services."""

    def __init__(self) -> None:
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self._node = rclpy.create_node('client', context=self._context)
        self._executor = rclpy.executors.SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)

    def call(self, kind: Any, name: str, **fields: Any) -> Any:
        """Call a service, and wait for what it says."""
        client = self._node.create_client(kind, name)
        assert client.wait_for_service(timeout_sec=PATIENCE_S), name
        future = client.call_async(kind.Request(**fields))
        self._executor.spin_until_future_complete(future, timeout_sec=PATIENCE_S)
        assert future.done(), name
        return future.result()

    def close(self) -> None:
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)


@pytest.fixture
def client(domain: int) -> Iterator[Client]:
    client = Client()
    yield client
    client.close()


@pytest.mark.parametrize('ahead', [False, True])
def test_a_node_is_replay(
    recording: Path, localizer: Localizer, tmp_path: Path, ahead: bool
) -> None:
    """A frame's pose is what a replay says of it, extracted ahead or not."""
    replay(recording, localizer, tmp_path / 'out', source(odometry_topic=ODOMETRY))
    replayed = {int(row['stamp_ns']): row for row in rows_of(tmp_path / 'out')}
    topics = {'odometry_topic': ODOMETRY, 'depth': 10, 'server__extract_ahead': ahead, **TOPICS}
    with (
        Graph() as graph,
        Graph() as other,
        running('localizer', map=localizer.map.path, **topics),
    ):
        robot = Robot(graph)
        # Images go best effort: one that is lost on a busy machine says nothing of the node.
        for _ in range(3):
            robot.poses.clear()
            play(other, recording, 0.25, clock=True, wait_for=[IMAGES, INFO, ODOMETRY])
            end_s = time.monotonic() + 3.0
            while len(robot.poses) < 8 and time.monotonic() < end_s:
                graph.spin(0.05)
            if len(robot.poses) == 8:
                break
    assert len(robot.poses) == 8
    assert_replayed(robot.poses, replayed)


def test_features_of_another_process(localizer: Localizer, scene: Scene) -> None:
    """Split: the extractor's topic in place of images."""
    features = {
        'input': 'features', 'image_topics': ['/extractor/features'], 'info_topics': [INFO],
    }  # fmt: skip
    words = ['max_keypoints=600']
    with (
        Graph() as graph,
        running('extractor', image_topic=IMAGES, extractor='sift', extractor_options=words),
        running('localizer', map=localizer.map.path, **features),
    ):
        robot = Robot(graph)
        camera = Camera(robot, scene)
        debug: list[Any] = []
        graph.reader('/extractor/debug_image', IMAGE, debug.append)
        send_info(robot)
        robot.until(lambda: len(robot.poses) > 3 and debug, camera.shoot)
        for message in robot.poses:
            assert_near_one(message, [pose.inverse() for pose in camera.poses])
        assert (debug[-1].width, debug[-1].height, debug[-1].encoding) == (320, 240, 'rgb8')


def test_two_cameras(localizer: Localizer, scene: Scene) -> None:
    """Each with its own calibration and topic; frames of both are localized."""
    topics = {'image_topics': ['/left/image', '/right/image']}
    picture = scene.room.shoot(CAMERA, walk(9, 0.5)[0], 70)
    stamp_ns = [1_700_000_000 * SECOND]
    with Graph() as graph, running('localizer', map=localizer.map.path, **topics):
        robot = Robot(graph)
        robot.until_said('nobody publishes /left/camera_info')
        from test_replay import info_message

        for side in ('left', 'right'):
            robot.send(
                f'/{side}/camera_info', 'sensor_msgs/msg/CameraInfo', info_message(),
                latched=True, depth=1,
            )  # fmt: skip

        def shoot() -> None:
            stamp_ns[0] += SECOND // 10
            for number, side in enumerate(('left', 'right')):
                values = image_values(stamp_ns[0] + number, picture)
                robot.send(f'/{side}/image', IMAGE, values)
            time.sleep(0.05)

        def sides() -> set[int]:
            return {message.header.stamp.nanosec % 2 for message in robot.poses}

        robot.until(lambda: sides() == {0, 1}, shoot)


def test_what_goes_wrong(localizer: Localizer, scene: Scene, tmp_path: Path) -> None:
    """One run: unplugged, garbage, haste, a covered lens, another place, a clock, a lost map."""
    map_path = shutil.copytree(localizer.map.path, tmp_path / 'map')
    with Graph() as graph, running('localizer', map=map_path, depth=5, **TOPICS):
        robot = Robot(graph)
        camera = Camera(robot, scene)
        robot.until_said('nobody publishes /camera/image')
        robot.until_said('NO_CAMERA_INFO: no CameraInfo yet', camera.shoot)
        send_info(robot, k=[0.0] * 9)
        robot.until_said('BAD_CAMERA_INFO: camera info', camera.shoot)
        assert robot.status.level == 2 and not robot.poses
        send_info(robot)
        robot.until_said('OK', camera.shoot)
        values = robot.values()
        assert values['map id'] == localizer.map.manifest.map_id
        assert values['extractor'] == 'sift' and not robot.transforms
        robot.until_said('no image for')  # unplugged
        robot.until_said('OK', camera.shoot)

        garbage: tuple[tuple[dict[str, Any], str], ...] = (
            ({'width': 300, 'step': 900}, 'BAD_IMAGE'),
            ({'encoding': 'bgr9'}, "unknown encoding 'bgr9'"),
            ({'data': np.zeros(1000, np.uint8)}, 'BAD_IMAGE'),
            ({'header': header(0, 'cam')}, 'BAD_STAMP'),
        )
        for changes, words in garbage:
            robot.until_said(words, partial(camera.shoot, **changes))
        robot.until_said('OK', camera.shoot)

        black = np.zeros((240, 320, 3), np.uint8)
        for _ in range(100):  # 200 Hz, the lens covered
            camera.stamp_ns += SECOND // 200
            robot.send(IMAGES, IMAGE, image_values(camera.stamp_ns, black))
            time.sleep(0.005)
        robot.until(lambda: 'refused: NO_FEATURES' in robot.values())
        robot.until_said('OK', camera.shoot)

        # Another place: no pose of it, and a reason.
        elsewhere = np.random.default_rng(5).integers(0, 255, (30, 40, 3), dtype=np.uint8)
        elsewhere = elsewhere.repeat(8, 0).repeat(8, 1)
        count = len(robot.poses)
        for _ in range(20):
            camera.stamp_ns += SECOND // 10
            robot.send(IMAGES, IMAGE, image_values(camera.stamp_ns, elsewhere))
            time.sleep(0.05)
        robot.until(lambda: robot.status.level > 0)
        late = robot.poses[count:]
        for message in late:  # of frames that were on the way
            assert_near_one(message, [pose.inverse() for pose in camera.poses])
        robot.until_said('OK', camera.shoot)

        camera.stamp_ns -= 3600 * SECOND
        robot.until(lambda: robot.values().get('clock_jumps') == '1', camera.shoot)
        robot.until_said('OK', camera.shoot)

        map_path.rename(tmp_path / 'gone')
        count = len(robot.poses)
        robot.until(lambda: len(robot.poses) > count + 10, camera.shoot)
        assert robot.status.level == 0
        for message in robot.poses:
            assert_near_one(message, [pose.inverse() for pose in camera.poses])


def test_odometry_and_transforms(localizer: Localizer, scene: Scene) -> None:
    """TF that comes late, map -> odom, a second parent, a robot that was carried away."""
    options = {'odometry_topic': ODOMETRY, 'tf': 'odom', 'depth': 5, **TOPICS}
    with Graph() as graph, running('localizer', map=localizer.map.path, **options):
        robot = Robot(graph)
        camera = Camera(robot, scene)
        send_info(robot)
        late_s = time.monotonic() + 5.0
        robot.until_said("NO_TRANSFORM: unknown frame 'cam'", camera.drive)
        robot.until(lambda: time.monotonic() > late_s, camera.drive)
        assert not robot.poses and not robot.transforms
        mount(robot, 'base_link', 'cam', CAM_FROM_BASE.inverse())
        robot.until(lambda: robot.poses and robot.transforms, camera.drive)
        truth = [pose.inverse() @ CAM_FROM_BASE for pose in camera.poses]
        assert_near_one(robot.poses[0], truth)
        transform = robot.transforms[0]
        assert (transform.header.frame_id, transform.child_frame_id) == ('map', 'odom')

        mount(robot, 'earth', 'odom', Rigid3d())
        robot.until_said('odom has parent earth from elsewhere: map -> odom is not', camera.drive)
        count = len(robot.transforms)
        robot.until_said('odom has parent earth', camera.drive)
        assert len(robot.transforms) == count

        # Odometry says that it stands still: it was carried to the other end of the walk.
        camera.take(scene, walk(9, 0.5)[6:])
        truth = [pose.inverse() @ CAM_FROM_BASE for pose in camera.poses]
        count = len(robot.poses)
        robot.until(lambda: len(robot.poses) > count + 3, camera.drive)
        assert_near_one(robot.poses[-1], truth)


def test_services(localizer: Localizer, scene: Scene, tmp_path: Path, client: Client) -> None:
    """Relocalize, pause, another map, one that cannot be used."""
    other = shutil.copytree(localizer.map.path, tmp_path / 'other')
    centers = image_centers(localizer.map)
    moved = {name: center + np.array([100.0, 0, 0]) for name, center in centers.items()}
    apply_alignment(other, align_by_positions(localizer.map, moved))
    with Graph() as graph, running('localizer', map=localizer.map.path, depth=5, **TOPICS):
        robot = Robot(graph)
        points: list[Any] = []
        graph.reader('/localizer/map_points', MAP_POINTS, points.append, latched=True)
        camera = Camera(robot, scene)
        send_info(robot)
        robot.until_said('OK', camera.shoot)
        robot.until(lambda: points)
        assert points[0].width == localizer.map.num_points

        assert client.call(Trigger, '/localizer/relocalize').success
        assert client.call(SetBool, '/localizer/pause', data=True).message == 'paused'
        robot.until_said('paused: call the service', camera.shoot)
        count = len(robot.poses)
        for _ in range(5):
            camera.shoot()
            graph.spin(0.05)
        assert len(robot.poses) == count
        assert client.call(SetBool, '/localizer/pause', data=False).success
        robot.until(lambda: len(robot.poses) > count, camera.shoot)

        nowhere = f'file://{tmp_path}/nowhere'
        found = client.call(LoadMap, '/localizer/load_map', map_url=nowhere)
        assert found.result == LoadMap.Response.RESULT_MAP_DOES_NOT_EXIST
        (tmp_path / 'bad').mkdir()
        found = client.call(LoadMap, '/localizer/load_map', map_url=str(tmp_path / 'bad'))
        assert found.result == LoadMap.Response.RESULT_INVALID_MAP_DATA
        count = len(robot.poses)
        robot.until(lambda: len(robot.poses) > count + 2, camera.shoot)
        before = robot.poses[-1].pose.pose.position.x
        found = client.call(LoadMap, '/localizer/load_map', map_url=str(other))
        assert found.result == LoadMap.Response.RESULT_SUCCESS
        robot.until(lambda: robot.poses[-1].pose.pose.position.x > before + 90, camera.shoot)
        robot.until(lambda: len(points) > 1)


def test_killed_and_started_again(localizer: Localizer, scene: Scene) -> None:
    with Graph() as graph:
        robot = Robot(graph)
        camera = Camera(robot, scene)
        first = start('localizer', map=localizer.map.path, **TOPICS)
        try:
            send_info(robot)
            robot.until(lambda: robot.poses, camera.shoot)
        finally:
            first.kill()
            first.communicate()
        with running('localizer', map=localizer.map.path, **TOPICS):
            count = len(robot.poses)
            # Latched, the calibration comes by itself.
            robot.until(lambda: len(robot.poses) > count + 3, camera.shoot)


def test_life_cycle_and_parameters(localizer: Localizer, client: Client) -> None:
    configure, activate, deactivate, cleanup = 1, 3, 4, 2
    with running('localizer', map=localizer.map.path, autostart=False, **TOPICS):

        def state() -> str:
            return str(client.call(GetState, '/localizer/get_state').current_state.label)

        def change(number: int) -> bool:
            request = ChangeState.Request()
            request.transition.id = number
            found = client.call(
                ChangeState, '/localizer/change_state', transition=request.transition
            )
            return bool(found.success)

        assert state() == 'unconfigured'
        for _ in range(2):
            assert change(configure) and state() == 'inactive'
            assert change(activate) and state() == 'active'
            assert change(deactivate) and change(activate) and change(deactivate)
            assert change(cleanup) and state() == 'unconfigured'
        names = ['localizer.pnp.max_error_px', 'tf']
        found = client.call(DescribeParameters, '/localizer/describe_parameters', names=names)
        error, tf = found.descriptors
        assert error.read_only and error.floating_point_range[0].from_value > 0
        assert 'pixels' in error.description
        assert tf.additional_constraints == 'one of auto, odom, base, none'
        parameter = rclpy.Parameter('tf', value='base').to_parameter_msg()
        found = client.call(
            SetParametersAtomically, '/localizer/set_parameters_atomically', parameters=[parameter]
        )
        assert not found.result.successful


@pytest.mark.parametrize(
    ('node', 'parameters', 'words'),
    [
        ('localizer', {'mapp': 'x'}, "localizer has no parameter 'mapp': it has image_topics"),
        ('localizer', {'localizer__pnp__max_error_px': -1.0}, 'max_error_px is -1.0: it must be'),
        ('localizer', {}, 'no map is named: set the parameter "map"'),
        ('localizer', {'map': '/nowhere'}, '/nowhere'),
        ('localizer', {'tf': 'odom'}, 'map -> odom needs odometry'),
        ('extractor', {'extractor': 'surf'}, "extractor is 'surf': choose one of"),
        ('extractor', {'extractor_options': ['max_keypoint=3']}, "no option 'max_keypoint'"),
        ('recorder', {}, 'no folder is named for the results'),
    ],
)
def test_refusals(node: str, parameters: dict[str, Any], words: str) -> None:
    process = start(node, **parameters)
    said = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == 1, said
    assert words in said and 'Traceback' not in said, said


def test_recorder(localizer: Localizer, recording: Path, tmp_path: Path) -> None:
    """It writes down what was published; too few poses are a failure."""
    codes = {}
    for wanted in (1, 100):
        out = tmp_path / str(wanted)
        process = start('recorder', out=out, min_poses=wanted, pose_topic='/localizer/pose')
        with Graph() as graph:
            writer = graph.writer('/localizer/pose', 'geometry_msgs/msg/PoseWithCovarianceStamped')
            end_s = time.monotonic() + PATIENCE_S
            while not writer.has_readers() and time.monotonic() < end_s:
                graph.spin(0.05)
            for number in range(5):
                pose = {'position': {'x': float(number)}, 'orientation': {'w': 1.0}}
                stamped = {'header': header(SECOND + number, 'map'), 'pose': {'pose': pose}}
                writer.write(stamped)
                time.sleep(0.02)
            graph.spin(0.5)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=PATIENCE_S)[0]
        codes[wanted] = process.returncode
        lines = (out / 'trajectory.tum').read_text().splitlines()
        assert len([line for line in lines if not line.startswith('#')]) == 5, said
    assert codes == {1: 0, 100: 1}


def test_an_image_of_another_type_is_named(localizer: Localizer) -> None:
    with Graph() as graph, running('localizer', map=localizer.map.path, **TOPICS):
        robot = Robot(graph)
        writer = graph.writer(IMAGES, COMPRESSED)
        robot.until_said(
            f'{IMAGES} carries {COMPRESSED}, not {IMAGE}',
            lambda: writer.write({'format': 'jpeg', 'data': b'abc'}),
        )
