# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny bags of every kind, written here with rosbags, and recorded ones where there are some."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
import shutil
import sqlite3
import struct
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from rosbags.interfaces import (
    Nodetype,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import get_types_from_msg, get_typestore, Stores

from feat_ros.bags import Bag, camera_from_info, Topic, TransformBuffer
from feat_ros.camera import Camera
from feat_ros.errors import (
    BagError,
    CameraError,
    DisconnectedFramesError,
    FeatRosError,
    ImageError,
    OutsideTimeRangeError,
    TransformError,
    UnknownFrameError,
)
from feat_ros.geometry import Rigid3d, so3_exp

DATA = Path(__file__).parents[2] / 'shared' / 'data'
SECOND = 10**9
START = 1_700_000_000 * SECOND

Message = tuple[str, str, int, dict[str, Any]]


def build(store: Any, kind: str, values: dict[str, Any]) -> Any:
    """Make a message from nested values; field names in lower case, what is absent is zero."""
    zeros = {'string': '', 'float32': 0.0, 'float64': 0.0, 'bool': False}
    fields = {}
    for name, (node, detail) in store.fielddefs[kind][1]:
        value = values.get(name.lower())
        if node == Nodetype.NAME:
            fields[name] = build(store, detail, value or {})
        elif node == Nodetype.BASE:
            fields[name] = zeros.get(detail[0], 0) if value is None else value
        else:
            (inner, of), length = detail
            if inner == Nodetype.NAME:
                fields[name] = [build(store, of, each) for each in value or []]
            else:
                fields[name] = np.array([0] * length if value is None else value, of[0])
    return store.types[kind](**fields)


def header(stamp_ns: int, frame_id: str) -> dict[str, Any]:
    return {
        'stamp': {'sec': stamp_ns // SECOND, 'nanosec': stamp_ns % SECOND},
        'frame_id': frame_id,
    }


def pose_values(pose: Rigid3d) -> dict[str, Any]:
    return {
        'position': dict(zip('xyz', pose.translation.tolist(), strict=True)),
        'orientation': dict(zip('xyzw', pose.quat_xyzw.tolist(), strict=True)),
    }


def transform_values(stamp_ns: int, parent: str, child: str, pose: Rigid3d) -> dict[str, Any]:
    values = pose_values(pose)
    transform = {'translation': values['position'], 'rotation': values['orientation']}
    return {
        'header': header(stamp_ns, parent),
        'child_frame_id': child,
        'transform': transform,
    }


def image_values(stamp_ns: int, rgb: np.ndarray, frame: str = 'cam') -> dict[str, Any]:
    height, width = rgb.shape[:2]
    return {
        'header': header(stamp_ns, frame),
        'height': height,
        'width': width,
        'encoding': 'bgr8',
        'step': 3 * width,
        'data': rgb[:, :, ::-1].ravel(),
    }


def info_values(**changes: Any) -> dict[str, Any]:
    values = {
        'header': header(START, 'cam'),
        'width': 640,
        'height': 480,
        'distortion_model': 'plumb_bob',
        'd': [0.1, -0.2, 0.001, 0.002, 0.0],
        'k': [500.0, 0, 320, 0, 510, 240, 0, 0, 1],
        'p': [0.0] * 12,
    }
    return values | changes


# As tf2 publishes what does not change.
LATCHED = Qos(
    QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL,
    QosTime(0, 0), QosTime(0, 0), QosLiveliness.AUTOMATIC, QosTime(0, 0), False,
)  # fmt: skip


def write_bag(path: Path, kind: str, messages: list[Message], define: bool = True) -> Path:
    """Write (topic, type, time of recording, values) as a ROS 1 bag or a ROS 2 folder."""
    if kind.startswith('ros1'):
        path = path.with_suffix('.bag')
        store = get_typestore(Stores.ROS1_NOETIC)
        transforms = 'geometry_msgs/TransformStamped[] transforms\n'
        store.register(get_types_from_msg(transforms, 'tf2_msgs/msg/TFMessage'))
        writer: Any = Writer1(path)
        if kind == 'ros1_lz4':
            writer.set_compression(Writer1.CompressionFormat.LZ4)
        absent = {'msgdef': '', 'md5sum': '0' * 32}
        serialize = store.serialize_ros1
    else:
        plugin = StoragePlugin.MCAP if 'mcap' in kind else StoragePlugin.SQLITE3
        store = get_typestore(Stores.ROS2_HUMBLE)
        writer = Writer2(path, version=9 if 'mcap' in kind else 8, storage_plugin=plugin)
        mode = {'file': CompressionMode.FILE, 'message': CompressionMode.MESSAGE}
        writer.set_compression(
            mode.get(kind.rpartition('_')[2], CompressionMode.NONE), CompressionFormat.ZSTD
        )
        absent = {'msgdef': '', 'rihs01': 'RIHS01_0'}
        serialize = store.serialize_cdr
    with writer:
        connections: dict[tuple[str, str], Any] = {}
        for topic, name, stamp_ns, values in messages:
            if (topic, name) not in connections:
                how: dict[str, Any] = {'typestore': store} if define else dict(absent)
                if topic == '/tf_static' and not kind.startswith('ros1'):
                    how['offered_qos_profiles'] = [LATCHED]
                connections[topic, name] = writer.add_connection(topic, name, **how)
            data = serialize(build(store, name, values), name)
            writer.write(connections[topic, name], stamp_ns, data)
    return path


def write_humble_bag(path: Path, messages: list[Message]) -> Path:
    """Write a sqlite3 bag as Humble records it: an older schema, no definitions, QoS."""
    qos = (
        '- history: 3\n  depth: 0\n  reliability: 1\n  durability: 2\n'
        '  deadline: {sec: 0, nsec: 0}\n  lifespan: {sec: 0, nsec: 0}\n  liveliness: 1\n'
        '  liveliness_lease_duration: {sec: 0, nsec: 0}\n'
        '  avoid_ros_namespace_conventions: false\n'
    )
    store = get_typestore(Stores.ROS2_HUMBLE)
    path.mkdir()
    database = sqlite3.connect(path / 'bag_0.db3')
    database.executescript(
        'CREATE TABLE schema(schema_version INTEGER PRIMARY KEY, ros_distro TEXT NOT NULL);'
        "INSERT INTO schema VALUES(3, 'humble');"
        'CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL,'
        ' serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL);'
        'CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL,'
        ' timestamp INTEGER NOT NULL, data BLOB NOT NULL);'
    )
    counts: dict[tuple[str, str], int] = {}
    for topic, name, stamp_ns, values in messages:
        if (topic, name) not in counts:
            row = (len(counts) + 1, topic, name, 'cdr', qos)
            database.execute('INSERT INTO topics VALUES(?, ?, ?, ?, ?)', row)
        counts[topic, name] = counts.get((topic, name), 0) + 1
        row_id = list(counts).index((topic, name)) + 1
        data = bytes(store.serialize_cdr(build(store, name, values), name))
        database.execute(
            'INSERT INTO messages(topic_id, timestamp, data) VALUES(?, ?, ?)',
            (row_id, stamp_ns, data),
        )
    database.commit()
    database.close()
    topics = ''.join(
        f'  - message_count: {count}\n    topic_metadata:\n      name: {topic}\n'
        f'      type: {name}\n      serialization_format: cdr\n'
        f'      offered_qos_profiles: {qos!r}\n'.replace("'- ", '"- ').replace("\\n'", '\\n"')
        for (topic, name), count in counts.items()
    )
    (path / 'metadata.yaml').write_text(
        'rosbag2_bagfile_information:\n  version: 5\n  storage_identifier: sqlite3\n'
        '  relative_file_paths: [bag_0.db3]\n  duration: {nanoseconds: 1}\n'
        f'  starting_time: {{nanoseconds_since_epoch: {START}}}\n'
        f'  message_count: {len(messages)}\n  compression_format: ""\n  compression_mode: ""\n'
        f'  topics_with_message_count:\n{topics}'
    )
    return path


def write_unindexed_mcap(path: Path, messages: list[Message]) -> Path:
    """Write an MCAP file of plain records: no chunks, no summary, short type names."""

    def text(value: str) -> bytes:
        return struct.pack('<I', len(value.encode())) + value.encode()

    def record(code: int, data: bytes) -> bytes:
        return struct.pack('<BQ', code, len(data)) + data

    store = get_typestore(Stores.ROS2_HUMBLE)
    magic = b'\x89MCAP0\r\n'
    out = magic + record(1, text('ros2') + text(''))
    channels: list[tuple[str, str]] = []
    for topic, name, stamp_ns, values in messages:
        if (topic, name) not in channels:
            channels.append((topic, name))
            channel = len(channels)
            definition = store.generate_msgdef(name, ros_version=2)[0]
            schema = text(name.replace('/msg/', '/')) + text('ros2msg') + text(definition)
            out += record(3, struct.pack('<H', channel) + schema)
            names = text(topic) + text('cdr') + text('')
            out += record(4, struct.pack('<HH', channel, channel) + names)
        channel = channels.index((topic, name)) + 1
        data = bytes(store.serialize_cdr(build(store, name, values), name))
        out += record(5, struct.pack('<HIQQ', channel, 0, stamp_ns, stamp_ns) + data)
    out += record(15, bytes(4)) + record(2, bytes(20)) + magic
    path = path.with_suffix('.mcap')
    path.write_bytes(out)
    return path


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 3)).astype(np.uint8)
JPEG = cv2.imencode('.jpg', np.full((16, 16, 3), (40, 90, 200), np.uint8))[1].ravel()
POSES = [Rigid3d(so3_exp([0.1 * i, 0.2, 0.3]), np.array([i, 2.0 * i, -1.0])) for i in range(4)]


