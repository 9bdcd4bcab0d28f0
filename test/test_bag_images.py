# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Keyframes and poses of bags, written here: pictures of the rendered room."""

from __future__ import annotations

from pathlib import Path
import shutil
from typing import Any

from conftest import Room, walk
import cv2
import numpy as np
import numpy.typing as npt
import pytest
from test_bags import header, image_values, Message, pose_values, transform_values, write_bag

from feat_ros.alignment import image_names
from feat_ros.bag_images import (
    fixes_at_images,
    frames_in,
    KeyframeConfig,
    Keyframes,
    poses_at_images,
    PoseSource,
    stamp_of_name,
    Window,
    write_keyframes,
)
from feat_ros.bags import Bag
from feat_ros.camera import Camera
from feat_ros.cli import main
from feat_ros.errors import BagError, DataError, TransformError
from feat_ros.geometry import Rigid3d, rotation_angle_deg, so3_exp
from feat_ros.image import read_image
from feat_ros.sfm_map import SfmMap

DATA = Path(__file__).parents[2] / 'shared' / 'data'
SECOND = 10**9
START = 1_700_000_000 * SECOND
STEP = SECOND // 4
CAMERA = Camera('PINHOLE', 160, 120, (130.0, 130.0, 80.0, 60.0))
BASE_FROM_CAM = Rigid3d(so3_exp([-1.2, 1.2, -1.2]), np.array([0.3, 0.05, 0.4]))
COUNT = 12


def stamp(number: int) -> int:
    return START + number * STEP


def map_from_cams() -> list[Rigid3d]:
    return [pose.inverse() for pose in walk(COUNT)]


@pytest.fixture(scope='module')
def pictures() -> list[npt.NDArray[np.uint8]]:
    room = Room.make(3)
    return [room.shoot(CAMERA, pose, number) for number, pose in enumerate(walk(COUNT))]


def info() -> dict[str, Any]:
    fx, fy, cx, cy = CAMERA.params
    return {
        'header': header(START, 'cam'), 'width': 160, 'height': 120, 'distortion_model': '',
        'k': [fx, 0, cx - 0.5, 0, fy, cy - 0.5, 0, 0, 1],
    }  # fmt: skip


def camera_messages(pictures: list[npt.NDArray[np.uint8]]) -> list[Message]:
    images: list[Message] = [
        ('/image', 'sensor_msgs/msg/Image', stamp(n), image_values(stamp(n), rgb))
        for n, rgb in enumerate(pictures)
    ]
    return [*images, ('/info', 'sensor_msgs/msg/CameraInfo', START, info())]


def pose_messages() -> list[Message]:
    """Poses of the camera, of the base by name, and of the base in TF, half a step before each."""
    out: list[Message] = []
    for number, pose in enumerate(map_from_cams()):
        base = pose @ BASE_FROM_CAM.inverse()
        at = stamp(number)
        stamped = {'header': header(at, 'hall'), 'pose': pose_values(pose)}
        odometry = {
            'header': header(at, 'odom'),
            'child_frame_id': 'base',
            'pose': {'pose': pose_values(base)},
        }
        tf = {'transforms': [transform_values(at, 'map', 'base', base)]}
        out += [
            ('/pose', 'geometry_msgs/msg/PoseStamped', at, stamped),
            ('/odom', 'nav_msgs/msg/Odometry', at, odometry),
            ('/tf', 'tf2_msgs/msg/TFMessage', at, tf),
        ]
    fixed = {'transforms': [transform_values(START, 'base', 'cam', BASE_FROM_CAM)]}
    return [*out, ('/tf_static', 'tf2_msgs/msg/TFMessage', START, fixed)]


