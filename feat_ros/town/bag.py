# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A drive as a ROS 2 bag: what the robot's own recorder would have written, and the truth.

====================  ==============================  ===========================================
``IMAGE_TOPIC``       sensor_msgs/CompressedImage     JPEG, in ``camera_optical_frame``
``INFO_TOPIC``        sensor_msgs/CameraInfo          one for each image
``ODOMETRY_TOPIC``    nav_msgs/Odometry               ``odom`` from ``base_link``, drifts
``/tf``               tf2_msgs/TFMessage              the same
``/tf_static``        tf2_msgs/TFMessage              ``base_link`` from ``camera_optical_frame``
``TRUTH_TOPIC``       nav_msgs/Odometry               ``map`` from ``base_link``, exact
====================  ==============================  ===========================================
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
import shutil
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.camera import Camera
from feat_ros.errors import BagError, DataError
from feat_ros.geometry import Rigid3d, so3_exp
from feat_ros.image import Image
from feat_ros.sfm_map import partial_path, publish, writing
from feat_ros.town.drive import Drive
from feat_ros.town.recording import frames
from feat_ros.town.world import Scene
from feat_ros.types import Progress

IMAGE_TOPIC = '/camera/image_raw/compressed'
INFO_TOPIC = '/camera/camera_info'
ODOMETRY_TOPIC = '/odom'
TRUTH_TOPIC = '/ground_truth'
CAMERA_FRAME, BASE_FRAME = 'camera_optical_frame', 'base_link'

# Day 0 starts then; stamps of zero are not stamps.
_EPOCH_NS = 1_700_000_000 * 10**9
_DAY_NS = 86_400 * 10**9
_ODOMETRY_HZ = 50.0
# Drift: a wheel radius that is off, and random walks of position and heading, per square root of
# metre. After a hundred metres about one metre and one degree.
_SCALE_SIGMA = 0.008
_STEP_SIGMA_M = 0.01
_YAW_SIGMA_RAD = np.radians(0.1)
_JPEG_QUALITY = 90


def start_ns(drive: Drive) -> int:
    """Return the stamp of a drive's first image."""
    return _EPOCH_NS + drive.day * _DAY_NS


def write_drive_bag(
    folder: str | Path, scene: Scene, camera: Camera, *, progress: Progress | None = None
) -> Path:
    """Write a drive as a bag (sqlite3).

    :param folder: must not exist; it appears when all is written.
    :raises DataError: the folder exists.
    :raises BagError: rosbags is not installed.
    :raises MapError: the disk is full or read-only.
    """
    folder = Path(folder)
    if folder.exists():
        raise DataError(f'folder {folder} exists: choose another name or remove it first')
    try:
        from rosbags.interfaces import (
            Qos,
            QosDurability,
            QosHistory,
            QosLiveliness,
            QosReliability,
            QosTime,
        )
        from rosbags.rosbag2 import Writer
    except ImportError:
        raise BagError(
            f"bag {folder} needs the package rosbags: run 'pip install rosbags'"
        ) from None
    messages = _Messages()
    # The file in a bag has the name of the folder it was made in.
    partial = partial_path(folder)
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        # As tf2 publishes what does not change; who plays the bag does it likewise.
        latched = Qos(
            QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL,
            QosTime(0, 0), QosTime(0, 0), QosLiveliness.AUTOMATIC, QosTime(0, 0), False,
        )  # fmt: skip
        with Writer(partial / folder.name, version=9) as writer:
            connections = {
                topic: writer.add_connection(
                    topic, kind, typestore=messages.store,
                    offered_qos_profiles=[latched] if topic == '/tf_static' else [],
                )
                for topic, kind in messages.topics.items()
            }  # fmt: skip
            for stamp_ns, topic, message in _record(messages, scene, camera, progress):
                data = messages.store.serialize_cdr(message, messages.topics[topic])
                writer.write(connections[topic], stamp_ns, data)
        publish(partial / folder.name, folder)
        partial.rmdir()
    return folder


