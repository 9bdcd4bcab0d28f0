# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The live localizer on a real DDS graph on this machine: a bag played, and what goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import ctypes
import json
import os
from pathlib import Path
import random
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

from conftest import CAMERA, Scene, walk
import numpy as np
import pytest
from test_bags import header, image_values, write_bag
from test_replay import (
    CAM_FROM_BASE,
    IMAGES,
    INFO,
    info_message,
    ODOMETRY,
    rows_of,
    source,
    write_recording,
)

from feat_ros.cli import main
from feat_ros.errors import BagError, ConfigError, GraphError, MessageError
from feat_ros.extractors import create_extractor
from feat_ros.geometry import Rigid3d
from feat_ros.localizer import create_retriever, Localizer, LocalizerConfig
from feat_ros.replay import replay
from feat_ros.sfm_map import SfmMap

pytest.importorskip('cyclonedds', reason='cyclonedds is not installed: pip install cyclonedds')

from cyclonedds.core import Policy, Qos
from cyclonedds.pub import DataWriter

from feat_ros.dds.cdr import MESSAGES
from feat_ros.dds.graph import dds_type, domain_config, Graph, idl_type, ros_domain_id, ros_type
from feat_ros.dds.live import run_live
from feat_ros.dds.play import play
from feat_ros.driver import LiveConfig

ROOT = Path(__file__).parents[1]
IMAGE, COMPRESSED = 'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO, POSE = 'sensor_msgs/msg/CameraInfo', 'geometry_msgs/msg/PoseWithCovarianceStamped'
TF, DIAGNOSTICS = 'tf2_msgs/msg/TFMessage', 'diagnostic_msgs/msg/DiagnosticArray'
SECOND = 10**9
# Long enough for a machine with much else to do; nothing is measured by it.
PATIENCE_S = 60.0


def free_domain() -> int:
    """Return a domain that no test in a process beside this one takes."""
    worker = int(os.environ.get('PYTEST_XDIST_WORKER', 'gw0').removeprefix('gw'))
    return 1 + 12 * (worker % 8) + random.SystemRandom().randrange(12)


@pytest.fixture(autouse=True)
def domain(monkeypatch: pytest.MonkeyPatch) -> int:
    """Take a domain of this machine alone that nobody else uses."""
    number = free_domain()
    monkeypatch.setenv('ROS_DOMAIN_ID', str(number))
    monkeypatch.setenv('ROS_LOCALHOST_ONLY', '1')
    monkeypatch.delenv('CYCLONEDDS_URI', raising=False)
    return number


@pytest.fixture(scope='module')
def localizer(room_map: SfmMap) -> Localizer:
    options = LocalizerConfig()
    extractor = create_extractor('sift', max_keypoints=600)
    return Localizer(room_map, extractor, create_retriever(room_map, options), options)


