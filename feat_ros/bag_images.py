# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A recorded bag becomes images for a map: keyframes by motion, with poses where the bag has them.

With poses a frame is kept when the camera moved or turned enough since the last one kept; without
poses when the picture moved enough (sparse optical flow).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
import logging
from pathlib import Path
import shutil
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from feat_ros.bags import Bag, stamp_ns_of, StampedImage, TransformBuffer
from feat_ros.camera import Camera
from feat_ros.colmap_files import PosedImage
from feat_ros.config import Config, option
from feat_ros.errors import BagError, DataError, OutsideTimeRangeError, TransformError
from feat_ros.geometry import Rigid3d, rotation_angle_deg
from feat_ros.image import Image, to_grey, write_png
from feat_ros.sfm_map import writing
from feat_ros.types import Progress

Float = npt.NDArray[np.float64]

logger = logging.getLogger(__name__)

FIX_TYPE = 'sensor_msgs/msg/NavSatFix'
_JPEG, _PNG = b'\xff\xd8\xff', b'\x89PNG'
# Optical flow is measured in pictures of this width; fewer corners than this are lost track.
_FLOW_WIDTH = 320
_FLOW_CORNERS, _LEAST_CORNERS = 300, 30
_LEAST_KEPT_SHARE = 0.4


@dataclass(frozen=True)
class KeyframeConfig(Config):
    """Options of :func:`write_keyframes`."""

    min_distance_m: float = option(
        0.1, 'a frame is kept when the camera moved this far, metres', minimum=0.0
    )
    min_angle_deg: float = option(5.0, 'or turned this far, degrees', minimum=0.0, maximum=180.0)
    min_flow: float = option(
        0.05,
        'without poses: a frame is kept when the picture moved by this share of its width',
        minimum=0.0,
        maximum=1.0,
    )
    max_gap_s: float = option(
        0.2, 'poses further apart are not interpolated between, seconds', minimum=1e-3
    )


@dataclass(frozen=True)
class Window:
    """Which frames of a bag are used, in seconds since the first image.

    :ivar seconds: 'all', or those whose whole second is 'even' or 'odd'.
    """

    start_s: float = 0.0
    end_s: float = float('inf')
    seconds: str = 'all'

    def contains(self, since_first_ns: int) -> bool:
        """Whether a frame is in the window; its end is not."""
        parity = {'even': (0,), 'odd': (1,), 'all': (0, 1)}[self.seconds]
        inside = self.start_s <= since_first_ns / 1e9 < self.end_s
        return inside and since_first_ns // 10**9 % 2 in parity


@dataclass(frozen=True)
class PoseSource:
    """Where a bag has the camera's poses: one of a topic and TF.

    :ivar topic: Odometry, PoseStamped, PoseWithCovarianceStamped or TransformStamped.
    :ivar tf_frame: the frame that is to be the map's; the camera's pose in it is looked up.
    :ivar pose_frame: the frame whose pose the topic gives, where its messages don't name one:
        without it they are taken to be the camera's optical frame.
    """

    topic: str | None = None
    tf_frame: str | None = None
    pose_frame: str | None = None


class CameraPoses:
    """The camera's pose at any stamp.

    :ivar parent_frame: the frame that poses are in.
    """

    def __init__(self, bag: Bag, source: PoseSource, max_gap_s: float) -> None:
        """Read the poses.

        :raises BagError: no such topic, or no transforms; see :class:`feat_ros.bags.Bag`.
        """
        self._max_gap_ns = round(max_gap_s * 1e9)
        self._child = source.pose_frame or ''
        self._poses = None
        self._transforms: TransformBuffer | None = None
        if source.topic is None:
            self.parent_frame = source.tf_frame or ''
            self._transforms = bag.transforms()
            return
        stamped = bag.poses(source.topic)
        self.parent_frame, self._poses = stamped.parent_frame, stamped.trajectory
        self._child = self._child or stamped.child_frame
        self._topic = source.topic
        self._bag = bag

    def map_from_cam(self, stamp_ns: int, camera_frame: str) -> Rigid3d | None:
        """Return the pose at a stamp, None where the bag has none.

        :raises TransformError: the frames are not connected, or unknown.
        """
        try:
            if self._poses is None:
                assert self._transforms is not None, 'read when there is no topic'
                return self._transforms.lookup(
                    self.parent_frame, camera_frame, stamp_ns, self._max_gap_ns
                )
            map_from_child = self._poses.pose_at(stamp_ns, self._max_gap_ns)
            if map_from_child is None or self._child in ('', camera_frame):
                return map_from_child
            return map_from_child @ self._child_from_cam(stamp_ns, camera_frame)
        except OutsideTimeRangeError:
            return None

    def _child_from_cam(self, stamp_ns: int, camera_frame: str) -> Rigid3d:
        try:
            if self._transforms is None:
                self._transforms = self._bag.transforms()
            return self._transforms.lookup(self._child, camera_frame, stamp_ns, self._max_gap_ns)
        except OutsideTimeRangeError:
            raise
        except (BagError, TransformError) as error:
            raise TransformError(
                f'topic {self._topic} has the poses of {self._child!r}, the camera is '
                f'{camera_frame!r}, and the bag does not connect them ({error}): record TF, or '
                f'say --pose-frame {camera_frame} if they are the same'
            ) from None