def standard_messages() -> list[Message]:
    """Some of everything; what is recorded first was not always stamped first."""
    messages: list[Message] = []

    def add(topic: str, name: str, recorded: int, values: dict[str, Any]) -> None:
        messages.append((topic, name, START + recorded, values))

    for recorded, shot in enumerate([1, 0, 2]):
        values = image_values(START + shot * SECOND, IMAGES[shot], '/cam')
        add('/cam/image', 'sensor_msgs/msg/Image', recorded, values)
    compressed = {'header': header(START, 'cam'), 'format': 'rgb8; jpeg compressed bgr8'}
    add('/cam/jpeg', 'sensor_msgs/msg/CompressedImage', 3, compressed | {'data': JPEG})
    add('/cam/info', 'sensor_msgs/msg/CameraInfo', 4, info_values())
    for recorded, i in enumerate([1, 0, 2, 3]):
        stamp_ns, pose = START + i * SECOND, POSES[i]
        odometry = {'header': header(stamp_ns, 'odom'), 'child_frame_id': 'base'}
        odometry['pose'] = {'pose': pose_values(pose)}
        add('/odom', 'nav_msgs/msg/Odometry', 10 + recorded, odometry)
        stamped = {'header': header(stamp_ns, 'map'), 'pose': pose_values(pose)}
        add('/pose', 'geometry_msgs/msg/PoseStamped', 20 + recorded, stamped)
        uncertain = stamped | {'pose': {'pose': pose_values(pose)}}
        name = 'geometry_msgs/msg/PoseWithCovarianceStamped'
        add('/amcl', name, 30 + recorded, uncertain)
        transform = transform_values(stamp_ns, 'world', 'vicon', pose)
        add('/vicon', 'geometry_msgs/msg/TransformStamped', 40 + recorded, transform)
        moving = transform_values(stamp_ns, '/odom', '/base', pose)
        add('/tf', 'tf2_msgs/msg/TFMessage', 50 + recorded, {'transforms': [moving]})
    fixed = transform_values(0, 'base', 'cam', Rigid3d(np.eye(3), np.array([0.0, 0, 0.5])))
    add('/tf_static', 'tf2_msgs/msg/TFMessage', 60, {'transforms': [fixed]})
    return messages