def base_from_cam(drive: Drive) -> Rigid3d:
    """Return where the camera sits on the car: ahead of ``base_link``, which is on the ground."""
    yaw = so3_exp([0, 0, np.radians(drive.camera_yaw_deg)])
    forward_from_optical = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    return Rigid3d(yaw @ forward_from_optical, np.array([0.9, 0.0, drive.camera_height_m]))


def odometry(map_from_base: list[Rigid3d], rng: np.random.Generator) -> list[Rigid3d]:
    """Return ``odom_from_base`` of a wheeled robot that was at N poses; the first is identity.

    Each step is measured in the robot's frame with an error of scale, of position and of heading;
    the errors add up as they do in dead reckoning.
    """
    scale = 1 + rng.normal(0, _SCALE_SIGMA)
    out = [Rigid3d()]
    for earlier, later in pairwise(map_from_base):
        step = earlier.inverse() @ later
        root = np.sqrt(np.linalg.norm(step.translation))
        moved = step.translation * scale + rng.normal(0, _STEP_SIGMA_M, 3) * [1, 1, 0] * root
        turned = step.rotation @ so3_exp([0, 0, rng.normal(0, _YAW_SIGMA_RAD) * root])
        out.append(out[-1] @ Rigid3d(turned, moved))
    return out


def _record(
    messages: _Messages, scene: Scene, camera: Camera, progress: Progress | None
) -> Iterator[tuple[int, str, Any]]:
    """Yield (stamp, topic, message) in order of time, the transforms of an image before it."""
    drive, start = scene.drive, start_ns(scene.drive)
    cam_from_base = base_from_cam(drive).inverse()
    last_s = float(drive.times_s()[-1])
    times = np.arange(np.ceil(last_s * _ODOMETRY_HZ - 1e-9) + 1) / _ODOMETRY_HZ
    truth = [
        drive.cam_from_map(float(t), scene.town.length_m).inverse() @ cam_from_base for t in times
    ]
    drifting = odometry(truth, scene.town.rng(41, drive.day))
    stamps = [start + round(float(t) * 1e9) for t in times]
    camera_on_base = messages.transform(start, BASE_FRAME, CAMERA_FRAME, cam_from_base.inverse())
    yield start, '/tf_static', messages.transforms([camera_on_base])
    at = 0
    for time_s, frame in frames(scene, camera, progress):
        stamp = start + round(time_s * 1e9)
        while at < len(stamps) and stamps[at] <= stamp:
            yield from _poses(messages, stamps[at], drifting[at], truth[at])
            at += 1
        yield stamp, INFO_TOPIC, messages.camera_info(stamp, camera)
        yield stamp, IMAGE_TOPIC, messages.jpeg(stamp, frame.image)
    for stamp, odom_from_base, map_from_base in zip(
        stamps[at:], drifting[at:], truth[at:], strict=True
    ):
        yield from _poses(messages, stamp, odom_from_base, map_from_base)


def _poses(
    messages: _Messages, stamp_ns: int, odom_from_base: Rigid3d, map_from_base: Rigid3d
) -> Iterator[tuple[int, str, Any]]:
    moved = messages.transform(stamp_ns, 'odom', BASE_FRAME, odom_from_base)
    yield stamp_ns, '/tf', messages.transforms([moved])
    yield stamp_ns, ODOMETRY_TOPIC, messages.odometry(stamp_ns, 'odom', odom_from_base)
    yield stamp_ns, TRUTH_TOPIC, messages.odometry(stamp_ns, 'map', map_from_base)