class Robot:
    """The other side: publishes as a robot would and hears what the localizer says."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.poses: list[Any] = []
        self.transforms: list[Any] = []
        self.status: Any = None
        self._writers: dict[str, Any] = {}
        graph.reader('/localizer/pose', POSE, self.poses.append, depth=50)
        graph.reader('/tf', TF, lambda m: self.transforms.extend(m.transforms), depth=50)
        graph.reader('/diagnostics', DIAGNOSTICS, self._on_diagnostics)

    def _on_diagnostics(self, message: Any) -> None:
        self.status = message.status[0]

    def values(self) -> dict[str, str]:
        return {pair.key: pair.value for pair in self.status.values} if self.status else {}

    def send(self, topic: str, kind: str, values: dict[str, Any], **how: Any) -> None:
        """Publish; the first time when someone listens."""
        if topic not in self._writers:
            self._writers[topic] = self.graph.writer(topic, kind, **how)
            self.until(self._writers[topic].has_readers)
        self._writers[topic].write(values)

    def until(self, is_so: Callable[[], Any], do: Callable[[], Any] = lambda: None) -> None:
        """Go on, doing something now and then, until it is so."""
        end_s = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < end_s, f'last diagnostics: {self.status}'
            do()
            self.graph.spin(0.05)

    def until_said(self, words: str, do: Callable[[], Any] = lambda: None) -> None:
        """Go on until diagnostics name something."""
        self.until(lambda: self.status is not None and words in self.status.message, do)


@contextmanager
def living(localizer: Localizer, **changes: Any) -> Iterator[SimpleNamespace]:
    """Run the localizer in a thread, with a robot beside it."""
    topics = {'image_topics': [IMAGES], 'info_topics': [INFO], 'depth': 5}
    is_over = threading.Event()
    live = SimpleNamespace(healths=[], figures=None, error=None)
    with Graph() as graph, Graph() as other:

        def work() -> None:
            try:
                live.figures = run_live(
                    graph, localizer, LiveConfig(**{**topics, **changes}),
                    is_over=is_over.is_set, on_health=live.healths.append,
                )  # fmt: skip
            except Exception as error:
                live.error = error

        thread = threading.Thread(target=work)
        thread.start()
        try:
            live.robot = Robot(other)
            yield live
        finally:
            is_over.set()
            thread.join()
            assert live.error is None, live.error
        other.spin(0.5)


class Camera:
    """Takes pictures of the room, each a moment later."""

    def __init__(self, robot: Robot, scene: Scene) -> None:
        self._robot = robot
        self.stamp_ns, self.count = 1_700_000_000 * SECOND, 0
        self.take(scene, walk(9, 0.5)[:3])

    def take(self, scene: Scene, poses: list[Rigid3d]) -> None:
        """Stand at other places from now on."""
        self.poses = poses
        self._pictures = [scene.room.shoot(CAMERA, pose, 70 + n) for n, pose in enumerate(poses)]

    def shoot(self, **changes: Any) -> None:
        """Publish the next picture, with some fields changed."""
        self.count += 1
        self.stamp_ns += SECOND // 10
        values = image_values(self.stamp_ns, self._pictures[self.count // 10 % 3])
        self._robot.send(IMAGES, IMAGE, values | changes)
        time.sleep(0.05)

    def drive(self) -> None:
        """Publish odometry of a robot that stands still, then the next picture."""
        odometry = {
            'header': header(self.stamp_ns + SECOND // 10, 'odom'),
            'child_frame_id': 'base_link',
            'pose': {'pose': {'orientation': {'w': 1.0}}},
        }
        self._robot.send(ODOMETRY, 'nav_msgs/msg/Odometry', odometry)
        self.shoot()


def mount(robot: Robot, parent: str, child: str, pose: Rigid3d) -> None:
    """Publish a static transform."""
    translation = dict(zip('xyz', pose.translation.tolist(), strict=True))
    rotation = dict(zip('xyzw', pose.quat_xyzw.tolist(), strict=True))
    values = {
        'header': header(SECOND, parent),
        'child_frame_id': child,
        'transform': {'translation': translation, 'rotation': rotation},
    }
    robot.send('/tf_static', TF, {'transforms': [values]}, latched=True)


def assert_near_one(message: Any, truth: list[Rigid3d]) -> None:
    """The pose of a message is within 5 cm of one of several."""
    place = message.pose.pose.position
    gaps = [np.linalg.norm(pose.translation - [place.x, place.y, place.z]) for pose in truth]
    assert min(gaps) < 0.05


def assert_replayed(poses: list[Any], replayed: dict[int, Any]) -> None:
    """Messages say of their frames what the rows of a replay say."""
    for message in poses:
        stamp = message.header.stamp
        row = replayed[stamp.sec * SECOND + stamp.nanosec]
        place, turn = message.pose.pose.position, message.pose.pose.orientation
        ours = [place.x, place.y, place.z, turn.x, turn.y, turn.z, turn.w]
        names = ('tx', 'ty', 'tz', 'qx', 'qy', 'qz', 'qw')
        np.testing.assert_allclose(ours, [float(row[name]) for name in names], rtol=0, atol=1e-6)
        assert message.header.frame_id == 'map'
        covariance = message.pose.covariance.reshape(6, 6)
        sigma_m = np.sqrt(np.linalg.eigvalsh(covariance[:3, :3])[-1])
        assert sigma_m == pytest.approx(float(row['sigma_m']), rel=1e-5)


def send_info(robot: Robot, **changes: Any) -> None:
    robot.send(INFO, CAMERA_INFO, info_message() | changes, latched=True, depth=1)


def test_names() -> None:
    assert dds_type('sensor_msgs/msg/Image') == 'sensor_msgs::msg::dds_::Image_'
    assert ros_type('sensor_msgs::msg::dds_::Image_') == 'sensor_msgs/msg/Image'
    assert idl_type(IMAGE, MESSAGES.__getitem__).__idl__.idl_transformed_typename == dds_type(
        IMAGE
    )


@pytest.mark.parametrize('word', ['-1', '233', 'robot'])
def test_wrong_domain(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    monkeypatch.setenv('ROS_DOMAIN_ID', word)
    with pytest.raises(ConfigError, match=f"ROS_DOMAIN_ID is '{word}': it must be a number"):
        ros_domain_id()


def test_settings_of_ros(monkeypatch: pytest.MonkeyPatch) -> None:
    loopback = '<NetworkInterface address="127.0.0.1"/>'
    assert loopback in domain_config()
    monkeypatch.delenv('ROS_LOCALHOST_ONLY')
    assert loopback not in domain_config()
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    assert loopback in domain_config()


@pytest.mark.parametrize(
    ('allowed', 'asked'), [('212992', 212992), ('99999999', 4194304), ('?', 4194304)]
)
def test_socket_buffers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    allowed: str, asked: int,
) -> None:  # fmt: skip
    """No more is asked for than the system gives: the library would not start."""
    limit = tmp_path / 'rmem_max'
    limit.write_text(allowed)
    monkeypatch.setattr('feat_ros.dds.graph._RMEM_MAX', limit)
    assert f'<SocketReceiveBufferSize min="{asked}B"/>' in domain_config()
    assert ('run sysctl -w net.core.rmem_max=4194304' in caplog.text) == (asked < 4194304)


def test_a_network_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    interface = '<General><Interfaces><NetworkInterface name="none0"/></Interfaces></General>'
    monkeypatch.setenv('CYCLONEDDS_URI', interface)
    with pytest.raises(GraphError, match=r'DDS domain \d+ cannot be joined .* CYCLONEDDS_URI'):
        Graph()


def test_bytes_that_are_no_message() -> None:
    with Graph() as graph:
        writer = graph.writer('/pose', POSE)
        with pytest.raises(MessageError, match='topic /pose: 8 bytes are not a geometry_msgs/msg'):
            writer.write_cdr(b'\0\1\0\0\1\2\3')
        with pytest.raises(GraphError, match='topic /odd of my_msgs/msg/Odd cannot be used'):
            graph.writer('/odd', 'my_msgs/msg/Odd')


def test_a_publisher_that_does_not_fit() -> None:
    with Graph() as graph, Graph() as other:
        graph.reader('/pose', POSE, lambda message: None)
        only_one = Qos(Policy.Ownership.Exclusive)
        handle = other._topic('/pose', POSE, MESSAGES.__getitem__)
        writer = DataWriter(other._participant, handle, only_one)
        wait(graph, lambda: 'nobody' not in graph.trouble('/pose', POSE))
        assert graph.trouble('/pose', POSE).startswith('the publisher of /pose offers another QoS')
        assert not writer.get_matched_subscriptions()


def command(*words: Any) -> subprocess.Popen[str]:
    """Start a command as a user would."""
    return subprocess.Popen(
        [sys.executable, '-m', 'feat_ros', *map(str, words)],
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.fixture(scope='module')
def recording(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures on the walk, with odometry; the sixth is black."""
    poses = walk(9, 0.5)
    images = [scene.room.shoot(CAMERA, pose, 70 + n) for n, pose in enumerate(poses)]
    images[5] = np.zeros_like(images[5])
    return write_recording(tmp_path_factory.mktemp('bags') / 'walk', images, poses)