KINDS: dict[str, Callable[[Path, list[Message]], Path]] = {
    'ros1': lambda path, messages: write_bag(path, 'ros1', messages),
    'ros1_lz4': lambda path, messages: write_bag(path, 'ros1_lz4', messages),
    'ros1_undefined': lambda path, messages: write_bag(path, 'ros1', messages, False),
    'sqlite3': lambda path, messages: write_bag(path, 'sqlite3', messages),
    'sqlite3_undefined': lambda path, messages: write_bag(path, 'sqlite3', messages, False),
    'sqlite3_file': lambda path, messages: write_bag(path, 'sqlite3_file', messages),
    'sqlite3_humble': write_humble_bag,
    'db3': lambda path, messages: write_bag(path, 'sqlite3', messages) / 'bag.db3',
    'mcap': lambda path, messages: write_bag(path, 'mcap', messages),
    'mcap_undefined': lambda path, messages: write_bag(path, 'mcap', messages, False),
    'mcap_message': lambda path, messages: write_bag(path, 'mcap_message', messages),
    'mcap_alone': lambda path, messages: write_bag(path, 'mcap', messages) / 'bag.mcap',
    'mcap_unindexed': write_unindexed_mcap,
}


@pytest.fixture(params=KINDS)
def any_bag(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bag]:
    with Bag(KINDS[request.param](tmp_path / 'bag', standard_messages())) as bag:
        yield bag


def test_topics(any_bag: Bag) -> None:
    counts = {'/cam/image': 3, '/odom': 4, '/pose': 4, '/amcl': 4, '/vicon': 4, '/tf': 4}
    assert {name: topic.count for name, topic in any_bag.topics.items()} == {
        **counts,
        '/cam/jpeg': 1,
        '/cam/info': 1,
        '/tf_static': 1,
    }
    assert any_bag.topics['/odom'] == Topic('nav_msgs/msg/Odometry', 4)
    assert any_bag.topics['/tf'].type == 'tf2_msgs/msg/TFMessage'


def test_images_come_in_order_of_their_stamps(any_bag: Bag) -> None:
    images = list(any_bag.images('/cam/image'))
    assert [image.stamp_ns for image in images] == [START + i * SECOND for i in range(3)]
    assert {image.frame_id for image in images} == {'cam'}
    for image, expected in zip(images, IMAGES, strict=True):
        np.testing.assert_array_equal(image.decode(), expected)
    (jpeg,) = any_bag.images('/cam/jpeg')
    assert np.abs(jpeg.decode().astype(int) - [200, 90, 40]).max() <= 2


@pytest.mark.parametrize('kind', KINDS)
def test_two_loops_at_once_do_not_mix(kind: str, tmp_path: Path) -> None:
    stamps = [START + i for i in range(30)]
    messages = [
        message
        for i, stamp_ns in enumerate(stamps)
        for message in (
            ('/odom', 'nav_msgs/msg/Odometry', stamp_ns, odometry(stamp_ns, Rigid3d())),
            ('/image', 'sensor_msgs/msg/Image', stamp_ns, image_values(stamp_ns, IMAGES[i % 3])),
        )
    ]
    with Bag(KINDS[kind](tmp_path / 'bag', messages)) as bag:
        first, second = bag.images('/image'), bag.images('/image')
        for i, stamp_ns in enumerate(stamps):
            assert next(first).stamp_ns == stamp_ns
            image = next(second)
            assert image.stamp_ns == stamp_ns
            np.testing.assert_array_equal(image.decode(), IMAGES[i % 3])
            if i % 10 == 0:
                assert bag.poses('/odom').trajectory.stamps_ns.tolist() == stamps
        assert list(first) == list(second) == []


def test_a_topic_of_two_types_is_read_by_type(tmp_path: Path) -> None:
    messages = standard_messages()
    stamped = {'header': header(START, 'map'), 'pose': pose_values(POSES[1])}
    messages.append(('/odom', 'geometry_msgs/msg/PoseStamped', START + 70, stamped))
    compressed = next(message for message in messages if message[0] == '/cam/jpeg')
    messages.append(('/tf', *compressed[1:]))
    with Bag(write_bag(tmp_path / 'bag', 'mcap', messages)) as bag:
        mixed = 'tf2_msgs/msg/TFMessage and sensor_msgs/msg/CompressedImage'
        assert bag.topics['/tf'] == Topic(mixed, 5)
        assert [image.decode().shape for image in bag.images('/tf')] == [(16, 16, 3)]
        assert bag.transforms().frames == ['base', 'cam', 'odom']
        with pytest.raises(BagError, match=r'image topics are /cam/image, /cam/jpeg, /tf$'):
            list(bag.images('/odom'))
        with pytest.raises(BagError, match='topic /odom mixes the poses of several frames'):
            bag.poses('/odom')


def test_camera_info(any_bag: Bag) -> None:
    camera, frame_id = any_bag.camera_info('/cam/info')
    assert frame_id == 'cam'
    expected = (500, 510, 320.5, 240.5, 0.1, -0.2, 0.001, 0.002)
    assert camera == Camera('OPENCV', 640, 480, expected)


@pytest.mark.parametrize(
    ('topic', 'parent', 'child'),
    [
        ('/odom', 'odom', 'base'),
        ('/pose', 'map', ''),
        ('/amcl', 'map', ''),
        ('/vicon', 'world', 'vicon'),
    ],
)
def test_poses(any_bag: Bag, topic: str, parent: str, child: str) -> None:
    found = any_bag.poses(topic)
    assert (found.parent_frame, found.child_frame) == (parent, child)
    assert found.trajectory.stamps_ns.tolist() == [START + i * SECOND for i in range(4)]
    for i, pose in enumerate(POSES):
        np.testing.assert_allclose(found.trajectory[i].rotation, pose.rotation, atol=1e-12)
        np.testing.assert_allclose(found.trajectory[i].translation, pose.translation)


