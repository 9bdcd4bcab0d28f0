# Copyright 2026 The feat_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What comes in from a live robot: messages -> frames for the server, or the reason why not.

Drivers (ROS nodes, DDS) hand over every message; only attributes are looked at, so that the
messages may be of any library. An image waits until odometry and transforms of its time are
there; when they don't come it goes on without odometry, and is refused without a transform.
Nothing is guessed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
import logging
import threading
import time
from typing import Any

import numpy as np

from feat_ros.bags import camera_from_info, image_from_message, stamp_ns_of, TransformBuffer
from feat_ros.camera import Camera
from feat_ros.config import Config, option
from feat_ros.errors import BagError, CameraError, DataError, FeatRosError
from feat_ros.geometry import Rigid3d
from feat_ros.image import Image
from feat_ros.server import Frame
from feat_ros.trajectory import Trajectory
from feat_ros.types import Features

_LOG = logging.getLogger(__name__)

_SECOND_NS = 10**9
# Stamps that run back further than this are a clock that was set back, or a bag that loops.
_JUMP_NS = _SECOND_NS
# Odometry and transforms are kept for this long.
_KEEP_NS = 10 * _SECOND_NS
# Odometry further apart than this is not interpolated between; as in replay.
_MAX_GAP_NS = 250_000_000
# More images than these are never waiting: memory is finite where nothing else comes.
_MAX_WAITING = 16


class InputProblem(str, Enum):
    """Why an image did not become a frame; published as the reasons of the localizer are."""

    NO_CAMERA_INFO = 'NO_CAMERA_INFO'
    BAD_CAMERA_INFO = 'BAD_CAMERA_INFO'
    BAD_STAMP = 'BAD_STAMP'
    NO_ODOMETRY = 'NO_ODOMETRY'
    NO_TRANSFORM = 'NO_TRANSFORM'


@dataclass(frozen=True)
class IntakeConfig(Config):
    """Options of :class:`Intake`."""

    max_wait_s: float = option(
        0.2, 'how long an image waits for odometry and transforms of its time', minimum=0.0
    )
    stalled_after_s: float = option(
        0.8, 'a camera or odometry that is silent for longer is reported', minimum=0.0
    )


@dataclass(frozen=True)
class IntakeSnapshot:
    """The state of an intake for diagnostics.

    :ivar images: that came in.
    :ivar refused: those that did not become frames, by reason.
    :ivar dropped: because too many were waiting already.
    :ivar jumps: how often stamps ran back.
    :ivar image_age_s: since the last image; None before the first.
    :ivar problems: what is wrong now, a sentence each.
    """

    images: int
    refused: dict[str, int]
    dropped: int
    jumps: int
    image_age_s: float | None
    problems: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Waiting:
    message: Any
    stamp_ns: int
    since_s: float