def test_live_is_replay(recording: Path, localizer: Localizer, tmp_path: Path) -> None:
    """Two processes and a listener: a frame's live pose is what a replay says of it."""
    replay(recording, localizer, tmp_path / 'out', source(odometry_topic=ODOMETRY))
    replayed = {int(row['stamp_ns']): row for row in rows_of(tmp_path / 'out')}
    # Images go best effort: one that is lost on the way on a busy machine says nothing of live.
    for _ in range(3):
        poses: list[Any] = []
        with Graph() as graph:
            graph.reader('/localizer/pose', POSE, poses.append, depth=50)
            live = command(
                'live', '--map', localizer.map.path, '--image-topic', IMAGES,
                '--info-topic', INFO, '--odom-topic', ODOMETRY, '--json', tmp_path / 'live.json',
            )  # fmt: skip
            waits = [w for topic in (IMAGES, INFO, ODOMETRY) for w in ('--wait-for', topic)]
            robot = command('play', recording, '--rate', '0.25', '--clock', *waits)
            robot.wait(PATIENCE_S)
            end_s = time.monotonic() + 3.0
            while len(poses) < 8 and time.monotonic() < end_s:
                graph.spin(0.05)
            live.send_signal(signal.SIGINT)
            said = [process.communicate(timeout=PATIENCE_S) for process in (live, robot)]
        if len(poses) == 8:
            break
    assert (live.returncode, robot.returncode) == (0, 0), said
    figures = json.loads((tmp_path / 'live.json').read_text())
    assert figures['num_images'] == 9 and figures['reasons'] == {'NO_FEATURES': 1}
    assert figures['num_localized'] == len(poses) == 8
    assert figures['dropped'] == figures['unreadable'] == 0
    assert '8 of 9 localized' in said[0][0] and '9 /camera/image' in said[1][0]
    assert_replayed(poses, replayed)