def test_transforms(any_bag: Bag) -> None:
    buffer = any_bag.transforms()
    assert buffer.frames == ['base', 'cam', 'odom']
    odom_from_cam = buffer.lookup('odom', 'cam', START + 2 * SECOND)
    x_in_base = np.array([1.0, 2, 3.5])
    np.testing.assert_allclose(
        odom_from_cam.apply([1, 2, 3]), POSES[2].rotation @ x_in_base + POSES[2].translation
    )


@pytest.mark.parametrize('kind', ['ros1', 'sqlite3', 'mcap'])
def test_wrong_topics_list_the_right_ones(kind: str, tmp_path: Path) -> None:
    with Bag(KINDS[kind](tmp_path / 'bag', standard_messages())) as bag:
        with pytest.raises(
            BagError, match=r"has no topic '/camera': its image topics are /cam/image, /cam/jpeg$"
        ):
            list(bag.images('/camera'))
        with pytest.raises(
            BagError,
            match=r'has nav_msgs/msg/Odometry on .*/odom.*: its camera info topics are /c',
        ):
            bag.camera_info('/odom')
        with pytest.raises(BagError, match=r'its pose topics are /amcl, /odom, /pose, /vicon$'):
            bag.poses('/none')
        with pytest.raises(BagError, match="'/robot/tf': its transform topics are /tf, /tf_stat"):
            bag.transforms(('/robot/tf',))


def one_topic(name: str, values: list[dict[str, Any]], topic: str = '/topic') -> list[Message]:
    return [(topic, name, START + i, each) for i, each in enumerate(values)]


def odometry(stamp_ns: int, pose: Rigid3d, parent: str = 'odom') -> dict[str, Any]:
    return {
        'header': header(stamp_ns, parent),
        'child_frame_id': 'base',
        'pose': {'pose': pose_values(pose)},
    }


def test_a_bag_without_the_kind_says_so(tmp_path: Path) -> None:
    messages = one_topic('nav_msgs/msg/Odometry', [odometry(START, Rigid3d())])
    with (
        Bag(write_bag(tmp_path / 'bag', 'mcap', messages)) as bag,
        pytest.raises(BagError, match="has no topic '/image': it has no image topic"),
    ):
        list(bag.images('/image'))


def test_video_is_named(tmp_path: Path) -> None:
    writer = Writer2(tmp_path / 'bag', version=9, storage_plugin=StoragePlugin.MCAP)
    with writer:
        name = 'foxglove_msgs/msg/CompressedVideo'
        video = writer.add_connection('/video', name, msgdef='byte[] data\n', rihs01='x')
        writer.write(video, START, bytes(8))
    with (
        Bag(tmp_path / 'bag') as bag,
        pytest.raises(
            BagError, match=r"CompressedVideo on '/video': video cannot be read, record"
        ),
    ):
        list(bag.images('/video'))


def test_pose_topics_that_cannot_be_used(tmp_path: Path) -> None:
    def poses_of(*values: dict[str, Any]) -> Any:
        messages = one_topic('nav_msgs/msg/Odometry', list(values))
        path = tmp_path / f'bag{len(list(tmp_path.iterdir()))}'
        with Bag(write_bag(path, 'mcap', messages)) as bag:
            return bag.poses('/topic')

    unset = odometry(START, Rigid3d())
    unset['pose']['pose']['orientation']['w'] = 0.0
    far = odometry(START, Rigid3d(np.eye(3), np.array([np.nan, 0, 0])))
    good = odometry(START, Rigid3d())
    with pytest.raises(BagError, match='topic /topic has a message with stamp 0: its publisher'):
        poses_of(good, odometry(0, Rigid3d()))
    with pytest.raises(BagError, match=r'topic /topic: row 0 .* a quaternion not of length one'):
        poses_of(unset)
    with pytest.raises(BagError, match=r'topic /topic: row 0 .* a position that is not finite'):
        poses_of(far)
    with pytest.raises(BagError, match=r"mixes .*'map' <- 'base', 'odom' <- 'base'.*: use TF"):
        poses_of(good, odometry(START + 1, Rigid3d(), 'map'))