@dataclass(frozen=True, eq=False)
class Keyframes:
    """The images that were written.

    :ivar images: with poses; or cameras by name, where the bag gave no poses.
    :ivar frame_id: the frame of the poses; '' without.
    :ivar counts: frames in the window, without a pose, kept.
    """

    images: list[PosedImage] | dict[str, Camera]
    frame_id: str
    counts: dict[str, int]


def write_keyframes(
    bag: Bag,
    image_topic: str,
    camera: Camera,
    folder: Path,
    source: PoseSource | None = None,
    window: Window | None = None,
    options: KeyframeConfig | None = None,
    progress: Progress | None = None,
) -> Keyframes:
    """Write the keyframes of an image topic as ``STAMP_NS.jpg`` or ``.png``.

    JPEG and PNG are written as they were recorded, all else as PNG.

    :param folder: made here; what was in it is removed.
    :param source: where the poses are; None for none.
    :raises BagError, TransformError: see :class:`feat_ros.bags.Bag`.
    :raises DataError: fewer than two frames are kept.
    """
    options = options or KeyframeConfig()
    poses = None if source is None else CameraPoses(bag, source, options.max_gap_s)
    with writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    counts = {'num_frames': 0, 'num_without_pose': 0, 'num_keyframes': 0}
    names: list[str] = []
    found: list[Rigid3d] = []
    has_moved = _has_flowed(options) if poses is None else None
    for image in frames_in(bag, image_topic, window or Window(), progress):
        counts['num_frames'] += 1
        if poses is not None:
            pose = poses.map_from_cam(image.stamp_ns, image.frame_id)
            if pose is None:
                counts['num_without_pose'] += 1
                continue
            if found and not _is_apart(found[-1], pose, options):
                continue
            found.append(pose)
        elif has_moved is not None and not has_moved(image.decode()):
            continue
        names.append(_write(folder, image))
    counts['num_keyframes'] = len(names)
    _check_count(counts, image_topic)
    if poses is None:
        return Keyframes(dict.fromkeys(names, camera), '', counts)
    no_points = np.zeros(0, np.int64)
    posed = [
        PosedImage(name, camera, pose.inverse(), no_points)
        for name, pose in zip(names, found, strict=True)
    ]
    return Keyframes(posed, poses.parent_frame, counts)


def _check_count(counts: dict[str, int], topic: str) -> None:
    total, without = counts['num_frames'], counts['num_without_pose']
    if without:
        logger.warning('%d of %d frames have no pose and are left out', without, total)
    if counts['num_keyframes'] >= 2:
        return
    if without > total / 2:
        raise DataError(
            f'{without} of {total} frames of {topic} have no pose: is the clock of the poses that '
            'of the images, or are they further apart than max_gap_s?'
        )
    raise DataError(
        f'{counts["num_keyframes"]} of {total} frames of {topic} are keyframes, a map needs 2: '
        'the camera hardly moved, or --seconds, --start and --end leave little'
    )


def frames_in(
    bag: Bag, topic: str, window: Window, progress: Progress | None = None
) -> Iterator[StampedImage]:
    """Yield the images of a topic that are in a window."""
    images = bag.images(topic)
    count = bag.topics[topic].count if topic in bag.topics else 0
    ticks = (progress or (lambda items, _: items))(list(range(count)), 'read')
    first_ns = None
    for image, _ in zip(images, ticks, strict=False):
        first_ns = image.stamp_ns if first_ns is None else first_ns
        if window.contains(image.stamp_ns - first_ns):
            yield image


def _is_apart(last: Rigid3d, now: Rigid3d, options: KeyframeConfig) -> bool:
    return bool(
        np.linalg.norm(now.translation - last.translation) >= options.min_distance_m
        or rotation_angle_deg(last.rotation, now.rotation) >= options.min_angle_deg
    )


def _has_flowed(options: KeyframeConfig) -> Callable[[Image], bool]:
    """Return what says of one picture after the other whether it is a keyframe.

    Corners of the last keyframe are tracked from picture to picture (Lucas and Kanade, "An
    iterative image registration technique", IJCAI 1981, in pyramids); the median of how far they
    came is the flow. A picture in which most are lost is a keyframe too.
    """
    previous: Image | None = None
    start = now = np.zeros((0, 1, 2), np.float32)
    planted = 0

    def plant(grey: Image) -> None:
        nonlocal start, now, planted
        corners = cv2.goodFeaturesToTrack(grey, _FLOW_CORNERS, 0.01, 7)
        start = now = np.zeros((0, 1, 2), np.float32) if corners is None else corners
        planted = len(start)

    def has_moved(rgb: Image) -> bool:
        nonlocal previous, start, now
        height = max(8, round(_FLOW_WIDTH * rgb.shape[0] / rgb.shape[1]))
        grey = cv2.resize(to_grey(rgb), (_FLOW_WIDTH, height), interpolation=cv2.INTER_AREA)
        before, previous = previous, np.asarray(grey, np.uint8)
        if before is None:
            plant(previous)
            return True
        if len(now):
            moved, status, _ = cv2.calcOpticalFlowPyrLK(before, previous, now, None)
            kept = status.reshape(-1) > 0
            start, now = start[kept], np.asarray(moved)[kept]
        if planted < _LEAST_CORNERS:  # nothing to follow: wait for a picture that has something
            plant(previous)
            return planted >= _LEAST_CORNERS
        flow = np.linalg.norm(now - start, axis=2)
        lost = len(now) < _LEAST_KEPT_SHARE * planted
        if not lost and float(np.median(flow)) < options.min_flow * _FLOW_WIDTH:
            return False
        plant(previous)
        return True

    return has_moved