def test_what_goes_wrong(localizer: Localizer, scene: Scene) -> None:
    """One run: nothing there, bad calibration, a camera that stops, garbage, haste, a clock."""
    with living(localizer) as live:
        robot = live.robot
        camera = Camera(robot, scene)
        robot.until_said('nobody publishes /camera/image in domain')
        robot.until_said('NO_CAMERA_INFO: no CameraInfo yet', camera.shoot)
        send_info(robot, k=[0.0] * 9)
        robot.until_said('BAD_CAMERA_INFO: camera info', camera.shoot)
        assert robot.status.level == 2 and not robot.poses

        send_info(robot)
        robot.until(lambda: robot.poses, camera.shoot)
        position = robot.poses[0].pose.pose.position
        centers = [pose.inverse().translation for pose in camera.poses]
        gaps = [
            np.linalg.norm(center - [position.x, position.y, position.z]) for center in centers
        ]
        assert min(gaps) < 0.05
        robot.until_said('OK', camera.shoot)
        assert robot.status.level == 0 and not robot.transforms
        values = robot.values()
        assert values['map id'] == localizer.map.manifest.map_id and values['extractor'] == 'sift'
        assert float(values['images per second']) > 0 and 'extract (ms, p50 p95)' in values

        robot.until_said('no image for')
        robot.until_said('OK', camera.shoot)

        for changes, words in (
            ({'width': 300, 'step': 900}, 'BAD_IMAGE'),
            ({'height': 200, 'data': np.zeros(960 * 200, np.uint8)}, 'its camera 320x240'),
            ({'encoding': 'bgr9'}, "unknown encoding 'bgr9'"),
            ({'data': np.zeros(1000, np.uint8)}, 'BAD_IMAGE'),
            ({'header': header(0, 'cam')}, 'BAD_STAMP'),
        ):
            said = len(robot.poses)
            robot.until_said(words, lambda changes=changes: camera.shoot(**changes))
            robot.until(lambda said=said: len(robot.poses) > said, camera.shoot)
        robot.until_said('OK', camera.shoot)
        assert int(robot.values()['refused: BAD_IMAGE']) >= 4

        black = np.zeros((240, 320, 3), np.uint8)
        for _ in range(100):
            camera.stamp_ns += SECOND // 200
            robot.send(IMAGES, IMAGE, image_values(camera.stamp_ns, black))
            time.sleep(0.005)
        camera.stamp_ns -= 3600 * SECOND
        said = len(robot.poses)
        robot.until(lambda: len(robot.poses) > said + 2, camera.shoot)
        jumped = {'clock_jumps': '1', 'resets': '1'}
        robot.until(lambda: jumped.items() <= robot.values().items(), camera.shoot)
        robot.until_said('OK', camera.shoot)
    figures = live.figures
    assert figures['num_images'] == figures['num_queries'] + figures['dropped']
    assert figures['num_localized'] == len(robot.poses)
    assert figures['reasons']['NO_CAMERA_INFO'] >= 1 and figures['reasons']['BAD_CAMERA_INFO'] >= 1
    assert live.healths[-1].line().startswith(f'{live.healths[-1].image_hz:.1f} images/s')


def test_other_things_on_the_topic(localizer: Localizer, scene: Scene) -> None:
    """Pictures of another type, and bytes that are none."""
    with living(localizer) as live:
        robot = live.robot
        other = robot.graph.writer(IMAGES, COMPRESSED)
        words = f'{IMAGES} carries {COMPRESSED}, not {IMAGE}'
        robot.until_said(words, lambda: other.write({'format': 'jpeg', 'data': b'abc'}))
        send_info(robot)
        sender = subprocess.Popen(
            [sys.executable, '-c', 'import test_dds; test_dds.publish_garbage()'],
            env={**os.environ, 'PYTHONPATH': f'{ROOT}:{ROOT / "test"}'},
        )
        try:
            robot.until_said(f'messages on {IMAGES} are no {IMAGE}: cut off or garbled')
        finally:
            sender.kill()
            sender.wait()
    assert live.figures['unreadable'] > 0 and live.figures['num_images'] == 0