def test_of_repeated_stamps_the_first_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = [odometry(START + i // 2, POSES[i]) for i in range(4)]
    messages = one_topic('nav_msgs/msg/Odometry', values)
    with Bag(write_bag(tmp_path / 'bag', 'ros1', messages)) as bag:
        trajectory = bag.poses('/topic').trajectory
    assert trajectory.translations[:, 0].tolist() == [0, 2]
    assert 'topic /topic: 2 repeated stamps dropped' in caplog.text


def test_image_stamps_of_zero_or_running_back_are_refused(tmp_path: Path) -> None:
    for name, stamps, message in (
        ('zero', [START, 0], 'topic /topic has a message with stamp 0'),
        ('reset', [*range(START, START + 40), START - SECOND], 'run back by 1 s at image 40: spl'),
    ):
        values = [image_values(stamp, IMAGES[0]) for stamp in stamps]
        messages = one_topic('sensor_msgs/msg/Image', values)
        with (
            Bag(write_bag(tmp_path / name, 'mcap', messages)) as bag,
            pytest.raises(BagError, match=message),
        ):
            list(bag.images('/topic'))


def test_an_undecodable_image_is_named_and_not_decoded_before(tmp_path: Path) -> None:
    values = image_values(START, IMAGES[0]) | {'encoding': '16UC1'}
    messages = one_topic('sensor_msgs/msg/Image', [values], '/depth')
    with Bag(write_bag(tmp_path / 'bag', 'ros1', messages)) as bag:
        (image,) = bag.images('/depth')
    with pytest.raises(ImageError, match=f'image /depth at {START} ns has encoding 16UC1'):
        image.decode()


@pytest.mark.parametrize('kind', ['ros1', 'sqlite3', 'mcap'])
def test_foreign_and_odd_definitions(kind: str, tmp_path: Path) -> None:
    """A definition that cannot be parsed matters only on the topic that it belongs to."""
    path = tmp_path / ('bag.bag' if kind == 'ros1' else 'bag')
    store = get_typestore(Stores.ROS1_NOETIC if kind == 'ros1' else Stores.ROS2_HUMBLE)
    plugin = StoragePlugin.MCAP if kind == 'mcap' else StoragePlugin.SQLITE3
    writer: Any = (
        Writer1(path) if kind == 'ros1' else Writer2(path, version=9, storage_plugin=plugin)
    )
    digest = {'md5sum' if kind == 'ros1' else 'rihs01': 'x'}
    serialize = store.serialize_ros1 if kind == 'ros1' else store.serialize_cdr
    name = 'nav_msgs/msg/Odometry'
    data = serialize(build(store, name, odometry(START, POSES[1])), name)
    with writer:
        good = writer.add_connection('/good', name, typestore=store)
        writer.write(good, START, data)
        for topic, kind_name, definition in (
            ('/odd', 'my_msgs/msg/Odd', '!!! no such syntax'),
            ('/bad', 'geometry_msgs/msg/PoseStamped', '!!! no such syntax'),
            ('/less', 'geometry_msgs/msg/TransformStamped', 'string child_frame_id\n'),
        ):
            odd = writer.add_connection(topic, kind_name, msgdef=definition, **digest)
            writer.write(odd, START, data)
    with Bag(path) as bag:
        assert bag.topics['/odd'].type == 'my_msgs/msg/Odd'
        assert bag.poses('/good').trajectory[0].translation.tolist() == [1, 2, -1]
        with pytest.raises(BagError, match=r'cannot be read .*no such syntax'):
            bag.poses('/bad')
        with pytest.raises(BagError, match='TransformStamped with header, transform missing or'):
            bag.poses('/less')


def test_what_is_not_a_bag(tmp_path: Path) -> None:
    cases: list[tuple[Path, str]] = [(tmp_path / 'none', 'bag .*none does not exist')]
    (tmp_path / 'empty').mkdir()
    cases.append((tmp_path / 'empty', 'has no metadata.yaml and is not a ROS 2 bag: give another'))
    folder = write_bag(tmp_path / 'cut', 'mcap', standard_messages())
    (folder / 'metadata.yaml').unlink()
    cases.append((folder, r'give one of its files \(cut\.mcap\)'))
    (tmp_path / 'notes.txt').write_text('hello')
    cases.append((tmp_path / 'notes.txt', r'is not a bag: give .* a file \.bag, \.mcap, \.db3'))
    for suffix in ('bag', 'mcap', 'db3'):
        for name, data in (('zero', b''), ('junk', b'hello world\n' * 100)):
            path = tmp_path / f'{name}.{suffix}'
            path.write_bytes(data)
            cases.append((path, f'bag .*{name}.{suffix} cannot be read .*: copy it again or try'))
    for kind in ('ros1', 'sqlite3', 'mcap'):
        cases.append((write_bag(tmp_path / f'no_{kind}', kind, []), 'has no messages: record it'))
    for path, message in cases:
        with pytest.raises(BagError, match=message):
            Bag(path)


def test_metadata_that_is_damaged_or_lacks_its_file(tmp_path: Path) -> None:
    path = write_bag(tmp_path / 'bag', 'sqlite3', standard_messages())
    text = (path / 'metadata.yaml').read_text()
    for damaged in (text[:200], '', '[1, 2', 'a: b', text.replace('sqlite3', 'my_storage')):
        (path / 'metadata.yaml').write_text(damaged)
        with pytest.raises(BagError, match=r"cannot be read .*or try 'ros2 bag reindex'"):
            Bag(path)
    (path / 'metadata.yaml').write_text(text)
    (path / 'bag.db3').unlink()
    with pytest.raises(BagError, match=r'cannot be read .*bag\.db3'):
        Bag(path)


def test_topic_with_no_message(tmp_path: Path) -> None:
    path = write_humble_bag(tmp_path / 'bag', standard_messages())
    with sqlite3.connect(path / 'bag_0.db3') as database:
        database.execute('DELETE FROM messages WHERE topic_id = 1')
    database.close()
    with (
        Bag(path) as bag,
        pytest.raises(BagError, match="has no message on topic '/cam/image': record it again"),
    ):
        list(bag.images('/cam/image'))


def read_everything(path: Path) -> None:
    with Bag(path) as bag:
        for topic in ('/cam/image', '/cam/jpeg'):
            for image in bag.images(topic):
                image.decode()
        bag.camera_info('/cam/info')
        for topic in ('/odom', '/pose', '/amcl', '/vicon'):
            bag.poses(topic)
        bag.transforms().lookup('odom', 'cam', START + SECOND)


@pytest.mark.parametrize('kind', ['ros1', 'ros1_lz4', 'db3', 'mcap_alone', 'mcap_unindexed'])
def test_cut_and_flipped_files_give_sentences(kind: str, tmp_path: Path) -> None:
    path = KINDS[kind](tmp_path / 'bag', standard_messages())
    data = path.read_bytes()
    read_everything(path)
    for part in (0.2, 0.5, 0.9):
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(FeatRosError):
            read_everything(path)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(60):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), 20):
            damaged[at] = rng.integers(0, 256)
        path.write_bytes(damaged)
        try:
            read_everything(path)
        except FeatRosError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1, error
    assert refused > 10


def test_without_rosbags_the_rest_works_and_a_bag_names_the_remedy(tmp_path: Path) -> None:
    path = write_bag(tmp_path / 'bag', 'ros1', standard_messages())
    code = (
        'import sys; sys.modules["rosbags"] = None\n'
        'from feat_ros.bags import Bag, TransformBuffer\n'
        'assert TransformBuffer().frames == []\n'
        f'Bag({str(path)!r})\n'
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=root, capture_output=True, text=True, check=False
    )
    assert "needs the package rosbags: run 'pip install rosbags'" in done.stderr
    assert 'BagError' in done.stderr.splitlines()[-1]