class _Messages:
    """ROS messages of our records."""

    topics = {  # noqa: RUF012
        '/tf_static': 'tf2_msgs/msg/TFMessage',
        '/tf': 'tf2_msgs/msg/TFMessage',
        ODOMETRY_TOPIC: 'nav_msgs/msg/Odometry',
        TRUTH_TOPIC: 'nav_msgs/msg/Odometry',
        INFO_TOPIC: 'sensor_msgs/msg/CameraInfo',
        IMAGE_TOPIC: 'sensor_msgs/msg/CompressedImage',
    }

    def __init__(self) -> None:
        from rosbags.typesys import get_typestore, Stores

        self.store = get_typestore(Stores.ROS2_HUMBLE)
        self._types = self.store.types

    def _make(self, name: str, **fields: Any) -> Any:
        return self._types[name](**fields)

    def header(self, stamp_ns: int, frame_id: str) -> Any:
        stamp = self._make(
            'builtin_interfaces/msg/Time', sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9
        )
        return self._make('std_msgs/msg/Header', stamp=stamp, frame_id=frame_id)

    def _parts(self, place: str, pose: Rigid3d) -> tuple[Any, Any]:
        """Return the place as Point or Vector3, and the Quaternion."""
        xyz = dict(zip('xyz', pose.translation.tolist(), strict=True))
        quat = dict(zip('xyzw', pose.quat_xyzw.tolist(), strict=True))
        return (
            self._make(f'geometry_msgs/msg/{place}', **xyz),
            self._make('geometry_msgs/msg/Quaternion', **quat),
        )

    def transform(self, stamp_ns: int, parent: str, child: str, pose: Rigid3d) -> Any:
        translation, rotation = self._parts('Vector3', pose)
        return self._make(
            'geometry_msgs/msg/TransformStamped',
            header=self.header(stamp_ns, parent),
            child_frame_id=child,
            transform=self._make(
                'geometry_msgs/msg/Transform', translation=translation, rotation=rotation
            ),
        )

    def transforms(self, transforms: list[Any]) -> Any:
        return self._make('tf2_msgs/msg/TFMessage', transforms=transforms)

    def odometry(self, stamp_ns: int, parent: str, parent_from_base: Rigid3d) -> Any:
        position, orientation = self._parts('Point', parent_from_base)
        zero = self._make('geometry_msgs/msg/Vector3', x=0.0, y=0.0, z=0.0)
        unknown = np.zeros(36)
        return self._make(
            'nav_msgs/msg/Odometry',
            header=self.header(stamp_ns, parent),
            child_frame_id=BASE_FRAME,
            pose=self._make(
                'geometry_msgs/msg/PoseWithCovariance',
                pose=self._make(
                    'geometry_msgs/msg/Pose', position=position, orientation=orientation
                ),
                covariance=unknown,
            ),
            twist=self._make(
                'geometry_msgs/msg/TwistWithCovariance',
                twist=self._make('geometry_msgs/msg/Twist', linear=zero, angular=zero),
                covariance=unknown,
            ),
        )

    def jpeg(self, stamp_ns: int, image: Image) -> Any:
        options = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
        is_done, data = cv2.imencode('.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
        assert is_done
        return self._make(
            'sensor_msgs/msg/CompressedImage',
            header=self.header(stamp_ns, CAMERA_FRAME),
            format='jpeg',
            data=np.asarray(data, np.uint8).reshape(-1),
        )

    def camera_info(self, stamp_ns: int, camera: Camera) -> Any:
        """Return the CameraInfo that :func:`feat_ros.bags.camera_from_info` reads as the camera.

        The one place where our pixels, with centres half a pixel on, become ROS's.
        """
        (fx, fy), (cx, cy) = camera.focal_xy, camera.center_xy - 0.5
        model, coefficients = _ros_distortion(camera)
        roi = self._make(
            'sensor_msgs/msg/RegionOfInterest',
            x_offset=0, y_offset=0, height=0, width=0, do_rectify=False,
        )  # fmt: skip
        return self._make(
            'sensor_msgs/msg/CameraInfo',
            header=self.header(stamp_ns, CAMERA_FRAME),
            height=camera.height,
            width=camera.width,
            distortion_model=model,
            d=coefficients,
            k=np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1.0]),
            r=np.eye(3).reshape(-1),
            p=np.array([fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1.0, 0]),
            binning_x=0,
            binning_y=0,
            roi=roi,
        )


def _ros_distortion(camera: Camera) -> tuple[str, npt.NDArray[np.float64]]:
    if camera.is_fisheye:
        return 'equidistant', camera.distortion
    if np.any(camera.distortion[4:]):
        return 'rational_polynomial', camera.distortion
    return 'plumb_bob', np.append(camera.distortion[:4], 0.0)