@pytest.fixture(scope='module')
def bag_path(
    pictures: list[npt.NDArray[np.uint8]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp('bags') / 'drive'
    return write_bag(path, 'sqlite', camera_messages(pictures) + pose_messages())


EVERY = KeyframeConfig(min_distance_m=0.0, min_angle_deg=0.0)
EVERY_GAP = KeyframeConfig(min_distance_m=0.0, min_angle_deg=0.0, max_gap_s=0.3)


def keyframes(path: Path, folder: Path, source: PoseSource | None, **more: Any) -> Keyframes:
    with Bag(path) as bag:
        return write_keyframes(bag, '/image', CAMERA, folder, source, **more)


# ---------------------------------------------------------------- poses


@pytest.mark.parametrize(
    ('source', 'frame'),
    [
        (PoseSource(topic='/pose'), 'hall'),
        (PoseSource(topic='/odom'), 'odom'),
        (PoseSource(tf_frame='map'), 'map'),
    ],
    ids=['of the camera', 'of the base', 'TF'],
)
def test_poses_of_the_camera(
    bag_path: Path, tmp_path: Path, source: PoseSource, frame: str
) -> None:
    found = keyframes(bag_path, tmp_path / 'images', source, options=EVERY_GAP)
    assert found.frame_id == frame
    assert isinstance(found.images, list)
    assert [image.name for image in found.images] == [f'{stamp(n)}.png' for n in range(COUNT)]
    for image, pose in zip(found.images, walk(COUNT), strict=True):
        assert image.camera == CAMERA
        assert rotation_angle_deg(image.cam_from_map.rotation, pose.rotation) < 1e-6
        np.testing.assert_allclose(
            image.cam_from_map.inverse().translation, pose.inverse().translation, atol=1e-9
        )


def test_the_base_taken_for_the_camera_when_asked(bag_path: Path, tmp_path: Path) -> None:
    """Odometry whose child is said to be the camera; a pose that is said to be the base's."""
    source = PoseSource(topic='/odom', pose_frame='cam')
    found = keyframes(bag_path, tmp_path / 'a', source, options=EVERY)
    assert isinstance(found.images, list)
    base = map_from_cams()[0] @ BASE_FROM_CAM.inverse()
    np.testing.assert_allclose(
        found.images[0].cam_from_map.inverse().translation, base.translation, atol=1e-9
    )
    source = PoseSource(topic='/pose', pose_frame='base')
    found = keyframes(bag_path, tmp_path / 'b', source, options=EVERY)
    assert isinstance(found.images, list)
    np.testing.assert_allclose(
        found.images[0].cam_from_map.inverse().translation,
        (map_from_cams()[0] @ BASE_FROM_CAM).translation, atol=1e-9,
    )  # fmt: skip


def test_the_pictures_are_those_of_the_bag(
    bag_path: Path, pictures: list[npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'old.png').write_bytes(b'of an earlier run')
    keyframes(bag_path, tmp_path / 'images', PoseSource('/pose'), options=EVERY)
    files = sorted((tmp_path / 'images').iterdir())
    assert len(files) == COUNT
    for path, picture in zip(files, pictures, strict=True):
        np.testing.assert_array_equal(read_image(path), picture)


def test_keyframes_by_motion(bag_path: Path, tmp_path: Path) -> None:
    """Compared with a loop over all poses."""
    options = KeyframeConfig(min_distance_m=0.5, min_angle_deg=12.0)
    expected = [0]
    poses = map_from_cams()
    for number, pose in enumerate(poses):
        last = poses[expected[-1]]
        far = np.linalg.norm(pose.translation - last.translation) >= 0.5
        if far or rotation_angle_deg(pose.rotation, last.rotation) >= 12.0:
            expected.append(number)
    found = keyframes(bag_path, tmp_path / 'images', PoseSource('/pose'), options=options)
    assert isinstance(found.images, list)
    assert [stamp_of_name(image.name) for image in found.images] == [stamp(n) for n in expected]
    assert 2 < len(expected) < COUNT
    assert found.counts == {
        'num_frames': COUNT, 'num_without_pose': 0, 'num_keyframes': len(expected),
    }  # fmt: skip


def test_frames_without_a_pose_are_counted(
    pictures: list[npt.NDArray[np.uint8]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Poses end before the images do."""
    early = [m for m in pose_messages() if m[2] <= stamp(8)]
    path = write_bag(tmp_path / 'bag', 'sqlite', camera_messages(pictures) + early)
    for source in (PoseSource('/pose'), PoseSource(tf_frame='map')):
        found = keyframes(path, tmp_path / 'images', source, options=EVERY_GAP)
        assert found.counts == {'num_frames': 12, 'num_without_pose': 3, 'num_keyframes': 9}
    assert '3 of 12 frames have no pose and are left out' in caplog.text
    late = [m for m in pose_messages() if m[2] > stamp(10)]
    path = write_bag(tmp_path / 'late', 'sqlite', camera_messages(pictures) + late)
    with pytest.raises(DataError, match='11 of 12 frames of /image have no pose: is the clock'):
        keyframes(path, tmp_path / 'images', PoseSource('/pose'), options=EVERY)


def test_frames_that_nothing_connects(
    pictures: list[npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    messages = [m for m in pose_messages() if m[0] not in ('/tf', '/tf_static')]
    path = write_bag(tmp_path / 'bag', 'sqlite', camera_messages(pictures) + messages)
    with pytest.raises(TransformError, match=r"of 'base', the camera is 'cam'.*--pose-frame"):
        keyframes(path, tmp_path / 'images', PoseSource('/odom'))
    with pytest.raises(BagError, match='it has no transform topic'):
        keyframes(path, tmp_path / 'images', PoseSource(tf_frame='map'))
    with pytest.raises(BagError, match='its pose topics are /odom, /pose'):
        keyframes(path, tmp_path / 'images', PoseSource('/nothing'))


# ---------------------------------------------------------------- frames


@pytest.mark.parametrize(
    ('window', 'expected'),
    [
        (Window(), range(12)),
        (Window(seconds='even'), [0, 1, 2, 3, 8, 9, 10, 11]),
        (Window(seconds='odd'), [4, 5, 6, 7]),
        (Window(start_s=0.5, end_s=1.5), [2, 3, 4, 5]),
        (Window(start_s=0.5, seconds='odd'), [4, 5, 6, 7]),
    ],
)
def test_windows(bag_path: Path, window: Window, expected: list[int]) -> None:
    with Bag(bag_path) as bag:
        found = [image.stamp_ns for image in frames_in(bag, '/image', window)]
    assert found == [stamp(number) for number in expected]


def test_keyframes_by_the_pictures_motion(tmp_path: Path) -> None:
    """A camera that stands still, then slides by 3 px of 320 a frame, then jumps elsewhere."""
    rng = np.random.default_rng(0)
    wide = cv2.GaussianBlur(rng.uniform(0, 255, (240, 900, 3)), (0, 0), 3)
    wide = np.clip((wide - 127) * 4 + 127, 0, 255).astype(np.uint8)
    shifts = [0] * 5 + [3 * n for n in range(1, 16)] + [500]
    frames = [wide[:, shift : shift + 320] for shift in shifts]
    messages: list[Message] = [
        ('/image', 'sensor_msgs/msg/Image', stamp(n), image_values(stamp(n), rgb))
        for n, rgb in enumerate(frames)
    ]
    path = write_bag(tmp_path / 'bag', 'sqlite', messages)
    found = keyframes(path, tmp_path / 'images', None, options=KeyframeConfig(min_flow=0.05))
    assert isinstance(found.images, dict)
    at = [(stamp_of_name(name) - START) // STEP for name in found.images]
    # 0.05 of 320 is 16 pixels: five frames of 3 are not enough, six are.
    assert at == [0, 10, 16, 20]
    assert set(found.images.values()) == {CAMERA}


def test_a_camera_that_stands_still(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (120, 160, 3)).astype(np.uint8)
    messages: list[Message] = [
        ('/image', 'sensor_msgs/msg/Image', stamp(n), image_values(stamp(n), rgb))
        for n in range(4)
    ]
    path = write_bag(tmp_path / 'bag', 'sqlite', messages)
    with pytest.raises(DataError, match='1 of 4 frames of /image are keyframes, a map needs 2'):
        keyframes(path, tmp_path / 'images', None)


@pytest.mark.parametrize(
    ('suffix', 'format_', 'kept'),
    [
        ('.jpg', 'jpeg', True),
        ('.png', 'png', True),
        ('.jpg', 'rgb8; jpeg compressed bgr8', True),
        ('.png', 'rgb8; png compressed rgb8', False),
        ('.png', 'bayer_rggb8; png compressed bayer_rggb8', False),
    ],
)
def test_compressed_frames_are_kept_as_they_are(
    pictures: list[npt.NDArray[np.uint8]], tmp_path: Path, suffix: str, format_: str, kept: bool
) -> None:
    """Unless a reader of files would see something else in them."""
    if 'bayer' in format_:
        encoded = [cv2.imencode(suffix, rgb[:, :, 1])[1].tobytes() for rgb in pictures[:2]]
    else:
        encoded = [cv2.imencode(suffix, rgb[:, :, ::-1])[1].tobytes() for rgb in pictures[:2]]
    messages: list[Message] = [
        (
            '/image',
            'sensor_msgs/msg/CompressedImage',
            stamp(n),
            {
                'header': header(stamp(n), 'cam'),
                'format': format_,
                'data': np.frombuffer(data, np.uint8),
            },
        )
        for n, data in enumerate(encoded)
    ]
    path = write_bag(tmp_path / 'bag', 'sqlite', messages)
    options = KeyframeConfig(min_flow=0.0)
    keyframes(path, tmp_path / 'images', None, options=options)
    files = [tmp_path / 'images' / f'{stamp(n)}{suffix}' for n in range(2)]
    assert [file.read_bytes() == data for file, data in zip(files, encoded, strict=True)] == (
        [kept] * 2
    )
    with Bag(path) as bag:
        for image, file in zip(bag.images('/image'), files, strict=True):
            np.testing.assert_array_equal(read_image(file), image.decode())


# ---------------------------------------------------------------- poses and fixes for maps


def test_poses_at_the_stamps_of_images(bag_path: Path) -> None:
    names = [f'{stamp(0)}.jpg', f'{stamp(1) + STEP // 2}.jpg', f'{stamp(50)}.jpg']
    with Bag(bag_path) as bag:
        found, frame = poses_at_images(bag, PoseSource('/odom'), 'cam', names, 1.0)
        assert frame == 'odom'
        assert list(found) == names[:2]
        with pytest.raises(DataError, match=r"'a1\.jpg' of the map is not named by its"):
            poses_at_images(bag, PoseSource('/pose'), 'cam', ['a1.jpg'], 1.0)
    expected = [pose.translation for pose in map_from_cams()]
    np.testing.assert_allclose(found[names[0]].inverse().translation, expected[0], atol=1e-9)


def fix_message(number: int, place: tuple[float, float, float], status: int = 0) -> Message:
    latitude, longitude, altitude = place
    return (
        '/fix',
        'sensor_msgs/msg/NavSatFix',
        stamp(number),
        {
            'header': header(stamp(number), 'gps'),
            'status': {'status': status, 'service': 1},
            'latitude': latitude,
            'longitude': longitude,
            'altitude': altitude,
        },
    )


def test_fixes_at_the_stamps_of_images(tmp_path: Path) -> None:
    messages = [
        fix_message(0, (48.0, 11.0, 500.0)),
        fix_message(1, (0.0, 0.0, 0.0), status=-1),
        fix_message(2, (48.2, 11.1, 504.0)),
        fix_message(20, (49.0, 11.0, 500.0)),
    ]
    path = write_bag(tmp_path / 'bag', 'sqlite', messages)
    names = [f'{at}.png' for at in (stamp(-1), stamp(0), stamp(1), stamp(2), stamp(10), stamp(20))]
    with Bag(path) as bag:
        found = fixes_at_images(bag, '/fix', names, 1.0)
        assert list(found) == [names[1], names[2], names[3], names[5]]
        np.testing.assert_allclose(found[names[2]], [48.1, 11.05, 502.0])
        np.testing.assert_allclose(found[names[5]], [49.0, 11.0, 500.0])
        with pytest.raises(BagError, match=r"no sensor_msgs/msg/NavSatFix on '/gps': .* on /fix"):
            fixes_at_images(bag, '/gps', names, 1.0)
    path = write_bag(tmp_path / 'none', 'sqlite', [fix_message(0, (0.0, 0.0, 0.0), status=-1)])
    with Bag(path) as bag, pytest.raises(BagError, match=r'topic /fix of bag .* has no fix'):
        fixes_at_images(bag, '/fix', names, 1.0)


# ---------------------------------------------------------------- commands


@pytest.fixture(scope='module')
def fixes_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bag with fixes where the camera was: x of the room is east, y north."""
    earth = 6_378_137.0
    cosine = np.cos(np.radians(48))
    e2 = 2 / 298.257223563
    north_radius = earth * (1 - e2) / (1 - e2 * np.sin(np.radians(48)) ** 2) ** 1.5
    east_radius = earth / np.sqrt(1 - e2 * np.sin(np.radians(48)) ** 2)
    start = map_from_cams()[0].translation
    messages = []
    for number, pose in enumerate(map_from_cams()):
        x, y, z = pose.translation - start
        place = (48 + np.degrees(y / north_radius), 11 + np.degrees(x / east_radius / cosine), z)
        messages.append(fix_message(number, (float(place[0]), float(place[1]), float(place[2]))))
    return write_bag(tmp_path_factory.mktemp('fixes') / 'fixes', 'sqlite', messages)


def test_a_map_from_a_bag_with_poses(bag_path: Path, tmp_path: Path) -> None:
    pytest.importorskip('pycolmap')
    few = ['--extractor-option', 'max_keypoints=500', '--set', 'keyframes.max_gap_s=0.3']
    topics = ['--image-topic', '/image', '--info-topic', '/info']
    words = ['map', 'build', '--bag', str(bag_path), *topics, *few]
    assert main([*words, '--out', str(tmp_path / 'tf'), '--tf', 'map']) == 0
    built = SfmMap(tmp_path / 'tf')
    manifest = built.manifest
    assert (manifest.frame_id, manifest.scale, manifest.gravity) == ('map', 'metric', 'known')
    assert not (tmp_path / 'tf' / 'images').exists()
    assert manifest.provenance['keyframes']['num_frames'] == COUNT
    for number, name in enumerate(image_names(built)):
        pose = map_from_cams()[(stamp_of_name(name) - START) // STEP]
        found = built.cam_from_map(number).inverse()
        np.testing.assert_allclose(found.translation, pose.translation, atol=1e-6)


def test_a_map_from_a_bag_without_poses_is_aligned_by_bags(
    bag_path: Path, fixes_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip('pycolmap')
    few = ['--extractor-option', 'max_keypoints=500']
    topics = ['--image-topic', '/image', '--info-topic', '/info']
    words = ['map', 'build', '--bag', str(bag_path), *topics, *few, '--out', str(tmp_path / 'map')]
    assert main(words) == 0
    built = SfmMap(tmp_path / 'map')
    assert (built.manifest.scale, built.manifest.gravity) == ('unknown', 'unknown')
    assert built.num_images >= 5
    shutil.copytree(tmp_path / 'map', tmp_path / 'copy')
    align = ['map', 'align', str(tmp_path / 'map'), '--bag', str(bag_path)]
    assert main([*align, '--pose-topic', '/odom', '--camera-frame', 'cam']) == 0
    aligned = SfmMap(tmp_path / 'map')
    assert (aligned.manifest.frame_id, aligned.manifest.scale) == ('odom', 'metric')
    assert aligned.manifest.gravity == 'known'
    rows = [(stamp_of_name(name) - START) // STEP for name in image_names(aligned)]
    found = np.array([aligned.cam_from_map(n).inverse().translation for n in range(len(rows))])
    expected = np.array([map_from_cams()[row].translation for row in rows])
    np.testing.assert_allclose(found, expected, atol=0.2)

    align = ['map', 'align', str(tmp_path / 'copy'), '--bag', str(fixes_path)]
    assert main([*align, '--navsat-topic', '/fix']) == 0
    aligned = SfmMap(tmp_path / 'copy')
    found = np.array([aligned.cam_from_map(n).inverse().translation for n in range(len(rows))])
    np.testing.assert_allclose(found, expected - expected[0], atol=0.2)
    assert aligned.manifest.gravity == 'known'
    capsys.readouterr()
    for more, message in (
        ([], '--bag needs one of --pose-topic, --tf and --navsat-topic'),
        (['--tf', 'map'], '--tf needs --camera-frame'),
    ):
        assert main([*align, *more]) == 1
        assert message in capsys.readouterr().err


def test_arguments_that_do_not_go_together(
    bag_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ['map', 'build', '--out', str(tmp_path / 'map'), '--bag', str(bag_path)]
    topics = ['--image-topic', '/image', '--info-topic', '/info']
    for more, message in (
        ([], '--bag needs --image-topic'),
        ([*topics, '--images', 'x'], '--images cannot be used with --bag'),
        ([*topics, '--pose-frame', 'x'], '--pose-frame needs --pose-topic'),
        (['--image-topic', '/nothing', '--info-topic', '/info'], 'its image topics are /image'),
    ):
        assert main([*words, *more]) == 1
        assert message in capsys.readouterr().err


# ---------------------------------------------------------------- recorded bags


@pytest.mark.skipif(not DATA.is_dir(), reason='no shared/data here')
def test_recorded_bags(tmp_path: Path) -> None:
    """A mcap file with raw frames, and a ROS 1 bag of a fisheye camera with odometry."""
    with Bag(DATA / 'fr1_rpy' / 'bag_mcap_raw') as bag:
        camera, _ = bag.camera_info('/camera/camera_info')
        found = write_keyframes(
            bag, '/camera/image_raw', camera, tmp_path / 'a', PoseSource('/ground_truth/pose'),
            options=EVERY,
        )  # fmt: skip
    assert found.counts == {'num_frames': 6, 'num_without_pose': 0, 'num_keyframes': 6}
    fisheye = Camera('OPENCV_FISHEYE', 848, 800, (286.0, 286.0, 424.0, 400.0, 0.0, 0.0, 0.0, 0.0))
    with Bag(next((DATA / 't265_ros1').glob('*.bag'))) as bag:
        odometry = bag.poses('/camera/odom/sample')
        frame = next(iter(bag.images('/camera/fisheye1/image_raw'))).frame_id
        source = PoseSource('/camera/odom/sample', pose_frame=frame)
        found = write_keyframes(
            bag, '/camera/fisheye1/image_raw', fisheye, tmp_path / 'b', source, options=EVERY
        )
    assert found.counts == {'num_frames': 3, 'num_without_pose': 1, 'num_keyframes': 2}
    assert found.frame_id == odometry.parent_frame