# Camera info


def info(**changes: Any) -> Any:
    """Make a CameraInfo that is no ROS message: only attributes count."""
    values = info_values(binning_x=0, binning_y=0) | changes
    roi = {'x_offset': 0, 'y_offset': 0, 'width': 0, 'height': 0} | values.pop('roi', {})
    return SimpleNamespace(**values, roi=SimpleNamespace(**roi))


POINTS = np.random.default_rng(3).uniform([-0.5, -0.4, 1], [0.5, 0.4, 2], (50, 3))


@pytest.mark.parametrize(
    ('model', 'd', 'expected'),
    [
        ('plumb_bob', [0.1, -0.2, 0.001, 0.002], 'OPENCV'),
        ('plumb_bob', [0.1, -0.2, 0.001, 0.002, 0.0], 'OPENCV'),
        ('plumb_bob', [0.1, -0.2, 0.001, 0.002, 0.05], 'FULL_OPENCV'),
        ('rational_polynomial', [0.1, -0.2, 0.001, 0.002, 0.05, 0.3, 0.1, 0.02], 'FULL_OPENCV'),
        ('rational_polynomial', [0.1, 0, 0, 0, 0, 0.3, 0, 0, 0, 0, 0, 0], 'FULL_OPENCV'),
        ('plumb_bob', [], 'PINHOLE'),
        ('', [], 'PINHOLE'),
        ('', [0.0] * 5, 'PINHOLE'),
        ('equidistant', [0.1, -0.02, 0.003, 0.001], 'OPENCV_FISHEYE'),
        ('fisheye', [0.1, -0.02, 0.003, 0.001], 'OPENCV_FISHEYE'),
        ('kannala_brandt', [0.1, -0.02, 0.003, 0.001, 0.0], 'OPENCV_FISHEYE'),
    ],
)
def test_projection_is_opencvs_half_a_pixel_further(
    model: str, d: list[float], expected: str
) -> None:
    message = info(distortion_model=model, d=d)
    camera = camera_from_info(message, 'test')
    assert camera.model == expected
    assert camera.size_wh == (640, 480)
    k = np.reshape(message.k, (3, 3))
    zero = np.zeros(3)
    if expected == 'OPENCV_FISHEYE':
        pixels, _ = cv2.fisheye.projectPoints(POINTS[:, None], zero, zero, k, np.array(d[:4]))
    else:
        pixels, _ = cv2.projectPoints(POINTS[:, None], zero, zero, k, np.array(d[:8]))
    np.testing.assert_allclose(camera.project(POINTS), pixels[:, 0] + 0.5, atol=1e-9)


def test_binning_and_region_cut_and_shrink_the_full_image() -> None:
    full = camera_from_info(info(), 'test')
    roi = {'x_offset': 100, 'y_offset': 60, 'width': 320, 'height': 240}
    camera = camera_from_info(info(roi=roi, binning_x=2, binning_y=4), 'test')
    assert camera.size_wh == (160, 60)
    # With (0, 0) the corner of the first pixel, cutting and shrinking need no half pixels.
    expected = (full.project(POINTS) - [100, 60]) / [2, 4]
    np.testing.assert_allclose(camera.project(POINTS), expected, atol=1e-9)
    assert camera_from_info(info(binning_x=1, binning_y=1), 'test') == full


def test_ros1_names_are_read_too() -> None:
    message = info()
    message.K, message.D = message.k, message.d
    del message.k, message.d
    assert camera_from_info(message, 'test') == camera_from_info(info(), 'test')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'k': [0.0] * 9}, 'camera info /info has a K of zeros: calibrate the camera'),
        (
            {'k': [0.0] * 9, 'p': [500.0, 0, 320, 0, 0, 510, 240, 0, 0, 0, 1, 0]},
            'has a K of zeros, and its P is of the rectified image: calibrate',
        ),
        ({'k': [500.0, 1, 320, 0, 510, 240, 0, 0, 1]}, 'only focal lengths, centre and a last 1'),
        ({'k': [500.0, 0, 320, 0, 510, 240, 0, 0, 2]}, 'only focal lengths, centre and a last 1'),
        ({'k': [-5.0, 0, 320, 0, 510, 240, 0, 0, 1]}, '/info cannot be used: focal length fx'),
        ({'k': [np.nan, 0, 320, 0, 510, 240, 0, 0, 1]}, '/info cannot be used: .* fx is nan'),
        ({'d': [np.inf, 0, 0, 0, 0]}, '/info cannot be used: camera parameter k1 is inf'),
        ({'width': 0}, '/info cannot be used: camera size 0x480'),
        ({'binning_x': 1000}, '/info cannot be used: camera size 0x480'),
        ({'distortion_model': 'mei'}, "unknown distortion model 'mei'; known are: plumb_bob, rat"),
        ({'distortion_model': ''}, "unknown distortion model ''; known are"),
        ({'d': [0.1, 0.2, 0.3]}, 'has 3 coefficients: plumb_bob needs k1 k2 p1 p2'),
        ({'d': [0.1] * 12}, 'has 12 coefficients: plumb_bob needs'),
        (
            {'distortion_model': 'equidistant', 'd': [0.1] * 5},
            'has 5 coefficients: equidistant needs 4',
        ),
        ({'distortion_model': 'fisheye', 'd': [0.1] * 3}, 'has 3 coefficients: fisheye needs 4'),
        ({'roi': {'width': 640, 'height': 480, 'x_offset': 1}}, r'640x480 at \(1, 0\): it must'),
        ({'roi': {'x_offset': 1}}, r'region of interest of 0x0 at \(1, 0\): it must lie within'),
    ],
)
def test_bad_camera_infos_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CameraError, match=message):
        camera_from_info(info(**changes), '/info')


# Transforms