class _Descriptor(ctypes.Structure):
    """dds_topic_descriptor_t; without type information, so that only the name is compared."""

    _fields_ = (
        ('size', ctypes.c_uint32), ('align', ctypes.c_uint32), ('flags', ctypes.c_uint32),
        ('num_keys', ctypes.c_uint32), ('name', ctypes.c_char_p), ('keys', ctypes.c_void_p),
        ('num_ops', ctypes.c_uint32), ('ops', ctypes.POINTER(ctypes.c_uint32)),
        ('meta', ctypes.c_char_p), ('info', ctypes.c_void_p * 4), ('restrict', ctypes.c_uint32),
    )  # fmt: skip


def publish_garbage() -> None:
    """Publish images of one byte, which the library would not write for us; from a process."""
    from cyclonedds.domain import DomainParticipant
    from cyclonedds.internal import DDS

    library = DDS._dll_handle
    operations = (ctypes.c_uint32 * 3)(1 << 24 | 1 << 16, 0, 0)
    descriptor = _Descriptor(1, 1, 0, 0, dds_type(IMAGE).encode(), None, 2, operations, b'')
    with Graph() as graph:
        participant = DomainParticipant(graph.domain_id)
        entity, pointer = ctypes.c_int32, ctypes.c_void_p
        library.dds_create_topic.argtypes = [entity, pointer, ctypes.c_char_p, pointer, pointer]
        library.dds_create_writer.argtypes = [entity, entity, pointer, pointer]
        topic = library.dds_create_topic(
            participant._ref, ctypes.addressof(descriptor), f'rt{IMAGES}'.encode(), None, None
        )
        writer = library.dds_create_writer(participant._ref, topic, None, None)
        for _ in range(round(PATIENCE_S * 10)):
            library.dds_write(writer, ctypes.byref(ctypes.c_uint8(7)))
            time.sleep(0.1)


def test_compressed_and_the_camera_broadcast(localizer: Localizer, scene: Scene) -> None:
    import cv2

    picture = scene.room.shoot(CAMERA, walk(9, 0.5)[0], 70)
    jpeg = cv2.imencode('.jpg', picture[:, :, ::-1])[1].ravel()
    stamp_ns = [1_700_000_000 * SECOND]
    with living(localizer, compressed=True, tf='base') as live:
        robot = live.robot
        send_info(robot)

        def shoot() -> None:
            stamp_ns[0] += SECOND // 10
            values = {'header': header(stamp_ns[0], 'cam'), 'format': 'jpeg', 'data': jpeg}
            robot.send(IMAGES, COMPRESSED, values)

        robot.until(lambda: robot.transforms and robot.poses, shoot)
        transform = robot.transforms[0]
        assert (transform.header.frame_id, transform.child_frame_id) == ('map', 'cam')
        first = next(p for p in robot.poses if p.header.stamp == transform.header.stamp)
        assert vars(first.pose.pose.position) == vars(transform.transform.translation)


def test_odometry_and_transforms(localizer: Localizer, scene: Scene) -> None:
    """No transform, no pose; then map -> odom; never a second parent."""
    with living(localizer, odometry_topic=ODOMETRY, tf='odom') as live:
        robot = live.robot
        camera = Camera(robot, scene)
        send_info(robot)
        robot.until_said('NO_ODOMETRY', camera.shoot)
        robot.until_said("NO_TRANSFORM: unknown frame 'cam'", camera.drive)
        assert not robot.poses and not robot.transforms
        mount(robot, 'base_link', 'cam', CAM_FROM_BASE.inverse())
        robot.until(lambda: robot.poses and robot.transforms, camera.drive)
        assert_near_one(robot.poses[0], [pose.inverse() @ CAM_FROM_BASE for pose in camera.poses])
        transform = robot.transforms[0]
        assert (transform.header.frame_id, transform.child_frame_id) == ('map', 'odom')

        mount(robot, 'earth', 'odom', Rigid3d())
        robot.until_said('odom has parent earth from elsewhere: map -> odom is not', camera.drive)
        count = len(robot.transforms)
        robot.until_said('odom has parent earth', camera.drive)
        assert len(robot.transforms) == count