def _write(folder: Path, image: StampedImage) -> str:
    data = _file_bytes(image.message)
    suffix = '.jpg' if data is not None and data.startswith(_JPEG) else '.png'
    name = f'{image.stamp_ns}{suffix}'
    with writing(folder):
        if data is None:
            write_png(folder / name, image.decode())
        else:
            (folder / name).write_bytes(data)
    return name


def _file_bytes(message: Any) -> bytes | None:
    """Return the data of a compressed message that any reader understands, None for others."""
    if hasattr(message, 'encoding'):
        return None
    target = message.format.rpartition(';')[2].rpartition('compressed')[2].strip()
    data = bytes(message.data)
    plain = ';' not in message.format or target in ('bgr8', 'mono8')
    return data if plain and data.startswith((_JPEG, _PNG)) else None


def stamp_of_name(name: str) -> int:
    """Return the stamp that an image of a bag is named by, in nanoseconds.

    :raises DataError: the name is no stamp.
    """
    stem = Path(name).stem
    if not (stem.isascii() and stem.isdigit()):
        raise DataError(
            f'image {name!r} of the map is not named by its stamp in nanoseconds: only maps that '
            'were built from a bag can be aligned by one'
        )
    return int(stem)


def poses_at_images(
    bag: Bag, source: PoseSource, camera_frame: str, names: list[str], max_gap_s: float
) -> tuple[dict[str, Rigid3d], str]:
    """Return ``cam_from_map`` of the images that a bag has a pose for, and the frame of them.

    :raises BagError, TransformError: see :class:`CameraPoses`.
    :raises DataError: a name that is no stamp.
    """
    poses = CameraPoses(bag, source, max_gap_s)
    out = {}
    for name in names:
        pose = poses.map_from_cam(stamp_of_name(name), camera_frame)
        if pose is not None:
            out[name] = pose.inverse()
    return out, poses.parent_frame


def fixes_at_images(bag: Bag, topic: str, names: list[str], max_gap_s: float) -> dict[str, Float]:
    """Return latitude and longitude (degrees) and altitude (metres) where images were taken.

    Messages that say they have no fix are left out, the others interpolated between; the antenna
    is taken to be where the camera is.

    :raises BagError: no such topic, or no fix in it.
    :raises DataError: a name that is no stamp.
    """
    stamps, places = _read_fixes(bag, topic)
    asked = np.array([stamp_of_name(name) for name in names], np.int64)
    after = np.clip(np.searchsorted(stamps, asked), 0, len(stamps) - 1)
    before = np.where(stamps[after] == asked, after, np.maximum(after - 1, 0))
    gap = stamps[after] - stamps[before]
    known = (stamps[before] <= asked) & (asked <= stamps[after]) & (gap <= max_gap_s * 1e9)
    weight = ((asked - stamps[before]) / np.maximum(gap, 1))[:, None]
    place = (1 - weight) * places[before] + weight * places[after]
    return {name: place[row] for row, name in enumerate(names) if known[row]}


def _read_fixes(bag: Bag, topic: str) -> tuple[npt.NDArray[np.int64], Float]:
    """Stamps (N,) and latitude, longitude, altitude (N, 3) of the fixes, by stamp."""
    if topic not in bag.topics or bag.topics[topic].type != FIX_TYPE:
        fitting = [name for name, known in bag.topics.items() if known.type == FIX_TYPE]
        raise BagError(
            f'bag {bag.path} has no {FIX_TYPE} on {topic!r}: '
            + (f'they are on {", ".join(fitting)}' if fitting else 'nor on any other topic')
        )
    rows = {
        stamp_ns_of(message.header, f'topic {topic}'): (
            message.latitude, message.longitude, message.altitude,
        )
        for _, message in bag._messages(topic, (FIX_TYPE,))
        if message.status.status >= 0
        and np.isfinite([message.latitude, message.longitude, message.altitude]).all()
    }  # fmt: skip
    if not rows:
        raise BagError(f'topic {topic} of bag {bag.path} has no fix: was there a sky above?')
    stamps = np.array(sorted(rows), np.int64)
    return stamps, np.array([rows[stamp] for stamp in stamps.tolist()], float)