def transform(stamp_ns: int, parent: str, child: str, pose: Rigid3d) -> Any:
    """Make a TransformStamped that is no ROS message."""

    def records(value: Any) -> Any:
        if isinstance(value, dict):
            return SimpleNamespace(**{name: records(each) for name, each in value.items()})
        return value

    return records(transform_values(stamp_ns, parent, child, pose))


def random_pose(rng: np.random.Generator) -> Rigid3d:
    return Rigid3d(so3_exp(rng.normal(size=3)), rng.normal(size=3))


def test_lookup_through_a_random_tree() -> None:
    """Place every frame in the root by hand; any pair must then agree."""
    rng = np.random.default_rng(5)
    names = [f'frame{i}' for i in range(12)]
    root_from = {names[0]: Rigid3d()}
    buffer = TransformBuffer()
    stamp_ns = START + SECOND // 2
    for i, child in enumerate(names[1:], 1):
        parent = names[rng.integers(i)]
        pose = random_pose(rng)
        is_static = bool(rng.integers(2))
        stamps = [0] if is_static else [START, stamp_ns, START + SECOND]
        for stamp in stamps:
            at = pose if is_static or stamp == stamp_ns else random_pose(rng)
            buffer.add([transform(stamp, parent, child, at)], is_static=is_static)
        root_from[child] = root_from[parent] @ pose
    assert buffer.frames == sorted(names)
    for target in names:
        for source in names:
            found = buffer.lookup(target, source, stamp_ns)
            expected = root_from[target].inverse() @ root_from[source]
            np.testing.assert_allclose(found.rotation, expected.rotation, atol=1e-12)
            np.testing.assert_allclose(found.translation, expected.translation, atol=1e-12)