def test_no_odom_without_odometry() -> None:
    with pytest.raises(ConfigError, match='map -> odom needs odometry'):
        LiveConfig(tf='odom')
    with pytest.raises(ConfigError, match='choose one of auto, odom, base, none'):
        LiveConfig(tf='earth')


@pytest.mark.parametrize('kind', ['ros1', 'ros2'])
def test_play(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """The bytes of a bag come as they are, ROS 1 or 2; who comes late gets the calibration."""
    start = 1_700_000_000 * SECOND
    picture = np.random.default_rng(3).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    imu = {'header': header(start, 'imu'), 'orientation_covariance': np.arange(9.0)}
    info = {'header': header(start, 'cam'), 'width': 5}
    if kind == 'ros2':
        info |= {'k': np.arange(9.0)}
    bag = write_bag(
        tmp_path / 'bag', kind,
        [(INFO, CAMERA_INFO, start, info),
         *((IMAGES, IMAGE, start + n * SECOND // 20, image_values(start + n, picture))
           for n in range(4)),
         ('/imu', 'sensor_msgs/msg/Imu', start, imu)],
    )  # fmt: skip
    images: list[Any] = []
    infos: list[Any] = []
    clocks: list[int] = []
    stop = threading.Event()
    with Graph() as graph, Graph() as other:
        other.reader(IMAGES, IMAGE, images.append, depth=10)
        other.reader(
            '/clock', 'rosgraph_msgs/msg/Clock',
            lambda message: clocks.append(message.clock.sec * SECOND + message.clock.nanosec),
            depth=100,
        )  # fmt: skip
        counts: list[Any] = []
        thread = threading.Thread(
            target=lambda: counts.append(
                play(
                    graph, bag, 0.5, loop=True, clock=True, wait_for=[IMAGES], is_over=stop.is_set
                )
            )
        )
        thread.start()
        try:
            wait(other, lambda: len(images) >= 6 and len(clocks) > 3)
            other.reader(INFO, CAMERA_INFO, infos.append, latched=True)
            wait(other, lambda: infos)
        finally:
            stop.set()
            thread.join()
        assert counts[0]['messages'][IMAGES] >= 6 and counts[0]['messages']['/imu'] >= 1
    np.testing.assert_array_equal(images[0].data, picture[:, :, ::-1].ravel())
    assert images[0].encoding == 'bgr8' and images[0].header.frame_id == 'cam'
    stamps = [image.header.stamp.nanosec for image in images[:6]]
    assert stamps == [0, 1, 2, 3, 0, 1]
    assert infos[0].width == 5
    assert start <= min(clocks) and max(clocks) <= start + SECOND
    assert not caplog.records


def wait(graph: Graph, is_so: Callable[[], Any]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end_s
        graph.spin(0.05)


def test_what_cannot_be_played(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Graph() as graph:
        with pytest.raises(ConfigError, match='rate is 0: it must be a positive number'):
            play(graph, recording, 0)
        with pytest.raises(BagError, match=r"no topic '/cam': its topics are /camera/image"):
            play(graph, recording, wait_for=['/cam'])
        with pytest.raises(ConfigError, match=f'{INFO} is waited for but not played'):
            play(graph, recording, topics=[IMAGES], wait_for=[INFO])
    assert main(['play', str(recording.with_name('nowhere'))]) == 1
    assert 'nowhere does not exist: check the path' in capsys.readouterr().err


def test_commands(
    recording: Path, localizer: Localizer, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """They end by themselves, on a terminal with one line that is written anew."""
    words = [
        'live', '--map', localizer.map.path, '--image-topic', IMAGES, '--info-topic', INFO,
        '--duration', 1.3, '--json', tmp_path / 'live.json', '--set', 'intake.max_wait_s=1',
    ]  # fmt: skip
    monkeypatch.setattr('feat_ros.cli.live.sys.stdout.isatty', lambda: True, raising=False)
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert '\r\033[K0.0 images/s, 0.0 fixes/s | no image for 1.' in said
    assert '0 of 0 localized' in said
    assert json.loads((tmp_path / 'live.json').read_text())['reasons'] == {}
    assert main(['play', str(recording), '--rate', '100', '--topic', IMAGES]) == 0
    assert capsys.readouterr().out == '9 /camera/image\n'