class Intake:
    """Makes frames of one camera's messages. All methods may be called from any thread.

    :param submit: takes each frame, in order.
    :param base_frame: whose poses are found, by TF; default: the child frame of the odometry, or
        the image's frame.
    :param has_odometry: whether there will be odometry, to be waited for.
    :param decode: makes what is localized of an image message and its name for errors.
    :param clock: seconds of a clock that only goes forward.
    """

    def __init__(
        self,
        submit: Callable[[Frame], None],
        config: IntakeConfig | None = None,
        *,
        base_frame: str = '',
        has_odometry: bool = False,
        decode: Callable[[Any, str], Image | Features] = image_from_message,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config or IntakeConfig()
        self._submit, self._clock = submit, clock
        self._base_frame, self._has_odometry, self._decode = base_frame, has_odometry, decode
        self._lock = threading.RLock()
        self._camera: Camera | None = None
        self._info: Any = None
        self._info_problem = ''
        self._odometry = _Odometry()
        self._transforms = TransformBuffer()
        self._transforms_ns = self._kept_ns = 0
        self._waiting: deque[_Waiting] = deque()
        self._image_ns = 0
        self._counts = Counter[str]()
        self._refused = Counter[str]()
        self._last_refusal = -np.inf, ''
        self._image_s = self._odometry_s = self._started_s = clock()

    @property
    def odom_frame(self) -> str:
        """Parent frame of the odometry; '' before there was one."""
        return self._odometry.parent

    @property
    def newest_ns(self) -> int:
        """Stamp of the newest odometry, of the newest image where there is none."""
        return self._odometry.newest_ns or self._image_ns

    def base_frame(self, image_frame: str) -> str:
        """Return whose poses are found: as asked for, else odometry's child, else the camera."""
        return self._base_frame or self._odometry.child or image_frame

    def cam_from_base(self, image_frame: str) -> Rigid3d | None:
        """Return where a camera is on the base, by the newest transforms; None: not known."""
        with self._lock:
            try:
                return self._lookup(image_frame, self.base_frame(image_frame), self._transforms_ns)
            except FeatRosError:
                return None

    @property
    def has_camera(self) -> bool:
        """Whether a usable CameraInfo has come."""
        return self._camera is not None

    def parents(self, frame: str) -> list[str]:
        """Return the frames that others publish transforms from to this one."""
        with self._lock:
            return self._transforms.parents(frame)

    def camera_info(self, message: Any) -> None:
        """Take a sensor_msgs/CameraInfo; it holds until another comes."""
        content = _content(message)
        with self._lock:
            if content == self._info:
                return
            self._info, self._camera, self._info_problem = content, None, ''
            try:
                self._camera = camera_from_info(message, 'of the camera')
            except (CameraError, ValueError) as error:
                self._info_problem = str(error)
                _LOG.warning('%s', error)

    def odometry(self, message: Any) -> None:
        """Take a nav_msgs/Odometry."""
        with self._lock:
            try:
                stamp_ns = stamp_ns_of(message.header, 'odometry')
                self._odometry_s = self._clock()
                if self._odometry.add(stamp_ns, message):
                    self._jump('odometry')
            except (BagError, DataError) as error:
                self._last_refusal = self._clock(), f'odometry cannot be used: {error}'
        self.poll()

    def transforms(self, message: Any, *, is_static: bool) -> None:
        """Take a tf2_msgs/TFMessage."""
        with self._lock:
            try:
                self._transforms.add(message.transforms, is_static=is_static)
            except BagError as error:
                self._last_refusal = self._clock(), str(error)
            if not is_static:
                stamps = [t.header.stamp for t in message.transforms]
                self._age_transforms(max((_nanoseconds(s) for s in stamps), default=0))
        self.poll()

    def image(self, message: Any) -> None:
        """Take a sensor_msgs/Image, CompressedImage, or what ``decode`` reads."""
        with self._lock:
            self._counts['images'] += 1
            self._image_s = self._clock()
            try:
                stamp_ns = stamp_ns_of(message.header, 'the camera')
            except BagError as error:
                self._refuse(InputProblem.BAD_STAMP, str(error))
                return
            if stamp_ns < self._image_ns - _JUMP_NS:
                self._jump('images')
                self._counts['dropped'] += len(self._waiting)
                self._waiting.clear()
            self._image_ns = stamp_ns
            if len(self._waiting) == _MAX_WAITING:
                self._counts['dropped'] += 1
            else:
                self._waiting.append(_Waiting(message, stamp_ns, self._clock()))
        self.poll()

    def poll(self) -> None:
        """Hand over the images that have what they need, or have waited long enough.

        Called by every message; a driver calls it too, every 50 ms or so, as messages may stop.
        """
        with self._lock:
            for frame in self._ready():
                self._submit(frame)

    def snapshot(self) -> IntakeSnapshot:
        """Return the state for diagnostics."""
        with self._lock:
            now_s = self._clock()
            has_images = self._counts['images'] > 0
            return IntakeSnapshot(
                images=self._counts['images'],
                refused=dict(self._refused),
                dropped=self._counts['dropped'],
                jumps=self._counts['jumps'],
                image_age_s=now_s - self._image_s if has_images else None,
                problems=tuple(self._problems(now_s)),
            )

    def _problems(self, now_s: float) -> Iterator[str]:
        silent_s = now_s - self._image_s
        if silent_s > self.config.stalled_after_s:
            yield f'no image for {silent_s:.1f} s'
        if self._camera is None:
            yield self._info_problem or 'no CameraInfo yet'
        silent_s = now_s - self._odometry_s
        if self._has_odometry and silent_s > self.config.stalled_after_s:
            yield f'no odometry for {silent_s:.1f} s'
        at_s, refusal = self._last_refusal
        if now_s - at_s < 2.0:
            yield refusal

    def _ready(self) -> Iterator[Frame]:
        while self._waiting:
            first = self._waiting[0]
            is_late = self._clock() - first.since_s >= self.config.max_wait_s
            has_odometry = not self._has_odometry or self._odometry.newest_ns >= first.stamp_ns
            if not (has_odometry or is_late):
                return
            try:
                frame = self._frame(first)
            except _Missing as missing:
                if not is_late:
                    return
                self._waiting.popleft()
                self._refuse(missing.problem, str(missing))
                continue
            self._waiting.popleft()
            yield frame

    def _frame(self, waiting: _Waiting) -> Frame:
        """Make a frame of an image and what is known of its time.

        :raises _Missing: what it needs is not there.
        """
        message, stamp_ns = waiting.message, waiting.stamp_ns
        if self._camera is None and self._info_problem:
            raise _Missing(InputProblem.BAD_CAMERA_INFO, self._info_problem)
        if self._camera is None:
            raise _Missing(InputProblem.NO_CAMERA_INFO, 'no CameraInfo yet')
        image_frame = message.header.frame_id.lstrip('/')
        base_frame = self.base_frame(image_frame)
        if self._has_odometry and not (self._odometry.newest_ns or self._base_frame):
            raise _Missing(InputProblem.NO_ODOMETRY, 'no odometry yet: which frame is the base?')
        try:
            odom_from_child = self._odometry.pose_at(stamp_ns)
            odom_from_base = odom_from_child and odom_from_child @ self._lookup(
                self._odometry.child or image_frame, base_frame, stamp_ns
            )
            cam_from_base = None
            if base_frame != image_frame:
                cam_from_base = self._lookup(image_frame, base_frame, stamp_ns)
        except FeatRosError as error:
            raise _Missing(InputProblem.NO_TRANSFORM, str(error)) from None
        decode = partial(self._decode, message, f'at {stamp_ns} ns')
        return Frame(stamp_ns, decode, self._camera, cam_from_base, odom_from_base)

    def _lookup(self, target: str, source: str, stamp_ns: int) -> Rigid3d:
        if target == source:
            return Rigid3d()
        return self._transforms.lookup(target, source, stamp_ns)

    def _age_transforms(self, stamp_ns: int) -> None:
        if stamp_ns < self._transforms_ns - _JUMP_NS:
            self._jump('transforms')
            self._transforms.keep(stamp_ns - _KEEP_NS, stamp_ns)
            self._kept_ns = stamp_ns
        self._transforms_ns = stamp_ns
        if stamp_ns > self._kept_ns + _SECOND_NS:
            self._transforms.keep(stamp_ns - _KEEP_NS, stamp_ns + _KEEP_NS)
            self._kept_ns = stamp_ns

    def _jump(self, what: str) -> None:
        self._counts['jumps'] += 1
        _LOG.warning('the stamps of the %s ran back: the clock was set back, or a bag loops', what)

    def _refuse(self, problem: InputProblem, detail: str) -> None:
        self._refused[problem.value] += 1
        self._last_refusal = self._clock(), f'{problem.value}: {detail}'


class _Missing(Exception):
    """What an image needs and has not."""

    def __init__(self, problem: InputProblem, detail: str) -> None:
        super().__init__(detail)
        self.problem = problem


class _Odometry:
    """The last seconds of ``parent_from_child``."""

    def __init__(self) -> None:
        self.parent = self.child = ''
        self._stamps: list[int] = []
        self._poses: list[Trajectory] = []

    @property
    def newest_ns(self) -> int:
        return self._stamps[-1] if self._stamps else 0

    def add(self, stamp_ns: int, message: Any) -> bool:
        """Take a nav_msgs/Odometry; return whether the clock was set back.

        :raises DataError: not finite, or not a rotation.
        """
        place, turn = message.pose.pose.position, message.pose.pose.orientation
        quat = np.array([[turn.x, turn.y, turn.z, turn.w]])
        pose = Trajectory(np.array([stamp_ns]), quat, np.array([[place.x, place.y, place.z]]))
        is_jump = stamp_ns < self.newest_ns - _JUMP_NS
        if is_jump:
            self._stamps, self._poses = [], []
        if stamp_ns <= self.newest_ns:  # overtaken on the way, or sent twice
            return False
        self.parent = message.header.frame_id.lstrip('/')
        self.child = message.child_frame_id.lstrip('/')
        self._stamps.append(stamp_ns)
        self._poses.append(pose)
        old = bisect_left(self._stamps, stamp_ns - _KEEP_NS)
        del self._stamps[:old], self._poses[:old]
        return is_jump

    def pose_at(self, stamp_ns: int) -> Rigid3d | None:
        """Interpolate between the two around a stamp; None before, behind and in a gap."""
        at = bisect_left(self._stamps, stamp_ns)
        around = self._poses[max(at - 1, 0) : at + 1]
        if not around:
            return None
        return Trajectory(
            np.concatenate([pose.stamps_ns for pose in around]),
            np.concatenate([pose.quats_xyzw for pose in around]),
            np.concatenate([pose.translations for pose in around]),
        ).pose_at(stamp_ns, _MAX_GAP_NS)


def _content(info: Any) -> Any:
    """Return what of a CameraInfo makes the camera, to see that it has changed."""
    roi = info.roi
    size = info.width, info.height, info.binning_x, info.binning_y
    region = roi.x_offset, roi.y_offset, roi.width, roi.height
    return size, region, info.distortion_model, tuple(info.d), tuple(info.k)


def _nanoseconds(stamp: Any) -> int:
    return int(stamp.sec) * _SECOND_NS + int(stamp.nanosec)