def test_lookup_interpolates_and_takes_messages_in_any_order() -> None:
    buffer = TransformBuffer()
    for seconds in (2, 0, 1):
        pose = Rigid3d(so3_exp([0, 0, 0.4 * seconds]), np.array([3.0 * seconds, 0, 0]))
        buffer.add([transform(START + seconds * SECOND, '/odom', '/base', pose)], is_static=False)
    found = buffer.lookup('odom', '/base', START + SECOND + SECOND // 4)
    np.testing.assert_allclose(found.rotation, so3_exp([0, 0, 0.5]), atol=1e-12)
    np.testing.assert_allclose(found.translation, [3.75, 0, 0], atol=1e-12)
    later = Rigid3d(np.eye(3), np.array([9.0, 0, 0]))
    buffer.add([transform(START + 3 * SECOND, 'odom', 'base', later)], is_static=False)
    assert buffer.lookup('odom', 'base', START + 3 * SECOND).translation.tolist() == [9, 0, 0]


def test_a_newer_static_transform_replaces_the_older() -> None:
    buffer = TransformBuffer()
    for x in (1.0, 2.0):
        pose = Rigid3d(np.eye(3), np.array([x, 0, 0]))
        buffer.add([transform(0, 'base', 'cam', pose)], is_static=True)
    assert buffer.lookup('base', 'cam', START).translation.tolist() == [2, 0, 0]
    assert buffer.lookup('cam', 'cam', 0).translation.tolist() == [0, 0, 0]


def test_lookup_says_what_is_missing() -> None:
    buffer = TransformBuffer()
    with pytest.raises(UnknownFrameError, match="unknown frame 'map'; known are: none"):
        buffer.lookup('map', 'map', START)
    for seconds in (0, 1, 5):
        stamp_ns = START + seconds * SECOND
        buffer.add([transform(stamp_ns, 'odom', 'base', Rigid3d())], is_static=False)
    buffer.add([transform(0, 'base', 'cam', Rigid3d())], is_static=True)
    buffer.add([transform(0, 'table', 'cup', Rigid3d())], is_static=True)
    with pytest.raises(UnknownFrameError, match="'map'; known are: base, cam, cup, odom, table"):
        buffer.lookup('map', 'cam', START)
    with pytest.raises(
        DisconnectedFramesError,
        match=r"'cam' .in the tree of 'odom'. and 'cup' .in the tree of 't",
    ):
        buffer.lookup('cam', 'cup', START)
    for stamp_ns in (START - 1, START + 5 * SECOND + 1):
        with pytest.raises(
            OutsideTimeRangeError,
            match=f"transform 'odom' <- 'base' is known from {START} to {START + 5 * SECOND} ns",
        ):
            buffer.lookup('odom', 'cam', stamp_ns)
    with pytest.raises(OutsideTimeRangeError, match='has a gap of more than 1 s around'):
        buffer.lookup('cam', 'odom', START + 2 * SECOND)
    found = buffer.lookup('cam', 'odom', START + 2 * SECOND, max_gap_ns=4 * SECOND)
    np.testing.assert_allclose(found.rotation, np.eye(3))
    assert buffer.lookup('base', 'cam', 5).translation.tolist() == [0, 0, 0]


def test_trees_that_are_none() -> None:
    buffer = TransformBuffer()
    for parent, child in (('a', 'b'), ('b', 'c'), ('c', 'a'), ('x', 'z'), ('y', 'z'), ('z', 'w')):
        buffer.add([transform(0, parent, child, Rigid3d())], is_static=True)
    with pytest.raises(TransformError, match=r'frames form a loop .b <- c <- a <- b.: stop one'):
        buffer.lookup('b', 'w', START)
    with pytest.raises(TransformError, match="'z' has more than one parent, x, y: stop all but"):
        buffer.lookup('w', 'x', START)


def test_bad_transforms_are_named() -> None:
    buffer = TransformBuffer()
    buffer.add([transform(0, 'odom', 'base', Rigid3d())], is_static=False)
    with pytest.raises(TransformError, match="'odom' <- 'base' has stamp 0: its publisher must"):
        buffer.lookup('odom', 'base', START)
    bad = transform(START, 'map', 'odom', Rigid3d())
    bad.transform.rotation.w = 0.0
    with pytest.raises(BagError, match=r"'map' <- 'odom': row 0 .* quaternion not of length one"):
        buffer.add([bad], is_static=True)
    buffer.add([bad], is_static=False)
    with pytest.raises(BagError, match=r"'map' <- 'odom': row 0 .* quaternion not of length one"):
        buffer.lookup('map', 'odom', START)


# Recorded bags


def recorded(name: str) -> Path:
    if not (DATA / name).exists():
        pytest.skip(f'no recorded bag {name} here')
    return DATA / name


def test_recorded_compressed_bag() -> None:
    with Bag(recorded('fr1_rpy/bag_db3')) as bag:
        camera, frame_id = bag.camera_info('/camera/camera_info')
        stamps = []
        for image in bag.images('/camera/image_raw/compressed'):
            stamps.append(image.stamp_ns)
            if len(stamps) % 60 == 1:
                assert image.decode().shape == (480, 640, 3)
                assert image.frame_id == frame_id == 'camera_optical_frame'
        truth = bag.poses('/ground_truth/pose')
    assert len(stamps) == 361
    assert np.all(np.diff(stamps) > 0)
    # k3 is not zero: params fx fy cx cy k1 k2 p1 p2 k3 k4 k5 k6.
    assert camera.model == 'FULL_OPENCV'
    assert camera.params[:4] == pytest.approx((517.306408, 516.469215, 319.14304, 255.813989))
    assert camera.params[8:] == pytest.approx((1.163314, 0, 0, 0))
    assert (truth.parent_frame, truth.child_frame, len(truth.trajectory)) == ('map', '', 1220)
    rotations, _ = truth.trajectory.interpolate(stamps, 50_000_000)
    assert np.isfinite(rotations[:, 0, 0]).mean() > 0.9


def test_recorded_raw_and_compressed_frames_are_the_same_pictures() -> None:
    with Bag(recorded('fr1_rpy/bag_mcap_raw')) as bag:
        raw = {image.stamp_ns: image.decode() for image in bag.images('/camera/image_raw')}
    assert len(raw) == 6
    compared = 0
    with Bag(recorded('fr1_rpy/bag_db3')) as bag:
        for image in bag.images('/camera/image_raw/compressed'):
            if image.stamp_ns in raw:
                difference = image.decode().astype(int) - raw[image.stamp_ns]
                swapped = image.decode()[:, :, ::-1].astype(int) - raw[image.stamp_ns]
                assert np.abs(difference).mean() < 4 < np.abs(swapped).mean()
                compared += 1
    assert compared == 6


def test_recorded_ros1_bag() -> None:
    with Bag(recorded('t265_ros1') / 'trimmed_locoffice.bag') as bag:
        images = list(bag.images('/camera/fisheye1/image_raw'))
        odometry = bag.poses('/camera/odom/sample')
        with pytest.raises(BagError, match='it has no camera info topic'):
            bag.camera_info('/camera/fisheye1/camera_info')
    assert [image.frame_id for image in images] == ['camera_fisheye1_optical_frame'] * 3
    image = images[0].decode()
    assert image.shape == (800, 848, 3)
    assert np.array_equal(image[:, :, 0], image[:, :, 2])
    assert (odometry.parent_frame, odometry.child_frame) == (
        'camera_odom_frame',
        'camera_pose_frame',
    )
    assert len(odometry.trajectory) == 19
    assert odometry.trajectory.translations[0] == pytest.approx([3.89798, 0.63097, 0.42175], 1e-4)


def test_a_copied_recording_without_metadata_reads_by_its_file(tmp_path: Path) -> None:
    shutil.copy(recorded('fr1_rpy/bag_mcap_raw') / 'bag_mcap_raw.mcap', tmp_path / 'some.mcap')
    with Bag(tmp_path / 'some.mcap') as bag:
        assert bag.topics['/camera/image_raw'] == Topic('sensor_msgs/msg/Image', 6)


@pytest.mark.parametrize('kind', ['ros1', 'ros2', 'ros2_mcap'])
def test_messages_as_ros2_sends_them(tmp_path: Path, kind: str) -> None:
    """The bytes of a bag in CDR and the definitions to read them; ROS 1 loses its counters."""
    picture = np.arange(36, dtype=np.uint8).reshape(3, 4, 3)
    image, point = image_values(START, picture), dict(zip('xyz', (1.0, 2.0, 3.0), strict=True))
    bag_path = write_bag(
        tmp_path / 'bag', kind,
        [('/camera', 'sensor_msgs/msg/Image', START, image),
         ('/tf_static', 'geometry_msgs/msg/Point', START + 1, point),
         ('/other', 'geometry_msgs/msg/Point', START + 2, point)],
    )  # fmt: skip
    store = get_typestore(Stores.ROS2_HUMBLE)
    with Bag(bag_path) as bag:
        messages = list(bag.cdr(['/camera', '/tf_static']))
        assert [message[:2] for message in messages] == [
            ('/camera', START), ('/tf_static', START + 1)
        ]  # fmt: skip
        read = store.deserialize_cdr(messages[0][2], 'sensor_msgs/msg/Image')
        assert (read.header.frame_id, read.width, read.encoding) == ('cam', 4, 'bgr8')
        np.testing.assert_array_equal(read.data, image['data'])
        assert store.deserialize_cdr(messages[1][2], 'geometry_msgs/msg/Point').z == 3.0
        assert bag.fields('sensor_msgs/msg/Image')[-1] == ('data', 'uint8', 0)
        assert bag.fields('std_msgs/msg/Header') == [
            ('stamp', 'builtin_interfaces/msg/Time', None), ('frame_id', 'string', None)
        ]  # fmt: skip
        with pytest.raises(KeyError, match='sensor_msgs/msg/Imu'):
            bag.fields('sensor_msgs/msg/Imu')
        assert [bag.is_latched(topic) for topic in bag.topics] == [False, False, True]
        bag.check_topics(['/camera'])
        with pytest.raises(BagError, match="no topic '/cam': its topics are /camera, /other"):
            bag.check_topics(['/cam'])
